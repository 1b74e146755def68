"""Programs of ``torch.export``: read as data, whatever lies in the archive."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_build import MODELS, dtype_of, forward, model_of
from torch import nn

from admm_lip import certify, verify
from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.foreign import open_network, read_exported, read_pt2
from admm_lip.networks.chain import read_network


def save(
    model: nn.Module, shape: tuple[int, ...], path: Path, *, open_batch: bool = False
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *shape, generator=generator).to(dtype_of(model))
    dynamic = ({0: torch.export.Dim.DYNAMIC},) if open_batch else None
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=dynamic), path)
    return x


def edited(path: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """The archive with one member changed (JSON members as data), or removed by ``None``."""
    source = zipfile.ZipFile(path)
    target = path.with_name("edited.pt2")
    with zipfile.ZipFile(target, "w") as out:
        for info in source.infolist():
            content: Any = source.read(info)
            if info.filename.partition("/")[2] == name:
                if name.endswith(".json"):
                    data = json.loads(content)
                    changed = change(data)
                    content = None if changed is None else json.dumps(changed).encode()
                else:
                    content = change(content)
            if content is not None:
                out.writestr(info.filename, content)
    return target


@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_exported_program_is_the_same_network(
    tmp_path: Path, name: str, open_batch: bool
) -> None:
    model, shape = model_of(name)
    x = save(model, shape, tmp_path / "model.pt2", open_batch=open_batch)
    network = open_network(tmp_path / "model.pt2")
    assert network.digest() == read_network(model, shape).digest()
    assert network.input_shape == shape
    with torch.no_grad():
        truth = model.double()(x.double()).numpy()
    np.testing.assert_allclose(forward(network, x.numpy()), truth, rtol=1e-9, atol=1e-9)


def test_a_certificate_of_the_module_verifies_against_the_program(tmp_path: Path) -> None:
    model, shape = model_of("image")
    save(model, shape, tmp_path / "model.pt2")
    verify(certify(model, shape), open_network(tmp_path / "model.pt2"))


def test_a_program_in_memory_is_read() -> None:
    model, shape = model_of("dense")
    program = torch.export.export(model, (torch.zeros(2, *shape),))
    assert read_exported(program).digest() == read_network(model, shape).digest()


def test_silu_bfloat16_and_in_place_activations(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)
    ).bfloat16()
    save(model.eval(), (3,), tmp_path / "model.pt2")
    assert open_network(tmp_path / "model.pt2").digest() == read_network(model).digest()


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([[[0.3]], [[0.5]]]))
        self.register_buffer("scale", torch.tensor([[[4.0]], [[3.0]]]), persistent=False)
        self.conv = nn.Conv2d(2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x - self.mean) * self.scale / 0.7).flatten(1)


def test_buffers_and_numbers_in_front_are_a_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Normalised().eval()
    x = save(model, (2, 4, 4), tmp_path / "model.pt2")
    network = open_network(tmp_path / "model.pt2")
    assert [spec.kind for spec in network.layers] == [*["elementwise"] * 3, "conv2d", "flatten"]
    assert network.digest() == read_network(model, (2, 4, 4)).digest()
    with torch.no_grad():
        truth = model.double()(x.double()).numpy()
    np.testing.assert_allclose(forward(network, x.numpy()), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:No complete tensor found")
def test_a_weight_that_is_a_view_of_a_larger_storage(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    storage = torch.arange(40.0)
    model[0].weight = nn.Parameter(storage[5:17].reshape(3, 4).T)
    save(model, (3,), tmp_path / "model.pt2")
    np.testing.assert_array_equal(
        open_network(tmp_path / "model.pt2").arrays["linear.weight"],
        np.arange(5.0, 17.0).reshape(3, 4).T,
    )


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.relu(self.layer(x))


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(x), torch.tanh(x)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + y


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [
        (
            nn.Hardshrink(),
            1,
            r"node hardshrink \(aten.hardshrink.default\) is not supported",
        ),
        (Product(), 1, r"node mul \(aten.mul.Tensor\): combines x and relu; values can be added"),
        (Twice(), 1, "expected one output, got 2"),
        (Pair(), 2, r"expected one input, got \['x', 'y'\]"),
        (nn.Dropout(0.5).train(), 1, r"\(aten.dropout.default\): is in training mode"),
        (nn.AvgPool2d(2, ceil_mode=True), 1, "ceil_mode=True is not handled; only False is"),
        (nn.Flatten(0, 1), 1, "flattens from axis 0 to 1; expected axes behind the batch"),
        (nn.Hardshrink(), 1, "is not supported"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_an_unsupported_structure_is_refused_by_its_node(
    model: nn.Module, inputs: int, match: str
) -> None:
    shape = (2, 1, 4, 4) if isinstance(model, nn.AvgPool2d | nn.Flatten) else (2, 3)
    program = torch.export.export(model, (torch.zeros(shape),) * inputs)
    with pytest.raises(UnsupportedModule, match=match):
        read_exported(program)


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    model, shape = model_of("affine")
    save(model, shape, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def test_sample_inputs_are_not_unpickled(archive: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    open_network(edited(archive, "data/sample_inputs/model.pt", lambda content: bomb))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # it would have left its trace
    assert (tmp_path / "exploded").exists()


CONFIG = "data/weights/model_weights_config.json"


def weight(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], Any]:
    def apply(config: Any) -> Any:
        change(config["config"]["0.weight"])
        return config

    return apply


def meta(**values: Any) -> Callable[[Any], Any]:
    return weight(lambda entry: entry["tensor_meta"].update(values))


def sizes(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (CONFIG, weight(lambda e: e.update(use_pickle=True)), "0.weight: is pickled"),
        (CONFIG, weight(lambda e: e.update(path_name="../x")), "holds no data/weights/../x"),
        (CONFIG, weight(lambda e: e.update(path_name=3)), "expected str, got 3"),
        (CONFIG, weight(lambda e: e.pop("tensor_meta")), "an object with 'tensor_meta'"),
        (CONFIG, meta(dtype=99), "0.weight: torch's type number 99; expected float16"),
        (CONFIG, meta(sizes=sizes(2, 400)), "do not fit a storage of 8 values"),
        (CONFIG, meta(strides=sizes(4, 9)), "do not fit a storage of 8 values"),
        (CONFIG, meta(strides=sizes(0, 0), sizes=sizes(9, 9)), "do not fit a storage"),
        (CONFIG, meta(storage_offset={"as_int": 1}), "do not fit a storage of 8 values"),
        (CONFIG, meta(storage_offset={"as_int": -1}), "expected a fixed size"),
        (CONFIG, meta(sizes=sizes(2)), "do not fit a storage"),
        (CONFIG, lambda c: {"config": {}}, "0.weight: its weights payload is missing"),
        (CONFIG, lambda c: None, "holds no data/weights/model_weights_config.json"),
        ("data/weights/weight_0", lambda c: c[:-4], "do not fit a storage of 7 values"),
        ("data/weights/weight_0", lambda c: None, "holds no data/weights/weight_0"),
        ("data/weights/weight_0", lambda c: np.full(8, np.nan, "f4").tobytes(), "NaN or infinite"),
        ("byteorder", lambda c: b"big", "byteorder: only little-endian"),
        ("models/model.json", lambda m: {}, "expected an object with 'schema_version'"),
        ("models/model.json", lambda m: {**m, "schema_version": {"major": 9}}, "version 9; only 8"),
        ("models/model.json", lambda m: None, "holds pickled objects, which are never unpickled"),
    ],
)
def test_a_damaged_archive_is_refused_by_its_field(
    archive: Path, name: str, change: Callable[[Any], Any], match: str
) -> None:
    path = edited(archive, name, change)
    with pytest.raises(NetworkError, match=match) as caught:
        open_network(path)
    assert str(caught.value).startswith(str(path))


def test_a_compressed_archive_is_refused(archive: Path) -> None:
    source, packed = zipfile.ZipFile(archive), archive.with_name("packed.pt2")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for info in source.infolist():
            out.writestr(info.filename, source.read(info))
    with pytest.raises(NetworkError, match="is compressed or encrypted, which torch does not do"):
        read_pt2(packed)


def test_an_archive_that_claims_to_be_huge_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from admm_lip.foreign import pt2_archive

    monkeypatch.setattr(pt2_archive, "MAX_ARCHIVE", 100)
    with pytest.raises(NetworkError, match="unpacks to more than the limit of 100 bytes"):
        read_pt2(archive)


def test_a_missing_file_and_an_open_shape(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="expected a file, found none"):
        read_pt2(tmp_path / "none.pt2")
    dynamic = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(
        nn.Conv2d(1, 1, 2), (torch.zeros(2, 1, 5, 6),), dynamic_shapes=dynamic
    )
    with pytest.raises(NetworkError, match="is open beyond the batch; give input_shape"):
        read_exported(program)
    assert read_exported(program, (1, 4, 6)).input_shape == (1, 4, 6)


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    content = io.BytesIO()
    torch.save(model, content)
    (tmp_path / "model.pt").write_bytes(content.getvalue())
    with pytest.raises(NetworkError, match="holds pickled objects, which are never unpickled"):
        open_network(tmp_path / "model.pt")
