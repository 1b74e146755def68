"""What a training run gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from ..certificates.certificate import Certificate
from ..certificates.certifier import certify_global
from ..data.labels import Classes
from ..sharing import Shareable
from ..shown import Fact, Row, number, word
from ..units import Units
from .admm_state import AdmmState
from .config import TrainConfig
from .lipschitz_step import grows_on

if TYPE_CHECKING:
    from ..plots import Sheet


# L grows by at most exp(0.1) a round under a price (``lipschitz_step.py``).
GROWS_ON = Fact(
    "grows_on",
    "L at the end",
    True,
    "still growing by 10 % a round, the most a price allows; more epochs would let it go on",
)


@dataclass(frozen=True, eq=False, repr=False)
class TrainResult(Shareable):
    """What a run gives back.

    Attributes:
        model: a plain module: under a bound of the class that went in, with the consensus weights.
        history: one row per round: loss, step, epoch, seconds; under a bound also lip, residuals,
            rho and how the projection went.  Where nothing is enforced a round is an epoch.
        state: the last ADMM state; ``None`` where nothing is enforced.
        config: the settings.
        stopped: ``"finished"``, ``"converged"``, ``"stopped"`` (by a callback), ``"interrupted"``
            (by Ctrl-C) or ``"terminated"`` (by SIGTERM).
        seconds: of training, certification not included.
        steps: optimizer steps done.
        claimed_lip: the method's own bound, if it has one.
        classes: the label of each output, in order, so that
            ``np.array(result.classes)[result.model(x).argmax(1)]`` are labels as the data have
            them; ``None`` for a regression.
    """

    model: nn.Module
    history: tuple[Row, ...]
    state: AdmmState | None
    config: TrainConfig
    stopped: str
    seconds: float
    steps: int
    claimed_lip: float | None = None
    classes: Classes | None = None
    _proof: Certificate | None = field(default=None, repr=False)

    @cached_property
    def certificate(self) -> Certificate:
        """The proof of the model's Lipschitz constant, made from the weights as shipped.

        Where nothing was enforced it is made when it is first asked for, by
        :func:`admm_lip.certify`, which convolutions need called with the shape of their inputs.
        """
        return certify_global(self.model) if self._proof is None else self._proof

    brief = ("rounds", "loss", "lip", "gap", "stopped")

    def known_units(self) -> Units | None:
        """Those of the bound; else the names of the classes, where the data had any."""
        names = None if self.classes is None else tuple(str(name) for name in self.classes)
        return self.certificate.units or (Units(classes=names) if names else None)

    def title(self) -> str:
        """What was enforced."""
        enforced = {"bound": self.config.bound, "penalty": self.config.mu}
        given = [f"{name} {value:g}" for name, value in enforced.items() if value is not None]
        return f"network trained under {given[0]}" if given else "network trained without a bound"

    def facts(self) -> tuple[Fact, ...]:
        """The run, and the proof where it has been made."""
        proof = self._proof or vars(self).get("certificate")
        last = self.history[-1:]
        return (
            *(() if proof is None else proof.facts()),
            word("rounds", "rounds", len(self.history)),
            *(number("loss", "last loss", row["loss"]) for row in last),
            word("steps", "optimizer steps", self.steps),
            number("seconds", "seconds of training", self.seconds),
            word("stopped", "ended", self.stopped),
            *((GROWS_ON,) if self.grows_on else ()),
        )

    @property
    def grows_on(self) -> bool:
        """Whether L grew as fast as a price lets it until the run ended."""
        lips = [row["lip"] for row in self.history if "lip" in row]
        return self.config.mu is not None and grows_on(lips)

    def table(self) -> Sequence[Row]:
        """The history, one row per round."""
        return self.history

    def plot(self) -> Sheet:
        """The history."""
        from ..plots import plot_epochs, plot_training

        if not self.history:
            raise ValueError("plot: expected a history, the run ended before its first round")
        if self.state is None:
            return plot_epochs(self.history)
        return plot_training(self.history, requested=self.config.bound)
