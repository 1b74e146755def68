"""``admm-lip certify``: a proven Lipschitz bound for a network on disk."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ..records import RunFolderError
from .options import Parser, add_config, add_threads_option, config_of, parse, say, threads


def parser() -> Parser:
    """The options of the command."""
    from ..solvers import SolverConfig

    made = Parser(
        "certify",
        """
        Prove a Lipschitz bound for a network that is already trained: a run folder, or any folder
        with weights.safetensors and architecture.json.

        From Python: admm_lip.certify(model) for any supported torch module.
        """,
        """
        examples:
          admm-lip certify runs/RUN
          admm-lip certify FOLDER --output proof.json --solver.name clarabel
        """,
        usage="certify FOLDER [options]",
    )
    made.add_argument(
        "folder", type=str, help="Folder with weights.safetensors and architecture.json."
    )
    made.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="Where to write the certificate (not given: certificate.json in the folder, "
        "unless there is one).",
    )
    add_config(made, "solver", SolverConfig, "solver.")
    add_threads_option(made)
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    with threads(options.threads):
        return _certify(options)


def _certify(options: Namespace) -> int:
    from ..certificate import certify
    from ..chain import build_module
    from ..solvers import SolverConfig
    from ..storage import load_network
    from .finish import bounds_of, describe

    folder = Path(options.folder)
    output = Path(options.output) if options.output else folder / "certificate.json"
    if options.output and output.exists():
        raise RunFolderError(f"output: {output} exists; name another file with --output")
    model = build_module(load_network(folder))
    certificate = certify(model, solver=config_of(SolverConfig, options.solver))
    say(describe(model))
    for name, value in bounds_of(certificate).items():
        if value is not None:
            say(f"  {name:<14}{value:.9g}")
    if output.exists():
        say(f"  {output} is there already and is left as it is; --output FILE writes this one")
    else:
        certificate.save(output)
        say(f"  written to {output}")
    return 0
