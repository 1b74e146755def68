"""Layer-wise projection: after every step, a layer whose norm is too large is scaled down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.method import Method, check_at_least, check_positive
from .spectral import (
    check_slopes,
    drop_vectors,
    estimated_norm,
    layer_cap,
    linears,
    product_bound,
    shrink_to,
    start_vectors,
)

NORMS = (1.0, 2.0, math.inf)


@dataclass(frozen=True)
class LayerwiseProjection(Method):
    """Keep ``||W_k||_p <= c`` for every layer by the paper's projection

        W <- W / max(1, ||W||_p / c),        c = bound^(1 / layers)

    which scales W onto the ball (it is not the nearest point of it).  The norms for p = 1 and inf
    are exact; that for p = 2 is a power iteration while training, and exact at the end.  Scaling
    shrinks every singular value for the sake of the largest, so a tight bound wants small steps
    (lr 1e-4 and below with Adam).

    Args:
        bound: on the network's Lipschitz constant in the p-norm.
        p: 1, 2 or inf.
        iterations: power iterations per step, for p = 2.
    """

    name: ClassVar[str] = "gouk"
    source: ClassVar[str] = (
        "H. Gouk, E. Frank, B. Pfahringer, M. Cree, Machine Learning 110, 2021, algorithm 1"
    )

    bound: float = 1.0
    p: float = 2.0
    iterations: int = 2

    def __post_init__(self) -> None:
        check_positive(bound=self.bound)
        check_at_least(1, iterations=self.iterations)
        if self.p not in NORMS:
            raise ValueError(f"p: expected 1, 2 or inf, got {self.p!r}")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Check the layers, start their power iterations and project once."""
        check_slopes(model, -1.0, 1.0)
        start_vectors(linears(model))
        self.after_step(model)
        return model

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Project every layer."""
        layers = linears(model)
        cap = layer_cap(self.bound, layers)
        for layer in layers:
            layer.weight.div_((self._norm(layer) / cap).clamp_min(1.0))

    def finish(self, model: nn.Module) -> nn.Module:
        """Project once more, by exact norms, and drop the power-iteration vectors."""
        layers = linears(model)
        for layer in layers:
            shrink_to(layer, layer_cap(self.bound, layers), self.p)
        drop_vectors(model)
        return model

    def lipschitz(self, model: nn.Module) -> float:
        """The product of the spectral norms, whatever p: a bound in the Euclidean norm."""
        return product_bound(model)

    def _norm(self, layer: nn.Linear) -> Tensor:
        if self.p == 2.0:
            return estimated_norm(layer, self.iterations)
        norm: Tensor = torch.linalg.matrix_norm(layer.weight, self.p)
        return norm
