"""Activations that a forward or an exporter writes out as several steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.networks.activations import ACTIVATIONS
from admm_lip.networks.chain import read_network
from admm_lip.networks.forward import forward
from admm_lip.networks.scalar_math import NUMPY
from admm_lip.networks.written_out import Scalar, found_in

K = math.sqrt(2.0 / math.pi)
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda z: z * torch.sigmoid(z),
    "silu from the right": lambda z: torch.sigmoid(z) * z,
    "gelu": lambda z: 0.5 * z * (1.0 + torch.erf(z / math.sqrt(2.0))),
    "gelu multiplied out": lambda z: z * (torch.erf(z * 0.7071067811865476) * 0.5 + 0.5),
    "gelu of tanh": lambda z: 0.5 * z * (1.0 + torch.tanh(K * (z + 0.044715 * torch.pow(z, 3)))),
    "mish": lambda z: z * torch.tanh(F.softplus(z)),
    "mish of logarithms": lambda z: z * torch.tanh(torch.log(1.0 + torch.exp(z))),
    "softplus": lambda z: torch.log(1.0 + torch.exp(z)),
    "softplus of a rate": lambda z: F.softplus(3.0 * z) / 3.0,
    "log sigmoid": lambda z: torch.log(torch.sigmoid(z)),
    "softsign": lambda z: z / (1.0 + z.abs()),
    "tanhshrink": lambda z: z - torch.tanh(z),
    "hardswish": lambda z: z * F.relu6(z + 3.0) / 6.0,
}


class Written(nn.Module):
    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.form = nn.Linear(3, 5), nn.Linear(5, 2), form

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.form(self.first(x)))


@pytest.mark.parametrize("name", FORMS)
def test_one_activation_is_found_through_every_door(name: str, tmp_path: Path) -> None:
    model = Written(FORMS[name]).eval()
    network = read_network(model)
    assert [s.kind for s in network.layers][::2] == ["linear", "linear"]
    torch.export.save(torch.export.export(model, (torch.randn(2, 3),)), tmp_path / "m.pt2")
    assert open_network(tmp_path / "m.pt2").digest() == network.digest()
    x = 3.0 * torch.randn(100, 3)
    found = torch.from_numpy(forward(network, x.numpy())).float()
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_another_rate_is_the_activation_between_two_scalings() -> None:
    kinds = [s.kind for s in read_network(Written(lambda z: z * torch.sigmoid(1.702 * z))).layers]
    assert kinds == ["linear", "elementwise", "silu", "elementwise", "linear"]


@pytest.mark.parametrize(
    "form",
    [
        lambda z: z * z,
        lambda z: z * torch.relu(z),
        lambda z: z * torch.sigmoid(z * z),
        lambda z: 0.5 * z * (0.9 + torch.erf(z)),
        lambda z: z * torch.tanh(F.softplus(z) + 0.01),
        lambda z: torch.exp(z),
        lambda z: z * F.relu6(z + 2.9) / 6.0,
    ],
)
def test_what_is_no_row_is_refused(form: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = Written(form).eval()
    with pytest.raises(UnsupportedModule, match=r"combines 2 values|exp\(\) is not supported"):
        read_network(model)
    torch.export.save(torch.export.export(model, (torch.randn(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(UnsupportedModule, match=r"combines|is not supported"):
        open_network(tmp_path / "m.pt2")


# Of a size whose quotients are floats, in which the test states what was found.
FACTORS = st.floats(-4.0, 4.0).filter(lambda v: v == 0.0 or abs(v) > 1e-6)


@given(inner=FACTORS, outer=FACTORS, off=st.sampled_from([0.0, 1e-9, 1e-3]))
def test_what_is_found_is_the_function_that_was_written(
    inner: float, outer: float, off: float
) -> None:
    """``outer x g(inner x)``; and no slope of it, not even by 1e-9, is beyond the row's."""
    steps = [
        Scalar("x", None),
        Scalar("scaled", "mul", ("x", inner)),
        Scalar("step", "sigmoid", ("scaled",)),
        Scalar("moved", "mul", ("step", 1.0 + off)),
        Scalar("product", "mul", ("x", "moved")),
        Scalar("out", "mul", ("product", outer)),
    ]
    x = np.linspace(-9.0, 9.0, 2_001)
    for match in found_in(steps, frozenset()):
        value = NUMPY.sigmoid(inner * x) * (1.0 + off) * x
        value = value * outer if match.name == "out" else value
        if match.root != "x":
            continue
        row = ACTIVATIONS[match.kind]
        stated = float(match.after) * row.value(NUMPY, match.options, float(match.before) * x)
        np.testing.assert_allclose(stated, value, rtol=1e-13, atol=1e-300)


def test_what_grows_without_end_is_left_alone() -> None:
    steps = [Scalar("v0", None), *(Scalar(f"v{k + 1}", "pow", (f"v{k}", 3.0)) for k in range(60))]
    steps += [Scalar(f"w{k + 1}", "mul", (f"w{k}" if k else "v0", 1.1)) for k in range(400)]
    assert found_in(steps, frozenset()) == []
