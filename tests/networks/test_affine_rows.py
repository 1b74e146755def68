"""The rows of affine layers against torch: on the identity they are their matrices."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import NetworkError
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.elementwise import arithmetic, normalisation
from admm_lip.networks.forward import forward
from admm_lip.networks.index_maps import padded, positions
from admm_lip.networks.layers import AFFINE
from admm_lip.networks.network import LayerSpec, Network

R = np.random.default_rng(0)
POOL = {
    "kernel_size": [2, 2],
    "stride": [2, 1],
    "padding": [1, 0, 0, 1],
    "count_include_pad": False,
    "divisor_override": None,
}
CONV = {"stride": [2, 1], "padding": [1, 0, 0, 2], "dilation": [1, 2], "groups": 2}

# Kind, options, arrays, the shape of one input.
ROWS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]] = [
    ("linear", {}, {"weight": R.normal(size=(2, 3)), "bias": R.normal(size=2)}, (3,)),
    ("conv2d", CONV, {"weight": R.normal(size=(4, 1, 2, 2)), "bias": R.normal(size=4)}, (2, 4, 4)),
    ("avg_pool2d", POOL, {}, (2, 4, 5)),
    ("elementwise", {}, {"weight": R.normal(size=(2, 1)), "bias": R.normal(size=3)}, (2, 3)),
    ("elementwise", {}, {"weight": np.array(-2.0)}, (1, 1, 5)),
    ("elementwise", {}, {"bias": R.normal(size=(2, 1, 1))}, (2, 2, 2)),
    ("take", {}, {"index": np.array([[3.0, -1.0], [0.0, 0.0], [5.0, 1.0]])}, (2, 3)),
    ("take", {}, {"index": np.array(2.0)}, (4,)),
    ("sum", {"axes": [0, 2], "keep": False}, {}, (2, 3, 4)),
    ("sum", {"axes": [1], "keep": True}, {}, (2, 3)),
    ("sum", {"axes": [0], "keep": False}, {}, (3,)),
]


def network_of(row: tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]) -> Network:
    kind, options, arrays, shape = row
    named = {f"row.{key}": array for key, array in arrays.items()}
    return Network((LayerSpec(kind, "row", options),), named, shape)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]} {row[3]}" for row in ROWS])
def test_a_row_is_its_matrix(row: tuple[Any, ...]) -> None:
    """Its matrix, what it does to samples, and what torch's module does are one map."""
    network = network_of(row)
    chain = network.chain()
    (weight,), (bias,) = chain.weights, chain.biases
    x = np.concatenate([np.eye(network.size_in), R.normal(size=(3, network.size_in))])
    np.testing.assert_allclose(forward(network, x).reshape(len(x), -1), x @ weight.T + bias)
    if row[0] in ("elementwise", "take", "sum"):
        inputs = torch.from_numpy(x).reshape(len(x), *row[3])
        out = build_module(network)(inputs).numpy()
        np.testing.assert_allclose(out.reshape(len(x), -1), x @ weight.T + bias)
        assert out.shape[1:] == network.shapes()["row"]
        assert read_network(build_module(network), row[3]).digest() == network.digest()


