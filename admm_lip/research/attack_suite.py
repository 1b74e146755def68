"""Attacks that look for the nearest adversarial example, and one that knows the detector.

:mod:`admm_lip.evaluation.attacks` asks whether a ball holds an adversarial example.  Here every
input gets the closest one found: by linearising (DeepFool), by a penalised distance (Carlini and
Wagner), or by a walk along the decision boundary that sees predictions alone (Brendel, Rauber and
Bethge).  All are our own, simplified versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..evaluation.attacks import AttackConfig, fooled, frozen, margin, pgd
from ..rounding import lengths
from .input_gradients.measures import JACOBIAN_NORMS, OUTPUTS, check_kind, row_norms
from .input_gradients.norms import dual_norm

_BEYOND = 1.0 + 1e-3  # how far past the boundary an adversarial example is put


@dataclass(frozen=True)
class NearestConfig:
    """How hard an attack looks for the nearest adversarial example.

    Args:
        norm: ``"l2"``, or ``"linf"`` (DeepFool only).
        steps: linearisations (DeepFool), gradient steps per search (CW), or moves (boundary).
        searches: rounds in which CW adapts the weight of its penalty.
        confidence: margin of logits that CW asks for.
        lr: step length of CW, as a share of the first adversarial distance.
        clip: the box of admissible inputs, or ``None``.
        seed: of the random moves.

    Raises:
        ValueError: naming the field.
    """

    norm: str = "l2"
    steps: int = 50
    searches: int = 4
    confidence: float = 0.0
    lr: float = 0.05
    clip: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        dual_norm(self.norm)
        for name in ("steps", "searches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def deepfool(model: nn.Module, x: Tensor, y: Tensor, config: NearestConfig | None = None) -> Tensor:
    """Steps to the nearest boundary of the linearised model, until a wrong class leads.

    Args:
        model: classifier; run in eval mode, left as it was.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        config: see :class:`NearestConfig`.

    Returns:
        Like ``x``: adversarial points, pulled back to the boundary along the line to their input;
        the input itself where it is wrong already, or nothing was found.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> found = deepfool(model, x, y)
        >>> f"{float((found - x).norm()):.3f}"
        '0.708'
    """
    config = config or NearestConfig()
    with frozen(model):
        point = x.clone()
        for _ in range(config.steps):
            going = ~fooled(model, point, y)
            if not bool(going.any()):
                break
            rows = going.nonzero().flatten()
            step = _to_nearest_boundary(model, point[rows], y[rows], config)
            point[rows] = _boxed(point[rows] + 1.02 * step, config.clip)
        return _pulled_back(model, x, y, point)


def _to_nearest_boundary(model: nn.Module, x: Tensor, y: Tensor, config: NearestConfig) -> Tensor:
    """The least step after which, linearised, some other class draws level with ``y``.

    Entries at the edge of the box move inwards only.
    """
    dual = dual_norm(config.norm)
    low, high = config.clip or (-math.inf, math.inf)
    point = x.detach().requires_grad_(True)
    logits = model(point)
    own = logits.gather(1, y[:, None])
    best = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
    step = torch.zeros_like(x)
    for k in range(logits.shape[1]):
        gap = own[:, 0] - logits[:, k]
        (slope,) = torch.autograd.grad(gap.sum(), point, retain_graph=True)
        stuck = ((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0))
        slope = slope.masked_fill(stuck, 0.0)
        size = dual.size(slope)
        distance = (gap.detach() / size).where((y != k) & (size > 0), math.inf)
        closer = distance < best
        best = torch.where(closer, distance, best)
        move = -_column(distance.where(closer, 0.0), x) * dual.direction(slope)
        step = torch.where(_column(closer, x), move, step)
    return step


def carlini_wagner(
    model: nn.Module, x: Tensor, y: Tensor, config: NearestConfig | None = None
) -> Tensor:
    """Minimise ``|delta|^2 / d^2 + c max(0, confidence - margin)`` by Adam, c searched per row.

    d is the distance that DeepFool reached, so that c needs no units.  Arguments and result as in
    :func:`deepfool`; never farther than DeepFool's result.
    """
    config = config or NearestConfig()
    _only_l2(config, "carlini_wagner")
    best = deepfool(model, x, y, config)
    with frozen(model):
        done = fooled(model, x, y)
        least = lengths((best - x).flatten(1)).where(
            _margins(model, best, y) > config.confidence, math.inf
        )
        reach = lengths((best - x).flatten(1))
        scale = reach.where(reach > 0, float(reach.max().clamp_min(1e-12)))
        weight, low = torch.ones_like(reach), torch.zeros_like(reach)
        high = torch.full_like(reach, math.inf)
        for _ in range(config.searches):
            found, length = _penalised_descent(model, x, y, best, scale, weight, config)
            best = torch.where(_column(length < least, x), found, best)
            least = torch.minimum(length, least)
            hit = torch.isfinite(length)
            low, high = torch.where(hit, low, weight), torch.where(hit, weight, high)
            weight = torch.where(torch.isinf(high), 10.0 * weight, 0.5 * (low + high))
        if config.confidence == 0.0:
            best = _pulled_back(model, x, y, best)
        return torch.where(_column(done, x), x, best)


def _penalised_descent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    scale: Tensor,
    weight: Tensor,
    config: NearestConfig,
) -> tuple[Tensor, Tensor]:
    """One search: the closest adversarial points met and their distances, infinite for none."""
    unit = _column(scale, x)
    moves = ((begin - x) / unit).requires_grad_(True)
    optimizer = torch.optim.Adam([moves], lr=config.lr)
    best, least = x.clone(), torch.full_like(scale, math.inf)
    for _ in range(config.steps):
        point = _boxed(x + unit * moves, config.clip)
        gain = margin(model(point), y)
        with torch.no_grad():
            length = lengths((point - x).flatten(1))
            closer = (gain > config.confidence) & (length < least)
            best = torch.where(_column(closer, x), point, best)
            least = torch.where(closer, length, least)
        short = (config.confidence + 1e-3 - gain).clamp_min(0.0)
        value = moves.flatten(1).square().sum(dim=1) + weight * short
        (moves.grad,) = torch.autograd.grad(value.sum(), moves)
        optimizer.step()
    return best.detach(), least


def boundary(model: nn.Module, x: Tensor, y: Tensor, config: NearestConfig | None = None) -> Tensor:
    """Walk along the decision boundary towards the input, seeing predictions alone.

    Starts from the nearest row of ``x`` that is predicted as another class.  A move is a random
    step on the sphere around the input and a step inwards; both lengths adapt to how often moves
    succeed.  Arguments and result as in :func:`deepfool`.
    """
    config = config or NearestConfig()
    _only_l2(config, "boundary")
    generator = torch.Generator(device=x.device).manual_seed(config.seed)
    with frozen(model), torch.no_grad():
        best = _pulled_back(model, x, y, _nearest_of_another_class(model, x, y))
        started = fooled(model, best, y)
        aside = torch.full((len(x),), 0.1, dtype=x.dtype, device=x.device)
        inwards = aside.clone()
        for _ in range(config.steps):
            line = best - x
            length = lengths(line.flatten(1))
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            noise = noise * _column(aside * length / lengths(noise.flatten(1)).clamp_min(1e-12), x)
            turned = line + noise
            turned = turned * _column(length / lengths(turned.flatten(1)).clamp_min(1e-12), x)
            on_sphere = fooled(model, _boxed(x + turned, config.clip), y)
            point = _boxed(x + turned * _column(1.0 - inwards, x), config.clip)
            closer = fooled(model, point, y) & (lengths((point - x).flatten(1)) < length) & started
            best = torch.where(_column(closer, x), point, best)
            # Half of the sideways moves should stay adversarial, a quarter of the whole moves.
            aside = (aside * torch.where(on_sphere, 1.05, 1.0 / 1.05)).clamp(1e-4, 1.0)
            inwards = (inwards * torch.where(closer, 1.15, 1.0 / 1.05)).clamp(1e-4, 0.5)
        return _pulled_back(model, x, y, best)


def _nearest_of_another_class(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """For every row, the closest row of ``x`` with another prediction (itself if there is none)."""
    flat = x.flatten(1)
    predicted = model(x).argmax(dim=1)
    apart = torch.cdist(flat, flat).masked_fill(predicted[None] == y[:, None], math.inf)
    nearest = apart.argmin(dim=1)
    known = torch.isfinite(apart.amin(dim=1))
    return torch.where(_column(known, x), x[nearest], x)


@dataclass(frozen=True)
class EvasiveConfig:
    """An attack inside a ball that also keeps the detector's score low.

    Args:
        kind: of the Jacobian norm, as the detector measures it.
        output: what the detector differentiates.
        weight: of ``log score`` against the margin of logits.
        confidence: margin of logits beyond which only the score counts.
        steps: gradient steps.
        norm: of the ball.
        clip: the box of admissible inputs, or ``None``.
        batch_size: rows at once.

    Raises:
        ValueError: naming the field.
    """

    kind: str = "2_inf"
    output: str = "probabilities"
    weight: float = 1.0
    confidence: float = 5.0
    steps: int = 40
    norm: str = "l2"
    clip: tuple[float, float] | None = None
    batch_size: int = 500

    def __post_init__(self) -> None:
        check_kind(self.kind, self.output)
        dual_norm(self.norm)
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")


def evasive(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, config: EvasiveConfig | None = None
) -> Tensor:
    """Wrong predictions that score as low as can be found, within ``radius`` of the input.

    Projected ascent, from the result of :func:`~admm_lip.evaluation.attacks.pgd`, on

        min(margin, confidence) - weight * log(score)

    with the gradient of the score itself (by double backpropagation).

    Args:
        model: classifier; run in eval mode, left as it was.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        radius: of the ball.
        config: see :class:`EvasiveConfig`.

    Returns:
        Like ``x``: of the wrong points met, the one that scores lowest; where none was met, the
        one that plain PGD ends at.
    """
    config = config or EvasiveConfig()
    attack = AttackConfig(norm=config.norm, clip=config.clip)  # type: ignore[arg-type]
    begin = pgd(model, x, y, radius, attack)
    with frozen(model):
        parts = zip(*(torch.split(v, config.batch_size) for v in (x, y, begin)), strict=True)
        return torch.cat([_evade(model, a, b, c, radius, config) for a, b, c in parts])


def _evade(
    model: nn.Module, x: Tensor, y: Tensor, begin: Tensor, radius: float, config: EvasiveConfig
) -> Tensor:
    dual = dual_norm(config.norm)
    point, best = begin, begin
    least = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
    for step in range(config.steps + 1):
        leaf = point.detach().requires_grad_(True)
        logits = model(leaf)
        values = OUTPUTS[config.output](logits)
        rows = torch.stack(list(row_norms(values, leaf, create_graph=True)), dim=1)
        score = JACOBIAN_NORMS[config.kind](rows).clamp_min(1e-12)
        gain = margin(logits, y)
        lower = (gain > 0) & (score < least)
        best = torch.where(_column(lower, x), leaf.detach(), best)
        least = torch.where(lower, score.detach(), least)
        worth = gain.clamp_max(config.confidence) - config.weight * score.log()
        (slope,) = torch.autograd.grad(worth.sum(), leaf)
        length = radius * (1.0 - step / (config.steps + 1)) * 0.5
        move = leaf.detach() + length * dual.direction(slope) - x
        point = _boxed(x + _PROJECT[config.norm](move, radius), config.clip)
    return best


def _project_l2(move: Tensor, radius: float) -> Tensor:
    share: Tensor = (radius / lengths(move.flatten(1)).clamp_min(1e-30)).clamp_max(1.0)
    return move * _column(share, move)


_PROJECT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": _project_l2,
    "linf": lambda move, radius: move.clamp(-radius, radius),
}


def _pulled_back(model: nn.Module, x: Tensor, y: Tensor, point: Tensor) -> Tensor:
    """The points moved along the line to their input until just beyond the boundary."""
    line = point - x
    low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    high = torch.ones_like(low)
    wrong = fooled(model, point, y)
    for _ in range(20):
        middle = 0.5 * (low + high)
        beyond = fooled(model, x + _column(middle, x) * line, y)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    share = (high * _BEYOND).clamp_max(1.0)
    pulled = x + _column(share, x) * line
    keep = wrong & ~fooled(model, pulled, y)
    pulled = torch.where(_column(keep, x), point, pulled)
    return torch.where(_column(wrong & ~fooled(model, x, y), x), pulled, x)


def _boxed(point: Tensor, clip: tuple[float, float] | None) -> Tensor:
    return point if clip is None else point.clamp(*clip)


def _margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(model(x), y)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def _only_l2(config: NearestConfig, attack: str) -> None:
    if config.norm != "l2":
        raise ValueError(
            f"norm: {attack} is an l2 attack, got {config.norm!r}; use deepfool or pgd"
        )
