"""Command-line options from the package's frozen configs, helped by their own docstrings."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
import typing
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace


class UsageError(ValueError):
    """What was typed cannot be used; the message says what to type instead."""


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "text",
    "tuple": "a list like [32,32]",
}


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help with the description kept as written (its examples are laid out by hand)."""


class Parser(ArgumentParser):
    """jsonargparse's parser, but an unknown or wrong option raises :class:`UsageError`."""

    def __init__(self, command: str, description: str, epilog: str, usage: str = "") -> None:
        super().__init__(
            prog=f"admm-lip {command}",
            usage=f"admm-lip {usage or command + ' [options]'}",
            description=textwrap.dedent(description).strip(),
            epilog=textwrap.dedent(epilog).strip(),
            formatter_class=_Formatter,
            allow_abbrev=False,
            exit_on_error=False,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`UsageError` with the message on one line and the near miss, if any."""
        text = _readable(" ".join(str(message).split()))
        unknown = re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", text)
        known = [o.removeprefix("--") for a in self._actions for o in a.option_strings]
        near = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise UsageError(f"{text}{hint} (see {self.prog} --help)") from ex


def parse(parser: Parser, arguments: list[str]) -> Namespace:
    """Parse, turning every complaint of the parser into :class:`UsageError`.

    ``--batch_size`` is read as ``--batch-size``: settings files spell the names with underscores.
    """
    try:
        return parser.parse_args([_dashed(argument) for argument in arguments])
    except ArgumentError as error:
        parser.error(str(error), error)


def add_config(
    parser: Parser,
    title: str,
    config: type,
    prefix: str = "",
    *,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    chosen: tuple[str, ...] = (),
) -> None:
    """Add one option per field of a config dataclass.

    Args:
        parser: where to add.
        title: heading of the group in the help.
        config: a dataclass with an ``Args:`` section in its docstring.
        prefix: put before the names, for example ``"model."``.
        only: the fields to add; empty is all of them.
        skip: fields that are not options.
        chosen: fields whose default is chosen later, for the data set: they start as ``None``.
    """
    group = parser.add_argument_group(title)
    types, helps = typing.get_type_hints(config), field_help(config)
    for field in dataclasses.fields(config):
        if field.name in skip or (only and field.name not in only):
            continue
        kind, default = types[field.name], _default(field)
        text = helps.get(field.name, "").replace("%", "%%")
        if field.name in chosen:
            kind, default = kind | None, None
            text += " Chosen for the data set if not given."
        group.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"), type=kind, default=default, help=text
        )


def config_of(config: type, options: Namespace | Mapping[str, Any], **more: Any) -> Any:
    """An instance of the config dataclass from parsed options (and ``more``)."""
    values = dict(options.as_dict() if isinstance(options, Namespace) else options) | more
    types = typing.get_type_hints(config)
    given = {}
    for field in dataclasses.fields(config):
        if field.name in values:
            kind, value = types[field.name], values[field.name]
            nested = dataclasses.is_dataclass(kind) and isinstance(value, Mapping)
            given[field.name] = config_of(kind, value) if nested else value
    return config(**given)


def field_help(config: type) -> dict[str, str]:
    """Field name to description, from the ``Args:`` section of a dataclass's docstring."""
    lines = inspect.cleandoc(config.__doc__ or "").partition("Args:\n")[2].splitlines()
    helps: dict[str, str] = {}
    name = ""
    for line in lines:
        if line and not line.startswith("    "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, helps[start[1]] = start[1], start[2]
        elif line.strip() and name:
            helps[name] += " " + line.strip()
    return {name: text.replace("``", "") for name, text in helps.items()}


def _readable(text: str) -> str:
    """jsonargparse's complaint about a value, in the words of this package's errors."""
    key = re.search(r'Parser key "([\w.]+)": (.*)', text)
    if key is None:
        return text
    value = re.search(r"(?:Given|Got) value: (.*)$", text)
    types = re.findall(r"Expected (?:an? )?(?:<class '(\w+)'>|typing\.(\S.*?\]))", text)
    if value is None or not types:
        return f"{key[1]}: {key[2]}"
    expected = " or ".join(_WORDS.get(name, name) or special for name, special in types)
    return f"{key[1]}: expected {expected}, got {value[1]!r}"


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def add_threads_option(parser: Parser) -> None:
    """How many CPU threads torch may use."""
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads. One is fastest for small networks (more wait for each other, by far the "
        "longest on a busy machine) and gives the same digits however many cores there are.",
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch limited to ``count`` CPU threads inside, as it was after."""
    import torch

    if count < 1:
        raise UsageError(f"threads: expected at least 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def say(text: str = "") -> None:
    """Print to standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
