"""``open_network`` finds the format, and no file of any format does harm."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_build import model_of

from admm_lip import certify
from admm_lip.certificates.in_onnx import export_onnx, read_certificate
from admm_lip.errors import CertificateError, NetworkError
from admm_lip.foreign import open_network
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in every format, by the ending of its file."""
    folder = tmp_path_factory.mktemp("originals")
    model, shape = model_of("image")
    save_network(read_network(model, shape), folder)
    export_onnx(model, folder / "model.onnx", certify(model, shape), input_shape=shape)
    torch.export.save(torch.export.export(model, (torch.zeros(2, *shape),)), folder / "model.pt2")
    return {
        "folder": folder,
        "safetensors": folder / "weights.safetensors",
        "onnx": folder / "model.onnx",
        "pt2": folder / "model.pt2",
    }


@pytest.mark.parametrize("form", ["folder", "safetensors", "onnx", "pt2"])
def test_every_format_gives_the_same_network(originals: dict[str, Path], form: str) -> None:
    model, shape = model_of("image")
    network = open_network(str(originals[form]), input_shape=shape)
    assert network.digest() == read_network(model, shape).digest()
    with pytest.raises(NetworkError, match=r"input_shape: .*\(9, 9\)"):
        open_network(originals[form], input_shape=(9, 9))


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_content_decides_before_the_ending(
    originals: dict[str, Path], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(originals[form].read_bytes())
    assert open_network(path).digest() == open_network(originals["folder"]).digest()


def test_an_architecture_of_the_same_name_goes_first(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = originals["folder"]
    (tmp_path / "mine.safetensors").write_bytes(originals["safetensors"].read_bytes())
    with pytest.raises(NetworkError, match=r"expected a file architecture\.json"):
        open_network(tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_bytes((folder / "architecture.json").read_bytes())
    assert open_network(tmp_path / "mine.safetensors").digest() == open_network(folder).digest()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, b"{}", b"\xff" * 9])
def test_an_unknown_file_is_refused_with_what_can_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(NetworkError, match=r"not a format that is read; expected a folder, torch"):
        open_network(tmp_path / "model")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="nothing: expected a file or folder, found none"):
        open_network(tmp_path / "nothing")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["m.pkl", "m.pt", "m.pt2", "m.onnx", "m.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_of_any_name_is_refused_and_not_loaded(
    tmp_path: Path, name: str, protocol: int
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol))
    with pytest.raises(NetworkError):
        open_network(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_no_unpickling_is_even_in_reach(originals: dict[str, Path]) -> None:
    """Every format is read by an interpreter in which pickle and torch.load raise."""
    code = """
import pickle, sys
def refuse(*a, **k): raise SystemExit("unpickled")
pickle.load = pickle.loads = refuse
class Unpickler(pickle.Unpickler):
    def __init__(self, *a, **k): refuse()
pickle.Unpickler = Unpickler
from admm_lip.foreign import open_network
digests = {open_network(path).digest() for path in sys.argv[1:]}
assert len(digests) == 1 and "torch" not in sys.modules
"""
    paths = [str(path) for path in originals.values()]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=60)


def read(path: Path) -> None:
    """Reading may only succeed or raise the package's errors."""
    with contextlib.suppress(NetworkError):
        open_network(path).chain()
    if path.suffix == ".onnx":
        with contextlib.suppress(CertificateError):
            read_certificate(path)


@pytest.mark.parametrize("form", ["safetensors", "onnx", "pt2"])
def test_a_truncated_file_raises_the_packages_errors(
    originals: dict[str, Path], form: str, tmp_path: Path
) -> None:
    content = originals[form].read_bytes()
    path = tmp_path / f"weights.{form}"
    architecture = originals["folder"] / "architecture.json"
    (tmp_path / "architecture.json").write_bytes(architecture.read_bytes())
    for size in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:size])
        read(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(NetworkError):
        open_network(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("form", ["safetensors", "onnx", "pt2"])
def test_a_damaged_file_raises_the_packages_errors(
    originals: dict[str, Path], form: str, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(originals[form].read_bytes())
    # Where the structure is, apart from the weights' bytes.
    places = st.integers(0, len(content) - 1)
    if form == "pt2":
        start = bytes(content).index(b'{"graph_module"')
        places = st.one_of(places, st.integers(start, start + 4000))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(places)
        piece = data.draw(st.binary(min_size=1, max_size=4))
        content[place : place + data.draw(st.integers(0, 4))] = piece
    path = tmp_path / f"weights.{form}"
    architecture = originals["folder"] / "architecture.json"
    (tmp_path / "architecture.json").write_bytes(architecture.read_bytes())
    path.write_bytes(bytes(content))
    read(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), prefix=st.sampled_from([b"", b"PK\x03\x04", b"\x08\x09"]))
@pytest.mark.parametrize("form", ["safetensors", "onnx", "pt2", "bin"])
def test_noise_raises_the_packages_errors(
    form: str, tmp_path: Path, content: bytes, prefix: bytes
) -> None:
    path = tmp_path / f"noise.{form}"
    path.write_bytes(prefix + content)
    with pytest.raises(NetworkError):
        open_network(path)


def test_importing_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, admm_lip.foreign;"
        "assert not {'torch', 'onnx', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
