"""Training with a penalty on the gradient of the loss in the input.

With ``g_i`` the gradient of sample i's loss in its input and ``|.|_+`` the dual of the attack norm:

    J = mean_i loss_i  +  eps * mean_i |g_i|_+  +  lambda * max_i |g_i|_+
                       +  mu/2 * mean_i |g_i|_+^2 / s

the total-variation and Lipschitz parts of Finlay, Calder, Abbasi and Oberman (arXiv 1808.09540),
and the squared penalty of its descendant (Finlay and Oberman, arXiv 1905.11468, "tulip").  There
``s = 1`` for l2 attacks and, because the direction sign(g) is scaled to length 1, the number of
features for linf: published strengths mu carry over.

Two schemes compute ``|g|_+``, and they are not interchangeable:

* ``"finite"``: ``(loss(x + h d) - loss(x)) / h`` with d the steepest direction, held.  One more
  forward and backward pass.  It sees the loss at distance h, so it also penalises curvature:
  ``|g|_+ + h/2 d'Hd + O(h^2)``;
* ``"double"``: the derivative itself, differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...training.losses import PlainLoss
from .norms import dual_norm
from .passes import Passes
from .rows import check_logits, row_losses


@dataclass(frozen=True)
class GradientPenalty:
    """Which parts of the penalty, how strong, and how they are computed.

    Args:
        total_variation: eps, weight on the batch mean of the gradients' dual norms.
        largest: lambda, weight on the batch maximum of them (the Lipschitz part).
        squared: mu, twice the weight on the batch mean of their squares, over s (see the module).
        norm: the attack norm, ``"l2"`` or ``"linf"``.
        scheme: ``"finite"`` or ``"double"``.
        step: h of the finite differences, in input units and in the attack norm.  Tulip's h is
            Euclidean: for linf its h is ``step * sqrt(features)`` here.

    Raises:
        ValueError: naming the field.
    """

    total_variation: float = 0.0
    largest: float = 0.0
    squared: float = 0.0
    norm: str = "l2"
    scheme: str = "finite"
    step: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("total_variation", "largest", "squared"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: expected a finite number >= 0, got {getattr(self, name)!r}"
                )
        if not 0.0 < self.step < math.inf:
            raise ValueError(f"step: expected a finite number > 0, got {self.step!r}")
        dual_norm(self.norm)
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")

    @property
    def active(self) -> bool:
        """Whether any part has a weight."""
        return max(self.total_variation, self.largest, self.squared) > 0.0


def one_step_adversarial(eps: float, norm: str = "linf") -> GradientPenalty:
    """Adversarial training by one step of size eps (FGSM for linf) as a total-variation penalty.

    With ``h = eps`` the objective ``loss + eps (loss(x + eps d) - loss) / eps`` is the loss at the
    attacked point itself, and ``loss(x + eps d) = loss + eps |g|_+ + O(eps^2)``.
    """
    return GradientPenalty(total_variation=eps, norm=norm, scheme="finite", step=eps)


def penalised_loss(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, penalty: GradientPenalty
) -> Tensor:
    """The objective J on one batch, a scalar to call ``backward`` on.

    Args:
        model: any module, in the mode it is to be trained in.
        inputs: ``(n, ...)``, floating point.
        targets: what the loss takes.
        loss: ``loss(outputs, targets)``: the mean of a loss per sample, or one value per sample.
        penalty: see :class:`GradientPenalty`.

    Raises:
        ValueError: outputs that are not logits (for integer targets), a loss that is not a mean
            over samples, a model that is not differentiable in its inputs.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> def height(outputs, targets):
        ...     return outputs[:, 0]
        >>> penalty = GradientPenalty(total_variation=0.1, scheme="double")
        >>> penalised_loss(model, torch.zeros(5, 2), torch.zeros(5), height, penalty).item()
        0.5
    """
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs: expected floating point numbers, got {inputs.dtype}; convert them first"
        )
    if not penalty.active:
        return row_losses(loss, _checked(model(inputs), targets), targets).mean()
    passes = Passes(model)
    linear = penalty.scheme == "finite" and penalty.squared == 0.0 and not passes.mixes
    method = _held_objective if linear else _graph_objective
    return method(passes, inputs.detach(), targets, loss, penalty)


def gradient_sizes(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, penalty: GradientPenalty
) -> tuple[Tensor, Tensor]:
    """Losses and dual norms of their gradients by ``penalty.scheme``, each ``(n,)``, with graph."""
    return _sizes(Passes(model), inputs.detach(), targets, loss, penalty)


def _sizes(
    passes: Passes, x: Tensor, targets: Tensor, loss: PlainLoss, penalty: GradientPenalty
) -> tuple[Tensor, Tensor]:
    def rows_at(point: Tensor) -> Tensor:
        return row_losses(loss, passes.again(point), targets, known=True)

    outputs = _checked(passes.first(x), targets)
    rows = row_losses(loss, outputs, targets)
    point = x.clone().requires_grad_(True)
    (gradient,) = gradients(rows_at(point), outputs, point, create_graph=penalty.scheme == "double")
    return rows, SCHEMES[penalty.scheme](gradient, rows, x, rows_at, penalty)


def _graph_objective(
    passes: Passes, x: Tensor, targets: Tensor, loss: PlainLoss, penalty: GradientPenalty
) -> Tensor:
    """The formula of the module, term by term."""
    rows, sizes = _sizes(passes, x, targets, loss, penalty)
    unit = dual_norm(penalty.norm).squared_length(x[0].numel())
    return (
        rows.mean()
        + penalty.total_variation * sizes.mean()
        + penalty.largest * sizes.max()
        + 0.5 * penalty.squared / unit * sizes.square().mean()
    )


def _held_objective(
    passes: Passes, x: Tensor, targets: Tensor, loss: PlainLoss, penalty: GradientPenalty
) -> Tensor:
    """The same by finite differences, where it is linear in the losses: two backward passes.

    With D = loss(x + h d) - loss(x), the objective is
    ``mean loss + eps/h mean D + lambda/h D_top``.  Every sample's loss at x has the same weight in
    its mean, so the one backward pass through it that the direction needs gives its gradient in
    the weights too.  The top sample is evaluated once more, alone.
    """
    parameters = [p for p in passes.model.parameters() if p.requires_grad]
    point = x.clone().requires_grad_(True)
    outputs = _checked(passes.first(point), targets)
    rows = row_losses(loss, outputs, targets)
    # A mask of dropout belongs to the whole batch: then the top sample keeps the graph of all.
    whole = passes.draws and penalty.largest > 0.0
    gradient, *known = gradients(rows, outputs, point, *parameters, keep=whole)
    here: Tensor = _Known.apply(  # type: ignore[no-untyped-call]
        rows.detach().mean(), [g / len(x) for g in known], *parameters
    )
    moved = x + penalty.step * dual_norm(penalty.norm).direction(gradient)
    there = row_losses(loss, passes.again(moved), targets, known=True)
    total = here + penalty.total_variation / penalty.step * (there.mean() - here)
    if penalty.largest > 0.0:
        top = int((there - rows).detach().argmax())
        one = slice(top, top + 1)
        again = (
            rows[one] if whole else row_losses(loss, passes.again(x[one]), targets[one], known=True)
        )
        total = total + penalty.largest / penalty.step * (there[one] - again).sum()
    return total


class _Known(torch.autograd.Function):
    """A number whose gradient in the parameters has been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, known: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.known = known
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer[0] * g for g in ctx.known)


