"""The proof of ``proof.py`` for chains in which the slope of some neurons is known exactly.

Such a neuron is linear, ``x_i = a v_i``, and no finite multiplier says so without loss.  Here the
equation is substituted, and the claim is proven from layer to layer.  Let ``v`` be the inputs of
the neurons of a layer, ``x`` their outputs, the linear ones (a) and the others (b) together, and W
the matrix that follows.  Symmetric **storages** ``P_1, ..., P_{l+1} = I`` with

    v' P_k v + 2 (x_b - alpha v_b)' T (x_b - beta v_b) - (W x)' P_{k+1} (W x) >= 0,   x_a = a v_a,

for all v and x_b, and ``L^2 I - W_0' P_1 W_0 >= 0``, prove the bound: on the network's own values
the middle term is never positive, so ``|f|^2 <= (W x)' P_{k+1} (W x) <= v' P_k v <= L^2 |x_0|^2``.

The storages are witnesses.  Any will do, so they are computed in floating point, from the output
on, by the formula that makes the inequality tight (``solvers/dissipation.py``), enlarged a little;
then each inequality is proven through rounding, as a matrix over (v, x_b):

* scaled by powers of two, to entries of at most 1 in size;
* an entry of ``W' P W`` carries at most ``2 n + 2`` roundings and the others six, so the assembled
  matrix is within ``gamma_{2n + 8}`` of the same sums taken of absolute values;
* factored after a shift (``definite.py``).

If a layer fails, its storage is enlarged further, a few times.  NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg as sl

from ..float64 import TINY, gamma
from ..networks.layers import Array
from ..networks.network import Chain, Slopes
from .claim_matrices import Matrices
from .definite import SLACK, ScaledLmi, failing_block, inverse_root

Indices = npt.NDArray[np.intp]

# How much a storage is enlarged, in units of the rounding margin: tried in this order.
# Where a layer's multipliers are nearly the least possible, its storage is known to few digits.
_ENLARGEMENTS = tuple(2.0**k for k in (3, 7, 11, 15, 19, 23))
# Size given to what does not depend on anything, relative to the largest: next to nothing.
_IDLE = 2.0**-20


class Layer(NamedTuple):
    """A hidden layer: slopes and multiplier of its neurons, the matrix that follows, its error."""

    slopes: Slopes
    t: Array
    weight: Array
    off: float


class Pulled(NamedTuple):
    """``W' P W``, the same of absolute values, a bound on ``||P W||``, and that of ``||P||``."""

    form: Array
    size: Array
    reach: float
    top: float


def any_known(chain: Chain | Matrices) -> bool:
    """Whether the slope of some neuron is known exactly."""
    return any(bool((s.alpha == s.beta).any()) for s in chain.slopes)


def storage_unproven(
    chain: Chain | Matrices, multiplier: Sequence[Array], lip: float
) -> str | None:
    """Why the multiplier does not prove ``lip``; ``None`` when the proof succeeds.

    Args:
        chain: matrices, slope ranges and error bounds.
        multiplier: one number per hidden neuron; those of linear neurons are not read.
        lip: the claimed bound, > 0.
    """
    storage = np.eye(chain.widths[-1])
    for k in range(len(chain.slopes) - 1, -1, -1):
        layer = Layer(chain.slopes[k], multiplier[k], chain.weights[k + 1], chain.errors[k + 1])
        found = _proven_storage(layer, storage)
        if found is None:
            return _failed(f"hidden layer {k + 1}")
        storage = found
    if not _proven_input(chain.weights[0], chain.errors[0], storage, lip):
        return _failed("the input")
    return None


def storage_margin(chain: Chain | Matrices, multiplier: Sequence[Array], lip: float) -> float:
    """What the least enlargement of all storages costs, relatively; 0.1 if undefined."""
    storage, margin = np.eye(chain.widths[-1]), 0.0
    for k in range(len(chain.slopes) - 1, -1, -1):
        layer = Layer(chain.slopes[k], multiplier[k], chain.weights[k + 1], chain.errors[k + 1])
        pulled = _pulled(layer.weight, storage)
        tight = _tight_storage(layer, pulled)
        if tight is None:
            return margin if margin > 0.0 else 0.1
        margin += _ENLARGEMENTS[0] * _layer_lmi(layer, pulled, tight).shift()
        storage = tight
    return margin


