"""VNNLIB: a box of inputs, and linear constraints of outputs that are not to be met in it.

The format is that of the verification competitions (VNN-COMP): SMT-LIB's declarations of real
variables ``X_i`` and ``Y_j``, and assertions that together describe a counterexample.  Read are

    (declare-const NAME Real)    (assert F)
    F = (and F ...) | (or F ...) | (<= T T) | (>= T T)
    T = number | NAME | (+ T ...) | (- T ...) | (* T T), linear in the variables

with constraints of one ``X_i`` (its ends) or of outputs alone.  Numbers are taken exactly, as
fractions.  Refused is what can be read in two ways: an end that is stated twice and differently or
not at all, a product of variables, any other command.  Nothing nests by recursion.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from ..errors import SpecificationError, shown
from .limits import read_limited

_MAX_BYTES, _MAX_DEPTH, _MAX_CASES, _MAX_ENDS = 2**24, 32, 2**12, 2**22
_TOKEN = re.compile(r"\s+|;[^\n]*|[()]|[^\s();]+")
_NUMBER = re.compile(r"-?(?:\d{1,200}(?:\.\d{0,200})?|\.\d{1,200})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,6})", re.ASCII)

Variable = tuple[str, int]
Expression = str | list["Expression"]


@dataclass(frozen=True)
class HalfSpace:
    """``sum_j coefficients[j] Y_j <= bound``.

    Attributes:
        coefficients: of the outputs that it is of, none of them 0.
        bound: its right side.
    """

    coefficients: Mapping[int, Fraction]
    bound: Fraction


@dataclass(frozen=True)
class UnsafeCase:
    """Inputs ``low <= X <= high`` at which no outputs may meet all ``constraints`` together."""

    low: tuple[Fraction, ...]
    high: tuple[Fraction, ...]
    constraints: tuple[HalfSpace, ...]


@dataclass(frozen=True)
class Specification:
    """What a network must not do.

    Attributes:
        inputs: how many there are, in the order of the flattened input.
        outputs: likewise.
        cases: none of which may be met.
    """

    inputs: int
    outputs: int
    cases: tuple[UnsafeCase, ...]


def read_vnnlib(path: str | os.PathLike[str]) -> Specification:
    """Read a VNNLIB file.

    Raises:
        SpecificationError: naming the file, the line, and what was expected.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.vnnlib"
        >>> _ = path.write_text('''
        ... (declare-const X_0 Real) (declare-const Y_0 Real)
        ... (assert (>= X_0 -1)) (assert (<= X_0 0.5))  ; the box
        ... (assert (>= Y_0 2))                         ; unsafe
        ... ''')
        >>> (case,) = read_vnnlib(path).cases
        >>> [float(end) for end in (*case.low, *case.high)], float(case.constraints[0].bound)
        ([-1.0, 0.5], -2.0)
    """
    path = Path(path)
    try:
        text = read_limited(path, _MAX_BYTES).decode("utf-8")
        return parse_vnnlib(text)
    except UnicodeDecodeError:
        raise SpecificationError(f"{path}: expected text in UTF-8") from None
    except SpecificationError as error:
        raise SpecificationError(f"{path}: {error}") from None


def parse_vnnlib(text: str) -> Specification:
    """The same from its text."""
    declared: dict[Variable, None] = {}
    choices: list[_Dnf] = []
    for line, command in _commands(text):
        try:
            match command:
                case ["declare-const", str(name), "Real"]:
                    _declare(name, declared)
                case ["assert", formula]:
                    choices.append(_dnf(formula, declared))
                case _:
                    head = command[0] if command else "()"
                    _refuse("(declare-const NAME Real) or (assert FORMULA)", head)
        except SpecificationError as error:
            raise SpecificationError(f"line {line}: {error}") from None
    sizes = [_size(declared, letter) for letter in "XY"]
    return Specification(sizes[0], sizes[1], _cases(choices, sizes[0]))


def _refuse(expected: str, got: object) -> NoReturn:
    raise SpecificationError(f"expected {expected}, got {shown(got)}")


def _commands(text: str) -> Iterator[tuple[int, list[Expression]]]:
    """Every command with the line that it begins on."""
    open_: list[list[Expression]] = []
    line, first = 1, 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "(":
            first = first if open_ else line
            open_.append([])
            if len(open_) > _MAX_DEPTH:
                raise SpecificationError(f"line {line}: nested deeper than {_MAX_DEPTH}")
        elif token == ")":
            if not open_:
                raise SpecificationError(f"line {line}: a ) without its (")
            done = open_.pop()
            if open_:
                open_[-1].append(done)
            else:
                yield first, done
        elif not token[0].isspace() and token[0] != ";":
            if not open_:
                raise SpecificationError(f"line {line}: expected a command, got {shown(token)}")
            open_[-1].append(token)
        line += token.count("\n")
    if open_:
        raise SpecificationError(f"line {first}: a ( without its )")


def _declare(name: str, declared: dict[Variable, None]) -> None:
    match = _NAME.fullmatch(name)
    if match is None:
        _refuse("a variable named X_0, X_1, ... or Y_0, Y_1, ...", name)
    variable = match[1], int(match[2])
    if variable in declared:
        raise SpecificationError(f"{name} is declared twice")
    declared[variable] = None


def _size(declared: Mapping[Variable, None], letter: str) -> int:
    numbers = {k for name, k in declared if name == letter}
    if not numbers or numbers != set(range(len(numbers))):
        missing = next(k for k in range(len(numbers) + 1) if k not in numbers)
        raise SpecificationError(
            f"{letter}_{missing} is not declared, though others are or must be"
        )
    return len(numbers)


@dataclass(frozen=True)
class _Linear:
    """``sum_v terms[v] v + constant``."""

    terms: Mapping[Variable, Fraction]
    constant: Fraction

    def scaled(self, factor: Fraction) -> _Linear:
        return _Linear({v: factor * c for v, c in self.terms.items()}, factor * self.constant)

    def plus(self, other: _Linear) -> _Linear:
        terms = dict(self.terms)
        for v, c in other.terms.items():
            terms[v] = terms.get(v, Fraction(0)) + c
        return _Linear(terms, self.constant + other.constant)


# A disjunction of conjunctions of ``linear <= 0``.
_Dnf = list[list[_Linear]]


def _dnf(formula: Expression, declared: Mapping[Variable, None]) -> _Dnf:
    """A formula; it nests no deeper than its reader has let it."""
    match formula:
        case ["or", first, *more]:
            found = [case for part in (first, *more) for case in _dnf(part, declared)]
            return _limited(found, len(found))
        case ["and", first, *more]:
            return _conjunction([_dnf(part, declared) for part in (first, *more)])
        case ["<=", left, right]:
            return [[_linear(left, declared).plus(_linear(right, declared).scaled(Fraction(-1)))]]
        case [">=", left, right]:
            return _dnf(["<=", right, left], declared)
    _refuse("(and ...), (or ...), (<= A B) or (>= A B)", formula)


def _conjunction(parts: Sequence[_Dnf]) -> _Dnf:
    count = 1
    for part in parts:
        count *= len(part)
        _limited(part, count)
    return [[one for part in chosen for one in part] for chosen in itertools.product(*parts)]


def _limited(found: _Dnf, count: int) -> _Dnf:
    if count > _MAX_CASES:
        raise SpecificationError(f"more than {_MAX_CASES} cases; split the file")
    return found


def _linear(term: Expression, declared: Mapping[Variable, None]) -> _Linear:
    if isinstance(term, str):
        return _atom(term, declared)
    head, parts = term[0] if term else "", [_linear(part, declared) for part in term[1:]]
    if not isinstance(head, str) or head not in _OPERATIONS or not parts:
        _refuse("a number, a variable, (+ ...), (- ...) or (* A B)", term)
    return _OPERATIONS[head](parts)


def _sum(parts: list[_Linear]) -> _Linear:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


def _difference(parts: list[_Linear]) -> _Linear:
    if len(parts) == 1:
        return parts[0].scaled(Fraction(-1))
    return _sum([parts[0], *(part.scaled(Fraction(-1)) for part in parts[1:])])


def _product(parts: list[_Linear]) -> _Linear:
    if len(parts) != 2:
        _refuse("two factors in (* A B)", len(parts))
    first, second = sorted(parts, key=lambda part: len(part.terms))
    if first.terms:
        raise SpecificationError("a product of variables; constraints must be linear")
    return second.scaled(first.constant)


_OPERATIONS: Mapping[str, Callable[[list[_Linear]], _Linear]] = {
    "+": _sum,
    "-": _difference,
    "*": _product,
}


def _atom(token: str, declared: Mapping[Variable, None]) -> _Linear:
    if _NUMBER.fullmatch(token):
        return _Linear({}, Fraction(token))
    match = _NAME.fullmatch(token)
    if match is None:
        _refuse("a number or a variable", token)
    variable = match[1], int(match[2])
    if variable not in declared:
        raise SpecificationError(f"{token} is not declared before it is used")
    return _Linear({variable: Fraction(1)}, Fraction(0))


def _cases(choices: Sequence[_Dnf], inputs: int) -> tuple[UnsafeCase, ...]:
    """All assertions together; what every case shares is read once."""
    shared = _Read()
    for choice in choices:
        if len(choice) == 1:
            shared.take(choice[0])
    open_ = _conjunction([choice for choice in choices if len(choice) > 1])
    if len(open_) * inputs > _MAX_ENDS:
        raise SpecificationError(f"{len(open_)} cases of {inputs} inputs; split the file")
    return tuple(shared.and_also(case).closed(inputs) for case in open_)


def _said(value: Fraction) -> str:
    try:
        return f"{float(value):.9g}"
    except OverflowError:
        return "a number beyond float64"


class _Read:
    """Ends of the inputs and constraints of the outputs, as they are read."""

    def __init__(self) -> None:
        self.ends: dict[tuple[int, bool], Fraction] = {}  # by input, and whether it is the upper
        self.constraints: list[HalfSpace] = []

    def and_also(self, linears: Sequence[_Linear]) -> _Read:
        """These and more."""
        read = _Read()
        read.ends, read.constraints = dict(self.ends), list(self.constraints)
        read.take(linears)
        return read

    def take(self, linears: Sequence[_Linear]) -> None:
        """Each ``linear <= 0`` as an end or a constraint."""
        for linear in linears:
            terms = {v: c for v, c in linear.terms.items() if c}
            if not terms:
                raise SpecificationError("a constraint without variables")
            if all(letter == "Y" for letter, _ in terms):
                own = {k: c for (_, k), c in terms.items()}
                self.constraints.append(HalfSpace(own, -linear.constant))
            elif len(terms) == 1:
                (((_, k), factor),) = terms.items()
                self._end(k, factor > 0, -linear.constant / factor)
            else:
                names = ", ".join(f"{letter}_{k}" for letter, k in sorted(terms)[:3])
                raise SpecificationError(
                    f"a constraint of {names} together; expected a box of inputs, and constraints "
                    "of outputs alone"
                )

    def _end(self, k: int, upper: bool, value: Fraction) -> None:
        held = self.ends.setdefault((k, upper), value)
        if held != value:
            side = "upper" if upper else "lower"
            raise SpecificationError(
                f"X_{k}: two {side} ends, {_said(held)} and {_said(value)}; state one"
            )

    def closed(self, inputs: int) -> UnsafeCase:
        """All of it, once nothing is missing."""
        sides = []
        for upper, side in ((False, "lower"), (True, "upper")):
            ends = [self.ends.get((k, upper)) for k in range(inputs)]
            if None in ends:
                raise SpecificationError(f"X_{ends.index(None)}: no {side} end is stated")
            sides.append(tuple(end for end in ends if end is not None))
        for k, (low, high) in enumerate(zip(*sides, strict=True)):
            if low > high:
                raise SpecificationError(
                    f"X_{k}: its lower end {_said(low)} is above its upper {_said(high)}"
                )
        if not self.constraints:
            raise SpecificationError("no constraint of the outputs: every input would be unsafe")
        return UnsafeCase(sides[0], sides[1], tuple(self.constraints))
