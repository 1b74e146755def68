"""What the package knows of an activation: the fields of one row of ``activation_table.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..float64 import U
from .scalar_math import Math

Options = Mapping[str, Any]
# What takes a namespace of functions, the options and a value, arrays or tensors alike.
Formula = Callable[[Math, Options, Any], Any]

# A library function is evaluated to so many units in the last place of what it works on.
LIBRARY = 32.0


class SlopeRange(NamedTuple):
    """Least and greatest difference quotient of a scalar activation."""

    alpha: float
    beta: float


class Knot(NamedTuple):
    """Where ``phi'`` jumps or turns: the place, the range of ``phi'`` there, the jump's sign.

    The place is a number, or one per neuron.
    """

    at: Any
    low: float
    high: float
    jump: int


@dataclass(frozen=True)
class Curve:
    """What is known of an activation on an interval.

    Attributes:
        derivative: ``phi'``, at a jump either side's.
        knots: from the options, in ascending order.
        signs: from the options, the sign of ``phi''`` left of, between and right of the knots.
        peaked: from the options, whether ``phi'`` rises to a single peak and falls from it.
        period: of ``phi'``, whose knots then stand within one period on either side of 0.
    """

    derivative: Formula
    knots: Callable[[Options], tuple[Knot, ...]]
    signs: Callable[[Options], tuple[int, ...]]
    peaked: Callable[[Options], bool] = lambda options: False
    period: float | None = None


@dataclass(frozen=True)
class Spelling:
    """A name under which torch, its exported programs or ONNX know an activation.

    Attributes:
        module: class of ``torch.nn`` whose attributes are the options.
        calls: functions ``"torch.relu"``, ``"F.relu"`` and methods ``".relu"``, whose parameters
            are the options in their order.
        aten: operators, likewise.
        onnx: operator.
        onnx_options: from an option to its attribute, or input, and its default there.
        fixed: options that this spelling does not leave open.
        needs: parameters of the ATen operators that may have one value only.
    """

    module: str = ""
    calls: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    onnx: str = ""
    onnx_options: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    Attributes:
        slopes: from the options to the slope range.
        value: ``phi``.
        defaults: the options and their default values; every other option is refused.
        curve: what is known on intervals; ``None``: no local bounds.
        spellings: its names elsewhere; the first is the one that is written.
        problem: from the options to what is wrong with them, or ``None``.
        arrays: names of the arrays that the layer holds; ``value`` finds them among the options.
        array_shapes: from the shape of a sample to those that an array may have, and in words.
        per_neuron: from these and the shape of a sample to what ``value`` takes, per neuron.
        parts: from what ``per_neuron`` gives to the scalar activations of neighbouring neurons:
            kind, options and count of each.
        roundings: how many evaluating ``phi`` takes, where they are all; then ``phi'`` takes none.
        condition: from the options, how much larger than usual the error of evaluating may be.
        jump: how far torch's own evaluation is from ``phi``, beside its rounding.
        known: whether ``phi`` is; else its slopes alone are, by a user's promise.
    """

    slopes: Callable[[Options], SlopeRange]
    value: Formula
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    curve: Curve | None = None
    spellings: tuple[Spelling, ...] = ()
    problem: Callable[[Options], str | None] = lambda options: None
    arrays: tuple[str, ...] = ()
    array_shapes: Callable[[tuple[int, ...]], tuple[list[tuple[int, ...]], str]] = lambda shape: (
        [shape],
        "one threshold per neuron",
    )
    per_neuron: Callable[[Options, tuple[int, ...]], dict[str, Any]] = lambda arrays, shape: {
        key: array.reshape(shape) for key, array in arrays.items()
    }
    parts: Callable[[Options], list[tuple[str, Options, int]]] | None = None
    roundings: int | None = None
    condition: Callable[[Options], float] = lambda options: 1.0
    jump: Callable[[Options], float] = lambda options: 0.0
    known: bool = True

    def evaluation_error(self, options: Options, z: Any, value: Any, unit: float = U) -> Any:
        """Bound on the error of evaluating ``phi`` at ``z`` exactly given, arrays or tensors."""
        if self.roundings is not None:
            return 2.0 * unit * self.roundings * abs(value)
        return LIBRARY * unit * self.condition(options) * (1.0 + abs(z) + abs(value))
