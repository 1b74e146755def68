"""Attacks on classifiers: what a certificate must withstand.

Projected gradient descent in an l2 or linf ball, with restarts, on the margin
``max_{j != y} f_j - f_y`` of the logits (which, unlike cross-entropy, keeps its gradient on
confident networks), a search that uses no gradient at all, so that a network whose gradients
mislead is not mistaken for a robust one, and a search along rays, which also looks well inside the
ball, where a piecewise linear network may have another class that its sphere does not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..rounding import lengths
from ..settings import COUNT, SEED, check_settings
from .samples import attackable

Norm = Literal["l2", "linf"]

# Points on one ray.
_ON_A_RAY = 6


_RULES = {**dict.fromkeys(("steps", "restarts", "batch_size", "directions"), COUNT), "seed": SEED}


@dataclass(frozen=True)
class AttackConfig:
    """How hard an attack tries.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        steps: gradient steps of each restart.
        restarts: ascents; the first climbs the margin to the best other class, the next ones aim
            at one class each, from the input: the runner-up, the third, ...  When every class had
            its turn, they aim at them again from random points of the ball.
        directions: random directions, and as many examples of other classes, that the
            gradient-free search tries; rays have a quarter as many, and the gradient.
        clip: the box of admissible inputs; ``None`` searches the whole ball, which is what a
            certificate speaks of.
        batch_size: rows attacked at once.
        seed: of the random starts and directions.

    Raises:
        ValueError: naming the field.
    """

    norm: Norm = "l2"
    steps: int = 40
    restarts: int = 4
    directions: int = 32
    clip: tuple[float, float] | None = None
    batch_size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in _BALLS:
            raise ValueError(f"norm: expected one of {', '.join(_BALLS)}, got {self.norm!r}")
        check_settings(self, **_RULES)


Attack = Callable[[nn.Module, Tensor, Tensor, Tensor, AttackConfig], Tensor]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    config: AttackConfig | None = None,
) -> Tensor:
    """Adversarial inputs by projected gradient ascent on the margin.

    Args:
        model: classifier, ``(n, ...) -> (n, classes)``; run in eval mode, left as it was.
        x: inputs ``(n, ...)``, a tensor or any array.
        y: labels ``(n,)``, ``(n, 1)`` or one-hot.
        radius: of the ball, one number or one per row.
        config: see :class:`AttackConfig`.

    Returns:
        A tensor like ``x``, each row within ``radius`` of its input: the point of largest margin
        found (the input itself where nothing beat it), in a dtype that holds x (``samples.py``).

    Example:
        >>> import torch
        >>> from admm_lip.evaluation.attacks import fooled, pgd
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> fooled(model, pgd(model, x, y, 0.8), y)     # the boundary is at 1 / sqrt(2)
        tensor([True])
    """
    return _attack(_pgd_batch, model, x, y, radius, config)


def gradient_free(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    config: AttackConfig | None = None,
) -> Tensor:
    """Adversarial inputs without gradients: random directions, and steps towards other classes.

    Arguments and result as in :func:`pgd`.  The rows of ``x`` predicted as other classes serve as
    targets to walk to, as far as the radius allows.
    """
    return _attack(_search_batch, model, x, y, radius, config)


def rays(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    config: AttackConfig | None = None,
) -> Tensor:
    """Adversarial inputs on straight ways from the input to the surface, many points on each.

    Arguments and result as in :func:`pgd`.
    """
    return _attack(_rays_batch, model, x, y, radius, config)


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Boolean ``(n,)``: some other class scores strictly higher than ``y``."""
    with torch.no_grad():
        return margin(model(x), y) > 0


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} f_j - f_y`` per row: positive where the prediction is not ``y``."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(dim=1) - own[:, 0]


