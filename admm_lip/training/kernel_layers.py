"""Networks of convolutions and skips as they are trained: which layers move, their balls.

The network is read as it is for a certificate, by ``torch.fx`` or ``torch.export``; the layers that
hold its kernels and matrices are those modules that hold the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..certificates.torus.read import furthest_chain
from ..certificates.torus.reading import NotShiftInvariant
from ..certificates.torus.windows import least_side
from ..errors import NetworkError, UnsupportedModule
from ..foreign.open import network_of
from ..networks.activations import ACTIVATIONS
from ..networks.chain import has_skips, shared_parameter
from ..networks.layer_spec import LayerSpec, neuron_slopes, scalar_parts
from ..networks.layers import AFFINE, RESHAPES, Shape, Window
from ..networks.module_state import evaluating
from ..networks.network import Network
from ..networks.sorting import HALF_ABS, SORTS
from .config import RESIDUAL_GAIN
from .kernel_ball import KernelBall
from .matrix_ball import DENSE
from .module_ball import ModuleBall
from .padding import NONE, Rows, rows_of
from .residual_ball import residual_ball
from .shortcut_ball import shortcut_ball
from .skip_ball import skip_ball
from .skips import ADDED, ALONE, BRANCH, SHORTCUT, TIED, UNTIED, Piece, pieces_of
from .start import CAST_MARGIN
from .terms import Ball, LayerBall, LayerNorms, TiedBall, UnitBall

_KERNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MOVES = (nn.Linear, nn.Conv1d, nn.Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALISES = nn.modules.batchnorm._BatchNorm


def has_kernels(model: nn.Module) -> bool:
    """Whether a network has convolutions or skips: this file says how it is trained."""
    if any(isinstance(m, (*_KERNELS, *_TRANSPOSED)) for m in model.modules()):
        return True
    with evaluating(model):
        try:
            return has_skips(model)
        except UnsupportedModule:  # which torch.export may read
            pass
        try:
            return not network_of(model).is_path
        except NetworkError:
            return False


def kernel_layers(
    model: nn.Module, input_shape: Shape | None, kind: str = "auto", growth: float = RESIDUAL_GAIN
) -> tuple[dict[str, nn.Module], LayerNorms]:
    """The layers that move, by name, in order, and their balls.

    Args:
        model: convolutions, linear layers, skips, activations, pools and reshapes in turn.
        input_shape: of one input, without the batch.
        kind: of the balls, as :class:`~.config.AdmmConfig` names them.
        growth: what all residual blocks together may multiply the bound by.

    Raises:
        ValueError: without an input shape, and for modules where no two layers are one.
        UnsupportedModule: by name, for what is no such path, or moves what is not kept in a ball.
    """
    modules = dict(model.named_modules())
    if input_shape is None and any(
        isinstance(m, (*_KERNELS, *_TRANSPOSED)) for m in modules.values()
    ):
        raise ValueError(
            "input_shape: a network of convolutions needs the shape of one input, without the "
            "batch: (channels, rows, columns)"
        )
    for name, module in modules.items():
        _refuse(name, module)
    network = network_of(model, None if input_shape is None else tuple(input_shape))
    layers, path, gain = _read(network, modules)
    if gain == 0.0:
        raise ValueError("model: it is constant (a pool or an activation is 0); check its layers")
    found = _grown(_in_pairs(network, path) if kind != "layers" else _alone(path), growth)
    gain *= math.prod(ball.gain for ball in found)
    if kind == "modules" and not any(isinstance(ball, ModuleBall) for ball in found):
        raise ValueError(
            "balls: 'modules' needs two convolutions, or two linear layers, with nothing but an "
            "activation of slopes that are not negative between them; use 'layers' or 'auto'"
        )
    return layers, LayerNorms(found, gain, network.input_shape)


def _read(
    network: Network, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, nn.Module], list[Ball | LayerSpec], float]:
    """The layers that move, the path with their balls, and what else multiplies the bound.

    Raises:
        UnsupportedModule: by name, for what is no path of layers that are applied once.
    """
    waiting = {name: m for name, m in modules.items() if isinstance(m, _MOVES)}
    _refuse_ties(waiting)
    layers: dict[str, nn.Module] = {}
    path: list[Ball | LayerSpec] = []
    gain, shapes, before = 1.0, network.shapes(), network.input_shape or ()
    torus, drawn = _torus(network), rows_of(network)
    for piece in pieces_of(network, drawn):
        spec = piece.specs[0]
        rows, columns = spec.options.get("stride", (1, 1))
        torus = (torus[0] / rows, torus[1] / columns)
        if spec.kind in ("conv2d", "linear"):
            names, balls = list[str](), list[LayerBall]()
            for own, seen in zip(piece.specs, (before, shapes[spec.name], before), strict=False):
                names.append(_holder(own, network, waiting))
                layers[names[-1]] = waiting.pop(names[-1])
                balls.append(_ball(network, own, seen, torus, drawn))
            path += _FORMS[piece.form](balls, piece, _room(layers[names[-1]]), drawn)
            gain *= _growth(network, piece, before)
        else:
            gain *= _fixed(network, spec, before)
            path.append(spec)
        before = shapes[piece.end]
    if waiting:
        raise UnsupportedModule(
            f"{next(iter(waiting))}: is not applied as one layer of its own; a network is trained "
            "whose layers are applied once, in turn"
        )
    return layers, path, gain


def _growth(network: Network, piece: Piece, shape: Shape) -> float:
    """What a block of two layers of norm 1 may multiply the bound by; of others 1."""
    if piece.between is None:
        return 1.0
    past, branch = map(abs, piece.factors)
    return past + branch * _fixed(network, piece.between, shape)


def _grown(balls: tuple[Ball, ...], growth: float) -> tuple[Ball, ...]:
    """With the gains of residual blocks: the same for all, of this product."""
    each = growth ** (1.0 / max(1, sum(ball.grows for ball in balls)))
    return tuple(ball.with_gain(each) for ball in balls)


def _alone(path: Iterable[Ball | LayerSpec]) -> tuple[Ball, ...]:
    return tuple(ball for ball in path if isinstance(ball, Ball))


def _in_pairs(network: Network, path: Sequence[Ball | LayerSpec]) -> tuple[Ball, ...]:
    """The balls of a path, two layers in one wherever they can be, the first ones first."""
    found: list[Ball] = []
    k = 0
    while k < len(path):
        ball = path[k]
        ahead = next((j for j in range(k + 1, len(path)) if isinstance(path[j], Ball)), k)
        pair = _module(network, ball, path[k + 1 : ahead], path[ahead])
        if isinstance(ball, Ball):
            found.append(pair or ball)
        k = ahead + 1 if pair else k + 1
    return tuple(found)


def _module(network: Network, first: Any, between: Sequence[Any], second: Any) -> ModuleBall | None:
    """Two layers as a module; ``None`` where they are none."""
    acts = [spec for spec in between if spec.kind in ACTIVATIONS]
    if len(acts) != 1 or not _rises(network, acts[0]):
        return None
    rest = {spec.kind for spec in between} - {acts[0].kind}
    if first is DENSE and second is DENSE:
        return ModuleBall(first, second) if rest.issubset(RESHAPES) else None
    kernels = isinstance(first, KernelBall) and isinstance(second, KernelBall)
    if not kernels or rest - {"identity"} or max(first.groups, second.groups) > 1:
        return None
    spans = [d * (k - 1) + 1 for d, k in zip(second.dilation, second.kernel, strict=True)]
    if any(span < step for span, step in zip(spans, second.stride, strict=True)):
        return None  # what the second layer never sees is bounded by the first alone
    rows, columns = (
        max(own, -(-finer // step))
        for own, finer, step in zip(second.grid, first.grid, second.stride, strict=True)
    )
    finer = (rows * second.stride[0], columns * second.stride[1])
    moved = replace(first, grid=finer), replace(second, grid=(rows, columns))
    whole = [(own, own.grid, now.grid) for own, now in zip((first, second), moved, strict=True)]
    if any(own.wraps[k] and old[k] != new[k] for own, old, new in whole for k in (0, 1)):
        return None  # padded around, the torus is that of the image and no other
    return ModuleBall(*moved)


def _rises(network: Network, spec: LayerSpec) -> bool:
    """Whether no slope of an activation is negative."""
    ends = neuron_slopes(scalar_parts(spec, network.arrays, network.shapes()[spec.name]))
    return float(ends[0].min()) >= 0.0


def _room(layer: nn.Module) -> float:
    """1 less the rounding of weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return 1.0 - CAST_MARGIN.get(weight.dtype, CAST_MARGIN[torch.float32])


