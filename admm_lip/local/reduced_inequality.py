"""The Lipschitz inequality of one sample with constant neurons gone and linear ones merged.

A neuron with slopes in ``[m - r, m + r]`` answers an increment ``a_i`` of its input by
``m_i a_i + r_i w_i`` with ``|w_i| <= |a_i|``.  Substituting ``m_i a_i`` forward, layer by layer,
leaves the **open** neurons (r > 0) only:

    a = P d + Q w,    df = G d + H w,    |w_i| <= |a_i|,        d the increment of the input.

A dead neuron (m = r = 0) has vanished, a linear one (r = 0) is part of P, Q, G, H: both exactly.
With ``T = diag(t) > 0`` the quadratic constraints ``t_i (a_i^2 - w_i^2) >= 0`` give

    |df|^2 <= s^2 |d|^2        if        || diag(T^1/2, I) [P Q; G H] diag(s I, T^1/2)^-1 || <= 1,

which is LipSDP with per-neuron slopes, its multiplier being ``t_i / (2 r_i^2)``.  The input enters
through ``W_0 W_0'`` only, so that ``W_0`` is replaced by the factor F of ``input_region.py``.

**Proof through rounding.**  m and r are chosen as floating-point numbers.  The coefficients are
computed, column j with an error of norm at most ``error_j``.  The scales are floating-point
numbers, too: ``t_i`` is the square of the stored root.  Then the computed matrix B of the scaled
coefficients is within ``e = 4 u ||B||_F + max(roots, 1) ||error_j / scale_j||`` of the exact one,
and a Cholesky factor of ``(1 - c) I - B B'`` that runs to completion proves the bound, with c
covering 3 e, the rounding of ``B B'`` and that of the factorisation (see ``proof.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK, gamma, lengths
from .curved_layers import CurvedNet
from .curves import Range

# Multipliers' roots and bounds that a proof accepts.
_RANGE = (2.0**-400, 2.0**400)


@dataclass(frozen=True, eq=False)
class Gain:
    """A batch of items ``(P, Q, G, H)``, padded to equal numbers of open neurons.

    Attributes:
        rows: ``[P Q]``, ``(batch, N, q + N)``; zero rows and columns are padding.
        out: ``[G H]``, ``(batch, p, q + N)``.
        error: bound on the norm of each column's error, ``(batch, q + N)``.
        open: which of the N are neurons, ``(batch, N)``.
        sizes: N by layers.
    """

    rows: Tensor
    out: Tensor
    error: Tensor
    open: Tensor
    sizes: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """q, the columns of the input's factor."""
        return int(self.rows.shape[-1] - self.rows.shape[-2])

    def select(self, items: Tensor) -> Gain:
        """Some of the items."""
        return Gain(
            self.rows[items], self.out[items], self.error[items], self.open[items], self.sizes
        )


@dataclass(frozen=True, eq=False)
class Reduced:
    """The coefficients of a batch of samples before a functional of the outputs is chosen.

    Attributes:
        rows, error, open, sizes: as in :class:`Gain`, without the functional.
        last: coefficients of ``x_l``, ``(batch, n_l, q + N)``.
        last_error: bound on the norm of each of its columns' errors.
        index: per layer, the neurons of the slots, ``(batch, sizes[k])``.
        radius: per layer, r of the slots, 0 for padding.
    """

    rows: Tensor
    error: Tensor
    open: Tensor
    sizes: tuple[int, ...]
    last: Tensor
    last_error: Tensor
    index: tuple[Tensor, ...]
    radius: tuple[Tensor, ...]


def middle_radius(slopes: Range) -> tuple[Tensor, Tensor]:
    """m and r with ``[m - r, m + r]`` around the slopes; r is 0 where the slope is one number."""
    known = slopes.low == slopes.high
    middle = torch.where(known, slopes.low, 0.5 * (slopes.low + slopes.high))
    radius = torch.maximum(slopes.high - middle, middle - slopes.low)
    return middle, torch.where(known, 0.0, radius * (1.0 + 4.0 * U) + TINY)


def reduce(net: CurvedNet, slopes: Sequence[Range]) -> Reduced:
    """Eliminate what is constant or linear, for a batch of samples with a slope range per neuron.

    Args:
        net: the network.
        slopes: per hidden layer, ``(batch, n)``.
    """
    parts = [middle_radius(s) for s in slopes]
    counts = [int((r > 0.0).sum(dim=1).max()) for _, r in parts]
    batch, q, total = len(parts[0][0]), net.ball.factor.shape[1], sum(counts)
    coefficients = torch.zeros(batch, len(net.ball.factor), q + total, dtype=torch.float64)
    coefficients[:, :, :q] = net.ball.factor
    error = torch.zeros(batch, q + total, dtype=torch.float64)
    rows, errors, index, radii = [], torch.zeros_like(error), [], []
    start = q
    for k, ((middle, radius), count) in enumerate(zip(parts, counts, strict=True)):
        slots = torch.argsort((radius == 0.0).to(torch.int8), dim=1, stable=True)[:, :count]
        at_slots = radius.gather(1, slots)
        opened = (at_slots > 0.0).double()
        picked = coefficients.gather(1, slots[:, :, None].expand(-1, -1, q + total))
        rows.append(picked * opened[:, :, None])
        errors = errors + error
        index.append(slots)
        radii.append(at_slots)
        coefficients = coefficients * middle[:, :, None]
        columns = torch.arange(start, start + count).expand(batch, -1)
        coefficients[torch.arange(batch)[:, None], slots, columns] = at_slots
        size = lengths(coefficients, dim=1)
        error = error * middle.abs().amax(dim=1, keepdim=True) + 2.0 * U * size + TINY
        start += count
        if k + 1 < len(parts):
            layer = net.layers[k + 1]
            coefficients = layer.columns_through(coefficients)
            grown = layer.gamma * layer.frobenius + layer.error
            error = SLACK * (layer.norm * error + grown * size) + TINY
    opened = torch.cat(radii, dim=1) > 0.0
    return Reduced(
        torch.cat(rows, dim=1),
        errors,
        opened,
        tuple(counts),
        coefficients,
        error,
        tuple(index),
        tuple(radii),
    )


