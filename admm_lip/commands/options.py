"""Command-line options from the package's frozen configs, helped by their own docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..extras import extra
from .arguments import Formatter, Parser, UsageError

with extra():
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace


class _SettingsFormatter(Formatter, DefaultHelpFormatter):
    """The same help, for jsonargparse's own kinds of options."""


class SettingsParser(Parser, ArgumentParser):
    """The parser of a command with settings, which may come from a file."""

    def __init__(self, command: str, description: str, epilog: str, usage: str = "") -> None:
        super().__init__(
            command,
            description,
            epilog,
            usage,
            formatter_class=_SettingsFormatter,
            print_config="--print-config",
        )

    def group(self, title: str) -> Any:
        """The group of options under that heading, which stands once in the help."""
        made = {group.title: group for group in self._action_groups}
        return made.get(title) or self.add_argument_group(title)

    def add_settings_file(self) -> None:
        """``--config FILE``, and ``--print-config``, which writes one."""
        self.add_argument(
            "--config",
            action="config",
            metavar="FILE",
            help="YAML file of options; later ones win (not given: none).",
        )
        for action in self._actions:
            if "--print-config" in action.option_strings:
                action.help = "Print all settings as such a file, and stop."


def add_config(
    parser: SettingsParser,
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
    group = parser.group(title)
    kinds, helps = typing.get_type_hints(config), field_help(config)
    for field in dataclasses.fields(config):
        if field.name in skip or (only and field.name not in only):
            continue
        kind, default = kinds[field.name], _default(field)
        text = helps.get(field.name, "")
        if field.name in chosen:
            kind, default = kind | None, None
            text = f"{text.removesuffix('.')} (not given: chosen for the data set)."
        group.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"), type=kind, default=default, help=text
        )


def config_of(config: type, options: Namespace | Mapping[str, Any], **more: Any) -> Any:
    """An instance of the config dataclass from parsed options (and ``more``)."""
    values = dict(options.as_dict() if isinstance(options, Namespace) else options) | more
    kinds = typing.get_type_hints(config)
    given = {}
    for field in dataclasses.fields(config):
        if field.name in values:
            kind, value = kinds[field.name], values[field.name]
            nested = dataclasses.is_dataclass(kind) and isinstance(value, Mapping)
            given[field.name] = config_of(kind, value) if nested else value
    return config(**given)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by the names of their options.

    Example:
        >>> flat({"bound": 1.0, "solver": {"name": "native"}})
        {'bound': 1.0, 'solver.name': 'native'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": held for inner, held in flat(value).items()}
        else:
            found[name] = value
    return found


def field_help(config: type) -> dict[str, str]:
    """Field name to description, from the ``Args:`` of a dataclass's docstring and its bases'."""
    helps: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        helps |= _described(kind.__doc__ or "") if dataclasses.is_dataclass(kind) else {}
    return {name: _sentence(text) for name, text in helps.items()}


def _described(docstring: str) -> dict[str, str]:
    lines = inspect.cleandoc(docstring).partition("Args:\n")[2].splitlines()
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
    return helps


def _sentence(text: str) -> str:
    """A docstring's words for an argument, in the command line's: nothing is typed for ``None``."""
    plain = re.sub(r"``None``:", "not given:", text).replace("``", "")
    named = text.startswith("``") or not plain.split(" ")[0].isalpha()
    return plain if named else plain[:1].upper() + plain[1:]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def add_threads_option(parser: SettingsParser) -> None:
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
