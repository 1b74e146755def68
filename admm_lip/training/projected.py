"""What a projection gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from ..certificates.certificate import Certificate
from ..sharing import Shareable
from ..shown import Fact, number, word
from .judging import Judge, Judged

if TYPE_CHECKING:
    from ..plots import Sheet


@dataclass(frozen=True, eq=False, repr=False)
class Projection(Shareable):
    """What :func:`project` returns.

    Attributes:
        model: a copy of the model that went in, with other weights; with the same biases unless
            it was fine-tuned.
        certificate: proves ``certificate.lip <= bound`` for exactly these weights.
        distance: Frobenius distance of all weights from those that went in.
        stopped: ``"finished"``; ``"interrupted"`` or ``"terminated"`` where a signal ended the
            fine-tuning early, and ``before`` and ``after`` are ``None``.
    """

    model: nn.Module
    certificate: Certificate
    distance: float
    stopped: str = "finished"
    _judge: Judge | None = field(default=None, repr=False)

    @cached_property
    def before(self) -> Judged | None:
        """The classifier that went in, measured when it is first asked for.

        ``None`` without data, for data without labels, and for regressions.
        """
        return None if self._judge is None else self._judge.judged(self._judge.given)

    @cached_property
    def after(self) -> Judged | None:
        """The classifier that came out, on the same data."""
        return None if self._judge is None else self._judge.judged(self.model)

    brief = ("lip", "gap", "distance", "stopped")

    def title(self) -> str:
        """What it is."""
        return "projected network"

    def facts(self) -> tuple[Fact, ...]:
        """How far the weights moved, the proof, and the accuracies that have been measured."""
        measured = {name: vars(self).get(name) for name in ("before", "after")}
        return (
            number("distance", "weights moved by", self.distance, " (Frobenius norm of all)"),
            word("stopped", "ended", self.stopped),
            *self.certificate.facts(),
            *(
                fact._replace(name=f"{fact.name}_{name}", label=f"{fact.label} {name}")
                for name, judged in measured.items()
                if judged is not None
                for fact in judged.facts()
            ),
        )

    def plot(self) -> Sheet:
        """The bound among what it is held against."""
        return self.certificate.plot()
