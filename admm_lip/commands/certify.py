"""``admm-lip certify``: a proof for a network that is on disk already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ..records import RunFolderError
from .options import Parser, add_config, add_threads_option, config_of, parse, say, threads

if TYPE_CHECKING:
    from ..certificates.certificate import AnyCertificate
    from ..networks.network import Network

_KINDS = ("global", "pairwise", "per_output")
_NORMS = ("l2", "linf")


def parser() -> Parser:
    """The options of the command."""
    from ..solvers import SolverConfig

    made = Parser(
        "certify",
        """
        Prove a Lipschitz bound for a network that is already trained: a run folder, any folder
        with weights.safetensors and architecture.json, an ONNX file, or a torch.export archive.

        From Python: admm_lip.certify(model) for any supported torch module.
        """,
        """
        examples:
          admm-lip certify runs/RUN
          admm-lip certify model.onnx --kind pairwise
              a bound for every difference of two outputs: the strongest radii
          admm-lip certify FOLDER --output proof.json --solver.name clarabel
        """,
        usage="certify PATH [options]",
    )
    made.add_argument(
        "network",
        type=str,
        help="Folder with weights.safetensors and architecture.json, or an ONNX, safetensors or "
        "torch.export file.",
    )
    made.add_argument(
        "--kind",
        default="global",
        choices=_KINDS,
        help="All outputs together, every difference of two outputs, or every output.",
    )
    made.add_argument("--norm", default="l2", choices=_NORMS, help="Norm of input changes.")
    made.add_argument(
        "--input-scale",
        type=float | list[float] | None,
        default=None,
        help="Where the model takes standardised inputs: the scale of every feature, or one "
        "number; distances are then in raw units.",
    )
    made.add_argument(
        "--input-shape",
        type=list[int] | None,
        default=None,
        help="Shape of one input, such as [1,28,28]; needed where the file does not say it.",
    )
    made.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="Where to write the certificate (not given: certificate.json in the folder, or "
        "NAME.certificate.json beside the file, unless it is there already).",
    )
    add_config(made, "solver", SolverConfig, "solver.", skip=("tol",))
    made.add_argument(
        "--solver.tol",
        type=float | None,
        default=None,
        help="Relative gap in L^2 to prove (not given: 1e-6 for all outputs together, 1e-3 for "
        "each difference or output).",
    )
    add_threads_option(made)
    return made


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(parser(), arguments)
    with threads(options.threads):
        return _certify(options)


def _certify(options: Namespace) -> int:
    from ..foreign import open_network
    from ..networks.chain import build_module
    from .finish import describe

    path = Path(options.network)
    beside = path / "certificate.json" if path.is_dir() else path.with_suffix(".certificate.json")
    output = Path(options.output) if options.output else beside
    if options.output and output.exists():
        raise RunFolderError(f"output: {output} exists; name another file with --output")
    shape = tuple(options.input_shape) if options.input_shape else None
    network = open_network(path, shape)
    certificate, lines = _prove(options, network)
    say(describe(build_module(network)))
    for line in lines:
        say(f"  {line}")
    if output.exists():
        say(f"  {output} is there already and is left as it is; --output FILE writes this one")
    else:
        certificate.save(output)
        say(f"  written to {output}")
    return 0


def _prove(options: Namespace, network: Network) -> tuple[AnyCertificate, list[str]]:
    """The certificate of the kind asked for, and what to say of it."""
    from ..certificates.certificate import certify
    from ..certificates.functionals import TOL
    from ..certificates.restate import distance_of
    from ..solvers import SolverConfig
    from .finish import bounds_of

    usual = SolverConfig().tol if options.kind == "global" else TOL
    tol = usual if options.solver.tol is None else options.solver.tol
    solver = config_of(SolverConfig, options.solver, tol=tol)
    scale, norm = options.input_scale, options.norm
    lines = [f"{'inputs':<14}{distance_of(network, norm, scale is not None)}"]
    if options.kind == "global":
        proven = certify(network, norm=norm, input_scale=scale, solver=solver)
        values = bounds_of(proven).items()
        return proven, lines + [f"{name:<14}{v:.9g}" for name, v in values if v is not None]
    functionals = certify(network, kind=options.kind, norm=norm, input_scale=scale, solver=solver)
    lips = functionals.lips
    gap = max((b.lip - b.lower_lip) / b.lip if b.lip > 0.0 else 0.0 for b in functionals.bounds)
    return functionals, [
        *lines,
        f"{options.kind}: {len(lips)} bounds, from {lips.min():.9g} to {lips.max():.9g}",
        f"{'mean':<14}{lips.mean():.9g}",
        f"{'largest gap':<14}{gap:.2g}, relative, to what any multiplier could prove",
    ]
