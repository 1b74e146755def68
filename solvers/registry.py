"""Which backends there are, and whether each can run here.

To add a backend: (1) write a class with the members of ``backend.Backend`` in a file of its own;
(2) add one row to ``_FACTORIES``, and its name to the rows of ``_AUTO`` it is good for; (3) run
``tests/solvers``: every backend in the table goes through the same oracle suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType

from .backend import Availability, Backend
from .errors import UnknownBackend


def _native() -> Backend:
    from .native.backend import NativeBackend

    return NativeBackend()


def _through_cvxpy(name: str) -> Callable[[], Backend]:
    def build() -> Backend:
        from .cvxpy_ import CvxpyBackend

        return CvxpyBackend(name)

    return build


_FACTORIES: Mapping[str, Callable[[], Backend]] = MappingProxyType(
    {
        "native": _native,
        "mosek": _through_cvxpy("mosek"),
        "clarabel": _through_cvxpy("clarabel"),
        "scs": _through_cvxpy("scs"),
    }
)

AUTO = "auto"

# What "auto" tries, by the order of the LMI (the sum of the widths) up to which a row holds.
# Clarabel's time grows with the sixth power of the order: 0.4 s at 40, 69 s at 100.
_AUTO: tuple[tuple[float, tuple[str, ...]], ...] = (
    (50.0, ("native", "mosek", "clarabel", "scs")),
    (float("inf"), ("native", "mosek", "scs")),
)

# General solvers hold the LMI as one dense matrix: beyond this order they are asked by name only.
_GENERAL_LIMIT = 6000


def names() -> tuple[str, ...]:
    """The names of all backends, usable here or not."""
    return tuple(_FACTORIES)


@cache
def backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        UnknownBackend: naming the near miss and all that exist.

    Example:
        >>> from admm_lip.solvers.registry import backend
        >>> backend("native").name
        'native'
    """
    if name not in _FACTORIES:
        known = (AUTO, *_FACTORIES)
        near = get_close_matches(str(name).lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownBackend(
            f"solver: no backend named {name!r}; {hint}expected one of {', '.join(known)}"
        )
    return _FACTORIES[name]()


def chain(name: str, fallback: tuple[str, ...], order: int) -> tuple[Backend, ...]:
    """The backends to try, in this order, each once.

    Args:
        name: a backend, or ``"auto"``: the row of its table for this size.
        fallback: tried after it; ``()`` leaves the first one alone.
        order: order of the LMI, the sum of the widths of the reduced problem.

    Raises:
        UnknownBackend: for a name that is not in the table, before anything is solved.
    """
    first = next(row for limit, row in _AUTO if order <= limit) if name == AUTO else (name,)
    if order > _GENERAL_LIMIT:
        first, fallback = first[:1], tuple(each for each in fallback if each == "native")
    wanted = (*first, *fallback) if fallback else first[:1]
    return tuple(backend(each) for each in dict.fromkeys(wanted) if each != AUTO)


def available() -> dict[str, Availability]:
    """Whether each backend can run here, and why (not); asks for MOSEK's licence once."""
    return {name: backend(name).availability() for name in names()}


def doctor() -> list[str]:
    """One line of text per backend: its name, whether it is usable, and the reason.

    Example:
        >>> from admm_lip.solvers import doctor
        >>> doctor()[0]
        'native    usable    structured, float64, no licence'
    """
    return [
        f"{name:<10}{'usable' if found.usable else 'unusable':<10}{found.reason}"
        for name, found in available().items()
    ]
