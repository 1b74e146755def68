"""ONNX files as bytes and plain graphs: the one place that imports ``onnx``.

Nothing in a file is trusted: sizes are limited, tensors are decoded here with their lengths
checked, and external data is read only from regular files inside the model's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..extras import extra
from ..networks.layers import Shape
from .graph import Graph, Node, Ref, input_shape, node_label
from .limits import read_limited
from .onnx_outputs import output_of
from .onnx_tensors import FLOATS, MAX_BYTES, Decoder, text

Array = npt.NDArray[Any]
Metadata = Mapping[str, str]

OPSET = 20
_IR_VERSION = 9
_STANDARD = ("", "ai.onnx")
# Before 7, Gemm and Add broadcast differently.
_FIRST_OPSET = 7


def onnx_package() -> ModuleType:
    """The ``onnx`` package.

    Raises:
        MissingExtra: where it is not installed.
    """
    with extra():
        import onnx
    return onnx


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A parsed file: its protobuf message and the folder of its external data."""

    proto: Any
    folder: Path

    def metadata(self) -> dict[str, str]:
        """The key-value pairs that the file carries.

        Raises:
            NetworkError: where a key stands twice.
        """
        pairs = [(text(entry.key), text(entry.value)) for entry in self.proto.metadata_props]
        if len({key for key, _ in pairs}) < len(pairs):
            raise NetworkError("metadata: a key stands more than once")
        return dict(pairs)

    def graph(self, inputs: Mapping[str, tuple[str, ...]], shape: Shape | None) -> Graph:
        """The graph, with node inputs named as ``inputs`` says per operator.

        Args:
            inputs: names of an operator's inputs, in order.
            shape: the input's shape without the batch, where the file leaves it open.
        """
        proto = self.proto.graph
        _check_opset(self.proto)
        _check_functions(self.proto)
        if proto.sparse_initializer:
            raise UnsupportedModule("sparse initializers are not supported; store dense ones")
        output, leading = output_of(proto)
        decode, constants = Decoder(self.folder), _initializers(proto)
        used = {text(name) for node in leading for name in node.input}
        unused = constants.keys() - used if len(leading) < len(proto.node) else set[str]()
        constants = {k: decode.tensor(t, k) for k, t in constants.items() if k not in unused}
        given = [v for v in proto.input if text(v.name) not in {*constants, *unused}]
        if len(given) != 1:
            raise UnsupportedModule(
                f"expected one input, got {[text(v.name) for v in given]!r:.200}"
            )
        batch, sizes = _input_shape(given[0], shape)
        nodes = []
        for node in leading:
            if node.op_type == "Constant":
                _take_constant(node, decode, constants)
            else:
                nodes.append(_node(node, inputs, decode))
        return Graph(tuple(nodes), constants, text(given[0].name), sizes, batch, output)


def parse(path: Path) -> OnnxModel:
    """Parse a file; its external data is read later, and only where a tensor needs it.

    Raises:
        NetworkError: for a file that is missing, too large, truncated or not ONNX.
    """
    onnx_package()
    return parse_bytes(read_limited(path, MAX_BYTES), path.parent)


def parse_bytes(content: bytes, folder: Path) -> OnnxModel:
    """Parse the bytes of a file that stands in ``folder``."""
    onnx = onnx_package()
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NetworkError(f"truncated, damaged or not an ONNX file ({error})") from None
    if not proto.HasField("graph"):
        raise NetworkError("truncated, damaged or not an ONNX file (it holds no graph)")
    return OnnxModel(proto, folder)


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node to write."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


