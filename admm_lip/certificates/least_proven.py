"""The least bound that can be proven: which candidate, and how little it must be inflated.

1.  A candidate is a multiplier with the bound it implies in exact arithmetic, nearly.  No proof of
    it can end below that, so candidates are tried in the order of their implied bounds, until the
    next one's is no less than what is proven already: the result is the least of all.
2.  A multiplier is **tempered** first where its entries spread so far that the rounding margin of
    the proof, which acts at every layer, would cost something.  With the other layers as they are,
    neuron i may have any ``t_i`` from about ``b_i`` to ``1 / a_i``,

        a_i = sum_j w_ij^2 / t_j  (what it hears),      b_i = sum_j t_j w_ji^2  (what hears it),

    and that is a wide range for a neuron that hardly matters: well inside it, its multiplier is
    brought within a few decades of its layer's median.  Where this loosens the bound by more than
    the margin gains, the multiplier stays.
3.  Each is offered to the proof through rounding (``proof.py``) inflated by as little as makes it
    succeed.
4.  All that while there is time.  The clock forbids neither the first attempt of all nor those of
    the last candidate given, the safe one, while nothing is proven: a bound late is better than
    none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..networks.layers import Array
from ..solvers.deadline import Deadline
from ..solvers.lmi import implied_bound
from ..solvers.problem import CertifyProblem
from .claim_matrices import Matrices
from .layer_scales import LayerScales
from .proof import PROOF_RANGE, rounding_margin, unproven

# Largest relative inflation of the bound at which the proof is tried.
_LARGEST_INFLATION = 0.1
# The least eigenvalue grows by half the inflation, or by a quarter where the powers of two that
# scale the matrix leave a diagonal entry at 1/2: a little more than four times the margin is
# nearly sure to do, and a proof that fails costs as much as one that succeeds.
_FIRST = 4.2
# A margin below this costs nothing that anyone could want back.
_FINE = 1e-8
# How far inside its own range a multiplier stays: its share of the bound is about the inverse.
_INSIDE = 1e9
# Decades around the layer's median, in the order of trial.
_DECADES = (12, 8, 6, 4, 3, 2)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A multiplier of the chain in its unit scale, and the bound it implies there."""

    method: str
    multiplier: tuple[Array, ...]
    lip: float


@dataclass(frozen=True, eq=False)
class Claim:
    """What is to be proven, and within what time.

    Attributes:
        matrices: the chain that the proof is about.
        scales: of its layers; candidates are those of the chain in unit scale.
        problem: in unit scale too, with the same implied bounds.
        names: per matrix, what a person calls it.
        deadline: knows the seconds of ``passes`` (implied bounds) and ``proofs``.
    """

    matrices: Matrices
    scales: LayerScales
    problem: CertifyProblem
    names: Sequence[str]
    deadline: Deadline

    @property
    def room(self) -> bool:
        """Whether there is time for one more proof; before the first, a pass says how long."""
        timed = self.deadline.seconds_of("proofs") > 0.0
        return self.deadline.has_time(**{"proofs" if timed else "passes": 1})

    def original(self, candidate: Candidate) -> Candidate:
        """The candidate in the scale of ``matrices``."""
        multiplier = self.scales.multiplier(candidate.multiplier)
        return Candidate(candidate.method, multiplier, self.scales.lip(candidate.lip))

    def implied(self, multiplier: Sequence[Array]) -> float:
        """The bound that a multiplier implies, in unit scale."""
        tensors = [torch.from_numpy(t) for t in multiplier]
        w, slopes = self.problem.weights, self.problem.slopes
        return self.deadline.timed("passes", lambda: implied_bound(w, slopes, tensors))

    def margin(self, candidate: Candidate) -> float:
        """The proof's rounding margin, which an inflation must make up for."""
        own = self.original(candidate)
        return rounding_margin(self.matrices, own.multiplier, own.lip)

    def unproven(self, own: Candidate) -> str | None:
        """Why a candidate in the scale of ``matrices`` is not proven, ``None`` where it is."""
        proof = partial(unproven, self.matrices, own.multiplier, own.lip)
        return self.deadline.timed("proofs", proof)