def _failed(where: str) -> str:
    return f"the matrix inequality does not hold through rounding (it fails at {where})"


def _proven_storage(layer: Layer, storage: Array) -> Array | None:
    """A storage for the inputs of a layer, for which its inequality is proven."""
    pulled = _pulled(layer.weight, storage)
    tight = _tight_storage(layer, pulled)
    if tight is None:
        return None
    margin = _layer_lmi(layer, pulled, tight).shift()
    if not margin < 0.1:
        return None
    room = np.diag(_sizes(layer, pulled, tight)[: len(tight)])
    for enlargement in _ENLARGEMENTS:
        wider = tight + enlargement * margin * room
        lmi = _layer_lmi(layer, pulled, wider)
        if failing_block(lmi, lmi.shift()) is None:
            return wider
    return None


def _pulled(weight: Array, storage: Array) -> Pulled:
    reach = storage @ weight
    form = weight.T @ reach
    size = np.abs(weight).T @ (np.abs(storage) @ np.abs(weight))
    norms = float(np.linalg.norm(reach)), float(np.linalg.norm(storage))
    return Pulled((form + form.T) / 2.0, size, *norms)


def _tight_storage(layer: Layer, pulled: Pulled) -> Array | None:
    """The least storage, rounded; ``None`` where there is none."""
    slopes, form = layer.slopes, pulled.form
    a, b = _known(slopes)
    low, high, t = slopes.alpha[b], slopes.beta[b], layer.t[b]
    inner = np.diag(2.0 * t) - form[np.ix_(b, b)]
    try:
        factor = np.linalg.cholesky(inner)
    except np.linalg.LinAlgError:
        return None
    pull = np.zeros((len(b), len(form)))
    pull[:, a] = form[np.ix_(b, a)] * slopes.alpha[a]
    pull[np.arange(len(b)), b] = (low + high) * t
    half = sl.solve_triangular(factor, pull, lower=True, check_finite=False)
    storage = np.asarray(half.T @ half)
    storage[np.ix_(a, a)] += slopes.alpha[a][:, None] * form[np.ix_(a, a)] * slopes.alpha[a]
    storage[b, b] -= 2.0 * low * high * t
    storage = (storage + storage.T) / 2.0
    return storage if np.isfinite(storage).all() else None


def _layer_lmi(layer: Layer, pulled: Pulled, storage: Array) -> ScaledLmi:
    """The inequality of a layer over (v, x_b), assembled and scaled, with its error."""
    scale = inverse_root(_sizes(layer, pulled, storage))
    entries = _entries(layer, pulled.form, storage, sign=-1.0)
    magnitude = _entries(layer, pulled.size, np.abs(storage), sign=1.0)
    count = 2 * len(layer.weight) + 8
    rounding = gamma(count) * float(np.linalg.norm(scale[:, None] * magnitude * scale))
    # The stored weights differ from the exact ones by ``off`` in norm.
    shaken = _reach_of_outputs(layer, scale) * layer.off
    spread = _reach_of_outputs(layer, scale) * float(pulled.reach)
    stored = 2.0 * spread * shaken + pulled.top * shaken**2
    steep = max(1.0, float(np.abs(layer.weight).max(initial=0.0)))
    lost = count * len(scale) * float(scale.max()) ** 2 * steep**2 * TINY
    block = scale[:, None] * entries * scale
    return ScaledLmi((block,), (), SLACK**2 * (rounding + stored) + lost)


def _entries(layer: Layer, form: Array, storage: Array, sign: float) -> Array:
    """The matrix over (v, x_b); with ``sign = 1`` every term by its absolute value."""
    slopes = layer.slopes
    a, b = _known(slopes)
    slope, t = slopes.alpha[a], layer.t[b]
    product, total = slopes.alpha[b] * slopes.beta[b] * t, (slopes.alpha[b] + slopes.beta[b]) * t
    if sign > 0.0:
        slope, product, total = np.abs(slope), np.abs(product), np.abs(total)
    size = len(storage)
    whole = np.zeros((size + len(b), size + len(b)))
    whole[:size, :size] = storage
    whole[np.ix_(a, a)] += sign * (slope[:, None] * form[np.ix_(a, a)] * slope)
    whole[b, b] += 2.0 * product
    outputs = size + np.arange(len(b))
    whole[np.ix_(a, outputs)] = sign * (slope[:, None] * form[np.ix_(a, b)])
    whole[b, outputs] += sign * total
    whole[size:, :size] = whole[:size, size:].T
    whole[size:, size:] = sign * form[np.ix_(b, b)]
    whole[outputs, outputs] += 2.0 * t
    return whole


