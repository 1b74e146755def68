"""The least proven bound of a chain: candidates for its multiplier, the least one proven.

1. The layers are brought near norm 1 by powers of two (``layer_scales.py``).
2. Candidates: LipSDP's multiplier from a solver, one that the caller knows, the closed form that
   reproduces the product of norms, and, where these leave something to gain, the best closed form
   of the solver's starts.
3. The least bound that is proven through rounding (``least_proven.py``) is the answer, with the
   comparison figures beside it.

The time limit covers all of it.  The solver gets what is left less what the proof will need, which
a pass over the same layers tells.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CertificateError
from ..networks.layers import Array
from ..solvers.closed_form import closed_form
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..solvers.errors import SolveFailed
from ..solvers.problem import CertifyProblem
from ..solvers.problem import Slopes as TensorSlopes
from ..solvers.side_by_side import solve_certify_all
from ..solvers.solution import CertifySolution
from ..solvers.solve import solve_certify
from .claim_matrices import Matrices
from .layer_scales import LayerScales
from .least_proven import Candidate, Claim, Search
from .norm_product import Norm, norm_product, product_multiplier

_log = logging.getLogger("admm_lip")

# Passes over the layers kept for after the solver: its answer is measured, perhaps tempered, and
# offered to a proof or two, which cost as much.
_PASSES_AFTER = 4
# Passes without which a solver, or the search for a closed form, does not come to an end at all.
_PASSES_OF_SOLVER = 5
_PASSES_OF_CLOSED_FORM = 6
# How far above the bound it implies a proven one may stand before a closed form is tried as well.
_CLOSE = 1.0 + 1e-6
# A product of norms so far above the solver's bound has no chance beside it.
_FAR = 1.01


@dataclass(frozen=True, eq=False)
class Proven:
    """A candidate that passed the proof, and what it is compared with.

    Attributes:
        candidate: with its bound, for the chain as it is.
        backend: the backend that found the multiplier, ``""`` where it was none.
        dual_bound: the solver's lower bound on the LipSDP optimum, 0 where there is none.
        product: of the layers' norms.
    """

    candidate: Candidate
    backend: str
    dual_bound: float
    product: float

    def lower_bounds(self, found: float) -> dict[str, Any]:
        """The lower bounds beside the proven one, which rounding alone can put above it."""
        sampled = min(found, self.candidate.lip)
        return {"sampled_lower": sampled, "lower_lip": max(sampled, self.dual_bound)}

    @property
    def multiplier(self) -> tuple[tuple[float, ...], ...]:
        """The multiplier as a certificate keeps it."""
        return tuple(tuple(t.tolist()) for t in self.candidate.multiplier)


def constant(matrices: Matrices) -> Proven:
    """The certificate of what does not depend on the input."""
    ones = tuple(np.ones(len(s.alpha)) for s in matrices.slopes)
    return Proven(Candidate("constant", ones, 0.0), "", 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Task:
    """A chain that is not constant, whose l2 constant is to be bounded.

    Attributes:
        matrices: what the proof is about.
        solved: a chain with the same implied bounds, what the solver gets.
        norms: spectral norm of each of the matrices.
        names: what a person calls them.
    """

    matrices: Matrices
    solved: Matrices
    norms: Sequence[Norm]
    names: Sequence[str]

    @cached_property
    def scales(self) -> LayerScales:
        """Of its layers (step 1)."""
        return LayerScales(tuple(n.power for n in self.norms))

    @cached_property
    def problem(self) -> CertifyProblem:
        """What the solver gets, in unit scale."""
        return _problem(self.scales.unit(self.solved))

    def claim(self, deadline: Deadline) -> Claim:
        """What is to be proven, within that time."""
        return Claim(self.matrices, self.scales, self.problem, self.names, deadline)


def solve_all(tasks: Sequence[Task], config: SolverConfig) -> list[CertifySolution | None]:
    """The solver's answers of many tasks, small ones side by side; ``None``: to be solved alone."""
    return solve_certify_all([task.problem for task in tasks], config)