def serialise(
    nodes: Sequence[OnnxNode],
    arrays: Mapping[str, Array],
    shapes: tuple[Shape, Shape],
    metadata: Metadata,
) -> bytes:
    """The bytes of a model from ``input`` to ``output``, the batch left open.

    Args:
        nodes: in order.
        arrays: initializers by name; the first float says the type of input and output.
        shapes: of the input and the output, without the batch.
        metadata: key-value pairs.
    """
    onnx = onnx_package()
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_BYTES - 2**24:
        raise UnsupportedModule(
            f"the weights take {total} bytes; an ONNX file holds less than 2 GiB, and external "
            "data is not written"
        )
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    floats = (a.dtype for a in arrays.values() if np.issubdtype(a.dtype, np.floating))
    dtype = next(floats, np.dtype(np.float32))
    element = helper.np_dtype_to_tensor_dtype(dtype)
    ends = [
        helper.make_tensor_value_info(name, element, ["batch", *shape])
        for name, shape in zip(("input", "output"), shapes, strict=True)
    ]
    graph = helper.make_graph(
        [
            helper.make_node(n.op, list(n.inputs), [n.output], name=n.name, **n.attributes)
            for n in nodes
        ],
        "network",
        [ends[0]],
        [ends[1]],
        [to_tensor(np.ascontiguousarray(a), name) for name, a in arrays.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="admm-lip",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    content: bytes = model.SerializeToString()
    return content


def _check_opset(proto: Any) -> None:
    newest = onnx_package().defs.onnx_opset_version()
    versions = [o.version for o in proto.opset_import if o.domain in _STANDARD]
    if len(versions) != 1 or not _FIRST_OPSET <= versions[0] <= newest:
        raise UnsupportedModule(
            f"opset: expected one version from {_FIRST_OPSET} to {newest} (what the installed "
            f"onnx package knows), got {versions!r:.60}"
        )


def _check_functions(proto: Any) -> None:
    """A function of the file's own may stand in for a standard operator of the same name."""
    own = [text(f.name) for f in proto.functions if f.domain in _STANDARD]
    if own:
        raise UnsupportedModule(
            f"functions: the file redefines the standard operators {own!r:.200}; inline them"
        )


def _initializers(proto: Any) -> dict[str, Any]:
    found = {text(t.name): t for t in proto.initializer}
    if len(found) < len(proto.initializer):
        raise NetworkError("an initializer's name stands more than once")
    return found


def _input_shape(value: Any, given: Shape | None) -> tuple[int | None, Shape]:
    name, tensor = text(value.name), value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in FLOATS:
        raise UnsupportedModule(f"input {name!r}: expected a tensor of floating-point numbers")
    if tensor.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    else:
        dims = [None, *(None for _ in given or ("open",))]
    return input_shape(name, dims, given)


def _node(node: Any, inputs: Mapping[str, tuple[str, ...]], decode: Decoder) -> Node:
    op, domain = text(node.op_type), text(node.domain)
    op = op if domain in _STANDARD else f"{domain}::{op}"
    made = Node(op, text(node.name), {}, tuple(text(name) for name in node.output))
    if op not in inputs:
        return made  # refused later, by its name
    names = inputs[op]
    if len(node.input) > len(names):
        raise UnsupportedModule(
            f"{made.label}: {len(node.input)} inputs; it takes {', '.join(names)}"
        )
    given = [text(value) for value in node.input]
    parameters: dict[str, Any] = {
        key: Ref(value) for key, value in zip(names, given, strict=False) if value
    }
    for attribute in node.attribute:
        key = text(attribute.name)
        if key in parameters:
            raise NetworkError(f"{made.label}: {key} is given twice")
        parameters[key] = decode.attribute(attribute, made.label)
    return replace(made, parameters=parameters)


def _take_constant(node: Any, decode: Decoder, constants: dict[str, Array]) -> None:
    names = [text(name) for name in node.output]
    label = node_label(text(node.name), names, "Constant")
    if len(node.attribute) != 1 or len(names) != 1 or names[0] in constants:
        raise NetworkError(f"{label}: expected one value and one output of a new name")
    value = decode.attribute(node.attribute[0], label)
    if isinstance(value, str) or not text(node.attribute[0].name).startswith("value"):
        raise UnsupportedModule(f"{label}: only numbers are supported")
    constants[names[0]] = np.asarray(value)
