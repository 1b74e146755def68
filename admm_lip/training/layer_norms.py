"""Training where every activation sorts pairs: one spectral-norm ball per layer.

Let all activations be MaxMin or GroupSort2.  In the coordinates of sums and differences of pairs
(``sorting.py``) ``A = diag(B, D)``, B any invertible matrix on the sums and D any positive diagonal
one on the differences, commutes with the activation.  So A may be moved through a layer: the
network stays as it is, and a certificate, ``diag(Gamma, Lambda)`` per layer, turns into the
identity where ``A'A`` is that certificate.  Multipliers of I therefore reach every network that any
multiplier certifies, and their inequality says that

    ||W_k||_2 <= c   for all l + 1 layers,      L = c^(l+1).

* **Enforced:** ``c = bound^(1/(l+1))``; the projection clips the singular values of each layer,
  in single precision where no more is asked for (half the time of wide layers), the norm of the
  result checked in double.
* **Penalised:** ``min mu c^(2(l+1)) + rho/2 sum (sigma - c)_+^2`` over c, with all singular values
  of the anchor: one equation in one unknown, its left side growing with c,

      2 (l+1) mu c^(2l+1) = rho sum (sigma - c)_+.

The certificate of the result is often below ``c^(l+1)``, because its multipliers are optimised.

**Convolutions** (``kernel_ball.py``): A is the same at every pixel, a 1 x 1 convolution, so balls
of norms on a torus reach every network that multipliers constant over space certify.  Pools and
whatever else is fixed between layers multiply the bound by their norms, ``L = gain c^(l+1)``.
Activations that do not sort pairs may be trained so too; they lose what their own matrix inequality
would give.

**What stays** (``held.py``): a frozen layer multiplies the bound by its norm, as a pool does, and
the others share the rest.  Of a masked matrix the nearest one is found by a splitting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedModule
from ..networks.network import Chain
from ..networks.sorting import HALF_ABS
from ..solvers import (
    ProjectProblem,
    ProjectSolution,
    Slopes,
    SolverConfig,
    Status,
    Structure,
    solve_project,
)
from .admm_state import AdmmState, Matrices
from .held import Held
from .kernel_ball import SINGLE
from .start import Start, default_rho, inner_bound
from .terms import FIXED, Activations, LayerBall, LayerNorms, Terms, TiedBall

NAME = "layer_norms"
_BISECTIONS = 60
# A fresh kernel is so much larger than its ball, so that the nearest one in it has most of its
# singular values at the radius.
_INFLATED = 3.0


# From this order on single precision is the faster one; how far inside the ball it cuts singular
# values, relatively.
_WIDE, _ROOM = 100, 3e-6


class DenseBall:
    """Matrices by their spectral norm."""

    shares = True

    def norm(self, weight: Tensor) -> float:
        """The largest singular value."""
        return spectral_norm(weight)

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, None, int]:
        """The singular values cut at ``radius``: in one step, exact but for the precision asked."""
        rough = tol >= SINGLE and min(anchor.shape) >= _WIDE
        found = _clipped_in_single(anchor, radius) if rough else None
        if found is None and not is_inside(anchor, radius):
            found = clipped(spectrum(anchor), radius)
        return anchor if found is None else found, None, 1


DENSE = DenseBall()


@dataclass(frozen=True, eq=False)
class HeldBall:
    """Matrices by their spectral norm, of which some entries stay.

    Attributes:
        mask: ``True`` where an entry stays at the anchor's.
    """

    mask: Tensor
    shares = True

    def norm(self, weight: Tensor) -> float:
        """The largest singular value."""
        return spectral_norm(weight)

    def nearest(
        self, anchor: Tensor, radius: float, tol: float, warm: Any = None
    ) -> tuple[Tensor, Any, int]:
        """By the projection of a single affine map."""
        if is_inside(anchor, radius):
            return anchor, warm, 1
        structure = (Structure(held=self.mask),)
        problem = ProjectProblem((anchor,), (), (), bound=radius, structure=structure)
        found = solve_project(problem, SolverConfig(tol=tol), warm=warm)
        return found.weights[0], found.warm, found.iterations


def holding(norms: Activations, held: Held, weights: Matrices) -> Activations:
    """The norms where some entries of the weights stay; a matrix inequality is as it was.

    Raises:
        ValueError: for a masked kernel: its symbol mixes the entries.
    """
    if not held or not isinstance(norms, LayerNorms):
        return norms
    balls, gain = list(_balls(norms, weights)), norms.gain
    for k, (mask, w) in enumerate(zip(held.masks, weights, strict=True)):
        if held.whole(k):
            gain *= balls[k].norm(w)
            balls[k] = FIXED
        elif mask is not None and balls[k] is not DENSE:
            raise ValueError(
                "held: a kernel is projected frequency by frequency, which mixes its entries; "
                "expected masks of dense layers, got one of a convolution or a tied block; freeze "
                "it whole (requires_grad_(False))"
            )
        elif mask is not None:
            balls[k] = HeldBall(mask)
    return replace(norms, balls=tuple(balls), gain=gain)


class Spectrum(NamedTuple):
    """A matrix, the squares of its singular values in rising order, and the vectors of one side.

    ``short`` says whether the vectors stand on the side of the rows.
    """

    matrix: Tensor
    squares: Tensor
    vectors: Tensor
    short: bool


def training_constraint(chain: Chain, device: torch.device) -> Activations:
    """What the LMI of a chain asks of its weights.

    Raises:
        UnsupportedModule: by name, where sorting and other activations stand in one network.
    """
    sorts = [spec.name for spec in chain.activations if spec.kind == HALF_ABS]
    if sorts:
        others = [spec for spec in chain.activations if spec.kind != HALF_ABS]
        if others:
            raise UnsupportedModule(
                f"{sorts[0]} sorts pairs and {others[0].name} ({others[0].kind}) does not: such a "
                "mixed network can be certified and projected but not trained; use one kind"
            )
        return LayerNorms()
    return tuple(
        Slopes(
            torch.as_tensor(alpha, device=device).clamp(max=0.0),
            torch.as_tensor(beta, device=device),
        )
        for alpha, beta in chain.slopes
    )


def layer_start(weights: Matrices, terms: Terms, dtype: torch.dtype, loss_scale: float) -> Start:
    """First state: all layers scaled to the same norm, which leaves the function as it is.

    Where the product of norms exceeds the bound, or the start is from scratch, the layers are
    scaled to the bound, and fresh kernels brought near to orthogonal ones.

    Raises:
        ValueError: when the network is constant (its bound is 0), so nothing can be scaled, and
            for what one norm per layer does not give.
    """
    asked, found, held = terms.asked, _norms(terms), terms.held
    _check_asked(terms)
    balls = _balls(found, weights)
    # The norm of a tied block is 1 once it is in its ball.
    norms = [b.norm(w) if b.shares else 1.0 for b, w in zip(balls, weights, strict=True)]
    if min(found.gain, *norms) == 0.0:
        raise ValueError(
            "model: its Lipschitz bound is 0 (a layer is all zeros), so it cannot be scaled to a "
            "bound; initialise it, or use start='scratch'"
        )
    log_product = math.fsum([math.log(found.gain), *(math.log(n) for n in norms)])
    log_bound = log_product
    bound = inner_bound(asked, dtype)
    scratch = terms.config.start == "scratch"
    if bound is not None and (scratch or log_product > math.log(bound)):
        log_bound = math.log(bound)
    if not any(found.sharing(len(weights))) and log_product > log_bound:
        raise ValueError(
            f"bound: what is frozen has a product of norms of {math.exp(log_product):.6g}, beyond "
            f"{bound:.6g}, and nothing else that moves shares the bound; thaw a layer"
        )
    each = found.share(math.exp(log_bound), len(weights))
    factors = [1.0 if held.is_rigid(k) else each / n for k, n in enumerate(norms)]
    ties = [1.0] * len(weights)
    for k, ball in enumerate(balls):
        if not ball.shares:
            factors[k] = 1.0
        if isinstance(ball, TiedBall):
            ties[k] = ball.begun(weights[k], scratch)
    consensus = tuple(f * t * w for f, t, w in zip(factors, ties, weights, strict=True))
    _check_fits(held, consensus, balls, each)
    fresh = scratch and found.image is not None
    if fresh or any(held.rigid):
        tol = terms.config.projection_tol
        wide = held.scaled(consensus, _INFLATED if fresh else 1.0)
        consensus = tuple(
            ball.nearest(w, each, tol)[0] for ball, w in zip(balls, wide, strict=True)
        )
    lip = bound if bound is not None else math.exp(log_bound)
    state = AdmmState(
        consensus=consensus,
        dual=tuple(torch.zeros_like(w) for w in consensus),
        multiplier=(),
        rho=terms.config.rho or default_rho(asked, lip, len(weights), loss_scale),
        lip_sq=lip**2,
        target_sq=lip**2,
    )
    scales = zip(accumulate(factors, mul), ties, strict=True)
    return Start(state, tuple(before * own for before, own in scales))


def _norms(terms: Terms) -> LayerNorms:
    assert isinstance(terms.slopes, LayerNorms)
    return terms.slopes


def _balls(norms: LayerNorms, weights: Matrices) -> tuple[LayerBall, ...]:
    return norms.balls or (DENSE,) * len(weights)


def _check_fits(held: Held, weights: Matrices, balls: tuple[LayerBall, ...], radius: float) -> None:
    """Raise :class:`ValueError` where what stays of a matrix is larger than its share."""
    for k, (ball, w) in enumerate(zip(balls, weights, strict=True)):
        if isinstance(ball, HeldBall) and held.is_rigid(k):
            alone = spectral_norm(torch.where(ball.mask, w, 0.0))
            if alone >= radius:
                raise ValueError(
                    f"held: what stays of layer {k} (from 0) has norm {alone:.6g} with zeros "
                    f"elsewhere, but the bound leaves {radius:.6g} for it; ask for more, or hold "
                    "less"
                )


def _check_asked(terms: Terms) -> None:
    """Raise :class:`ValueError` for what one norm per layer does not give."""
    norms = _norms(terms)
    for k, ball in enumerate(norms.balls):
        if terms.asked.mu is not None and isinstance(ball, HeldBall) and terms.held.is_rigid(k):
            raise ValueError(
                f"mu: a price moves the norms of all layers, but entries of layer {k} (from 0) are "
                "held at what is not 0; enforce a bound, or freeze the layer whole"
            )
    if not terms.metric.is_plain:
        raise ValueError(
            "units: a network that sorts pairs, or of convolutions, is trained by one norm per "
            "layer, in the units of its inputs; leave units out, and certify the result with them"
        )


def project_layers(
    anchor: Matrices,
    state: AdmmState,
    mu: float | None,
    norms: LayerNorms | None = None,
    tol: float = 1e-3,
) -> ProjectSolution:
    """The nearest weights with ``||W_k|| <= c``; for matrices under a price c is optimal as well.

    Args:
        anchor: to be projected.
        state: of the round before.
        mu: the price of ``L^2``; ``None``: the state's bound is enforced, as it is for
            convolutions, whose bound moves between rounds (``lipschitz_step.py``).
        norms: of the layers; ``None``: all are dense.
        tol: accuracy where a projection is iterative.
    """
    begun, norms = time.perf_counter(), norms or LayerNorms()
    layers = sum(norms.sharing(len(anchor)))
    if mu is None or norms.balls:
        each = norms.share(math.sqrt(state.target_sq), len(anchor))
        warm = state.warm or (None,) * len(anchor)
        rows = zip(_balls(norms, anchor), anchor, warm, strict=True)
        found = [ball.nearest(w, each, tol, start) for ball, w, start in rows]
        weights = tuple(w for w, _, _ in found)
    else:
        spectra = [spectrum(w) for w in anchor]
        values = torch.cat([s.squares.clamp(min=0.0).sqrt() for s in spectra])
        each = best_norm(values.tolist(), mu / state.rho, layers)
        weights = tuple(clipped(s, each) for s in spectra)
        found = [(w, None, 1) for w in weights]
    distance_sq = sum(float((w - v).square().sum()) for w, v in zip(weights, anchor, strict=True))
    lip_sq = (norms.gain * each**layers) ** 2
    return ProjectSolution(
        status=Status.OPTIMAL,
        backend=NAME,
        weights=weights,
        lip_sq=lip_sq,
        distance=math.sqrt(distance_sq),
        ball_norm=1.0,
        objective=(mu or 0.0) * lip_sq + 0.5 * state.rho * distance_sq,
        iterations=max(steps for _, _, steps in found),
        seconds=time.perf_counter() - begun,
        warm=tuple(own for _, own, _ in found) if norms.balls else None,
    )


def best_norm(values: Sequence[float], weight: float, layers: int) -> float:
    """The c > 0 with ``2 m weight c^(2m-1) = sum (sigma - c)_+``, m the number of layers.

    Args:
        values: all singular values, some of them > 0.
        weight: ``mu / rho``.
        layers: m.
    """
    rising = sorted(values)
    low, high = 0.0, rising[-1]
    for _ in range(_BISECTIONS):
        c = 0.5 * (low + high)
        above = sum(v - c for v in rising if v > c)
        if 2 * layers * weight * c ** (2 * layers - 1) < above:
            low = c
        else:
            high = c
    return high


def is_inside(matrix: Tensor, radius: float) -> bool:
    """Whether ``||A||_2 < radius``, by one Cholesky factorisation."""
    slack = _gram(matrix).neg_()
    slack.diagonal().add_(radius**2)
    return int(torch.linalg.cholesky_ex(slack)[1]) == 0


def spectrum(matrix: Tensor) -> Spectrum:
    """Singular values and vectors of one side, from the smaller Gram matrix."""
    squares, vectors = torch.linalg.eigh(_gram(matrix))
    return Spectrum(matrix, squares, vectors, matrix.shape[0] <= matrix.shape[1])


def clipped(found: Spectrum, radius: float) -> Tensor:
    """The matrix with its singular values cut at ``radius``: the nearest one in that ball."""
    above = int((found.squares > radius**2).sum())
    if above == 0:
        return found.matrix
    part = found.vectors[:, -above:]
    taken = part * (1.0 - radius / found.squares[-above:].sqrt())
    if found.short:
        return torch.addmm(found.matrix, taken, part.T @ found.matrix, alpha=-1.0)
    return torch.addmm(found.matrix, found.matrix @ part, taken.T, alpha=-1.0)


def _clipped_in_single(matrix: Tensor, radius: float) -> Tensor | None:
    """:func:`clipped` where single precision finds it, checked in double, else ``None``."""
    known = spectrum((matrix / radius).to(torch.float32))
    if float(known.squares[-1]) <= (1.0 + _ROOM) ** 2:  # inside perhaps, where nothing may move
        return None
    found = radius * clipped(known, 1.0 - _ROOM).to(matrix.dtype)
    return found if is_inside(found, radius) else None


def spectral_norm(matrix: Tensor) -> float:
    """``||A||_2`` from the smaller Gram matrix."""
    top = float(matrix.abs().max())
    if top == 0.0:
        return 0.0
    return top * math.sqrt(max(float(torch.linalg.eigvalsh(_gram(matrix / top))[-1]), 0.0))


def _gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
