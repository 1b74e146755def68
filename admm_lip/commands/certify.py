"""``admm-lip certify``: a proof for a network that is on disk already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import shown
from ..lipschitz import NORMS
from ..progress import working
from .arguments import UsageError, parse, say
from .certify_local import (
    LocalProof,
    LocalRun,
    add_local_options,
    check_vnnlib,
)
from .hints import lines, verify
from .in_units import RAW, STANDARDISED
from .options import SettingsParser, add_config, add_threads_option, config_of, threads
from .outcome import Outcome

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..certificates.certificate import AnyCertificate, FunctionalCertificate
    from ..local.result import LocalCertificate
    from ..networks.network import Network
    from ..shown import Fact
    from ..solvers import SolverConfig
    from ..units import Units
    from .placing import Held

_KINDS = ("global", "pairwise", "per_output", "local")


def parser() -> SettingsParser:
    """The options of the command."""
    made = SettingsParser(
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
          admm-lip certify FOLDER --kind local --data mnist --data-dir DIR --radius 0.1
              what holds on the ball around each test row; without --radius, the largest balls
          admm-lip certify model.onnx --kind local --vnnlib FILE
              whether a box of inputs can have unsafe outputs: proven, refuted by an input, or open
          admm-lip certify FOLDER --output proof.json --solver.name clarabel
        """,
        usage="certify PATH [options]",
    )
    made.add_settings_file()
    made.add_argument(
        "network",
        type=str,
        help="Folder with weights.safetensors and architecture.json, or an ONNX, safetensors or "
        "torch.export file.",
    )
    _add_claim_options(made)
    add_local_options(made)
    _add_solver_options(made)
    add_threads_option(made)
    return made


def _add_claim_options(made: SettingsParser) -> None:
    made.add_argument(
        "--kind",
        default="global",
        choices=_KINDS,
        help="All outputs together, every difference of two outputs, every output, or the balls "
        "around the rows of a data set.",
    )
    made.add_argument("--norm", default="l2", choices=NORMS, help="Norm of input changes.")
    made.add_argument(
        "--input-scale",
        type=float | list[float] | None,
        default=None,
        help="Where the model takes standardised inputs: the scale of every feature, or one "
        "number; distances are then in raw units (not given: in the model's own).",
    )
    made.add_argument(
        "--units",
        type=Literal["standardised", "raw"] | None,
        metavar="{standardised,raw}",
        default=None,
        help="Of a run on a table: bounds of the raw function, in the units of its file, or of the "
        "standardised one (not given: raw).",
    )
    made.add_argument(
        "--input-shape",
        type=list[int] | None,
        default=None,
        help="Shape of one input, such as [1,28,28]; needed where the file does not say it (not "
        "given: as the file says).",
    )
    made.add_argument(
        "--output",
        type=str | None,
        metavar="FILE",
        default=None,
        help="Where to write the certificate (not given: certificate.json in the folder, or "
        "NAME.certificate.json beside the file, in place of an earlier one of the same claim; for "
        "--kind local local.safetensors).",
    )


def _add_solver_options(made: SettingsParser) -> None:
    from ..solvers.config import SolverConfig

    add_config(made, "solver", SolverConfig, "solver.", skip=("tol",))
    made.group("solver").add_argument(
        "--solver.tol",
        type=float | None,
        default=None,
        help="Relative gap in L^2 to prove (not given: 1e-6 for all outputs together, 1e-3 for "
        "each difference or output).",
    )


def run(arguments: list[str]) -> Outcome:
    """Run the command."""
    options = parse(parser(), arguments)
    with threads(options.threads):
        return _certify(options)


def _certify(options: Namespace) -> Outcome:
    from ..certificates.beside import certificate_beside
    from ..foreign import open_network
    from .finish import describe
    from .placing import check_replaceable, stated

    path = Path(options.network)
    if options.output:
        check_replaceable(Path(options.output), options.kind)
    shape = tuple(options.input_shape) if options.input_shape else None
    network = open_network(path, shape)
    if options.vnnlib:
        return check_vnnlib(options, network)
    with working(f"certify {describe(network)}"):
        proof = _PROOFS[options.kind](options, network)
    say(describe(network))
    for line in [*shown.lines([proof.distance, *proof.certificate.facts()]), *proof.more()]:
        say(line)
    output, before = _written(options, proof)
    more = () if output == certificate_beside(path) else ("--certificate", output)
    for line in lines([verify(path, *more)]):
        say(line)
    claim = shown.record_of(proof.certificate.facts()) | stated(proof.certificate)
    about = {"network": path, "layers": describe(network), "written": output}
    replaced = before and stated(before)
    return Outcome({**about, "replaced": replaced, **claim, **proof.levels()})


