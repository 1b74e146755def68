"""What the studies measure of a trained classifier, in per cent of the rows given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify
from admm_lip.evaluation.attacks import AttackConfig, fooled, pgd

from .contenders import Pair, Trained, predictions


def accuracy(model: nn.Module, pair: Pair) -> float:
    """Share of rows classified correctly."""
    return _percent(predictions(model, pair[0]) == pair[1])


def certified(
    trained: Trained, pair: Pair, radii: Sequence[float], by_pairs: bool = False
) -> list[float]:
    """Share of rows that are right, and provably stay so within each l2 radius.

    ``by_pairs`` proves a bound for every pair of classes, for methods that train such bounds.
    Without a certificate the margin over ``sqrt(2) L`` is used with the method's own L.
    """
    x, y = pair
    if trained.certificate is not None:
        own = trained.certificate
        proof = certify(trained.model, kind="pairwise") if by_pairs else own
        radius = certified_radii(trained.model, x, y, certificate=proof)
    else:
        with torch.no_grad():
            logits = trained.model(x)
        right = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -math.inf).amax(dim=1)
        radius = (right - others) / (math.sqrt(2.0) * trained.lip)
    return [_percent(radius > r) for r in radii]


def attacked(model: nn.Module, pair: Pair, radii: Sequence[float], steps: int = 40) -> list[float]:
    """Share of rows that projected gradient ascent in the l2 ball does not break."""
    x, y = pair
    config = AttackConfig(steps=steps, restarts=2)
    return [_percent(~fooled(model, pgd(model, x, y, r, config), y)) for r in radii]


def _gaussian(like: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return size * torch.randn(like.shape, generator=generator)


def _uniform(like: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return size * (torch.rand(like.shape, generator=generator) - 0.5)


# name -> noise of a given standard deviation, or of a given width around 0
NOISES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
}


def under_noise(model: nn.Module, pair: Pair, noise: str, sizes: Sequence[float]) -> list[float]:
    """Accuracy on inputs with noise added, which is not clipped; the same draws for every model."""
    x, y = pair
    found = []
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        found.append(accuracy(model, (x + NOISES[noise](x, size, generator), y)))
    return found


def steepest(model: nn.Module, x: Tensor, steps: int = 20) -> float:
    """A lower bound on L: the largest Jacobian norm at the rows and after a climb from the best.

    Args:
        model: maps ``(n, d)`` to ``(n, m)``.
        x: where to look first.
        steps: random moves tried from the best 64 points.
    """
    generator = torch.Generator().manual_seed(0)
    norms = jacobian_norms(model, x)
    order = norms.argsort(descending=True)[:64]
    points, best = x[order], norms[order]
    size = float(x.std())
    for step in range(steps):
        moved = points + size * 0.8**step * torch.randn(points.shape, generator=generator)
        found = jacobian_norms(model, moved)
        better = found > best
        points = torch.where(better[:, None], moved, points)
        best = torch.where(better, found, best)
    return float(best.max())


def jacobian_norms(model: nn.Module, x: Tensor) -> Tensor:
    """Spectral norm of the Jacobian at every row, ``(n,)``."""
    x = x.detach().requires_grad_(True)
    outputs = model(x)
    rows = [
        torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)[0]
        for k in range(outputs.shape[1])
    ]
    jacobian = torch.stack(rows, dim=1)
    gram = jacobian @ jacobian.transpose(1, 2)
    norms: Tensor = torch.linalg.eigvalsh(gram.double())[:, -1].clamp_min(0.0).sqrt()
    return norms.to(x.dtype)


def _percent(right: Tensor) -> float:
    return 100.0 * float(right.float().mean())
