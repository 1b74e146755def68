"""Functions of one number as polynomials: what two ways of writing one function have in common.

An expression is a sum of products of x and of functions of expressions, with exact coefficients.
Multiplied out, ``0.5 x (1 + erf(x / sqrt 2))`` and ``x * (erf(0.7071 x) * 0.5 + 0.5)`` are the same
sum.  Only identities that hold for all real numbers are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .activation_formulas import SOFTPLUS_THRESHOLD
from .scalar_math import Math

# x, or a function's name with its argument and limits.
Atom = tuple[Any, ...]
Monomial = tuple[tuple[Atom, int], ...]
Number = int | float | Fraction

X: Atom = ("x",)
# Functions of exporters multiply out to less.
_MAX_TERMS = 12
_MAX_BITS = 8192


class NotWritten(ArithmeticError):
    """What no expression here can state."""


@dataclass(frozen=True)
class Expression:
    """A sum of monomials with coefficients other than 0, in a fixed order."""

    terms: tuple[tuple[Monomial, Fraction], ...]

    @staticmethod
    def of(terms: Mapping[Monomial, Fraction]) -> Expression:
        """Without what cancelled, in order."""
        kept = {m: c for m, c in terms.items() if c}
        long = any(
            max(c.numerator.bit_length(), c.denominator.bit_length()) > _MAX_BITS
            for c in kept.values()
        )
        if len(kept) > _MAX_TERMS or long:
            raise NotWritten
        return Expression(tuple(sorted(kept.items(), key=lambda term: _shape(term[0]))))

    @staticmethod
    def number(value: Number) -> Expression:
        """A constant."""
        if isinstance(value, float) and not math.isfinite(value):
            raise NotWritten
        return Expression.of({(): Fraction(value)})

    @property
    def constant(self) -> Fraction | None:
        """The number that it is, if it is one."""
        if not self.terms:
            return Fraction(0)
        return self.terms[0][1] if self.terms[0][0] == () and len(self.terms) == 1 else None

    def __add__(self, other: Any) -> Expression:
        total = dict(self.terms)
        for monomial, c in _expression(other).terms:
            total[monomial] = total.get(monomial, Fraction(0)) + c
        return Expression.of(total)

    def __mul__(self, other: Any) -> Expression:
        total: dict[Monomial, Fraction] = {}
        for left, a in self.terms:
            for right, b in _expression(other).terms:
                product = _product(left, right)
                total[product] = total.get(product, Fraction(0)) + a * b
        return Expression.of(total)

    def __pow__(self, power: int) -> Expression:
        if type(power) is not int or not 1 <= power <= 3:
            raise NotWritten
        return self if power == 1 else self * self ** (power - 1)

    def __neg__(self) -> Expression:
        return self * -1

    def __sub__(self, other: Any) -> Expression:
        return self + -_expression(other)

    def __rsub__(self, other: Any) -> Expression:
        return _expression(other) - self

    def __truediv__(self, other: Any) -> Expression:
        return self * _reciprocal(_expression(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return _expression(other) * _reciprocal(self)

    __radd__, __rmul__ = __add__, __mul__

    def inner(self) -> list[Fraction]:
        """The numbers within its functions, in the order of its shape."""
        found: list[Fraction] = []
        for monomial, _ in self.terms:
            for part in (part for atom, _ in monomial for part in atom[1:]):
                if isinstance(part, Expression):
                    found += [*(c for _, c in part.terms), *part.inner()]
                else:
                    found.append(part)
        return found

    def rate(self) -> Fraction | None:
        """The factor of x in the innermost function."""
        for monomial, _ in self.terms:
            for atom, _ in monomial:
                if len(atom) > 1:
                    inner: Fraction | None = atom[1].rate()
                    return inner or dict(atom[1].terms).get(((X, 1),))
        return None

    @property
    def shape(self) -> str:
        """What it is but for its numbers."""
        return "+".join(_shape(monomial) for monomial, _ in self.terms)


def _expression(value: Any) -> Expression:
    return value if isinstance(value, Expression) else Expression.number(value)


def _shape(monomial: Monomial) -> str:
    return "*".join(
        f"{atom[0]}({','.join(p.shape if isinstance(p, Expression) else '#' for p in atom[1:])})"
        f"^{power}"
        for atom, power in monomial
    )


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda factor: _shape((factor,))))


def _atom(name: str, *parts: Any) -> Expression:
    return Expression.of({(((name, *parts), 1),): Fraction(1)})


def _function(name: str) -> Callable[[Any], Expression]:
    def apply(value: Any) -> Expression:
        argument = _expression(value)
        if argument.constant is not None:
            raise NotWritten
        return _atom(name, argument)

    return apply


def _signed(name: str, parity: int) -> Callable[[Any], Expression]:
    """``f(-e) = parity f(e)``: the first coefficient is made positive."""
    plain = _function(name)

    def apply(value: Any) -> Expression:
        argument = _expression(value)
        falls = bool(argument.terms) and argument.terms[-1][1] < 0
        return plain(-argument) * parity if falls else plain(argument)

    return apply


def _only(value: Expression, name: str) -> Atom | None:
    """Name, argument and limits, where an expression is one function of this name."""
    if len(value.terms) == 1:
        monomial, c = value.terms[0]
        if c == 1 and len(monomial) == 1 and monomial[0][0][0] == name and monomial[0][1] == 1:
            return monomial[0][0]
    return None


def _reciprocal(value: Expression) -> Expression:
    """``1 / (1 + exp(-e))`` is the logistic function."""
    if value.constant is not None:
        if value.constant == 0:
            raise NotWritten
        return Expression.number(1 / value.constant)
    inner = _only(value - 1, "exp")
    if inner is not None:
        return _expression(EXPRESSIONS.sigmoid(-inner[1]))
    scale = value.terms[0][1]
    return _atom("reciprocal", value * (1 / scale)) * (1 / scale)


def logarithm(value: Any) -> Expression:
    """``log(1 + exp(e))`` is softplus, and so is ``-log(1 / (1 + exp(e)))``."""
    argument = _expression(value)
    inner, logistic = _only(argument - 1, "exp"), _only(argument, "sigmoid")
    if inner is not None:
        return _expression(EXPRESSIONS.softplus(inner[1]))
    if logistic is not None:
        return _expression(-EXPRESSIONS.softplus(-logistic[1]))
    raise NotWritten


def _clip(value: Any, low: Number, high: Number) -> Expression:
    """Scaled so that the first coefficient of what is clipped is 1 or -1."""
    argument = _expression(value)
    if argument.constant is not None:
        raise NotWritten
    scale = abs(argument.terms[-1][1])
    ends = (v if math.isinf(v) else Fraction(v) / scale for v in (low, high))
    return _atom("clip", argument * (1 / scale), *ends) * scale


def greater(value: Any, limit: Any) -> Expression:
    """``value > limit``, a condition."""
    number = _expression(limit).constant
    if number is None:
        raise NotWritten
    return _atom("greater", _expression(value), number)


def above_threshold(condition: Any, line: Any, smooth: Any) -> Expression:
    """``b x > t ? x : log(1 + exp(b x)) / b``, as torch writes softplus: read as the smooth one.

    From the threshold on the two differ by at most ``exp(-t) / |b|``, which the row's ``jump``
    states; a threshold below torch's own is refused, as it is of the module.
    """
    found, whole = _only(_expression(condition), "greater"), _expression(smooth)
    if found is None or not whole.terms or found[2] < SOFTPLUS_THRESHOLD:
        raise NotWritten
    rate = whole.terms[0][1]
    if whole != EXPRESSIONS.softplus(found[1]) * rate or line != found[1] * rate:
        raise NotWritten
    return whole


def _not_written(*given: Any) -> Any:
    raise NotWritten


_ERF = _signed("erf", -1)
EXPRESSIONS = Math(
    exp=_function("exp"),
    expm1=lambda x: _function("exp")(x) - 1,
    tanh=_signed("tanh", -1),
    erfc=lambda x: 1 - _ERF(x),
    sin=_signed("sin", -1),
    cos=_signed("cos", 1),
    abs=_signed("abs", 1),
    sigmoid=_function("sigmoid"),
    softplus=_function("softplus"),
    clip=_clip,
    pieces=_not_written,
)
VARIABLE = Expression.of({((X, 1),): Fraction(1)})


def erf(value: Any) -> Expression:
    """The error function."""
    return _ERF(value)
