"""Specifications on boxes: proven, refuted by an input, or left open.

A case of unsafe outputs ``A Y <= b`` is out of reach on a box where for one of its rows
``min a Y > b``.  The rows of all cases of a box are the outputs of one more affine layer; linear
bounds prove what they can, and boxes that are left are halved, all in the same feature, the one
whose side moves the first layer most (S. Wang et al., USENIX Security 2018, split likewise).  An
attack looks for a counterexample; what it finds counts once its outputs are proven unsafe, too.
Numbers of the specification are fractions, and every comparison with them is rounded to the safe
side.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpecificationError, UnsupportedModule
from ..foreign.open import network_of
from ..foreign.vnnlib import HalfSpace, Specification, UnsafeCase, read_vnnlib
from ..networks.built import build_module
from ..networks.forward import forward
from ..networks.layers import Array, Shape
from ..networks.network import LayerSpec, Network
from ..progress import Work, working
from ..shown import Fact, Shown, number, word
from .boxes import lower_bounds
from .curved_layers import curved_layers
from .layers import Layer

HOLDS, VIOLATED, UNKNOWN = "holds", "violated", "unknown"
_EXACT, _MOST_ROWS = 2**53, 2**12
# Starts and steps of the first attack, and of those from boxes that are left.
_STARTS, _STEPS = 64, 40
_STARTS_AGAIN, _STEPS_AGAIN = 16, 8
Boxes = tuple[Tensor, Tensor]


@dataclass(frozen=True, repr=False)
class SpecificationResult(Shown):
    """What is known of a specification.

    Attributes:
        verdict: ``"holds"``: no input of the boxes has unsafe outputs, proven through rounding;
            ``"violated"``: one has, proven likewise; ``"unknown"``: neither within the limits.
        witness: an input with unsafe outputs, flattened, or ``None``.  Where an end is no float64
            and the box holds none beside it, the nearest one.
        outputs: of the network there, by float64, or ``None``.
        boxes: how many were bounded.
        seconds: on the clock.
    """

    verdict: str
    witness: tuple[float, ...] | None
    outputs: tuple[float, ...] | None
    boxes: int
    seconds: float

    def title(self) -> str:
        """What this is."""
        return "specification"

    def facts(self) -> tuple[Fact, ...]:
        """The verdict, and what it took."""
        said = {
            HOLDS: "holds (proven)",
            VIOLATED: "violated, with a witness input",
            UNKNOWN: "unknown: neither proven nor refuted within the limits",
        }
        found = [Fact("verdict", "specification", self.verdict, said[self.verdict])]
        if self.witness is not None and self.outputs is not None:
            found.append(word("witness", "witness input", list(self.witness)))
            found.append(word("outputs", "its outputs", list(self.outputs)))
        return (
            *found,
            word("boxes", "boxes bounded", self.boxes),
            number("seconds", "time", self.seconds, " s"),
        )


def check_specification(
    model: nn.Module | Network,
    specification: Specification | str | os.PathLike[str],
    *,
    seconds: float = 60.0,
    boxes: int = 2**16,
    input_shape: Shape | None = None,
    progress: bool = False,
) -> SpecificationResult:
    """Prove or refute that no input of a box has unsafe outputs.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.networks.network.Network`.
        specification: or the path of a VNNLIB file (:func:`~admm_lip.foreign.read_vnnlib`).
        seconds: after which nothing more is begun.
        boxes: most that are bounded, halves counted.
        input_shape: in front of convolutions.
        progress: whether to say how far it is, after two seconds.

    Raises:
        SpecificationError: for a file that is refused, numbers of inputs or outputs that are not
            the network's, or coefficients that no float64 holds.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from admm_lip.local import check_specification
        >>> path = Path(tempfile.mkdtemp()) / "safe.vnnlib"
        >>> _ = path.write_text('''
        ... (declare-const X_0 Real) (declare-const Y_0 Real)
        ... (assert (>= X_0 -1)) (assert (<= X_0 0.5))
        ... (assert (>= Y_0 2))''')
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
        >>> for p, v in zip(model.parameters(), ([[3.0]], [0.0])):
        ...     p.data = torch.tensor(v)
        >>> check_specification(model, path).verdict     # relu(3 x) is at most 1.5
        'holds'
    """
    begun = time.monotonic()
    network = network_of(model, input_shape)
    given = specification
    specification = given if isinstance(given, Specification) else read_vnnlib(given)
    _check_sizes(network, specification)
    budget, bounded = _Budget(begun + seconds, boxes), 0
    verdicts: list[str] = []
    with working("check the specification", show=progress) as work:
        for cases in _by_box(specification):
            question = _Question.of(network, cases)
            verdict, witness, count = _decided(question, budget, work)
            bounded += count
            if witness is not None:
                taken = time.monotonic() - begun
                found = tuple(witness.tolist()), tuple(question.outputs(witness[None])[0].tolist())
                return SpecificationResult(verdict, *found, bounded, taken)
            verdicts.append(verdict)
            budget = _Budget(budget.deadline, budget.boxes - count)
    whole = HOLDS if all(v == HOLDS for v in verdicts) else UNKNOWN
    return SpecificationResult(whole, None, None, bounded, time.monotonic() - begun)


def _check_sizes(network: Network, specification: Specification) -> None:
    outputs = math.prod(network.shapes()[network.output])
    for what, own, stated in (
        ("inputs", network.size_in, specification.inputs),
        ("outputs", outputs, specification.outputs),
    ):
        if own != stated:
            raise SpecificationError(
                f"specification: expected the network's {own} {what}, got {stated}"
            )


def _by_box(specification: Specification) -> list[list[UnsafeCase]]:
    """Cases of the same box together."""
    found: dict[tuple[tuple[Fraction, ...], ...], list[UnsafeCase]] = {}
    for case in specification.cases:
        found.setdefault((case.low, case.high), []).append(case)
    return list(found.values())


@dataclass(frozen=True)
class _Budget:
    deadline: float
    boxes: int

    def over(self, bounded: int) -> bool:
        """Whether no more may be bounded."""
        return bounded > self.boxes or time.monotonic() >= self.deadline


@dataclass(frozen=True, eq=False)
class _Question:
    """All cases of one box.

    Attributes:
        network: the network.
        layers: it, and behind it the rows of all cases, as bounds take them.
        matrix: these rows, whole numbers, ``(m, outputs)``.
        bounds: what they may not all be below.
        members: which rows make each case, ``(cases, m)``, boolean.
        box: its ends.
    """

    network: Network
    layers: Sequence[Layer]
    matrix: Tensor
    bounds: tuple[Fraction, ...]
    members: Tensor
    box: tuple[tuple[Fraction, ...], tuple[Fraction, ...]]

    @staticmethod
    def of(network: Network, cases: Sequence[UnsafeCase]) -> _Question:
        """The rows of the cases behind the network."""
        outputs = math.prod(network.shapes()[network.output])
        spaces = [space for case in cases for space in case.constraints]
        if len(spaces) > _MOST_ROWS:
            raise SpecificationError(
                f"specification: {len(spaces)} constraints on one box, above the limit of "
                f"{_MOST_ROWS}; split it"
            )
        rows, bounds = zip(*(_whole(space, outputs) for space in spaces), strict=True)
        owner = torch.tensor([k for k, case in enumerate(cases) for _ in case.constraints])
        matrix = np.array(rows, dtype=np.float64)
        layers = curved_layers(_followed(network, matrix))
        members = owner == torch.arange(len(cases))[:, None]
        box = cases[0].low, cases[0].high
        return _Question(network, layers, torch.from_numpy(matrix), bounds, members, box)

    @cached_property
    def outer(self) -> Boxes:
        """Float64 ends around the box, ``(1, n)``."""
        return _rounded(self.box[0], down=True)[None], _rounded(self.box[1], down=False)[None]

    @cached_property
    def inner(self) -> Boxes:
        """Float64 ends inside the box, ``(n,)``, crossed where it holds no float64."""
        return _rounded(self.box[0], down=False), _rounded(self.box[1], down=True)

    @cached_property
    def above(self) -> Tensor:
        """What a row must exceed to be out of reach."""
        return _rounded(self.bounds, down=False)

    @cached_property
    def below(self) -> Tensor:
        """What a row must not exceed to be met."""
        return _rounded(self.bounds, down=True)

    def proven(self, low: Tensor, high: Tensor) -> Tensor:
        """On which boxes no case can be met, ``(batch,)``."""
        eye = torch.eye(len(self.bounds), dtype=torch.float64)
        out = lower_bounds(self.layers, low, high, eye) > self.above
        return (out[:, None] & self.members).any(dim=2).all(dim=1)

    def met(self, x: Tensor) -> bool:
        """Whether the outputs at x, ``(n,)``, are proven to meet a case."""
        low, high = self.inner
        between = low <= high
        low, high = (torch.where(between, x, end[0])[None] for end in self.outer)
        minus = -torch.eye(len(self.bounds), dtype=torch.float64)
        most = -lower_bounds(self.layers, low, high, minus)
        met = (most[0] <= self.below) | ~self.members
        return bool(met.all(dim=1).any())

    @cached_property
    def module(self) -> nn.Module | None:
        """The network as torch differentiates it, ``None`` where torch has no such layer."""
        try:
            return build_module(self.network).double().requires_grad_(False)
        except UnsupportedModule:
            return None

    def outputs(self, x: Tensor) -> Tensor:
        """Of the network, float64, at inputs ``(batch, n)``; with gradients of a module."""
        if self.module is None:
            return torch.from_numpy(forward(self.network, x.detach().numpy())).flatten(1)
        found: Tensor = self.module(x.reshape(len(x), *(self.network.input_shape or ())))
        return found.flatten(1)


def _whole(space: HalfSpace, outputs: int) -> tuple[list[int], Fraction]:
    """A half-space with whole coefficients, which float64 holds."""
    common = math.lcm(*(c.denominator for c in space.coefficients.values()))
    row = [int(space.coefficients.get(j, Fraction(0)) * common) for j in range(outputs)]
    if max(map(abs, row)) > _EXACT:
        raise SpecificationError(
            "specification: coefficients of more digits than float64 holds; round them"
        )
    return row, space.bound * common


def _followed(network: Network, matrix: Array) -> Network:
    """The network, and the matrix behind it."""
    names, shape = {spec.name for spec in network.layers}, network.shapes()[network.output]
    flat, own = (
        next(name for k in range(len(names) + 1) if (name := f"{word}{k}") not in names)
        for word in ("flat", "rows")
    )
    more = (
        LayerSpec("flatten", flat, {"size": math.prod(shape)}),
        LayerSpec("linear", own, {}),
    )
    arrays = {**network.arrays, f"{own}.weight": matrix}
    return Network((*network.layers, *more), arrays, network.input_shape)


def _rounded(values: Sequence[Fraction], *, down: bool) -> Tensor:
    """The nearest float64 on one side of each.

    Raises:
        SpecificationError: for a number beyond float64.
    """
    found = []
    for value in values:
        try:
            near = float(value)
        except OverflowError:
            raise SpecificationError("specification: a number beyond float64") from None
        if near != value and (near > value) == down:
            near = math.nextafter(near, -math.inf if down else math.inf)
        found.append(near)
    return torch.tensor(found, dtype=torch.float64)


def _decided(question: _Question, budget: _Budget, work: Work) -> tuple[str, Tensor | None, int]:
    """Verdict, witness and boxes bounded: halve what is not proven, attack what is left."""
    (low, high), bounded = question.outer, 0
    columns = question.layers[0].operator.column_lengths().flatten()
    starts = _spread(low[0], high[0], _STARTS)
    while True:
        bounded += len(low)
        left = ~question.proven(low, high)
        low, high = low[left], high[left]
        work.note = f"{bounded} boxes bounded, {len(low)} left"
        if not len(low):
            return HOLDS, None, bounded
        middles = 0.5 * low[:_STARTS_AGAIN] + 0.5 * high[:_STARTS_AGAIN]
        steps = _STEPS if len(starts) else _STEPS_AGAIN
        witness = _attacked(question, torch.cat([starts, middles]), steps)
        if witness is not None:
            return VIOLATED, witness, bounded
        starts = low[:0]
        k = int(((high - low).amax(dim=0) * columns).argmax())
        middle = 0.5 * low[:, k] + 0.5 * high[:, k]
        thin = bool(((middle <= low[:, k]) | (middle >= high[:, k])).any())
        if thin or budget.over(bounded + 2 * len(low)):
            return UNKNOWN, None, bounded
        lower, upper = high.clone(), low.clone()
        lower[:, k] = upper[:, k] = middle
        low, high = torch.cat([low, upper]), torch.cat([lower, high])


def _spread(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Points of a box: its middle, corners and others, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(count, len(low), generator=generator, dtype=torch.float64)
    share[: count // 2] = share[: count // 2].round()
    share[0] = 0.5
    return low + share * (high - low)


def _attacked(question: _Question, points: Tensor, steps: int) -> Tensor | None:
    """An input whose outputs meet a case: one of the points, or on the way down from them."""
    # Ends inside the box where it holds any float64, else around it.
    between = question.inner[0] <= question.inner[1]
    ends = zip(question.inner, question.outer, strict=True)
    low, high = (torch.where(between, inner, outer[0]) for inner, outer in ends)
    aim, x = torch.arange(len(points)) % len(question.members), points
    for step in range(1 if question.module is None else steps + 1):
        x = torch.maximum(torch.minimum(x, high), low).detach().requires_grad_(True)
        over = question.outputs(x) @ question.matrix.T - question.below
        over = over / (1.0 + question.below.abs())
        worst = torch.where(question.members, over[:, None], -math.inf).amax(dim=2)
        best = worst.detach().amin(dim=1)
        if float(best.min()) <= 0.0 and question.met(x[best.argmin()].detach()):
            return x[best.argmin()].detach()
        if question.module is not None:
            (gradient,) = torch.autograd.grad(worst[torch.arange(len(x)), aim].sum(), x)
            share = 0.5 * (1.0 - step / (steps + 1)) ** 2
            x = x - gradient.sign() * (high - low) * share
    return None