class Search:
    """Steps 1, 3 and 4: what is proven so far, ``best``, in the scale of the claim's matrices."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._begun = False
        self.best: Candidate | None = None
        self.reason = "no candidate implies a finite bound"

    def offer(self, candidates: Sequence[Candidate], safe: Candidate | None = None) -> None:
        """Better ``best`` by these candidates."""
        for candidate in sorted(candidates, key=lambda c: c.lip):
            promising = self.best is None or self._claim.scales.lip(candidate.lip) < self.best.lip
            if promising and math.isfinite(candidate.lip):
                self._prove(*tempered(self._claim, candidate), candidate is safe)

    def _prove(self, candidate: Candidate, margin: float, safe: bool) -> None:
        """Step 3: the least inflation that is proven, if it betters what is known."""
        refused = out_of_range(self._claim, candidate)
        if refused is not None:
            self.reason = refused
            return
        for inflated in _inflated(self._claim.original(candidate), _FIRST * margin):
            if self.best is not None and not inflated.lip < self.best.lip:
                return
            must = self.best is None and (safe or not self._begun)
            if not (must or self._claim.room):
                return
            self._begun = True
            failed = self._claim.unproven(inflated)
            if failed is None:
                self.best = inflated
                return
            self.reason = failed


def out_of_range(claim: Claim, candidate: Candidate) -> str | None:
    """Which layer's scale takes the bound or a multiplier out of the range of a proof, if any."""
    low, high = PROOF_RANGE
    own, names, sums = claim.original(candidate), claim.names, claim.scales.sums
    advice = (
        "rescale the layers nearer to norm 1; where activations are homogeneous (ReLU), what one "
        "layer is multiplied by the next can be divided by"
    )
    if not low <= own.lip <= high:
        powers = claim.scales.powers
        worst = max(range(len(powers)), key=lambda k: abs(powers[k]))
        return (
            f"the bound is about 2^{sums[0]}, outside 2^-400 to 2^400, and layer {names[worst]} "
            f"has a norm of about 2^{powers[worst]}: {advice}"
        )
    for k, t in enumerate(own.multiplier):
        if not bool(((t >= low) & (t <= high)).all()):
            return (
                f"the multipliers between layers {names[k]} and {names[k + 1]} leave the range "
                f"2^-400 to 2^400: the norms of the layers from {names[k + 1]} on multiply to "
                f"about 2^{sums[k + 1]}: {advice}"
            )
    return None


def tempered(claim: Claim, candidate: Candidate) -> tuple[Candidate, float]:
    """Step 2, and the rounding margin of what came of it."""
    margin = claim.margin(candidate)
    if margin <= _FINE or not candidate.multiplier or not math.isfinite(candidate.lip):
        return candidate, margin
    own = free_ranges(claim.problem, candidate)
    trials = [_gathered(candidate, own, 10.0**decades) for decades in _DECADES]
    margins = [claim.margin(trial) for trial in trials]
    enough = 2.0 * max(min(margins), _FINE)
    if margin <= enough:
        return candidate, margin
    mildest = next(k for k, m in enumerate(margins) if m <= enough)
    trial = replace(trials[mildest], lip=claim.implied(trials[mildest].multiplier))
    if _expected(trial, margins[mildest]) < _expected(candidate, margin):
        return trial, claim.margin(trial)  # its bound is its own now
    return candidate, margin


def free_ranges(problem: CertifyProblem, candidate: Candidate) -> list[tuple[Array, Array]]:
    """``b_i`` and ``1 / a_i`` of the module's docstring, layer by layer.

    On the inputs stands ``L^2``, on the outputs 1.
    """
    squares = [w.numpy() ** 2 for w in problem.weights]
    inputs = np.full(squares[0].shape[1], candidate.lip**2)
    ends = [inputs, *candidate.multiplier, np.ones(len(squares[-1]))]
    with np.errstate(all="ignore"):
        return [
            (ends[k + 1] @ squares[k], 1.0 / (squares[k - 1] @ (1.0 / ends[k - 1])))
            for k in range(1, len(squares))
        ]


def _gathered(candidate: Candidate, own: Sequence[tuple[Array, Array]], factor: float) -> Candidate:
    """Every multiplier as near to its layer's median as its own range and the factor have it."""
    gathered = []
    for t, (low, high) in zip(candidate.multiplier, own, strict=True):
        median = float(np.median(t))
        ceiling = np.maximum(median * factor, np.nan_to_num(low * _INSIDE))
        floor = np.minimum(median / factor, np.nan_to_num(high / _INSIDE))
        gathered.append(np.maximum(np.minimum(t, ceiling), floor))
    return replace(candidate, multiplier=tuple(gathered))


def _expected(candidate: Candidate, margin: float) -> float:
    """The bound that the first inflation will give."""
    return candidate.lip * math.pow(1.0 + _FIRST * margin, (len(candidate.multiplier) + 1) / 2)


def _inflated(candidate: Candidate, first: float) -> Iterator[Candidate]:
    """Slightly larger bounds with multipliers to match, in the order of trial.

    ``t_k (1 + e)^(l+1-k)`` with ``L (1 + e)^((l+1)/2)`` shrinks every off-diagonal block of the
    scaled inequality by ``(1 + e)^(-1/2)``, so for ``alpha beta <= 0`` its least eigenvalue grows
    by about e/2, whatever the depth.  The plain inflation of L is for positive alpha.
    """
    depth = len(candidate.multiplier)
    e = first
    while e < _FIRST * _LARGEST_INFLATION:
        profile = tuple(t * (1.0 + e) ** (depth - k) for k, t in enumerate(candidate.multiplier))
        lip = candidate.lip * (1.0 + e) ** ((depth + 1) / 2)
        yield Candidate(candidate.method, profile, lip)
        yield Candidate(candidate.method, candidate.multiplier, lip)
        yield Candidate(candidate.method, profile, lip * (1.0 + e) ** (depth + 1))
        e *= 2.0
