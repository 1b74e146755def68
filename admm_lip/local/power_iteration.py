"""Norms of masked layers, one per sample, by power iteration: differentiable, from below.

For the operator ``A_b = R_b W C_b`` of sample b (R, C its masks of rows and columns) each round is

    w = A v,    v <- A' w / ||A' w||,       sigma = ||A' w|| / ||w||  =  <w / ||w||, A v>

(or the same from the other side), with the vector kept on the smaller side.  The gradient holds
masks and vectors: ``d sigma = <u, R dW C v>``, which at a simple singular value is exact.
sigma never exceeds the norm: a training signal, never a bound (``proven_norms.py`` has bounds).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear_operator import Operator

_TINY = 1e-30


class _Value(torch.autograd.Function):
    """sigma, whose gradient in the weight is ``sum_b g_b u_b v_b'``."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, operator: Operator, sigma: Tensor, v: Tensor, u: Tensor
    ) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(v, u)
        return sigma.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        v, u = ctx.saved_tensors
        weighted = u * grads[0].view(-1, *([1] * (u.ndim - 1)))
        return ctx.operator.weight_gradient(v, weighted), None, None, None, None


def keeps_input_side(operator: Operator) -> bool:
    """Whether the vector kept between steps lies on the side of the inputs."""
    return operator.size_in <= operator.size_out


def vector_shape(operator: Operator) -> tuple[int, ...]:
    """Shape of the vector that is kept for one sample."""
    return operator.shape_in if keeps_input_side(operator) else operator.shape_out


def masked_norms(
    operator: Operator,
    rows: Tensor | None,
    columns: Tensor | None,
    start: Tensor,
    iterations: int,
    *,
    marks: bool = True,
) -> tuple[Tensor, Tensor]:
    """Norms of ``R W C`` from below, and the vectors to start from next time.

    Args:
        operator: the layer.
        rows: R, ``(batch, size_out)``, ``None`` for 1.
        columns: C, ``(batch, size_in)``.
        start: ``(batch, *vector_shape(operator))``; a batch of 1 without masks is the layer itself.
        iterations: rounds, at least 1.
        marks: whether R and C are 0 and 1; other scales have no gradient here.

    Returns:
        ``(batch,)``, differentiable in the weight, and vectors of norm 1 like ``start`` (0 where
        the norm is 0).
    """
    columns = None if columns is None else columns.reshape(-1, *operator.shape_in)
    rows = None if rows is None else rows.reshape(-1, *operator.shape_out)
    # Marks need not be set twice.
    r, c = (None, None) if marks else (rows, columns)
    with torch.no_grad():
        if keeps_input_side(operator):
            v = _masked(start, columns) if marks else start
            for _ in range(iterations):
                u = _masked(operator.forward(_masked(v, c)), rows)
                v = _masked(operator.adjoint(_masked(u, r)), columns)
                sigma, v, u = _normalised(v, u)
            kept = v
        else:
            u = _masked(start, rows) if marks else start
            for _ in range(iterations):
                v = _masked(operator.adjoint(_masked(u, r)), columns)
                u = _masked(operator.forward(_masked(v, c)), rows)
                sigma, u, v = _normalised(u, v)
            kept = u
    if operator.weight is None or not torch.is_grad_enabled():
        return sigma, kept
    value: Tensor = _Value.apply(operator.weight, operator, sigma, v, u)  # type: ignore[no-untyped-call]
    return value, kept


def start_vector(operator: Operator, iterations: int) -> Tensor:
    """A vector of the layer itself, ``(1, *vector_shape(operator))``."""
    generator, shape = torch.Generator().manual_seed(0), (1, *vector_shape(operator))
    weight = operator.weight
    like = torch.zeros(()) if weight is None else weight.detach()
    start = torch.randn(shape, generator=generator).to(like)
    with torch.no_grad():
        return masked_norms(operator, None, None, start, iterations)[1]


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _normalised(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``||new|| / ||old||``, and both at norm 1; zeros where either vanishes."""
    length, before = _length(new), _length(old)
    lengths = length.flatten(), before.flatten()
    sigma = torch.where(lengths[1] > _TINY, lengths[0] / lengths[1].clamp_min(_TINY), 0.0)
    scaled = new / length.clamp_min(_TINY), old / before.clamp_min(_TINY)
    return sigma, *scaled


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length.view(-1, *([1] * (x.ndim - 1)))
