"""The table of slope ranges, against sampled difference quotients and calculus."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip.errors import UnsupportedModule
from admm_lip.networks.activations import ACTIVATIONS, slope_range
from admm_lip.networks.chain import read_network
from admm_lip.networks.clipped import ClippedReLU, PairClip
from admm_lip.networks.readers import READERS

CASES = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.01),
    nn.LeakyReLU(1.5),
    nn.LeakyReLU(-0.3),
    nn.LeakyReLU(-2.0),
    nn.LeakyReLU(0.0),
    nn.ELU(),
    nn.ELU(2.5),
    nn.ELU(0.3),
    nn.ELU(-0.7),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Softplus(beta=3.0),
    nn.Softplus(beta=-2.0),
    nn.Hardtanh(),
    nn.Hardtanh(-0.1, 4.0),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    ClippedReLU((1,)),
    PairClip((2,)),
]


def options_of(module: nn.Module) -> tuple[str, dict[str, Any]]:
    reader = READERS[type(module)]
    return reader.kind, reader.options(module)


@pytest.mark.parametrize("module", CASES, ids=str)
def test_difference_quotients_stay_inside_and_reach_the_ends(module: nn.Module) -> None:
    alpha, beta = slope_range(*options_of(module))
    # Below softplus's threshold: beyond it torch rounds the function itself.
    reach = 18.0 / abs(module.beta) if isinstance(module, nn.Softplus) else 40.0
    u = torch.linspace(-reach, reach, 400_001, dtype=torch.float64)
    neurons = 2 if isinstance(module, PairClip) else 1
    values = module(u[:, None].expand(-1, neurons))[:, 0].detach()
    step = u[1] - u[0]
    for gap in (1, 7, 400, 30_000):
        quotient = (values[gap:] - values[:-gap]) / (u[gap:] - u[:-gap])
        # Two values of size up to 100, each good to some ulps.
        rounding = 1e-13 / (gap * step) + 1e-12
        assert quotient.max() <= beta + rounding
        assert quotient.min() >= alpha - rounding
        if gap == 1:
            assert quotient.max() >= beta - 5e-4
            assert quotient.min() <= alpha + 5e-4


def test_every_kind_in_the_table_is_sampled() -> None:
    assert {options_of(module)[0] for module in CASES} == set(ACTIVATIONS)


def test_greatest_slopes_that_calculus_gives_are_rounded_outwards() -> None:
    low, high = 2.0, 3.0  # x tanh(x / 2) = 2 has its root here
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (low, middle) if middle * math.tanh(middle / 2.0) > 2.0 else (middle, high)
    silu = 0.5 + low / 4.0
    root = math.sqrt(2.0)
    gelu = 0.5 * (1.0 + math.erf(1.0)) + root * math.exp(-1.0) / math.sqrt(2.0 * math.pi)
    for kind, greatest in (("silu", silu), ("gelu", gelu)):
        alpha, beta = slope_range(kind)
        assert greatest - 1e-15 <= beta <= greatest + 1e-14
        assert alpha <= 1.0 - beta
        assert alpha >= 1.0 - beta - 1e-14


def test_the_tanh_form_of_gelu_peaks_where_its_second_derivative_vanishes() -> None:
    beta = slope_range("gelu", {"approximate": "tanh"}).beta
    x = torch.linspace(1.3, 1.5, 20_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(nn.GELU("tanh")(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    at = int((bend > 0.0).sum())
    assert 0 < at < len(x) - 1 and bool((bend[:at] > 0.0).all()) and bool((bend[at:] <= 0.0).all())
    greatest = float(slope.detach().max())
    assert greatest <= beta <= greatest + 1e-9


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LeakyReLU(math.nan), "negative_slope: expected a finite number, got nan"),
        (nn.ELU(math.inf), "alpha: expected a finite number, got inf"),
        (nn.Softplus(beta=0.0), "beta: expected a number other than 0"),
        (nn.Softplus(threshold=5.0), "threshold: expected at least 20"),
    ],
    ids=str,
)
def test_options_without_a_slope_range_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        read_network(nn.Sequential(nn.Linear(2, 2), module))


def test_unknown_kinds_and_options_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModule, match="activation 'mish' is not supported; supported"):
        slope_range("mish")
    with pytest.raises(UnsupportedModule, match=r"relu takes the options \[\], got \['slope'\]"):
        slope_range("relu", {"slope": 1.0})
    with pytest.raises(UnsupportedModule, match="approximate: expected one of"):
        slope_range("gelu", {"approximate": "erf"})
    with pytest.raises(UnsupportedModule, match="min_val: expected below max_val"):
        slope_range("hardtanh", {"min_val": 1.0, "max_val": 1.0})