def prove(
    task: Task,
    config: SolverConfig,
    deadline: Deadline,
    known: Sequence[Any] | None = None,
    solution: CertifySolution | None = None,
) -> Proven:
    """Steps 1 to 3.

    Args:
        task: what is to be proven.
        config: of the solver; what ``deadline`` leaves binds instead of its own time limit.
        deadline: of everything.
        known: a multiplier to try as well, and to start from.
        solution: the solver's answer, where it is there already.

    Raises:
        CertificateError: when nothing could be proven through rounding.
    """
    claim = task.claim(deadline)
    warm = None
    if known is not None:
        warm = claim.scales.unit_multiplier(_checked(task.matrices, known))
    beside = math.inf if solution is None else solution.lip
    product, search = _product(task, claim, beside), Search(claim)
    if solution is None and task.matrices.slopes:
        solution = _solved(claim, config, warm)
    candidates = [product]
    if warm is not None:
        candidates.append(Candidate("given", warm, claim.implied(warm)))
    if solution is not None:
        candidates.append(Candidate("lipsdp", _arrays(solution.multiplier), solution.lip))
    search.offer(candidates, safe=product)
    if math.isfinite(beside) and (search.best is None or search.best.method == product.method):
        search.offer([_product(task, claim)])
    implied = min(candidate.lip for candidate in candidates)
    search.offer(_closed(claim, search, implied if solution is not None else 0.0))
    if search.best is None:
        raise CertificateError(f"no bound could be proven through rounding: {search.reason}")
    lower = claim.scales.lip(solution.lower_lip) if solution is not None else 0.0
    return Proven(
        candidate=search.best,
        backend=solution.backend if solution and search.best.method == "lipsdp" else "",
        dual_bound=min(lower, search.best.lip),
        product=norm_product(task.matrices, task.norms),
    )


def prove_product(task: Task, deadline: Deadline, known: Sequence[Array] | None = None) -> Proven:
    """The product of norms, proven by its multiplier in closed form, or by one that is ``known``.

    Raises:
        CertificateError: when it could not be proven through rounding.
    """
    claim = task.claim(deadline)
    product, search = _product(task, claim), Search(claim)
    candidates = [product]
    if known is not None:
        unit = claim.scales.unit_multiplier(known)
        candidates.append(Candidate("closed_form", tuple(unit), claim.implied(unit)))
    search.offer(candidates, safe=product)
    if search.best is None:
        raise CertificateError(f"no bound could be proven through rounding: {search.reason}")
    return Proven(search.best, "", 0.0, norm_product(task.matrices, task.norms))


def _product(task: Task, claim: Claim, beside: float = math.inf) -> Candidate:
    """The candidate that proves the product of norms, at least.

    What its multiplier implies is not looked at where the product is far above a bound ``beside``
    it, near the least of all.
    """
    shares = [n.share for n in task.norms]
    multiplier = product_multiplier(task.matrices, shares)
    product = norm_product(task.matrices, [n._replace(power=0) for n in task.norms])
    if multiplier and product <= _FAR * beside:
        product = min(product, claim.implied(multiplier))
    return Candidate("norm_product", multiplier, product)


def _closed(claim: Claim, search: Search, implied: float) -> list[Candidate]:
    """The solver's best closed form, where there is no other or the proof of others lost much.

    The native solver starts from it, so there is nothing to gain where its own answer was proven.
    """
    near = search.best is not None and search.best.lip <= _CLOSE * claim.scales.lip(implied)
    if (
        near
        or not claim.problem.slopes
        or not claim.deadline.has_time(passes=_PASSES_OF_CLOSED_FORM)
    ):
        return []
    found = claim.deadline.timed("closed forms", lambda: closed_form(claim.problem))
    return [] if found is None else [Candidate("closed_form", _arrays(found[0]), found[1])]


def _solved(
    claim: Claim, config: SolverConfig, warm: Sequence[Array] | None
) -> CertifySolution | None:
    """The solver's answer; ``None``, with a warning, where all failed or there is no time."""
    deadline = claim.deadline
    if not deadline.has_time(passes=_PASSES_OF_SOLVER + _PASSES_AFTER):
        _log.warning("time_limit: too short for a solver here; a closed form is certified instead")
        return None
    reserve = _PASSES_AFTER * deadline.seconds_of("passes")
    limited = replace(config, time_limit=deadline.limit(reserve))
    start = None if warm is None else tuple(torch.from_numpy(t) for t in warm)
    try:
        return solve_certify(claim.problem, limited, start)
    except SolveFailed as error:
        if not config.fallback:
            raise
        _log.warning("%s; what closed forms prove is certified instead", error)
        return None


def _problem(chain: Matrices) -> CertifyProblem:
    return CertifyProblem(
        tuple(torch.from_numpy(w) for w in chain.weights),
        tuple(TensorSlopes(*(torch.from_numpy(v) for v in s)) for s in chain.slopes),
    )


def _checked(chain: Matrices, known: Sequence[Any]) -> list[Array]:
    """A multiplier that the caller gave, as arrays."""
    given = [torch.as_tensor(t, dtype=torch.float64) for t in known]
    expected = [s.alpha.shape for s in chain.slopes]
    if [tuple(t.shape) for t in given] != expected:
        raise CertificateError(
            f"multiplier: expected shapes {expected}, one entry per hidden neuron, "
            f"got {[tuple(t.shape) for t in given]}"
        )
    return list(_arrays(given))


def _arrays(multiplier: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(t.detach().cpu().numpy() for t in multiplier)
