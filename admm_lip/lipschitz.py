"""What is asked of a function: a Lipschitz constant to stay below, or a price on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
