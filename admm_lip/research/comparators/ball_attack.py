"""What the methods that train on attacked inputs share: the ball, its ascent, the box."""

from __future__ import annotations

from dataclasses import dataclass

from ...training.method import Method, check_at_least, check_positive
from .ascent import Ascent, check_norm


@dataclass(frozen=True)
class BallAttack(Method):
    """A method with projected gradient ascent inside.

    Args:
        eps: radius of the attack, in input units.
        norm: ``"l2"`` or ``"linf"``.
        steps: ascent steps.
        step_size: of one step; ``None`` is ``2.5 eps / steps``, the rule of thumb of Madry et al.
        clip: box of admissible inputs, or ``None``.
    """

    eps: float = 0.5
    norm: str = "l2"
    steps: int = 5
    step_size: float | None = None
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_at_least(0.0, eps=self.eps)
        check_at_least(1, steps=self.steps)
        if self.step_size is not None:
            check_positive(step_size=self.step_size)
        check_norm(self.norm)

    def ascent(self) -> Ascent:
        """The inner maximisation."""
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        return Ascent(self.norm, self.eps, self.steps, step, self.clip)
