"""``admm-lip train``: data to certified network, in one run folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from ..records import RunFolder, create_run, default_run_path, open_run
from .comparators import ADMM, method_of, train_and_finish
from .options import Parser, UsageError, add_threads_option, parse, say, threads

if TYPE_CHECKING:
    from ..methods import Method
    from .recipes import Job

_INTERRUPTED = 130
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
  admm-lip train --config runs/RUN/config.yaml --seed 1
      the settings of an earlier run, with one changed
  admm-lip train --method gradient --method-settings '{"total_variation": 0.3}'
      another training method (nothing is enforced; the L that results is proven all the same)
  admm-lip train --resume runs/RUN
      continue a run that was interrupted, to the result it would have had
"""


def parser() -> Parser:
    """The options of the command."""
    from .recipes import add_data_options, add_evaluate_options, add_train_options

    made = Parser(
        "train",
        """
        Train a network so that its l2 Lipschitz constant is at most --bound, prove that constant,
        and measure on test data which perturbations the network provably survives.

        Give --bound L (enforced in every round of training) or --mu MU (a penalty on L^2), not
        both.  Without options, everything has a default that works.
        """,
        _EPILOG,
    )
    made.add_argument("--config", action="config", help="YAML file of options; later ones win.")
    group = made.add_argument_group("where to")
    group.add_argument(
        "--run-dir",
        type=str | None,
        default=None,
        help="Folder for the run, which must not exist yet (not given: runs/<data>-<time>).",
    )
    group.add_argument("--overwrite", action="store_true", help="Replace an earlier run there.")
    group.add_argument(
        "--resume", type=str | None, default=None, help="Run folder to continue.", metavar="RUN"
    )
    group.add_argument("--quiet", action="store_true", help="No progress bar.")
    _add_method_options(made)
    add_data_options(made)
    add_train_options(made)
    add_evaluate_options(made)
    add_threads_option(made)
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    made = parser()
    options = parse(made, arguments)
    method = _method(options)
    earlier = _earlier_run(options)
    if earlier is not None:
        options = parse(made, ["--config", str(earlier.config), *arguments])
    with threads(options.threads):
        return _train(options, earlier, method)


def _train(options: Namespace, earlier: RunFolder | None, method: Method | None) -> int:
    from ..training.train import train
    from .finish import finish_run, summary_lines
    from .recipes import prepare

    job = prepare(options.as_dict())
    folder = earlier or create_run(
        options.run_dir or default_run_path("runs", options.data),
        job.settings | _method_settings(options),
        overwrite=options.overwrite,
    )
    progress = not options.quiet and sys.stderr.isatty()
    if method is not None:
        return _compare(folder, job, method, progress)
    try:
        result = train(
            job.model,
            job.data.train,
            job.train,
            run_dir=folder.path,
            resume=earlier is not None,
            progress=progress,
        )
    except BaseException:
        folder.remove_if_unused()
        raise
    stopped = result.stopped == "interrupted"
    summary = finish_run(folder, job, result, measure=not stopped)
    if stopped:
        say(f"interrupted after round {len(result.history)}; what it had is in {folder.path}")
        say(f"continue with: admm-lip train --resume {folder.path}")
        return _INTERRUPTED
    for line in summary_lines(folder, summary):
        say(line)
    return 0


def _add_method_options(made: Parser) -> None:
    group = made.add_argument_group("method")
    group.add_argument(
        "--method",
        default=ADMM,
        help="admm, or another to compare with: nominal, weight_decay, lmt, gouk, parseval, "
        "spectral_penalty, product_margin, fgsm, pgd, trades, cayley, aol, sandwich, barrier, "
        "gradient (sll and torchlip end in layers that cannot be certified here).",
    )
    group.add_argument(
        "--method-settings",
        type=dict[str, Any],
        default={},
        help="Settings of that method, as JSON.",
    )


def _method(options: Namespace) -> Method | None:
    """The other method asked for; ``None`` is ADMM."""
    if options.method == ADMM:
        return None
    if options.resume is not None:
        raise UsageError("resume: only runs of --method admm can be continued; start it afresh")
    return method_of(options.method, options.method_settings)


def _method_settings(options: Namespace) -> dict[str, Any]:
    """What ``config.yaml`` says of the method; nothing where it is ADMM."""
    if options.method == ADMM:
        return {}
    return {"method": options.method, "method_settings": dict(options.method_settings)}


def _compare(folder: RunFolder, job: Job, method: Method, progress: bool) -> int:
    from .finish import summary_lines

    try:
        summary = train_and_finish(folder, job, method, progress=progress)
    except BaseException:
        folder.remove_if_unused()
        raise
    for line in summary_lines(folder, summary):
        say(line)
    return 0


def _earlier_run(options: Namespace) -> RunFolder | None:
    if options.resume is None:
        return None
    if options.run_dir is not None or options.overwrite:
        raise UsageError(
            "resume: the run continues in its own folder; leave out --run-dir and --overwrite"
        )
    return open_run(options.resume)
