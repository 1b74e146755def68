"""Batch normalisation folded into the layer before it: the same function in fewer layers.

In evaluation mode it multiplies every channel by ``gamma / sqrt(var + eps)`` and adds a constant,
which rows of the weight and a bias do as well.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModule
from .layer_spec import INPUT
from .trace import Step, steps

_NORMALISES = nn.modules.batchnorm._BatchNorm
_FOLDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def normalises(model: nn.Module) -> bool:
    """Whether a network has batch normalisation."""
    return any(isinstance(module, _NORMALISES) for module in model.modules())


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose linear layers and convolutions do what batch normalisation behind them did.

    A bound holds for a fixed network: this is the one that ``model`` is in evaluation mode, which
    the copy is in.  An ``nn.Identity`` stands where batch normalisation was.

    Args:
        model: each batch normalisation of which takes what one linear layer or convolution gives,
            which nothing else takes.

    Raises:
        UnsupportedModule: by name, where it does not, or keeps no statistics.

    Example:
        >>> import torch
        >>> from admm_lip import fold_batch_norm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.BatchNorm2d(2))
        >>> fold_batch_norm(net)
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
    """
    found = copy.deepcopy(model).eval()
    if not normalises(found):
        return found
    names = {id(module): name for name, module in found.named_modules()}
    before, rows = _before(steps(found)), {}
    for module in found.modules():
        if isinstance(module, _NORMALISES):
            layer = before.get(id(module))
            if layer is None or module.running_mean is None:
                raise UnsupportedModule(
                    f"{names[id(module)] or 'model'} ({type(module).__name__}): is folded into a "
                    "linear layer or a convolution that it alone takes, with the statistics that "
                    "it keeps; put it behind one, or leave it out"
                )
            rows[names[id(module)]] = layer, module
    for name, (layer, norm) in rows.items():
        _fold(layer, norm)
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, nn.Identity())
    return found


def _before(found: list[Step]) -> dict[int, nn.Module]:
    """By the identities of batch normalisations, the layers that they alone take."""
    names = [INPUT, *(step.name for step in found)]
    given = [step.inputs or (names[k],) for k, step in enumerate(found)]
    users = Counter(name for own in given for name in own)
    calls = Counter(id(step.module) for step in found)
    made = {step.name: step.module for step in found}
    layers: dict[int, nn.Module] = {}
    for step, (source, *_) in zip(found, given, strict=True):
        layer = made.get(source)
        once = users[source] == calls[id(layer)] == calls[id(step.module)] == 1
        if once and isinstance(step.module, _NORMALISES) and isinstance(layer, _FOLDS):
            layers[id(step.module)] = layer
    return layers


def _fold(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Rows of the weight and a bias for what ``norm`` does, in double precision until the end."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double()
        shift = shift + bias.double() if isinstance(bias, Tensor) else shift
        moved = scale * shift + (0.0 if norm.bias is None else norm.bias.double())
        rows = scale.reshape(-1, *(1,) * (weight.ndim - 1)) * weight.double()
    layer.weight = nn.Parameter(rows.to(weight.dtype), weight.requires_grad)
    layer.bias = nn.Parameter(moved.to(weight.dtype), weight.requires_grad)
