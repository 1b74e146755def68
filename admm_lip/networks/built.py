"""A torch module built of a :class:`~admm_lip.networks.network.Network`."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedModule
from . import trace
from .activations import ACTIVATIONS, as_computed, is_known, promised_only
from .affine_torch import Elementwise, Shaped, Sum, Take
from .clipped import ClippedReLU, PairClip
from .functional_calls import Add, Concatenate
from .layer_spec import CARRIED, INPUT
from .layers import array_keys
from .live_check import check_live
from .network import LayerSpec, Network, SideBySide
from .readers import READERS
from .scalar_math_torch import FORMULAS
from .sorting import HALF_ABS, SORTS
from .sorting_torch import GroupSort2, HalfAbs, MaxMin


def build_module(network: Network) -> nn.Module:
    """A module that computes ``network``, with its weights in their stored dtype.

    A path is an ``nn.Sequential``, in which dots in layer names become underscores.

    Raises:
        UnsupportedModule: by name, for a layer that torch has no module for.
    """
    layers: dict[str, nn.Module] = {}
    for spec in network.layers:
        layers[spec.name] = _adjoint(network, spec, layers) or build_layer(network, spec)
    names = (name.replace(".", "_") for name in layers)
    path = nn.Sequential(OrderedDict(zip(names, layers.values(), strict=True)))
    module = (path if network.is_path else Wired(layers, network)).eval()
    check_live(module, [trace.Step(*named) for named in layers.items()], network)
    return module


class Wired(nn.Module):
    """Layers that take whichever outputs they name.

    Args:
        layers: by their names, in the order of evaluation.
        network: that says how they are wired.
    """

    def __init__(self, layers: Mapping[str, nn.Module], network: Network) -> None:
        super().__init__()
        places = {name: k for k, name in enumerate((INPUT, *layers))}
        self.layers = nn.ModuleList(layers.values())
        self.sources = [tuple(places[n] for n in given) for given in network.sources().values()]

    def forward(self, x: Tensor) -> Tensor:
        """One layer after the other; the last one's output."""
        values = [x]
        for layer, given in zip(self.layers, self.sources, strict=True):
            values.append(layer(*(values[k] for k in given)))
        return values[-1]


