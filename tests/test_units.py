"""Units: their own rules, and proofs in them against networks with the scales folded in."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import (
    Certificate,
    CertificateError,
    SolverConfig,
    Units,
    certified_radii,
    certify,
    verify,
)
from admm_lip.certificates.claim_matrices import measured
from admm_lip.certificates.document import checksum
from admm_lip.certificates.exact import exact_check
from admm_lip.errors import UnitsError
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Chain

TIGHT = SolverConfig(tol=1e-8)
exponents = st.lists(st.floats(-6.0, 6.0), min_size=4, max_size=4)


def stacked(*weights: Any, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them and biases of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for w in weights:
        matrix = torch.as_tensor(np.asarray(w), dtype=torch.float64)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0]).double()
        layer.weight.data = matrix
        layer.bias.data = torch.randn(len(matrix), generator=generator).double()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sampled_gradient(model: nn.Module, units: Units, points: np.ndarray, norm: int = 2) -> float:
    """Largest gradient of the raw curve F at raw points, by differentiating F as it is defined."""
    shift, scale = (
        torch.tensor(v, dtype=torch.float64) for v in (units.input_shift, units.input_scale)
    )
    factor = torch.tensor(units.output_scale, dtype=torch.float64)
    raw = torch.tensor(points, dtype=torch.float64).requires_grad_()
    out = model((raw - shift) / scale) * factor
    rows = [
        torch.autograd.grad(out[:, i].sum(), raw, retain_graph=True)[0] for i in range(len(out[0]))
    ]
    jacobian = torch.stack(rows, dim=1)
    return float(torch.linalg.matrix_norm(jacobian, norm).max())


class TestUnits:
    def test_json_brings_every_number_back(self) -> None:
        units = Units(
            input_shift=(1 / 3, 2.0),
            input_scale=(1e-6, math.pi),
            output_shift=0.1,
            output_scale=1e6,
            input_names=("a", "b"),
            output_names=("t",),
            input_units=("m", "kg"),
            output_units=("EUR",),
        )
        assert Units.from_json(json.loads(json.dumps(units.to_json()))) == units
        assert units.ratio() == "t [EUR] per (a [m], b [kg])"

    @given(seed=st.integers(0, 1000), log=exponents)
    @settings(max_examples=30)
    def test_rows_come_back(self, seed: int, log: list[float]) -> None:
        rng = np.random.default_rng(seed)
        raw = rng.normal(rng.normal(size=4), 1.0, (20, 4)) * 10.0 ** np.array(log)
        units = Units.standardising(raw, raw[:, :2])
        x, y = units.to_model(raw), units.target_to_model(raw[:, :2])
        assert np.allclose(x.mean(axis=0), 0.0, atol=1e-9)
        assert np.allclose(x.std(axis=0), 1.0)
        assert np.array_equal(x[:, :2], y)
        assert np.allclose(units.from_model(y), raw[:, :2], rtol=1e-12, atol=0.0)

    def test_a_constant_column_is_divided_by_1(self) -> None:
        raw = np.array([[0.1, 1e9, 1.0], [0.1, 1e9, 2.0], [0.1, 1e9, 3.0]])
        units = Units.standardising(raw)
        assert units.input_scale[:2] == (1.0, 1.0)
        assert np.abs(units.to_model(raw)[:, :2]).max() < 1e-6

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"input_scale": 0.0}, "input_scale: expected finite numbers > 0, got 0.0"),
            ({"input_scale": (1.0, -2.0)}, "input_scale: expected finite numbers > 0, got -2.0"),
            ({"output_scale": math.inf}, "output_scale: expected finite numbers > 0, got inf"),
            ({"output_scale": 1e-300}, "output_scale: expected finite numbers > 0, got 1e-300"),
            ({"input_shift": math.nan}, "input_shift: expected finite numbers, got nan"),
            ({"input_shift": ()}, "input_shift: expected finite numbers, got 0 numbers"),
            (
                {"input_scale": "wide"},
                "input_scale: expected numbers that a float holds, got 'wide'",
            ),
            ({"input_scale": "1.5"}, "input_scale: expected numbers that a float holds, got '1.5'"),
            ({"output_shift": (10**400,)}, "output_shift: expected numbers that a float holds"),
            ({"output_scale": 10**5000}, "output_scale: .* got a int too large to show"),
            (
                {"input_scale": (1.0, 2.0), "input_names": ("a",)},
                "input_scale: expected as many entries in each, got input_scale 2, input_names 1",
            ),
            ({"input_names": ("a", "a")}, "input_names: expected different names, got 'a' twice"),
            ({"input_names": ("a", "")}, "input_names: expected names, texts that are not empty"),
            ({"output_names": "price"}, "output_names: expected names"),
            ({"classes": ("cat",)}, "classes: expected none, or at least 2"),
        ],
    )
    def test_what_makes_no_units_is_named(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(UnitsError, match=message):
            Units(**fields)

    @pytest.mark.parametrize(
        "change",
        [
            {"input_scale": "1.0"},
            {"input_scale": True},
            {"input_scale": 10**400},
            {"output_shift": [10**5000]},
            {"input_names": "ab"},
            {"output_shift": None},
            {"more": 1},
        ],
    )
    def test_a_file_is_type_checked(self, change: dict[str, Any]) -> None:
        with pytest.raises(UnitsError):
            Units.from_json({**Units().to_json(), **change})


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf"]), log=exponents)
def test_a_raw_bound_is_that_of_the_network_with_the_scales_folded_in(
    seed: int, norm: str, log: list[float]
) -> None:
    net = oracles.random_net((4, 6, 3), seed)
    scale_in, scale_out = 10.0 ** np.array(log), 10.0 ** np.array(log[:3])[::-1]
    units = Units(
        input_shift=(5.0,) * 4, input_scale=tuple(scale_in), output_scale=tuple(scale_out)
    )
    model = stacked(*net.weights)
    folded = stacked(net.weights[0] / scale_in, scale_out[:, None] * net.weights[1])
    raw = certify(model, norm=norm, units=units, solver=TIGHT)
    assert raw.lip == pytest.approx(certify(folded, norm=norm, solver=TIGHT).lip, rel=1e-5)
    assert raw.units == units
    verify(raw, model)
    assert Certificate.from_json(raw.to_json()) == raw
    points = np.random.default_rng(seed).normal(size=(200, 4)) * scale_in + 5.0
    if norm == "l2":
        assert sampled_gradient(model, units, points) <= raw.lip * (1.0 + 1e-9)
    assert raw.sampled_lower <= raw.lip


def test_one_output_scale_multiplies_the_bound() -> None:
    net = oracles.random_net((4, 6, 1), 3)
    model = stacked(*net.weights)
    near = certify(model, input_scale=(1e-6, 1.0, 1e3, 1e6), solver=TIGHT)
    far = certify(
        model, units=Units(input_scale=(1e-6, 1.0, 1e3, 1e6), output_scale=2e5), solver=TIGHT
    )
    assert far.lip == pytest.approx(2e5 * near.lip, rel=1e-6)
    verify(far, model)
    exact_check(read_network(model), far)
    for change in ({"output_scale": 2.1e5}, {"input_scale": (0.9e-6, 1.0, 1e3, 1e6)}):
        units = dataclasses.replace(far.units, **change)
        with pytest.raises(CertificateError, match=r"lip: .* is not proven"):
            verify(dataclasses.replace(far, units=units), model)
        with pytest.raises(CertificateError):
            exact_check(read_network(model), dataclasses.replace(far, units=units))


def test_the_gain_of_each_output_is_in_its_own_unit() -> None:
    net = oracles.random_net((4, 6, 3), 5)
    model, scales = stacked(*net.weights), (1e-6, 3.0, 7e5)
    plain = certify(model, kind="per_output", solver=TIGHT)
    raw = certify(model, kind="per_output", units=Units(output_scale=scales), solver=TIGHT)
    assert raw.lips == pytest.approx(plain.lips * scales, rel=1e-6)
    verify(raw, model)
    exact_check(read_network(model), raw)


def test_twin_outputs_in_different_units_do_differ() -> None:
    twins = stacked([[1.0, 2.0]], [[3.0], [3.0]])
    alike = certify(twins, kind="pairwise", units=Units(output_scale=(2.0, 2.0)), progress=False)
    assert alike.lips.tolist() == [0.0]
    verify(alike, twins)
    other = Units(output_scale=(2.0, 5.0))
    apart = certify(twins, kind="pairwise", units=other, progress=False)
    assert apart.lips[0] == pytest.approx(3.0 * 3.0 * math.sqrt(5.0), rel=1e-6)
    verify(apart, twins)
    with pytest.raises(CertificateError, match=r"bounds\[0\]\.lip: 0.0 is not proven"):
        verify(dataclasses.replace(alike, units=other), twins)


def test_scaled_matrices_are_bounded_through_rounding() -> None:
    rng = np.random.default_rng(0)
    first, last = (
        rng.standard_normal(s) * 10.0 ** rng.integers(-90, 90, s) for s in ((4, 3), (2, 4))
    )
    chain = read_network(stacked(first, last)).chain()
    single = Chain((first,), (np.zeros(4),), (), (0.0,), (0.0,), (("w",),), ())
    s_in, s_out = (0.3, 7.0, 1e-9), np.array([1e6, 1 / 3])
    for whole, rows in ((chain, s_out), (single, np.array([0.1, 3.0, 1e5, 1e-5]))):
        units = Units(input_scale=s_in, output_scale=tuple(rows))
        found = measured(whole, "l2", units)
        for k, weight in enumerate(whole.weights):
            columns = s_in if k == 0 else (1.0,) * weight.shape[1]
            factors = rows if k == len(whole.weights) - 1 else np.ones(len(weight))
            square = sum(
                (
                    Fraction(float(found.weights[k][i, j]))
                    - Fraction(float(w)) * Fraction(float(factors[i])) / Fraction(columns[j])
                )
                ** 2
                for (i, j), w in np.ndenumerate(weight)
            )
            assert square <= Fraction(found.errors[k]) ** 2
    exact = measured(chain, "l2", Units(input_scale=(2.0, 0.25, 1.0), output_scale=(4.0, 0.5)))
    assert exact.errors == (0.0, 0.0)


def test_certificates_of_format_1_are_still_read() -> None:
    net = oracles.random_net((4, 6, 3), 0)
    model = stacked(*net.weights)
    for scale, words in ((None, "model input"), ((1.0, 2.0, 3.0, 4.0), "raw input")):
        now = certify(model, input_scale=scale)
        data = json.loads(now.to_json())
        del data["checksum"], data["switch"], data["every_size"], data["phases"]
        old = {**data, "format": 1, "units": words, "input_scale": scale and list(scale)}
        text = json.dumps({**old, "checksum": checksum(old)})
        read = Certificate.from_json(text)
        assert read == now
        assert read.input_scale == scale
        verify(read, model)
        wrong = {**old, "units": "model input" if scale else "raw input"}
        with pytest.raises(CertificateError, match="units: expected"):
            Certificate.from_json(json.dumps({**wrong, "checksum": checksum(wrong)}))


def test_radii_of_raw_rows_are_those_of_the_folded_network() -> None:
    net = oracles.random_net((4, 8, 3), 2)
    scale, shift = np.array([1e-6, 1e6, 1.0, 1e3]), np.array([1.0, -3e6, 0.5, 7.0])
    units = Units(input_shift=tuple(shift), input_scale=tuple(scale))
    model = stacked(*net.weights)
    folded = stacked(net.weights[0] / scale, net.weights[1])
    folded[0].bias.data = model[0].bias.data - folded[0].weight.data @ torch.from_numpy(shift)
    folded[2].bias.data = model[2].bias.data
    raw = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 4)) * scale + shift)
    y = folded(raw).argmax(dim=1)
    mine = certified_radii(
        model, raw, y, certificate=certify(model, units=units, solver=TIGHT), units=units
    )
    theirs = certified_radii(folded, raw, y, certificate=certify(folded, solver=TIGHT))
    assert torch.allclose(mine, theirs, rtol=1e-5)
    stretched = dataclasses.replace(units, output_scale=1e4)
    same = certify(model, units=stretched, solver=TIGHT)
    assert torch.allclose(certified_radii(model, raw, y, certificate=same, units=units), mine)
    uneven = certify(model, units=dataclasses.replace(units, output_scale=(1.0, 2.0, 1.0)))
    with pytest.raises(CertificateError, match="a radius needs one output_scale"):
        certified_radii(model, raw, y, certificate=uneven, units=units)
    with pytest.raises(CertificateError, match="units: expected the input_scale of the cert"):
        certified_radii(model, raw, y, certificate=same, units=Units(input_scale=2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": Units(), "input_scale": 2.0}, "units, input_scale: give one of them"),
        ({"units": "raw"}, "units: expected admm_lip.Units, got str"),
        ({"units": Units(input_scale=(1.0, 2.0))}, "units.input_scale: expected 4 entries"),
        ({"units": Units(classes=("a", "b"))}, "units.classes|classes: expected 3"),
    ],
)
def test_units_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        certify(stacked(*oracles.random_net((4, 6, 3), 0).weights), **arguments)
