"""The run folder: what a run leaves behind, written so that it is whole or not there.

    config.yaml          every setting, ready for ``admm-lip train --config``
    project.yaml         the options of ``admm-lip project``, for ``--resume``
    checkpoint.safetensors   the last whole round, for ``--resume``; and
    checkpoint.previous.safetensors   the one before it, should the last one be damaged
    weights.safetensors  the weights        architecture.json   the layers they belong to
    certificate.json     the proof          metrics.jsonl       one row per round
    units.json           the units of a table: what raw rows are to the network
    certificate.raw.json the proof in these units, where the bound was meant in others
    epochs.jsonl         one row per epoch of another method than ADMM
    samples.jsonl        what was certified of every test sample, where bounds are local
    summary.json         the measurements, and the machine they were made on
    plots/*.png          pictures, drawn from the files above

No torch is imported here, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import strict_json
from .errors import RunFolderError
from .extras import extra
from .files import exclusive, make_writable, meant_for, remove_leftovers, write_atomic
from .networks.storage import ARCHITECTURE, WEIGHTS

CONFIG = "config.yaml"
_PACKAGES = ("admm-lip", "torch", "numpy", "scipy", "cvxpy", "mosek", "scs", "clarabel")


_WRITTEN = {
    CONFIG,
    "project.yaml",
    "checkpoint.safetensors",
    "checkpoint.previous.safetensors",
    WEIGHTS,
    ARCHITECTURE,
    "certificate.json",
    "certificate.raw.json",
    "units.json",
    "metrics.jsonl",
    "epochs.jsonl",
    "samples.jsonl",
    "summary.json",
    "regions.npz",
    "front.jsonl",
    "plots",
}


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting."""
        return self.path / CONFIG

    @property
    def project(self) -> Path:
        """The options of a projection."""
        return self.path / "project.yaml"

    @property
    def checkpoint(self) -> Path:
        """The last whole round."""
        return self.path / "checkpoint.safetensors"

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on from; before that a run begins anew."""
        return self.front.is_file() or any(self.path.glob("checkpoint*.safetensors"))

    @property
    def certificate(self) -> Path:
        """The proof."""
        return self.path / "certificate.json"

    @property
    def raw_certificate(self) -> Path:
        """The proof in the units of the data, where the bound was meant in others."""
        return self.path / "certificate.raw.json"

    @property
    def units(self) -> Path:
        """The units of the data."""
        return self.path / "units.json"

    @property
    def metrics(self) -> Path:
        """One row per round."""
        return self.path / "metrics.jsonl"

    @property
    def epochs(self) -> Path:
        """One row per epoch of another method than ADMM."""
        return self.path / "epochs.jsonl"

    @property
    def samples(self) -> Path:
        """What was certified of every test sample."""
        return self.path / "samples.jsonl"

    @property
    def summary(self) -> Path:
        """What was measured."""
        return self.path / "summary.json"

    @property
    def regions(self) -> Path:
        """Decision regions on a grid (two inputs only)."""
        return self.path / "regions.npz"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.path / "plots"

    @property
    def front(self) -> Path:
        """One row per run of a comparison."""
        return self.path / "front.jsonl"

    def remove_if_unused(self) -> None:
        """Take a folder back in which nothing was done but writing its settings."""
        if {p.name for p in self.path.iterdir()} <= {CONFIG, self.project.name}:
            self.clear()
            self.path.rmdir()

    def foreign_files(self) -> list[str]:
        """Names in the folder that no run writes, nor leaves when it is killed, sorted."""
        return sorted(p.name for p in self.path.iterdir() if meant_for(p.name) not in _WRITTEN)

    def remove_leftovers(self) -> None:
        """Remove what a killed run had begun to write; call it where no other run writes."""
        remove_leftovers(self.path, _WRITTEN)
        if self.plots.is_dir():
            pictures = {meant_for(p.name) for p in self.plots.iterdir()}
            remove_leftovers(self.plots, {name for name in pictures if name.endswith(".png")})

    def clear(self) -> None:
        """Empty the folder, the settings last: until then it is known as a run."""
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == CONFIG):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def default_run_path(root: str | os.PathLike[str], name: str, label: str = "") -> Path:
    """``root/<data>-<time>``, with ``-2``, ``-3``, ... where that is taken.

    Args:
        root: folder of all runs.
        name: of the data set; of ``csv:FILE`` the file's stem is used.
        label: put between the two, if not empty.
    """
    data = f"csv-{Path(name.removeprefix('csv:')).stem}" if name.startswith("csv:") else name
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = "-".join(part for part in (data, label, moment) if part)
    path, number = Path(root) / stem, 1
    while path.exists():
        number += 1
        path = Path(root) / f"{stem}-{number}"
    return path


def create_run(
    path: str | os.PathLike[str], settings: Mapping[str, Any], *, overwrite: bool = False
) -> RunFolder:
    """Make a new run folder that holds its settings and nothing else, before any work is done.

    Args:
        path: the folder; parents are made.
        settings: written to ``config.yaml``.
        overwrite: replace an earlier run there.  A folder with anything else in it is never
            replaced.

    Raises:
        RunFolderError: when it exists, or cannot be made or written.
    """
    run = RunFolder(Path(path).expanduser())
    if run.path.exists() and not run.path.is_dir():
        raise RunFolderError(_taken(run.path))
    made = not run.path.exists()
    try:
        make_writable(run.path)
        with exclusive(run.path):
            _make_room(run, overwrite)
            write_yaml(run.config, settings)
    except OSError as error:
        if made and run.path.exists():
            run.path.rmdir()
        raise RunFolderError(
            f"run_dir: cannot write {run.path} ({error.strerror}); name another folder with "
            "--run-dir"
        ) from error
    return run


def _make_room(run: RunFolder, overwrite: bool) -> None:
    """Leave an empty folder, or refuse."""
    run.remove_leftovers()
    if not any(run.path.iterdir()):
        return
    if not (overwrite and run.config.is_file()):
        raise RunFolderError(_taken(run.path))
    foreign = run.foreign_files()
    if foreign:
        raise RunFolderError(
            f"run_dir: {run.path} holds files that no run wrote ({', '.join(foreign[:3])}), so it "
            "is not replaced; move them away, or name another folder with --run-dir"
        )
    run.clear()


def _taken(folder: Path) -> str:
    if (folder / CONFIG).is_file():
        return (
            f"run_dir: {folder} already holds a run; continue it with --resume {folder}, replace "
            "it with --overwrite, or name another folder with --run-dir"
        )
    return (
        f"run_dir: {folder} exists and is not a run; it is left as it is, name another folder with "
        "--run-dir"
    )


def open_run(path: str | os.PathLike[str]) -> RunFolder:
    """An existing run folder.

    Raises:
        RunFolderError: when it is not there, or is not a run.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunFolderError(f"run: expected a run folder, but {folder} does not exist")
    if not (folder / CONFIG).is_file():
        raise RunFolderError(f"run: {folder} is not a run folder: it has no {CONFIG}")
    return RunFolder(folder)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``: the old file or the new one, never half of it."""
    write_atomic(path, text.encode())


def as_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A record as JSON; NaN and infinity become null, as JSON has neither."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON."""
    write_text(path, as_json(record, 2) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines."""
    write_text(path, "".join(as_json(row) + "\n" for row in rows))


def write_yaml(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as YAML, in its own order."""
    write_text(path, _yaml().safe_dump(_plain(record), sort_keys=False))


def as_yaml(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as :func:`read_yaml` finds it after :func:`write_yaml`."""
    yaml = _yaml()
    found: dict[str, Any] = yaml.safe_load(yaml.safe_dump(_plain(record)))
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: naming the file, when it is missing or damaged.
    """
    return _read(path, strict_json.loads)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; errors as :func:`read_json`."""
    rows: list[dict[str, Any]] = _read(
        path, lambda text: [strict_json.loads(line) for line in text.splitlines() if line]
    )
    return rows


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; errors as :func:`read_json`."""
    yaml = _yaml()
    record = _read(path, yaml.safe_load, yaml.YAMLError)
    if not isinstance(record, dict):
        raise RunFolderError(f"{path}: expected settings, one 'name: value' per line")
    return record


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as a compressed NumPy archive, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a NumPy archive, refusing pickled objects; errors as :func:`read_json`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise RunFolderError(f"{path}: cannot be read as a NumPy archive ({error})") from error


def machine_stamp(threads: int | None = None) -> dict[str, Any]:
    """Versions and size of the machine, for beside a measurement: no name, user or path of it.

    Args:
        threads: threads that the linear algebra used, if known.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    stamp = {
        "versions": versions,
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
    }
    return {key: value for key, value in stamp.items() if value is not None}


def _yaml() -> ModuleType:
    """The module, imported at the first use."""
    with extra():
        import yaml
    return yaml


def _read(path: Path, parse: Any, damaged: type[Exception] = ValueError) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path}: there is no such file; the run did not finish, or the file was removed"
        ) from error
    except (OSError, ValueError, damaged) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path}: truncated or damaged ({reason})") from error


def _finite(value: Any) -> Any:
    """The value with plain containers, and null for what JSON cannot say."""
    plain = _plain(value)
    if isinstance(plain, dict):
        return {key: _finite(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [_finite(item) for item in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _plain(value: Any) -> Any:
    """Dictionaries and lists of Python scalars, as YAML and JSON want them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value
