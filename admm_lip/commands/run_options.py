"""Options that several commands share: data, network, training, evaluation.

No torch is imported here: a command explains itself at once.
"""

from __future__ import annotations

from typing import Any

from ..data import TableOptions, data_names
from ..evaluation.config import EvaluateConfig
from ..networks.model_config import ConvnetConfig, ModelConfig
from ..solvers.config import SolverConfig
from ..training.config import TrainConfig
from .arguments import UsageError
from .options import SettingsParser, add_config

ADMM = "admm"
CPU = "cpu"
_BASIC = ("bound", "mu", "epochs", "batch_size", "seed", "loss", "eps", "lr")


def add_data_options(parser: SettingsParser) -> None:
    """Options that say which data to use."""
    group = parser.group("data")
    group.add_argument(
        "--data",
        type=str,
        default="digits",
        help=f"{', '.join(data_names())}, csv:FILE, or images:FOLDER (a folder of pictures per "
        "class, in train/ and val/ or not; TinyImageNet as it is handed out).",
    )
    group.add_argument(
        "--data-dir",
        type=str | None,
        default=None,
        help="Folder of the image sets, laid out as torchvision does "
        "(not given: $ADMM_LIP_DATA, else ./data).",
    )
    add_config(parser, "data: CSV files", TableOptions, "table.")


def add_folder_options(group: Any, folder: str, work: str) -> None:
    """Where the work of a command is kept, and how it is gone on with.

    Args:
        group: of the options.
        folder: what it is when nobody says, for the help.
        work: what one run of the command is called.
    """
    group.add_argument(
        "--run-dir",
        type=str | None,
        metavar="FOLDER",
        default=None,
        help=f"Folder for the {work}, which must not exist yet (not given: {folder}).",
    )
    group.add_argument("--overwrite", action="store_true", help=f"Replace an earlier {work} there.")
    group.add_argument(
        "--resume",
        type=str | None,
        metavar="RUN",
        default=None,
        help=f"Folder of the {work} to continue (not given: a new one).",
    )


def add_units_option(parser: SettingsParser) -> None:
    """In which units the bound of a table is meant."""
    parser.group("data: CSV files").add_argument(
        "--units",
        choices=("standardised", "raw"),
        default="standardised",
        help="What --bound, --mu, --eps and radii are about: columns of mean 0 and deviation 1, or "
        "the file's own numbers. Raw distances add up columns of different units, so that the one "
        "of the smallest scale decides; both constants are proven and printed in any case.",
    )


def add_train_options(parser: SettingsParser, *, skip: tuple[str, ...] = ()) -> None:
    """Options of the network, the training and the solver."""
    chosen = ("bound", "epochs", "batch_size", "loss", "eps")
    add_config(parser, "network", ModelConfig, "model.", chosen=("hidden",))
    add_config(parser, "training", TrainConfig, only=_BASIC, skip=skip, chosen=chosen)
    add_config(parser, "training, in detail", TrainConfig, skip=(*_BASIC, "solver"))
    add_config(parser, "solver", SolverConfig, "solver.")


def add_convnet_options(parser: SettingsParser) -> None:
    """Options of a convolutional network, which takes the place of the perceptron."""
    add_config(parser, "convolutional network", ConvnetConfig, "convnet.")


def add_evaluate_options(parser: SettingsParser) -> None:
    """Options of the evaluation."""
    add_config(parser, "evaluation", EvaluateConfig, "evaluate.")


def add_device_option(parser: SettingsParser) -> None:
    """Where the network is while it is trained and attacked."""
    parser.add_argument(
        "--device",
        type=str,
        default=CPU,
        help="cpu, cuda or cuda:N: where the network is trained and attacked. Bounds are proven on "
        "the CPU in any case; digits differ from device to device.",
    )


def check_device(name: str) -> str:
    """The name of a device that this machine has.

    Raises:
        UsageError: for any other, naming those there are.
    """
    import torch

    count = torch.cuda.device_count()
    here = [CPU, *(["cuda"] if count else []), *(f"cuda:{k}" for k in range(count))]
    if name not in here:
        raise UsageError(f"device: expected one of {', '.join(here)} on this machine, got {name!r}")
    return name
