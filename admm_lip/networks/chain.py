"""A torch module read as a :class:`~admm_lip.networks.network.Network`, and the way back.

The module is not replaced or changed: its layers are looked up in one table and their weights
copied, exactly, to NumPy.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import NetworkError, UnsupportedModule
from . import trace
from .activations import ACTIVATIONS, as_computed, is_known, promised_only
from .affine_torch import Elementwise, Shaped, Sum, Take
from .clipped import ClippedReLU, PairClip
from .constants import exact_array
from .layer_spec import CARRIED
from .layers import AFFINE, array_keys
from .live_check import check_live
from .module_state import evaluating, untouched
from .network import LayerSpec, Network, SideBySide
from .overrides import refuse_overrides, unwrapped
from .promise_check import check_promises
from .readers import READERS
from .readers import reader_of as reader_of
from .refusals import NoBound
from .scalar_math_torch import FORMULAS
from .simplify import simplified
from .sorting import HALF_ABS, SORTS
from .sorting_torch import GroupSort2, HalfAbs, MaxMin
from .vector_functions import VECTOR_FUNCTIONS


def read_network(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> Network:
    """Read the layers of a module as plain data; the module stays as it is.

    What is read is the function that the module computes in the mode that it is in: where a layer
    is random or normalises by its batch, it is refused.  The module is run once on random inputs,
    and refused where torch computes something else than what was read (``live_check.py``).

    Args:
        module: nested ``nn.Sequential``, or any module whose ``forward`` is made of supported
            layers (``torch.relu(x)``, ``x.flatten(1)`` and the like included), sums of values
            and ``torch.cat`` of them.
        input_shape: shape of one input without the batch; needed only in front of convolutions
            and pooling.

    Raises:
        UnsupportedModule: by qualified name, for a layer, option or structure that is not handled,
            or computes something else than it says.
        NetworkError: for weights that are not finite, or shapes that do not chain.

    Example:
        >>> import torch
        >>> net = read_network(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(),
        ...                                        torch.nn.Linear(8, 2)))
        >>> [spec.kind for spec in net.layers]
        ['linear', 'relu', 'linear']
    """
    module = readable(module)
    with untouched(module):
        return check_recorded(module, *recorded(module, input_shape))


def recorded(
    module: nn.Module, input_shape: tuple[int, ...] | None
) -> tuple[list[trace.Step], Network]:
    """The layers that a module says it applies, and what they are.

    Raises:
        UnsupportedModule: as :func:`read_network` does, which also runs the module.
    """
    chain = [part for step in trace.steps(module) for part in _parts(step)]
    network = _network(chain, input_shape)
    network.shapes()
    return chain, network


def check_recorded(module: nn.Module, chain: list[trace.Step], network: Network) -> Network:
    """The network that a module says it is, once running it has shown the same."""
    check_promises(chain, network)
    check_live(module, chain, network)
    return simplified(network)


def readable(module: nn.Module) -> nn.Module:
    """The module without wrappers, whose parts are modules that can be looked at."""
    module = unwrapped(module)
    refuse_overrides(module)
    return module


def _network(chain: list[trace.Step], input_shape: tuple[int, ...] | None) -> Network:
    """What the layers of a module say."""
    specs, arrays = [], {}
    for name, layer, inputs in chain:
        reader = reader_of(name, layer)
        options = _asked(name, layer, reader.options)
        specs.append(LayerSpec(reader.kind, name, options, inputs))
        for key in array_keys(reader.kind):
            value = getattr(layer, key, None)
            if value is not None:
                arrays[f"{name}.{key}"] = exact_array(f"{name}.{key}", value)
    weighted = {spec.name for spec in specs if spec.kind not in ("elementwise", "take")}
    types = {a.dtype for key, a in arrays.items() if key.rpartition(".")[0] in weighted}
    computed = (replace(s, options=as_computed(s.kind, s.options, types)) for s in specs)
    return Network(tuple(computed), arrays, input_shape)


def _parts(step: trace.Step) -> list[trace.Step]:
    """A step as those that compute the same one after another; the last one has its name."""
    reader = reader_of(step.name, step.module)
    if reader.parts is None:
        return [step]
    first, *rest = _asked(step.name, step.module, reader.parts)
    names = [*(f"{step.name}:part {k}" for k in range(1, 1 + len(rest))), step.name]
    parts = zip(names, (first, *rest), (step.inputs, *((),) * len(rest)), strict=True)
    return [trace.Step(*part) for part in parts]


def _asked(name: str, layer: nn.Module, question: Callable[[Any], Any]) -> Any:
    """What a row says of a layer, or why it says nothing."""
    try:
        return question(layer)
    except (ValueError, NetworkError) as reason:
        kind = NoBound if isinstance(reason, NoBound) else UnsupportedModule
        raise kind(f"{name} ({type(layer).__name__}): {reason}") from None


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The ``nn.Linear`` modules of a chain Linear, activation, Linear, ..., Linear, in order.

    They correspond one to one to the weights of ``read_network(module).chain()``.

    The structure is read, not run.

    Raises:
        UnsupportedModule: by name, where the chain has another affine layer, two of them without
            an activation between, an activation first or last, a parametrized or a tied weight.
    """
    module = readable(module)
    with evaluating(module), untouched(module):
        chain = trace.path_of(module)
        layers = _linear_only(chain)
        _refuse_calls(module, chain)
        network = _network(chain, None)
    _refuse_ties(layers)
    _refuse_merged(network)
    return layers


