"""How a solve is to be done: the one place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

# Setting -> its kind of number (True is none), what is expected in words, and whether it holds.
_NUMBERS: Mapping[str, tuple[type, str, Callable[[Any], bool]]] = MappingProxyType(
    {
        "tol": (Real, "a number in (0, 1)", lambda v: 0.0 < v < 1.0),
        "time_limit": (Real, "seconds > 0 or None", lambda v: v > 0.0),
        "max_iterations": (Integral, "a whole number of at least 1 or None", lambda v: v >= 1),
    }
)


@dataclass(frozen=True)
class SolverConfig:
    """Which backend solves the semidefinite problems, and how hard it tries.

    Args:
        name: ``auto`` (native first), ``native``, ``mosek``, ``clarabel`` or ``scs``.
        tol: relative accuracy: of a certification the gap in ``L^2`` to the best that can be
            proven, of a projection the change that ends it.
        time_limit: seconds for what is called, a solve with all its solvers or a whole
            certification with its proof; ``None``: no limit.
        max_iterations: most iterations of one solve; ``None``: the solver's own number.
        fallback: solvers tried in this order when the named one is unavailable or fails; empty
            makes that an error.
        device: where the native solver computes, such as ``cuda``; ``cpu``: where the weights are.

    Example:
        >>> from admm_lip import SolverConfig
        >>> SolverConfig("scs", tol=1e-5, fallback=()).name
        'scs'
    """

    name: str = "auto"
    tol: float = 1e-6
    time_limit: float | None = None
    max_iterations: int | None = None
    fallback: tuple[str, ...] = ("native", "scs")
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, (kind, expected, holds) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and expected.endswith("None"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        # YAML and JSON hand over lists; the frozen config keeps a tuple.
        object.__setattr__(self, "fallback", tuple(self.fallback))
