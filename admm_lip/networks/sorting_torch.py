"""Activations that sort neighbouring pairs of features, as torch modules.

Features 2k and 2k + 1 (dimension 1: channels, where there are rows and columns behind them) are put
in order; torch has no such module.  ``sorting.py`` says how they are certified.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Exchange(torch.autograd.Function):
    """Exchange the pairs that a mask marks; linear in x, and its own adjoint."""

    @staticmethod
    def forward(x: Tensor, marked: Tensor) -> Tensor:
        first, second = _pairs(x).unbind(2)
        out = torch.empty_like(x)
        torch.where(marked, second, first, out=_pairs(out)[:, :, 0])
        torch.where(marked, first, second, out=_pairs(out)[:, :, 1])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (marked,) = ctx.saved_tensors
        return exchange(grads[0], marked), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (marked,) = ctx.saved_tensors
        return exchange(tangents[0], marked)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *inputs: Tensor) -> Any:
        """Samples of samples are more samples."""
        full = [
            x.expand(info.batch_size, *x.shape) if k is None else x.movedim(k, 0)
            for k, x in zip(in_dims, inputs, strict=True)
        ]
        return exchange(*(x.flatten(0, 1) for x in full)).reshape(full[0].shape), 0


def exchange(x: Tensor, marked: Tensor) -> Tensor:
    """``x`` of shape ``(batch, features, *)`` with the marked pairs of features exchanged."""
    out: Tensor = _Exchange.apply(x.contiguous(), marked)  # type: ignore[no-untyped-call]
    return out


class MaxMin(nn.Module):
    """``(x_0, x_1) -> (max, min)`` of every pair of neighbouring features.

    Its Jacobian permutes, so it keeps the norm of gradients, and a network of it under a bound
    loses less than one of ReLU (C. Anil, J. Lucas, R. Grosse, ICML 2019).

    Shape:
        ``(batch, features, *)`` with an even number of features; the output has the same shape.

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[2., 1., 4., 3.]])
    """

    descending = True

    def forward(self, x: Tensor) -> Tensor:
        """Sort every pair.

        Raises:
            ValueError: where the number of features is odd.
        """
        if x.ndim < 2 or x.shape[1] % 2:
            raise ValueError(
                f"{type(self).__name__}: expected (batch, features, ...) with an even number of "
                f"features to sort in pairs, got shape {tuple(x.shape)}; change the width"
            )
        first, second = _pairs(x).unbind(2)
        marked = first < second if self.descending else second < first
        return exchange(x, marked)


class GroupSort2(MaxMin):
    """``(x_0, x_1) -> (min, max)`` of every pair of neighbouring features; see :class:`MaxMin`.

    Example:
        >>> GroupSort2()(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[1., 2., 3., 4.]])
    """

    descending = False


class HalfAbs(nn.Module):
    """The identity on the first half of the features, the absolute value on the second.

    Sorting pairs is this function between two rotations (``sorting.py``).

    Example:
        >>> HalfAbs()(torch.tensor([[-1.0, -2.0]]))
        tensor([[-1.,  2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to ``(batch, features, *)``.

        Raises:
            ValueError: where the number of features is odd.
        """
        if x.ndim < 2 or x.shape[1] % 2:
            raise ValueError(
                "HalfAbs: expected (batch, features, ...) with an even number of features, got "
                f"shape {tuple(x.shape)}; change the width"
            )
        same, folded = x.chunk(2, dim=1)
        return torch.cat([same, folded.abs()], dim=1)


def _pairs(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
