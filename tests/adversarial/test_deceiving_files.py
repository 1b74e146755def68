"""Files that say one thing to one reader and another to the next: the package's own errors."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn

from admm_lip import certified_radii, certify
from admm_lip.errors import CertificateError, NetworkError, UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.networks.chain import read_network
from admm_lip.networks.sorting_torch import GroupSort2, HalfAbs, MaxMin
from admm_lip.networks.storage import load_network, save_network

MEMBER = "data/weights/weight_0"
INFINITE = 10**400


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "good.pt2"
    torch.export.save(torch.export.export(net(), (torch.zeros(2, 3),)), path)
    return path


def members(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(i.filename, archive.read(i)) for i in archive.infolist()]


def written(folder: Path, entries: list[tuple[str, bytes]], **options: Any) -> Path:
    path = folder / "edited.pt2"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            with_name = zipfile.ZipInfo(name)
            with_name.compress_type = archive.compression
            archive.writestr(with_name, content)
    return path


Entries = list[tuple[str, bytes]]
Edit = Callable[[Entries], Entries]
EVIL = bytes(48)


ARCHIVES: dict[str, tuple[Edit, str]] = {
    "a member twice, the evil first": (
        lambda e: [(f"good/{MEMBER}", EVIL), *e],
        "weight_0: stands in the archive twice",
    ),
    "a member twice, the evil last": (lambda e: [*e, (f"good/{MEMBER}", EVIL)], "twice"),
    "in capitals": (lambda e: [(f"good/{MEMBER.upper()}", EVIL), *e], "twice"),
    "a second folder": (lambda e: [*e, (f"evil/{MEMBER}", EVIL)], r"one top folder, got \['evil'"),
    "a second folder first": (lambda e: [(f"evil/{MEMBER}", EVIL), *e], "one top folder"),
    "a folder in capitals": (lambda e: [(f"GOOD/{MEMBER}", EVIL), *e], "one top folder"),
    "backslashes": (lambda e: [(f"good/{MEMBER}".replace("/", "\\"), EVIL), *e], "members of one"),
    "parents": (lambda e: [(f"good/data/../{MEMBER}", EVIL), *e], "expected members of one folder"),
    "dots": (lambda e: [(f"good/./{MEMBER}", EVIL), *e], "expected members of one folder"),
    "empty parts": (lambda e: [(f"good//{MEMBER}", EVIL), *e], "expected members of one folder"),
    "absolute": (lambda e: [(f"/good/{MEMBER}", EVIL), *e], "expected members of one folder"),
    "a drive": (lambda e: [(f"C:/good/{MEMBER}", EVIL), *e], "expected members of one folder"),
    "no folder": (lambda e: [*e, ("weight_0", EVIL)], "expected members of one folder"),
    "other letters": (lambda e: [*e, ("good/wéight", EVIL)], "expected members of one folder"),
}


def test_an_archive_written_anew_is_read(archive: Path, tmp_path: Path) -> None:
    same = written(tmp_path, members(archive))
    assert open_network(same).digest() == read_network(net()).digest()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_two_readings_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    edit, message = ARCHIVES[name]
    path = written(tmp_path, edit(members(archive)))
    with pytest.raises(NetworkError, match=message):
        open_network(path)


def test_a_compressed_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    path = written(tmp_path, members(archive), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(NetworkError, match="is compressed"):
        open_network(path)


def _patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def _local_name(content: bytes) -> bytes:
    return _patched(content, content.index(b"weight_0"), b"weight_9")


def _end(content: bytes) -> int:
    return content.rindex(b"PK\x05\x06")


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "a prefix": lambda c: b"PK\x03\x04 something else " + c,
    "another archive in front": lambda c: c + c,
    "data behind": lambda c: c + b"behind",
    "a comment": lambda c: _patched(c, _end(c) + 20, struct.pack("<H", 6)) + b"behind",
    "another name in the header": _local_name,
    "another checksum in the header": lambda c: _patched(c, 14, b"\x01\x02\x03\x04"),
    "another size in the header": lambda c: _patched(c, 18, struct.pack("<2L", 4, 4)),
    "compressed in the header": lambda c: _patched(c, 8, b"\x08"),
    "one member fewer counted": lambda c: _patched(
        c, _end(c) + 8, struct.pack("<2H", *[struct.unpack_from("<H", c, _end(c) + 8)[0] - 1] * 2)
    ),
    "half of it": lambda c: c[: len(c) // 2],
}


@pytest.mark.parametrize("name", BYTES)
def test_an_archive_whose_two_directories_differ_is_refused(
    archive: Path, tmp_path: Path, name: str
) -> None:
    path = written(tmp_path, members(archive))
    path.write_bytes(BYTES[name](path.read_bytes()))
    with pytest.raises(NetworkError, match=r"edited\.pt2"):
        open_network(path)


@pytest.mark.parametrize("text", [b'{"config": {}, "config": {}}', b'{"config": NaN}'])
def test_json_of_an_archive_has_one_reading(archive: Path, tmp_path: Path, text: bytes) -> None:
    config = "data/weights/model_weights_config.json"
    entries = [(n, text if n.endswith(config) else c) for n, c in members(archive)]
    with pytest.raises(NetworkError, match=f"{config}: not JSON"):
        open_network(written(tmp_path, entries))


def onnx_file(folder: Path, change: Callable[[Any], None], nodes: Any = None) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "xy"]
    weight = numpy_helper.from_array(np.eye(2, dtype="f4"), "W")
    nodes = nodes or [helper.make_node("MatMul", ["x", "W"], ["y"], name="m")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    change(model)
    path = folder / "edited.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _evil(name: str) -> TensorProto:
    return numpy_helper.from_array(100 * np.eye(2, dtype="f4"), name)


def _functions(model: Any) -> None:
    for _ in range(2):
        node = helper.make_node("Relu", ["a"], ["b"])
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(
            helper.make_function("", "MatMul", ["a", "c"], ["b"], [node], opsets)
        )


def _constant(model: Any, name: str) -> None:
    node = helper.make_node("Constant", [], [name], value=_evil(name))
    model.graph.node.insert(0, node)


def _typed(model: Any, kind: int) -> None:
    model.graph.initializer[0].data_type = kind


ONNX: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an initializer twice": (
        lambda m: m.graph.initializer.append(_evil("W")),
        "an initializer's name stands more than once",
    ),
    "an initializer named as the input": (
        lambda m: m.graph.initializer.append(_evil("x")),
        "expected one input",
    ),
    "the input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "expected one input"),
    "a constant named as the input": (lambda m: _constant(m, "x"), "names the input and a const"),
    "a constant named as an initializer": (lambda m: _constant(m, "W"), "output of a new name"),
    "two nodes of one output": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["y"], ["y"], name="r")),
        r"node r \(Relu\): expected an output of a new name",
    ),
    "a node of one output twice": (
        lambda m: m.graph.node[0].output.append("y"),
        r"node m \(MatMul\): expected an output of a new name",
    ),
    "an attribute twice": (
        lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("alpha", 2.0)] * 2),
        "alpha is given twice",
    ),
    "a function in place of an operator": (_functions, "redefines the standard operators"),
    "two versions of the operators": (
        lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 7)),
        "opset: expected one version",
    ),
    "values stored twice": (
        lambda m: m.graph.initializer[0].float_data.extend([1.0] * 4),
        "W: its values are stored in more than one way",
    ),
    "values inside and outside": (
        lambda m: m.graph.initializer[0].external_data.add(key="location", value="w"),
        "W: its values are stored in more than one way",
    ),
    "eight bits": (lambda m: _typed(m, TensorProto.INT8), "W: .* got the ONNX type INT8"),
    "float8": (lambda m: _typed(m, TensorProto.FLOAT8E4M3FN), "the ONNX type FLOAT8E4M3FN"),
    "no type at all": (lambda m: _typed(m, 99), "type number 99, which has no name"),
}


@pytest.mark.parametrize("name", ONNX)
def test_an_onnx_file_with_two_readings_is_refused(tmp_path: Path, name: str) -> None:
    change, message = ONNX[name]
    with pytest.raises(NetworkError, match=message):
        open_network(onnx_file(tmp_path, change))


def test_an_input_without_a_batch_axis_says_that_nothing_helps(tmp_path: Path) -> None:
    def single(model: Any) -> None:
        del model.graph.input[0].type.tensor_type.shape.dim[1:]
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    path = onnx_file(tmp_path, single)
    with pytest.raises(UnsupportedModule, match=r"got \[1\]; no input_shape helps: export"):
        open_network(path, (1,))


def architecture(**changes: Any) -> dict[str, Any]:
    layers = [
        {"kind": "linear", "name": "a", "options": {}},
        {"kind": "relu", "name": "b", "options": {}},
        {"kind": "linear", "name": "c", "options": {}},
    ]
    return {"format": 1, "input_shape": [3], "layers": layers, **changes}


def with_activation(kind: str, **options: Any) -> dict[str, Any]:
    changed = architecture()
    changed["layers"][1] = {"kind": kind, "name": "b", "options": options}
    return changed


def pooled(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0] * 4}
    options |= {"count_include_pad": True, "divisor_override": None, **changes}
    layer = {"kind": "avg_pool2d", "name": "p", "options": options}
    return {"format": 1, "input_shape": [1, 4, 4], "layers": [layer]}


ARCHITECTURES: dict[str, tuple[Any, str]] = {
    "a list for a text": (with_activation("gelu", approximate=["tanh"]), "gelu's approximate"),
    "an object for a text": (with_activation("gelu", approximate={}), "gelu's approximate"),
    "400 digits": (with_activation("elu", alpha=INFINITE), "elu's alpha: expected a finite"),
    "a truth value": (with_activation("elu", alpha=True), "elu's alpha: expected a finite number"),
    "a text": (with_activation("leaky_relu", negative_slope="0.1"), "leaky_relu's negative_slope"),
    "an option too many": (with_activation("relu", slope=1.0), r"relu takes the options \[\]"),
    "a huge kernel": (pooled(kernel_size=[10**12, 1]), "kernel_size cannot be"),
    "a huge padding": (pooled(kernel_size=[2**30, 1], padding=[2**30, 0, 0, 0]), "p"),
    "a huge divisor": (pooled(divisor_override=INFINITE), "divisor_override cannot be"),
    "a stride of zero": (pooled(stride=[0, 1]), "stride cannot be"),
    "no layers": (architecture(layers={}), "layers: expected a list"),
    "a layer that is none": (architecture(layers=[1]), r"layers\[0\]: expected kind"),
    "a name twice": (architecture(layers=architecture()["layers"] * 2), "distinct names"),
    "a shape of truth values": (architecture(input_shape=[True]), "input_shape: expected sizes"),
    "a shape of zeros": (architecture(input_shape=[0]), "input_shape: expected sizes"),
    "a kind that is a list": (
        architecture(layers=[{"kind": ["relu"], "name": "a", "options": {}}]),
        "expected two strings",
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_odd_architecture_is_refused_by_its_field(tmp_path: Path, name: str) -> None:
    data, message = ARCHITECTURES[name]
    save_network(read_network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))), tmp_path)
    (tmp_path / "architecture.json").write_text(json.dumps(data))
    with pytest.raises(NetworkError, match=message):
        load_network(tmp_path).chain()


def test_weights_of_a_type_that_is_not_read_are_refused(tmp_path: Path) -> None:
    save_network(read_network(net()), tmp_path)
    header = json.dumps({"0.weight": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(8)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(NetworkError, match="of a type unread"):
        load_network(tmp_path)


@pytest.mark.parametrize("errors", [[-1.0, 0.0], [0.0], [[0.0, 0.0]]])
def test_bounds_of_rounding_are_checked(tmp_path: Path, errors: Any) -> None:
    network = read_network(net())
    save_network(network, tmp_path)
    save_file(
        {**network.arrays, "0.error": np.array(errors)}, str(tmp_path / "weights.safetensors")
    )
    with pytest.raises(NetworkError, match=r"0\.error: expected"):
        load_network(tmp_path).chain()


@pytest.mark.parametrize("sort", [MaxMin, GroupSort2, HalfAbs])
def test_pairs_of_channels_and_pairs_of_pixels_are_two_networks(sort: type[nn.Module]) -> None:
    torch.manual_seed(11)
    conv, last = nn.Conv2d(1, 2, 1), nn.Linear(8, 2)
    flat = nn.Sequential(conv, nn.Flatten(), sort(), last).double()
    image = nn.Sequential(conv, sort(), nn.Flatten(), last).double()
    found = certify(flat, (1, 2, 2))
    assert found.digest != read_network(image, (1, 2, 2)).digest()
    x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(CertificateError, match="digest: the certificate is of another network"):
        certified_radii(image, x, y, certificate=found)
