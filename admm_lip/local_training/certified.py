"""Which samples provably keep their class on a ball, by local Lipschitz bounds.

Everything is float64, rounded outwards, and speaks of the real-valued network of the stored
weights.  Sample by sample the cheapest means that suffices decides:

1. **global**: the margin at the sample against ``eps prod ||W_k|| ||w_j - w_y||``;
2. **box**: the worst case over that ball and the box of the last features;
3. **local**: the same with the norms of what can move on the ball.  An estimate of these norms,
   from below, first sets aside the samples that even it cannot certify.

A wrong or tied class, NaN and infinite values certify nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.arrays import as_numbers, to_float64
from ..data.labels import class_numbers
from ..local.tensors import chunks
from ..networks.chain import read_network
from ..networks.overrides import unwrapped
from ..rounding import SLACK, TINY, lengths, upper_product
from .boxes import Box, Masks, Range, through_affine
from .norms import masked_norms
from .passage import Norm, NormOf, Passage, Settings, passage
from .proven_norms import ProvenNorms
from .ranges import check_inside, check_range
from .report import BOX, GLOBAL, LOCAL, OPEN, WRONG
from .report import LocalReport as LocalReport
from .stages import Stage, read_stages
from .surrogates import pair_rows, stretched
from .warm_starts import WarmStarts

_BOUNDS = ("local", "global")
# Power iterations of the estimate that sets samples aside.
_ITERATIONS = 30
# Rows of the last layer's differences held at once.
_ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class _Task:
    """The network in float64, its proven norms, and how far to go."""

    stages: tuple[Stage, ...]
    norms: ProvenNorms
    warm: WarmStarts
    eps: float
    local: bool
    running_radius: bool
    data_range: Range | None
    box: bool
    everything: bool

    @property
    def whole(self) -> Tensor:
        """Product of the layers' own norms before the last, rounded up; ``(1,)``."""
        return upper_product(_constant(1.0), *self.norms.whole[:-1])


@dataclass(frozen=True, eq=False)
class _Samples:
    """A batch, with what is known of it; ``gap`` bounds ``f_y - f_j`` from below, inf at y."""

    x: Tensor
    y: Tensor
    gap: Tensor

    def part(self, rows: Tensor) -> _Samples:
        return _Samples(self.x[rows], self.y[rows], self.gap[rows])


