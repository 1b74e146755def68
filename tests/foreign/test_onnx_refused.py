"""What an ONNX file may not hold: each refused by name, saying what to do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_build import Node, onnx_model, write

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.extras import MissingExtra
from admm_lip.foreign import onnx_file, open_network
from admm_lip.foreign.onnx_tensors import Decoder

W = np.eye(4, dtype="f4")
ARRAYS = {
    "W": W,
    "K": np.ones((2, 2, 1, 1), "f4"),
    "K1": np.ones((2, 4, 3), "f4"),
    "zero": np.float32(0),
    "one": np.float32(1),
    "std": np.float32(0.3),
    "nan": np.float32(np.nan),
    "two": np.ones(2, "f4"),
    "row": np.ones((2, 4), "f4"),
    "pixels": np.ones((1, 2, 3, 3), "f4"),
    "batch": np.array([4, 1]),
    "yes": np.array(1),
    "D": W.astype("f8"),
}


def refused(
    folder: Path,
    nodes: list[Node],
    match: str,
    shape: tuple[int | str | None, ...] = ("b", 4),
    kind: type[NetworkError] = UnsupportedModule,
    edit: Callable[[onnx.ModelProto], object] = lambda model: None,
    dtype: str = "f4",
) -> None:
    names = {name for _, inputs, _ in nodes for name in inputs}
    model = onnx_model(nodes, {k: v for k, v in ARRAYS.items() if k in names}, shape, dtype)
    edit(model)
    path = write(model, folder)
    with pytest.raises(kind, match=match) as caught:
        open_network(path)
    assert str(caught.value).startswith(str(path))


IMAGE = ("b", 2, 3, 3)


@pytest.mark.parametrize(
    ("nodes", "shape", "match"),
    [
        (
            [("Hardmax", ["x"], {})],
            ("b", 4),
            r"node n0 \(Hardmax\) is not supported; supported: Abs, Add",
        ),
        ([("Transpose", ["x"], {})], ("b", 4), r"node n0 \(Transpose\): .* changes the batch"),
        ([("Transpose", ["x"], {})], (2, 2), r"node n0 \(Transpose\): mixes the samples"),
        (
            [("Relu", ["x"], {}), ("Concat", ["v0", "x"], {"axis": 0})],
            IMAGE,
            r"node n1 \(Concat\): axis=0 .* expected axes of single inputs, not the batch's",
        ),
        (
            [("Tanh", ["x"], {}), ("Mul", ["x", "v0"], {})],
            ("b", 4),
            r"node n1 \(Mul\): combines x and v0; values can be added",
        ),
        ([("MatMul", ["W", "x"], {})], ("b", 4), r"n0 \(MatMul\): expected the network's value"),
        ([("Div", ["one", "x"], {})], ("b", 4), r"n0 \(Div\): divides a constant by a value"),
        ([("Div", ["x", "x"], {})], ("b", 4), r"n0 \(Div\): combines x and x"),
        ([("Relu", ["W"], {})], ("b", 4), r"n0 \(Relu\): does not depend on the input"),
        ([("Gemm", ["x", "W"], {"transA": 1})], ("b", 4), "transA=1 is not handled; only 0"),
        ([("Gemm", ["x", "W", "row"], {})], ("b", 4), r"a bias of shape \(2, 4\)"),
        ([("Relu", ["x"], {"slope": 1.0})], ("b", 4), r"\(Relu\): has the unknown \['slope'\]"),
        (
            [("Dropout", ["x", "one", "yes"], {})],
            ("b", 4),
            "is in training mode, where it is random",
        ),
        ([("Reshape", ["x", "batch"], {})], ("b", 4), r"shape \[4, 1\] does not keep the batch"),
        ([("Conv", ["x", "K1"], {})], ("b", 4, 9, 9), r"\(Conv\): a kernel of \[3\] on a value"),
        ([("Mul", ["x", "pixels"], {})], ("b", 2, 3), r"a constant of shape \(1, 2, 3, 3\) does"),
        ([("Mul", ["x", "row"], {})], ("b", 4), r"a constant of shape \(2, 4\) does not broadcast"),
        (
            [("BatchNormalization", ["x", "two", "two", "two", "two"], {"training_mode": 1})],
            ("b", 2),
            r"\(BatchNormalization\): normalises by the batch",
        ),
        ([("Cast", ["x"], {"to": 10})], ("b", 4), r"\(Cast\): to=10 is not handled"),
        ([("LayerNormalization", ["x", "row"], {})], ("b", 4), "LayerNormalization"),
        (
            [("AveragePool", ["x"], {"kernel_shape": [2, 2], "ceil_mode": 1})],
            IMAGE,
            r"n0 \(AveragePool\): ceil_mode=1 is not handled; only 0 is",
        ),
        (
            [("AveragePool", ["x"], {"kernel_shape": [2, 2], "dilations": [2, 1]})],
            IMAGE,
            "dilations other than 1",
        ),
        ([("Flatten", ["x"], {"axis": 2})], IMAGE, "axis=2 is not handled; only 1 or -3"),
    ],
    ids=lambda value: value[0][0] if isinstance(value, list) else None,
)
def test_an_unsupported_structure_is_refused_by_its_node(
    tmp_path: Path, nodes: list[Node], shape: tuple[int | str, ...], match: str
) -> None:
    refused(tmp_path, nodes, match, shape)


@pytest.mark.parametrize(
    ("nodes", "shape", "match"),
    [
        ([("Gemm", ["x", "W"], {})], ("b", 5), r"n0 \(Gemm\): a weight of shape \(4, 4\)"),
        ([("MatMul", ["x", "W"], {})], ("b", 3, 4), "features must be flattened before it"),
        ([("Div", ["x", "zero"], {})], ("b", 4), r"n0 \(Div\): divides by zero"),
        ([("Mul", ["x", "nan"], {})], ("b", 4), "its constant holds a value that is NaN"),
        ([("Clip", ["x", "nan", "one"], {})], ("b", 4), "min: expected a finite number, got"),
        ([("Relu", ["away"], {})], ("b", 4), "its input 'away' is made by no node before it"),
        (
            [("Add", ["x", "v1"], {}), ("Relu", ["v0"], {})],
            ("b", 4),
            r"n0 \(Add\): its input 'v1' is made by no node before it",
        ),
        (
            [("Gather", ["x", "batch"], {"axis": 1}), ("Add", ["x", "v0"], {})],
            ("b", 5),
            r"n1 \(Add\): adds values of the shapes \(5,\), \(2,\).*expected equal ones",
        ),
        ([("LeakyRelu", ["x"], {"alpha": 1})], ("b",), "expected a batch axis and at least one"),
        ([("Relu", ["x"], {})], ("b", "n"), r"input 'x'.*open beyond the batch; give input_shape"),
        ([("Conv", ["x", "K"], {"kernel_shape": [3, 3]})], IMAGE, r"kernel_shape=\[3, 3\]"),
        ([("Conv", ["x", "K"], {"pads": [1, 1]})], IMAGE, r"pads=\[1, 1\]"),
        ([("Conv", ["x", "K"], {"pads": [-1, 0, 0, 0]})], IMAGE, "padding cannot be"),
    ],
    ids=lambda value: value[0][0] if isinstance(value, list) else None,
)
def test_a_damaged_graph_is_refused(
    tmp_path: Path, nodes: list[Node], shape: tuple[int | str, ...], match: str
) -> None:
    refused(tmp_path, nodes, match, shape, kind=NetworkError)


GEMM: list[Node] = [("Gemm", ["x", "W"], {})]


def add_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))


def add_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (add_input, r"expected one input, got \['x', 'z'\]"),
        (add_output, r"expected one output, .* got 'y' .*, 'v0' .*; keep one of them"),
        (lambda m: m.ClearField("opset_import"), r"opset: expected one version from 7"),
        (lambda m: setattr(m.opset_import[0], "version", 6), r"opset: .* got \[6\]"),
        (lambda m: setattr(m.opset_import[0], "version", 999), r"opset: .* got \[999\]"),
        (lambda m: setattr(m.graph.node[0], "domain", "my"), r"n0 \(my::Gemm\) is not supported"),
        (lambda m: setattr(m.graph.output[0], "name", "x"), "the output 'x' is the input itself"),
        (
            lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.INT8),
            "W: expected float16, bfloat16, float32",
        ),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializers"),
        (lambda m: m.functions.add(name="Gemm", domain=""), r"redefines the standard .*'Gemm'"),
        (lambda m: setattr(m.graph.node[0].attribute.add(), "name", "z"), "kind that is not read"),
        (
            lambda m: m.graph.input[0].type.tensor_type.ClearField("elem_type"),
            "input 'x': expected",
        ),
    ],
)
def test_an_unsupported_file_is_refused(
    tmp_path: Path, edit: Callable[[onnx.ModelProto], object], match: str
) -> None:
    refused(tmp_path, GEMM, match, edit=edit)


def truncate(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def enormous(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**62


def endless(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = np.full(16, np.inf, "f4").tobytes()


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (truncate, r"W: expected 16 values for the shape \(4, 4\), got 15; the file is truncated"),
        (negative, r"W: the shape \(-4, 4\) is negative or too large"),
        (enormous, r"W: the shape \(4611686018427387904, 4\) is negative or too large"),
        (endless, r"n0.weight: holds a value that is NaN or infinite"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "stands more than once"),
        (lambda m: m.graph.node[0].output.append("x"), r"n0 \(Gemm\): expected an output of a new"),
        (lambda m: m.graph.node[0].output.insert(0, ""), r"\(Gemm\): expected an output of a new"),
        (lambda m: m.ClearField("graph"), "truncated, damaged or not an ONNX file"),
    ],
)
def test_damaged_tensors_are_refused(
    tmp_path: Path, edit: Callable[[onnx.ModelProto], object], match: str
) -> None:
    refused(tmp_path, GEMM, match, kind=NetworkError, edit=edit)


def test_a_second_output_is_not_taken_for_the_first(tmp_path: Path) -> None:
    def take_mask(model: onnx.ModelProto) -> None:
        model.graph.node[0].output.append("mask")
        model.graph.node[1].input[0] = "mask"

    nodes: list[Node] = [("Dropout", ["x"], {}), ("Relu", ["v0"], {})]
    match = "its input 'mask' is made by no node before it; the file is damaged, or uses a second"
    refused(tmp_path, nodes, match, kind=NetworkError, edit=take_mask)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write(onnx_model(GEMM, {"W": W}, ["b", 4]), tmp_path)
    content = path.read_bytes()
    assert content.count(b"n0") == 1
    path.write_bytes(content.replace(b"n0", b"\xff\xfe"))
    with pytest.raises(NetworkError, match="holds text that is not UTF-8"):
        open_network(path)


def test_a_scale_that_would_round_the_weights_is_refused(tmp_path: Path) -> None:
    nodes: list[Node] = [("Gemm", ["x", "D"], {"alpha": 0.3})]
    refused(
        tmp_path, nodes, r"\(Gemm\): multiplying its weights by alpha=0.3\d* rounds", dtype="f8"
    )


def test_an_open_shape_can_be_given_but_not_contradicted(tmp_path: Path) -> None:
    path = write(onnx_model(GEMM, {"W": W}, ["b", "n"]), tmp_path)
    assert open_network(path, (4,)).input_shape == (4,)
    path = write(onnx_model(GEMM, {"W": W}, ["b", 4]), tmp_path)
    with pytest.raises(NetworkError, match=r"input_shape: the input 'x' has the shape \[None, 4\]"):
        open_network(path, (5,))
    with pytest.raises(NetworkError, match="input_shape"):
        open_network(path, (1, 4))


class TestExternalData:
    def make(self, folder: Path, location: str, **entries: str) -> Path:
        model = onnx_model(GEMM, {"W": W}, ["b", 4])
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return write(model, folder)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(NetworkError, match=r"W: its external data 'w.bin' is missing; put it"):
            open_network(self.make(tmp_path, "w.bin"))

    @pytest.mark.parametrize("location", ["../secret", "a/../../secret", "/etc/passwd", "", "a\0b"])
    def test_leading_out_of_the_folder(self, tmp_path: Path, location: str) -> None:
        (tmp_path / "secret").write_bytes(W.tobytes())
        inner = tmp_path / "inner"
        inner.mkdir()
        with pytest.raises(NetworkError, match=r"leads out of the model's folder|name of a file"):
            open_network(self.make(inner, location))

    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        (tmp_path / "secret").write_bytes(W.tobytes())
        (inner / "w.bin").symlink_to(tmp_path / "secret")
        with pytest.raises(NetworkError, match="leads out of the model's folder"):
            open_network(self.make(inner, "w.bin"))

    @pytest.mark.parametrize(
        ("entries", "match"),
        [
            ({"offset": "1000"}, "is truncated: expected"),
            ({"offset": "4", "length": "64"}, "is truncated: expected 64 bytes from 4 on"),
            ({"offset": "-1"}, "external data's offset: expected a number, got '-1'"),
            ({"length": "9" * 30}, "external data's length: expected a number"),
            ({"length": "32"}, "expected 16 values"),
            ({"length": "63"}, "63 bytes are no whole number of values"),
        ],
    )
    def test_damaged(self, tmp_path: Path, entries: dict[str, str], match: str) -> None:
        (tmp_path / "w.bin").write_bytes(W.tobytes())
        with pytest.raises(NetworkError, match=match):
            open_network(self.make(tmp_path, "w.bin", **entries))

    def test_a_tensor_is_cut_out_of_a_larger_file(self, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(b"abcd" + W.tobytes() + b"more")
        path = self.make(tmp_path, "w.bin", offset="4", length="64")
        np.testing.assert_array_equal(open_network(path).arrays["n0.weight"], W)

    def test_the_same_bytes_again_and_again_meet_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "w.bin").write_bytes(W.tobytes())
        path = self.make(tmp_path, "w.bin")
        tensor = onnx.load(path, load_external_data=False).graph.initializer[0]
        decoder = Decoder(tmp_path)
        decoder.left = 100
        decoder.tensor(tensor, "W")
        with pytest.raises(NetworkError, match="external data above the limit"):
            decoder.tensor(tensor, "W")


def test_a_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 2**31)  # a hole: it takes no space
    with pytest.raises(NetworkError, match="2147483648 bytes, above the limit of 2147483647"):
        open_network(path)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(onnx_model(GEMM, {"W": W}, ["b", 4]), tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=re.escape('pip install "admm-lip[onnx]"')):
        open_network(path)


def test_onnx_is_imported_in_one_file() -> None:
    package = Path(onnx_file.__file__).parents[1]
    users = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) (onnx|google)\b", path.read_text(), re.MULTILINE)
    ]
    assert users == ["onnx_file.py"]
