"""Independent statements of what the package computes, naive on purpose.

Nothing here imports ``admm_lip``'s mathematics: the LMI is written once more, dense and from the
paper's block form; constants come from enumeration, from planted structure or from sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Range = tuple[Array, Array]


def unit_ranges(weights: Sequence[Array]) -> list[Range]:
    """Slope range [0, 1] for every hidden neuron."""
    return [(np.zeros(len(w)), np.ones(len(w))) for w in weights[:-1]]


def naive_lmi(
    weights: Sequence[Array], ranges: Sequence[Range], multiplier: Sequence[Array], lip_sq: float
) -> Array:
    """The dense LMI: the sum of one quadratic constraint per neuron, and ``L^2 |x|^2 - |f|^2``.

    For increments (d_0, d_1, ..., d_l, d_out) of input, hidden layers and output, a neuron with
    input increment ``a = w_i d_{k-1}`` and output increment ``b`` has
    ``(b - alpha a)(b - beta a) <= 0``.  With ``t_i >= 0`` and the output as a block of its own,

        L^2 |d_0|^2 + |d_out|^2 - 2 d_out' W_l d_l
            + sum_i 2 t_i (b_i - alpha_i a_i)(b_i - beta_i a_i)

    has to be a nonnegative quadratic form.
    """
    sizes = [weights[0].shape[1], *(len(w) for w in weights)]
    place = np.cumsum([0, *sizes])
    order = place[-1]
    m = np.zeros((order, order))
    m[: sizes[0], : sizes[0]] = lip_sq * np.eye(sizes[0])
    for k, ((alpha, beta), t) in enumerate(zip(ranges, multiplier, strict=True)):
        for i in range(len(t)):
            a = np.zeros(order)
            a[place[k] : place[k + 1]] = weights[k][i]
            b = np.zeros(order)
            b[place[k + 1] + i] = 1.0
            u, v = b - alpha[i] * a, b - beta[i] * a
            m += t[i] * (np.outer(u, v) + np.outer(v, u))
    out, last = slice(place[-2], place[-1]), slice(place[-3], place[-2])
    m[out, out] = np.eye(sizes[-1])
    m[out, last] -= weights[-1]
    m[last, out] -= weights[-1].T
    return m


def naive_margin(
    weights: Sequence[Array], ranges: Sequence[Range], multiplier: Sequence[Array], lip_sq: float
) -> float:
    """Smallest eigenvalue of the naive LMI scaled to a unit diagonal: ``>= 0`` where it holds."""
    m = naive_lmi(weights, ranges, multiplier, lip_sq)
    scale = 1.0 / np.sqrt(np.maximum(np.diag(m), 1e-300))
    return float(np.linalg.eigvalsh(scale[:, None] * m * scale)[0])


def naive_bound(
    weights: Sequence[Array], ranges: Sequence[Range], multiplier: Sequence[Array]
) -> float:
    """The least L whose naive LMI holds, by bisection on ``log L``; ``inf`` where none does.

    The matrix without its input block must be positive definite, and then some L exists.
    """
    n_in = weights[0].shape[1]
    inner = naive_lmi(weights, ranges, multiplier, 0.0)[n_in:, n_in:]
    if np.linalg.eigvalsh(inner)[0] <= 0.0:
        return float("inf")
    low, high = -30.0, 30.0
    for _ in range(90):
        middle = 0.5 * (low + high)
        m = naive_lmi(weights, ranges, multiplier, float(np.exp(2.0 * middle)))
        try:
            np.linalg.cholesky(m)
            high = middle
        except np.linalg.LinAlgError:
            low = middle
    return float(np.exp(high))


def norm_product(weights: Sequence[Array]) -> float:
    """The product of the spectral norms: an upper bound for slopes in [-1, 1]."""
    return float(np.prod([np.linalg.norm(w, 2) for w in weights]))


def relu_jacobian(weights: Sequence[Array], biases: Sequence[Array], x: Array) -> Array:
    """Jacobian of the ReLU network at ``x``."""
    jacobian, value = np.eye(len(x)), x
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        value = w @ value + b
        jacobian = (w @ jacobian) * (value > 0)[:, None]
        value = np.maximum(value, 0.0)
    return np.asarray(weights[-1] @ jacobian)


def sampled_lower_bound(
    weights: Sequence[Array], biases: Sequence[Array], samples: int = 400, seed: int = 0
) -> float:
    """Largest Jacobian norm at random points: no true bound may be below it."""
    points = np.random.default_rng(seed).standard_normal((samples, weights[0].shape[1])) * 2.0
    return max(float(np.linalg.norm(relu_jacobian(weights, biases, x), 2)) for x in points)


def masked_constant(weights: Sequence[Array]) -> float:
    """Largest ``||W_l D_l ... D_1 W_0||`` over all 0/1 diagonals D: enumeration, tiny nets only.

    It bounds the constant of the ReLU network whatever its biases, and since every such D meets the
    quadratic constraints of slopes [0, 1], LipSDP is never below it.
    """
    sizes = [len(w) for w in weights[:-1]]
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        masks = np.split(np.array(bits), np.cumsum(sizes)[:-1])
        product = weights[0]
        for mask, w in zip(masks, weights[1:], strict=True):
            product = w @ (mask[:, None] * product)
        best = max(best, float(np.linalg.norm(product, 2)))
    return best


def exact_line_constant(weights: Sequence[Array], biases: Sequence[Array]) -> float:
    """Exact Lipschitz constant of a ReLU network of one input, by enumerating its breakpoints.

    On a line the network is piecewise linear; every breakpoint is a zero of some pre-activation,
    found layer by layer by splitting the pieces known so far.
    """
    points = np.array([-1e6, 1e6])
    for depth in range(1, len(weights)):
        found = list(points)
        for left, right in itertools.pairwise(points):
            found.extend(_zeros(weights[:depth], biases[:depth], left, right))
        points = np.unique(found)
    middles = 0.5 * (points[:-1] + points[1:])
    return max(
        float(np.linalg.norm(relu_jacobian(weights, biases, np.array([m])), 2)) for m in middles
    )


def _zeros(
    weights: Sequence[Array], biases: Sequence[Array], left: float, right: float
) -> list[float]:
    """Zeros of the last pre-activations on a piece where they are affine."""
    middle = np.array([0.5 * (left + right)])
    value = middle
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        value = np.maximum(w @ value + b, 0.0)
    height = weights[-1] @ value + biases[-1]
    slope = relu_jacobian(weights, biases, middle)[:, 0]
    moving = np.abs(slope) > 1e-12
    zeros = middle[0] - height[moving] / slope[moving]
    return [float(z) for z in zeros if left < z < right]


@dataclass(frozen=True)
class Net:
    """Weights, slope ranges, and the LipSDP optimum where it is known."""

    weights: list[Array]
    ranges: list[Range]
    lip: float | None = None


def random_net(widths: Sequence[int], seed: int, ranges: tuple[float, float] = (0.0, 1.0)) -> Net:
    """A random network; ``ranges`` is one slope range for every neuron."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((n, m)) / np.sqrt(m) for m, n in itertools.pairwise(widths)]
    slopes = [(np.full(len(w), ranges[0]), np.full(len(w), ranges[1])) for w in weights[:-1]]
    return Net(weights, slopes)


