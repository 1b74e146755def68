"""Multipliers per channel, frequency by frequency: the torus against dense matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, certify, load_certificate, verify
from admm_lip.certificates.torus import read
from admm_lip.certificates.torus.check import head_matrices
from admm_lip.certificates.torus.hermitian import largest
from admm_lip.certificates.torus.product import certify_product
from admm_lip.certificates.torus.proof import NotProven, covariances, gathered
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.reading import NotShiftInvariant
from admm_lip.certificates.torus.steps import (
    Correlation,
    Pointwise,
    TorusChain,
    half_of,
    levels_of,
    symbol,
    symbol_error,
)
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.sorting_torch import MaxMin

Array = np.ndarray[Any, Any]


def periodic(step: Correlation, grid: tuple[int, int]) -> Array:
    """The dense matrix of a correlation on its torus, from its definition."""
    out, channels, rows, columns = step.kernel.shape
    small = (grid[0] // step.stride[0], grid[1] // step.stride[1])
    matrix = np.zeros((out, *small, channels, *grid))
    for y in range(small[0]):
        for x in range(small[1]):
            for a in range(rows):
                for b in range(columns):
                    source = (
                        (y * step.stride[0] + a - step.start[0]) % grid[0],
                        (x * step.stride[1] + b - step.start[1]) % grid[1],
                    )
                    matrix[:, y, x, :, source[0], source[1]] += step.kernel[:, :, a, b]
    return matrix.reshape(out * math.prod(small), channels * math.prod(grid))


def dense_bound(chain: TorusChain, multipliers: list[Array]) -> float:
    """``L^2`` by the same recursion on the dense matrices of the torus."""
    grid, left = chain.grid, list(multipliers)
    p, width = np.eye(chain.channels * math.prod(grid)), chain.channels
    for step in chain.steps:
        if isinstance(step, Correlation):
            w = periodic(step, grid)
            p, width = w @ p @ w.T, len(step.kernel)
            grid = (grid[0] // step.stride[0], grid[1] // step.stride[1])
            continue
        area, t = math.prod(grid), left.pop(0)
        rows = (step.rows[:, None] * area + np.arange(area)).ravel()
        least = np.ones(width)
        least[step.rows] = step.alpha
        t_all, d = np.repeat(t, area), np.repeat(least, area)
        s = np.linalg.inv(np.diag(2.0 * t_all) - t_all[:, None] * p[np.ix_(rows, rows)] * t_all)
        h = d[:, None] * p[:, rows] * t_all
        h[rows, range(len(rows))] += np.repeat(step.beta - step.alpha, area)
        p = d[:, None] * p * d + h @ s @ h.T
    return float(np.linalg.eigvalsh(p)[-1])


def steps_at_random(rng: np.random.Generator) -> TorusChain:
    """Two strided correlations, an activation on some channels with slopes of either sign."""
    kernels = [rng.normal(size=(3, 2, 3, 2)) / 4, rng.normal(size=(2, 3, 2, 3)) / 4]
    some = Pointwise("tanh", np.array([2, 0]), np.array([-0.3, 0.0]), np.array([1.0, 0.8]))
    steps = (Correlation(kernels[0], (1, 0), (2, 1)), some, Correlation(kernels[1], (0, 2), (1, 2)))
    return TorusChain(steps, 2, (4, 6), (2, 2, 3), None)


@pytest.mark.parametrize("seed", range(3))
def test_frequencies_say_what_the_dense_torus_says(seed: int) -> None:
    chain = steps_at_random(np.random.default_rng(seed))
    t = [np.array([0.2, 0.3])]
    found = max(float(largest(p).max()) for _, _, p in covariances(chain, t))
    expected = dense_bound(chain, t)
    assert expected <= found <= expected * (1.0 + 1e-9)


def test_too_large_multipliers_prove_nothing() -> None:
    chain = steps_at_random(np.random.default_rng(0))
    with pytest.raises(NotProven, match=r"multiplier\[0\]: 2 T - T P T is not positive definite"):
        list(covariances(chain, [np.array([1e3, 1e3])]))


LAYERS = (
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)),
    nn.Conv2d(2, 4, (4, 1), stride=(2, 1), padding=(2, 0), groups=2),
    nn.Conv2d(2, 3, 3, dilation=2, padding=3),
    nn.Conv2d(2, 3, 1, stride=2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d((2, 3)),
)


def circular(*sizes: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, padding_mode="circular", **options)


class Around(nn.Module):
    """Circular along the columns only, as panoramas are; zeros above and below."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.pad(x, (1, 1, 0, 0), mode="circular"))


