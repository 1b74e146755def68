"""The ``admm-lip`` command: a table of commands, and one place where errors become messages.

The commands' modules are imported one at a time, so that ``admm-lip --help`` is immediate and
``admm-lip verify`` needs no torch.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from typing import Any

from .commands.outcome import JSON, Outcome
from .errors import InputsLeftOut, OutputsLeftOut, Terminated

# name -> one line of help; the module is admm_lip.commands.<name>
_COMMANDS = {
    "train": "train a network under a Lipschitz bound, prove it, and draw the results",
    "certify": "prove a Lipschitz bound for a network that is already trained",
    "verify": "check a certificate against its network (no torch, no solver)",
    "predict": "predict rows by a run or a file, with what is proven of them",
    "project": "move a trained network to the nearest one that meets a bound",
    "compare": "penalty against enforced bound over a grid, with a plot of the front",
    "plot": "draw the plots of a run again, from its records",
    "solvers": "which solvers can run here, and why the others cannot",
}
_EXAMPLES = f"""\
start here:
  admm-lip train                               digits, under a minute, nothing to download
  admm-lip train --data mnist --data-dir DIR   another data set
  admm-lip verify runs/RUN                     check the proof of a run
  admm-lip train --help                        every option, with its default

{JSON}
--debug shows where an error came from."""
_ERROR, _INTERRUPTED, _TERMINATED = 2, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        arguments: without the program's name; ``None`` takes them from the command line.

    Returns:
        0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, wanted = "--debug" in words, "--json" in words
    words = [word for word in words if word not in ("--debug", "--json")]
    try:
        if not wanted:
            with _noting():
                return _outcome(words, debug).code
        with redirect_stdout(sys.stderr), _noting() as notes:
            outcome = _outcome(words, debug)
        from .records import as_json

        about = {"command": words[0] if words else None, **outcome.record, "notes": notes}
        sys.stdout.write(as_json(about) + "\n")
        return outcome.code
    except BrokenPipeError:
        return 0


def _outcome(words: list[str], debug: bool) -> Outcome:
    """Run one command; an error is said, and is the outcome too."""
    try:
        with _termination():
            return _dispatch(words)
    except Terminated:
        return _failed("terminated", _TERMINATED)
    except KeyboardInterrupt:
        return _failed("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(_message(error), _ERROR, "" if debug else "error: ")


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Warnings as notes of one line each; gives those that there were."""
    notes: list[str] = []

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        notes.append(str(message))
        sys.stderr.write(f"admm-lip: note: {message}\n")

    with warnings.catch_warnings():
        for category in (InputsLeftOut, OutputsLeftOut):
            warnings.simplefilter("always", category)
        warnings.showwarning = note
        yield notes


def _failed(message: str, code: int, kind: str = "") -> Outcome:
    if kind or code != _ERROR:
        sys.stderr.write(f"admm-lip: {kind}{message}\n")
    return Outcome({"error": message}, code)


@contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM act as Ctrl-C does: what is open is closed, what was begun is taken back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _dispatch(words: list[str]) -> Outcome:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return Outcome({"commands": _COMMANDS})
    if words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"admm-lip {version('admm-lip')}\n")
        return Outcome({"version": version("admm-lip")})
    name = words[0]
    if name not in _COMMANDS:
        near = get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no command {name!r}; {hint}expected one of {', '.join(_COMMANDS)}")
    command = importlib.import_module(f"admm_lip.commands.{name}")
    try:
        outcome: Outcome = command.run(words[1:])
    except SystemExit as stop:  # --help and --print-config end that way
        return Outcome({}, int(stop.code or 0))
    return outcome


def _overview() -> str:
    rows = "\n".join(f"  {name:<9} {text}" for name, text in _COMMANDS.items())
    return (
        "usage: admm-lip COMMAND [options]\n\n"
        "Certified Lipschitz bounds for ordinary PyTorch networks.\n\n"
        f"commands:\n{rows}\n\n{_EXAMPLES}\n"
    )


def _message(error: Exception) -> str:
    """The error's own words where it has some that are meant for a person; else its type too."""
    expected = (ValueError, OSError, AssertionError, RuntimeError, ArithmeticError, ImportError)
    known = isinstance(error, expected) or type(error).__module__.startswith("admm_lip")
    text = str(error) or type(error).__name__
    return text if known else f"{type(error).__name__}: {text} (use --debug for the details)"
