"""What the base install leaves out: which extra brings a package, and what it is for.

The one statement of it; ``pyproject.toml`` lists the versions.  A package of the table is imported
where it is first needed, inside ``with extra():``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Module that is imported -> the extra that brings it, and what cannot be done without it.
EXTRAS: Mapping[str, tuple[str, str]] = {
    "cvxpy": ("cvxpy", "solving by Clarabel, SCS or MOSEK"),
    "clarabel": ("cvxpy", "solving by Clarabel"),
    "scs": ("cvxpy", "solving by SCS"),
    "mosek": ("mosek", "solving by MOSEK"),
    "onnx": ("onnx", "reading and writing ONNX"),
    "jsonargparse": ("cli", "reading the options of this command"),
    "yaml": ("cli", "reading and writing settings"),
    "matplotlib": ("plots", "drawing plots"),
    "PIL": ("plots", "reading pictures"),
    "sklearn": ("sklearn", "the estimators' way of fitting"),
    "joblib": ("parallel", "running tasks on several workers"),
    "pandas": ("pandas", "a result as a data frame"),
    "huggingface_hub": ("hub", "sharing through the Hugging Face Hub"),
}


class MissingExtra(ImportError):
    """A package that an extra brings is not installed; says how to install it."""


def remedy(module: str) -> str:
    """How to install a module of the table.

    Example:
        >>> print(remedy("onnx"))
        install it with: pip install "admm-lip[onnx]"
    """
    return f'install it with: pip install "admm-lip[{EXTRAS[module][0]}]"'


@contextmanager
def extra() -> Iterator[None]:
    """Around imports of what an extra brings.

    Raises:
        MissingExtra: where it is not installed, naming what needs it and the command.

    Example:
        >>> with extra():
        ...     import onnx
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        message = f"{EXTRAS[module][1]} needs {module}, which is not installed; {remedy(module)}"
        raise MissingExtra(message, name=error.name) from None