class Adjoint(nn.Module):
    """Minus the adjoint of a layer, as tied residual blocks have it; the weight is that layer's.

    Args:
        layer: an ``nn.Linear``, or an ``nn.Conv2d`` without strides and groups.
        like: what it computes, by a weight of its own.
    """

    layer: Any

    def __init__(self, layer: nn.Module, like: nn.Module) -> None:
        super().__init__()
        self.layer, own = layer, like.bias
        self.bias = own.requires_grad_(False) if isinstance(own, nn.Parameter) else None
        self.options = {k: getattr(like, k) for k in ("padding", "dilation") if hasattr(like, k)}

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives back, taken away."""
        weight = -self.layer.weight.transpose(0, 1)
        if not self.options:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight.flip(2, 3), self.bias, **self.options)


def _adjoint(
    network: Network, spec: LayerSpec, layers: Mapping[str, nn.Module]
) -> nn.Module | None:
    """A layer that takes back, through one activation, what another one of skips has made."""
    sources = network.sources()
    names = [spec.name]
    while names[-1] != INPUT and len(sources[names[-1]]) == 1:
        names += sources[names[-1]]
    kinds = {s.name: s.kind for s in network.layers}
    behind = [n for n in names[1:] if kinds.get(n) != "take"][:2]
    if network.is_path or len(behind) < 2 or kinds[behind[0]] not in ACTIVATIONS:
        return None
    first, second = (network.arrays.get(f"{name}.weight") for name in (behind[1], spec.name))
    if first is None or second is None or {kinds[behind[1]], spec.kind} - {"linear", "conv2d"}:
        return None
    turned = -first.swapaxes(0, 1)
    if not np.array_equal(turned[..., ::-1, ::-1] if turned.ndim == 4 else turned, second):
        return None
    layer, like = layers[behind[1]], build_layer(network, spec)
    strides = [(*m.stride, m.groups) for m in (layer, like) if isinstance(m, nn.Conv2d)]
    return Adjoint(layer, like) if all(s == (1, 1, 1) for s in strides) else None


def build_layer(network: Network, spec: LayerSpec | SideBySide) -> nn.Module:
    """The torch module of one layer, with its weights."""
    if isinstance(spec, SideBySide):
        return Beside([build_layer(network, one) for one, _ in spec.parts], spec)
    module = _BUILDERS[spec.kind](network, spec)
    for key, array in _own_arrays(network, spec).items():
        if key != "error" and key not in dict(module.named_buffers()):
            setattr(module, key, nn.Parameter(torch.from_numpy(np.array(array))))
    return module


def _own_arrays(network: Network, spec: LayerSpec) -> dict[str, Any]:
    held = {key: network.arrays.get(f"{spec.name}.{key}") for key in array_keys(spec.kind)}
    return {key: array for key, array in held.items() if array is not None}


class Beside(nn.Module):
    """Activations of one hidden layer side by side, each on its own features."""

    def __init__(self, parts: list[nn.Module], spec: SideBySide) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = [size for _, size in spec.parts]

    def forward(self, x: Tensor) -> Tensor:
        """Every part of its own."""
        pairs = zip(self.parts, torch.split(x, self.sizes, dim=1), strict=True)
        return torch.cat([part(own) for part, own in pairs], dim=1)


def _build_linear(network: Network, spec: LayerSpec) -> nn.Module:
    out, size = network.arrays[f"{spec.name}.weight"].shape
    return nn.Linear(size, out, bias=f"{spec.name}.bias" in network.arrays, device="meta")


def _build_conv(network: Network, spec: LayerSpec) -> nn.Module:
    out, per_group, *kernel = network.arrays[f"{spec.name}.weight"].shape
    options = spec.options
    return nn.Conv2d(
        per_group * options["groups"],
        out,
        tuple(kernel),
        stride=tuple(options["stride"]),
        padding=_torch_padding(spec, tuple(kernel)),
        dilation=tuple(options["dilation"]),
        groups=options["groups"],
        bias=f"{spec.name}.bias" in network.arrays,
        device="meta",
    )


def _torch_padding(spec: LayerSpec, kernel: tuple[int, ...]) -> Any:
    """The padding argument of torch's module."""
    top, bottom, left, right = spec.options["padding"]
    if (top, left) == (bottom, right):
        return (top, left)
    steps = spec.options["stride"], spec.options.get("dilation", [1, 1])
    totals = [d * (k - 1) for d, k in zip(steps[1], kernel, strict=True)]
    same = [side for n in totals for side in (n // 2, n - n // 2)]
    if spec.kind == "conv2d" and list(steps[0]) == [1, 1] and [top, bottom, left, right] == same:
        return "same"
    raise UnsupportedModule(
        f"{spec.name} ({spec.kind}): pads {top} above and {bottom} below, {left} left and {right} "
        "right; torch's layer pads both sides alike. The network can be certified as it is"
    )


def _build_pool(network: Network, spec: LayerSpec) -> nn.Module:
    options = spec.options
    return nn.AvgPool2d(
        tuple(options["kernel_size"]),
        tuple(options["stride"]),
        _torch_padding(spec, tuple(options["kernel_size"])),
        count_include_pad=options["count_include_pad"],
        divisor_override=options["divisor_override"],
    )


def _build_max_pool(network: Network, spec: LayerSpec) -> nn.Module:
    options = spec.options
    kernel = tuple(options["kernel_size"])
    padding, dilation = _torch_padding(spec, kernel), tuple(options["dilation"])
    return nn.MaxPool2d(kernel, tuple(options["stride"]), padding, dilation)


def _clipped(
    cls: type[ClippedReLU] | type[PairClip], key: str, factor: int
) -> Callable[[Network, LayerSpec], nn.Module]:
    """Of the array's shape, its first size times ``factor``; the values are set afterwards."""

    def build(network: Network, spec: LayerSpec) -> nn.Module:
        first, *rest = network.arrays[f"{spec.name}.{key}"].shape
        return cls((factor * first, *rest))

    return build


def _build_activation(network: Network, spec: LayerSpec) -> nn.Module:
    """Torch's own module, where one has these options in float32 or float64."""
    if not is_known(spec.kind):
        raise promised_only(spec.options)
    spelling = next(iter(ACTIVATIONS[spec.kind].spellings), None)
    if spelling is not None and spelling.module:
        cls = getattr(nn, spelling.module)
        taken = _parameters_of(cls)
        module: nn.Module = cls(**{k: v for k, v in spec.options.items() if k in taken})
        options = READERS[cls].options(module)
        for types in ({np.dtype("f8")}, {np.dtype("f4")}):
            if as_computed(spec.kind, options, types) == dict(spec.options):
                return module
    formula: nn.Module = FORMULAS[spec.kind](**spec.options)
    return formula


@cache
def _parameters_of(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def _build_prelu(network: Network, spec: LayerSpec) -> nn.Module:
    return nn.PReLU(network.arrays[f"{spec.name}.weight"].size)


_SORTS = {"group_sort2": GroupSort2, "max_min": MaxMin, HALF_ABS: HalfAbs}

_BUILDERS: dict[str, Callable[[Network, LayerSpec], nn.Module]] = {
    **dict.fromkeys(ACTIVATIONS, _build_activation),
    **{kind: lambda network, spec: _SORTS[spec.kind]() for kind in (*SORTS, HALF_ABS)},
    "prelu": _build_prelu,
    "linear": _build_linear,
    "conv2d": _build_conv,
    "avg_pool2d": _build_pool,
    "max_pool2d": _build_max_pool,
    "softmax": lambda network, spec: nn.Softmax(1),
    "log_softmax": lambda network, spec: nn.LogSoftmax(1),
    "elementwise": lambda network, spec: Elementwise(_own_arrays(network, spec)),
    "take": lambda network, spec: Take(network.arrays[f"{spec.name}.index"]),
    "sum": lambda network, spec: Sum(**spec.options),
    "reshape": lambda network, spec: Shaped(**spec.options),
    "flatten": lambda network, spec: nn.Flatten(),
    "clipped_relu": _clipped(ClippedReLU, "threshold", 1),
    "pair_clip": _clipped(PairClip, "cap", 2),
    "identity": lambda network, spec: nn.Identity(),
    "add": lambda network, spec: Add(),
    "concatenate": lambda network, spec: Concatenate(),
    CARRIED: lambda network, spec: nn.Identity(),
}
