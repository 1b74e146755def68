"""Programs of ``torch.export``, read from their archive without torch and without unpickling.

A ``.pt2`` file is a zip archive: the graph as JSON, every weight as the raw bytes of its storage.
``torch.export.load`` also unpickles what else lies in it (sample inputs, tensor subclasses), with
``weights_only=False``; that is why it is not used.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError, UnsupportedModule
from ..networks.layers import Shape
from ..networks.network import Network
from .aten_operators import FOLDS, OPERATORS
from .graph import Graph, Node, Ref, input_shape
from .pt2_archive import Archive, Array, Fields, Payloads
from .written_out import ATEN, read

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Of the archive's schema; later ones may mean something else.
_SCHEMA = 8
_PREFIX = "torch.ops."
# Of types and devices, in front of a cast; it makes no value.
_CHECK = "torch.ops.aten._assert_tensor_metadata.default"
_LITTLE = b"little"


def read_exported(program: ExportedProgram, input_shape: Shape | None = None) -> Network:
    """Read a program in memory, ``torch.export.export(model, example)``.

    Raises:
        UnsupportedModule: by the node's name, for what is not a chain of supported layers.
        NetworkError: for weights that are not finite, or shapes that do not chain.
    """
    from torch.export import save

    content = io.BytesIO()
    save(program, content)
    return _read(content, "the exported program", input_shape)


def read_pt2(path: str | os.PathLike[str], input_shape: Shape | None = None) -> Network:
    """Read a program that ``torch.export.save`` wrote.

    Args:
        path: the archive.
        input_shape: shape of one input without the batch, where the program leaves it open.

    Raises:
        UnsupportedModule: by the node's name, for what is not a chain of supported layers.
        NetworkError: for a file that is missing, too large, truncated, damaged or pickled.
    """
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"{path}: expected a file, found none")
    with path.open("rb") as file:
        return _read(file, str(path), input_shape)


def _read(file: Any, label: str, given: Shape | None) -> Network:
    try:
        with zipfile.ZipFile(file) as archive:
            return read(_graph(Archive(archive, file), given), OPERATORS, FOLDS, ATEN)
    except NetworkError as error:
        raise type(error)(f"{label}: {error}") from None
    except _DAMAGED as error:
        raise NetworkError(f"{label}: truncated or damaged archive ({error})") from None


# What zipfile raises for a file that is damaged, or of a kind that it does not read.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
)


def _graph(archive: Archive, given: Shape | None) -> Graph:
    name = archive.model()
    if archive.read("byteorder", 16).strip() != _LITTLE:
        raise UnsupportedModule("byteorder: only little-endian archives are supported")
    program = archive.read_json(f"models/{name}.json")
    major = program.get("schema_version").get("major").of(int)
    if major != _SCHEMA:
        raise UnsupportedModule(f"schema version {major}; only {_SCHEMA} is known")
    module = program.get("graph_module")
    user, constants = _inputs(module.get("signature"), archive, name)
    graph = module.get("graph")
    batch, shape = _input_shape(graph.get("tensor_values").get(user), user, given)
    entries = graph.get("nodes").items()
    nodes = tuple(_node(e) for e in entries if e.get("target").of(str) != _CHECK)
    return Graph(nodes, constants, user, shape, batch, _output(module.get("signature")))


def _inputs(signature: Fields, archive: Archive, name: str) -> tuple[str, dict[str, Array]]:
    """The name of the user's input, and the tensors of all other inputs."""
    payloads = {kind: Payloads(archive, kind, name) for kind in ("weights", "constants")}
    users, constants = [], {}
    for spec in signature.get("input_specs").items():
        kind, held = spec.union()
        if kind == "user_input":
            users.append(_tensor_name(held.get("arg")))
        elif kind in _HELD:
            stored = held.get(_HELD[kind]).of(str)
            temporary = kind == "buffer" and not held.get("persistent").of(bool)
            where = "constants" if kind == "tensor_constant" or temporary else "weights"
            graph_name = held.get("arg").get("name").of(str)
            if graph_name in constants:
                raise NetworkError(f"{spec.where}: {graph_name!r} is given twice")
            constants[graph_name] = payloads[where].tensor(stored)
        else:
            raise UnsupportedModule(f"{spec.where}: an input of the kind {kind} is not supported")
    if len(users) != 1:
        raise UnsupportedModule(f"expected one input, got {users!r:.200}")
    return users[0], constants


# Kinds of inputs that are stored tensors, and the field of their names.
_HELD = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


def _output(signature: Fields) -> str:
    specs = signature.get("output_specs").items()
    if len(specs) != 1:
        raise UnsupportedModule(f"expected one output, got {len(specs)}")
    kind, held = specs[0].union()
    if kind != "user_output":
        raise UnsupportedModule(f"{specs[0].where}: an output of the kind {kind} is not supported")
    return _tensor_name(held.get("arg"))


def _input_shape(meta: Fields, user: str, given: Shape | None) -> tuple[int | None, Shape]:
    dims: list[int | None] = []
    for size in meta.get("sizes").items():
        kind, value = size.union()
        dims.append(value.of(int) if kind == "as_int" else None)
    return input_shape(user, dims, given)


def _tensor_name(argument: Fields) -> str:
    kind, held = argument.union()
    if kind != "as_tensor":
        raise UnsupportedModule(f"{argument.where}: expected a tensor, got {kind}")
    name: str = held.get("name").of(str)
    return name


def _node(entry: Fields) -> Node:
    target: str = entry.get("target").of(str)
    parameters: dict[str, Any] = {}
    for item in entry.get("inputs").items():
        key = item.get("name").of(str)
        if key in parameters:
            raise NetworkError(f"{item.where}: {key} is given twice")
        parameters[key] = _argument(item.get("arg"))
    outputs: list[str] = []
    for output in entry.get("outputs").items():
        kind, held = output.union()
        several = held.items() if kind == "as_tensors" else [held]
        key = "as_name" if kind == "as_sym_int" else "name"
        outputs.extend(one.get(key).of(str) for one in several)
    op = target.removeprefix(_PREFIX)
    return Node(op, outputs[0] if outputs else op, parameters, tuple(outputs))


def _argument(argument: Fields) -> Any:
    kind, held = argument.union()
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Ref(held.get("name").of(str))
    if kind == "as_tensors":
        return [Ref(entry.get("name").of(str)) for entry in held.items()]
    if kind in ("as_sym_int", "as_optional_tensor"):
        return _symbol(held)
    if kind == "as_sym_ints":
        return [_symbol(entry) for entry in held.items()]
    if kind in _PLAIN:
        return held.data
    raise UnsupportedModule(f"{argument.where}: an argument of the kind {kind} is not supported")


# Plain JSON; whoever uses one checks its type.
_PLAIN = (
    "as_int",
    "as_ints",
    "as_float",
    "as_floats",
    "as_bool",
    "as_string",
    "as_memory_format",
    "as_scalar_type",
    "as_layout",
    "as_device",
)


def _symbol(number: Fields) -> Any:
    kind, held = number.union()
    if kind == "as_name":
        return Ref(held.of(str))
    return _argument(number)
