"""Multipliers per channel and phase: the same torus in another order, against dense matrices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, certify, load_certificate, verify
from admm_lip.certificates.exact import exact_check
from admm_lip.certificates.torus import certify as torus_certify
from admm_lip.certificates.torus.check import head_matrices
from admm_lip.certificates.torus.hermitian import largest
from admm_lip.certificates.torus.measure import measured_on_torus
from admm_lip.certificates.torus.phases import affordable, in_phases, phases_of, repeated
from admm_lip.certificates.torus.proof import covariances
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.search import search
from admm_lip.certificates.torus.steps import Correlation, Pair, Pointwise, TorusChain
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.network import Network
from admm_lip.solvers.deadline import Deadline

Array = np.ndarray[Any, Any]


def passed(chain: TorusChain, x: Array) -> Array:
    """The chain of a signal ``(channels, rows, columns)`` on its torus, from the definition.

    Its activations are tanh, scaled by their greatest slopes.
    """
    for step in chain.steps:
        if isinstance(step, Pointwise):
            x = x.copy()
            x[step.rows] = step.beta[:, None, None] * np.tanh(x[step.rows])
            continue
        down, across = step.stride
        out = np.zeros((len(step.kernel), x.shape[1] // down, x.shape[2] // across))
        for a, b in np.ndindex(*step.kernel.shape[2:]):
            moved = np.roll(x, (step.start[0] - a, step.start[1] - b), axis=(1, 2))
            out += np.einsum("oi,irc->orc", step.kernel[:, :, a, b], moved[:, ::down, ::across])
        x = out
    return x


def apart(x: Array, phases: Pair) -> Array:
    """A signal with its phases as channels."""
    rows, columns = phases
    c, h, w = x.shape
    split = x.reshape(c, h // rows, rows, w // columns, columns)
    return split.transpose(0, 2, 4, 1, 3).reshape(-1, h // rows, w // columns)


def activation(channels: int, rng: np.random.Generator) -> Pointwise:
    """Of some channels, so that the others pass."""
    rows = rng.permutation(channels)[: rng.integers(1, channels + 1)]
    return Pointwise("tanh", rows, np.zeros(len(rows)), rng.uniform(0.5, 1.0, len(rows)))


def chain_at_random(
    strides: list[Pair], sizes: list[Pair], seed: int, error: float = 0.0
) -> TorusChain:
    rng = np.random.default_rng(seed)
    steps: list[Correlation | Pointwise] = []
    channels = 2
    for stride, size in zip(strides, sizes, strict=True):
        out = int(rng.integers(1, 4))
        kernel = rng.normal(size=(out, channels, *size)) / 4.0
        start = (int(rng.integers(0, 3)), int(rng.integers(-1, 2)))
        steps += [Correlation(kernel, start, stride, error), activation(out, rng)]
        channels = out
    whole = [math.prod(s[axis] for s in strides) for axis in (0, 1)]
    grid = (whole[0] * int(rng.integers(1, 3)), whole[1] * int(rng.integers(1, 3)))
    last = (grid[0] // whole[0], grid[1] // whole[1])
    return TorusChain(tuple(steps), 2, grid, (channels, *last), None)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(layers=st.lists(st.tuples(PAIRS, PAIRS), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_phases_change_nothing_but_the_order(layers: list[tuple[Pair, Pair]], seed: int) -> None:
    chain = chain_at_random([s for s, _ in layers], [k for _, k in layers], seed, 1e-3)
    whole = [a // b for a, b in zip(chain.grid, chain.last_grid, strict=True)]
    most = math.lcm(*whole)
    signal = np.random.default_rng(seed).normal(size=(2, *chain.grid))
    expected = passed(chain, signal)
    for phases in (p for p in range(1, most + 1) if most % p == 0):
        other = in_phases(chain, phases)
        assert other.last_grid == chain.last_grid
        own = tuple(math.gcd(phases, w) for w in whole)
        assert other.phases == own
        assert np.allclose(passed(other, apart(signal, own)), expected, atol=1e-12)
        # Kernels are moved; every phase that is made has them whole, with their errors.
        for old, new in zip(chain.steps, other.steps, strict=True):
            if isinstance(old, Correlation):
                assert isinstance(new, Correlation)
                copies = len(new.kernel) // len(old.kernel)
                assert np.array_equal(
                    np.sort(new.kernel[new.kernel != 0.0]),
                    np.sort(np.tile(old.kernel.ravel(), copies)),
                )
                assert new.error >= math.sqrt(copies) * old.error


@pytest.mark.parametrize("seed", range(3))
def test_a_multiplier_for_all_phases_proves_the_same(seed: int) -> None:
    chain = chain_at_random([(2, 1), (1, 2), (1, 1)], [(3, 2), (2, 3), (2, 1)], seed)
    t = [np.full(len(act.rows), 0.3) for act in chain.activations]
    plain = max(float(largest(p).max()) for _, _, p in covariances(chain, t))
    other = in_phases(chain, 2)
    alike = repeated(t, other)
    assert [len(own) for own in alike] == [
        len(own) * math.prod(found) for own, found in zip(t, phases_of(chain, 2), strict=True)
    ]
    found = max(float(largest(p).max()) for _, _, p in covariances(other, alike))
    assert found == pytest.approx(plain, rel=1e-9)


@functools.cache
def strided(head: bool = False) -> Network:
    """Circular, strides 1, 2: shifts by 2 are all that is left in front of the stride."""
    torch.manual_seed(1)
    options = {"padding": 1, "padding_mode": "circular"}
    layers = [nn.Conv2d(1, 2, 3, **options), nn.ReLU(), nn.Conv2d(2, 2, 4, 2, **options), nn.ReLU()]
    behind = [nn.Flatten(), nn.Linear(8, 2)] if head else []
    return read_module(nn.Sequential(*layers, *behind).double(), (1, 4, 4))


def optimum(network: Network) -> float:
    """``L^2`` of LipSDP with one multiplier for every neuron, by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    chain = network.chain()
    starts = np.cumsum([0, *(w.shape[1] for w in chain.weights)])
    place = [np.eye(int(starts[-1]))[a:b] for a, b in itertools.pairwise(starts)]
    rho = cp.Variable()
    lmi = rho * place[0].T @ place[0]
    for k in range(len(chain.weights) - 1):
        z, v = chain.weights[k] @ place[k], place[k + 1]
        pair = v.T @ cp.diag(cp.Variable(len(v), nonneg=True)) @ (v - z)
        lmi = lmi + pair + pair.T
    y = chain.weights[-1] @ place[-1]
    problem = cp.Problem(cp.Minimize(rho), [((lmi + lmi.T) / 2 - y.T @ y) >> 0])
    problem.solve(solver="CLARABEL")
    return float(problem.value)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_circular_networks_get_lipsdp_with_a_multiplier_per_neuron() -> None:
    network = strided()
    chain = torus_chain(network, 2)
    assert chain.grid == (4, 4) and affordable(chain) == 2
    found, expected = search(in_phases(chain, 2), None, Deadline(None)), optimum(network)
    assert found.lower <= expected * (1.0 + 1e-6)
    assert expected * (1.0 - 1e-6) <= found.squared <= expected * (1.0 + 1.2e-4)
    # Which per channel are far from.
    assert search(chain, None, Deadline(None)).lower > 1.02 * expected


