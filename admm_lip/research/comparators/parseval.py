"""Parseval networks: after every step, the rows of each layer move towards orthonormal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...training.method import Method, check_positive
from .spectral import check_slopes, layer_cap, linears, product_bound


@dataclass(frozen=True)
class Parseval(Method):
    """One gradient step on ``beta/4 ||W W' - I||^2`` after each step on the loss:

        W <- (1 + beta) W - beta W W' W

    on a random share of the rows.  For a bound other than 1, W is first divided by its share
    ``bound^(1 / layers)``.  Nothing is enforced: the norms come near it.

    Args:
        bound: the Lipschitz constant that orthonormal layers would have.
        beta: step size of the retraction (the paper tunes it).
        rows: share of the rows that one retraction works on (0.3 in the paper, to save time).
    """

    name: ClassVar[str] = "parseval"
    source: ClassVar[str] = "M. Cisse, P. Bojanowski, E. Grave et al., ICML 2017, section 5.1"

    bound: float = 1.0
    beta: float = 0.1
    rows: float = 1.0

    def __post_init__(self) -> None:
        check_positive(bound=self.bound, beta=self.beta, rows=self.rows)
        if self.rows > 1.0:
            raise ValueError(f"rows: expected a share in (0, 1], got {self.rows!r}")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Check the layers."""
        check_slopes(model, -1.0, 1.0)
        linears(model)
        return model

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Retract every layer."""
        layers = linears(model)
        cap = layer_cap(self.bound, layers)
        for layer in layers:
            weight = layer.weight
            if self.rows == 1.0:
                weight.copy_(cap * retract(weight / cap, self.beta))
                continue
            count = max(1, round(self.rows * len(weight)))
            chosen = torch.randperm(len(weight), device=weight.device)[:count]
            weight[chosen] = cap * retract(weight[chosen] / cap, self.beta)

    def lipschitz(self, model: nn.Module) -> float:
        """The product of the spectral norms."""
        return product_bound(model)


def retract(weight: Tensor, beta: float) -> Tensor:
    """``(1 + b) W - b W W' W``, with ``b = min(beta, 1 / ||W||_F^2)``.

    A singular value s becomes ``s (1 + b - b s^2)``.  The limit on b, which acts only on weights
    far above norm 1, keeps the factor between b and 1 + b: without it large weights diverge.
    """
    b = (1.0 / weight.square().sum().clamp_min(1e-30)).clamp_max(beta)
    gram_side = (
        weight @ weight.T @ weight
        if len(weight) <= weight.shape[1]
        else (weight @ (weight.T @ weight))
    )
    return weight + b * (weight - gram_side)
