"""How a trained network is evaluated.  No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Rule, check_settings

_RULES: dict[str, Rule] = {
    "radii": NOT_NEGATIVE.each(),
    "report_radius": POSITIVE.or_none(),
    "samples": COUNT.or_none(),
    **dict.fromkeys(("steps", "restarts"), COUNT),
    "seed": SEED,
}


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
        check_settings(self, **_RULES)