# What keeps the weights of a skip connection, or of a layer of none, from the balls of its layers
# and a radius of 1 less their rounding.
_FORMS: Mapping[str, Callable[[Sequence[LayerBall], Piece, float, Rows], tuple[Ball, ...]]] = {
    ALONE: lambda own, piece, room, rows: (own[0],),
    TIED: lambda own, piece, room, rows: (TiedBall(own[0], math.sqrt(2.0) * room),),
    UNTIED: lambda own, piece, room, rows: (
        replace(residual_ball(own, piece.specs, room), sign=rows.sign(piece.specs[1])),
    ),
    SHORTCUT: lambda own, piece, room, rows: (shortcut_ball(own, piece.specs),),
    ADDED: lambda own, piece, room, rows: (skip_ball(own[0], piece.specs[0]),),
    BRANCH: lambda own, piece, room, rows: tuple(UnitBall(ball, room) for ball in own),
}


def _refuse_ties(layers: Mapping[str, nn.Module]) -> None:
    """Raise :class:`UnsupportedModule` for a parameter of two layers."""
    names, shared = list(layers), shared_parameter(list(layers.values()))
    if shared is not None:
        first, second, key = shared
        raise UnsupportedModule(
            f"{names[second]}: shares its {key} with {names[first]}; tied parameters cannot be "
            "trained or projected, but for the kernel of a tied block, which one layer holds"
        )


