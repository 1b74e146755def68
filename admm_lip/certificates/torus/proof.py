"""The covariance recursion through rounding: what it returns holds for the exact weights.

Every step returns a P that is an upper bound, in the order of Hermitian matrices, of the exact
recursion's on the P before.  The recursion is monotone (a larger P is a weaker storage, and what a
weaker storage proves holds), so the bounds carry over from step to step.  Each step computes its
formula (``covariance.py``) in double precision, bounds the Frobenius norm of all roundings, and
adds that bound to the diagonal:

* products of matrices of n terms lose ``gamma_{8 n + 32} ||A||_F ||B||_F``, complex arithmetic and
  reciprocals included;
* a symbol that is off by d adds ``(2 ||W||_F d + d^2) ||P||_F``;
* the slack Y = 2T - T P T, scaled by powers of two to a diagonal near 1, is lowered by what its
  entries may be off; a Cholesky factorisation, itself shifted by what it loses (``definite.py``),
  proves it definite; with R = I - Y S the inverse is S within ``||S|| ||R|| / (1 - ||R||)``;
* what underflows loses less than a constant (``definite.py``), what overflows proves nothing;
* where Y is near to singular, P may first be replaced by a multiple of I that is proven above it;
* of slopes [-b, b] on all channels the formula is ``2 b^2 T^-1``, whatever P: the slack is proven
  definite, and nothing is inverted;
* a residual block of one multiplier may be taken as one step (``block_figures.py``).

At a head every frequency's P is folded into the first matrix V of what follows,
``G = sum_f V(f) P(f) V(f)^H``, and the head's chain continues with any C for which ``C C' >= G``.
There V sees the image alone, and ``R P R'`` is the covariance of what stands in it.

Assumed as in ``proof.py`` of the dense case.  NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...float64 import TINY, U, gamma
from ...networks.layers import Array
from ..claim_matrices import Matrices
from ..definite import SLACK, inverse_root
from .block_figures import Figures, figures_of
from .covariance import adjoint, gain, slack, through_activation, through_correlation
from .hermitian import are_definite, largest, proven_largest, quiet, sizes_of
from .residual import Piece, Residual, below, pieces_of, with_levels
from .steps import Correlation, Index, Pair, Pointwise, TorusChain, half_of, symbol, symbol_error

# Complex numbers in the largest batch of one step.
_ENTRIES = 2**22
# Beyond what is lost so to rounding, relatively, an activation is also taken channel by channel.
_LOSSY = 1e-6


class NotProven(ArithmeticError):
    """Multipliers that prove nothing, with the step where they fail."""


def covariances(
    chain: TorusChain, multipliers: Sequence[Array]
) -> Iterator[tuple[Index, Array, Any]]:
    """Proven covariances after the last step, batch by batch.

    Yields:
        frequencies ``(n, 2)``, how many each stands for, and P ``(n, channels, channels)``.

    Raises:
        NotProven: naming the activation where the multipliers fail.
    """
    frequencies, weights = half_of(chain.last_grid)
    pieces = pieces_of(chain.steps)
    known = figures_of(chain, pieces) if _may_be_blocks(pieces, multipliers) else {}
    folded = (chain.grid[0] // chain.last_grid[0]) * (chain.grid[1] // chain.last_grid[1])
    width = max([chain.channels, *(max(_sizes(s)) for s in chain.steps)])
    rows = max(1, _ENTRIES // (folded * width**2))
    for k in range(0, len(weights), rows):
        part = slice(k, k + rows)
        yield (
            frequencies[part],
            weights[part],
            _after(chain, pieces, known, multipliers, frequencies[part]),
        )


def _sizes(step: Correlation | Pointwise) -> tuple[int, ...]:
    return step.kernel.shape[:2] if isinstance(step, Correlation) else (len(step.rows),)


@quiet
def _after(
    chain: TorusChain,
    pieces: Sequence[Piece],
    known: Mapping[int, Figures | None],
    multipliers: Sequence[Array],
    last: Index,
) -> Any:
    """P after the last step at the frequencies ``last``."""
    count = len(last) * math.prod(chain.grid) // math.prod(chain.last_grid)
    p = np.tile(np.eye(chain.channels, dtype=complex), (count, 1, 1))
    done = 0
    for k, (piece, frequencies, grid) in enumerate(with_levels(chain, pieces, last)):
        if isinstance(piece, Correlation):
            p = _correlated(p, piece, frequencies, grid)
            continue
        t, done = multipliers[done], done + 1
        if isinstance(piece, Pointwise):
            p = _activated(p, piece, t, done)
        else:
            p = _behind(p, piece, (frequencies, grid), known.get(k), t, done)
    return p


def _may_be_blocks(pieces: Sequence[Piece], multipliers: Sequence[Array]) -> bool:
    """Whether some residual block has one multiplier for all channels."""
    acts = [piece for piece in pieces if not isinstance(piece, Correlation)]
    rows = zip(acts, multipliers, strict=False)  # those of a head follow
    return any(isinstance(piece, Residual) and _is_one(t, piece) for piece, t in rows)


def _is_one(t: Array, block: Residual) -> bool:
    return t.shape == block.activation.rows.shape and bool((t == t[0]).all()) and t[0] > 0.0


def _behind(
    p: Any,
    block: Residual,
    level: tuple[Index, Pair],
    found: Figures | None,
    t: Array,
    k: int,
) -> Any:
    """P behind a residual block, in steps, or as one where rounding leaves less of those."""
    whole = _as_one(p, block, found, t)
    try:
        stepped = _in_steps(p, block, level, t, k)
    except NotProven:
        if whole is None:
            raise
        return whole
    if whole is None:
        return stepped
    better = largest(whole) < largest(stepped)
    return np.where(better[:, None, None], whole, stepped)


def _as_one(p: Any, block: Residual, found: Figures | None, t: Array) -> Any:
    """P behind a residual block of one multiplier, as its docstring says; ``None`` where not."""
    top = proven_largest(p) if found is not None and _is_one(t, block) else None
    if found is None or top is None:
        return None
    storage = t[0] / found.share
    room = (1.0 / (top * storage)) * (1.0 - 16.0 * U)
    if not (room >= found.square).all():
        return None
    aliases = math.prod(s for step in block.into for s in step.stride)
    count, width = len(p) // aliases, len(block.passes)
    return np.tile((1.0 + 8.0 * U) / storage * np.eye(width, dtype=complex), (count, 1, 1))


def _in_steps(p: Any, block: Residual, level: tuple[Index, Pair], t: Array, k: int) -> Any:
    """P behind a residual block, step by step."""
    for step in block.steps:
        if isinstance(step, Pointwise):
            p = _activated(p, step, t, k)
        else:
            p, level = _correlated(p, step, *level), below(*level, step.stride)
    return p


def _correlated(p: Any, step: Correlation, frequencies: Index, grid: Pair) -> Any:
    w, off = symbol(step, frequencies, grid), symbol_error(step)
    aliases = step.stride[0] * step.stride[1]
    size_w, size_p = sizes_of(w), sizes_of(p)
    terms = 16 * w.shape[2] + aliases + 64
    lost = (2.0 * size_w * off + off**2 + gamma(terms) * size_w**2 + TINY) * size_p
    return _raised(through_correlation(p, w, aliases), lost.reshape(-1, aliases).max(axis=1))


def _activated(p: Any, step: Pointwise, t: Array, k: int) -> Any:
    if t.shape != step.rows.shape or not (np.isfinite(t).all() and (t > 0.0).all()):
        raise NotProven(f"multiplier[{k - 1}]: expected {len(step.rows)} numbers > 0")
    even = len(t) == p.shape[1] and bool((step.alpha == -step.beta).all())
    if even and are_definite(_scaled_slack(p, step.rows, t)[0]):
        return _diagonal(np.tile(2.0 * step.beta**2 / t, (len(p), 1)))
    try:
        found, lost = _by_inverse(p, step, t, k)
    except NotProven:
        multiple = _of_multiple(p, step, t)
        if multiple is None:
            raise
        return multiple
    if float(lost.max()) <= _LOSSY:
        return found
    multiple = _of_multiple(p, step, t)
    if multiple is None:
        return found
    better = largest(multiple) < largest(found)
    return np.where(better[:, None, None], multiple, found)


def _of_multiple(p: Any, step: Pointwise, t: Array) -> Any:
    """P behind an activation from ``p I >= P``: every channel by itself, ``None`` where t is large.

    With x = p t, a channel's entry is ``alpha^2 p + (alpha x + span)^2 / (t (2 - x))``, which for
    ``alpha = -beta`` is ``2 beta^2 / t``, at x = 2 as well: the multipliers that prove a product of
    norms stand there, where the slack is singular.
    """
    n, alpha, beta = p.shape[1], step.alpha, step.beta
    top = proven_largest(p)
    if top is None:
        return None
    span = beta - alpha
    x = top[:, None] * t
    left = 2.0 - x - 16.0 * U
    even = alpha == -beta
    if not np.where(even, left >= 0.0, left > 0.0).all():
        return None
    rise = np.abs(alpha * x + span) + 16.0 * U * (np.abs(alpha) * x + span)
    entries = alpha**2 * top[:, None] + rise**2 / (t * np.where(even, 1.0, left))
    diagonal = np.repeat(top[:, None], n, axis=1)
    diagonal[:, step.rows] = np.where(even, 2.0 * beta**2 / t, entries)
    return _diagonal(diagonal) if np.isfinite(diagonal).all() else None


def _diagonal(entries: Array) -> Any:
    """Matrices of these diagonals, of which every entry is some roundings away."""
    raised = entries * (1.0 + 64.0 * U) + TINY
    return raised[:, :, None] * np.eye(entries.shape[1], dtype=complex)


def _scaled_slack(p: Any, rows: Any, t: Array) -> tuple[Any, Array]:
    """Below ``2 T - T P T``, with a diagonal near 1, and the scales."""
    scale = inverse_root(2.0 * t)
    y = slack(p, rows, t) * scale[:, None] * scale
    inner = sizes_of(y) + 4.0
    y[:, range(len(t)), range(len(t))] -= (8.0 * U * SLACK) * inner[:, None]
    return y, scale


def _by_inverse(p: Any, step: Pointwise, t: Array, k: int) -> tuple[Any, Array]:
    """P behind an activation by the inverse of the slack, and what rounding took, relatively."""
    rows, size_p = step.rows, sizes_of(p)
    y, scale = _scaled_slack(p, rows, t)
    s, lost_s = _inverse(y, k)
    least = step.least(p.shape[1])
    h = gain(p, rows, t, least, step.beta - step.alpha) * scale
    size_h, size_s = sizes_of(h), sizes_of(s)
    loose = 8.0 * U * (size_h + sizes_of(np.abs(p[:, :, rows]) * (t * scale)))
    lost = (2.0 * size_h * loose + loose**2 + gamma(16 * len(t) + 64) * size_h**2 + TINY) * size_s
    lost = lost + lost_s * (size_h + loose) ** 2 + 8.0 * U * size_p * float(np.max(least**2))
    found = _raised(through_activation(p, h, s, least), lost)
    if not np.isfinite(found).all():
        raise NotProven(f"multiplier[{k - 1}]: the covariance behind it overflows")
    return found, lost / sizes_of(found)


def _inverse(y: Any, k: int) -> tuple[Any, Array]:
    """The inverses of matrices that are proven definite, and how far they are off at most."""
    n = y.shape[1]
    if not are_definite(y):
        raise NotProven(f"multiplier[{k - 1}]: 2 T - T P T is not positive definite")
    s = np.linalg.inv(y)
    s = (s + adjoint(s)) / 2.0
    rest = np.eye(n) - y @ s
    size = sizes_of(s)
    residual = sizes_of(rest) + gamma(16 * n + 64) * (sizes_of(y) * size + n)
    if not (residual < 0.5).all():
        raise NotProven(f"multiplier[{k - 1}]: 2 T - T P T is too near to singular")
    return s, SLACK * size * residual / (1.0 - residual)


def _raised(p: Any, lost: Array) -> Any:
    """``p`` made Hermitian, with ``lost`` and the rounding of doing so on its diagonal."""
    n = p.shape[-1]
    raised = (p + adjoint(p)) / 2.0
    more = SLACK * (lost + 8.0 * U * (sizes_of(p) + lost)) + TINY
    raised[:, range(n), range(n)] = raised[:, range(n), range(n)].real + more[:, None]
    return raised


@quiet
def gathered(chain: TorusChain, multipliers: Sequence[Array], head: Matrices) -> Matrices:
    """The head's matrices, the first one replaced by a triangular C with ``C C' >= G``.

    G is the covariance of what the first matrix gives.

    Args:
        chain: with a head.
        multipliers: per channel, of its activations.
        head: the matrices of what follows it.

    Raises:
        NotProven: for multipliers that prove nothing.
    """
    first = head.weights[0]
    outputs, grid = len(first), chain.last_grid
    seen = Correlation(first.reshape(outputs, *chain.image), error=head.errors[0])
    count = float(grid[0] * grid[1])
    total, lost, off = np.zeros((outputs, outputs)), 0.0, symbol_error(seen) / np.sqrt(count)
    step = max(1, _ENTRIES // first.size)
    for frequencies, weights, p in covariances(chain, multipliers):
        for part in (slice(k, k + step) for k in range(0, len(weights), step)):
            v = symbol(seen, frequencies[part], grid) / np.sqrt(count)
            total += np.einsum("f,fij->ij", weights[part], (v @ p[part] @ adjoint(v)).real)
            size, rounding = sizes_of(v), gamma(16 * chain.image[0] + 64 + 4 * int(count))
            each = (2.0 * size * off + off**2 + rounding * size**2 + TINY) * sizes_of(p[part])
            lost += float(weights[part] @ each)
    if not math.isfinite(lost) or not np.isfinite(total).all():
        raise NotProven("the covariance at the head overflows")
    factor = _factor(total, SLACK * lost + TINY)
    return replace(head, weights=(factor, *head.weights[1:]), errors=(0.0, *head.errors[1:]))


def _factor(total: Array, lost: float) -> Array:
    """C with ``C C' >= total + lost``."""
    symmetric = (total + total.T) / 2.0
    n = len(symmetric)
    factor = gamma(2 * n + 32)
    trace = float(np.trace(symmetric)) + n * lost
    more = SLACK * (lost + 4.0 * factor * trace + 8.0 * U * (trace + lost))
    symmetric[range(n), range(n)] += more
    try:
        found = np.asarray(np.linalg.cholesky(symmetric), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise NotProven("the covariance at the head cannot be factored") from None
    return found
