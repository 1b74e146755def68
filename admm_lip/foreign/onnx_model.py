"""ONNX models read as networks, networks written as ONNX models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NetworkError, UnsupportedModule
from ..files import write_atomic
from ..networks.activations import ACTIVATIONS, is_known, promised_only
from ..networks.index_maps import ZERO
from ..networks.layer_spec import INPUT, sources_of
from ..networks.layers import Shape, array_keys
from ..networks.network import LayerSpec, Network
from .onnx_file import OPSET, OnnxModel, OnnxNode, parse, parse_bytes, serialise
from .onnx_operators import FOLDS, INPUTS, OPERATORS
from .written_out import ONNX, read


def read_onnx(path: str | os.PathLike[str], input_shape: Shape | None = None) -> Network:
    """Read an ONNX file whose graph is a chain of layers.

    Args:
        path: the file; external data is looked for beside it.
        input_shape: shape of one input without the batch, where the file leaves it open.

    Raises:
        UnsupportedModule: by the node's name, for what is not a chain of supported layers.
        NetworkError: for a file that is missing, too large, truncated or damaged.
    """
    path = Path(path)
    try:
        return _network(parse(path), input_shape)
    except NetworkError as error:
        raise type(error)(f"{path}: {error}") from None


def read_metadata(path: str | os.PathLike[str], key: str) -> str | None:
    """What an ONNX file notes beside its graph under a key, ``None`` where it notes nothing."""
    return parse(Path(path)).metadata().get(key)


def write_onnx(network: Network, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network as ONNX, atomically, once it reads back as the same one.

    Raises:
        UnsupportedModule: by name, for a layer that ONNX cannot state.
    """
    content = _serialised(network, metadata)
    if _network(parse_bytes(content, path.parent), None).digest() != network.digest():
        raise NetworkError(
            "the network does not read back from ONNX as the same one; it is not written"
        )
    write_atomic(path, content)


def _network(model: OnnxModel, input_shape: Shape | None) -> Network:
    return read(model.graph(INPUTS, input_shape), OPERATORS, FOLDS, ONNX)


def _serialised(network: Network, metadata: Mapping[str, str]) -> bytes:
    dtype = _type_of(network)
    known, nodes = network.shapes(), list[OnnxNode]()
    arrays: dict[str, Any] = {}
    # An identity at the end gives the output its name, whatever comes before.
    end = LayerSpec("identity", "output", {})
    sources = sources_of((*network.layers, end))
    place = {INPUT: "input", **{s.name: f"value {k}" for k, s in enumerate(network.layers, 1)}}
    for spec in (*network.layers, end):
        given = taken = [place[name] for name in sources[spec.name]]
        last = place.get(spec.name, "output")
        parts = _written(network, spec)
        for k, part in enumerate(parts):
            name = f"{spec.name}:{k}" if k else spec.name
            inputs = {f"{name}.{key}": _stored(a, dtype) for key, a in part.arrays.items()}
            arrays.update(inputs)
            output = last if k == len(parts) - 1 else f"{last}, part {k}"
            data = [*taken, *given] if part.beside else given
            nodes.append(OnnxNode(part.op, name, (*data, *inputs), output, part.attributes))
            given = [output]
    shapes = (known[INPUT], known[network.output])
    return serialise(nodes, arrays, shapes, metadata)


def _type_of(network: Network) -> np.dtype[Any]:
    """The widest of the weights; a factor or shift that float32 holds counts as one."""
    kinds = {spec.name: spec.kind for spec in network.layers}
    types = []
    for name, array in network.arrays.items():
        layer, _, key = name.rpartition(".")
        if key != "index":
            narrow = kinds[layer] == "elementwise" and array.dtype.itemsize > 4
            with np.errstate(over="ignore"):
                fits = narrow and bool((array.astype(np.float32) == array).all())
            types.append(np.dtype("f4") if fits else array.dtype)
    return np.result_type(*types) if types else np.dtype("f4")