def _sizes(layer: Layer, pulled: Pulled, storage: Array) -> Array:
    """The diagonal of the matrix over (v, x_b), every term by its absolute value."""
    diagonal = np.diag(_entries(layer, pulled.size, np.abs(storage), sign=1.0))
    largest = max(float(diagonal.max()), 2.0**-600)
    return np.where(diagonal > 0.0, diagonal, _IDLE * largest)


def _reach_of_outputs(layer: Layer, scale: Array) -> float:
    """Bound on the norm of the map from scaled (v, x_b) to the outputs x."""
    a, _ = _known(layer.slopes)
    known = np.abs(layer.slopes.alpha[a]) * scale[a]
    others = scale[len(layer.slopes.alpha) :]
    return float(max(known.max(initial=0.0), others.max(initial=0.0)))


def _known(slopes: Slopes) -> tuple[Indices, Indices]:
    """Indices of the linear neurons and of the others."""
    known = slopes.alpha == slopes.beta
    return np.flatnonzero(known), np.flatnonzero(~known)


def _proven_input(weight: Array, off: float, storage: Array, lip: float) -> bool:
    """Whether ``L^2 I - W_0' P_1 W_0 >= 0`` is proven.

    With more inputs than neurons as ``L^2 I - (C W_0)(C W_0)' >= 0``, where C is the Cholesky
    factor of a slightly larger storage: ``C' C - P_1 >= 0`` is proven too.
    """
    if weight.shape[1] <= len(weight):
        return _below(weight, off, storage, lip)
    root = _root_above(storage)
    if root is None:
        return False
    seen = root @ weight
    size = np.abs(root) @ np.abs(weight)
    count = weight.shape[1] + 2 * len(weight) + 6
    shaken = float(np.linalg.norm(root)) * off
    stored = 2.0 * float(np.linalg.norm(size)) * shaken + shaken**2
    return _bounded(seen @ seen.T, size @ size.T, count, stored, lip)


def _below(weight: Array, off: float, storage: Array, lip: float) -> bool:
    pulled = _pulled(weight, storage)
    stored = 2.0 * pulled.reach * off + pulled.top * off**2
    return _bounded(pulled.form, pulled.size, 2 * len(weight) + 6, stored, lip)


def _bounded(form: Array, size: Array, count: int, stored: float, lip: float) -> bool:
    """Whether ``L^2 I - form >= 0``, the form good to ``count`` roundings of its size."""
    scale = float(inverse_root(np.array([lip * lip]))[0])
    entries = np.diag(np.full(len(form), lip * lip)) - (form + form.T) / 2.0
    rounding = gamma(count) * (float(np.linalg.norm(size)) + lip * lip)
    error = SLACK**2 * scale**2 * (rounding + stored) + len(form) * TINY
    lmi = ScaledLmi((scale**2 * entries,), (), error)
    return failing_block(lmi, lmi.shift()) is None


def _root_above(storage: Array) -> Array | None:
    """C with ``C' C - P >= 0`` proven, near equality; ``None`` where rounding forbids it."""
    size = np.diag(storage)
    if not (np.isfinite(storage).all() and (size > 0.0).all()):
        return None
    scale = inverse_root(size)
    terms = len(storage) + 3
    for enlargement in _ENLARGEMENTS:
        room = enlargement * gamma(terms) * len(storage)
        try:
            lower = np.linalg.cholesky(
                scale[:, None] * storage * scale + room * np.eye(len(storage))
            )
        except np.linalg.LinAlgError:
            continue
        # Powers of two: C is the factor of the scaled storage, its columns scaled back exactly.
        root = lower.T / scale
        above = scale[:, None] * (root.T @ root - storage) * scale
        magnitude = scale[:, None] * (np.abs(root).T @ np.abs(root) + np.abs(storage)) * scale
        error = SLACK**2 * gamma(terms) * float(np.linalg.norm(magnitude)) + TINY
        lmi = ScaledLmi(((above + above.T) / 2.0,), (), error)
        if failing_block(lmi, lmi.shift()) is None:
            return root
    return None
