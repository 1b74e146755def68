"""``admm-lip project``: the nearest network that meets a bound, from a trained one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import shown
from ..data import data_names
from ..progress import working
from .arguments import UsageError, parse, say
from .hints import Hint, typed, verify, words_of
from .in_units import RAW
from .options import SettingsParser, add_config, add_threads_option, config_of, flat, threads
from .outcome import Outcome

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import nn

    from ..records import RunFolder
    from ..training.projected import Projection
    from ..units import Units
    from .recipes import Job


def parser() -> SettingsParser:
    """The options of the command."""
    from ..solvers.config import SolverConfig
    from .run_options import add_folder_options

    made = SettingsParser(
        "project",
        """
        Move the weights of a trained network to the nearest ones that meet a bound, and prove it.
        Biases are kept.  Without retraining this costs accuracy: it is for small corrections.
        With --finetune a few epochs follow, with the network itself as teacher, and the report
        says what they bought on the data's test part.
        """,
        """
        examples:
          admm-lip project runs/RUN --bound 0.5
          admm-lip project runs/RUN --bound 0.5 --run-dir runs/halved
          admm-lip project FOLDER --bound 1 --finetune mnist --data-dir DIR --epochs 2
          admm-lip project --resume FOLDER-bound1
              continue a fine-tuning that was interrupted or killed
        """,
        usage="project PATH --bound L [options]",
    )
    made.add_settings_file()
    made.add_argument(
        "network",
        type=str | None,
        nargs="?",
        default=None,
        help="Folder with weights.safetensors and architecture.json, or an ONNX, safetensors or "
        "torch.export file.",
    )
    made.add_argument(
        "--bound",
        type=float | None,
        default=None,
        help="The Lipschitz bound to meet (not given: an error).",
    )
    made.add_argument(
        "--units",
        type=Literal["standardised", "raw"] | None,
        metavar="{standardised,raw}",
        default=None,
        help="Of a run on a table: whether the bound is one of standardised columns or of the "
        "file's own numbers (not given: as the run was trained).",
    )
    add_folder_options(made, "PATH-bound<L>", "projection")
    _add_finetune_options(made)
    add_config(made, "solver", SolverConfig, "solver.")
    add_threads_option(made)
    return made


def _add_finetune_options(made: SettingsParser) -> None:
    from ..training.config import FinetuneConfig

    group = made.group("fine-tuning")
    group.add_argument(
        "--finetune",
        type=str | None,
        metavar="DATA",
        default=None,
        help=f"Data to fine-tune on: {', '.join(data_names())}, or csv:FILE (not given: none).",
    )
    group.add_argument(
        "--data-dir",
        type=str | None,
        default=None,
        help="Folder of the image sets (not given: $ADMM_LIP_DATA, else ./data).",
    )
    group.add_argument("--epochs", type=int, default=2, help="Passes over these data.")
    add_config(made, "fine-tuning, in detail", FinetuneConfig)


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    made = parser()
    options = parse(made, arguments)
    from ..records import read_yaml
    from .run_folders import earlier_run

    earlier = earlier_run(options)
    if earlier is not None:
        made.set_defaults(flat(read_yaml(earlier.project)))
        options = parse(made, arguments)
    if options.network is None:
        raise UsageError("PATH: expected the folder or file of a network, or --resume RUN")
    if options.bound is None:
        raise UsageError("bound: expected --bound L, a number > 0, got none")
    with threads(options.threads), working("project"):
        return _project(options, earlier)


def _project(options: Namespace, earlier: RunFolder | None) -> Outcome:
    from ..foreign import open_network
    from ..networks.built import build_module
    from ..predictions import units_of
    from ..records import RunFolder, write_yaml
    from .run_folders import continued_run, new_run

    source = Path(options.network)
    network = open_network(source)
    model = _still(build_module(network))
    units = units_of(RunFolder(source)) if source.is_dir() else None
    settings = _settings(source, options.bound, options.units) or {"bound": options.bound}
    if RAW in (settings.get("units"), options.units) and units is None:
        raise UsageError(f"units: raw goes with a run on a table, got {source}")
    asked = {k: v for k, v in options.as_dict().items() if k not in _WHERE}
    if earlier is None:
        beside = source if source.is_dir() else source.with_suffix("")
        path = options.run_dir or f"{beside}-bound{options.bound:g}"
        opened = new_run(path, settings, options.overwrite)
    else:
        opened = continued_run(earlier, asked, ("data_dir",), earlier.project)
    with opened as folder:
        write_yaml(folder.project, asked)
        return _into(folder, model, options, units, network.input_shape or ())


_WHERE = ("run_dir", "overwrite", "resume", "config")


def _still(model: nn.Module) -> nn.Module:
    """The network with what layers hold beside weights and biases frozen: it stays."""
    from torch import nn

    for part in model.modules():
        if not isinstance(part, nn.Linear | nn.Conv2d):
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(False)
    return model


def _into(
    folder: RunFolder,
    model: nn.Module,
    options: Namespace,
    units: Units | None,
    shape: tuple[int, ...],
) -> Outcome:
    """Project, and leave the result in the folder.

    Args:
        folder: for the result.
        model: the network.
        options: of the command.
        units: those of the run's data.
        shape: of one input.
    """
    from ..records import read_yaml
    from ..training.signals import EXIT_CODES
    from .finish import finish, summary_lines
    from .run_folders import stopped_by_signal

    settings = read_yaml(folder.config)
    job = _judging(settings, units) if "data" in settings else None
    raw = settings.get("units") == RAW
    projected = _moved(model, options, folder, units, raw, shape)
    source = Path(options.network)
    about: dict[str, Any] = {"projected_from": source.name, "distance": projected.distance}
    if options.finetune is not None:
        about["finetuned"] = {"data": options.finetune, "epochs": options.epochs}
    if projected.stopped in EXIT_CODES:
        finish(folder, projected.model, projected.certificate, None, about, units)
        return stopped_by_signal(folder, "project", projected.stopped)
    if options.finetune is not None:
        say("measuring what that bought: a bound for every pair of classes, before and after")
    for name, judged in (("before", projected.before), ("after", projected.after)):
        if judged is not None:
            about[name] = asdict(judged)
    summary = finish(folder, projected.model, projected.certificate, job, about, units)
    hints = [verify(folder.path), _half(options)]
    own = [fact for fact in projected.facts() if fact not in projected.certificate.facts()]
    for line in (*shown.lines(own), *summary_lines(folder, summary, hints)):
        say(line)
    return Outcome({"run": folder.path, **summary})


def _judging(settings: dict[str, Any], units: Units | None) -> Job | None:
    """The run's data, to judge the result on; ``None`` where they are not at hand any more."""
    from ..data import DataError
    from .recipes import prepare

    try:
        job = prepare(settings)
    except DataError as error:
        say(f"not measured on data: {error}")
        return None
    if job.data.units != units:
        say(f"not measured on data: {job.data.name} has changed since the run")
        return None
    return job


