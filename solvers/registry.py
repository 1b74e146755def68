"""Which backends there are, and whether each can run here.

To add a backend to the package: (1) write a class with the members of ``backend.Backend`` in a file
of its own; (2) add one row to ``_FACTORIES``, and its name to the rows of ``_AUTO`` it is good for;
(3) run ``tests/solvers``: every backend in the table goes through the same oracle suite.  One of a
user's own comes in by :func:`register_backend`.
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

# Those that came in by ``register_backend``.
_REGISTERED: dict[str, Backend] = {}

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
    return (*_FACTORIES, *_REGISTERED)


def register_backend(made: Backend) -> None:
    """Let ``SolverConfig`` ask for a backend of your own by its ``name``, or fall back to it.

    It is measured as all others are: of a multiplier the bound is computed anew and proven through
    rounding, of a projection whether the weights are feasible.  ``auto`` does not take it.

    Args:
        made: an object with the members of :class:`~admm_lip.solvers.backend.Backend`: ``name``,
            ``availability``, ``certify``, ``project``.  One that has the name of an earlier one
            of yours takes its place.

    Raises:
        TypeError: naming the member that is missing.
        ValueError: for a name that is no word, or that one of the package's backends has.

    Example:
        >>> from admm_lip.solvers import Availability, SolverConfig, register_backend
        >>> class Nothing:
        ...     name = "nothing"
        ...     def availability(self):
        ...         return Availability(False, "an example")
        ...     certify = project = None
        >>> register_backend(Nothing())
        Traceback (most recent call last):
            ...
        TypeError: backend: expected a method certify, got None
    """
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name in (AUTO, *_FACTORIES):
        taken = ", ".join((AUTO, *_FACTORIES))
        raise ValueError(
            f"backend: expected a name that is a word and none of {taken}, got {name!r}"
        )
    for member in ("availability", "certify", "project"):
        found = getattr(made, member, None)
        if not callable(found):
            raise TypeError(f"backend: expected a method {member}, got {found!r}")
    _REGISTERED[name] = made


def backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        UnknownBackend: naming the near miss and all that exist.

    Example:
        >>> from admm_lip.solvers.registry import backend
        >>> backend("native").name
        'native'
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _FACTORIES:
        known = (AUTO, *names())
        near = get_close_matches(str(name).lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownBackend(
            f"solver: no backend named {name!r}; {hint}expected one of {', '.join(known)}"
        )
    return _built(name)


@cache
def _built(name: str) -> Backend:
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