def gradients(
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    *more: Tensor,
    keep: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients of the summed ``rows`` in ``inputs`` and in ``more``.

    Args:
        rows: losses ``(n,)``.
        outputs: of the model, that the losses are of.
        inputs: a leaf that they depend on.
        more: other leaves.
        keep: keep the graph of ``rows``, which holds memory (implied by ``create_graph``).
        create_graph: give the gradients a graph of their own.

    Raises:
        ValueError: when the rows do not depend on the inputs by differentiable operations: the
            gradient is missing, or it is 0 everywhere though the outputs differ.
    """
    found: list[Tensor | None] = [None]
    if rows.requires_grad:
        found = list(
            torch.autograd.grad(
                rows.sum(),
                (inputs, *more),
                retain_graph=keep or create_graph,
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    first = found[0]
    flat = first is not None and not bool(first.any()) and _differ(outputs.detach())
    if first is None or flat:
        raise ValueError(
            "model: expected outputs that are differentiable in the inputs, got a gradient that is "
            f"{'0 in every entry' if flat else 'missing'}; look for detach(), argmax, rounding or "
            "numpy inside the model"
        )
    return [
        torch.zeros_like(v) if g is None else g for g, v in zip(found, (inputs, *more), strict=True)
    ]


def _differ(outputs: Tensor) -> bool:
    """Whether outputs vary by more than rounding; a constant network is one fully penalised."""
    spread = (outputs - outputs[:1]).abs().amax()
    return bool(spread > 1e-5 * outputs.abs().amax())


def _checked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Integer targets mean classes, so the outputs must be logits."""
    return outputs if targets.is_floating_point() else check_logits(outputs, len(targets))


Scheme = Callable[[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor], GradientPenalty], Tensor]


def _finite(
    gradient: Tensor,
    rows: Tensor,
    x: Tensor,
    rows_at: Callable[[Tensor], Tensor],
    penalty: GradientPenalty,
) -> Tensor:
    """``(loss(x + h d) - loss(x)) / h``, d held."""
    direction = dual_norm(penalty.norm).direction(gradient)
    return (rows_at(x + penalty.step * direction) - rows) / penalty.step


def _double(
    gradient: Tensor,
    rows: Tensor,
    x: Tensor,
    rows_at: Callable[[Tensor], Tensor],
    penalty: GradientPenalty,
) -> Tensor:
    """The dual norm of the gradient, which carries its own graph."""
    return dual_norm(penalty.norm).size(gradient)


SCHEMES: dict[str, Scheme] = {"finite": _finite, "double": _double}