def _moved(
    model: nn.Module,
    options: Namespace,
    folder: RunFolder,
    own: Units | None,
    raw: bool,
    shape: tuple[int, ...],
) -> Projection:
    """Projected, or fine-tuned where there are data for it.

    Args:
        model: the network.
        options: of the command.
        folder: for checkpoints.
        own: the units of the run's data.
        raw: whether the bound is meant in them.
        shape: of one input.
    """
    from ..data import load_data
    from ..solvers import SolverConfig
    from ..training.finetune import FinetuneConfig
    from ..training.project import project

    solver, units = config_of(SolverConfig, options.solver), own if raw else None
    if options.finetune is None:
        asked = {"bound": options.bound, "units": units, "solver": solver}
        return project(model, **asked, input_shape=shape)
    data = load_data(options.finetune, options.data_dir)
    data = data.as_images() if len(shape) == 3 else data
    if own is not None and data.units != own:
        raise UsageError(
            f"finetune: the columns of {data.name} are standardised otherwise than those of the run"
        )
    return project(
        model,
        bound=options.bound,
        units=units,
        solver=solver,
        finetune=data.train,
        epochs=options.epochs,
        judge=data.test,
        config=config_of(FinetuneConfig, options),
        run_dir=folder.path,
        resume=folder.resumable,
    )


def _half(options: Namespace) -> Hint:
    """The same projection to half the bound, into its own folder."""
    half = 0.5 * options.bound
    where = {"run_dir": f"{options.run_dir}-bound{half:g}"} if options.run_dir else {}
    asked = {**options.as_dict(), **where, "bound": half, "overwrite": False, "resume": None}
    command = typed("project", options.network, *words_of(parser(), asked))
    return command, "the same, to half the bound"


def _settings(source: Path, bound: float, units: str | None) -> dict[str, Any] | None:
    """The source run's settings under the new bound; ``None`` where the source is not a run."""
    from ..records import CONFIG, read_yaml
    from .run_options import CPU

    if not (source / CONFIG).is_file():
        return None
    own = {} if units is None else {"units": units}
    return {**read_yaml(source / CONFIG), "bound": bound, "mu": None, "device": CPU, **own}
