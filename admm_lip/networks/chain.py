"""A torch module read as a :class:`~admm_lip.networks.network.Network`, and the way back.

The module is not replaced or changed: its layers are looked up in one table and their weights
copied, exactly, to NumPy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModule
from . import trace
from .activations import ACTIVATIONS, array_keys
from .clipped import ClippedReLU, PairClip
from .network import LayerSpec, Network
from .sorting import HALF_ABS, SORTS
from .sorting_torch import GroupSort2, HalfAbs, MaxMin

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Reader:
    """One row of the table: the neutral kind, and from the module to its options.

    ``options`` raises ``ValueError`` with the reason where the module's settings are not handled.
    """

    kind: str
    options: Callable[[Any], dict[str, Any]] = lambda module: {}


def _attributes(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda module: {name: getattr(module, name) for name in names}


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * 2


def _conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode={conv.padding_mode!r}; only zeros are handled")
    return {
        "stride": _pair(conv.stride),
        "padding": conv_padding(conv),
        "dilation": _pair(conv.dilation),
        "groups": conv.groups,
    }


def conv_padding(conv: nn.Conv2d) -> list[int]:
    """Top, bottom, left, right; "same" puts the odd one last, as torch does."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    rows, columns = _pair(conv.padding)
    return [rows, rows, columns, columns]


def _pool_options(pool: nn.AvgPool2d) -> dict[str, Any]:
    if pool.ceil_mode:
        raise ValueError("ceil_mode=True is not handled; use ceil_mode=False")
    rows, columns = _pair(pool.padding)
    return {
        "kernel_size": _pair(pool.kernel_size),
        "stride": _pair(pool.stride or pool.kernel_size),
        "padding": [rows, rows, columns, columns],
        "count_include_pad": pool.count_include_pad,
        "divisor_override": pool.divisor_override,
    }


def _flatten_options(flatten: nn.Flatten) -> dict[str, Any]:
    if (flatten.start_dim, flatten.end_dim) != (1, -1):
        raise ValueError(
            f"start_dim={flatten.start_dim}, end_dim={flatten.end_dim}; only 1 and -1 are handled"
        )
    return {"size": None}


def _dropout_options(dropout: Any) -> dict[str, Any]:
    if dropout.training and dropout.p > 0.0:
        raise ValueError(
            "it is in training mode, where the network is random; call model.eval() first"
        )
    return {}


def _torchlip_sort_options(module: Any) -> dict[str, Any]:
    settings = getattr(module, "group_size", None), getattr(module, "_coefficient_lip", None)
    if settings != (2, 1.0):
        raise ValueError(
            f"group_size={settings[0]}, k_coef_lip={settings[1]}; only 2 and 1 are handled"
        )
    return {}


# deel-torchlip's GroupSort2, known by its name (``trace.is_torchlip_sort``).
_TORCHLIP_SORT = Reader("group_sort2", _torchlip_sort_options)
_DROPOUT = Reader("identity", _dropout_options)
_HARDTANH = Reader("hardtanh", lambda m: {"min_val": m.min_val, "max_val": m.max_val})

READERS: Mapping[type[nn.Module], Reader] = {
    nn.Linear: Reader("linear"),
    nn.Conv2d: Reader("conv2d", _conv_options),
    nn.AvgPool2d: Reader("avg_pool2d", _pool_options),
    nn.Flatten: Reader("flatten", _flatten_options),
    trace.Reshape: Reader("flatten", _attributes("size")),
    nn.Identity: Reader("identity"),
    nn.Dropout: _DROPOUT,
    nn.Dropout1d: _DROPOUT,
    nn.Dropout2d: _DROPOUT,
    nn.AlphaDropout: _DROPOUT,
    nn.ReLU: Reader("relu"),
    nn.LeakyReLU: Reader("leaky_relu", _attributes("negative_slope")),
    nn.ELU: Reader("elu", _attributes("alpha")),
    nn.Tanh: Reader("tanh"),
    nn.Sigmoid: Reader("sigmoid"),
    nn.Softplus: Reader("softplus", _attributes("beta", "threshold")),
    nn.Hardtanh: _HARDTANH,
    nn.ReLU6: _HARDTANH,
    nn.GELU: Reader("gelu", _attributes("approximate")),
    nn.SiLU: Reader("silu"),
    GroupSort2: Reader("group_sort2"),
    MaxMin: Reader("max_min"),
    HalfAbs: Reader(HALF_ABS),
    ClippedReLU: Reader("clipped_relu"),
    PairClip: Reader("pair_clip"),
}


