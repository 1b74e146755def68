"""The bound of a multiplier where some slopes are known exactly.

A neuron with ``alpha = beta = a`` is linear, ``x_i = a v_i``: nothing about it is uncertain, and a
multiplier for it only stands in for that equation.  Here it is substituted instead.  Let Q be the
quadratic form that the layers behind put on the outputs ``x`` of a layer, and ``v`` its inputs; the
neurons that are not linear (b) have multipliers T.  What the layer hands on is

    P(v) = max_{x_b} x' Q x - 2 (x_b - alpha v_b)' T (x_b - beta v_b),      x_a = a v_a,

finite where ``S = 2 T - Q_bb`` is positive definite, and then ``Q' = W' P W`` one layer further on.
This is the backward elimination of ``lmi.implied_bound`` with ``t_a`` infinite, which is their best
value.  Multipliers of linear neurons are not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .problem import Slopes
from .spectrum import top_eigenvalue


def any_known(slopes: Sequence[Slopes]) -> bool:
    """Whether some neuron is linear."""
    return any(bool((s.alpha == s.beta).any()) for s in slopes)


def storage_bound(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multiplier: Sequence[Tensor]
) -> float:
    """The least L that the multipliers of the neurons that are not linear prove; ``inf`` if none.

    Example:
        >>> known = Slopes(torch.ones(1).double(), torch.ones(1).double())
        >>> two = torch.tensor([[2.0]]).double()
        >>> storage_bound((two, two), (known,), (torch.ones(1).double(),))
        4.0
    """
    first = weights[0]
    if first.shape[1] > first.shape[0]:
        first = torch.linalg.qr(first.T, mode="r")[1].T
    form = weights[-1].T @ weights[-1]
    layers = zip(
        reversed([first, *weights[1:-1]]), reversed(slopes), reversed(multiplier), strict=True
    )
    for w, s, t in layers:
        handed = handed_on(form, s, t)
        if handed is None:
            return float("inf")
        form = w.T @ handed @ w
    if not bool(torch.isfinite(form).all()):
        return float("inf")
    return math.sqrt(max(top_eigenvalue(form), 0.0))


def handed_on(form: Tensor, slopes: Slopes, t: Tensor) -> Tensor | None:
    """P of the module's docstring; ``None`` where S is not positive definite."""
    known = slopes.alpha == slopes.beta
    a, b = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
    slope, low, high, t = slopes.alpha[a], slopes.alpha[b], slopes.beta[b], t[b]
    handed = torch.zeros_like(form)
    handed[a[:, None], a] = slope[:, None] * form[a[:, None], a] * slope
    handed[b, b] = -2.0 * low * high * t
    factor, info = torch.linalg.cholesky_ex(torch.diag(2.0 * t) - form[b[:, None], b])
    if int(info) != 0:
        return None
    pull = torch.zeros(len(b), form.shape[0], dtype=form.dtype, device=form.device)
    pull[:, a] = form[b[:, None], a] * slope
    pull[torch.arange(len(b)), b] = (low + high) * t
    half = torch.linalg.solve_triangular(factor, pull, upper=False)
    return handed.addmm_(half.T, half)