def _attack(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    config: AttackConfig | None,
) -> Tensor:
    """Run ``attack`` batch by batch on a frozen model in eval mode."""
    config = config or AttackConfig()
    if not len(x):
        return x
    model, x, y = attackable(model, x, y)
    radii = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(len(x))
    if not bool((torch.isfinite(radii) & (radii >= 0)).all()):
        raise ValueError("radius: expected finite numbers >= 0, got one that is not")
    with frozen(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        found = [
            attack(model, x[rows], y[rows], radii[rows], config)
            for rows in _slices(len(x), config.batch_size)
        ]
    return torch.cat(found)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; everything as it was after."""
    modes = {module: module.training for module in model.modules()}
    learning = [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter in learning:
            parameter.requires_grad_(True)


def _pgd_batch(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig
) -> Tensor:
    ball = _BALLS[config.norm]
    with torch.no_grad():
        logits = model(x)
    ranking = logits.scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True)
    others = logits.shape[1] - 1
    best, best_margin = x, margin(logits, y)
    for restart in range(config.restarts):
        aim = None if restart == 0 else ranking[:, (restart - 1) % others]
        point = x
        if restart > others:
            point = _inside(x, ball.project(torch.randn_like(x), radii), config)
        for step in range(config.steps):
            logits, gradient = _climb(model, point, y, aim)
            best, best_margin = _better(best, best_margin, point, margin(logits, y))
            # Long steps first; the last ones settle on the best point of the sphere.
            length = 2.0 * radii * (1.0 - step / config.steps)
            move = ball.steepest(gradient) * _column(length, x)
            point = _inside(x, ball.project(point + move - x, radii), config)
        best, best_margin = _better(best, best_margin, point, _margin_at(model, point, y))
    return best


def _climb(model: nn.Module, point: Tensor, y: Tensor, aim: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits at ``point``, and the gradient of the margin (to the class aimed at, if any)."""
    point = point.detach().requires_grad_(True)
    logits: Tensor = model(point)
    if aim is None:
        value = margin(logits, y)
    else:
        value = (logits.gather(1, aim[:, None]) - logits.gather(1, y[:, None])).flatten()
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return logits.detach(), gradient


def _search_batch(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig
) -> Tensor:
    ball = _BALLS[config.norm]
    best, best_margin = x, _margin_at(model, x, y)
    with torch.no_grad():
        predicted = model(x).argmax(dim=1)
    for _ in range(config.directions):
        partner = torch.randperm(len(x), device=x.device)
        towards = x[partner] - x
        noise = _column(radii, x) * ball.steepest(torch.randn_like(x))
        for move, useful in (
            (noise, torch.ones_like(y, dtype=torch.bool)),
            (ball.project(towards, radii), predicted[partner] != y),
        ):
            point = _inside(x, move, config)
            value = _margin_at(model, point, y).where(useful, -math.inf)
            best, best_margin = _better(best, best_margin, point, value)
    return best


def _rays_batch(
    model: nn.Module, x: Tensor, y: Tensor, radii: Tensor, config: AttackConfig
) -> Tensor:
    ball = _BALLS[config.norm]
    best, best_margin = x, _margin_at(model, x, y)
    for k in range(1 + config.directions // 4):
        direction = torch.randn_like(x) if k else _climb(model, x, y, None)[1]
        whole = _column(radii, x) * ball.steepest(direction)
        for share in range(1, _ON_A_RAY + 1):
            point = _inside(x, whole * (share / _ON_A_RAY), config)
            best, best_margin = _better(best, best_margin, point, _margin_at(model, point, y))
    return best


def _margin_at(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(model(x), y)


def _better(
    best: Tensor, best_margin: Tensor, point: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Row by row, whichever has the larger margin."""
    wins = value > best_margin
    return torch.where(_column(wins, best), point, best), torch.where(wins, value, best_margin)


def _inside(x: Tensor, move: Tensor, config: AttackConfig) -> Tensor:
    """``x + move`` in the box; clipping never lengthens a move when ``x`` lies in the box."""
    point = x + move
    return point if config.clip is None else point.clamp(*config.clip)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(n,)`` values shaped to multiply or select rows of ``like``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


class _L2:
    """The Euclidean ball."""

    @staticmethod
    def project(move: Tensor, radii: Tensor) -> Tensor:
        length = _column(lengths(move.flatten(1)).clamp_min(torch.finfo(move.dtype).tiny), move)
        return move * (_column(radii, move) / length).clamp_max(1.0)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        length = lengths(gradient.flatten(1)).clamp_min(torch.finfo(gradient.dtype).tiny)
        return gradient / _column(length, gradient)


class _Linf:
    """The box ``max |x_i| <= radius``."""

    @staticmethod
    def project(move: Tensor, radii: Tensor) -> Tensor:
        limit = _column(radii, move)
        return move.clamp(-limit, limit)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        return gradient.sign()


_BALLS: dict[str, type[_L2] | type[_Linf]] = {"l2": _L2, "linf": _Linf}
