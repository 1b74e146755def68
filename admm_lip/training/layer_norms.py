"""Training by spectral-norm balls: where activations sort pairs, and of convolutions.

Let all activations be MaxMin or GroupSort2.  In the coordinates of sums and differences of pairs
(``sorting.py``) ``A = diag(B, D)``, B any invertible matrix on the sums and D any positive diagonal
one on the differences, commutes with the activation.  So A may be moved through a layer: the
network stays as it is, and a certificate, ``diag(Gamma, Lambda)`` per layer, turns into the
identity where ``A'A`` is that certificate.  Multipliers of I therefore reach every network that any
multiplier certifies, and their inequality says that

    ||W_k||_2 <= c   for all l + 1 layers,      L = c^(l+1).

* **Enforced:** ``c = bound^(1/(l+1))``; the projection clips the singular values of each layer,
  in single precision where no more is asked for, and of wide layers only those near the ones that
  were cut in the round before; the norm of the result is checked in double.
* **Penalised:** ``min mu c^(2(l+1)) + rho/2 sum (sigma - c)_+^2`` over c, with all singular values
  of the anchor: one equation in one unknown, its left side growing with c,

      2 (l+1) mu c^(2l+1) = rho sum (sigma - c)_+.

The certificate of the result is often below ``c^(l+1)``, because its multipliers are optimised.

**Convolutions** (``kernel_ball.py``): A is the same at every pixel, a 1 x 1 convolution, so balls
of norms on a torus reach every network that multipliers constant over space certify.  Pools and
whatever else is fixed between layers multiply the bound by their norms, ``L = gain c^(l+1)``.
Activations that do not sort pairs lose by it what their own matrix inequality would give.  Where
their slopes are not negative two layers in a row are kept in the ball of their module instead
(``module_ball.py``): it counts as two layers of norm c, and loses at other activations alone.

**What stays** (``held.py``): a frozen layer multiplies the bound by its norm, as a pool does, and
the others share the rest.  Of a masked matrix the nearest one is found by a splitting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from operator import mul
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UnsupportedModule
from ..networks.network import Chain
from ..networks.sorting import HALF_ABS
from ..solvers import ProjectSolution, Slopes, Status
from .admm_state import AdmmState, Matrices
from .held import Held
from .matrix_ball import DENSE, HeldBall, clipped, spectral_norm, spectrum
from .start import Start, default_rho, inner_bound
from .terms import FIXED, Activations, Ball, LayerNorms, Terms, grouped

NAME = "layer_norms"
_BISECTIONS = 60
# A fresh kernel is so much larger than its ball, so that the nearest one in it has most of its
# singular values at the radius.
_INFLATED = 3.0
_Row = TypeVar("_Row")


def holding(norms: Activations, held: Held, weights: Matrices) -> Activations:
    """The norms where some entries of the weights stay; a matrix inequality is as it was.

    Raises:
        ValueError: for a masked kernel: its symbol mixes the entries.
    """
    if not held or not isinstance(norms, LayerNorms):
        return norms
    balls, gain = list[Ball](), norms.gain
    rows = [*zip(held.masks, weights, strict=True)]
    for ball, group in grouped(_balls(norms, weights), rows):
        if all(mask is None for mask, _ in group):
            balls.append(ball)
            continue
        apart = ball.apart()
        for own, some in grouped(apart, group) if apart else [(ball, group)]:
            if all(mask is not None and bool(mask.all()) for mask, _ in some):
                balls += [FIXED] * own.layers
                gain *= own.gain_of(tuple(w for _, w in some)) / own.gain
            else:
                balls.append(_around(own, some[0][0]))
    return replace(norms, balls=tuple(balls), gain=gain)


def _around(ball: Ball, mask: Tensor | None) -> Ball:
    """The ball of one layer of which some entries may stay.

    Raises:
        ValueError: for masks that no projection keeps.
    """
    if ball.layers > 1:
        raise ValueError(
            "held: all weights of a residual block are projected together, and here only a part "
            "of them stays; freeze all (requires_grad_(False)), or none"
        )
    if mask is None:
        return ball
    if ball is not DENSE:
        raise ValueError(
            "held: a kernel is projected frequency by frequency, which mixes its entries; "
            "expected masks of dense layers, got one of a convolution or a tied block; freeze "
            "it whole (requires_grad_(False))"
        )
    return HeldBall(mask)


def training_constraint(network: Chain, device: torch.device) -> Activations:
    """What the LMI of a chain asks of its weights.

    Raises:
        UnsupportedModule: by name, where sorting and other activations stand in one network.
    """
    sorts = [spec.name for spec in network.activations if spec.kind == HALF_ABS]
    if sorts:
        others = [spec for spec in network.activations if spec.kind != HALF_ABS]
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
        for alpha, beta in network.slopes
    )


def layer_start(weights: Matrices, terms: Terms, dtype: torch.dtype, loss_scale: float) -> Start:
    """First state: all layers scaled to the same norm, which leaves the function as it is.

    Where the product of norms exceeds the bound, or the start is from scratch, the layers are
    scaled to the bound, and fresh kernels brought near to orthogonal ones.

    Raises:
        ValueError: when the network is constant (its bound is 0), so nothing can be scaled, and
            for what one norm per layer does not give.
    """
    found, held = _norms(terms), terms.held
    _check_asked(terms)
    scratch = terms.config.start == "scratch"
    if scratch:
        fresh = (b.fresh(own) for b, own in grouped(_balls(found, weights), weights))
        weights = held.kept(weights, tuple(chain.from_iterable(fresh)))
    groups = [(b.fitted(own), own) for b, own in grouped(_balls(found, weights), weights)]
    norms, bound = _norms_of(groups), inner_bound(terms.asked, dtype)
    begun_at = _begun_at(found, norms, bound, scratch)
    sharing, each = found.sharing(len(weights)), found.share(begun_at, len(weights))
    own_factors = [f for ball, _ in groups for f in ball.factors]
    factors = [
        each / n * own if shares and not held.is_rigid(k) else 1.0
        for k, (n, own, shares) in enumerate(zip(norms, own_factors, sharing, strict=True))
    ]
    blocks = [b.begun(own, scratch) for b, own in groups]
    ties = chain.from_iterable(blocks)
    consensus = found.scaled(weights, [f * t for f, t in zip(factors, ties, strict=True)])
    _check_fits(terms, consensus, each)
    consensus = _filling(consensus, each, terms)
    lip = begun_at if bound is None else bound
    state = AdmmState(
        consensus=consensus,
        dual=tuple(torch.zeros_like(w) for w in consensus),
        multiplier=(),
        rho=terms.config.rho or default_rho(terms.asked, lip, len(weights), loss_scale),
        lip_sq=lip**2,
        target_sq=lip**2,
    )
    inner = (own for block in blocks for own in accumulate(block, mul))
    scales = zip(accumulate(factors, mul), inner, strict=True)
    return Start(state, tuple(before * own for before, own in scales))


def _filling(weights: Matrices, radius: float, terms: Terms) -> Matrices:
    """Fresh kernels, and weights of which a part stays, at the nearest place in their balls."""
    found, held = _norms(terms), terms.held
    fresh = terms.config.start == "scratch" and found.image is not None
    if not fresh and not any(held.rigid):
        return weights
    more = [_INFLATED if fresh else 1.0] * len(weights)
    wide = held.kept(weights, found.scaled(weights, more))
    return _nearest(found, wide, radius, terms.config.projection_tol)[0]


def _begun_at(found: LayerNorms, norms: Sequence[float], bound: float | None, fills: bool) -> float:
    """The product of norms that a run begins at: the network's own, or the bound below it.

    Raises:
        ValueError: for a constant network, and where nothing that moves shares a bound below it.
    """
    if min(found.gain, *norms) == 0.0:
        raise ValueError(
            "model: its Lipschitz bound is 0 (a layer is all zeros), so it cannot be scaled to a "
            "bound; initialise it, or use start='scratch'"
        )
    product = math.fsum(math.log(n) for n in (found.gain, *norms))
    if bound is None or not (fills or product > math.log(bound)):
        return math.exp(product)
    if product > math.log(bound) and not any(found.sharing(len(norms))):
        raise ValueError(
            "bound: what takes no share (frozen layers, pools, residual blocks) has a product of "
            f"norms of {math.exp(product):.6g}, beyond {bound:.6g}, and nothing else that "
            "moves shares the bound; thaw a layer, or lower residual_gain"
        )
    return bound


def _norms_of(groups: Sequence[tuple[Ball, Matrices]]) -> list[float]:
    """What every layer counts for; that of a tied block is 1 once it is in its ball."""
    found = [(b.norm_of(own) if b.shares else 1.0, b.degrees) for b, own in groups]
    return [norm if degree == 1 else 1.0 for norm, degrees in found for degree in degrees]


def _norms(terms: Terms) -> LayerNorms:
    assert isinstance(terms.slopes, LayerNorms)
    return terms.slopes


def _balls(norms: LayerNorms, weights: Matrices) -> tuple[Ball, ...]:
    return norms.balls or (DENSE,) * len(weights)


def _nearest(
    norms: LayerNorms, anchor: Matrices, radius: float, tol: float, warm: Any = None
) -> tuple[Matrices, tuple[Any, ...], int]:
    """The nearest weights in all balls of a radius, their restart data, and the most steps."""
    balls = _balls(norms, anchor)
    rows = zip(grouped(balls, anchor), warm or (None,) * len(balls), strict=True)
    found = [ball.nearest_to(own, radius, tol, start) for (ball, own), start in rows]
    weights = tuple(w for own, _, _ in found for w in own)
    return weights, tuple(known for _, known, _ in found), max(steps for _, _, steps in found)


def _check_fits(terms: Terms, weights: Matrices, radius: float) -> None:
    """Raise :class:`ValueError` where what stays of a matrix is larger than its share."""
    for k, ball, w in _held_balls(terms, weights):
        alone = spectral_norm(torch.where(ball.mask, w, 0.0))
        if alone >= radius:
            raise ValueError(
                f"held: what stays of layer {k} (from 0) has norm {alone:.6g} with zeros "
                f"elsewhere, but the bound leaves {radius:.6g} for it; ask for more, or hold "
                "less"
            )


def _held_balls(terms: Terms, rows: Sequence[_Row]) -> Iterator[tuple[int, HeldBall, _Row]]:
    """The layers with entries that stay at what is not 0, by number, and their rows."""
    balls = _norms(terms).balls if terms.held else ()
    for ball, own in grouped(balls, [*enumerate(rows)]):
        k, row = own[0]
        if isinstance(ball, HeldBall) and terms.held.is_rigid(k):
            yield k, ball, row


def _check_asked(terms: Terms) -> None:
    """Raise :class:`ValueError` for what one norm per layer does not give."""
    for k, _, _ in _held_balls(terms, terms.held.masks):
        if terms.asked.mu is not None:
            raise ValueError(
                f"mu: a price moves the norms of all layers, but entries of layer {k} (from 0) are "
                "held at what is not 0; enforce a bound, or freeze the layer whole"
            )
    if not terms.metric.is_plain:
        raise ValueError(
            "units: a network that sorts pairs, or of convolutions or skips, is trained by one "
            "norm per layer, in the units of its inputs; leave units out, and certify the result "
            "with them"
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
    known: Any = None
    steps = 1
    if mu is None or norms.balls:
        each = norms.share(math.sqrt(state.target_sq), len(anchor))
        weights, known, steps = _nearest(norms, anchor, each, tol, state.warm)
    else:
        spectra = [spectrum(w) for w in anchor]
        values = torch.cat([s.squares.clamp(min=0.0).sqrt() for s in spectra])
        each = best_norm(values.tolist(), mu / state.rho, layers)
        weights = tuple(clipped(s, each) for s in spectra)
    distance_sq = sum(float(torch.dist(w, v)) ** 2 for w, v in zip(weights, anchor, strict=True))
    lip_sq = (norms.gain * each**layers) ** 2
    return ProjectSolution(
        status=Status.OPTIMAL,
        backend=NAME,
        weights=weights,
        lip_sq=lip_sq,
        distance=math.sqrt(distance_sq),
        ball_norm=1.0,
        objective=(mu or 0.0) * lip_sq + 0.5 * state.rho * distance_sq,
        iterations=steps,
        seconds=time.perf_counter() - begun,
        warm=known,
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