CIRCULAR = (
    circular(2, 3, 3, padding=1),
    circular(2, 3, 4, padding=1, stride=2),
    circular(2, 3, (2, 3), padding="same", dilation=(1, 2)),
    Around(nn.Conv2d(2, 3, 3, padding=(1, 0))),
    Around(nn.AvgPool2d(3, stride=(2, 1))),
)


def on_image(
    layer: nn.Module, shape: tuple[int, int, int], smaller: int = 0
) -> tuple[Array, Array]:
    """A layer's matrix, and that of its torus restricted to the images."""
    network = read_module(nn.Sequential(layer, nn.ReLU()).double(), shape)
    chain = torus_chain(network, 1)
    step = chain.steps[0]
    assert isinstance(step, Correlation)
    grid = (chain.grid[0] - smaller * step.stride[0], chain.grid[1] - smaller * step.stride[1])
    whole = periodic(step, grid).reshape(
        len(step.kernel), grid[0] // step.stride[0], grid[1] // step.stride[1], shape[0], *grid
    )
    out = network.shapes()[network.output]
    seen = whole[:, : out[1], : out[2], :, : shape[1], : shape[2]]
    return network.chain().weights[0], seen.reshape(math.prod(out), math.prod(shape))


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 8, 7)])
def test_a_padded_layer_is_a_corner_of_its_torus(
    layer: nn.Module, shape: tuple[int, int, int]
) -> None:
    exact, seen = on_image(layer, shape)
    assert np.allclose(exact, seen, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("layer", CIRCULAR, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 4)])
def test_a_circular_layer_is_its_torus_or_a_corner_of_it(
    layer: nn.Module, shape: tuple[int, int, int]
) -> None:
    exact, seen = on_image(layer, shape)
    assert np.allclose(exact, seen, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "switch", "reason"),
    [
        # The first needs the image's own torus, the second one with room around the image.
        (
            [circular(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)],
            2,
            "2: circular padding needs",
        ),
        (
            [nn.Conv2d(2, 3, 3, padding=1), circular(3, 3, 3, padding=1)],
            2,
            "2: circular padding needs",
        ),
        # A stride of 2 does not divide 5 rows.
        ([circular(2, 3, 3, padding=1, stride=2)], 1, "0: circular padding needs"),
        (
            [circular(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3), circular(3, 3, 3, padding=1)],
            3,
            "4: pads another image around",
        ),
        ([Around(nn.Conv2d(2, 3, 3, padding=1))], 1, "pads with zeros what is padded around"),
        ([Around(nn.ReLU())], 1, "takes a value with its circular padding"),
    ],
)
def test_circular_padding_goes_with_no_room_around_the_image(
    layers: list[nn.Module], switch: int, reason: str
) -> None:
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).double()
    network = read_module(model, (2, 5, 6))
    with pytest.raises(NotShiftInvariant, match=reason):
        torus_chain(network, switch)


def test_a_torus_that_is_too_small_is_another_operator() -> None:
    exact, seen = on_image(nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6), smaller=1)
    assert not np.allclose(exact, seen, atol=1e-3)


