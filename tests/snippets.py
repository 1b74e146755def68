"""The code that the README and the pages of the site show, run, beside what they say it prints.

    python tests/snippets.py docs/quickstart.md      # writes what is printed into the pages

A ``python`` block is run, in one namespace a page; a ``console`` block holds commands of
``admm-lip`` after ``$``, with what each prints.  A ``text`` block right after a ``python`` block is
what that one prints.  After a line ``<!-- not run: REASON -->`` a block is compiled alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from admm_lip import cli

_BLOCK = re.compile(
    r"(?P<mark><!-- not run: .+? -->\n\n?)?^```(?P<language>python|console)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\.?\d)")
# What differs from run to run: seconds, dates in the names of folders, versions.
_FREE = re.compile(r"\d+(?:\.\d+)?(?= (?:s|ms|min)\b)|\d{8}-\d{6}|\b\d+\.\d+\.\d+\b")


class Snippet(NamedTuple):
    """One block: where its output stands in the page, what is said there, what was printed."""

    code: str
    span: tuple[int, int]
    shown: str
    printed: str


def run_page(text: str, name: str) -> Iterator[Snippet]:
    """Run a page's blocks in their order, in the current folder."""
    names: dict[str, object] = {"__name__": "__main__"}  # a module that dataclasses find
    for block in _BLOCK.finditer(text):
        code = block["code"]
        if block["mark"]:
            if block["language"] == "python":
                compile(code, name, "exec")
        elif block["language"] == "console":
            yield Snippet(code, block.span("code"), code, _console(code))
        else:
            line = text.count("\n", 0, block.start("code"))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * line + code, name, "exec"), names)
            if block["shown"] is not None:
                yield Snippet(code, block.span("shown"), block["shown"], printed.getvalue())


def _console(code: str) -> str:
    """The commands of a block, each followed by what it prints."""
    said = ""
    for line in code.splitlines():
        if not line.startswith("$ "):
            continue
        program, *words = shlex.split(line[2:])
        assert program == "admm-lip", f"a console block runs admm-lip alone, got {line!r}"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main(words) == 0, line
        said += f"{line}\n{printed.getvalue().strip(chr(10))}\n\n"
    return said.rstrip("\n") + "\n"


def agrees(shown: str, printed: str) -> bool:
    """Whether two outputs have the same words, and numbers that agree to 10 % or to 0.005."""
    one, other = (_FREE.sub("#", text) for text in (shown, printed))
    if [_NUMBER.sub("#", line).split() for line in _lines(one)] != [
        _NUMBER.sub("#", line).split() for line in _lines(other)
    ]:
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    values = ((float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)
    return all(abs(a - b) <= max(0.1 * abs(a), 0.005) for a, b in values)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def rewritten(text: str, name: str) -> str:
    """The page with what its blocks print now."""
    for found in reversed(list(run_page(text, name))):
        start, end = found.span
        text = text[:start] + found.printed.rstrip("\n") + "\n" + text[end:]
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        page = Path(argument).resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            page.write_text(rewritten(page.read_text(encoding="utf-8"), page.name), "utf-8")
