"""How a solve is to be done: the one place where a backend is chosen."""

from __future__ import annotations

from dataclasses import dataclass


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
        device: where the native solver computes, such as ``cpu`` or ``cuda``.

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
        if not 0.0 < self.tol < 1.0:
            raise ValueError(f"tol: expected a number in (0, 1), got {self.tol!r}")
        if self.time_limit is not None and not self.time_limit > 0.0:
            raise ValueError(f"time_limit: expected seconds > 0 or None, got {self.time_limit!r}")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ValueError(f"max_iterations: expected at least 1, got {self.max_iterations!r}")
        # YAML and JSON hand over lists; the frozen config keeps a tuple.
        object.__setattr__(self, "fallback", tuple(self.fallback))
