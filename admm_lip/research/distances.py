"""How far it is to the next adversarial example (estimates), and between classes (exact)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..evaluation.attacks import frozen, margin
from .input_gradients.norms import dual_norm
from .input_gradients.objective import gradients
from .input_gradients.rows import check_logits


class WrongFrom(NamedTuple):
    """A loss per sample of logits and labels, and the least value it has on a wrong prediction."""

    rows: Callable[[Tensor, Tensor], Tensor]
    least: float


# A wrong class has at most half the probability: cross-entropy is log 2 or more there.  (The log of
# the number of classes, which is also met, is no lower bound with more than two classes.)
WRONG_FROM: dict[str, WrongFrom] = {
    "cross_entropy": WrongFrom(
        lambda logits, y: functional.cross_entropy(logits, y, reduction="none"), math.log(2.0)
    ),
    "margin": WrongFrom(margin, 0.0),
}


@dataclass(frozen=True, eq=False)
class DistanceEstimates:
    """Estimated distances to the nearest adversarial example, ``(n,)``, 0 where already wrong.

    They are heuristics: nothing is proven, and an attack may come closer.  Proven distances are
    those of :func:`admm_lip.certificates.radii.certified_radii`.

    Attributes:
        first_order: ``(l0 - loss) / |gradient|_+``, exact where the loss is linear.
        steepest: ``(l0 - loss) / L`` with L the largest dual norm among the inputs given, which
            would be a bound if no steeper point existed anywhere.
        norm: the attack norm.
        loss: which loss.
    """

    heuristic: ClassVar[bool] = True

    first_order: Tensor
    steepest: Tensor
    norm: str
    loss: str


def estimate_distances(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str = "l2",
    loss: str = "cross_entropy",
    *,
    batch_size: int = 1000,
) -> DistanceEstimates:
    """Both estimates of the distance to the nearest adversarial example.

    Args:
        model: classifier with logits; run in eval mode, left as it was.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        norm: the attack norm, ``"l2"`` or ``"linf"``.
        loss: a name in ``WRONG_FROM``: ``"cross_entropy"`` with ``l0 = log 2``, or ``"margin"``
            (the best other logit less the label's) with ``l0 = 0``.
        batch_size: rows at once.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> estimate_distances(  # the boundary is at 1 / sqrt(2)
        ...     model, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), loss="margin"
        ... ).first_order
        tensor([0.7071])
    """
    if loss not in WRONG_FROM:
        raise ValueError(f"loss: expected one of {', '.join(WRONG_FROM)}, got {loss!r}")
    row = WRONG_FROM[loss]
    size = dual_norm(norm).size
    room, slopes = [], []
    with frozen(model):
        for part, labels in zip(
            torch.split(x, batch_size), torch.split(y, batch_size), strict=True
        ):
            point = part.detach().requires_grad_(True)
            logits = check_logits(model(point), len(part))
            values = row.rows(logits, labels)
            slopes.append(size(gradients(values, logits, point)[0]))
            room.append((row.least - values.detach()).clamp_min(0.0))
    gap, slope = torch.cat(room), torch.cat(slopes)
    first = torch.where(gap > 0, gap / slope, torch.zeros_like(gap))
    return DistanceEstimates(first, gap / slope.max(), norm, loss)


@dataclass(frozen=True)
class ClassDistance:
    """The closest pair of inputs of different classes.

    Attributes:
        distance: l2, in the units of the inputs.
        rows: the pair (the first one found).
        classes: their labels.
    """

    distance: float
    rows: tuple[int, int]
    classes: tuple[int, int]

    @property
    def lipschitz(self) -> float:
        """1 / distance: no function that is 0 on one class and 1 on the others is less steep."""
        return 1.0 / self.distance if self.distance > 0.0 else math.inf


def class_distance(x: Tensor, y: Tensor, *, block: int = 2048) -> ClassDistance:
    """The smallest l2 distance between inputs of different classes, over all pairs, exactly.

    Blocks of squared distances ``|a|^2 + |b|^2 - 2ab`` are screened in single precision; every pair
    that its rounding error could hide is computed again from the differences, in double precision.

    Args:
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``, at least two different ones.
        block: rows of a block; memory is ``8 block^2`` bytes.

    Raises:
        ValueError: when all inputs are of one class, or the lengths differ.

    Example:
        >>> import torch
        >>> class_distance(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1])).distance
        3.0
    """
    if len(x) != len(y):
        raise ValueError(f"y: expected one label per input ({len(x)}), got {len(y)}")
    flat = x.flatten(1)
    order = y.argsort(stable=True)
    labels, counts = torch.unique_consecutive(y[order], return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"y: expected at least two classes, got {len(labels)}")
    centred = (flat - flat.double().mean(dim=0).to(flat.dtype)).float()
    squares = centred.double().square().sum(dim=1)
    groups = list(torch.split(order, counts.tolist()))
    best = ClassDistance(math.inf, (-1, -1), (-1, -1))
    for k, group in enumerate(groups[:-1]):
        rest = torch.cat(groups[k + 1 :])
        for left in torch.split(group, block):
            for right in torch.split(rest, block):
                pairs = _screened(centred, squares, left, right, best.distance)
                best = _nearest(flat, y, left[pairs[0]], right[pairs[1]], best)
    return best


def _screened(
    centred: Tensor, squares: Tensor, left: Tensor, right: Tensor, best: float
) -> tuple[Tensor, Tensor]:
    """Pairs that may be closer than ``best`` and may be the closest of the block."""
    a, b = squares[left].float(), squares[right].float()
    found = torch.addmm(b[None], centred[left], centred[right].T, alpha=-2.0)
    found += a[:, None]
    # Dot products of n terms are off by at most n u |a||b|; centring and the sums add a few u.
    terms = centred.shape[1] + 16
    slack = 4.0 * terms * 2.0**-24 * float(max(a.max(), b.max()))
    limit = min(best * best, float(found.min()) + slack) + slack
    pairs = (found <= limit).nonzero(as_tuple=True)
    return pairs[0], pairs[1]


def _nearest(
    x: Tensor, y: Tensor, left: Tensor, right: Tensor, best: ClassDistance
) -> ClassDistance:
    """The better of ``best`` and the closest of the given pairs, in double precision."""
    for i, j in zip(torch.split(left, 4096), torch.split(right, 4096), strict=True):
        if len(i) == 0:
            continue
        lengths = (x[i].double() - x[j].double()).norm(dim=1)
        at = int(lengths.argmin())
        if float(lengths[at]) < best.distance:
            pair = (int(i[at]), int(j[at]))
            best = ClassDistance(float(lengths[at]), pair, (int(y[pair[0]]), int(y[pair[1]])))
    return best
