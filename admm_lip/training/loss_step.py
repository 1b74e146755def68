"""The loss step: a few optimizer steps on the augmented Lagrangian of an objective.

The model moves; the ADMM state does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .admm import AdmmState
from .optimize import reads_value, set_learning_rate
from .reading import Batch

# (model, inputs, targets, lip, share of the run that is done) -> scalar to minimise on one batch.
Objective = Callable[[nn.Module, Tensor, Tensor, float, float], Tensor]


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The term ``<Y, W - Wbar> + rho/2 ||W - Wbar||^2``, written as a pull towards a target.

    Up to a constant it is ``rho/2 ||W - target||^2`` with ``target = Wbar - Y / rho``.
    """

    parameters: tuple[nn.Parameter, ...]
    targets: tuple[Tensor, ...]
    rho: float

    def add_gradient(self) -> None:
        """Add ``rho (W - target)`` to the gradients."""
        gradients = [cast(Tensor, p.grad) for p in self.parameters]  # backward has just run
        torch._foreach_add_(gradients, self._difference(), alpha=self.rho)

    def value(self) -> Tensor:
        """``rho/2 ||W - target||^2``."""
        squares = torch._foreach_norm(self._difference())
        return 0.5 * self.rho * torch.stack(squares).square().sum()

    def _difference(self) -> list[Tensor]:
        return list(torch._foreach_sub([p.detach() for p in self.parameters], self.targets))


def pull_of(parameters: Sequence[nn.Parameter], state: AdmmState) -> Pull:
    """The pull of this round's consensus and dual, in the parameters' own dtype."""
    exact = torch._foreach_add(state.consensus, state.dual, alpha=-1.0 / state.rho)
    targets = tuple(t.to(p.dtype) for t, p in zip(exact, parameters, strict=True))
    return Pull(tuple(parameters), targets, state.rho)


def loss_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Iterable[tuple[Batch, float]],
    pull: Pull,
    lip: float,
    progress: float,
) -> float:
    """Run one optimizer step per batch on ``loss + pull``.

    Args:
        model: moves.
        optimizer: over all parameters of the model.
        objective: ``objective(model, inputs, targets, lip, progress)``, the loss of a batch.
        batches: pairs of a batch and the step size to use for it.
        pull: the augmented-Lagrangian term.
        lip: the bound of this round, for losses that use it.
        progress: share of the run that is done, for ramps.

    Returns:
        The mean loss over the batches, without the pull.

    Raises:
        NonFiniteLoss: as soon as the mean is NaN or infinite.
    """
    values: list[Tensor] = []
    searches = reads_value(optimizer)
    for (inputs, targets), lr in batches:
        set_learning_rate(optimizer, lr)
        seen: list[Tensor] = []

        # Some optimizers (L-BFGS) evaluate more than once; the loss reported is the first one.
        def closure(x: Tensor = inputs, y: Tensor = targets, seen: list[Tensor] = seen) -> float:
            optimizer.zero_grad()
            value = objective(model, x, y, lip, progress)
            value.backward()  # type: ignore[no-untyped-call]
            pull.add_gradient()
            loss = value.detach()
            seen.append(loss)
            return loss + pull.value() if searches else loss  # type: ignore[return-value]

        optimizer.step(closure)
        values.append(seen[0])
    mean = float(torch.stack(values).mean())
    if not math.isfinite(mean):
        raise NonFiniteLoss(
            f"loss: expected a finite value, got {mean}; lower lr, or check the data's scale"
        )
    return mean
