"""``admm-lip train``: data to certified network, in one run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import working
from .arguments import parse, say
from .comparators import method_of, radius_of_method, train_and_finish
from .compare import parser as parser_of_compare
from .hints import Hint, typed, verify, words_of
from .options import SettingsParser, add_threads_option, threads
from .outcome import Outcome
from .recipe_files import recipe_file, recipe_table
from .run_options import (
    ADMM,
    add_convnet_options,
    add_data_options,
    add_device_option,
    add_evaluate_options,
    add_folder_options,
    add_train_options,
    add_units_option,
)

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..records import RunFolder
    from ..research.comparators import Method
    from .recipes import Job

_EPILOG = """
examples:
  admm-lip train
      digits (8 x 8 pixels, embedded), 64-32-32-10 ReLU, proven L <= 1, into runs/digits-<time>/
  admm-lip train --bound 0.5 --model.hidden [64,64] --model.activation tanh
      another bound, another network
  admm-lip train --mu 0.01
      penalise mu L^2 instead of enforcing a bound; the L that results is proven all the same
  admm-lip train --data mnist --data-dir DIR --eps 0.5
      MNIST from DIR/MNIST/raw, trained to be certifiable at l2 radius 0.5
  admm-lip train --data csv:FILE --table.task regression --table.target price
      your own table
  admm-lip train --data csv:FILE --table.target t1,t2 --table.drop id --units raw --bound 50
      two targets, a column left out, and a bound in the units of the file
  admm-lip train --config runs/RUN/config.yaml --seed 1
      the settings of an earlier run, with one changed
  admm-lip train --method gradient --method-settings '{"total_variation": 0.3}'
      another training method (nothing is enforced; the L that results is proven all the same)
  admm-lip train --data mnist --data-dir DIR --convnet.name 2C2F --convnet.activation max_min
      plain convolutions under the bound, one norm ball per layer
  admm-lip train --method local --convnet.name 2C2F --convnet.activation clipped_relu --eps 0.1
      a convolutional network, trained with and certified by local bounds: a proof for each test
      sample instead of one constant; --method-settings '{"bound": "global"}' is the counterpart
  admm-lip train --recipe mnist_0.5 --data-dir DIR
      settings by name (below); any option changes one of them
  admm-lip train --resume runs/RUN
      continue a run that was interrupted or killed, to the result it would have had
  admm-lip train --resume runs/RUN --epochs 30
      train a run longer; its schedule is from there on that of a run of 30 epochs
