"""What the package refuses, each error naming the culprit and the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class NetworkError(ValueError):
    """A malformed network: shapes that do not chain, values that are not finite."""


class UnsupportedModule(NetworkError):
    """A module, a function or an option that is not an affine map or a known activation."""


class OutputsLeftOut(UserWarning):
    """Outputs of a file that are labels or probabilities; what is read is what they come from."""


class InputsLeftOut(UserWarning):
    """Inputs that the level asked for does not take; what cheaper ones proved of them stands."""


class CertificateError(ValueError):
    """A certificate that cannot be read, is of another network, or does not prove its bound."""


class SpecificationError(ValueError):
    """A specification that cannot be read, or in two ways, or does not fit its network."""


class RunFolderError(ValueError):
    """A run folder that exists, is missing, in use, or cannot be read; says what to do."""


class WriteError(OSError):
    """A file that could not be written: no space, no permission; what was there before still is.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return (
            f"cannot write {self.filename}: {self.strerror}; what was there before is unchanged. "
            "Make room or permit writing there, then do the same again"
        )


class Terminated(KeyboardInterrupt):
    """The system asked the process to end (SIGTERM)."""


class TrainingFailed(RuntimeError):
    """A round of training could not be finished; names it, the reason and what is left on disk."""


class WorkerLost(RuntimeError):
    """A task whose worker died however often it was tried; names it."""


class UnitsError(ValueError):
    """Units that do not fit together, or do not fit a network."""


def shown(value: object) -> str:
    """A value for an error's text: short, and of any value."""
    try:
        return f"{value!r:.200}"
    except (ValueError, RecursionError):  # digits beyond Python's limit; lists within lists
        return f"a {type(value).__name__} too large to show"
