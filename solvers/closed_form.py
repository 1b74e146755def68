"""The best closed form as an answer of its own: what is known before, or without, any solver."""

from __future__ import annotations

import math
from functools import partial

from .native.lmi.closed_forms import searched_starts, theta_start
from .native.lmi.variables import spread
from .problem import CertifyProblem, Multiplier
from .proving import proving
from .reduction import reduce_certify


def closed_form(problem: CertifyProblem) -> tuple[Multiplier, float] | None:
    """The multiplier of the best closed form and the bound it implies, ``None`` if all broke down.

    Example:
        >>> import torch
        >>> from admm_lip.solvers.problem import unit_slopes
        >>> w = (torch.eye(2).double(), torch.eye(2).double())
        >>> 1.0 <= closed_form(CertifyProblem(w, unit_slopes(w)))[1] < 1.01
        True
    """
    reduced = reduce_certify(problem)
    starts = searched_starts(partial(theta_start, spread(reduced.problem)))
    if not starts:
        return None
    multiplier, lip = proving(problem, reduced.lift(starts[0].multiplier))
    return (multiplier, lip) if math.isfinite(lip) else None
