"""How far a local bound is driven.  No torch is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..lipschitz import NORMS

# How a bound was found, as files number it.
LEVELS = ("none", "global", "norms", "closed", "implied", "optimised", "product", "masked")
# What may be asked for, from cheap to dear; the first two pass no lines back to the input.
ASKED = (
    "product", "masked", "norms", "quadratic", "tuned", "closed", "implied", "optimised",
    "semidefinite",
)  # fmt: skip
# Inputs and open neurons of the largest semidefinite relaxation that is taken.
LARGEST_RELAXATION = 4096
# Levels that are of margins alone, and the dearest means of a Lipschitz bound there.
_OF_MARGINS = {"quadratic": "norms", "tuned": "norms", "semidefinite": "optimised"}
BY_NAME: Mapping[str, int] = {name: LEVELS.index(_OF_MARGINS.get(name, name)) for name in ASKED}
# What can settle a class, as files number it: nothing did, a bound for all inputs, a level.
SETTLED = ("none", "global", *ASKED)


@dataclass(frozen=True)
class LocalConfig:
    """How far a local bound is driven.

    Args:
        level: the dearest means allowed, from cheap to dear ``product``, ``masked``, ``norms``,
            ``quadratic``, ``tuned``, ``closed``, ``implied``, ``optimised`` or ``semidefinite``.
            The first two (the layers' own norms, and those of what can move on the ball, with
            intervals) cost a few passes a batch; the others also take linear bounds of every
            neuron back to the input.  From ``quadratic`` on, classes that these leave open get a
            quadratic bound; from ``tuned`` on, its slopes and curvatures are searched for where the
            closed form is not enough.  ``semidefinite`` takes what is still open of networks of
            ReLU, LeakyReLU, PReLU, MaxMin or GroupSort2, with at most 4,096 inputs and hidden
            neurons of either sign on the ball, through the dual of a semidefinite relaxation of
            all layers together.
        decide: with labels: only what the classes need, each level only for the samples that
            cheaper ones leave open; samples of a wrong class are left, and for ``masked`` those
            that an estimate gives up.
        seconds: per sample of a batch, which has them together: after them nothing dearer is
            begun, a search ends, and what is proven by then stands; ``None``: no limit.
        box: lowest and highest value of admissible inputs, 0 and 1 for pictures: only perturbed
            inputs between them count; ``None``: every input.
        rounds: most rounds of the search for a radius.
        tol: relative accuracy of that search.
        norm: of the balls: ``"l2"`` or ``"linf"``.
        input_scale: where the model takes standardised inputs ``(raw - mean) / input_scale``: the
            scale of each feature (or one number); radii are then in raw units.
        steps: of the search that ``tuned`` names, by norms that all classes share, for each class
            that is open.
        metric_steps: of its second part, with norms of each class and neuron's own, for what is
            then open and no attack meets; a step is three times as dear, what will not get there is
            given up, and 1,000 go about as far as there is to go.  Radii are found without it.
        dual_steps: likewise of the search that ``semidefinite`` names, one class at a time.

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
    decide: bool = False
    steps: int = 30
    metric_steps: int = 100
    dual_steps: int = 300

    @property
    def by_lines(self) -> bool:
        """Whether linear bounds are taken back to the input."""
        return self.level not in ASKED[:2]

    @property
    def quadratic(self) -> bool:
        """Whether quadratic bounds are taken back to the input."""
        return self.by_lines and self.level != "norms"

    @property
    def tuned(self) -> bool:
        """Whether their slopes and curvatures are searched for."""
        return self.quadratic and self.level != "quadratic" and self.steps > 0

    @property
    def semidefinite(self) -> bool:
        """Whether what is still open goes through the dual of a semidefinite relaxation."""
        return self.level == "semidefinite" and self.dual_steps > 0

    def __post_init__(self) -> None:
        if self.level not in BY_NAME:
            raise ValueError(f"level: expected one of {', '.join(BY_NAME)}, got {self.level!r}")
        if self.seconds is not None and not 0.0 <= self.seconds < math.inf:
            raise ValueError(f"seconds: expected a finite number >= 0, got {self.seconds!r}")
        if self.box is not None:
            check_box("box", self.box)
        for name in ("steps", "metric_steps", "dual_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds!r}")
        if self.norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {self.norm!r}")
        if not 0.0 < self.tol < 1.0:
            raise ValueError(f"tol: expected a number in (0, 1), got {self.tol!r}")


def check_box(name: str, ends: Any) -> tuple[float, float]:
    """Least and greatest admissible value of every input feature, as two floats.

    Raises:
        ValueError: unless it is two finite ends, the lower first.
    """
    found = tuple(float(end) for end in ends)
    if len(found) != 2 or not -math.inf < found[0] < found[1] < math.inf:
        raise ValueError(f"{name}: expected two finite ends, the lower first, got {ends!r}")
    return found[0], found[1]


def check_inside(x: Any, box: tuple[float, float] | None, name: str = "box") -> None:
    """Raise ``ValueError`` where a tensor of inputs leaves the stated box."""
    if box is None or not len(x):
        return
    low, high = float(x.min()), float(x.max())
    if not box[0] <= low <= high <= box[1]:
        raise ValueError(
            f"x: expected inputs inside the {name} [{box[0]:g}, {box[1]:g}], got values from "
            f"{low:g} to {high:g}; state the range of the data as they are fed to the network"
        )
