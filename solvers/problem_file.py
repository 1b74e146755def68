"""A problem in one file, for a report of what a solver did with it.

The file is of the safetensors format (eight bytes of length, a JSON header, the numbers), so any
reader of that shows what is in it, and it can run no code.  What is read is the problem to the last
bit, matrices row by row; nothing of the file is believed before it is checked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ProblemError
from .problem import CertifyProblem, ProjectProblem, Slopes, Structure

_FORMAT = "admm-lip problem 1"
_DTYPES = {"F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "BOOL": np.dtype("bool")}
_MOST_HEADER = 16 * 2**20
_NUMBERS = ("bound", "mu", "rho")
# The parts of a structure and the types that they are stored in.
_PARTS = {"metric": torch.float64, "held": torch.bool, "ties": torch.int64}


def save_problem(problem: CertifyProblem | ProjectProblem, path: str | os.PathLike[str]) -> None:
    """Write a problem to a file, whole or not at all; :func:`load_problem` reads it.

    Raises:
        OSError: where the file cannot be written.

    Example:
        >>> import tempfile
        >>> from admm_lip.solvers import CertifyProblem, load_problem, save_problem
        >>> path = Path(tempfile.mkdtemp()) / "problem.safetensors"
        >>> save_problem(CertifyProblem((torch.eye(2).double(),), ()), path)
        >>> load_problem(path).widths
        (2, 2)
    """
    about = {"format": _FORMAT, "kind": "certify"}
    if isinstance(problem, ProjectProblem):
        numbers = {name: getattr(problem, name) for name in _NUMBERS}
        exact = {name: float(v).hex() for name, v in numbers.items() if v is not None}
        about = {**about, "kind": "project", **exact}
    header: dict[str, Any] = {"__metadata__": about}
    parts, end = [], 0
    for name, tensor in _tensors(problem):
        array = tensor.detach().cpu().contiguous().numpy()
        code = next(code for code, dtype in _DTYPES.items() if dtype == array.dtype)
        parts.append(array.astype(_DTYPES[code], copy=False).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _write(Path(path), len(text).to_bytes(8, "little") + text + b"".join(parts))


def load_problem(path: str | os.PathLike[str]) -> CertifyProblem | ProjectProblem:
    """Read what :func:`save_problem` wrote.

    Raises:
        ProblemError: for a file that is missing, damaged, or holds no problem, saying which.
    """
    try:
        about, tensors = _read(Path(path))
        return _problem(about, tensors)
    except (OSError, ValueError) as error:
        raise ProblemError(f"{os.fspath(path)}: expected a file of save_problem: {error}") from None


def _tensors(problem: CertifyProblem | ProjectProblem) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a problem."""
    weights = problem.anchor if isinstance(problem, ProjectProblem) else problem.weights
    for k, w in enumerate(weights):
        yield f"weights.{k}", w
    for k, s in enumerate(problem.slopes):
        yield f"alpha.{k}", s.alpha.double()
        yield f"beta.{k}", s.beta.double()
    if isinstance(problem, ProjectProblem):
        for k, t in enumerate(problem.multiplier):
            yield f"multiplier.{k}", t.double()
        for k, own in enumerate(problem.structure):
            for part, dtype in _PARTS.items():
                if getattr(own, part) is not None:
                    yield f"{part}.{k}", getattr(own, part).to(dtype)


def _problem(
    about: Mapping[str, str], tensors: dict[str, Tensor]
) -> CertifyProblem | ProjectProblem:
    """The problem of a file's contents; its own checks raise :class:`ProblemError`."""

    def row(name: str) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        while f"{name}.{len(found)}" in tensors:
            found.append(tensors.pop(f"{name}.{len(found)}"))
        return tuple(found)

    weights = row("weights")
    slopes = tuple(Slopes(a, b) for a, b in zip(row("alpha"), row("beta"), strict=True))
    if about.get("kind") == "certify":
        problem: CertifyProblem | ProjectProblem = CertifyProblem(weights, slopes)
    elif about.get("kind") == "project":
        numbers = {name: float.fromhex(about[name]) for name in _NUMBERS if name in about}
        own = [
            Structure(*(tensors.pop(f"{part}.{k}", None) for part in _PARTS))
            for k in range(len(weights))
        ]
        structure = () if all(s.is_plain for s in own) else tuple(own)
        problem = ProjectProblem(weights, slopes, row("multiplier"), **numbers, structure=structure)
    else:
        raise ValueError(f"kind: expected 'certify' or 'project', got {about.get('kind')!r:.100}")
    if tensors:
        raise ValueError(f"expected nothing but the problem, got also {sorted(tensors)[0]!r:.100}")
    return problem


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What the header says about the problem, and the tensors that it names, checked."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > min(_MOST_HEADER, len(raw) - 8):
        raise ValueError("the header is longer than the file, or than its limit")
    try:
        header = json.loads(raw[8 : 8 + size], object_pairs_hook=_unique, parse_constant=_refused)
    except RecursionError:
        raise ValueError("the header is nested too deep") from None
    about: Any = header.pop("__metadata__", None) if isinstance(header, dict) else None
    about = about if isinstance(about, dict) else {}
    strings = all(isinstance(value, str) for value in about.values())
    if not strings or about.get("format") != _FORMAT:
        raise ValueError(f"the header does not say the format {_FORMAT!r}")
    tensors, end = {}, 0
    for name, entry in header.items():
        array, end = _array(name, entry, raw[8 + size :], end)
        tensors[name] = torch.from_numpy(array)
    if end != len(raw) - 8 - size:
        raise ValueError("the numbers are fewer or more than the header says")
    return about, tensors


def _array(name: str, entry: Any, data: bytes, begin: int) -> tuple[Any, int]:
    """One array of the file, which begins where the one before it ended, and its end."""
    dtype = _DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    shape: Any = entry.get("shape") if isinstance(entry, dict) else None
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if dtype is None or not whole or len(shape) > 2:
        raise ValueError(f"{name!r:.100}: expected a vector or matrix of {', '.join(_DTYPES)}")
    count = math.prod(shape)
    end = begin + count * dtype.itemsize
    if entry.get("data_offsets") != [begin, end] or end > len(data):
        raise ValueError(f"{name!r:.100}: its place in the file does not fit its shape")
    array = np.frombuffer(data, dtype, count, begin)
    if dtype.kind == "b" and bool((array.view(np.uint8) > 1).any()):
        raise ValueError(f"{name!r:.100}: expected 0 or 1 for every flag")
    return array.reshape(shape).copy(), end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the header names something twice")
    return found


def _refused(name: str) -> float:
    raise ValueError(f"the header holds {name}, which JSON does not have")


def _write(path: Path, content: bytes) -> None:
    """The new content or what was there before, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
