"""Every row of the table of activations: slopes, values and errors, options, and a certificate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from activation_cases import CASES, SCALAR, model_of, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import certified_radii, certify, verify
from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.local import certify_local
from admm_lip.networks.activations import ACTIVATIONS, slope_range
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.forward import forward
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.scalar_math import NUMPY
from admm_lip.networks.scalar_math_torch import TORCH

every_scalar = pytest.mark.parametrize("name", SCALAR)
every_case = pytest.mark.parametrize("name", CASES)


def points() -> np.ndarray:
    """Near 0 and on to where squares overflow, both signs, with near neighbours."""
    far = np.concatenate([np.linspace(0.0, 45.0, 20_001), np.logspace(-12, 200, 2_001)])
    near = np.concatenate([far, far * (1.0 + 1e-3), far + 0.5])
    return np.unique(np.concatenate([-near, near]))


def value_of(spec: LayerSpec, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row = ACTIVATIONS[spec.kind]
    with np.errstate(over="ignore"):
        value = np.asarray(row.value(NUMPY, spec.options, z))
    return value, row.evaluation_error(spec.options, z, value)


@every_scalar
def test_difference_quotients_stay_inside_the_slope_range_and_reach_its_ends(name: str) -> None:
    spec = spec_of(name)
    alpha, beta = slope_range(spec.kind, spec.options)
    z = points()
    value, error = value_of(spec, z)
    reached = []
    for gap in (1, 40, 4_000):
        step, rise = z[gap:] - z[:-gap], value[gap:] - value[:-gap]
        noise = error[gap:] + error[:-gap] + 1e-15 * (abs(z[gap:]) + abs(z[:-gap]))
        assert (rise <= beta * step + noise).all()
        assert (rise >= alpha * step - noise).all()
        clear = noise < 1e-6 * step
        reached.append((rise / step)[clear])
    quotients = np.concatenate(reached)
    assert quotients.max() >= beta - 2e-3
    assert quotients.min() <= alpha + 2e-3


@every_scalar
def test_torch_runs_the_formula(name: str) -> None:
    """In float64, at any size, to the error that the row states."""
    spec, z = spec_of(name), points()
    module = SCALAR[name]().double()
    value, error = value_of(spec, z)
    jump = ACTIVATIONS[spec.kind].jump(spec.options)
    found = module(torch.from_numpy(z)).detach().numpy()
    inside = np.isfinite(found)  # torch's own Mish and GELU overflow early
    assert inside.mean() > 0.7
    assert (abs(found - value) <= 2.0 * error + jump)[inside].all()
    tensor = ACTIVATIONS[spec.kind].value(TORCH, spec.options, torch.from_numpy(z))
    assert (abs(tensor.numpy() - value) <= 2.0 * error).all()


@every_scalar
@settings(max_examples=30, deadline=None)
@given(at=st.floats(-30.0, 30.0), step=st.floats(1e-4, 1.0))
def test_the_derivative_is_that_of_the_formula(name: str, at: float, step: float) -> None:
    """The mean of the derivative over an interval is the difference quotient of its ends."""
    spec = spec_of(name)
    curve = ACTIVATIONS[spec.kind].curve
    assert curve is not None
    t = np.linspace(at, at + step, 4_001)
    slopes = np.asarray(curve.derivative(NUMPY, spec.options, t)) * np.ones_like(t)
    value, error = value_of(spec, t)
    mean = 0.5 * (slopes[1:] + slopes[:-1]).mean()
    quotient = (value[-1] - value[0]) / (t[-1] - t[0])
    # One jump within a step of the grid weighs 1 / 4000 of its height.
    slack = 2e-3 + (error[0] + error[-1]) / step
    assert abs(mean - quotient) <= slack


@every_case
def test_a_certificate_is_above_every_sampled_slope_and_verifies(name: str) -> None:
    model = model_of(name)
    certificate = certify(model)
    verify(certificate, model)
    wide = model.double()
    g = torch.Generator().manual_seed(1)
    x = 2.0 * torch.randn(4_000, 4, generator=g, dtype=torch.float64)
    y = x + 10.0 ** (-3.0 * torch.rand(4_000, 1, generator=g, dtype=torch.float64)) * torch.randn(
        4_000, 4, generator=g, dtype=torch.float64
    )
    with torch.no_grad():
        slope = ((wide(x) - wide(y)).norm(dim=1) / (x - y).norm(dim=1)).max()
    assert 0.1 * certificate.lip < float(slope) <= certificate.lip
    assert float(slope) <= certificate.norm_product


@every_case
def test_one_neuron_has_its_steepest_slope(name: str) -> None:
    """``f(x) = phi(x)`` neuron by neuron: the constant is that of the row, exactly."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), CASES[name](), nn.Linear(6, 6, bias=False))
    for layer in (model[0], model[2]):
        layer.weight.data = torch.eye(6)
    slopes = read_network(model).chain().slopes
    steepest = max(float(np.maximum(abs(s.alpha), abs(s.beta)).max()) for s in slopes)
    assert certify(model).lip == pytest.approx(steepest, rel=1e-8)


