"""What attacks on certified radii came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..shown import Fact, Row, Shown, number, word

if TYPE_CHECKING:
    from ..plots import Sheet


class SoundnessError(AssertionError):
    """An attack succeeded strictly inside a certified radius: the certificate is wrong."""


@dataclass(frozen=True, eq=False, repr=False)
class Falsification(Shown):
    """What attacks on certified radii found; had one succeeded, there would be none of these.

    Attributes:
        samples: rows with a positive radius: those attacked.
        attacks: searches of one row's ball by one attack, restarts counted, inside the radii.
        norm: of distances and radii.
        distance: of the nearest attack found on each row of x, ``(n,)``, in the units of the
            radii; ``inf`` where none was found or none was tried.
        smallest_ratio: least ``distance / radius``; ``inf`` where no attack succeeded.
        median_ratio: the median over the rows on which one did.
    """

    samples: int
    attacks: int
    norm: str
    distance: Tensor
    smallest_ratio: float
    median_ratio: float

    def title(self) -> str:
        """What came of it."""
        return f"no attack succeeded inside a certified {self.norm} radius"

    def facts(self) -> tuple[Fact, ...]:
        """How much was tried, and how near attacks came."""
        more = " times the certified radius"
        return (
            word("samples", "rows attacked", self.samples),
            word("attacks", "balls searched", self.attacks),
            number("smallest_ratio", "nearest attack", self.smallest_ratio, more),
            number("median_ratio", "median attack", self.median_ratio, more),
        )

    def table(self) -> list[Row]:
        """One row per row: the distance of the nearest attack found."""
        return [{"distance": distance} for distance in self.distance.tolist()]

    def plot(self) -> Sheet:
        """The share of rows on which no attack was found up to each distance."""
        from ..result_plots import plot_shares

        return plot_shares(self.distance.tolist(), f"{self.norm} distance of the nearest attack")
