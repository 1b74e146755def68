"""One module or more for every row of the table of activations; tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from admm_lip.networks.activations import ACTIVATIONS
from admm_lip.networks.chain import reader_of
from admm_lip.networks.clipped import ClippedReLU, PairClip
from admm_lip.networks.network import LayerSpec
from admm_lip.networks.scalar_math_torch import FORMULAS


def _prelu(*slopes: float) -> nn.Module:
    module = nn.PReLU(len(slopes))
    module.weight.data = torch.tensor(slopes)
    return module


# Scalar: one function for every neuron.
SCALAR: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "steep leaky": lambda: nn.LeakyReLU(1.5),
    "falling leaky": lambda: nn.LeakyReLU(-0.25),
    "abs": lambda: FORMULAS["leaky_relu"](negative_slope=-1.0),
    "elu": nn.ELU,
    "steep elu": lambda: nn.ELU(2.5),
    "flat elu": lambda: nn.ELU(0.25),
    "negative elu": lambda: nn.ELU(-0.75),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(0.5),
    "wide celu": lambda: nn.CELU(3.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "sharp softplus": lambda: nn.Softplus(3.0),
    "falling softplus": lambda: nn.Softplus(-0.5),
    "log sigmoid": nn.LogSigmoid,
    "softsign": nn.Softsign,
    "sin": FORMULAS["sin"],
    "tanhshrink": nn.Tanhshrink,
    "softshrink": lambda: nn.Softshrink(0.75),
    "hardtanh": nn.Hardtanh,
    "odd hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "hardsigmoid": nn.Hardsigmoid,
    "other hardsigmoid": lambda: FORMULAS["hardsigmoid"](alpha=-0.25, beta=0.375),
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
# Neurons differ, or are clipped at thresholds: for six features.
PER_NEURON: dict[str, Callable[[], nn.Module]] = {
    "prelu": nn.PReLU,
    "prelu per channel": lambda: _prelu(0.25, 0.25, -0.5, 1.5, 1.0, -2.0),
    "clipped relu": lambda: ClippedReLU((6,), 0.75),
    "pair clip": lambda: PairClip((6,), 0.75),
}
CASES = {**SCALAR, **PER_NEURON}


def spec_of(name: str) -> LayerSpec:
    """The layer that a scalar case is read as."""
    module = SCALAR[name]()
    reader = reader_of(name, module)
    return LayerSpec(reader.kind, "activation", reader.options(module))


def model_of(name: str, seed: int = 0, scale: float = 1.5) -> nn.Sequential:
    """A network 4-6-6-3 with the activation twice, in float32."""
    torch.manual_seed(seed)
    make = CASES[name]
    model = nn.Sequential(nn.Linear(4, 6), make(), nn.Linear(6, 6), make(), nn.Linear(6, 3)).eval()
    for layer in (model[0], model[2], model[4]):
        layer.weight.data *= scale
    return model


def kinds_of_cases() -> set[str]:
    """The rows of the table that the cases cover."""
    return {reader_of(name, make()).kind for name, make in CASES.items()}


_KNOWN = {kind for kind, row in ACTIVATIONS.items() if row.known}
assert kinds_of_cases() == _KNOWN, "every row of the table needs a case"