def with_outputs(net: CurvedNet, reduced: Reduced, samples: Tensor, rows: Tensor) -> Gain:
    """The items of some samples and functionals of the outputs.

    Args:
        net: the network.
        reduced: a batch of samples.
        samples: ``(items,)``, the sample of each item.
        rows: ``(items, p, n_out)``: functionals with entries 0 and +-1.
    """
    last = net.layers[-1]
    weight = last.rows_back(rows)
    norms = lengths(weight, dim=(1, 2))
    lost = 4.0 * U * lengths(last.rows_back(rows.abs(), absolute=True), dim=(1, 2))
    lost = lost + lengths(rows, dim=(1, 2)) * last.error
    inner = reduced.last[samples]
    size = lengths(inner, dim=1)
    grown = (last.gamma * norms + lost * SLACK)[:, None] * size
    passed = norms[:, None] * reduced.last_error[samples]
    error = reduced.error[samples] + SLACK * (passed + grown) + TINY
    return Gain(reduced.rows[samples], weight @ inner, error, reduced.open[samples], reduced.sizes)


def scaled(gain: Gain, roots: Tensor, lip: Tensor) -> Tensor:
    """The matrix B of the module's docstring, ``(batch, N + p, q + N)``."""
    ones = torch.ones_like(gain.out[..., 0])
    above = torch.cat([roots, ones], dim=1)
    below = torch.cat([lip[:, None].expand(-1, gain.inputs), roots], dim=1)
    return above[:, :, None] * torch.cat([gain.rows, gain.out], dim=1) / below[:, None]


def least_lip(gain: Gain, roots: Tensor) -> Tensor:
    """The least s that the multiplier proves in exact arithmetic, nearly; ``inf`` where none.

    With ``B = [E / s, D]`` it is ``||K^-1 E||`` for the Cholesky factor K of ``I - D D'``.
    """
    b = scaled(gain, roots, torch.ones(len(roots), dtype=torch.float64))
    e, d = b[..., : gain.inputs], b[..., gain.inputs :]
    eye = torch.eye(d.shape[-2], dtype=torch.float64)
    factor, info = torch.linalg.cholesky_ex(eye - d @ d.mT)
    half = torch.linalg.solve_triangular(factor, e, upper=False)
    gram = half @ half.mT if half.shape[-2] <= half.shape[-1] else half.mT @ half
    sound = (info == 0) & torch.isfinite(gram).all(dim=-1).all(dim=-1)
    gram = torch.where(sound[:, None, None], gram, torch.zeros_like(gram))
    top = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0.0).sqrt()
    return torch.where(sound, top, torch.full_like(top, torch.inf))


def proves(gain: Gain, roots: Tensor, lip: Tensor) -> Tensor:
    """Boolean ``(batch,)``: the multiplier proves ``lip`` through rounding."""
    # In this range nothing of a scaled coefficient is lost that a relative error of u hides.
    usable = (lip > _RANGE[0]) & (lip < _RANGE[1])
    usable &= ((roots > _RANGE[0]) & (roots < _RANGE[1])).all(dim=1)
    lip = torch.where(usable, lip, torch.ones_like(lip))
    roots = torch.where(usable[:, None], roots, torch.ones_like(roots))
    b = scaled(gain, roots, lip)
    below = torch.cat([lip[:, None].expand(-1, gain.inputs), roots], dim=1)
    at_neurons = torch.where(gain.open, roots, 0.0)
    most = torch.cat([torch.ones_like(lip)[:, None], at_neurons], dim=1).amax(dim=1)
    total = b.square().sum(dim=(1, 2)) * SLACK
    off = 4.0 * U * total.sqrt() + most * lengths(gain.error / below)
    n, terms = b.shape[1], b.shape[2]
    shift = SLACK * (3.0 * off + gamma(terms) * total + 2.0 * gamma(n + 4) * n)
    eye = torch.eye(n, dtype=torch.float64)
    usable &= torch.isfinite(shift) & (shift < 0.1)
    shift = torch.where(usable, shift, torch.zeros_like(shift))
    matrix = (1.0 - shift)[:, None, None] * eye - b @ b.mT
    matrix = torch.where(usable[:, None, None], matrix, -eye)
    proven: Tensor = usable & (torch.linalg.cholesky_ex(matrix)[1] == 0)
    return proven


def proven_lip(gain: Gain, roots: Tensor) -> Tensor:
    """The least bound tried that is proven: the implied one, raised by 1e-9 to 1e-2."""
    # The error of the coefficients is to stay small beside the bound, even one of 0.
    lip = least_lip(gain, roots).maximum(1e6 * lengths(gain.error) + 2.0**-300)
    proven = torch.full_like(lip, torch.inf)
    for excess in (1e-9, 1e-7, 1e-5, 1e-3, 1e-2):
        missing = torch.isinf(proven) & torch.isfinite(lip)
        if not bool(missing.any()):
            break
        tried = lip * (1.0 + excess) + TINY
        found = missing.nonzero()[:, 0]
        good = proves(gain.select(found), roots[found], tried[found])
        proven[found[good]] = tried[found[good]]
    return proven
