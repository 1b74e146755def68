"""Inputs in linf and in raw units, frequency by frequency."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import Certificate, CertificateError, Units, certify, load_certificate, verify
from admm_lip.certificates.exact import exact_check
from admm_lip.certificates.torus.check import head_matrices
from admm_lip.certificates.torus.measure import measured_on_torus
from admm_lip.certificates.torus.read import torus_chain
from admm_lip.certificates.torus.search import search
from admm_lip.certificates.torus.steps import TorusChain
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Network
from admm_lip.solvers.deadline import Deadline

SHAPE = (3, 4, 4)
PER_CHANNEL = tuple(np.repeat([0.5, 1.0, 3.0], 16).tolist())
PER_PIXEL = tuple(np.linspace(0.5, 2.0, 48).tolist())
RAW = Units(input_scale=PER_CHANNEL, output_scale=(1.0, 2.0, 0.3))


@functools.cache
def model() -> nn.Sequential:
    torch.manual_seed(0)
    front = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(16, 3)).double()


@functools.cache
def made(norm: str = "l2", units: Units | None = None) -> Certificate:
    found = certify(model(), SHAPE, structure="torus", norm=norm, units=units)
    assert isinstance(found, Certificate) and found.switch >= 1
    return found


@functools.cache
def around(head: bool) -> Network:
    """A network that is its own torus: two channels, unlike each other."""
    torch.manual_seed(2)
    options = {"padding": 1, "padding_mode": "circular"}
    layers = [nn.Conv2d(2, 2, 3, **options), nn.ReLU(), nn.Conv2d(2, 2, 3, **options), nn.ReLU()]
    with torch.no_grad():
        layers[0].weight[:, 0] *= 3.0
    behind = [nn.Flatten(), nn.Linear(18, 2)] if head else []
    return read_module(nn.Sequential(*layers, *behind).double(), (2, 3, 3))


def optimum(network: Network) -> float:
    """``L^2`` of the dense inequality in linf with one multiplier per channel, by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    chain = network.chain()
    starts = np.cumsum([0, *(w.shape[1] for w in chain.weights)])
    place = [np.eye(int(starts[-1]))[a:b] for a, b in itertools.pairwise(starts)]
    spread = np.kron(np.eye(2), np.ones((9, 1)))
    tau = cp.Variable(2, nonneg=True)
    lmi = place[0].T @ cp.diag(spread @ tau) @ place[0]
    for k in range(2):
        t = cp.Variable(2, nonneg=True)
        z, v = chain.weights[k] @ place[k], place[k + 1]
        pair = v.T @ cp.diag(spread @ t) @ (v - z)
        lmi = lmi + pair + pair.T
    y = chain.weights[2] @ place[2]
    lmi = lmi - y.T @ y
    problem = cp.Problem(cp.Minimize(9 * cp.sum(tau)), [(lmi + lmi.T) / 2 >> 0])
    problem.solve(solver="CLARABEL")
    return float(problem.value)


def linf_chain(network: Network) -> TorusChain:
    return measured_on_torus(torus_chain(network, 2), (2, 3, 3), "linf", None)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("head", [False, True])
def test_circular_networks_get_the_dense_bound_with_tied_multipliers(head: bool) -> None:
    network = around(head)
    chain = linf_chain(network)
    found = search(chain, None if chain.head is None else head_matrices(chain.head), Deadline(None))
    expected = optimum(network)
    assert found.lower <= expected * (1.0 + 1e-6)
    assert expected * (1.0 - 1e-6) <= found.squared <= expected * (1.0 + 1.2e-4)
    assert found.gap() <= 1e-4
    # The channels' weights are the solver's: equal ones are not the best.
    assert found.multiplier[0][0] > 1.5 * found.multiplier[0][1]


@pytest.mark.parametrize(
    ("norm", "units"), [("linf", None), ("l2", RAW), ("linf", RAW)], ids=["linf", "raw", "both"]
)
def test_no_slope_is_above_the_bound(norm: str, units: Units | None) -> None:
    found = made(norm, units)
    verify(found, model())
    exact = certify(model(), SHAPE, structure="exact", norm=norm, units=units)
    assert exact.lower_lip <= found.lip * (1.0 + 1e-9) and found.lip <= 1.5 * exact.lip
    assert 0.0 < found.sampled_lower <= exact.lip
    assert found.lip <= found.norm_product
    s_in = torch.tensor((units or Units()).input_scales(48)).view(SHAPE)
    s_out = torch.tensor((units or Units()).output_scales(3))
    x = torch.randn(300, *SHAPE, dtype=torch.float64).requires_grad_(True)
    out = model()(x / s_in) * s_out
    (rise,) = torch.autograd.grad(out.norm(dim=1).sum(), x)
    step = 1e-3 * (rise.sign() if norm == "linf" else rise)
    with torch.no_grad():
        moved = model()((x + step) / s_in) * s_out - out
    size = step.flatten(1).abs().amax(1) if norm == "linf" else step.flatten(1).norm(dim=1)
    alive = size > 0.0
    assert float((moved.norm(dim=1) / size)[alive].max()) <= found.lip


def test_scales_are_those_of_the_first_kernel_and_the_last_matrix() -> None:
    scaled = copy.deepcopy(model())
    with torch.no_grad():
        scaled[0].weight /= torch.tensor([0.5, 1.0, 3.0]).view(1, 3, 1, 1)
        scaled[-1].weight *= torch.tensor([1.0, 2.0, 0.3])[:, None]
    for norm in ("l2", "linf"):
        same = certify(scaled, SHAPE, structure="torus", norm=norm)
        assert made(norm, RAW).lip == pytest.approx(same.lip, rel=2e-4)
        assert made(norm, RAW).norm_product == pytest.approx(same.norm_product, rel=1e-9)