def test_symbols_are_the_fourier_transform_of_the_periodic_matrix() -> None:
    rng = np.random.default_rng(0)
    step, grid = Correlation(rng.normal(size=(2, 3, 3, 2)), (1, 1)), (5, 4)
    frequencies, counts = half_of(grid)
    assert counts.sum() == math.prod(grid)
    found = symbol(step, frequencies, grid)
    matrix = periodic(step, grid).reshape(2, *grid, 3, *grid)
    transform = np.fft.fft2(matrix[:, 0, 0], axes=(-2, -1)).conj()
    expected = transform[:, :, frequencies[:, 0], frequencies[:, 1]].transpose(2, 0, 1)
    assert np.abs(found - expected).max() <= symbol_error(step) + 1e-13
    assert np.allclose(found, expected, atol=1e-12)


class Block(nn.Module):
    """A residual block as ResNets have it, with a strided shortcut where asked."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        plain = (channels, stride) == (out, 1)
        self.shortcut = nn.Identity() if plain else nn.Conv2d(channels, out, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.second(torch.relu(self.norm(self.first(x))))
        return torch.relu(branch + self.shortcut(x))


def model_of(kind: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    tail = [nn.Flatten(), nn.Linear(4 * 9, 3)]
    kinds = {
        "relu": [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()],
        "tanh": [nn.Conv2d(2, 3, 4, 2, 1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()],
        "gelu": [nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Identity()],
        "leaky": [nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.LeakyReLU(0.1), nn.Identity()],
        "plain block": [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Block(4, 4, 1), nn.AvgPool2d(2)],
        "strided block": [Block(2, 4, 2)],
        "two in a row": [nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 4), nn.ReLU()],
        "max_min": [nn.Conv2d(2, 4, 3, padding=1), MaxMin(), nn.Conv2d(4, 4, 3, 2, 1), MaxMin()],
        "prelu": [nn.Conv2d(2, 4, 3, 2, 1), nn.PReLU(4), nn.Identity()],
    }
    model = nn.Sequential(*kinds[kind], *tail).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return model.eval()


KINDS = (
    "relu",
    "tanh",
    "gelu",
    "leaky",
    "plain block",
    "strided block",
    "two in a row",
    "max_min",
    "prelu",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_torus_bounds_what_the_dense_bound_cannot_beat(kind: str) -> None:
    model = model_of(kind, seed=3)
    exact = certify(model, (2, 6, 6), structure="exact")
    found = certify(model, (2, 6, 6), structure="torus")
    assert found.switch >= 1
    assert exact.lower_lip <= found.lip * (1.0 + 1e-9)
    assert found.sampled_lower <= exact.lip
    assert found.lip <= min(found.norm_product, 1.6 * exact.lip)
    verify(found, model)


@settings(max_examples=4, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_sampled_slopes_never_exceed_it(kind: str, seed: int) -> None:
    model = model_of(kind, seed)
    found = certify(model, (2, 6, 6), structure="torus")
    x = torch.randn(200, 2, 6, 6, dtype=torch.float64)
    step = 1e-3 * torch.randn(200, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        rise = (model(x + step) - model(x)).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert float(rise.max()) <= found.lip


@pytest.mark.parametrize(("large", "worse"), [(2**22, 1.2), (0, 1.6)])
def test_what_is_linear_at_the_end_is_one_matrix_or_stays_on_the_torus(
    monkeypatch: pytest.MonkeyPatch, large: int, worse: float
) -> None:
    monkeypatch.setattr(read, "_LARGE", large)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
    ).double()
    assert (torus_chain(read_network(model, (2, 5, 5)), 1).head is None) == (large == 0)
    found = certify(model, (2, 5, 5), structure="torus")
    exact = certify(model, (2, 5, 5), structure="exact")
    assert exact.lower_lip <= found.lip <= worse * exact.lip
    assert found.lip <= found.norm_product
    verify(found, model)


def test_what_is_saved_proves_the_same_and_nothing_less(tmp_path: Path) -> None:
    model = model_of("relu", seed=0)
    found = certify(model, (2, 6, 6), structure="torus")
    found.save(tmp_path / "certificate.json")
    again = load_certificate(tmp_path / "certificate.json")
    assert again == found
    verify(again, model)
    for change in (
        {"lip": 0.99 * found.lip, "lower_lip": 0.0, "sampled_lower": 0.0},
        {"switch": 0},
        {"switch": found.switch + 1},
        {"multiplier": tuple(tuple(2.0 * v for v in t) for t in found.multiplier)},
        {"norm_product": 2.0 * found.norm_product},
    ):
        with pytest.raises(CertificateError):
            verify(dataclasses.replace(found, **change), model)


def test_the_head_gets_no_less_than_the_covariance() -> None:
    network = read_network(model_of("relu", seed=0), (2, 6, 6))
    chain = torus_chain(network, 1)
    assert chain.head is not None
    t = [np.full(len(chain.activations[0].rows), 0.3)]
    head = head_matrices(chain.head)
    first, factor = head.weights[0], gathered(chain, t, head).weights[0]
    frequencies, _ = half_of(chain.last_grid)
    assert len(levels_of(chain, frequencies)) == len(chain.steps)
    total = np.zeros((len(first), len(first)))
    channels, rows, columns = chain.image
    seen = first.reshape(len(first), channels, rows, columns)
    for at, weights, p in covariances(chain, t):
        for (y, x), weight, own in zip(at, weights, p, strict=True):
            wave = np.exp(
                2j
                * np.pi
                * (
                    y * np.arange(rows)[:, None] / chain.last_grid[0]
                    + x * np.arange(columns) / chain.last_grid[1]
                )
            )
            v = (seen * wave).sum(axis=(2, 3)) / math.sqrt(math.prod(chain.last_grid))
            total += weight * (v @ own @ v.conj().T).real
    least = np.linalg.eigvalsh(factor @ factor.T - total)
    assert least[0] >= -1e-13 and least[-1] <= 1e-9 * np.trace(total)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Flatten(), nn.Linear(72, 3), nn.ReLU(), nn.Linear(3, 2)], "flatten"),
        ([nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.ReLU()], "counts fewer pixels"),
    ],
)
def test_what_cannot_stand_on_a_torus_is_named(layers: list[nn.Module], reason: str) -> None:
    with pytest.raises(NotShiftInvariant, match=reason):
        certify(nn.Sequential(*layers).double(), (2, 6, 6), structure="torus")


@pytest.mark.parametrize(
    "second",
    [
        partial(nn.Conv2d, 2, 2, 3, padding=1),
        partial(nn.AvgPool2d, 2, 2, 1),
        partial(nn.Conv2d, 2, 2, 1, padding=1),
    ],
    ids=["kernel", "pool", "one tap"],
)
def test_zeros_around_what_no_activation_set_to_zero_are_an_activation(
    second: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), second(), nn.ReLU(), nn.Flatten()).double()
    found = certify_product(read_module(net, (1, 4, 4)))
    verify(found, net)
    assert [layer.activation for layer in found.slopes] == ["zero_padding", "relu"]
    exact = certify(net, (1, 4, 4), structure="exact")
    assert exact.lower_lip * (1.0 - 1e-9) <= found.lip < 3.0 * exact.lip


def test_structures_that_do_not_go_are_named() -> None:
    model = model_of("relu", seed=0)
    with pytest.raises(CertificateError, match="structure: expected one of auto, exact, torus"):
        certify(model, (2, 6, 6), structure="dense")
    with pytest.raises(CertificateError, match="structure: 'every_size' goes with norm 'l2'"):
        certify(model, (2, 6, 6), structure="every_size", norm="linf")


def test_many_neurons_go_to_the_torus_by_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 4),
    )
    found = certify(model, (1, 32, 32))
    assert isinstance(found, Certificate) and found.switch == 2
    assert found.lip < found.norm_product
    verify(found, model)