def _stored(array: Any, dtype: np.dtype[Any]) -> Any:
    """In the file's type, but for positions and shapes."""
    array = np.asarray(array)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(dtype)


@dataclass(frozen=True, eq=False)
class _Written:
    """One node of what a layer becomes: the operator, its attributes, arrays beside its data.

    ``beside``: it takes what the layer takes, and then its data.
    """

    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    beside: bool = False


def _written(network: Network, spec: LayerSpec) -> list[_Written]:
    """The nodes of a layer, each on the output of the one before."""
    stored = {key: network.arrays.get(f"{spec.name}.{key}") for key in array_keys(spec.kind)}
    arrays = {key: array for key, array in stored.items() if array is not None}
    if "error" in arrays:
        raise UnsupportedModule(
            f"{spec.name}: stands for numbers that no float holds, such as 1/3; as ONNX it would "
            "be another network"
        )
    if spec.kind == "prelu":  # slopes stand along the channels
        behind = network.shapes()[spec.name][1:]
        arrays = {"slope": arrays["weight"].reshape(-1, *(1 for _ in behind))}
    if spec.kind in _SEVERAL:
        return _SEVERAL[spec.kind](spec, arrays)
    written = _WRITERS.get(spec.kind, _refused)(spec)
    return [replace(written, arrays={**arrays, **written.arrays})]


Several = Callable[[LayerSpec, Mapping[str, Any]], list[_Written]]


def _elementwise(spec: LayerSpec, arrays: Mapping[str, Any]) -> list[_Written]:
    rows = (("Mul", "weight"), ("Add", "bias"))
    found = [_Written(op, {}, {key: arrays[key]}) for op, key in rows if key in arrays]
    return found or [_Written("Identity")]


def _take(spec: LayerSpec, arrays: Mapping[str, Any]) -> list[_Written]:
    """Of the flattened value, with a zero behind it where one is needed."""
    index = np.asarray(arrays["index"]).astype(np.int64)
    zero = _Written("Pad", {}, {"pads": np.array([0, 0, 0, 1])})
    zeros = [zero] if (index == ZERO).any() else []
    # A position from the end is that of the zero.
    return [
        _Written("Flatten", {"axis": 1}),
        *zeros,
        _Written("Gather", {"axis": 1}, {"at": index}),
    ]


def _sum(spec: LayerSpec, arrays: Mapping[str, Any]) -> list[_Written]:
    axes = np.array([1 + k for k in spec.options["axes"]])
    return [_Written("ReduceSum", {"keepdims": int(spec.options["keep"])}, {"axes": axes})]


def _reshape(spec: LayerSpec, arrays: Mapping[str, Any]) -> list[_Written]:
    return [_Written("Reshape", {}, {"shape": np.array([-1, *spec.options["shape"]])})]


def _own_product(function: str, joined: str) -> Several:
    """``x phi(x)`` or ``x - phi(x)``."""
    return lambda spec, arrays: [_Written(function), _Written(joined, beside=True)]


def _softplus(spec: LayerSpec, arrays: Mapping[str, Any]) -> list[_Written]:
    """``log(1 + exp(beta x)) / beta``; ONNX's own has no beta."""
    beta, default = spec.options["beta"], ACTIVATIONS["softplus"].defaults["threshold"]
    if spec.options["threshold"] != default:
        raise UnsupportedModule(
            f"{spec.name}: softplus with {dict(spec.options)} cannot be written as ONNX; only "
            f"threshold={default} can"
        )
    scale = {"beta": np.array(beta)}
    inner = _Written("Softplus")
    return (
        [inner] if beta == 1.0 else [_Written("Mul", {}, scale), inner, _Written("Div", {}, scale)]
    )


def _plain(op: str, **attributes: Any) -> Callable[[LayerSpec], _Written]:
    return lambda spec: _Written(op, attributes)