def certify_samples(
    model: nn.Module,
    x: Any,
    y: Any,
    eps: float,
    *,
    classes: Sequence[Any] | None = None,
    bound: str = "local",
    running_radius: bool = True,
    data_range: Range | None = None,
    box: bool = True,
    everything: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> LocalReport:
    """Prove, sample by sample, that no input within ``eps`` changes the class.

    Args:
        model: a chain of ``Linear``, ``Conv2d``, ``AvgPool2d``, ``Flatten``, ReLU, MaxMin and their
            clipped forms, that ends in a ``Linear`` layer; it stays as it is.
        x: inputs ``(batch, *)``, a tensor or any array, taken at their exact values.
        y: labels ``(batch,)``, ``(batch, 1)`` or one-hot.
        eps: l2 radius, at least 0, in the units of x.
        classes: the labels in the order of the outputs, where ``y`` holds words or other numbers.
        bound: ``"local"``, or ``"global"`` for the layers' own norms.
        running_radius: whether boxes use the local norms of the layers so far, which is tighter,
            or the layers' own.
        data_range: least and greatest admissible input value; perturbed inputs outside it do not
            count.
        box: whether the worst case is taken over the box of the last features as well.
        everything: whether the local bound is computed for all correct samples, not only for those
            that nothing cheaper decides (for its statistics).
        batch_size: samples handled together.
        progress: show a bar.

    Raises:
        UnsupportedModule: by qualified name, for a layer that is not handled.
        ValueError: naming the argument.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])
        >>> report = certify_samples(model, x, y, 1.4, progress=False)
        >>> report.certified.tolist(), round(report.margin[0].item(), 3)
        ([True, False], 0.02)
    """
    x = _checked(x, eps, bound)
    if data_range is not None:
        data_range = check_range(data_range)
        check_inside(x, data_range)
    model = unwrapped(model)
    read_network(model, tuple(x.shape[1:]))  # refuses what torch runs otherwise than it is read
    copied = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", torch.float64)
    for parameter in copied.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        stages = read_stages(copied, tuple(x.shape[1:]))
        y = _labels(y, len(x), stages[-1].operator.shape_out[0], classes)
        task = _Task(
            stages=stages,
            norms=ProvenNorms(stages),
            warm=WarmStarts([stage.operator for stage in stages]),
            eps=float(eps),
            local=bound == "local",
            running_radius=running_radius,
            data_range=data_range,
            box=box,
            everything=everything,
        )
        rows = chunks(torch.arange(len(x)), batch_size)
        shown = tqdm(rows, desc="certify", unit="batch", disable=not progress)
        parts = [_batch(task, x[part], y[part]) for part in shown]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else _nothing()
    predicted, correct, margin, level, varying, ratio = columns
    return LocalReport(
        eps=float(eps),
        bound=bound,
        predicted=predicted,
        correct=correct,
        certified=correct & (margin > 0.0),
        margin=margin,
        level=level,
        varying=varying,
        ratio=ratio,
    )


def _batch(task: _Task, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """All columns of the report for one batch."""
    logits = _logits(task, x)
    gap = _gaps(logits, y)
    correct = (gap > 0.0).all(dim=1)
    samples = _Samples(x, y, gap)
    margin = torch.where(gap.isnan().any(dim=1), -math.inf, gap.amin(dim=1))
    level = torch.where(correct, OPEN, WRONG)
    varying, ratio = (torch.full_like(margin, math.nan) for _ in range(2))
    last_rows = correct.nonzero()[:, 0]
    margin[last_rows] = -math.inf
    for number, prove in ((GLOBAL, _by_product), (BOX, _by_box), (LOCAL, _by_norms)):
        if len(last_rows) and (number != BOX or task.box) and (number != LOCAL or task.local):
            found = prove(task, samples.part(last_rows))
            margin[last_rows] = torch.maximum(margin[last_rows], found.margin)
            fresh = (level[last_rows] == OPEN) & (found.margin > 0.0)
            level[last_rows] = torch.where(fresh, number, level[last_rows])
            if found.varying is not None:
                varying[last_rows] = found.varying
            if found.ratio is not None:
                ratio[last_rows] = found.ratio
            if not task.everything:
                last_rows = last_rows[~(found.margin > 0.0)]
    middle = 0.5 * (logits.low + logits.high)
    return middle.argmax(dim=1), correct, margin, level, varying, ratio


@dataclass(frozen=True, eq=False)
class _Found:
    """Margins, and statistics where they were computed."""

    margin: Tensor
    varying: Tensor | None = None
    ratio: Tensor | None = None


def _by_product(task: _Task, samples: _Samples) -> _Found:
    """Level 1."""
    weight = task.stages[-1].operator.weight
    assert weight is not None
    reach = lengths(pair_rows(weight, samples.y))
    return _Found(_margin(samples, upper_product(reach, task.whole, task.eps)))


def _by_box(task: _Task, samples: _Samples) -> _Found:
    """Level 2."""
    found = passage(task.stages, samples.x, task.eps, _own(task), _rounded(task))
    margin = _margin(samples, _shift(task, samples, found, task.whole))
    return _Found(margin, found.varying / max(found.units, 1))


def _by_norms(task: _Task, samples: _Samples) -> _Found:
    """Level 3."""
    margin = torch.full((len(samples.x),), -math.inf, dtype=torch.float64)
    varying, ratio = (torch.full_like(margin, math.nan) for _ in range(2))
    rows = torch.arange(len(margin))
    if not task.everything:
        optimistic = Settings(data_range=task.data_range)
        seen = passage(task.stages, samples.x, task.eps, _estimated(task), optimistic)
        rows = (_margin(samples, _shift(task, samples, seen, seen.lip)) > 0.0).nonzero()[:, 0]
    if len(rows):
        left = samples.part(rows)
        found = passage(task.stages, left.x, task.eps, _proven(task), _rounded(task))
        lip = upper_product(_constant(1.0), *found.factors).expand(len(rows))
        margin[rows] = _margin(left, _shift(task, left, found, lip))
        varying[rows] = found.varying / max(found.units, 1)
        ratio[rows] = (lip / task.whole).clamp(max=1.0)
    return _Found(margin, varying, ratio)


def _rounded(task: _Task) -> Settings:
    return Settings(data_range=task.data_range, rounding=True)


def _constant(norm: float) -> Tensor:
    return torch.tensor([norm], dtype=torch.float64)


def _own(task: _Task) -> NormOf:
    """The layers' own norms."""

    def norm(k: int, stage: Stage, masks: Masks) -> Norm:
        whole = _constant(task.norms.whole[k])
        return Norm(whole, whole)

    return norm


def _proven(task: _Task) -> NormOf:
    """Proven norms of what can move."""

    def norm(k: int, stage: Stage, masks: Masks) -> Norm:
        whole = _constant(task.norms.whole[k])
        if masks.rows is None and masks.columns is None:
            return Norm(whole, whole)
        masked = task.norms.masked(k, masks)
        return Norm(masked, masked if task.running_radius else whole)

    return norm


def _estimated(task: _Task) -> NormOf:
    """The same from below."""

    def norm(k: int, stage: Stage, masks: Masks) -> Norm:
        start = task.warm.whole[k]
        count = next((len(m) for m in (masks.rows, masks.columns) if m is not None), 1)
        start = start.expand(count, *start.shape[1:])
        masked, _ = masked_norms(stage.operator, masks, start, _ITERATIONS)
        return Norm(masked, masked if task.running_radius else _constant(task.norms.whole[k]))

    return norm


def _logits(task: _Task, x: Tensor) -> Box:
    """The outputs at the samples, enclosed."""
    settings = Settings(boxes=False, rounding=True)
    found = passage(task.stages, x, 0.0, _own(task), settings)
    return through_affine(task.stages[-1], found.center, rounding=True)


def _gaps(logits: Box, y: Tensor) -> Tensor:
    """Lower bounds of ``f_y - f_j``, inf at y."""
    own = y[:, None]
    gap = logits.low.gather(1, own) - logits.high
    down = torch.nextafter(gap, gap.new_tensor(-math.inf))
    finite = torch.isfinite(logits.low) & torch.isfinite(logits.high)
    down = torch.where(finite.all(dim=1, keepdim=True), down, -math.inf)
    return down.scatter(1, own, math.inf)


def _margin(samples: _Samples, shift: Tensor) -> Tensor:
    """``min_j gap_j - shift_j``, rounded down; -inf where anything is not a number."""
    margin = torch.where(torch.isinf(samples.gap), samples.gap, samples.gap - shift)
    margin = torch.nextafter(margin, margin.new_tensor(-math.inf))
    margin = torch.where(margin.isnan(), -math.inf, margin)
    own = torch.isinf(samples.gap) & (samples.gap > 0.0)
    return torch.where(own, math.inf, margin).amin(dim=1)


def _shift(task: _Task, samples: _Samples, found: Passage, lip: Tensor) -> Tensor:
    """Upper bounds of ``(w_j - w_y) (x' - x)`` over ball and box, ``(batch, classes)``."""
    weight = task.stages[-1].operator.weight
    assert weight is not None
    radius = upper_product(lip, task.eps).expand(len(samples.x))
    size = max(1, _ENTRIES // weight.numel())
    parts = []
    for rows in chunks(torch.arange(len(samples.x)), size):
        pairs = pair_rows(weight, samples.y[rows])
        moving = pairs if found.columns is None else pairs * found.columns[rows][:, None]
        reach = upper_product(lengths(moving), radius[rows][:, None])
        if task.box and found.box is not None:
            cut = _cut(pairs, radius[rows], found, rows)
            reach = torch.where(cut < reach, cut, reach)
        parts.append(reach)
    return torch.cat(parts)


def _cut(pairs: Tensor, radius: Tensor, found: Passage, rows: Tensor) -> Tensor:
    """``r ||a|| + sum_i b_i s_i`` for the best split of ``|v| = a + b``; any split is a bound."""
    assert found.box is not None
    up = (found.box.high - found.center.low)[rows].clamp(min=0.0)[:, None]
    down = (found.center.high - found.box.low)[rows].clamp(min=0.0)[:, None]
    size, room = pairs.abs(), torch.where(pairs > 0.0, up, down)
    share = stretched(size, room, radius)[1]
    outer = ((size - share) * room).sum(dim=-1)
    most: Tensor = radius[:, None] * lengths(share) + outer
    return most * SLACK + TINY


def _checked(x: Any, eps: float, bound: str) -> Tensor:
    """The inputs as float64, exactly."""
    if isinstance(eps, bool) or not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite radius >= 0, got {eps!r}")
    if bound not in _BOUNDS:
        raise ValueError(f"bound: expected one of {', '.join(_BOUNDS)}, got {bound!r}")
    rows = as_numbers("x", x)
    if rows.ndim < 2:
        raise ValueError(
            f"x: expected inputs of shape (batch, *), got {tuple(rows.shape)}; add an axis by "
            "x[None] (one input) or x[:, None] (inputs of one number)"
        )
    # Not .contiguous(): of one channel it leaves the strides of channels-last as they are.
    return to_float64("x", rows).cpu().clone(memory_format=torch.contiguous_format)


def _labels(y: Any, count: int, outputs: int, classes: Sequence[Any] | None) -> Tensor:
    """Class numbers, one per input."""
    if outputs < 2:
        raise ValueError(
            f"model: expected at least two outputs, one for each class, got {outputs}; certify a "
            "network of one output by admm_lip.local.certify_local"
        )
    labels = class_numbers("y", y, outputs, classes).cpu()
    if len(labels) != count:
        raise ValueError(f"y: expected {count} labels, one per input, got {len(labels)}")
    return labels


def _nothing() -> Sequence[Tensor]:
    """The columns of no samples."""
    number, count = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return count, count.bool(), number, count, number, number