@pytest.mark.parametrize("head", [False, True])
def test_a_search_begins_where_the_one_per_channel_ended(head: bool) -> None:
    chain = torus_chain(strided(head), 2)
    own = None if chain.head is None else head_matrices(chain.head)
    plain = search(chain, own, Deadline(None))
    other = in_phases(chain, 2)
    at_once = search(other, own, Deadline(1e-9), near=repeated(plain.multiplier, other))
    assert at_once.squared <= plain.squared * (1.0 + 1e-9)


class Block(nn.Module):
    """A shortcut of one tap, which sees one phase of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.shortcut = nn.Conv2d(3, 4, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))) + self.shortcut(x)


SHAPE = (1, 7, 8)


@functools.cache
def residual() -> nn.Sequential:
    """Strides in front of the head, an image whose sides they do not divide."""
    torch.manual_seed(0)
    front = (nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), Block(), nn.ReLU())
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(64, 2)).double()


@functools.cache
def plain() -> nn.Sequential:
    torch.manual_seed(3)
    front = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*front, nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()).double()


@functools.cache
def made(build: Any, norm: str = "l2") -> Certificate:
    """With phases, whatever is the least of all forms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torus_certify, "TOGETHER", 0)
        patch.setattr(torus_certify, "HEAD_NEURONS", 0)
        found = certify(build(), SHAPE, structure="torus", norm=norm)
    assert isinstance(found, Certificate) and found.phases == 2
    return found


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("build", [residual, plain], ids=["residual", "plain"])
def test_it_is_below_the_bound_per_channel_and_above_the_truth(build: Any, norm: str) -> None:
    found = made(build, norm)
    verify(found, build())
    network = read_module(build(), SHAPE)
    chain = measured_on_torus(torus_chain(network, found.switch), SHAPE, norm, None)
    head = None if chain.head is None else head_matrices(chain.head)
    per_channel = search(chain, head, Deadline(None))
    assert found.lip < 0.999 * math.sqrt(per_channel.lower)
    exact = certify(build(), SHAPE, structure="exact", norm=norm)
    assert exact.lower_lip <= found.lip * (1.0 + 1e-9) and found.lip <= found.norm_product
    assert 0.0 < exact.sampled_lower <= found.lip and found.lower_lip <= found.lip


