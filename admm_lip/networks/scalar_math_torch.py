"""The table of activations for tensors: its functions, its rows as modules, values with errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS
from .layer_spec import CARRIED, LayerSpec, SideBySide, runs_of
from .scalar_math import Math
from .sorting import HALF_ABS


def _clip(x: Tensor, low: Any, high: Any) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(end, dtype=x.dtype) for end in (low, high))
    return x.clamp(low, high)


def _pieces(x: Tensor, at: Any, left: Any, right: Any) -> Tensor:
    left, right = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in (left, right))
    return torch.where(x <= at, left, right)


TORCH = Math(
    exp=torch.exp,
    expm1=torch.expm1,
    tanh=torch.tanh,
    erfc=torch.erfc,
    sin=torch.sin,
    cos=torch.cos,
    abs=torch.abs,
    sigmoid=torch.sigmoid,
    softplus=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    clip=_clip,
    pieces=_pieces,
)


def scalar_runs(spec: LayerSpec | SideBySide, size: int) -> list[tuple[slice, LayerSpec]]:
    """A hidden layer as runs of neurons of one row of the table each; one run for most.

    Sorted pairs are an identity and an absolute value: LeakyReLU of slope 1 and of slope -1.  What
    is carried past other activations is an identity.
    """
    return [
        (slice(run.start + part.start, run.start + part.stop), scalar)
        for run, one in runs_of(spec, size)
        for part, scalar in _scalar_parts(one, run.stop - run.start)
    ]


def _scalar_parts(spec: LayerSpec, size: int) -> list[tuple[slice, LayerSpec]]:
    if spec.kind not in (HALF_ABS, CARRIED):
        return [(slice(0, size), spec)]
    same = size if spec.kind == CARRIED else size // 2
    return [
        (slice(low, high), LayerSpec("leaky_relu", spec.name, {"negative_slope": slope}))
        for low, high, slope in ((0, same, 1.0), (same, size, -1.0))
        if low < high
    ]


class Formula(nn.Module):
    """One row of the table as a module, for options that none of torch's modules has.

    Example:
        >>> FORMULAS["sin"]()(torch.zeros(1)).tolist()
        [0.0]
    """

    kind: str

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {**ACTIVATIONS[self.kind].defaults, **options}

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the row's formula in the precision of ``x``."""
        value: Tensor = ACTIVATIONS[self.kind].value(TORCH, self.options, x)
        return value


FORMULAS = {
    kind: type(f"Formula_{kind}", (Formula,), {"kind": kind})
    for kind, row in ACTIVATIONS.items()
    if row.known and not row.arrays
}
