"""``admm-lip project``: the nearest network that meets a bound, from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..records import CONFIG, create_run, read_yaml
from .options import (
    Parser,
    UsageError,
    add_config,
    add_threads_option,
    config_of,
    parse,
    say,
    threads,
)


def parser() -> Parser:
    """The options of the command."""
    from ..solvers import SolverConfig

    made = Parser(
        "project",
        """
        Move the weights of a trained network to the nearest ones that meet a bound, and prove it.
        Biases are kept.  Without retraining this costs accuracy: it is for small corrections.
        """,
        """
        examples:
          admm-lip project runs/RUN --bound 0.5
          admm-lip project runs/RUN --bound 0.5 --run-dir runs/halved
        """,
        usage="project PATH --bound L [options]",
    )
    made.add_argument(
        "network",
        type=str,
        help="Folder with weights.safetensors and architecture.json, or an ONNX, safetensors or "
        "torch.export file.",
    )
    made.add_argument("--bound", type=float | None, default=None, help="The Lipschitz bound.")
    made.add_argument(
        "--run-dir",
        type=str | None,
        default=None,
        help="Folder for the result (not given: PATH-bound<L>).",
    )
    made.add_argument("--overwrite", action="store_true", help="Replace an earlier run there.")
    add_config(made, "solver", SolverConfig, "solver.")
    add_threads_option(made)
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    if options.bound is None:
        raise UsageError("bound: expected --bound L, a number > 0, got none")
    with threads(options.threads):
        return _project(options)


def _project(options: Namespace) -> int:
    from ..foreign import open_network
    from ..networks.chain import build_module
    from ..solvers import SolverConfig
    from ..training.project import project
    from .finish import finish, summary_lines
    from .recipes import prepare

    source = Path(options.network)
    model = build_module(open_network(source))
    settings = _settings(source, options.bound)
    job = prepare(settings) if settings else None
    solver = config_of(SolverConfig, options.solver)
    projected = project(model, bound=options.bound, solver=solver)
    folder = create_run(
        options.run_dir
        or f"{source if source.is_dir() else source.with_suffix('')}-bound{options.bound:g}",
        settings or {"bound": options.bound},
        overwrite=options.overwrite,
    )
    about = {"projected_from": source.name, "distance": projected.distance}
    summary = finish(folder, projected.model, projected.certificate, job, about)
    say(f"moved by {projected.distance:.4g} (Frobenius norm of all weights together)")
    for line in summary_lines(folder, summary):
        say(line)
    return 0


def _settings(source: Path, bound: float) -> dict[str, Any] | None:
    """The source run's settings under the new bound; ``None`` where the source is not a run."""
    if not (source / CONFIG).is_file():
        return None
    return {**read_yaml(source / CONFIG), "bound": bound, "mu": None}
