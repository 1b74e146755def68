"""SDP-based Lipschitz layers: residual blocks that cannot expand distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...training.method import Method, check_positive
from .aol import AlmostOrthogonal
from .segments import cut, join
from .spectral import check_slopes, spectral_norm


class SllBlock(nn.Module):
    """``x - 2 W T^{-1} sigma(W'x + b)`` with ``T_ii = sum_j |W'W|_ij q_j / q_i``: 1-Lipschitz.

    ``W'W <= T`` by diagonal dominance, whatever the positive q, and that is all the proof needs
    for an activation with slopes in [0, 1] (A. Araujo et al., ICLR 2023, theorem 3).

    Args:
        width: length of x.
        inner: neurons inside.
        activation: the module ``sigma``.
    """

    def __init__(self, width: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.kernel = nn.Parameter(torch.empty(inner, width))  # W'
        self.bias = nn.Parameter(torch.zeros(inner))
        self.log_q = nn.Parameter(torch.zeros(inner))
        nn.init.xavier_normal_(self.kernel)

    def multiplier(self) -> Tensor:
        """The diagonal of T, shape ``(inner,)``."""
        q = self.log_q.exp()
        return ((self.kernel @ self.kernel.T).abs() @ q / q).clamp_min(1e-30)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of ``width`` features in, the same out."""
        hidden = self.activation(functional.linear(x, self.kernel, self.bias))
        return x - functional.linear(hidden * (2.0 / self.multiplier()), self.kernel.T)

    def lipschitz(self) -> float:
        """``sqrt(1 + 4 r max(r - 1, 0))`` with r the norm of ``T^{-1/2} W'W T^{-1/2}``, in float64.

        With d = x - x' and e the difference of the activations, ``e T^{-1} e <= e T^{-1} W'd``, so
        ``|d - 2 W T^{-1} e|^2 <= |d|^2 + 4 (r - 1) e T^{-1} e`` and ``e T^{-1} e <= r |d|^2``.
        """
        scale = self.multiplier().detach().to(torch.float64).rsqrt()
        r = spectral_norm(scale[:, None] * self.kernel.detach().to(torch.float64)) ** 2
        return math.sqrt(1.0 + 4.0 * r * max(r - 1.0, 0.0))


@dataclass(frozen=True)
class Sll(Method):
    """A linear map, one residual block per hidden layer, and a linear map.

    A chain with widths ``n_0, n_1, ..., n_l, n_out`` becomes an almost-orthogonal map
    ``n_0 -> n_1``, l blocks on ``n_1`` features with ``n_1, ..., n_l`` neurons inside, and an
    almost-orthogonal map ``n_1 -> n_out``.

    A block is no layer of a plain chain: x would have to pass through the activation.
    (``x = relu(x) - relu(-x)`` writes it as one of twice the width, but no diagonal multiplier sees
    that the two cancel, and the certificate would be far above the bound.)  So ``finish`` keeps the
    blocks, the chain reader refuses the result, and the bound is this method's own.

    Args:
        bound: on the network's Lipschitz constant, shared by the two linear maps.
    """

    name: ClassVar[str] = "sll"
    source: ClassVar[str] = "A. Araujo, A. Havens, B. Delattre et al., ICLR 2023"

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_positive(bound=self.bound)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The residual network; of the given one only widths and activations remain."""
        check_slopes(model, 0.0, 1.0)
        parts = cut(model)
        maps = AlmostOrthogonal(self.bound)
        if len(parts.linears) == 1:
            return maps.prepare(model)
        stem, last = parts.linears[0], parts.linears[-1]
        width, like = stem.out_features, stem.weight
        head = nn.Linear(width, last.out_features, dtype=like.dtype, device=like.device)
        for layer in (stem, head):
            made = maps.parametrization(layer, math.sqrt(self.bound))
            parametrize.register_parametrization(layer, "weight", made)
        blocks = nn.Sequential(
            *(
                SllBlock(width, layer.out_features, activation)
                for layer, activation in zip(parts.linears, parts.between[1:-1], strict=False)
            )
        )
        return join([parts.between[0], blocks.to(like), parts.between[-1]], [stem, head])

    def finish(self, model: nn.Module) -> nn.Module:
        """Ordinary linear maps at the ends; the blocks stay what they are."""
        for layer in list(model.modules()):
            if isinstance(layer, nn.Linear):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        return model

    def lipschitz(self, model: nn.Module) -> float:
        """Product of the bounds of the blocks and the norms of the linear maps."""
        bounds = [m.lipschitz() for m in model.modules() if isinstance(m, SllBlock)]
        norms = [spectral_norm(m.weight) for m in model.modules() if isinstance(m, nn.Linear)]
        return math.prod(bounds) * math.prod(norms)
