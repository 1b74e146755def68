"""Command-line options from the package's frozen configs, helped by their own docstrings."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace


class UsageError(ValueError):
    """What was typed cannot be used; the message says what to type instead."""


_UNIONS = (typing.Union, types.UnionType)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "text",
    "tuple": "a list like [32,32]",
}


# How a value of a type is written in the help.
_VALUES: Mapping[Any, str] = {int: "N", float: "X", bool: "{true,false}"}


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help in the words of a user: how a value is written, and its default where it has one.

    The description is kept as written (its examples are laid out by hand).
    """

    def _format_action_invocation(self, action: Action) -> str:
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        if not names or _is_flag(action):
            return names or super()._format_action_invocation(action)
        return f"{names} {_written(action)}"

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        unsaid = action.default in (None, "", {}, SUPPRESS) or _is_flag(action)
        return text if unsaid else f"{text} (default: {word_of(action.default)})"


class Parser(ArgumentParser):
    """jsonargparse's parser, but an unknown or wrong option raises :class:`UsageError`."""

    def __init__(self, command: str, description: str, epilog: str, usage: str = "") -> None:
        super().__init__(
            prog=f"admm-lip {command}",
            usage=f"admm-lip {usage or command + ' [options]'}",
            description=textwrap.dedent(description).strip(),
            epilog=textwrap.dedent(epilog).strip(),
            formatter_class=_Formatter,
            print_config="--print-config",
            allow_abbrev=False,
            exit_on_error=False,
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


def word_of(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(word_of, value))}]"
    if isinstance(value, dict):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _is_flag(action: Action) -> bool:
    """Whether nothing follows the option's name."""
    return action.nargs == 0 or "--print-config" in action.option_strings


def _written(action: Action) -> str:
    """How the value of an option is typed: a letter, a list of letters, or the choices."""
    kind = getattr(action, "_typehint", None) or action.type
    for part in typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,):
        inner = typing.get_args(part)
        if part is str:
            break
        if part in _VALUES:
            return _VALUES[part]
        if typing.get_origin(part) in (list, tuple) and inner[0] in _VALUES:
            several = [_VALUES[item] for item in inner if item in _VALUES]
            return f"[{','.join(several if len(several) > 1 else [*several, '...'])}]"
        if typing.get_origin(part) is typing.Literal:
            return f"{{{','.join(inner)}}}"
    if action.choices is not None:
        return f"{{{','.join(map(str, action.choices))}}}"
    metavar = action.metavar if isinstance(action.metavar, str) else None
    return metavar or action.dest.rpartition(".")[2].upper().replace("_", "-")


def _readable(text: str) -> str:
    """jsonargparse's complaint about a value, in the words of this package's errors."""
    key = re.search(r'Parser key "([\w.]+)": (.*)', text)
    if key is None:
        return text
    value = re.search(r"(?:Given|Got) value: (.*)$", text)
    expected_types = re.findall(r"Expected (?:an? )?(?:<class '(\w+)'>|typing\.(\S.*?\]))", text)
    if value is None or not expected_types:
        return f"{key[1]}: {key[2]}"
    expected = " or ".join(_WORDS.get(name, name) or special for name, special in expected_types)
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
