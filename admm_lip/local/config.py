"""How far a local bound is driven.  No torch is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..certificates.norms import NORMS

# The levels of ``levels.py``, from cheap to dear, and those that may be asked for.
LEVELS = ("none", "global", "norms", "closed", "implied", "optimised")
BY_NAME: Mapping[str, int] = {
    name: k for k, name in enumerate(LEVELS) if k >= LEVELS.index("norms")
}


@dataclass(frozen=True)
class LocalConfig:
    """How far a local bound is driven.

    Args:
        level: the dearest means allowed, from cheap to dear ``norms``, ``closed``, ``implied`` or
            ``optimised``.
        seconds: per sample, after which nothing dearer is begun; ``None``: no limit.
        box: lowest and highest value of admissible inputs, 0 and 1 for pictures: only perturbed
            inputs between them count; ``None``: every input.
        rounds: most rounds of the search for a radius.
        tol: relative accuracy of that search.
        norm: of the balls: ``"l2"`` or ``"linf"``.
        input_scale: where the model takes standardised inputs ``(raw - mean) / input_scale``: the
            scale of each feature (or one number); radii are then in raw units.

    Raises:
        ValueError: naming the field.
    """

    level: str = "closed"
    seconds: float | None = None
    box: tuple[float, float] | None = None
    rounds: int = 12
    tol: float = 0.01
    norm: str = "l2"
    input_scale: Any = None

    def __post_init__(self) -> None:
        if self.level not in BY_NAME:
            raise ValueError(f"level: expected one of {', '.join(BY_NAME)}, got {self.level!r}")
        if self.seconds is not None and not 0.0 <= self.seconds < math.inf:
            raise ValueError(f"seconds: expected a finite number >= 0, got {self.seconds!r}")
        if self.box is not None and not -math.inf < self.box[0] < self.box[1] < math.inf:
            raise ValueError(f"box: expected two finite ends, the lower first, got {self.box!r}")
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {self.norm!r}")
        if not 0.0 < self.tol < 1.0:
            raise ValueError(f"tol: expected a number in (0, 1), got {self.tol!r}")
