"""How a trained network is evaluated.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluateConfig:
    """How a trained network is evaluated.

    Args:
        radii: radii (l2, in input units) of the accuracy curves; empty chooses a grid that ends
            where hardly any row is certified.
        report_radius: the radius of the headline numbers; ``None``: 0.1 x the input range (for a
            table: a tenth of a standard deviation).
        samples: test rows that the curves are measured on, drawn at random; ``None``: all rows.
            The clean and the certified accuracy of the headline always count all rows.
        steps: gradient steps of the attack.
        restarts: starts of the attack, of which the strongest counts.
        seed: seed of the attack's random starts.

    Raises:
        ValueError: naming the field.
    """

    radii: tuple[float, ...] = ()
    report_radius: float | None = None
    samples: int | None = None
    steps: int = 40
    restarts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "radii", tuple(float(r) for r in self.radii))
        if any(not 0.0 <= r < float("inf") for r in self.radii):
            raise ValueError(f"radii: expected finite numbers >= 0, got {list(self.radii)}")
        if self.report_radius is not None and not 0.0 < self.report_radius < float("inf"):
            raise ValueError(
                f"report_radius: expected a finite number > 0, got {self.report_radius!r}"
            )
        for name in ("samples", "steps", "restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