"""


def parser() -> SettingsParser:
    """The options of the command."""
    made = SettingsParser(
        "train",
        """
        Train a network so that its l2 Lipschitz constant is at most --bound, prove that constant,
        and measure on test data which perturbations the network provably survives.

        Give --bound L (enforced in every round of training) or --mu MU (a penalty on L^2), not
        both.  Without options, everything has a default that works.
        """,
        f"{_EPILOG}\n{recipe_table()}",
    )
    made.add_settings_file()
    group = made.group("where to")
    add_folder_options(group, "runs/<data>-<time>", "run")
    group.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="Settings by name, below all others; the names are listed at the end (not given: "
        "none).",
    )
    group.add_argument("--quiet", action="store_true", help="Say nothing of how far it is.")
    _add_method_options(made)
    add_data_options(made)
    add_units_option(made)
    add_train_options(made)
    add_convnet_options(made)
    add_evaluate_options(made)
    add_threads_option(made)
    add_device_option(made)
    return made


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    made = parser()
    options = parse(made, arguments)
    from .run_folders import earlier_run

    earlier = earlier_run(options)
    named = None if options.recipe is None else recipe_file(options.recipe)
    below = named if earlier is None else earlier.config
    if below is not None:
        options = parse(made, ["--config", str(below), *arguments])
    method = _method(options)
    with threads(options.threads):
        return _train(options, earlier, method)


def _train(options: Namespace, earlier: RunFolder | None, method: Method | None) -> Outcome:
    from ..records import default_run_path
    from .recipes import prepare
    from .run_folders import continued_run, new_run

    job = prepare(options.as_dict())
    settings = job.settings | _method_settings(method)
    if earlier is None:
        path = options.run_dir or default_run_path("runs", options.data)
        opened = new_run(path, settings, options.overwrite)
    else:
        opened = continued_run(earlier, settings)
    with opened as folder, working("train", show=not options.quiet):
        return _admm(folder, job) if method is None else _compare(folder, job, method)


def _admm(folder: RunFolder, job: Job) -> Outcome:
    from ..training.signals import EXIT_CODES
    from ..training.train import train
    from .finish import finish_run, summary_lines
    from .run_folders import stopped_by_signal

    result = train(
        job.model,
        job.data.train,
        job.train,
        units=job.units,
        run_dir=folder.path,
        resume=folder.resumable,
    )
    stopped = result.stopped in EXIT_CODES
    summary = finish_run(folder, job, result, measure=not stopped)
    if stopped:
        say(f"round {len(result.history)} was the last")
        return stopped_by_signal(folder, "train", result.stopped)
    hints = _after_training(folder.path, job.settings, job.train.bound)
    for line in summary_lines(folder, summary, hints):
        say(line)
    return Outcome({"run": folder.path, **summary})


def _after_training(path: Path, settings: Mapping[str, Any], bound: float | None) -> list[Hint]:
    """What follows a trained network.

    Args:
        path: its run folder.
        settings: of the run.
        bound: that it was trained under, ``None`` where none was enforced.
    """
    data = {key: settings[key] for key in ("data", "data_dir", "table") if key in settings}
    again = ("--config", path / "config.yaml", "--bound", f"{(bound or 0.0) / 2:g}")
    return [
        verify(path),
        *([(typed("train", *again), "the same, under half the bound")] if bound else []),
        (
            typed("compare", *words_of(parser_of_compare(), data)),
            "penalty against enforced bound on these data, over a grid",
        ),
    ]


def _add_method_options(made: SettingsParser) -> None:
    group = made.group("method")
    group.add_argument(
        "--method",
        default=ADMM,
        help="admm, or another to compare with: nominal, weight_decay, lmt, gouk, parseval, "
        "spectral_penalty, product_margin, fgsm, pgd, trades, cayley, aol, sandwich, barrier, "
        "gradient, local (sll and torchlip end in layers that cannot be certified here).",
    )
    group.add_argument(
        "--method-settings",
        type=dict[str, Any],
        default={},
        metavar="JSON",
        help="Settings of that method. For local, eps is the radius trained for (not "
        "given: --eps, which is also the radius certified).",
    )


def _method(options: Namespace) -> Method | None:
    """The other method asked for; ``None`` is ADMM."""
    from .recipes import radius_of

    if options.method == ADMM:
        return None
    radius = radius_of_method(options.method, radius_of(options.as_dict()))
    return method_of(options.method, radius | dict(options.method_settings))


def _method_settings(method: Method | None) -> dict[str, Any]:
    """What ``config.yaml`` says of the method; nothing where it is ADMM."""
    if method is None:
        return {}
    return {"method": method.name, "method_settings": dataclasses.asdict(method)}


def _compare(folder: RunFolder, job: Job, method: Method) -> Outcome:
    from .finish import summary_lines
    from .run_folders import stopped_by_signal
    from .samples import sample_lines

    summary = train_and_finish(folder, job, method)
    if isinstance(summary, str):
        return stopped_by_signal(folder, "train", summary)
    if "samples" in summary:
        said = sample_lines(folder, summary)
    else:  # the method enforced no bound of its own
        said = summary_lines(folder, summary, _after_training(folder.path, job.settings, None))
    for line in said:
        say(line)
    return Outcome({"run": folder.path, **summary})
