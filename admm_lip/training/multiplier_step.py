"""The multiplier step: how T moves between rounds, one function per rule.

* ``fixed``: not at all.  For positively homogeneous activations (ReLU, LeakyReLU) scaling a
  neuron's incoming weights by c and its outgoing ones by 1/c leaves f unchanged and turns a
  certificate T into T / c^2, so every certifiable function is reachable under any fixed T > 0:
  training becomes a smooth loss over one convex set.
* ``sensitivity``: for tanh-like activations, which have no such gauge.  T follows the derivative of
  the projection distance ``phi = 1/2 ||W - V||^2``, which comes free with the projection:

      dphi / dlog t_{k,i} = 1/2 ( <(V - W)_{k-1}, W_{k-1}>_row i  -  <(V - W)_k, W_k>_column i )

* ``lipsdp``: the paper's rule, T re-solved at the consensus.  A regression with one input or output
  starts with a T that suits few neurons.  The gauge is then crossed too slowly: a square wave under
  slope 10 ended at a proven 7 with T fixed (1.2 to 1.8 times the best error), and at 10 with T
  re-solved every 20 to 100 rounds (1.06 times).  No entry may fall far below those of the neurons
  that matter: a small one holds the neuron's outgoing weights down, which makes the next optimum
  smaller still.  Without that floor one dying neuron of a regression went to 1e-81 in ten solves,
  and the projection with it; a large entry beside a row that is nearly zero does no harm.
* ``averaged``: for weights of which some stay at what is not 0, so that there is no gauge and not
  every T leaves room for them.  M is linear in (s, T): the mean of two that certify the consensus
  certifies it too.  T becomes the mean of itself and of LipSDP's, and no projection fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ..networks.sorting import HALF_ABS
from ..solvers import CertifyProblem, CertifySolution, SolveFailed, solve_certify
from .admm_state import AdmmState, Matrices
from .terms import LayerNorms, Terms

# The step forgets directions and sizes at these rates (running averages).
DIRECTION_DECAY, SIZE_DECAY = 0.8, 0.95
LIPSDP_TOL = 1e-3
SMALLEST_SHARE = 1e-4
HOMOGENEOUS = frozenset({"relu", "leaky_relu"})


@dataclass(frozen=True, eq=False)
class RoundView:
    """What a multiplier step may look at beside the state: the anchor of the projection, the
    optimizer's step size relative to that at the start, and the terms."""

    anchor: Matrices
    relative_lr: float
    terms: Terms


def sensitivity(anchor: Matrices, consensus: Matrices) -> Matrices:
    """``dphi / dlog t`` for every hidden neuron, one vector per hidden layer."""
    products = [(v - w) * w for v, w in zip(anchor, consensus, strict=True)]
    return tuple(
        0.5 * (incoming.sum(1) - outgoing.sum(0)) for incoming, outgoing in pairwise(products)
    )


def fixed(state: AdmmState, view: RoundView) -> AdmmState:
    """T stays."""
    return state


def by_sensitivity(state: AdmmState, view: RoundView) -> AdmmState:
    """``log t -= eta g / rms(g)``, averaged; the next projection restores feasibility."""
    gradient = sensitivity(view.anchor, state.consensus)
    if not gradient:  # a single affine map has no multiplier
        return state
    old = state.momentum or tuple(torch.zeros_like(g) for g in gradient)
    momentum = tuple(
        DIRECTION_DECAY * m + (1 - DIRECTION_DECAY) * g for m, g in zip(old, gradient, strict=True)
    )
    mean_square = float(torch.cat(gradient).square().mean())
    scale = SIZE_DECAY * state.mean_square + (1 - SIZE_DECAY) * mean_square
    rounds = state.iteration + 1
    size = (scale / (1 - SIZE_DECAY**rounds)) ** 0.5
    if size == 0.0:
        return state
    speed = view.terms.config.multiplier_rate * view.relative_lr
    rate = speed / (size * (1 - DIRECTION_DECAY**rounds))
    multiplier = tuple(
        t * torch.exp(-rate * m) for t, m in zip(state.multiplier, momentum, strict=True)
    )
    return replace(state, multiplier=multiplier, momentum=momentum, mean_square=scale)


def by_lipsdp(state: AdmmState, view: RoundView) -> AdmmState:
    """T optimal at the consensus, scaled to certify the bound of the round, small entries raised.

    That may leave the consensus a little outside; the next projection brings it back.
    """
    solution = _optimal(state, view, every=32)
    if solution is None:
        return state
    best = scaled_to(solution.multiplier, solution.lip, state.lip)
    return replace(state, multiplier=raised(best, view.terms.metric.seen(state.consensus)))


