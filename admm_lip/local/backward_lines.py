"""Linear bounds of functionals of a network, taken back layer by layer to the input.

A row a over the outputs of a hidden layer is bounded from below by a row over its pre-activations:
where ``a_i >= 0`` the line below the activation is used, where ``a_i < 0`` the one above (Zhang et
al., NeurIPS 2018).  At the first pre-activations the ball itself is used:
``a z_0(x) - r ||a W_0||``.

Coefficients are rounded; what is missing is an exact multiple of what they multiply, so

    |lost| <= sum_i |a_i| q_i,

with ``q`` a vector per layer and sample (rounding of the product with ``W``, of the product with
the slope, of the stored weights), which is subtracted as the rows pass.  A coefficient that
underflows loses up to ``TINY`` times what it multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..float64 import TINY, U
from ..rounding import SLACK, gamma, lengths
from .curves import Range
from .forward_bounds import Ball, Forward, LayerBounds
from .input_region import ENTRIES, Region, chunks, one_hot
from .layers import Layer
from .windows import windows_of


@dataclass(frozen=True, eq=False)
class BackwardLines:
    """Linear bounds of the layers of a network, in float64, on the balls of a batch."""

    layers: Sequence[Layer]
    region: Region

    @property
    def ball(self) -> Ball:
        """The same balls as the pass forward takes them."""
        return Ball(self.region.radius * SLACK, first=self.region.first_range)

    def range(self, known: Sequence[LayerBounds], k: int) -> Range:
        """Range of ``z_k`` (``k >= 1``) from the lines of the layers before it."""
        windows, left = windows_of(self.layers[: k + 1], self.region)
        low, high = self._by_rows(known, k, left)
        for group in windows:
            part, places = group.outputs.shape
            inner = BackwardLines(group.layers, group.region(self.region))
            found = inner._by_rows(group.known(known), k, torch.ones(places, dtype=torch.bool))
            for ends, into in zip(found, (low, high), strict=True):
                into[:, group.outputs.flatten()] = ends.view(len(low), part * places)
        return Range(low, high)

    def _by_rows(self, known: Sequence[LayerBounds], k: int, some: Tensor) -> Range:
        """The same of some neurons, ``(n_k,)``, from rows over whole layers; of copies nothing."""
        layer, batch = self.layers[k], len(self.region)
        size = layer.operator.size_out
        widest = max(
            max(one.operator.size_in, one.operator.size_out) for one in self.layers[: k + 1]
        )
        low = torch.full((batch, size), -torch.inf, dtype=torch.float64)
        high, wanted = -low, (some & ~layer.copies).nonzero()[:, 0]
        bias = low.new_zeros(size) if layer.bias is None else layer.bias
        for part in chunks(wanted, ENTRIES // (widest * max(batch, 1))):
            rows = layer.rows_back(one_hot(part, size)).expand(batch, -1, -1)
            constant = bias[part].expand(batch, -1)
            low[:, part] = self.below(known, rows, constant)
            high[:, part] = -self.below(known, -rows, -constant)
        off = _stored(layer, known[-1])
        if not layer.operator.exact_rows:
            off = off + SLACK * layer.gamma_back * layer.absolute(known[-1].reach)
        return Range(low - off, high + off)

    def functionals(self, forward: Forward, rows: Tensor) -> Tensor:
        """Lower bounds of ``rows f`` on every sample's region, ``(batch, m)``.

        Args:
            forward: what is known of all hidden layers.
            rows: ``(batch, m, n_out)``: functionals of the outputs, with entries 0 and +-1.
        """
        if not forward.layers:
            return center_values(self.layers[-1], forward, rows) - self.region.support(-rows)
        weight, constant, lost = behind_last(self.layers[-1], forward.layers, rows)
        return self.below(forward.layers, weight, constant) - lost * SLACK

    def below(self, known: Sequence[LayerBounds], rows: Tensor, constant: Tensor) -> Tensor:
        """Lower bounds of ``rows x_k + constant``, ``x_k`` the outputs of the last of ``known``.

        Args:
            known: the hidden layers up to it.
            rows: ``(batch, m, n_k)``.
            constant: ``(batch, m)``.
        """
        lost = torch.zeros_like(constant)
        for k in range(len(known) - 1, -1, -1):
            here, layer = known[k], self.layers[k]
            assert here.response.curve is not None
            lines = here.response.curve.lines
            up, down = rows.clamp(min=0.0), rows.clamp(max=0.0)
            terms = times(up, lines.low) + times(down, lines.high)
            intercepts = torch.maximum(lines.low.abs(), lines.high.abs())
            lost = lost + gamma(2 * rows.shape[-1]) * times(rows.abs(), intercepts)
            rows = up * lines.low_slope[:, None] + down * lines.high_slope[:, None]
            constant = constant + terms
            lost = lost + TINY * here.largest.sum(dim=1, keepdim=True)
            if k == 0:
                break
            if layer.bias is not None:
                constant = constant + rows @ layer.bias
            lost = lost + times(rows.abs(), doubt_back(layer, here, known[k - 1]))
            lost = lost + 4.0 * U * constant.abs() + TINY * known[k - 1].reach.sum(1, keepdim=True)
            rows = layer.rows_back(rows)
        return self.on_region(known[0], rows, constant, lost)

    def on_region(self, first: LayerBounds, rows: Tensor, constant: Tensor, lost: Tensor) -> Tensor:
        """The last step, from the first pre-activations to the ball."""
        middle = 0.5 * (first.center.low + first.center.high)
        off = torch.maximum(first.center.high - middle, middle - first.center.low)
        value = times(rows, middle)
        doubt = off + gamma(rows.shape[-1]) * middle.abs() + 2.0 * U * first.largest
        lost = lost + times(rows.abs(), doubt) + 4.0 * U * (constant.abs() + value.abs())
        return constant + value - self.region.support(-rows) - SLACK * lost - TINY


def center_values(last: Layer, forward: Forward, rows: Tensor, doubt: float = 1.0) -> Tensor:
    """Lower bounds of ``rows f`` at the samples themselves.

    Args:
        last: the last layer.
        forward: what is known of its inputs, with rounding.
        rows: ``(batch, m, n_out)``: functionals of the outputs, with entries 0 and +-1.
        doubt: what the bound on the rounding is multiplied by.
    """
    assert forward.error is not None
    z, error = last.affine_with_error(forward.value, forward.error)
    value = times(rows, z)
    off: Tensor = doubt * SLACK * times(rows.abs(), error + 4.0 * U * z.abs()) + TINY
    return value - off


def behind_last(
    last: Layer, known: Sequence[LayerBounds], rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Functionals of the outputs as rows over the last hidden layer, constants, and what is lost.

    Args:
        last: the last layer.
        known: the hidden layers, at least one.
        rows: ``(batch, m, n_out)``, with entries 0 and +-1.
    """
    size = rows.abs()
    # Differences of two rows of a matrix are rounded once per entry.
    lost = last.gamma_back * times(last.rows_back(size, absolute=True), known[-1].reach)
    lost = lost + size.sum(-1) * _stored(last, known[-1])[:, :1]
    constant = torch.zeros(rows.shape[:2], dtype=torch.float64)
    if last.bias is not None:
        constant = rows @ last.bias
        lost = lost + 4.0 * U * (size @ last.bias.abs())
    return last.rows_back(rows), constant, lost


def doubt_back(layer: Layer, here: LayerBounds, before: LayerBounds) -> Tensor:
    """What a row over the pre-activations ``here`` loses on its way through ``W``, per entry."""
    q = gamma(layer.operator.terms_back) * layer.absolute(before.reach)
    q = q + 2.0 * U * here.largest + _stored(layer, before)
    if layer.bias is not None:
        q = q + gamma(layer.operator.size_out) * layer.bias.abs()
    return q


def _stored(layer: Layer, before: LayerBounds) -> Tensor:
    """Per entry of ``W x + b``, what the errors of the stored weights may add; ``(batch, 1)``."""
    most: Tensor = layer.error * lengths(before.reach)[:, None] * SLACK
    return most + layer.bias_error


def times(rows: Tensor, vector: Tensor) -> Tensor:
    """``(batch, m, n) x (batch, n) -> (batch, m)``."""
    product: Tensor = (rows @ vector[:, :, None])[..., 0]
    return product
