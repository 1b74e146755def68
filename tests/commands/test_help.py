"""``--help`` of every command: at once, in a user's words, and complete."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from argparse import SUPPRESS
from pathlib import Path

import pytest

from admm_lip import cli
from admm_lip.commands.arguments import Parser, is_flag
from admm_lip.networks import convnets, models
from admm_lip.networks.model_config import CONVNET_ACTIVATIONS, PERCEPTRON_ACTIVATIONS
from admm_lip.research.comparators import METHODS
from admm_lip.training.losses import LOSSES
from admm_lip.training.optimize import OPTIMIZERS, SCHEDULES

COMMANDS = Path(cli.__file__).parent / "commands"
# What belongs to the source and not to its user.
INTERNAL = (
    *(r"\bNone\b", r"\bnull\b", r"``", r":class:", r"\bself\b", r"\btype:", r"dataclass"),
    *(r"\b\w+\.py\b", r"(tuple|list|dict|Literal|Mapping)\[", r"\| ", r"\(\)", r"\w+_dir\b"),
    *(
        r"\b[A-Z]{3,}_[A-Z]+\b(?<!ADMM_LIP)",
        r"OPTIMIZERS|SCHEDULES|LOSSES",
        r"\b[a-z]+\.[A-Z]{3,}\b",
        r"admm_lip\.(?!certify\(model\))",
    ),
)
HEAVY = ("torch", "numpy", "scipy", "cvxpy", "matplotlib", "sklearn", "onnx", "pandas")


def parser_of(command: str) -> Parser:
    made: Parser = importlib.import_module(f"admm_lip.commands.{command}").parser()
    return made


@pytest.fixture(params=cli._COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom admm_lip.cli import main\n"
        f"assert main([{command!r}, '--help']) == 0\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: admm-lip {command}")
    assert "example" in done.stdout


def test_a_wrong_option_is_named_without_torch() -> None:
    code = (
        "import sys\nfrom admm_lip.cli import main\n"
        "assert main(['certify', 'x', '--knd', 'local']) == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean --kind?" in done.stderr


def test_help_says_nothing_of_the_source(command: str) -> None:
    text = parser_of(command).format_help()
    # The examples and lists of values that a person types stay as they are.
    found = [word for pattern in INTERNAL for word in re.findall(f".*{pattern}.*", text)]
    assert found == []


def test_every_option_is_explained_with_what_holds_without_it(command: str) -> None:
    for action in parser_of(command)._actions:
        assert action.help, action.dest
        if action.option_strings and not is_flag(action) and action.default in (None, SUPPRESS):
            assert "not given: " in action.help, action.option_strings


def test_no_heading_stands_twice(command: str) -> None:
    titles = re.findall(r"^(\S.*):$", parser_of(command).format_help(), re.MULTILINE)
    assert len(titles) == len(set(titles))


def test_values_are_written_as_they_are_typed() -> None:
    text = " ".join(parser_of("train").format_help().split())
    for words in (
        "--epochs N ",
        "--lr X ",
        "--model.hidden [N,...] ",
        "--model.init {orthogonal,torch} ",
        "--centre {true,false} ",
        "--run-dir FOLDER ",
        "(default: [native,scs])",
        "(default: 0.01)",
    ):
        assert words in text
    assert "--local.box [X,X] " in parser_of("certify").format_help()
    assert "--input-scale+" not in parser_of("certify").format_help()


@pytest.mark.parametrize(
    "names",
    [OPTIMIZERS, SCHEDULES, LOSSES, METHODS, models.ACTIVATIONS, convnets.ACTIVATIONS],
    ids=["optimizers", "schedules", "losses", "methods", "activations", "convnet activations"],
)
def test_every_name_that_can_be_chosen_is_in_the_help(names: dict[str, object]) -> None:
    said = set(re.findall(r"[\w-]+", parser_of("train").format_help().replace("-\n", "-")))
    assert not set(names) - said


def test_the_named_activations_are_those_that_are_built() -> None:
    assert tuple(models.ACTIVATIONS) == PERCEPTRON_ACTIVATIONS
    assert tuple(convnets.ACTIVATIONS) == CONVNET_ACTIVATIONS


def test_settings_are_printed_as_a_file_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--lr", "0.02", "--print-config"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert parser_of("train").parse_args(["--config", str(file)]).lr == 0.02


def test_every_option_that_a_text_names_exists() -> None:
    """Errors and hints say ``--name``: some command must take it."""
    actions = [action for name in cli._COMMANDS for action in parser_of(name)._actions]
    known = {name for action in actions for name in action.option_strings}
    known |= {
        "--debug",
        "--json",
        "--version",
        "--name",
        "--batch_size",
    }  # two of cli.py, two of docstrings
    for path in (
        *COMMANDS.glob("*.py"),
        *(COMMANDS.parent / f"{n}.py" for n in ("cli", "records")),
    ):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", path.read_text()))
        assert not named - known, path.name