def mixed_net(widths: Sequence[int], seed: int) -> Net:
    """A random network whose neurons have different slope ranges, all with ``alpha <= 0``."""
    net = random_net(widths, seed)
    rng = np.random.default_rng(seed + 1)
    ranges = [
        (-rng.uniform(0, 0.4, len(w)), rng.uniform(0.5, 1.2, len(w))) for w in net.weights[:-1]
    ]
    return Net(net.weights, ranges)


def positive_net(widths: Sequence[int], seed: int) -> Net:
    """Non-negative weights and slopes [0, 1]: the constant is the norm of the plain product."""
    net = random_net(widths, seed)
    weights = [np.abs(w) for w in net.weights]
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    return Net(weights, net.ranges, float(np.linalg.norm(product, 2)))


def signed_net(widths: Sequence[int], seed: int) -> Net:
    """A positive network in disguise: neurons permuted, inputs and outputs rotated."""
    net = positive_net(widths, seed)
    rng = np.random.default_rng(seed + 2)
    weights = [w.copy() for w in net.weights]
    for k in range(len(weights) - 1):
        order = rng.permutation(len(weights[k]))
        weights[k], weights[k + 1] = weights[k][order], weights[k + 1][:, order]
    turn_in = np.linalg.qr(rng.standard_normal((widths[0], widths[0])))[0]
    turn_out = np.linalg.qr(rng.standard_normal((widths[-1], widths[-1])))[0]
    weights[0], weights[-1] = weights[0] @ turn_in, turn_out @ weights[-1]
    return Net(weights, net.ranges, net.lip)


