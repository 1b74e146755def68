"""Everything that decides a training run, or a fine-tuning, in frozen records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..lipschitz import Lipschitz
from ..settings import BOUND, COUNT, FLAG, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Rule, check_settings
from ..solvers.config import SolverConfig

if TYPE_CHECKING:
    from ..units import Units

STARTS = ("model", "scratch")
RHO_RULES = ("constant", "balance")
LIP_STEPS = ("newton", "exact")
BALLS = ("auto", "layers", "modules")
PRECISIONS = ("full", "bfloat16", "float16")
# Of all residual blocks together; of 1.1, 1.4 and 2 the best on rows of MNIST held back.
RESIDUAL_GAIN = 1.1
_ADMM_RULES: dict[str, Rule] = {
    "round_steps": COUNT.or_none(),
    "rho": POSITIVE.or_none(),
    "relaxation": Rule("a number in [1, 2)", lambda v: 1.0 <= v < 2.0),
    "residual_gain": Rule("a number above 1", lambda v: 1.0 < v < math.inf),
    "restart": FLAG,
    "multiplier_every": COUNT.or_none(),
    **dict.fromkeys(("multiplier_rate", "projection_tol"), POSITIVE),
    "seed": SEED,
}
_ADMM_CHOICES = {
    "start": STARTS,
    "balls": BALLS,
    "rho_rule": RHO_RULES,
    "lip_step": LIP_STEPS,
}
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("bound", "mu"), BOUND.or_none()),
    **dict.fromkeys(("epochs", "batch_size"), COUNT),
    **dict.fromkeys(("lr", "temperature"), POSITIVE),
    **dict.fromkeys(("lip", "gradient_clip"), POSITIVE.or_none()),
    **dict.fromkeys(("eps", "residual_tol", "checkpoint_seconds"), NOT_NEGATIVE),
    **dict.fromkeys(("centre", "mirror"), FLAG),
    "shift": Rule("a whole number >= 0", lambda v: v >= 0, int),
}


@dataclass(frozen=True)
class AdmmConfig:
    """How a constraint is kept (:class:`admm_lip.Constraint`); the defaults are measured.

    Args:
        start: ``model`` begins at the given weights, ``scratch`` at seeded orthogonal ones.
        seed: seed of the start from scratch; in training also of the batch order and of dropout.
        round_steps: optimizer steps between two projections; ``None``: 4 for activations that sort
            pairs, else 8.  Fewer take longer, and pay where the bound binds hard; dense layers that
            sort lost nothing in rounds of 8 on MNIST, at half the price over plain training.
        balls: what keeps a network of convolutions under its bound: one norm ball per layer
            (``layers``), or for two layers and the activation between them (``modules``), which
            loses less with slopes in [0, 1]; ``auto``: the latter wherever slopes are not negative.
        residual_gain: what residual blocks ``x + G2 phi(G1 x)``, all of a network together, may
            multiply the bound by, each by the same; other layers have the rest.
        rho: weight that pulls the free weights to the projected ones; ``None``: chosen from the
            loss, its scale, L and ``round_steps``.
        rho_rule: ``constant``, or ``balance`` (doubled or halved when the primal and dual
            residuals differ ten-fold).
        relaxation: over-relaxation of the projection, in [1, 2).
        restart: continue every round from the projected weights (the dual and optimizer state are
            kept).
        multiplier_step: how the certificate's multipliers move: ``fixed``, ``sensitivity``,
            ``lipsdp``, ``averaged``, or ``auto``, which chooses by the activations and the task.
        multiplier_every: rounds between two solves of ``lipsdp`` or ``averaged``; ``None``: 32 of
            the former, 8 of the latter, which goes half the way.
        multiplier_rate: step size of ``sensitivity``, relative to the multipliers.
        lip_step: how the penalised form moves L: ``newton`` (one damped step a round) or ``exact``
            (the minimum of the projection problem).
        projection_tol: accuracy of the projection inside the loop.
        solver: which backend, with which fallbacks.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """

    start: str = "model"
    seed: int = 0
    round_steps: int | None = None
    balls: str = "auto"
    residual_gain: float = RESIDUAL_GAIN
    rho: float | None = None
    rho_rule: str = "constant"
    relaxation: float = 1.6
    restart: bool = True
    multiplier_step: str = "auto"
    multiplier_every: int | None = None
    multiplier_rate: float = 0.03
    lip_step: str = "newton"
    projection_tol: float = 1e-3
    solver: SolverConfig = field(default_factory=SolverConfig)

    def __post_init__(self) -> None:
        check_settings(self, **_ADMM_RULES)
        _check_choices(self, _ADMM_CHOICES)


@dataclass(frozen=True)
class TrainConfig(AdmmConfig):
    """Settings of :func:`admm_lip.train`, and those of :class:`AdmmConfig`.

    Args:
        bound: the Lipschitz constant to stay below, enforced in every round, from 1e-30 to 1e30:
            beyond, its square leaves the numbers in which it could be proven.
        mu: weight of the penalty on ``L^2`` that takes the place of a bound, in the same range;
            ``None``: no penalty.
        lip: the constant that the margin loss supposes where none is enforced; ``None``: 1.
        epochs: passes over the data.
        batch_size: samples per optimizer step; a DataLoader brings its own.
        loss: ``cross_entropy``, ``margin``, ``squared_error``, or ``auto`` (cross-entropy for
            integer targets, squared error for floats).
        eps: radius (l2, in input units) that the margin loss trains for.
        temperature: softness of the margin loss, as a share of L.
        optimizer: ``adam``, ``adamw``, ``nadam``, ``rmsprop``, ``sgd``, ``momentum`` or ``lbfgs``.
        lr: step size of the optimizer.
        schedule: how the step size falls: ``hold_then_linear``, ``hold_then_decay``,
            ``hold_then_exponential`` or ``constant``; in Python also a function of the share of
            the run that is done, which returns the share of ``lr``.
        gradient_clip: largest l2 norm of the loss's gradient, beyond which it is scaled down;
            ``None``: any.
        precision: ``full``, or the type that torch's autocast computes in, ``bfloat16`` or
            ``float16`` (the latter with scaled gradients); weights stay as they are.
        centre: train with the inputs' mean subtracted in the first layer, which leaves its function
            and its constant as they are.
        shift: pixels by which pictures in memory are moved at most, along both axes, each time
            anew, with zeros beside them; 0: not at all.
        mirror: whether every other picture, drawn each time anew, is seen from behind.
        residual_tol: stop when both relative residuals are below it; 0 runs all epochs.
        checkpoint_seconds: least time between two checkpoints; 0 writes one whenever it can.

    Raises:
        ValueError: naming the field, what was expected and what came.

    Example:
        >>> TrainConfig(bound=2.0, epochs=3).asked()
        Lipschitz(bound=2.0, mu=None, norm='l2', units=None)
    """

    bound: float | None = None
    mu: float | None = None
    lip: float | None = None
    epochs: int = 15
    batch_size: int = 256
    loss: str = "auto"
    eps: float = 0.5
    temperature: float = 0.2
    optimizer: str = "adam"
    lr: float = 1e-2
    schedule: str | Callable[[float], float] = "hold_then_linear"
    gradient_clip: float | None = None
    precision: str = "full"
    centre: bool = True
    shift: int = 0
    mirror: bool = False
    residual_tol: float = 0.0
    checkpoint_seconds: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, **_RULES)
        _check_choices(self, {"precision": PRECISIONS})
        self.asked()

    def asked(self, units: Units | None = None) -> Lipschitz | None:
        """What is asked of the network; ``None`` where nothing is."""
        if self.bound is None and self.mu is None:
            return None
        return Lipschitz(self.bound, self.mu, units=units)


def _check_choices(config: AdmmConfig, rows: Mapping[str, tuple[str, ...]]) -> None:
    for name, choices in rows.items():
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


_FINETUNE_RULES: dict[str, Rule] = {
    "eps": NOT_NEGATIVE,
    "lr": POSITIVE.or_none(),
    "batch_size": COUNT,
    "seed": SEED,
    "distill": SHARE,
    "softness": POSITIVE,
    "ridges": POSITIVE.each(),
    "even": FLAG,
    "checkpoint_seconds": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class FinetuneConfig:
    """How a trained network is brought under a bound with data.

    Args:
        eps: radius (l2, in input units) that is trained for, and that accuracies are reported at.
        lr: step size; ``None``: chosen by the number of optimizer steps.
        batch_size: samples per optimizer step.
        seed: seed of the batch order.
        distill: weight of the given network's class probabilities (regression: outputs) in the
            targets, in [0, 1].
        softness: temperature of these class probabilities, in units of the given network's median
            margin (first less second output) on the data, so that its scale does not matter.
        ridges: strengths of smoothing, of which the best is taken; empty leaves it out.
        even: balance the certificate's multipliers over the neurons before the rounds.
        checkpoint_seconds: least time between two checkpoints, where there is a folder for them.

    Raises:
        ValueError: naming the field.
    """

    eps: float = 0.5
    lr: float | None = None
    batch_size: int = 64
    seed: int = 0
    distill: float = 0.5
    softness: float = 0.3
    ridges: tuple[float, ...] = (5e-4, 1.5e-3, 5e-3)
    even: bool = True
    checkpoint_seconds: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, **_FINETUNE_RULES)
