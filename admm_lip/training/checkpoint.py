"""A run's state on disk: one safetensors file, written atomically, never unpickled.

Tensors go into the file's tensor section, everything else (numbers, strings, nesting) into a JSON
skeleton in its metadata in which ``{"tensor": name}`` stands for a tensor.  Of classes, only the
restart data of the solvers may appear, by name from a table.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..solvers import RESTART_TYPES

FORMAT = "admm-lip-checkpoint-1"
RECORDS = {kind.__name__: kind for kind in RESTART_TYPES}
Tree = Any  # dict, list, tuple, number, string, None, or Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save_checkpoint(path: Path, tree: dict[str, Tree]) -> None:
    """Write ``tree`` to ``path``; a crash leaves the old file or the new one, never a mixture."""
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, tensors)
    metadata = {"format": FORMAT, "skeleton": json.dumps(skeleton)}
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, str(temporary), metadata)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Tree]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: for a missing, truncated or foreign file.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: expected a file at {path}, found none; start afresh")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"checkpoint: expected format {FORMAT!r} in {path}, "
                    f"got {metadata.get('format')!r}; it was not written by this version"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree: dict[str, Tree] = _fill(json.loads(metadata["skeleton"]), tensors)
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"checkpoint: {path} is truncated or damaged ({error}); "
            "remove it and start afresh, or restore a copy"
        ) from error
    return tree


def _strip(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    """The tree with every tensor moved into ``tensors``."""
    if isinstance(tree, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = tree.detach().contiguous().clone()
        return {"tensor": name}
    if type(tree).__name__ in RECORDS:
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
        return {"record": [type(tree).__name__, _strip(fields, tensors)]}
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
    if kind == "record":
        return RECORDS[content[0]](**_fill(content[1], tensors))
    if kind == "dict":
        return {k: _fill(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(_fill(v, tensors) for v in content)
    if kind == "list":
        return [_fill(v, tensors) for v in content]
    return content