def hat_net() -> Net:
    """``relu(x) - relu(x - 1)``: its constant is 1, and diagonal multipliers prove it."""
    weights = [np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])]
    return Net(weights, unit_ranges(weights), 1.0)


@dataclass(frozen=True)
class PlantedProjection:
    """An anchor whose projection is known, from its normal cone.

    ``nearest`` lies on the boundary for ``multiplier`` and ``lip_sq``; ``anchor`` is ``nearest``
    plus a normal of the set there, so ``nearest`` is its projection.  ``input_price`` is the
    derivative of half the squared distance in ``-lip_sq``: with ``mu = rho * input_price`` the same
    point and ``lip_sq`` solve the penalised problem.
    """

    nearest: list[Array]
    anchor: list[Array]
    ranges: list[Range]
    multiplier: list[Array]
    lip_sq: float
    input_price: float


def planted_projection(widths: Sequence[int], seed: int, lip_sq: float = 1.7) -> PlantedProjection:
    """Plant a projection: scale a random network onto the boundary, add a multiple of a normal.

    With slopes [0, 1] and null space ``N`` of ``M = M(L^2, W, T)``, the normals at W are
    ``-grad <X, M(W)>`` over ``X = N P N' >= 0``: ``2 T_{k+1} X_{k+1,k}`` for a hidden layer and
    ``2 X_{out,l}`` for the last one; and ``d/d(lip_sq) <X, M>`` is ``tr X_00``.
    """
    rng = np.random.default_rng(seed)
    net = random_net(widths, seed)
    multiplier = [rng.uniform(0.4, 1.6, len(w)) for w in net.weights[:-1]]
    nearest = _onto_boundary(net, multiplier, lip_sq)
    m = naive_lmi(nearest, net.ranges, multiplier, lip_sq)
    values, vectors = np.linalg.eigh(m)
    null = vectors[:, np.abs(values) < 1e-9 * values[-1]]
    x = null @ null.T * rng.uniform(0.5, 2.0)
    place = np.cumsum([0, widths[0], *(len(w) for w in nearest)])
    blocks = [slice(a, b) for a, b in itertools.pairwise(place)]
    anchor = []
    for k, w in enumerate(nearest):
        normal = 2.0 * x[blocks[k + 1], blocks[k]]
        scale = multiplier[k][:, None] if k < len(multiplier) else 1.0
        anchor.append(w + scale * normal)
    price = float(np.trace(x[blocks[0], blocks[0]]))
    return PlantedProjection(nearest, anchor, net.ranges, multiplier, lip_sq, price)


def _onto_boundary(net: Net, multiplier: Sequence[Array], lip_sq: float) -> list[Array]:
    """The weights times the largest common factor that the LMI still allows."""
    low, high = 0.0, 1.0
    while naive_margin([high * w for w in net.weights], net.ranges, multiplier, lip_sq) > 0:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        scaled = [middle * w for w in net.weights]
        feasible = naive_margin(scaled, net.ranges, multiplier, lip_sq) >= 0
        low, high = (middle, high) if feasible else (low, middle)
    return [low * w for w in net.weights]


