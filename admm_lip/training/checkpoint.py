"""A run's state on disk: one safetensors file, written atomically, never unpickled.

Tensors go into the file's tensor section, everything else (numbers, strings, nesting) into a JSON
skeleton in its metadata in which ``{"tensor": name}`` stands for a tensor.

The metadata hold the SHA-256 of the whole file, taken with zeros in its own place: whatever bit
is another one than was written, the file is refused.  The checkpoint before the last one is kept
beside it, and read where the last one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..files import write_atomic

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
FORMAT = "admm-lip-checkpoint-3"
Tree = Any  # dict, list, tuple, number, string, None, or Tensor

_log = logging.getLogger("admm_lip")
_NO_SUM = b"0" * 64
# In the skeleton, which is a string inside the JSON header, quotes are escaped: this stands once.
_SUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save_checkpoint(path: Path, tree: dict[str, Tree]) -> None:
    """Write ``tree`` to ``path``; a crash leaves the old file or the new one, never a mixture.

    The old file becomes ``PREVIOUS`` in the same folder.

    Raises:
        WriteError: naming the file; the old one is still there.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, tensors)
    metadata = {
        "format": FORMAT,
        "skeleton": json.dumps(skeleton),
        "sha256": _NO_SUM.decode(),
    }
    content = save(tensors, metadata)
    start, stop = _place_of_sum(content)
    summed = content[:start] + hashlib.sha256(content).hexdigest().encode() + content[stop:]
    write_atomic(path, summed, previous=path.with_name(PREVIOUS))


def load_checkpoint(path: Path) -> dict[str, Tree]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: for a missing, foreign or truncated file, and for one with a flipped bit.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: expected a file at {path}, found none; start afresh")
    try:
        return _read(path, path.read_bytes())
    except OSError as error:
        raise _damaged(path, error) from error


def load_last(folder: Path) -> dict[str, Tree]:
    """The last checkpoint of a run, or the one before it where the last one is missing or damaged.

    Nothing is lost by that: from either one a run arrives at the same end.  A damaged one is then
    removed, so that it does not become the one before the next.

    Raises:
        CheckpointError: when neither can be read; names the last one.
    """
    last, previous = folder / CHECKPOINT, folder / PREVIOUS
    try:
        return load_checkpoint(last)
    except CheckpointError as error:
        if not previous.is_file():
            raise
        try:
            tree = load_checkpoint(previous)
        except CheckpointError:
            raise error from None
        _log.warning("%s\nthe run goes on from %s, the one before it", error, previous)
        last.unlink(missing_ok=True)
        return tree


def _read(path: Path, content: bytes) -> dict[str, Tree]:
    try:
        metadata = _metadata(content)
        _check_sum(path, content, metadata)
        tree: dict[str, Tree] = _fill(json.loads(metadata["skeleton"]), load(content))
    except CheckpointError:
        raise
    except (SafetensorError, RecursionError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from error
    return tree


def _metadata(content: bytes) -> dict[str, str]:
    """The strings in a safetensors header."""
    header = json.loads(content[8 : _end_of_header(content)])
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return found if isinstance(found, dict) else {}


def _check_sum(path: Path, content: bytes, metadata: dict[str, str]) -> None:
    start, stop = _place_of_sum(content)
    ours = metadata.get("format") == FORMAT
    summed = hashlib.sha256(content[:start] + _NO_SUM + content[stop:]).hexdigest()
    if (ours or start < stop) and summed.encode() != content[start:stop]:
        raise _damaged(path, "its checksum does not fit its content")
    if not ours:
        again = shlex.join(["admm-lip", "train", "--config", str(path.parent / "config.yaml")])
        raise CheckpointError(
            f"checkpoint: expected format {FORMAT!r} in {path}, got {metadata.get('format')!r}; "
            "it was not written by this version, so start afresh in another folder (a run of the "
            f"command line with: {again})"
        )


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: {path} is truncated or damaged ({why}); remove it and start afresh, or "
        "restore a copy"
    )


def _end_of_header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _place_of_sum(content: bytes) -> tuple[int, int]:
    """Where the 64 digits of the checksum stand; an empty place where there are none."""
    match = _SUM.search(content, 8, _end_of_header(content))
    return match.span(1) if match else (0, 0)


def _strip(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    """The tree with every tensor moved into ``tensors``."""
    if isinstance(tree, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = tree.detach().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[k, _strip(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [_strip(v, tensors) for v in tree]}
    if isinstance(tree, list):
        return {"list": [_strip(v, tensors) for v in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"checkpoint: cannot store a {type(tree).__name__}")


def _fill(skeleton: Any, tensors: dict[str, Tensor]) -> Tree:
    """Inverse of :func:`_strip`."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _fill(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(_fill(v, tensors) for v in content)
    if kind == "list":
        return [_fill(v, tensors) for v in content]
    return content