def read_network(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> Network:
    """Read a chain of layers as plain data; the module stays as it is.

    Args:
        module: nested ``nn.Sequential``, or any module whose ``forward`` is a pure chain of
            supported layers (``torch.relu(x)``, ``x.flatten(1)`` and the like included).
        input_shape: shape of one input without the batch; needed only in front of convolutions
            and pooling.

    Raises:
        UnsupportedModule: by qualified name, for a layer, option or structure that is not handled.
        NetworkError: for weights that are not finite, or shapes that do not chain.

    Example:
        >>> import torch
        >>> net = read_network(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(),
        ...                                        torch.nn.Linear(8, 2)))
        >>> [spec.kind for spec in net.layers]
        ['linear', 'relu', 'linear']
    """
    specs, arrays = [], {}
    for name, layer in trace.steps(module):
        reader = reader_of(name, layer)
        try:
            options = reader.options(layer)
        except ValueError as reason:
            raise UnsupportedModule(f"{name} ({type(layer).__name__}): {reason}") from None
        specs.append(LayerSpec(reader.kind, name, options))
        for key in array_keys(reader.kind):
            value = getattr(layer, key, None)
            if value is not None:
                arrays[f"{name}.{key}"] = _exact_array(f"{name}.{key}", value)
    return Network(tuple(specs), arrays, input_shape)


def reader_of(name: str, layer: nn.Module) -> Reader:
    """The table's row for a layer: its class, or the nearest one whose computation it inherits."""
    if parametrize.is_parametrized(layer) and layer.training:
        raise UnsupportedModule(
            f"{name}: is parametrized and in training mode, where reading a weight may change it; "
            "call model.eval() first"
        )
    if trace.is_torchlip_sort(layer):
        return _TORCHLIP_SORT
    for base in type(layer).__mro__:
        if base in READERS:
            same = ("forward", "_conv_forward", "__call__")
            if all(getattr(type(layer), m, None) is getattr(base, m, None) for m in same):
                return READERS[base]
            break
    supported = ", ".join(cls.__name__ for cls in READERS if cls is not trace.Reshape)
    raise UnsupportedModule(
        f"{name} ({type(layer).__name__}) is not supported; supported layers: {supported}"
    )


def _exact_array(name: str, value: Tensor) -> np.ndarray[Any, Any]:
    if value.dtype not in _FLOATS or value.device.type == "meta":
        raise UnsupportedModule(
            f"{name}: expected float16, bfloat16, float32 or float64 numbers, "
            f"got {value.dtype} on {value.device}"
        )
    # NumPy has no bfloat16; float32 holds its values exactly.
    wide = value.detach().to(torch.float32) if value.dtype == torch.bfloat16 else value.detach()
    return np.array(wide.cpu().numpy(), copy=True)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The ``nn.Linear`` modules of a chain Linear, activation, Linear, ..., Linear, in order.

    They correspond one to one to the weights of ``read_network(module).chain()``.

    Raises:
        UnsupportedModule: by name, where the chain has another affine layer, two of them without
            an activation between, an activation first or last, a parametrized or a tied weight.
    """
    layers: list[nn.Linear] = []
    for name, layer in trace.steps(module):
        kind = reader_of(name, layer).kind
        if kind == "linear" and parametrize.is_parametrized(layer):
            raise UnsupportedModule(
                f"{name}: its weight is parametrized; remove it with "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if kind in ("conv2d", "avg_pool2d"):
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): only networks whose affine layers are all "
                "nn.Linear can be trained or projected; this one can be certified"
            )
        if isinstance(layer, nn.Linear):
            layers.append(layer)
    _refuse_ties(layers)
    _refuse_merged(read_network(module))
    return layers


def _refuse_ties(layers: list[nn.Linear]) -> None:
    """Parameters that are one, or lie in the same memory, would be moved twice."""
    owner: dict[tuple[Any, int], str] = {}
    for k, layer in enumerate(layers):
        for key, parameter in layer.named_parameters(recurse=False):
            place = parameter.device, parameter.data_ptr()
            if parameter.numel() and place in owner:
                raise UnsupportedModule(
                    f"Linear layers {owner[place]} and {k} (from 0) share one {key}; tied weights "
                    "cannot be trained or projected: give each its own"
                )
            owner[place] = str(k)


def _refuse_merged(network: Network) -> None:
    for names in network.chain().names:
        if len(names) != 1:
            what = (
                f"{' and '.join(names)} follow each other without an activation between"
                if names
                else "an activation comes first, last, or directly after another one"
            )
            raise UnsupportedModule(
                f"{what}; training and projection need Linear, activation, Linear, ..., Linear "
                "(leave a final activation to the loss)"
            )


def build_module(network: Network) -> nn.Sequential:
    """An ``nn.Sequential`` that computes ``network``, with its weights in their stored dtype.

    Dots in layer names become underscores.
    """
    modules = OrderedDict(
        (spec.name.replace(".", "_"), build_layer(network, spec)) for spec in network.layers
    )
    return nn.Sequential(modules).eval()


def build_layer(network: Network, spec: LayerSpec) -> nn.Module:
    """The torch module of one layer, with its weights."""
    module = _BUILDERS[spec.kind](network, spec)
    for key in array_keys(spec.kind):
        array = network.arrays.get(f"{spec.name}.{key}")
        if array is not None:
            setattr(module, key, nn.Parameter(torch.from_numpy(np.array(array))))
    return module


def _build_linear(network: Network, spec: LayerSpec) -> nn.Module:
    out, size = network.arrays[f"{spec.name}.weight"].shape
    return nn.Linear(size, out, bias=f"{spec.name}.bias" in network.arrays, device="meta")


def _build_conv(network: Network, spec: LayerSpec) -> nn.Module:
    out, per_group, *kernel = network.arrays[f"{spec.name}.weight"].shape
    options = spec.options
    top, bottom, left, right = options["padding"]
    return nn.Conv2d(
        per_group * options["groups"],
        out,
        tuple(kernel),
        stride=tuple(options["stride"]),
        padding=(top, left) if (top, left) == (bottom, right) else "same",
        dilation=tuple(options["dilation"]),
        groups=options["groups"],
        bias=f"{spec.name}.bias" in network.arrays,
        device="meta",
    )


def _build_pool(network: Network, spec: LayerSpec) -> nn.Module:
    options = spec.options
    return nn.AvgPool2d(
        tuple(options["kernel_size"]),
        tuple(options["stride"]),
        (options["padding"][0], options["padding"][2]),
        count_include_pad=options["count_include_pad"],
        divisor_override=options["divisor_override"],
    )


def _clipped(
    cls: type[ClippedReLU] | type[PairClip], key: str, factor: int
) -> Callable[[Network, LayerSpec], nn.Module]:
    """Of the array's shape, its first size times ``factor``; the values are set afterwards."""

    def build(network: Network, spec: LayerSpec) -> nn.Module:
        first, *rest = network.arrays[f"{spec.name}.{key}"].shape
        return cls((factor * first, *rest))

    return build


def _builder_of(cls: Callable[..., nn.Module]) -> Callable[[Network, LayerSpec], nn.Module]:
    return lambda network, spec: cls(**spec.options)


_BUILDERS: dict[str, Callable[[Network, LayerSpec], nn.Module]] = {
    # The table above, read backwards; the first module of a kind builds it.
    **{
        reader.kind: _builder_of(cls)
        for cls, reader in reversed(list(READERS.items()))
        if reader.kind in (*ACTIVATIONS, *SORTS, HALF_ABS)
    },
    "linear": _build_linear,
    "conv2d": _build_conv,
    "avg_pool2d": _build_pool,
    "flatten": lambda network, spec: nn.Flatten(),
    "clipped_relu": _clipped(ClippedReLU, "threshold", 1),
    "pair_clip": _clipped(PairClip, "cap", 2),
    "identity": lambda network, spec: nn.Identity(),
}
