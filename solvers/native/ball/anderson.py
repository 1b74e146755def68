"""Anderson acceleration of a fixed-point iteration, with a way back.

For ``a = F(a)`` with residuals ``g_i = F(a_i) - a_i`` the next point is the combination of the last
images whose residuals cancel best:

    gamma = argmin || g_k - sum_j gamma_j (g_{j+1} - g_j) ||
    a_{k+1} = F(a_k) - sum_j gamma_j (F(a_{j+1}) - F(a_j))                  (type II)

F is not expansive, so plain steps never lengthen the residual; where an accelerated one did, the
iteration returns to the plain image it had passed by and starts to remember anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...phases import phase

DEPTH = 5
# An accelerated step may lengthen the residual by this factor before it is taken back.
GROWTH = 2.0
RIDGE = 1e-10
# Weights beyond this (in sum) come from steps that are all but dependent.
LARGEST = 1e4


class Anderson:
    """What the iteration remembers: at most ``DEPTH`` steps of the residual and of the image."""

    def __init__(self, like: Tensor) -> None:
        size = like.numel()
        self._residual_steps = like.new_empty(DEPTH, size)
        self._image_steps = like.new_empty(DEPTH, size)
        self._gram = like.new_zeros(DEPTH, DEPTH)
        self._last: tuple[Tensor, Tensor] | None = None
        self._passed_by: Tensor | None = None
        self._length = 0.0
        self._count = 0

    def forget(self) -> None:
        """Drop the memory: the map has changed."""
        self._last = self._passed_by = None
        self._count = 0

    @phase("acceleration")
    def propose(self, point: Tensor, image: Tensor) -> Tensor:
        """The next point after ``image = F(point)``."""
        residual = (image - point).reshape(-1)
        length = float(residual.norm())
        if self._passed_by is not None and not length <= GROWTH * self._length:
            plain = self._passed_by
            self.forget()
            return plain
        self._remember(residual, image.reshape(-1))
        self._length = length
        known = min(self._count, DEPTH)
        if known == 0:
            return image
        steps, gram = self._residual_steps[:known], self._gram[:known, :known].clone()
        diagonal = gram.diagonal()
        diagonal += RIDGE * diagonal.sum()
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info) != 0:  # the residual has stopped moving
            return image
        weights = torch.cholesky_solve((steps @ residual)[:, None], factor)[:, 0]
        if not float(weights.abs().sum()) <= LARGEST:
            return image
        self._passed_by = image
        flat = torch.addmv(image.reshape(-1), self._image_steps[:known].T, weights, alpha=-1.0)
        return flat.reshape(image.shape)

    def _remember(self, residual: Tensor, image: Tensor) -> None:
        """Store the newest steps over the oldest ones, and their inner products."""
        if self._last is not None:
            slot = self._count % DEPTH
            self._count += 1
            torch.sub(residual, self._last[0], out=self._residual_steps[slot])
            torch.sub(image, self._last[1], out=self._image_steps[slot])
            known = min(self._count, DEPTH)
            products = self._residual_steps[:known] @ self._residual_steps[slot]
            self._gram[slot, :known] = self._gram[:known, slot] = products
        self._last = residual, image