def _float32(spec: LayerSpec, option: str) -> str | float:
    """A number that float32 holds, which is what ONNX keeps of attributes; or text."""
    if isinstance(spec.options[option], str):
        return str(spec.options[option])
    value = float(spec.options[option])
    with np.errstate(over="ignore"):
        kept = float(np.float32(value))
    if kept != value:
        raise UnsupportedModule(
            f"{spec.name}: {option}={value!r} has more digits than ONNX keeps (float32); "
            f"{kept!r} could be written"
        )
    return value


def _window(spec: LayerSpec) -> dict[str, Any]:
    """How a kernel slides, in ONNX's words."""
    top, bottom, left, right = spec.options["padding"]
    keys = (("strides", "stride"), ("kernel_shape", "kernel_size"), ("dilations", "dilation"))
    return {
        "pads": [top, left, bottom, right],
        **{name: list(spec.options[key]) for name, key in keys if key in spec.options},
    }


def _conv(spec: LayerSpec) -> _Written:
    return _Written("Conv", {**_window(spec), "group": spec.options["groups"]})


def _pool(spec: LayerSpec) -> _Written:
    if spec.options["divisor_override"] is not None:
        raise UnsupportedModule(f"{spec.name}: divisor_override cannot be written as ONNX")
    counted = int(spec.options["count_include_pad"])
    return _Written("AveragePool", {**_window(spec), "count_include_pad": counted})


def _max_pool(spec: LayerSpec) -> _Written:
    return _Written("MaxPool", _window(spec))


def _activation(spec: LayerSpec) -> _Written:
    """By the spelling of its row that leaves its options open."""
    row = ACTIVATIONS[spec.kind]
    spelling = next(s for s in row.spellings if s.onnx and not s.fixed)
    stated = spelling.onnx_options
    for key, default in row.defaults.items():
        if key not in stated and spec.options[key] != default:
            raise UnsupportedModule(
                f"{spec.name}: {spec.kind} with {dict(spec.options)} cannot be written as ONNX; "
                f"only {key}={default} can"
            )
    values = {key: _float32(spec, key) for key in stated}
    if spec.kind == "hardtanh":
        return _Written(spelling.onnx, arrays=values)
    return _Written(spelling.onnx, {stated[key][0]: value for key, value in values.items()})


def _refused(spec: LayerSpec) -> _Written:
    if not is_known(spec.kind):
        raise promised_only(spec.options)
    known = [*_SEVERAL, *(kind for kind, write in _WRITERS.items() if write is not _refused)]
    raise UnsupportedModule(
        f"{spec.name}: {spec.kind} is no operator of ONNX's opset {OPSET}; can be written: "
        f"{', '.join(known)}"
    )


# Of several nodes, or of arrays that are no weight and bias.
_SEVERAL: Mapping[str, Several] = {
    "silu": _own_product("Sigmoid", "Mul"),
    "tanhshrink": _own_product("Tanh", "Sub"),
    "softplus": _softplus,
    "elementwise": _elementwise,
    "take": _take,
    "sum": _sum,
    "reshape": _reshape,
}
_WRITERS: Mapping[str, Callable[[LayerSpec], _Written]] = {
    "linear": _plain("Gemm", transB=1),
    "conv2d": _conv,
    "avg_pool2d": _pool,
    "max_pool2d": _max_pool,
    "softmax": _plain("Softmax", axis=1),
    "log_softmax": _plain("LogSoftmax", axis=1),
    "flatten": _plain("Flatten", axis=1),
    "identity": _plain("Identity"),
    **{
        kind: _activation if any(s.onnx and not s.fixed for s in row.spellings) else _refused
        for kind, row in ACTIVATIONS.items()
    },
    "prelu": _plain("PRelu"),
    "softshrink": lambda spec: _Written(
        "Shrink", dict.fromkeys(("bias", "lambd"), _float32(spec, "lambd"))
    ),
    "group_sort2": _refused,
    "max_min": _refused,
    "half_abs": _refused,
    "add": _plain("Sum"),
    "concatenate": _plain("Concat", axis=1),
}
