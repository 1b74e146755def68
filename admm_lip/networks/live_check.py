"""Whether torch runs what was read: the module itself against the network's own float64 forward.

Reading looks at the structure of a module, and much can make it run something else: a class that
was patched, a tensor that is not plain, code that knows when it is traced.  So the module is run
once, on random inputs:

1. every layer, called as torch calls it, gives what its row of the table gives in float64, within
   the rounding of one layer in the module's own precision (of an activation that is known by a
   promise, its own values stand: ``promise_check.py`` looks at them);
2. the module as a whole gives what its layers give one after another: the same numbers, or at most
   twice a running bound of the rounding of all layers apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedModule
from .activations import is_known
from .forward import apply_layer, layer_outputs
from .layers import Array
from .network import INPUT, LayerSpec, Network
from .running_error import FLOAT64, Precision, layer_error
from .trace import Step, dtype_of

# Sizes of batches and scales of the normal inputs in them.
_BATCHES = ((1, 1.0), (2, 1e-2), (3, 30.0), (5, 1.0))
# Inputs of so few numbers are drawn once.
_FEW = 2**12


def precision_of(dtype: torch.dtype, device: torch.device) -> Precision:
    """As torch computes in ``dtype``, with the short cuts that its settings allow.

    The float64 evaluation beside it is rounded too.
    """
    info = torch.finfo(dtype)
    unit = info.eps / 2.0
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        unit = 2.0**-8  # bfloat16 inside
    elif device.type != "cpu":
        unit *= 2.0**13  # TF32, and the fast convolutions of accelerators
    return Precision(unit + FLOAT64.unit, info.tiny, info.max, jumps=True)


def check_live(module: nn.Module, chain: Sequence[Step], network: Network) -> None:
    """Run ``module`` and refuse it where it computes something else than ``network``.

    Args:
        module: to be run, within ``module_state.untouched``.
        chain: its layers in order.
        network: what was read, one layer for each of ``chain``.

    Raises:
        UnsupportedModule: naming the layer or the module that gives other numbers.
        NetworkError: where the network's shapes do not chain.
    """
    network.shapes()
    dtype, device = place_of(module)
    precision = precision_of(dtype, device)
    starts = [x.to(dtype).to(device) for x in _inputs(network.input_shape or ())]
    with _quiet(device):
        flows, sources = {INPUT: starts}, network.sources()
        for step, spec in zip(chain, network.layers, strict=True):
            label = f"{step.name} ({type(step.module).__name__})"
            given = [flows[name] for name in sources[spec.name]]
            ends = [run(label, step.module, *xs) for xs in zip(*given, strict=True)]
            if is_known(spec.kind):
                _compare_layer(label, network, spec, (given, ends), precision)
            flows[spec.name] = ends
        last = flows[network.output]
        for k, x in enumerate(starts):
            label = type(module).__name__
            whole = run(label, module, x)
            if not torch.equal(whole, last[k]):
                values = {name: _array(flow[k]) for name, flow in flows.items()}
                _compare_whole(label, network, values, _array(whole), precision)


def check_whole(module: nn.Module, network: Network) -> None:
    """The same of a network that was read in another way than layer by layer.

    Raises:
        UnsupportedModule: where the module gives other numbers.
    """
    dtype, device = place_of(module)
    precision, label = precision_of(dtype, device), type(module).__name__
    with _quiet(device):
        for start in _inputs(network.input_shape or ()):
            x = start.to(dtype).to(device)
            values = layer_outputs(network, _array(x))
            _compare_whole(label, network, values, _array(run(label, module, x)), precision)


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """What overflows has an infinite bound, and is not compared."""
    quiet = np.errstate(over="ignore", invalid="ignore")
    with torch.no_grad(), torch.autocast(device.type, enabled=False), quiet:
        yield


def place_of(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The type and the device of what a module takes."""
    held = itertools.chain(module.parameters(), module.buffers(), (torch.zeros(()),))
    return dtype_of(module), next(held).device


def _inputs(shape: tuple[int, ...]) -> Sequence[Tensor]:
    """The same for every network of this shape; who is run gets clones."""
    return _kept(shape) if math.prod(shape) <= _FEW else _drawn(shape)


def _drawn(shape: tuple[int, ...]) -> list[Tensor]:
    generator = np.random.default_rng(0)
    return [
        torch.from_numpy(scale * generator.standard_normal((size, *shape)))
        for size, scale in _BATCHES
    ]


_kept = lru_cache(maxsize=8)(_drawn)


def run(label: str, module: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
    """What a module gives, once it is a plain tensor with a row for each input.

    Raises:
        UnsupportedModule: starting with ``label``, for anything else.
    """
    try:
        out = module(*(value.clone() for value in (x, *others)))  # some layers work in place
    except Exception as error:
        raise UnsupportedModule(
            f"{label}: does not run on inputs of shape {tuple(x.shape)}, batch first "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    if type(out) is not Tensor or len(out) != len(x):
        shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UnsupportedModule(
            f"{label}: expected one plain tensor with a row for each of {len(x)} inputs, got "
            f"{shown}"
        )
    return out.clone()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no text")


def _array(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy()  # there first: not every device has float64


def _compare_layer(
    label: str,
    network: Network,
    spec: LayerSpec,
    flow: tuple[list[list[Tensor]], list[Tensor]],
    precision: Precision,
) -> None:
    """One layer's outputs against its row; all batches at once."""
    *given, found = (_array(torch.cat(list(xs))) for xs in (*flow[0], flow[1]))
    expected = apply_layer(network, spec, *given)
    exact = [np.zeros_like(x) for x in given]
    bound = layer_error(network, spec, (given, expected), exact, precision)
    _refuse_difference(
        f"{label}: torch runs something else than its settings and weights say",
        (found, expected),
        bound,
        precision,
    )


def _compare_whole(
    label: str, network: Network, values: dict[str, Array], found: Array, precision: Precision
) -> None:
    """The whole module's outputs against its layers', which ``values`` hold by name."""
    errors, last, sources = {INPUT: np.zeros_like(values[INPUT])}, INPUT, network.sources()
    for spec in network.layers:
        given, off = ([known[name] for name in sources[spec.name]] for known in (values, errors))
        last = spec.name
        errors[last] = layer_error(network, spec, (given, values[last]), off, precision)
    _refuse_difference(
        f"{label}: running it gives something else than its layers one after another; its forward "
        "or a class of its parts does more than could be read",
        (found, values[last]),
        2.0 * errors[last],
        precision,
    )


def _refuse_difference(
    what: str, pair: tuple[Array, Array], bound: Array, precision: Precision
) -> None:
    found, expected = pair
    if found.shape != expected.shape:
        raise UnsupportedModule(
            f"{what} (shape {found.shape[1:]} where {expected.shape[1:]} was expected, batch apart)"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        # What overflows in the module's precision is not compared.
        inside = np.abs(expected) + bound < precision.largest
        wrong = inside & ~(np.abs(found - expected) <= bound)
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise UnsupportedModule(
            f"{what} ({found[place]:.9g} where {expected[place]:.9g} was expected, to "
            f"{bound[place]:.1g})"
        )
