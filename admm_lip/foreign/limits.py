"""A file's bytes, with its size checked before it is read."""

from __future__ import annotations

from pathlib import Path

from ..errors import NetworkError


def read_limited(path: Path, limit: int) -> bytes:
    """All of a regular file.

    Raises:
        NetworkError: where it is missing, is no regular file, or has more than ``limit`` bytes.
    """
    if not path.is_file():
        raise NetworkError(f"{path}: expected a file, found none")
    size = path.stat().st_size
    if size > limit:
        raise NetworkError(f"{path}: {size} bytes, above the limit of {limit}")
    return path.read_bytes()
