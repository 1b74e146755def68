"""Where power iterations start: one vector per layer and sample, in half precision.

Only the vector of the layer's smaller side is kept: for N samples and layers whose smaller sides
sum to n, 2 N n bytes.  A sample's vector is an epoch old when it is used again; the layer's own,
unmasked, is one step old.  An iteration starts from the sum of both: while the weights move fast
the second leads, later the first (on a small MNIST network in its first epochs the sample's own
alone estimated 75 to 95 % of the norms, the sum 84 to 99 %).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .linear_operator import Operator
from .power_iteration import start_vector, vector_shape

_WARM_UP = 20


class WarmStarts:
    """The vectors of all layers; ``whole`` for the layers themselves, ``table`` for samples.

    Args:
        operators: the layers, in order.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.shapes = [vector_shape(op) for op in operators]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.table = torch.zeros((0, sum(self.sizes)), dtype=torch.float16)
        self.whole = [start_vector(operator, _WARM_UP) for operator in operators]

    def starts(self, layer: int, rows: Tensor | None, count: int) -> Tensor:
        """Vectors ``(count, *shape)`` of a layer for some samples.

        Args:
            layer: its number.
            rows: the samples' numbers in the data set, on the CPU; ``None`` where unknown.
            count: number of samples.
        """
        whole = self.whole[layer].expand(count, *self.shapes[layer])
        if rows is None:
            return whole
        self._grow(int(rows.max()) + 1)
        kept = self.table[rows, self._columns(layer)].to(whole).view(whole.shape)
        # Both have norm 1; aligned, neither cancels the other.
        cosine = (kept * whole).flatten(1).sum(dim=1)
        sign = torch.where(cosine < 0.0, -1.0, 1.0).view(-1, *([1] * (whole.ndim - 1)))
        return torch.addcmul(whole, kept, sign)

    def keep(self, layer: int, rows: Tensor | None, vectors: Tensor) -> None:
        """Store the vectors that an iteration ended with."""
        if rows is not None:
            stored = vectors.detach().flatten(1).to("cpu", torch.float16)
            self.table[rows, self._columns(layer)] = stored

    def _columns(self, layer: int) -> slice:
        first = sum(self.sizes[:layer])
        return slice(first, first + self.sizes[layer])

    def _grow(self, count: int) -> None:
        """Room for samples 0 to ``count - 1``, at least doubling."""
        if count > len(self.table):
            more = max(count, 2 * len(self.table)) - len(self.table)
            self.table = torch.cat([self.table, self.table.new_zeros((more, sum(self.sizes)))])

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` continues identically."""
        whole = torch.cat([v.flatten() for v in self.whole])
        return {"warm_table": self.table.clone(), "warm_whole": whole.detach().cpu()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned.

        Raises:
            ValueError: where it is of another architecture.
        """
        table, whole = state["warm_table"], state["warm_whole"]
        if table.ndim != 2 or table.shape[1] != sum(self.sizes) or len(whole) != sum(self.sizes):
            raise ValueError(
                f"checkpoint: expected warm starts of {sum(self.sizes)} numbers a sample, got "
                f"{tuple(table.shape)[-1]}: it is of another architecture; start anew"
            )
        self.table = table.to(torch.float16).clone()
        parts = torch.split(whole, self.sizes)
        self.whole = [
            part.view(1, *shape).to(old)
            for part, shape, old in zip(parts, self.shapes, self.whole, strict=True)
        ]
