"""Sandwich layers: a parametrisation of the networks that satisfy the Lipschitz LMI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...solvers.lmi import implied_bound
from ...solvers.problem import unit_slopes
from ...training.method import Method, check_positive
from .cayley import cayley, normalised
from .segments import Segments, cut, join, linear_of
from .spectral import check_slopes


class SandwichNet(nn.Module):
    """A network whose Lipschitz constant is at most ``bound``, whatever its parameters.

    With ``[A_k B_k]`` a matrix of orthonormal rows (a Cayley transform, ``A_k`` square) and
    ``Psi_k = diag(exp(psi_k))`` free, layer k maps

        h_{k+1} = sqrt(2) A_k' Psi_k sigma(sqrt(2) Psi_k^{-1} B_k h_k + b_k)

    from ``h_0 = sqrt(bound) x``, and the output is ``sqrt(bound) B_l h_l + b_l``.  Multiplied out,
    this is the plain chain

        W_0 = sqrt(2 bound) Psi_0^{-1} B_0
        W_k = 2 Psi_k^{-1} B_k A_{k-1}' Psi_{k-1}
        W_l = sqrt(2 bound) B_l A_{l-1}' Psi_{l-1}

    which satisfies ``M(bound^2, W, T) >= 0`` of ``solvers/lmi.py`` with
    ``T_{k+1} = bound * Psi_k^2``: scaled by the diagonal blocks, M is ``F F'`` for the block
    bidiagonal F with rows ``(-B_k, A_k)``.  Multiplying out is also the cheaper order of
    evaluation, since a batch is larger than a layer is wide.
    """

    def __init__(self, parts: Segments, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.between = nn.ModuleList(parts.between)
        like = parts.linears[0].weight
        self.kernels = nn.ParameterList(_kernel(layer) for layer in parts.linears)
        self.gains = nn.ParameterList(kernel.detach().norm() for kernel in self.kernels)
        self.psi = nn.ParameterList(
            torch.zeros(layer.out_features, dtype=like.dtype, device=like.device)
            for layer in parts.linears[:-1]
        )
        self.biases = nn.ParameterList(_bias(m.bias, m.weight) for m in parts.linears)

    def weights(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """``W_0 .. W_l`` of the plain chain, computed in ``dtype`` (default: the parameters')."""
        root = math.sqrt(self.bound)
        weights: list[Tensor] = []
        passed: Tensor | None = None  # sqrt(2) A_{k-1}' Psi_{k-1}; sqrt(bound) I at the input
        for k, (kernel, gain) in enumerate(zip(self.kernels, self.gains, strict=True)):
            free = normalised(kernel.to(dtype), gain.to(dtype))
            a, b = cayley(free).tensor_split([kernel.shape[0]], dim=1)
            reached = root * b if passed is None else b @ passed
            if k == len(self.psi):
                weights.append(root * reached)
                break
            psi = self.psi[k].to(dtype)
            weights.append(math.sqrt(2.0) * (-psi).exp()[:, None] * reached)
            passed = math.sqrt(2.0) * a.T * psi.exp()
        return weights

    def multiplier(self) -> list[Tensor]:
        """The diagonals ``t_1 .. t_l`` with which the LMI holds, in float64."""
        return [self.bound * (2.0 * p.detach().to(torch.float64)).exp() for p in self.psi]

    def forward(self, x: Tensor) -> Tensor:
        """The plain chain's output."""
        x = self.between[0](x)
        layers = zip(self.weights(), self.biases, self.between[1:], strict=True)
        for weight, bias, after in layers:
            x = after(functional.linear(x, weight, bias))
        return x

    def plain(self) -> nn.Sequential:
        """The same function as ``Linear`` layers and activations.

        Weights are multiplied out in float64 and rounded once; should the rounded ones exceed the
        bound, the last layer is scaled back by that excess (a part in 10^7 for float32).
        """
        stored = [w.detach().to(self.kernels[0].dtype) for w in self.weights(torch.float64)]
        lip = self._implied(stored)
        if self.bound < lip < math.inf:
            rounding = 2.0 * torch.finfo(stored[-1].dtype).eps
            stored[-1] = stored[-1] * (self.bound / lip * (1.0 - rounding))
        layers = [linear_of(w, b) for w, b in zip(stored, self.biases, strict=True)]
        return join(self.between, layers)

    def _implied(self, weights: Sequence[Tensor]) -> float:
        wide = [w.to(torch.float64) for w in weights]
        if len(wide) == 1:
            return float(torch.linalg.matrix_norm(wide[0], 2))
        return float(implied_bound(wide, unit_slopes(wide), self.multiplier()))


@dataclass(frozen=True)
class Sandwich(Method):
    """Train a :class:`SandwichNet` of the given widths and activations; ship its plain chain.

    Args:
        bound: on the network's Lipschitz constant.
    """

    name: ClassVar[str] = "sandwich"
    source: ClassVar[str] = "R. Wang, I. Manchester, ICML 2023, section 3"

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_positive(bound=self.bound)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The parametrised network; given weights are not used, given biases are the start."""
        check_slopes(model, 0.0, 1.0)
        return SandwichNet(cut(model), self.bound)

    def finish(self, model: nn.Module) -> nn.Module:
        """The plain chain."""
        assert isinstance(model, SandwichNet)
        return model.plain().eval()

    def lipschitz(self, model: nn.Module) -> float:
        """The bound, which holds by construction."""
        return self.bound


def _kernel(layer: nn.Linear) -> Tensor:
    """Free parameters of ``[A B]``, from torch's own initialisation of a layer of that shape."""
    kernel = layer.weight.new_empty(layer.out_features, layer.out_features + layer.in_features)
    nn.init.kaiming_uniform_(kernel, a=math.sqrt(5.0))
    return kernel


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    """The given bias, or zeros."""
    return weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