def _linear_only(chain: list[trace.Step]) -> list[nn.Linear]:
    """The ``nn.Linear`` modules, where no other affine layer and no parametrization is."""
    layers: list[nn.Linear] = []
    for name, layer, _ in chain:
        reader = reader_of(name, layer)
        kind = reader.kind
        if not is_known(kind):
            raise promised_only(reader.options(layer))
        if kind == "linear" and parametrize.is_parametrized(layer):
            raise UnsupportedModule(
                f"{name}: its weight is parametrized; remove it with "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if kind == "prelu" and any(p.requires_grad for p in layer.parameters()):
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): its slopes would be trained, but a bound holds "
                "for the slopes it was proven with; freeze them (layer.requires_grad_(False))"
            )
        if kind in VECTOR_FUNCTIONS:
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): is certified, but neither trained nor "
                "projected; leave a final softmax to the loss"
            )
        if kind in AFFINE and kind != "linear":
            raise UnsupportedModule(
                f"{name} ({type(layer).__name__}): only networks whose affine layers are all "
                "nn.Linear can be trained or projected; this one can be certified"
            )
        if isinstance(layer, nn.Linear):
            layers.append(layer)
    return layers


def _refuse_calls(module: nn.Module, chain: list[trace.Step]) -> None:
    """A call with a weight is a layer that no module holds."""
    held = {id(part) for part in module.modules()}
    for name, layer, _ in chain:
        if isinstance(layer, nn.Linear) and id(layer) not in held:
            raise UnsupportedModule(
                f"{name}: is called with its weight, F.linear(x, weight); only networks whose "
                "affine layers are all nn.Linear can be trained or projected"
            )


def shared_parameter(layers: Sequence[nn.Module]) -> tuple[int, int, str] | None:
    """Two layers that share a parameter, which would be moved twice, and its key."""
    owner: dict[int, int] = {}
    for k, layer in enumerate(layers):
        for key, parameter in layer.named_parameters(recurse=False):
            if owner.setdefault(id(parameter), k) != k:
                return owner[id(parameter)], k, key
    return None


def _refuse_ties(layers: list[nn.Linear]) -> None:
    shared = shared_parameter(layers)
    if shared is not None:
        first, second, key = shared
        raise UnsupportedModule(
            f"Linear layers {first} and {second} (from 0) share one {key}; tied parameters cannot "
            "be trained or projected: give each its own"
        )


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

    Raises:
        UnsupportedModule: by name, for a layer that torch has no module for, or a skip connection.
    """
    if not network.is_path:
        raise UnsupportedModule(
            "network: has skip connections or branches, of which no nn.Sequential can be built; it "
            "can be certified as it is"
        )
    modules = OrderedDict(
        (spec.name.replace(".", "_"), build_layer(network, spec)) for spec in network.layers
    )
    module = nn.Sequential(modules).eval()
    check_live(module, [trace.Step(*named) for named in modules.items()], network)
    return module


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
        taken = inspect.signature(cls).parameters
        module: nn.Module = cls(**{k: v for k, v in spec.options.items() if k in taken})
        options = READERS[cls].options(module)
        for types in ({np.dtype("f8")}, {np.dtype("f4")}):
            if as_computed(spec.kind, options, types) == dict(spec.options):
                return module
    formula: nn.Module = FORMULAS[spec.kind](**spec.options)
    return formula


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
    CARRIED: lambda network, spec: nn.Identity(),
}