def _refuse(name: str, module: nn.Module) -> None:
    """Raise :class:`UnsupportedModule` for a module that would move without a bound knowing."""
    said = f"{name or 'model'} ({type(module).__name__})"
    if isinstance(module, _TRANSPOSED):
        raise UnsupportedModule(
            f"{said}: transposed convolutions are not trained under a bound; use nn.Conv2d, which "
            "strides the other way"
        )
    if isinstance(module, _KERNELS) and module.padding_mode not in ("zeros", "circular"):
        raise UnsupportedModule(
            f"{said}: padding_mode={module.padding_mode!r} repeats pixels, so that its norm is not "
            "that of a convolution on a torus; use padding_mode='zeros' or 'circular'"
        )
    if isinstance(module, _NORMALISES):
        raise UnsupportedModule(
            f"{said}: its statistics move with the data while a bound holds for fixed ones; fold "
            "it into the layer before it (admm_lip.fold_batch_norm), or leave it out"
        )
    if parametrize.is_parametrized(module):
        raise UnsupportedModule(
            f"{said}: is parametrized; remove it with "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    owns = [key for key, p in module.named_parameters(recurse=False) if p.requires_grad]
    if owns and not isinstance(module, _MOVES):
        raise UnsupportedModule(
            f"{said}: its {owns[0]} would be trained, but a bound holds for what it was proven "
            "with; freeze it (requires_grad_(False)), or leave it out"
        )


def _holder(spec: LayerSpec, network: Network, waiting: Mapping[str, nn.Module]) -> str:
    """The name of the module whose weight is that of a layer."""
    weight = np.asarray(network.arrays[f"{spec.name}.weight"])
    names = [spec.name] if spec.name in waiting else waiting
    for name in names:
        held = waiting[name].weight
        assert isinstance(held, Tensor)
        own = held.detach().cpu().numpy()
        if own.size == weight.size and np.array_equal(own.reshape(weight.shape), weight):
            return name
    raise UnsupportedModule(
        f"{spec.name} ({spec.kind}): its weight is that of no nn.Linear, nn.Conv1d or nn.Conv2d, "
        "or of one that is applied twice; such a network can be certified but not trained"
    )


def _torus(network: Network) -> tuple[float, float]:
    """Rows and columns of the torus that the certificate puts the images on; 0 where it has none.

    Norms on other tori differ by some percent, so layers are measured on this one.
    """
    try:
        return furthest_chain(network).grid
    except NotShiftInvariant:
        return (0.0, 0.0)


def _ball(
    network: Network, spec: LayerSpec, shape: Shape, torus: tuple[float, float], rows: Rows
) -> LayerBall:
    """On the torus given, or the least one around which no window of the image reaches.

    Where the image is padded around, on the torus of the image itself.
    """
    if spec.kind == "linear":
        return DENSE
    top, bottom, left, right = rows.around.get(spec.name, NONE)
    channels, *sides = rows.images.get(spec.name, shape)
    padded = (channels, sides[0] + top + bottom, sides[1] + left + right)
    kernel = network.arrays[f"{spec.name}.weight"].shape[2:]
    window = Window.of(spec.options, kernel, padded, spec.name)
    wraps, grid = rows.wraps(spec), []
    for k, (side, own) in enumerate(zip(torus, sides, strict=True)):
        # Of the outputs, rounded up.
        least = -(-least_side(window, k, own) // window.stride[k])
        wide = int(side) if side >= least and side == int(side) else least
        grid.append(_around(spec.name, window, k, own) if wraps[k] else wide)
    begins = rows.padding(spec)[::2]
    return KernelBall(
        *(window.kernel, (grid[0], grid[1]), window.stride, window.dilation),
        groups=spec.options["groups"],
        start=(begins[0], begins[1]),
        wraps=wraps,
    )


def _around(name: str, window: Window, axis: int, side: int) -> int:
    """Places of the outputs along an axis that is padded around.

    Raises:
        UnsupportedModule: by name, where that is no convolution on the torus of the image.
    """
    stride, reach = window.stride[axis], window.dilation[axis] * (window.kernel[axis] - 1) + 1
    zeros = any(window.padding[2 * axis : 2 * axis + 2])
    if zeros or side % stride or window.out[axis] * stride > side or reach > side:
        raise UnsupportedModule(
            f"{name}: pads around an image of {side} along axis {axis}, where its kernel spans "
            f"{reach} in steps of {stride} and gives {window.out[axis]}; trained are convolutions "
            "on the torus of the image: a stride that divides it, a kernel within it, no more "
            "outputs than steps, and no zeros beside"
        )
    return side // stride


def _fixed(network: Network, spec: LayerSpec, shape: Shape) -> float:
    """A bound on the norm of a layer that does not move.

    Of a matrix the square root of its largest column sum times its largest row sum, which pools,
    sums and selections attain; of an activation its steepest slope.
    """
    if spec.kind in RESHAPES or spec.kind in SORTS or spec.kind == HALF_ABS:
        return 1.0
    if spec.kind in AFFINE:
        size = abs(AFFINE[spec.kind].build(spec.name, spec.options, network.arrays, shape).matrix)
        return math.sqrt(float(size.sum(axis=0).max()) * float(size.sum(axis=1).max()))
    if spec.kind in ACTIVATIONS:
        return _steepest(neuron_slopes(scalar_parts(spec, network.arrays, shape)))
    raise UnsupportedModule(
        f"{spec.name} ({spec.kind}): can be certified but not trained beside convolutions; leave a "
        "final softmax to the loss"
    )


def _steepest(slopes: Iterable[np.ndarray]) -> float:
    return max(float(np.abs(ends).max()) for ends in slopes)