def test_a_scale_for_all_divides_the_bound() -> None:
    for norm in ("l2", "linf"):
        found = made(norm, Units(input_scale=4.0, output_scale=3.0))
        assert found.lip == pytest.approx(0.75 * made(norm).lip, rel=2e-4)


def test_one_channel_in_linf_is_l2_times_the_root_of_its_pixels() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2))
    l2, linf = (certify(net, (1, 4, 5), structure="torus", norm=n).lip for n in ("l2", "linf"))
    assert linf == pytest.approx(l2 * 20**0.5, rel=2e-4)


def test_where_nothing_follows_the_torus_outputs_have_the_largest_scale_of_their_channel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).double()
    scales = np.linspace(1.0, 2.0, 32)
    found = certify(net, (1, 4, 4), structure="torus", units=Units(output_scale=tuple(scales)))
    verify(found, net)
    exact = certify(
        net, (1, 4, 4), structure="exact", units=Units(output_scale=tuple(scales.tolist()))
    )
    plain = certify(net, (1, 4, 4), structure="torus")
    assert exact.lower_lip <= found.lip <= 2.0 * plain.lip


def test_scales_of_pixels_count_as_the_least_of_their_channel_and_the_certificate_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = certify(model(), SHAPE, structure="torus", input_scale=PER_PIXEL)
    assert "differs within a channel" in caplog.text
    verify(found, model())
    said = [[fact.said for fact in one.facts()] for one in (found, made("l2", RAW))]
    assert ["the least of each channel" in some for some in said] == [True, False]
    least = np.repeat(np.reshape(PER_PIXEL, (3, 16)).min(axis=1), 16)
    assert found.lip == pytest.approx(made("l2", Units(input_scale=tuple(least))).lip, rel=2e-4)
    exact = certify(model(), SHAPE, structure="exact", input_scale=PER_PIXEL)
    assert exact.lower_lip <= found.lip


def test_single_outputs_and_pairs_are_measured_alike(tmp_path: Path) -> None:
    for kind in ("pairwise", "per_output"):
        found = certify(model(), SHAPE, kind=kind, structure="torus", norm="linf", units=RAW)
        exact = certify(model(), SHAPE, kind=kind, structure="exact", norm="linf", units=RAW)
        assert found.switch == len(found.shared) - 1 > 0
        assert (found.lips >= exact.lips * (1.0 - 1e-3)).all()
        assert (found.lips <= 1.6 * exact.lips).all()
        assert all(0.0 < b.sampled_lower <= b.lip for b in found.bounds)
        found.save(tmp_path / "pairs.json")
        verify(load_certificate(tmp_path / "pairs.json"), model())


@pytest.mark.parametrize("units", [None, RAW], ids=["model", "raw"])
def test_rational_numbers_prove_it_too(units: Units | None) -> None:
    torch.manual_seed(0)
    front = (nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(*front, nn.Linear(18, 3)).double()
    network = read_network(net, (2, 3, 3))
    if units is not None:
        units = dataclasses.replace(units, input_scale=tuple(np.repeat([0.5, 3.0], 9).tolist()))
    for kind in ("global", "per_output"):
        exact_check(
            network,
            certify(network, kind=kind, structure="torus", norm="linf", units=units),  # type: ignore[call-overload]
        )


def times(found: Certificate, layer: int, factor: float) -> dict[str, Any]:
    rows = [
        tuple(factor * v for v in t) if k == layer else t for k, t in enumerate(found.multiplier)
    ]
    return {"multiplier": tuple(rows)}


def test_forged_measures_are_found_out() -> None:
    found, plain = made("linf", RAW), made("l2", RAW)
    larger = dataclasses.replace(RAW, input_scale=tuple(1.01 * s for s in PER_CHANNEL))
    lower = {"lower_lip": 0.0, "sampled_lower": 0.0}
    forged = [
        dataclasses.replace(found, lip=found.lip * (1.0 - 1e-4), **lower),
        # Weights of the input whose sum is too large; of others, with it.
        dataclasses.replace(found, **times(found, 0, 1.01)),
        dataclasses.replace(found, **times(found, 1, 1.5)),
        dataclasses.replace(found, lip=0.5 * found.lip, **times(found, 0, 4.0), **lower),
        # A bound of another measure.
        dataclasses.replace(found, norm="l2"),
        dataclasses.replace(found, norm="l2", multiplier=found.multiplier[1:]),
        dataclasses.replace(plain, norm="linf"),
        dataclasses.replace(plain, norm="linf", multiplier=found.multiplier),
        dataclasses.replace(found, units=larger),
        dataclasses.replace(found, units=None),
        dataclasses.replace(plain, units=dataclasses.replace(RAW, output_scale=1.0)),
        dataclasses.replace(found, norm_product=0.9 * found.norm_product),
        dataclasses.replace(found, every_size=12),
    ]
    for k, one in enumerate(forged):
        with pytest.raises(CertificateError):
            verify(one, model())
            pytest.fail(f"number {k} was accepted")


def test_large_networks_go_to_the_torus_in_every_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("admm_lip.certificates.torus.certify.EXACT_NEURONS", 10)
    assert certify(model(), SHAPE, norm="linf", units=RAW) == made("linf", RAW)


def test_units_of_other_networks_are_refused_by_name() -> None:
    for units in (Units(input_scale=(1.0, 2.0)), Units(output_scale=(1.0, 2.0))):
        with pytest.raises(CertificateError, match="units"):
            certify(model(), SHAPE, structure="torus", units=units)
