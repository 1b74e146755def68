"""Weights that a network of half precision is trained in, and the way back to its own dtype.

An optimizer's steps are smaller than what float16 and bfloat16 resolve, so they are trained in
float32 ("master weights").  The result is rounded to the dtype that came in, and it is these
rounded numbers that are certified.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import TrainConfig


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters.

    Raises:
        ValueError: naming two parameters, where they are not all of one floating dtype.
    """
    first: tuple[str, torch.dtype] | None = None
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"model: expected parameters of floats, got {parameter.dtype} in {name}; convert "
                "the model by .float()"
            )
        first = first or (name, parameter.dtype)
        if parameter.dtype != first[1]:
            raise ValueError(
                f"model: expected one dtype, got {first[1]} in {first[0]} and {parameter.dtype} "
                f"in {name}; convert the model by .float()"
            )
    return torch.float32 if first is None else first[1]


def master_dtype(stored: torch.dtype) -> torch.dtype:
    """float32, or float64 for a network of that.

    Example:
        >>> master_dtype(torch.bfloat16), master_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(stored, torch.float32)


def scaler_of(
    config: TrainConfig, optimizer: torch.optim.Optimizer, model: nn.Module
) -> torch.amp.GradScaler:
    """Of gradients in float16; does nothing in other precisions.

    Raises:
        ValueError: for L-BFGS in float16.
    """
    scaled = config.precision == "float16"
    if scaled and isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("precision: float16 scales gradients, which L-BFGS cannot search along")
    device = next(model.parameters()).device
    return torch.amp.GradScaler(device.type, enabled=scaled)
