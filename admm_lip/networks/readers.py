"""The one table of torch layers that can be read: each layer's kind and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModule
from . import trace
from .activation_row import Spelling
from .activations import ACTIVATIONS, PROMISED
from .affine_torch import Elementwise, Shaped, Sum, Take
from .clipped import ClippedReLU, PairClip
from .constants import constant_array, exact_array
from .convolution import untransposed
from .elementwise import normalisation
from .functional_calls import Add, Concatenate, Reshape
from .overrides import CALL_PATH
from .promises import promise_in
from .refusals import BY_BATCH, RANDOM, NoBound, refuse_without_bound
from .scalar_math_torch import FORMULAS
from .sorting import HALF_ABS
from .sorting_torch import GroupSort2, HalfAbs, MaxMin


@dataclass(frozen=True)
class Reader:
    """One row of the table: the neutral kind, and from the module to its options.

    ``options`` raises ``ValueError`` with the reason where the module's settings are not handled.
    ``parts`` gives modules that compute the same one after another, for one that is several rows.
    """

    kind: str
    options: Callable[[Any], dict[str, Any]] = lambda module: {}
    parts: Callable[[Any], list[nn.Module]] | None = None


def _attributes(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda module: {name: getattr(module, name) for name in names}


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * 2


def _conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode={conv.padding_mode!r} is not handled here; use 'zeros'")
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


def _conv_parts(conv: nn.Conv2d) -> list[nn.Module]:
    """Circular padding as a layer of its own in front of the convolution."""
    if conv.padding_mode != "circular":
        return [conv]
    top, bottom, left, right = conv_padding(conv)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
    plain = nn.Conv2d(**_attributes(*names)(conv), device="meta")
    plain.weight, plain.bias = conv.weight, conv.bias
    return [nn.CircularPad2d((left, right, top, bottom)), plain]


def transposed_parts(conv: nn.ConvTranspose2d) -> list[nn.Module]:
    """The convolution that a transposed one without stride is, as a module."""
    rows, columns = _pair(conv.padding)
    own = {
        **{"stride": _pair(conv.stride), "padding": [rows, rows, columns, columns]},
        **{"dilation": _pair(conv.dilation), "groups": conv.groups},
    }
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode={conv.padding_mode!r}; only zeros are handled")
    weight = exact_array("weight", conv.weight)
    kernel, options = untransposed(weight, own, {"output_padding": _pair(conv.output_padding)})
    padding, rest = options.pop("padding")[::2], dict(options)
    sizes = (kernel.shape[1] * conv.groups, kernel.shape[0], kernel.shape[2:])
    plain = nn.Conv2d(*sizes, padding=padding, bias=False, device="meta", **rest)
    plain.weight = nn.Parameter(torch.from_numpy(kernel).to(conv.weight), requires_grad=False)
    plain.bias = conv.bias
    return [plain]


def _window_options(pool: Any) -> dict[str, Any]:
    rows, columns = _pair(pool.padding)
    return {
        "kernel_size": _pair(pool.kernel_size),
        "stride": _pair(pool.stride or pool.kernel_size),
        "padding": [rows, rows, columns, columns],
    }


def _pool_options(pool: nn.AvgPool2d) -> dict[str, Any]:
    if pool.ceil_mode:
        raise ValueError("ceil_mode=True is not handled; use ceil_mode=False")
    names = ("count_include_pad", "divisor_override")
    return {**_window_options(pool), **_attributes(*names)(pool)}


def _max_pool_options(pool: nn.MaxPool2d) -> dict[str, Any]:
    if pool.ceil_mode or pool.return_indices:  # torch.export knows the size that is rounded up
        raise ValueError("ceil_mode=True and return_indices=True are not handled")
    return {**_window_options(pool), "dilation": _pair(pool.dilation)}


def _softmax_options(softmax: Any) -> dict[str, Any]:
    if softmax.dim not in (1, -1):
        raise ValueError(f"dim={softmax.dim}; only 1, the outputs of a vector, is handled")
    return {}


def _flatten_options(flatten: nn.Flatten) -> dict[str, Any]:
    if (flatten.start_dim, flatten.end_dim) != (1, -1):
        raise ValueError(
            f"start_dim={flatten.start_dim}, end_dim={flatten.end_dim}; only 1 and -1 are handled"
        )
    return {"size": None}


def _dropout_options(dropout: Any) -> dict[str, Any]:
    """The identity in evaluation mode."""
    if dropout.training and dropout.p > 0.0:
        raise NoBound(RANDOM)
    return {}


def _batch_norm(axes: int) -> Reader:
    """Batch normalisation in evaluation, of channels with so many axes behind them."""

    def parts(norm: Any) -> list[nn.Module]:
        if norm.training or norm.running_mean is None:
            raise NoBound(BY_BATCH)
        keys = ("running_mean", "running_var", "weight", "bias")
        held = (getattr(norm, key) for key in keys)
        mean, variance, weight, bias = (
            None if tensor is None else exact_array(key, tensor).reshape(-1, *(1,) * axes)
            for key, tensor in zip(keys, held, strict=True)
        )
        assert mean is not None and variance is not None
        eps = constant_array("eps", norm.eps, norm.running_var.dtype)
        scalings = normalisation(mean, variance, weight, bias, float(eps))
        return [Elementwise(scaling.arrays) for scaling in scalings]

    return Reader("elementwise", parts=parts)


def _torchlip_sort_options(module: Any) -> dict[str, Any]:
    settings = getattr(module, "group_size", None), getattr(module, "_coefficient_lip", None)
    if settings != (2, 1.0):
        raise ValueError(
            f"group_size={settings[0]}, k_coef_lip={settings[1]}; only 2 and 1 are handled"
        )
    return {}


# deel-torchlip's GroupSort2, known by its name (``trace.is_torchlip_sort``).
TORCHLIP_SORT = Reader("group_sort2", _torchlip_sort_options)
_DROPOUT = Reader("identity", _dropout_options)


def _row_reader(kind: str, spelling: Spelling) -> Reader:
    """A module whose attributes are the options; those that it lacks have their defaults."""
    defaults = {**ACTIVATIONS[kind].defaults, **spelling.fixed}
    if spelling.fixed:
        return Reader(kind, lambda m: dict(defaults))
    return Reader(kind, lambda m: {key: getattr(m, key, defaults[key]) for key in defaults})


_ACTIVATIONS = {
    getattr(nn, spelling.module): _row_reader(kind, spelling)
    for kind, row in ACTIVATIONS.items()
    for spelling in row.spellings
    if spelling.module
}
_FORMULAS = {cls: Reader(kind, lambda m: dict(m.options)) for kind, cls in FORMULAS.items()}

READERS: Mapping[type[nn.Module], Reader] = {
    nn.Linear: Reader("linear"),
    nn.Conv2d: Reader("conv2d", _conv_options, _conv_parts),
    # Its index depends on the image (``chain.py``).
    nn.CircularPad2d: Reader("take"),
    nn.ConvTranspose2d: Reader("conv2d", parts=transposed_parts),
    nn.AvgPool2d: Reader("avg_pool2d", _pool_options),
    nn.BatchNorm1d: _batch_norm(0),
    nn.BatchNorm2d: _batch_norm(2),
    Elementwise: Reader("elementwise"),
    Take: Reader("take"),
    Sum: Reader("sum", lambda m: {"axes": list(m.axes), "keep": m.keep}),
    Shaped: Reader("reshape", lambda m: {"shape": list(m.shape)}),
    nn.MaxPool2d: Reader("max_pool2d", _max_pool_options),
    nn.Softmax: Reader("softmax", _softmax_options),
    nn.LogSoftmax: Reader("log_softmax", _softmax_options),
    nn.Flatten: Reader("flatten", _flatten_options),
    Reshape: Reader("flatten", _attributes("size")),
    nn.Identity: Reader("identity"),
    nn.Dropout: _DROPOUT,
    nn.Dropout1d: _DROPOUT,
    nn.Dropout2d: _DROPOUT,
    nn.AlphaDropout: _DROPOUT,
    **_ACTIVATIONS,
    **_FORMULAS,
    GroupSort2: Reader("group_sort2"),
    MaxMin: Reader("max_min"),
    HalfAbs: Reader(HALF_ABS),
    ClippedReLU: Reader("clipped_relu"),
    PairClip: Reader("pair_clip"),
    Add: Reader("add"),
    Concatenate: Reader("concatenate"),
}

# Where the layers are defined that an error offers; the others are calls, read as modules.
_NAMED = ("torch.nn.", f"{__package__}.sorting_torch", f"{__package__}.clipped")


def row_of(cls: type[nn.Module]) -> Reader | None:
    """The table's row for a class, or for the nearest one whose computation it inherits."""
    for base in cls.__mro__:
        if base in READERS:
            same = ("forward", "_conv_forward", *CALL_PATH)
            if all(getattr(cls, m, None) is getattr(base, m, None) for m in same):
                return READERS[base]
            break
    return None


def reader_of(name: str, layer: nn.Module) -> Reader:
    """The table's row for a layer: its class, or the nearest one whose computation it inherits."""
    if parametrize.is_parametrized(layer) and layer.training:
        raise UnsupportedModule(
            f"{name}: is parametrized and in training mode, where reading a weight may change it; "
            "call model.eval() first"
        )
    if trace.is_torchlip_sort(layer):
        return TORCHLIP_SORT
    promise = promise_in(layer)
    if promise is not None:
        return Reader(PROMISED, lambda _: promise.options)
    row = row_of(type(layer))
    if row is not None:
        return row
    refuse_without_bound(
        f"{name} ({type(layer).__name__})", [cls.__name__ for cls in type(layer).__mro__]
    )
    supported = ", ".join(c.__name__ for c in READERS if c.__module__.startswith(_NAMED))
    raise UnsupportedModule(
        f"{name} ({type(layer).__name__}) is not supported; supported layers: {supported}"
    )
