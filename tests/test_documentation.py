"""What the documentation shows is run: doctests of the package, blocks of the README."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from admm_lip import cli
from admm_lip.commands.arguments import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPTIONAL = ("mosek", "onnx", "onnxruntime", "pandas")


def modules_with_examples() -> list[str]:
    homes = [("admm_lip", path) for path in (ROOT / "admm_lip").rglob("*.py")]
    homes += [("admm_lip.solvers", path) for path in (ROOT / "solvers").rglob("*.py")]
    found = []
    for top, path in homes:
        if ">>> " in path.read_text(encoding="utf-8"):
            base = ROOT / ("solvers" if top.endswith("solvers") else "admm_lip")
            parts = path.relative_to(base).with_suffix("").parts
            found.append(".".join([top, *(part for part in parts if part != "__init__")]))
    return sorted(found)


def imported(name: str) -> ModuleType:
    """The module, or a skip where it needs an extra that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(name)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def blocks(language: str) -> dict[str, list[str]]:
    """Fenced blocks of the README by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", README, flags=re.MULTILINE):
        code = re.findall(rf"^```{language}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        if code:
            found[part.partition("\n")[0]] = code
    return found


@pytest.mark.parametrize("section", blocks("python"))
def test_the_python_of_a_section_runs_in_order(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, code in enumerate(blocks("python")[section]):
        exec(compile(code, f"README.md: {section}, block {number}", "exec"), names)


def commands(text: str) -> list[list[str]]:
    """The words of every ``admm-lip`` command in a text, program left out."""
    names = "|".join(cli._COMMANDS)
    found = re.findall(rf"(?:^|[\s/`])admm-lip ((?:{names})\b[^`\n&]*)", text)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_every_command_in_the_readme_is_one(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"admm_lip.commands.{words[0]}")
    monkeypatch.chdir(tmp_path)
    if "--config" in words:
        settings = tmp_path / words[words.index("--config") + 1]
        settings.parent.mkdir(parents=True)
        settings.write_text("bound: 1.0\n")
    parse(module.parser(), words[1:])


@pytest.mark.parametrize("code", [code for some in blocks("bash").values() for code in some])
def test_the_shell_reads_every_shell_block(code: str) -> None:
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_the_list_of_commands_is_the_one_that_is_printed() -> None:
    assert cli._overview().partition("commands:\n")[2].partition("\n\n")[0] in README