@dataclass(frozen=True)
class Kkt:
    """How far a point is from the optimality conditions of a projection.

    Attributes:
        stationarity: ``||metric (V - W) - normal|| / ||metric (V - W)||`` for the best normal.
        sign: smallest eigenvalue of that normal's multiplier over its largest: ``>= 0`` if optimal.
        price: ``-d/ds`` of half the squared distance: the trace of the multiplier's input block.
    """

    stationarity: float
    sign: float
    price: float


def projection_kkt(
    weights: Sequence[Array],
    anchor: Sequence[Array],
    ranges: Sequence[Range],
    multiplier: Sequence[Array],
    lip_sq: float,
    groups: Array | None = None,
    metric: Array | None = None,
    active: float = 1e-3,
) -> Kkt:
    """Fit the normal cone of the naive LMI at ``weights`` to the step from them to the anchor.

    At a projection ``metric (W - V) = grad_W <N P N', M>`` for some ``P >= 0`` on the null space N
    of M, summed over the entries of each group.  M is quadratic in W, so central differences give
    its derivative exactly.

    Args:
        groups: label per entry (all layers, flat): equal labels share one value, -1 is not free.
        active: eigenvalues of the scaled LMI below this count as zero.
    """
    m = naive_lmi(weights, ranges, multiplier, lip_sq)
    scale = 1.0 / np.sqrt(np.diag(m))
    values, vectors = np.linalg.eigh(scale[:, None] * m * scale)
    null = scale[:, None] * vectors[:, values < active]
    flat = np.concatenate([w.ravel() for w in weights])
    labels = np.arange(flat.size) if groups is None else groups
    pull = np.concatenate([v.ravel() for v in anchor]) - flat
    pull = pull if metric is None else metric * pull
    rows, wanted = [], []
    for label in np.unique(labels[labels >= 0]):
        way = (labels == label).astype(float)
        ahead, behind = (
            naive_lmi(_shaped(flat + sign * way, weights), ranges, multiplier, lip_sq)
            for sign in (1.0, -1.0)
        )
        rows.append((null.T @ (0.5 * (ahead - behind)) @ null).ravel())
        wanted.append(-float(way @ pull))
    basis = _symmetric_basis(null.shape[1])
    system, target = np.array(rows) @ basis.T, np.array(wanted)
    found = np.linalg.lstsq(system, target, rcond=1e-9)[0]
    p = (found @ basis).reshape(null.shape[1], -1)
    eigenvalues = np.linalg.eigvalsh(p)
    n_in = weights[0].shape[1]
    return Kkt(
        float(np.linalg.norm(system @ found - target) / np.linalg.norm(target)),
        float(eigenvalues[0] / eigenvalues[-1]),
        float(np.trace((null @ p @ null.T)[:n_in, :n_in])),
    )


def _shaped(flat: Array, like: Sequence[Array]) -> list[Array]:
    """Flat entries cut into matrices of the shapes of ``like``."""
    parts = np.split(flat, np.cumsum([w.size for w in like])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, like, strict=True)]


def _symmetric_basis(order: int) -> Array:
    """A basis of the symmetric matrices, one flattened matrix per row."""
    pairs = itertools.combinations_with_replacement(np.eye(order), 2)
    return np.array([(np.outer(e, f) + np.outer(f, e)).ravel() for e, f in pairs])


def load_npz_net(path: Path) -> tuple[list[Array], list[Array]]:
    """Weights and biases of a stored network: arrays ``W0, W1, ...`` and ``b0, b1, ...``."""
    with np.load(path, allow_pickle=False) as stored:
        count = sum(name.startswith("W") for name in stored.files)
        weights = [stored[f"W{k}"].astype(np.float64) for k in range(count)]
        biases = [stored[f"b{k}"].astype(np.float64) for k in range(count)]
    return weights, biases
