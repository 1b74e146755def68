"""A torch module read as a :class:`~admm_lip.networks.network.Network`; ``built.py`` goes back.

The module is not replaced or changed: its layers are looked up in one table and their weights
copied, exactly, to NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torch.nn.utils import parametrize

from ..errors import NetworkError, UnsupportedModule
from . import trace
from .activations import as_computed, is_known, promised_only
from .constants import exact_array
from .index_maps import wrapped
from .layer_spec import sources_of
from .layers import AFFINE, array_keys
from .live_check import check_live
from .module_state import evaluating, untouched
from .network import LayerSpec, Network
from .overrides import refuse_overrides, unwrapped
from .promise_check import check_promises
from .readers import reader_of as reader_of
from .refusals import NoBound
from .simplify import simplified
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
    for k, (name, layer, _) in enumerate(chain):
        if isinstance(layer, nn.CircularPad2d):
            arrays[f"{name}.index"] = _around(specs[: k + 1], arrays, layer, input_shape)
    weighted = {spec.name for spec in specs if spec.kind not in ("elementwise", "take")}
    types = {a.dtype for key, a in arrays.items() if key.rpartition(".")[0] in weighted}
    computed = (replace(s, options=as_computed(s.kind, s.options, types)) for s in specs)
    return Network(tuple(computed), arrays, input_shape)


def _around(
    specs: Sequence[LayerSpec],
    arrays: dict[str, Any],
    pad: nn.CircularPad2d,
    input_shape: tuple[int, ...] | None,
) -> Any:
    """The index of circular padding, the last of some layers."""
    *before, own = specs
    source = sources_of(specs)[own.name][0]
    left, right, top, bottom = pad.padding
    shape = Network(tuple(before), arrays, input_shape).shapes()[source]
    if len(shape) != 3 or min(pad.padding) < 0:
        raise UnsupportedModule(
            f"{own.name}: pads {pad.padding} around a value of shape {shape}; expected (channels, "
            "rows, columns), and no negative widths"
        )
    return wrapped(shape, (top, bottom, left, right)).astype(np.float64)


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


def has_skips(module: nn.Module) -> bool:
    """Whether some layer takes another output than that of the layer before it; read, not run.

    Raises:
        UnsupportedModule: where ``torch.fx`` cannot say.
    """
    module = readable(module)
    with untouched(module):
        return any(step.inputs for step in trace.steps(module))


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
