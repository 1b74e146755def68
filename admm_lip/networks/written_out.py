"""Activations that somebody wrote out as several steps, found again.

Every step of a graph that works entry by entry with plain numbers is followed as an expression of
the values before it.  Where such an expression is ``c phi(b x)`` for a row of the table, whose
formula is multiplied out by the same algebra (``expressions.py``), the steps are that activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from .activations import ACTIVATIONS, Options
from .expressions import (
    EXPRESSIONS,
    VARIABLE,
    Expression,
    NotWritten,
    above_threshold,
    erf,
    greater,
    logarithm,
)

# What exporters write out.
_ROWS = ("sigmoid", "softplus", "softsign", "tanhshrink", "hardswish", "gelu", "silu", "mish")
# The constants within GELU are rounded to float32.  Its range of slopes holds for these as well: of
# its tanh form up to 2^-22 (its row), and ``x Phi(b x)`` has the slopes of ``x Phi(x)``.
_TOLERANCES = {"gelu": Fraction(1, 2**23)}
# Of the values before a step, so many are tried as the activation's input.
_ROOTS = 8

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: _power(a, b),
    "neg": lambda a: -a,
    "reciprocal": lambda a: 1 / a,
    "square": lambda a: a * a,
    "same": lambda a: a,
    "exp": EXPRESSIONS.exp,
    "log": logarithm,
    "erf": erf,
    "greater": greater,
    "where": above_threshold,
    "tanh": EXPRESSIONS.tanh,
    "abs": EXPRESSIONS.abs,
    "sigmoid": EXPRESSIONS.sigmoid,
    "softplus": EXPRESSIONS.softplus,
    "relu": lambda a: EXPRESSIONS.clip(a, 0.0, float("inf")),
    "relu6": lambda a: EXPRESSIONS.clip(a, 0.0, 6.0),
    "clip": EXPRESSIONS.clip,
    "hardsigmoid": lambda a, alpha, beta: EXPRESSIONS.clip(a * _sixth(alpha) + beta, 0.0, 1.0),
}


def _power(a: Expression, b: Fraction) -> Expression:
    if b != int(b):
        raise NotWritten
    return a ** int(b)


def _sixth(alpha: float) -> Fraction:
    """1/6 for what float32 makes of it: ``x clip(a x + 1/2, 0, 1)`` has one slope range for all a.

    No other row holds it.
    """
    return Fraction(1, 6) if abs(6.0 * alpha - 1.0) <= 2.0**-23 else Fraction(alpha)


@dataclass(frozen=True)
class Scalar:
    """A step of a graph: its name, its function (``None`` for any other), names and numbers."""

    name: str
    function: str | None
    operands: tuple[str | Fraction | float, ...] = ()

    def values(self) -> list[str]:
        """The names among the operands."""
        return [value for value in self.operands if isinstance(value, str)]


@dataclass(frozen=True)
class Found:
    """``after phi(before x)``: the steps from ``root`` to ``name`` are this activation.

    Attributes:
        name: of the last step.
        root: of the value that it works on.
        kind: row of the table.
        options: of the activation.
        before: factor of the value; what is not 1 is a layer of its own.
        after: factor of the activation.
    """

    name: str
    root: str
    kind: str
    options: Options
    before: Fraction
    after: Fraction


def found_in(steps: Iterable[Scalar], native: frozenset[str]) -> list[Found]:
    """The activations that are written out, the longest first where one is part of another.

    Args:
        steps: in an order in which they can be evaluated.
        native: functions that are layers as they stand, of one value.
    """
    order = list(steps)
    known = _expressions(order)
    by_name = {step.name: step for step in order}
    found, covered = [], set[str]()
    for step in reversed(order):
        if step.function is None or step.name in covered:
            continue
        for root, expression in known[step.name].items():
            inner = set(_between(by_name, step.name, root))
            if len(inner) <= 1 and all(_is_layer(by_name[name], native) for name in inner):
                continue
            match = _recognised(expression)
            if match is None:
                continue
            try:
                _ = factors(match[2]), factors(match[3])
            except NotWritten:
                continue
            if not _needed([by_name[name] for name in inner], native, match):
                continue
            found.append(Found(step.name, root, *match))
            covered |= inner
            break
    return found


def _expressions(order: Sequence[Scalar]) -> dict[str, dict[str, Expression]]:
    """Of every step, what it is as a function of itself and of values before, the nearest first."""
    known: dict[str, dict[str, Expression]] = {}
    for step in order:
        own = {step.name: VARIABLE}
        values = step.values()
        for name in values:  # the input is no step
            known.setdefault(name, {name: VARIABLE})
        if step.function is not None and values:
            roots = [r for r in known[values[0]] if all(r in known[name] for name in values)]
            for root in roots[: _ROOTS - 1]:
                given = [known[v][root] if isinstance(v, str) else v for v in step.operands]
                try:
                    own[root] = FUNCTIONS[step.function](*given)
                except (NotWritten, OverflowError):
                    continue
        known[step.name] = own
    return known


def _between(by_name: Mapping[str, Scalar], name: str, root: str) -> Iterator[str]:
    """The steps from ``root``, without it, to ``name``."""
    waiting, seen = [name], {root}
    while waiting:
        here = waiting.pop()
        if here not in seen and here in by_name:
            seen.add(here)
            waiting += by_name[here].values()
            yield here


def _is_layer(step: Scalar, native: frozenset[str]) -> bool:
    return step.function in native and len(step.values()) <= 1


def _needed(inner: Sequence[Scalar], native: frozenset[str], match: tuple[Any, ...]) -> bool:
    """Whether the steps are no layers one by one, or more of them than the one activation."""
    _, _, before, after = match
    layers = all(_is_layer(step, native) for step in inner)
    return not layers or (len(inner) > 1 and before == after == 1)


def _recognised(expression: Expression) -> tuple[str, Options, Fraction, Fraction] | None:
    """Kind, options, and the factors before and after."""
    rate = expression.rate()
    if rate is None:
        return None  # affine, or a power
    for kind, options, form in _rows():
        tolerance = _TOLERANCES.get(kind, Fraction(0))
        before = rate / (form.rate() or Fraction(1))
        before = Fraction(1) if abs(before - 1) <= tolerance else before
        try:
            scaled = ACTIVATIONS[kind].value(EXPRESSIONS, options, VARIABLE * before)
        except (NotWritten, OverflowError):
            continue
        after = _ratio(expression, scaled, tolerance)
        if after is None:
            continue
        if kind == "softplus" and after * before == 1 and is_float(before):
            return kind, {**options, "beta": float(before)}, Fraction(1), Fraction(1)
        return kind, options, before, after
    return None


def _ratio(one: Expression, other: Expression, tolerance: Fraction) -> Fraction | None:
    """``one / other`` where that is one number; numbers within functions are compared roughly."""
    if one.shape != other.shape:
        return None
    ratios = {a / b for (_, a), (_, b) in zip(one.terms, other.terms, strict=True)}
    pairs = zip(one.inner(), other.inner(), strict=True)
    alike = all(a == b or abs(a - b) <= tolerance * abs(b) for a, b in pairs)
    return ratios.pop() if alike and len(ratios) == 1 else None


@cache
def _rows() -> tuple[tuple[str, Options, Expression], ...]:
    """The rows as expressions; of GELU both forms."""
    variants = {kind: [dict(ACTIVATIONS[kind].defaults)] for kind in _ROWS}
    variants["gelu"] = [{"approximate": form} for form in ("none", "tanh")]
    return tuple(
        (kind, options, ACTIVATIONS[kind].value(EXPRESSIONS, options, VARIABLE))
        for kind, given in variants.items()
        for options in given
    )


def factors(number: Fraction) -> list[tuple[str, float]]:
    """A factor as steps of arithmetic with a float: nothing, ``mul`` or ``div``.

    Raises:
        NotWritten: where no one float states it.
    """
    for operation, value in (("mul", number), ("div", 1 / number)):
        if is_float(value):
            return [] if value == 1 else [(operation, float(value))]
    raise NotWritten


def is_float(number: Fraction) -> bool:
    """Whether a float is exactly this number."""
    try:
        return float(number) == number
    except OverflowError:
        return False