@every_case
def test_the_float64_forward_is_torchs_and_the_module_is_built_again(name: str) -> None:
    model = model_of(name).double()
    network = read_network(model)
    x = 3.0 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        truth = model(x).numpy()
        np.testing.assert_allclose(forward(network, x.numpy()), truth, rtol=1e-7, atol=3e-8)
        built = build_module(network)
        np.testing.assert_allclose(built(x).numpy(), truth, rtol=1e-7, atol=3e-8)
    assert read_network(built).digest() == network.digest()
    saved = Network.from_json(network.to_json(), network.arrays)
    assert saved.digest() == network.digest()


@every_case
def test_radii_hold(name: str) -> None:
    model = model_of(name)
    certificate = certify(model)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(3))
    y = model(x).argmax(1)
    radii = certified_radii(model, x, y, certificate=certificate)
    assert (radii > 0.0).float().mean() > 0.9
    way = torch.randn(200, 60, 4, generator=torch.Generator().manual_seed(4)).double()
    ball = x.double() + 0.999 * radii[:, None] * way / way.norm(dim=2, keepdim=True)
    found = model.double()(ball.flatten(0, 1)).argmax(1)
    assert bool((found.reshape(200, 60) == y).all())


@every_case
def test_local_bounds_hold(name: str) -> None:
    model = model_of(name).double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    radius = 0.4
    local = certify_local(model, x, radius=radius)
    verify(local, model)
    g = torch.Generator().manual_seed(6)
    way = torch.randn(3_000, 5, 4, generator=g, dtype=torch.float64)
    far = torch.rand(3_000, 5, 1, generator=g, dtype=torch.float64)
    ball = x + radius * far * way / way.norm(dim=2, keepdim=True)
    with torch.no_grad():
        values = model(ball.flatten(0, 1)).reshape(3_000, 5, 3)
        moved = (values - model(x)).norm(dim=2) / (ball - x).norm(dim=2)
    assert bool((moved <= local.lip[:, 0] * (1.0 + 1e-12)).all())


def test_training_moves_no_slope() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 1))
    with pytest.raises(UnsupportedModule, match="its slopes would be trained"):
        linear_layers(model)
    model[1].requires_grad_(False)
    assert linear_layers(model) == [model[0], model[2]]


def test_a_prelu_needs_one_slope_or_one_per_channel() -> None:
    arrays = {"a.weight": np.ones((3, 2)), "p.weight": np.ones(2)}
    layers = (LayerSpec("linear", "a", {}), LayerSpec("prelu", "p", {}))
    with pytest.raises(NetworkError, match="one slope, or one per channel, got"):
        Network(layers, arrays).chain()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LeakyReLU(math.nan), "negative_slope: expected a finite number, got nan"),
        (nn.ELU(math.inf), "alpha: expected a finite number, got inf"),
        (nn.CELU(-1.0), "alpha: expected above 0"),
        (nn.Softplus(beta=0.0), "beta: expected a number other than 0"),
        (nn.Softplus(threshold=5.0), "threshold: expected at least 20"),
        (nn.Softshrink(0.5), None),
        (nn.Hardshrink(), "Hardshrink"),
        (nn.Threshold(0.0, 1.0), "Threshold"),
        (nn.GLU(), "GLU"),
        (nn.RReLU(), "RReLU"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_options_without_a_slope_range_are_refused(module: nn.Module, message: str | None) -> None:
    model = nn.Sequential(nn.Linear(2, 2), module)
    if message is None:
        read_network(model)
        return
    with pytest.raises(UnsupportedModule, match=message):
        read_network(model)


def test_unknown_kinds_and_options_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModule, match="activation 'swoosh' is not supported; supported"):
        slope_range("swoosh")
    with pytest.raises(UnsupportedModule, match=r"relu takes the options \[\], got \['slope'\]"):
        slope_range("relu", {"slope": 1.0})
    with pytest.raises(UnsupportedModule, match="approximate: expected one of"):
        slope_range("gelu", {"approximate": "erf"})
    with pytest.raises(UnsupportedModule, match="min_val: expected below max_val"):
        slope_range("hardtanh", {"min_val": 1.0, "max_val": 1.0})
    with pytest.raises(UnsupportedModule, match="lambd: expected at least 0"):
        slope_range("softshrink", {"lambd": -1.0})
    with pytest.raises(UnsupportedModule, match="alpha: expected a number other than 0"):
        slope_range("hardsigmoid", {"alpha": 0.0})