def test_every_affine_row_is_tried() -> None:
    assert {row[0] for row in ROWS} == set(AFFINE)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (("elementwise", {}, {"weight": np.ones(3)}, (2, 4)), "does not broadcast to a value of"),
        (("elementwise", {}, {"bias": np.ones((2, 1, 4))}, (1, 4)), "does not broadcast"),
        (("take", {}, {"index": np.array([4.0])}, (4,)), "whole numbers from -1 to 3"),
        (("take", {}, {"index": np.array([0.5])}, (4,)), "whole numbers from -1 to 3"),
        (("take", {}, {"index": np.array([-2.0])}, (4,)), "whole numbers from -1 to 3"),
        (("take", {}, {}, (4,)), "expected a non-empty array row.index"),
        (("sum", {"axes": [1], "keep": True}, {}, (4,)), r"sums over the axes \[1\]"),
        (("sum", {"axes": [0, 0], "keep": True}, {}, (4,)), r"sums over the axes \[0, 0\]"),
        (("sum", {"axes": [], "keep": True}, {}, (4,)), "sum's axes cannot be"),
        (("reshape", {"shape": [2, 3]}, {}, (4,)), r"\(4,\) cannot become \(2, 3\)"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_name(row: tuple[Any, ...], match: str) -> None:
    with pytest.raises(NetworkError, match=match) as caught:
        network_of(row).chain()
    assert str(caught.value).startswith("row")


shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and one that broadcasts to it."""
    shape = draw(shapes.filter(bool))
    ones = [1 if draw(st.booleans()) else n for n in shape]
    return shape, tuple(ones[draw(st.integers(0, len(ones))) :])


@given(broadcasts(), st.sampled_from(["add", "sub", "mul", "div"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_arithmetic_with_a_constant_is_numpys(
    given_: tuple[tuple[int, ...], tuple[int, ...]], operation: str, first: bool
) -> None:
    shape, of_constant = given_
    constant = R.uniform(0.5, 2.0, size=of_constant)
    first = first and operation != "div"
    arrays = {f"row.{k}": v for k, v in arithmetic(operation, constant, first).arrays.items()}
    network = Network((LayerSpec("elementwise", "row", {}),), arrays, shape)
    x = R.normal(size=(2, *shape))
    call = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation]
    expected = call(constant, x) if first else call(x, constant)
    np.testing.assert_allclose(forward(network, x), expected, rtol=1e-14, atol=1e-14)


@given(st.lists(st.floats(2**-300, 2**300), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_error_of_a_quotient_covers_what_was_lost(constants: list[float]) -> None:
    found = arithmetic("div", np.array(constants))
    assert found.weight is not None
    lost = [
        Fraction(float(w)) - 1 / Fraction(c)
        for w, c in zip(np.broadcast_to(found.weight, len(constants)), constants, strict=True)
    ]
    kept = Fraction(0) if found.error is None else Fraction(float(found.error[0]))
    assert sum(e * e for e in lost) <= kept**2
    powers = all(math.frexp(c)[0] == 0.5 for c in constants)
    assert (found.error is None) == powers


@given(st.floats(1e-3, 1e3), st.floats(0.0, 1e3), st.floats(1e-6, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_error_of_a_normalisation_covers_what_was_lost(
    weight: float, variance: float, eps: float
) -> None:
    """``w^2 (v + eps) = weight^2`` tells where the exact scale lies, in exact fractions."""
    arrays = (np.zeros(1), np.array([variance]), np.array([weight]), None, eps)
    scale, _, error = normalisation(*arrays)[1]
    assert scale is not None and error is not None
    spread = Fraction(variance) + Fraction(eps)
    low, high = (Fraction(float(scale[0])) + s * Fraction(float(error[0])) for s in (-1, 1))
    assert low**2 * spread < Fraction(weight) ** 2 < high**2 * spread
    assert error[0] < 1e-15 * scale[0]


@given(shapes.filter(bool), st.data())
@settings(max_examples=40, deadline=None)
def test_padding_the_positions_pads_the_values(shape: tuple[int, ...], data: st.DataObject) -> None:
    sides = [(data.draw(st.integers(-2, 2)), data.draw(st.integers(-2, 2))) for _ in shape]
    x = R.normal(size=(2, *shape))
    index = padded(positions(shape), sides)
    flat = [side for pair in sides[::-1] for side in pair]
    if any(n + a + b < 1 for n, (a, b) in zip(shape, sides, strict=True)):
        return
    network = Network((LayerSpec("take", "t", {}),), {"t.index": index.astype(float)}, shape)
    expected = torch.nn.functional.pad(torch.from_numpy(x), flat).numpy()
    np.testing.assert_array_equal(forward(network, x), expected)


class Standardised(nn.Module):
    """Constants of any kind, in front and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([[[0.25, -0.5, 1.0]]]))
        self.register_buffer("std", torch.tensor([0.3, 2.0, 0.7]))
        self.scale = nn.Parameter(torch.tensor(0.6))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std.clamp(min=0.5)
        x = x.flatten(1)
        return 1.0 - 2.0 * torch.tanh(-self.layer(x)) * self.scale.exp() + 0.0


def test_constants_in_a_forward_are_read() -> None:
    torch.manual_seed(0)
    model = Standardised().double()
    network = read_network(model, (1, 1, 3))
    x = torch.randn(4, 1, 1, 3).double()
    with torch.no_grad():
        np.testing.assert_allclose(forward(network, x.numpy()), model(x), rtol=1e-12)
    assert "add" not in [spec.name for spec in network.layers if spec.kind != "identity"]


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2))
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1.0)
        return self.layer(x) * self.scale


class Random(Counted):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.rand_like(self.scale)


@pytest.mark.parametrize("model", [Counted(), Random()], ids=lambda m: type(m).__name__)
def test_constants_that_change_are_refused(model: nn.Module) -> None:
    with pytest.raises(NetworkError):
        read_network(model)
    assert bool((model.scale == 1.0).all())


def normalised(*layers: nn.Module) -> nn.Module:
    """With statistics as after a training."""
    model = nn.Sequential(*layers)
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(std=30.0)
            norm.running_var.uniform_(1e-3, 3.0)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model.eval()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (normalised(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()), None),
        (normalised(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU()), None),
        (normalised(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.ReLU()), (2, 5, 5)),
    ],
    ids=["in front", "without weights", "images"],
)
def test_batch_normalisation_is_read(
    model: nn.Module, shape: tuple[int, ...] | None, double: bool
) -> None:
    model = model.double() if double else model.float()
    network = read_network(model, shape)
    x = torch.randn(3, *(network.input_shape or ()))
    with torch.no_grad():
        np.testing.assert_allclose(
            forward(network, x.numpy()), model.double()(x.double()), rtol=1e-6, atol=1e-6
        )
