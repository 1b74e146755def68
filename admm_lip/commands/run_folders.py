"""The folder that a command works in: made or continued, held by it alone, kept in one piece."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import exclusive, write_atomic
from ..records import RunFolder, as_yaml, create_run, open_run, read_yaml, write_yaml
from .arguments import UsageError, say
from .hints import typed
from .outcome import Outcome

if TYPE_CHECKING:
    from jsonargparse import Namespace

# What may be another one when a run is continued: its length, what is measured afterwards, and
# where the data lie (their content is compared by the checkpoint).
FREE = ("epochs", "checkpoint_seconds", "evaluate", "data_dir")


def earlier_run(options: Namespace) -> RunFolder | None:
    """The run named by ``--resume``.

    Raises:
        UsageError: where another folder is asked for as well.
        RunFolderError: when it is none.
    """
    if options.resume is None:
        return None
    if options.run_dir is not None or options.overwrite:
        raise UsageError(
            "resume: the run continues in its own folder; leave out --run-dir and --overwrite"
        )
    return open_run(options.resume)


@contextmanager
def new_run(path: str | Path, settings: Mapping[str, Any], overwrite: bool) -> Iterator[RunFolder]:
    """A folder made for a run, and taken back where the run ends before it has done anything."""
    folder = create_run(path, settings, overwrite=overwrite)
    with exclusive(folder.path):
        try:
            yield folder
        except BaseException:
            folder.remove_if_unused()
            raise


@contextmanager
def continued_run(
    folder: RunFolder,
    settings: Mapping[str, Any],
    free: Collection[str] = FREE,
    kept_in: Path | None = None,
) -> Iterator[RunFolder]:
    """The folder of a run that goes on with the same settings.

    Args:
        folder: of the run.
        settings: as they are now.
        free: names of those that may have changed; they are written back.
        kept_in: the file that holds them; ``None`` is ``config.yaml``.

    Raises:
        UsageError: naming a setting that has changed.
        RunFolderError: when the run is being written.
    """
    file = kept_in or folder.config
    with exclusive(folder.path):
        folder.remove_leftovers()
        before, now = file.read_bytes(), as_yaml(settings)
        for name, then in read_yaml(file).items():
            if name not in free and not _same(then, now.get(name)):
                raise UsageError(
                    f"resume: {folder.path} is a run with {name} {then!r}, not {now.get(name)!r}; "
                    "resume with the same settings, or start another run"
                )
        if not folder.resumable:
            say(f"{folder.path} holds nothing to go on from yet; it begins anew")
        write_yaml(file, settings)
        with _undone_if_refused(file, before):
            yield folder


def _same(then: Any, now: Any) -> bool:
    """Whether a setting is what it was; what an earlier version did not know has its default."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return all(_same(value, now.get(name)) for name, value in then.items())
    return bool(then == now)


@contextmanager
def _undone_if_refused(file: Path, before: bytes) -> Iterator[None]:
    """Put the settings back where the checkpoint does not go with the new ones."""
    from ..training.checkpoint import CheckpointError

    try:
        yield
    except CheckpointError:
        write_atomic(file, before)
        raise


def stopped_by_signal(folder: RunFolder, command: str, stopped: str) -> Outcome:
    """Say how to go on after Ctrl-C or SIGTERM."""
    from ..training.signals import EXIT_CODES

    say(f"{stopped}; what it had is in {folder.path}")
    say(f"continue with: {typed(command, '--resume', folder.path)}")
    return Outcome({"error": stopped, "run": folder.path}, EXIT_CODES[stopped])