def averaged(state: AdmmState, view: RoundView) -> AdmmState:
    """The mean of T and of the optimal one, both for the L that the next projection asks for.

    Either one certifies the consensus with the layer that follows L shrunk far enough.
    """
    solution = _optimal(state, view, every=8)
    if solution is None or not 0.0 < solution.lip <= state.lip:
        return state
    layer = view.terms.scaled_layer(len(state.consensus))
    best = grown(solution.multiplier, state.target_sq / solution.lip**2, layer)
    mean = tuple(0.5 * (t + b) for t, b in zip(state.multiplier, best, strict=True))
    return replace(state, multiplier=mean)


def _optimal(state: AdmmState, view: RoundView, every: int) -> CertifySolution | None:
    """LipSDP's multiplier at the consensus where one is due and found; else the old one stays."""
    config, slopes = view.terms.config, view.terms.slopes
    if (state.iteration + 1) % (config.multiplier_every or every):
        return None
    assert not isinstance(slopes, LayerNorms)  # resolve_multiplier_step sees to it
    solver = replace(config.solver, tol=max(config.solver.tol, LIPSDP_TOL))
    problem = CertifyProblem(view.terms.metric.seen(state.consensus), slopes)
    try:
        return solve_certify(problem, solver, warm=state.multiplier)
    except SolveFailed:
        return None


def grown(multiplier: Matrices, growth: float, layer: int) -> Matrices:
    """T for the network with one ``layer`` scaled so that ``L^2`` is ``growth`` times as large.

    Scaling ``W_k`` by c multiplies ``L^2`` and the multipliers of the k hidden layers in front of
    it by c^2.
    """
    return tuple(t * growth if k < layer else t for k, t in enumerate(multiplier))


def raised(multiplier: Matrices, weights: Matrices) -> Matrices:
    """No entry below ``SMALLEST_SHARE`` of its layer's geometric mean, neurons weighed by what
    passes through them: the norm of the row times that of the column."""
    found = []
    for t, (into, out) in zip(multiplier, pairwise(weights), strict=True):
        passing = torch.linalg.vector_norm(into, dim=1) * torch.linalg.vector_norm(out, dim=0)
        share = passing / passing.sum().clamp(min=torch.finfo(t.dtype).tiny)
        found.append(t.clamp(min=SMALLEST_SHARE * float(torch.exp((share * t.log()).sum()))))
    return tuple(found)


def scaled_to(multiplier: Matrices, lip: float, bound: float) -> Matrices:
    """T for the network whose last layer is multiplied by ``bound / lip``: ``T (bound / lip)^2``.

    It certifies that network at ``bound``; where ``lip <= bound`` it certifies the given one too.
    """
    if lip == 0.0:
        return multiplier
    return tuple(t * (bound / lip) ** 2 for t in multiplier)


MultiplierStep = Callable[[AdmmState, RoundView], AdmmState]

MULTIPLIER_STEPS: dict[str, MultiplierStep] = {
    "fixed": fixed,
    "sensitivity": by_sensitivity,
    "lipsdp": by_lipsdp,
    "averaged": averaged,
}
# Those that suit weights of which some stay at what is not 0.
_FOR_RIGID = ("auto", "fixed", "averaged")


def resolve_multiplier_step(
    name: str, activations: tuple[str, ...], regression: bool = False, rigid: bool = False
) -> MultiplierStep:
    """The rule of that name.

    ``"auto"`` is ``averaged`` where weights are ``rigid``: held at what is not 0.  Else it is
    ``sensitivity`` unless every activation is homogeneous; then ``fixed`` for classifiers and
    ``lipsdp`` for regressions.  Networks that sort pairs have no multiplier that could move
    (``layer_norms.py``).

    Raises:
        ValueError: for a name that is not in ``MULTIPLIER_STEPS``, or does not suit the network.
    """
    if HALF_ABS in activations:
        if name not in ("auto", "fixed"):
            raise ValueError(
                "multiplier_step: a network that sorts pairs is trained with multipliers of I; "
                f"expected 'auto' or 'fixed', got {name!r}"
            )
        return fixed
    if rigid and name not in _FOR_RIGID:
        raise ValueError(
            f"multiplier_step: expected one of {', '.join(_FOR_RIGID)} where weights are held at "
            f"what is not 0, got {name!r}"
        )
    if name == "auto":
        homogeneous = "lipsdp" if regression else "fixed"
        name = homogeneous if HOMOGENEOUS.issuperset(activations) else "sensitivity"
        name = "averaged" if rigid else name
    step = MULTIPLIER_STEPS.get(name)
    if step is None:
        names = ", ".join(("auto", *MULTIPLIER_STEPS))
        raise ValueError(f"multiplier_step: expected one of {names}, got {name!r}")
    return step
