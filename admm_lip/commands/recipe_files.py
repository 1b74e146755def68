"""Recipes: settings by name, one file each, whose first line says what it is for."""

from __future__ import annotations

from pathlib import Path

from .arguments import UsageError

RECIPES = Path(__file__).parent.parent / "recipes"


def recipe_file(name: str) -> Path:
    """The settings file of that name.

    Raises:
        UsageError: where there is none.
    """
    names = recipe_lines()
    if name not in names:
        raise UsageError(
            f"recipe: expected one of {', '.join(names)}, got {name!r}; a file of your own is "
            "--config FILE"
        )
    return RECIPES / f"{name}.yaml"


def recipe_lines() -> dict[str, str]:
    """Name to the line that its file begins with."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for path in sorted(RECIPES.glob("*.yaml"))
    }


def recipe_table() -> str:
    """The recipes for a person, one a line."""
    lines = recipe_lines()
    width = max(map(len, lines))
    return "\n".join(["recipes:", *(f"  {name:<{width}}  {line}" for name, line in lines.items())])