def _written(options: Namespace, proof: _Proof) -> tuple[Path, Held | None]:
    """Where the certificate was written, and what was there before."""
    from ..certificates.beside import certificate_beside
    from .placing import held, instead, leaned_on_beside, place_of

    usual = certificate_beside(Path(options.network), options.kind)
    output = Path(options.output) if options.output else place_of(usual, proof.certificate)
    before = held(output)
    proof.certificate.save(output)
    say(f"  written to {output}{instead(before, proof.certificate)}")
    if proof.leaned_on is not None:
        proof.leaned_on.save(leaned_on_beside(output))
        say(f"  and what it leans on to {leaned_on_beside(output)}")
    if proof.local is not None:
        for line in proof.local.close():
            say(line)
    return output, before


@dataclass(frozen=True, eq=False)
class _Proof:
    """A certificate, how it measures, and the run of balls that it is of."""

    certificate: AnyCertificate | LocalCertificate
    distance: Fact
    local: LocalProof | None = None

    @property
    def leaned_on(self) -> FunctionalCertificate | None:
        """The certificate for all inputs that a local one leans on."""
        return None if self.local is None else self.local.whole

    def more(self) -> list[str]:
        """The table of levels, of balls."""
        return [] if self.local is None else self.local.lines()

    def levels(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {} if self.local is None else {"levels": self.local.found.by_level()}


def _solver(options: Namespace, usual: float) -> SolverConfig:
    from ..solvers import SolverConfig

    tol = usual if options.solver.tol is None else options.solver.tol
    made: SolverConfig = config_of(SolverConfig, options.solver, tol=tol)
    return made


def _distance(options: Namespace, network: Network) -> Fact:
    from ..certificates.claim_matrices import distance_of
    from ..shown import word

    units = _units(options)
    if units is not None:
        said = f"{units.ratio()}, {options.norm}, in the units of the run's data"
        return word("distance", "unit", said)
    said = distance_of(network, options.norm, options.input_scale is not None)
    return word("distance", "inputs", said)


def _measure(options: Namespace) -> dict[str, Any]:
    """How distances are measured, as arguments of ``certify``."""
    return {
        "norm": options.norm,
        "units": _units(options),
        "input_scale": options.input_scale,
    }


def _units(options: Namespace) -> Units | None:
    """The units of the run's data, where bounds are asked for in them."""
    from ..predictions import units_of
    from ..records import RunFolder

    path = Path(options.network)
    found = units_of(RunFolder(path)) if path.is_dir() else None
    if options.units == RAW and found is None:
        raise UsageError(f"units: expected a run on a table, {path} holds no units of its data")
    given = options.input_scale is not None
    return None if given or options.units == STANDARDISED else found


def _prove_global(options: Namespace, network: Network) -> _Proof:
    from ..api import certify
    from ..solvers import SolverConfig

    proven = certify(
        network,
        **_measure(options),
        solver=_solver(options, SolverConfig().tol),
    )
    return _Proof(proven, _distance(options, network))


def _prove_functionals(options: Namespace, network: Network) -> _Proof:
    from ..api import certify
    from ..certificates.functionals import TOL

    functionals = certify(
        network,
        kind=options.kind,
        **_measure(options),
        solver=_solver(options, TOL),
    )
    return _Proof(functionals, _distance(options, network))


def _prove_local(options: Namespace, network: Network) -> _Proof:
    """Balls around test rows: at one radius, or the largest ones."""
    from ..certificates.beside import certificate_beside
    from ..certificates.functionals import TOL

    measure = _measure(options)
    units = measure.pop("units")
    if units is not None:
        measure["input_scale"] = units.input_scale
    output = Path(options.output or certificate_beside(Path(options.network), "local"))
    local = LocalRun(options, network, measure, _solver(options, TOL), output).prove()
    return _Proof(local.found, _distance(options, network), local)


# Kind -> the certificate, and how it measures.
_PROOFS: Mapping[str, Callable[[Namespace, Network], _Proof]] = {
    "global": _prove_global,
    "pairwise": _prove_functionals,
    "per_output": _prove_functionals,
    "local": _prove_local,
}