def test_what_is_saved_proves_the_same_and_nothing_less(tmp_path: Path) -> None:
    found = made(residual)
    found.save(tmp_path / "certificate.json")
    assert load_certificate(tmp_path / "certificate.json") == found
    for change in (
        {"lip": 0.99 * found.lip, "lower_lip": 0.0, "sampled_lower": 0.0},
        {"phases": 1},
        {"phases": 3},
        {"phases": 4},
        {"switch": found.switch - 1},
        {"multiplier": tuple(tuple(2.0 * v for v in t) for t in found.multiplier)},
        # A shift by a place of the image puts every phase in another's stead.
        {"multiplier": (tuple(np.roll(found.multiplier[0], 1)), *found.multiplier[1:])},
    ):
        with pytest.raises(CertificateError):
            verify(dataclasses.replace(found, **change), residual())


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", 10**6, None])
def test_phases_are_a_whole_number(value: Any) -> None:
    with pytest.raises(CertificateError, match="phases: expected a whole number from 1"):
        dataclasses.replace(made(residual), phases=value)
    neurons = certify(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    with pytest.raises(CertificateError, match="phases: expected a whole number from 1 to 1"):
        dataclasses.replace(neurons, phases=2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_phase_is_that_of_its_pixels(norm: str) -> None:
    # The image is the torus, so that nothing is lost pixel by pixel.
    found = certify(strided(), structure="torus", norm=norm)
    assert found.phases == 2
    exact_check(strided(), found)
    own = found.multiplier[norm == "linf"]
    rolled = tuple(np.array(own).reshape(2, 4)[:, [1, 0, 3, 2]].ravel())
    parts = tuple(rolled if t is own else t for t in found.multiplier)
    for change in ({"lip": 0.999 * found.lip}, {"multiplier": parts}):
        wrong = dataclasses.replace(found, lower_lip=0.0, sampled_lower=0.0, **change)
        with pytest.raises(CertificateError, match="lip"):
            exact_check(strided(), wrong)


def test_of_many_phases_as_many_as_pay() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, out, stride in ((3, 4, 1), (4, 4, 2), (4, 4, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU()]
    chain = torus_chain(read_module(nn.Sequential(*layers), (3, 8, 8)), 3)
    assert affordable(chain) == 4
    assert phases_of(chain, 4) == [(4, 4), (2, 2), (1, 1)]
    assert phases_of(chain, 2) == [(2, 2), (2, 2), (1, 1)]
    wide = dataclasses.replace(chain, grid=(4000, 4000))
    assert affordable(wide) == 1
    # Nothing stands in front of a stride but the input.
    assert affordable(torus_chain(read_module(nn.Sequential(*layers), (3, 8, 8)), 1)) == 1
    with pytest.raises(CertificateError, match="phases: expected a divisor of the strides"):
        in_phases(chain, 8)
