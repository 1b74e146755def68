"""What is asked of a function: a Lipschitz constant to stay below or a price on it, a direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .settings import BOUND, check_settings

if TYPE_CHECKING:
    from .units import Units

# Of inputs; outputs are measured in l2.
NORMS = ("l2", "linf")


@dataclass(frozen=True)
class Lipschitz:
    """``||f(x) - f(y)||_2 <= L ||x - y||`` with ``L <= bound``, or with ``mu L^2`` minimised.

    Args:
        bound: the constant to stay below, from 1e-30 to 1e30: beyond, its square leaves the
            numbers in which it could be proven.
        mu: the price of ``L^2`` beside the loss, in the same range.
        norm: of inputs, ``"l2"`` or ``"linf"``; outputs are measured in l2.
        units: of a user's rows, where the network takes and gives standardised numbers: L is then
            the raw function's (:class:`admm_lip.Units`).

    Raises:
        ValueError: unless exactly one of ``bound`` and ``mu`` is given, or for a number or a norm
            that nothing can be proven in.

    Example:
        >>> from admm_lip import Lipschitz
        >>> Lipschitz(2.0)
        Lipschitz(bound=2.0, mu=None, norm='l2', units=None)
        >>> Lipschitz(2.0, mu=0.1)
        Traceback (most recent call last):
            ...
        ValueError: bound, mu: expected exactly one of the two, got bound=2.0 and mu=0.1
    """

    bound: float | None = None
    mu: float | None = None
    norm: str = "l2"
    units: Units | None = None

    def __post_init__(self) -> None:
        if (self.bound is None) == (self.mu is None):
            raise ValueError(
                f"bound, mu: expected exactly one of the two, got bound={self.bound!r} and "
                f"mu={self.mu!r}"
            )
        check_settings(self, bound=BOUND.or_none(), mu=BOUND.or_none())
        if self.norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {self.norm!r}")

    def __str__(self) -> str:
        size = f"L <= {self.bound:g}" if self.bound is not None else f"{self.mu:g} L^2"
        return size + ("" if self.units is None else " in the units of the data")


@dataclass(frozen=True)
class Monotone:
    """An output that never falls as some inputs grow, whatever the others are.

    Args:
        increasing: inputs in which it never falls: columns by number, or by the names that units
            have for them.
        decreasing: inputs in which it never rises.
        output: which one, by number or name; ``None``: the only one.
        slope: half of the steepest that training lets the output depend on any of these inputs, in
            the units of the bound that goes with it; ``None``: as much as the bound leaves.  A
            small one leaves more to the other inputs, and where several of these matter little at
            a time it fits better.

    Raises:
        ValueError: for no column at all, one given twice, what is neither number nor name, or a
            slope that is not > 0.

    Example:
        >>> from admm_lip import Monotone
        >>> Monotone(increasing=["area"], decreasing=["age"])
        Monotone(increasing=('area',), decreasing=('age',), output=None, slope=None)
    """

    increasing: Sequence[int | str] = ()
    decreasing: Sequence[int | str] = ()
    output: int | str | None = None
    slope: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, slope=BOUND.or_none())
        for name in ("increasing", "decreasing"):
            object.__setattr__(self, name, _columns(name, getattr(self, name)))
        given = (*self.increasing, *self.decreasing)
        twice = [column for column in given if given.count(column) > 1]
        if twice or not given:
            got = f"{twice[0]!r} twice" if twice else "none"
            raise ValueError(f"increasing, decreasing: expected different columns, got {got}")
        if self.output is not None:
            _columns("output", [self.output])

    def signs(self, inputs: int, names: Sequence[str] = ()) -> dict[int, int]:
        """Column to 1 or -1, for so many inputs with these names.

        Raises:
            ValueError: naming a column that there is not, or that is given by number and by name.
        """
        found: dict[int, int] = {}
        for name, sign in (("increasing", 1), ("decreasing", -1)):
            for given in getattr(self, name):
                column = _index(name, given, inputs, names)
                if column in found:
                    raise ValueError(f"{name}: {given!r} is column {column}, which is given twice")
                found[column] = sign
        return found

    def output_of(self, outputs: int, names: Sequence[str] = ()) -> int:
        """The number of the output.

        Raises:
            ValueError: for one that there is not, or none named where there are several.
        """
        if self.output is None and outputs != 1:
            raise ValueError(f"output: expected which of the {outputs} outputs is meant, got None")
        return 0 if self.output is None else _index("output", self.output, outputs, names)


def _columns(name: str, given: Any) -> tuple[int | str, ...]:
    good = isinstance(given, Sequence) and not isinstance(given, str)
    if not good or not all(type(v) is int or (isinstance(v, str) and v) for v in given):
        raise ValueError(f"{name}: expected numbers or names of columns, got {given!r:.200}")
    return tuple(given)


def _index(name: str, given: int | str, count: int, names: Sequence[str]) -> int:
    if isinstance(given, str):
        if given not in names:
            known = ", ".join(names) or "none (names come with units)"
            raise ValueError(f"{name}: expected one of {known}, got {given!r}")
        return names.index(given)
    if not 0 <= given < count:
        raise ValueError(f"{name}: expected a number from 0 to {count - 1}, got {given}")
    return given


@dataclass(frozen=True, init=False)
class All:
    """Several claims on one function at a time, for :func:`admm_lip.train`: a bound, a direction.

    Args:
        parts: one :class:`Lipschitz` with a bound, and one :class:`Monotone`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from admm_lip import All, Lipschitz, Monotone
        >>> All(Lipschitz(2.0), Monotone(increasing=[0])).lipschitz.bound
        2.0
    """

    lipschitz: Lipschitz
    monotone: Monotone

    def __init__(self, *parts: Lipschitz | Monotone) -> None:
        by_type = {type(part): part for part in parts}
        if len(parts) != 2 or set(by_type) != {Lipschitz, Monotone}:
            got = ", ".join(type(part).__name__ for part in parts) or "nothing"
            raise ValueError(f"All: expected one Lipschitz and one Monotone, got {got}")
        for name, kind in (("lipschitz", Lipschitz), ("monotone", Monotone)):
            object.__setattr__(self, name, by_type[kind])
        if self.lipschitz.bound is None:
            raise ValueError(
                "All: Monotone goes with a bound, got a price; give Lipschitz(bound=...): the "
                "linear term outweighs slopes that are bounded, and a price bounds none"
            )
