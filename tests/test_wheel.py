"""The wheel that people get: what is in it, and that it proves without torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from admm_lip import certify
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("admm_lip", "solvers", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing stale comes in and nothing is left behind."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        built,
        source,
    )
    (found,) = built.glob("*.whl")
    return found


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    homes = ((ROOT / "admm_lip", "admm_lip"), (ROOT / "solvers", "admm_lip/solvers"))
    on_disk = {
        f"{home}/{path.relative_to(folder).as_posix()}"
        for folder, home in homes
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == on_disk


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``admm-lip`` in an environment of NumPy, SciPy and safetensors, installed from the wheel."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    (site,) = home.glob("lib/python*/site-packages")
    for name in ("numpy", "scipy", "safetensors"):
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        package = Path(found.origin).parent
        for path in (package, package.with_name(f"{name}.libs")):
            if path.exists():
                (site / path.name).symlink_to(path)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    return home / "bin" / "admm-lip"


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and its certificate."""
    folder = tmp_path_factory.mktemp("network")
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    save_network(read_network(net), folder)
    certify(net).save(folder / "certificate.json")
    return folder


def test_a_proof_is_checked_with_numpy_and_scipy_alone(program: Path, proven: Path) -> None:
    assert run(program, "verify", proven).stdout.startswith("verified: the network in")
    assert "(also in exact arithmetic)" in run(program, "verify", proven, "--exact").stdout


def test_a_bound_made_smaller_is_refused_there(program: Path, proven: Path) -> None:
    record = json.loads((proven / "certificate.json").read_text())
    (proven / "forged.json").write_text(json.dumps(record | {"lip": 0.99 * record["lip"]}))
    words = (program, "verify", proven, "--certificate", proven / "forged.json")
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_command_with_settings_names_its_extra_there(program: Path) -> None:
    done = subprocess.run([program, "train"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert 'install it with: pip install "admm-lip[cli]"' in done.stderr


def test_without_extras_the_other_commands_help(program: Path) -> None:
    for words in (["--help"], *([name, "--help"] for name in ("verify", "predict", "plot"))):
        assert run(program, *words).stdout.startswith("usage: admm-lip")
