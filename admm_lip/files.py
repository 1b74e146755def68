"""Files that are whole or not there, and folders that one run at a time writes into.

A file is written beside its place under a name of its own, brought to the disk, and moved.  What a
killed process leaves is such a name, ``FILE.NUMBER.tmp``, and nothing else: a lock is held by the
open folder itself, so it ends with the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RunFolderError, WriteError

if sys.platform != "win32":  # where folders can be neither opened nor locked
    import fcntl

_TEMPORARY = re.compile(r"(?P<name>.+)\.\d+\.tmp")
# folder -> the thread of this process that holds it; and the open folders, for children to close
_holders: dict[Path, int] = {}
_handles: set[int] = set()


def write_atomic(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: the file.
        content: of the file.
        previous: where the old content is kept, if anywhere.  Between the two moves only
            ``previous`` is there.

    Raises:
        WriteError: naming the file; the old content is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_atomic(path, b"{}")
        >>> path.read_bytes(), [p.name for p in path.parent.iterdir()]
        (b'{}', ['a.json'])
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be opened."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_writable(folder: Path) -> None:
    """Make a folder where it is missing, and see early whether files can be made in it.

    Raises:
        WriteError: naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise WriteError(folder, error) from error


def meant_for(name: str) -> str:
    """The file that a temporary name was to become; any other name is its own.

    Example:
        >>> meant_for("summary.json.4711.tmp"), meant_for("summary.json")
        ('summary.json', 'summary.json')
    """
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what a killed process left of the files ``names``; call it under the lock."""
    for path in folder.iterdir():
        if meant_for(path.name) != path.name and meant_for(path.name) in names:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be the only one that writes into a folder that exists; the same thread may ask again.

    Raises:
        RunFolderError: when another process or thread holds it.
    """
    key = folder.resolve()
    if _holders.get(key) == threading.get_ident():
        yield
        return
    with _locked(folder):
        _holders[key] = threading.get_ident()
        try:
            yield
        finally:
            del _holders[key]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _handles.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"run_dir: another run is writing into {folder}; wait until it has ended, or name "
                "another folder"
            ) from None
        yield
    finally:
        _handles.discard(handle)
        os.close(handle)


def _let_go() -> None:
    """In a child: a worker that outlives a killed run must not hold its folder."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
