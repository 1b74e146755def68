"""``admm-lip certify --kind local``: the balls around test rows, from the cheapest level on.

Batches are kept beside the output until it is written, so that the same command goes on where an
ended one was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import working
from ..shown import Row, record_of, share
from ..shown import lines as fact_lines
from .arguments import UsageError, say
from .options import SettingsParser, add_config, config_of
from .outcome import Outcome

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import Tensor

    from ..certificates.certificate import FunctionalCertificate
    from ..data import DataSet, TableOptions
    from ..local.config import LocalConfig
    from ..local.result import LocalCertificate
    from ..networks.network import Network
    from ..solvers import SolverConfig

GROUP = "kind local"
# Rows of the table, and the steps of the attack on what it leaves.
_LINE = "  {:<12}{:>7}{:>9}{:>15}"
_STEPS, _RESTARTS = 20, 2
# That a specification may take, unless it is said.
_SECONDS = 60.0


def add_local_options(made: SettingsParser) -> None:
    """The options of this kind."""
    from ..local.config import LocalConfig

    group = made.group(GROUP)
    group.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="Data set whose test rows the balls are around, such as digits or csv:FILE (not "
        "given: an error for this kind, and nothing for the others).",
    )
    group.add_argument(
        "--data-dir",
        type=str | None,
        default=None,
        help="Folder of the image sets (not given: $ADMM_LIP_DATA, else ./data).",
    )
    group.add_argument(
        "--radius",
        type=float | None,
        default=None,
        help="Radius of the balls (not given: the largest at which each row's class is proven).",
    )
    group.add_argument(
        "--samples", type=int, default=1000, help="Test rows, the first ones; at most all."
    )
    add_config(made, GROUP, LocalConfig, "local.", skip=("norm", "input_scale", "decide"))
    _add_effort_and_files(group)


def _add_effort_and_files(group: Any) -> None:
    group.add_argument(
        "--vnnlib",
        type=str | None,
        metavar="FILE",
        default=None,
        help="VNNLIB specification to prove or refute instead of rows, within --local.seconds (not "
        "given: none; a minute).",
    )
    group.add_argument(
        "--pairs",
        type=bool,
        default=True,
        help="Begin with bounds for all inputs, of each pair of outputs: they settle easy rows "
        "(level global) and start the search for radii, but may take long on a large network.",
    )
    for name, what in (("csv", "Table of the rows"), ("plot", "PNG of the certified share")):
        more = ", with its units in the header" if name == "csv" else ", an attack above it"
        group.add_argument(
            f"--{name}",
            type=str | None,
            metavar="FILE",
            default=None,
            help=f"{what}{more}; a file that does not exist yet (not given: none).",
        )


@dataclass(frozen=True, eq=False)
class LocalRun:
    """One run of the command.

    Attributes:
        options: as they were typed.
        network: the network.
        measure: norm and input scale.
        solver: for the bounds of all inputs.
        output: where the certificate goes.
    """

    options: Namespace
    network: Network
    measure: Mapping[str, Any]
    solver: SolverConfig
    output: Path

    def __post_init__(self) -> None:
        for name in ("csv", "plot"):
            file = getattr(self.options, name)
            if file and Path(file).exists():
                raise UsageError(f"{name}: {file} exists; name another file with --{name}")
        if self.options.plot:
            from .. import plots  # noqa: F401  missing, it is said before the work

            if not self.network.is_path:
                raise UsageError("plot: its attack needs a network without skips or branches")

    @cached_property
    def data(self) -> DataSet:
        """The data set."""
        from ..data import load_data

        options = self.options
        if options.data is None:
            raise UsageError("data: --kind local needs --data NAME, whose test rows it is about")
        if options.samples < 1:
            raise UsageError(f"samples: expected at least 1, got {options.samples}")
        data = load_data(options.data, options.data_dir, _table(Path(options.network)))
        if data.task != "classification":
            raise UsageError("data: --kind local proves classes; expected labels, got a regression")
        return data

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The test rows that the balls are around."""
        x, y = self.data.test
        return x[: self.options.samples], y[: self.options.samples]

    @property
    def state(self) -> Path:
        """Where batches are kept until all are done."""
        return self.output.with_name(f"{self.output.name}.parts")

    def prove(self) -> LocalProof:
        """The balls, and the bounds for all inputs that they may lean on."""
        from ..local import LocalConfig, certify_local, local_radii

        x, y = self.rows
        whole = self._pairs() if self.options.pairs else None
        config: LocalConfig = config_of(
            LocalConfig, self.options.local, decide=True, **self.measure
        )
        given: dict[str, Any] = {"certificate": whole, "config": config, "state": self.state}
        try:
            if self.options.radius is None:
                found = local_radii(self.network, x, y, progress=True, **given)
            else:
                radius = self.options.radius
                found = certify_local(self.network, x, radius, y, progress=True, **given)
        except KeyboardInterrupt:
            say(f"stopped; what is proven is kept in {self.state}: the same command goes on")
            raise
        return LocalProof(self, found, whole)

    def _pairs(self) -> FunctionalCertificate:
        """Bounds for all inputs, those of an earlier try where it made them."""
        from ..api import certify
        from ..certificates.certificate import FunctionalCertificate, load_certificate
        from ..certificates.verify import check
        from ..local.parts import PAIRS, check_state
        from ..local.tasks import size_out

        check_state(
            self.state, {"model": self.network.digest(), "norm": repr(self.measure["norm"])}
        )
        place = self.state / PAIRS
        if place.is_file():
            held = load_certificate(place)
            check(held, self.network)
            if isinstance(held, FunctionalCertificate):
                return held
        kind: Any = "pairwise" if size_out(self.network) > 1 else "per_output"
        made: FunctionalCertificate = certify(
            self.network, kind=kind, solver=self.solver, **self.measure
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        made.save(place)
        return made

    @property
    def reported(self) -> float:
        """The radius of the headline: that asked for, or a tenth of the data's range."""
        import numpy as np

        from ..evaluation.config import EvaluateConfig
        from ..evaluation.evaluate import report_radius

        usual = report_radius(self.data, EvaluateConfig())
        scale = self.measure.get("input_scale")
        least = 1.0 if scale is None else min(np.atleast_1d(scale))
        return float(self.options.radius or usual * least)


@dataclass(frozen=True, eq=False)
class LocalProof:
    """What a run found: the balls, and the bounds for all inputs that they may lean on."""

    run: LocalRun
    found: LocalCertificate
    whole: FunctionalCertificate | None

    def close(self) -> list[str]:
        """What follows the certificate, once it is written: table, picture, no state any more."""
        from ..local.parts import remove_state
        from ..records import write_text
        from ..shown import as_csv

        said, options = [], self.run.options
        if options.csv:
            write_text(Path(options.csv), as_csv(_csv_rows(self.found)))
            said.append(f"  rows written to {options.csv}")
        remove_state(self.run.state)
        return said + (self._draw(Path(options.plot)) if options.plot else [])

    def lines(self) -> list[str]:
        """How many rows each level settled, and in what time, for a person."""
        lines = ["", _LINE.format("settled by", "rows", "share", "seconds a row")]
        for row in self.found.by_level():
            words = row["settled_by"], row["rows"], f"{row['share']:.1%}"
            lines.append(_LINE.format(*words, f"{row['seconds_each']:.3g}"))
        (low, high), data = self.run.data.input_range, self.run.data
        if self.found.box is None and data.units is None:
            lines.append(f"  inputs beyond the range of the data, {low:g} to {high:g}, count too;")
            lines.append(f"  --local.box [{low:g},{high:g}] leaves them out")
        return [*lines, ""]

    def _draw(self, path: Path) -> list[str]:
        """The certified share against radius, and above it what an attack leaves."""
        import torch

        from ..certificates.radii import radii_of
        from ..evaluation.attacks import AttackConfig
        from ..evaluation.curves import certified_curve
        from ..networks.built import build_module
        from ..plots import plot_radius

        network, found, (x, y) = self.run.network, self.found, self.run.rows
        proven = torch.where(found.robust, found.radius, 0.0)
        if self.whole is not None:
            proven = torch.maximum(proven, radii_of(network, x, y, self.whole).cpu())
        x = x.reshape(-1, *(network.input_shape or x.shape[1:]))
        attack = AttackConfig(steps=_STEPS, restarts=_RESTARTS)
        with working("attack"):
            module, report = build_module(network), self.run.reported
            curve = certified_curve(module, x, y, found, proven, report, attack)
        plot_radius(curve, path)
        at = f" at radius {report:g} (PGD and random search)"
        left = share("attacked", "accuracy under attack", curve["attacked_at_report"], at)
        return [*fact_lines([left]), f"  drawn to {path}"]


def _table(folder: Path) -> TableOptions | None:
    """How the run read its table."""
    from ..data import TableOptions
    from ..records import CONFIG, read_yaml

    settings = folder / CONFIG
    table = read_yaml(settings).get("table") if settings.is_file() else None
    return None if table is None else config_of(TableOptions, table)


def check_vnnlib(options: Namespace, network: Network) -> Outcome:
    """The verdict on a specification; no certificate is written."""
    from ..local.specification import check_specification
    from .finish import describe

    if options.kind != "local":
        raise UsageError(f"vnnlib: goes with --kind local, got {options.kind}")
    given = options.local.seconds
    seconds = _SECONDS if given is None else given
    found = check_specification(network, options.vnnlib, seconds=seconds, progress=True)
    for line in (describe(network), *fact_lines(found.facts())):
        say(line)
    about = {"network": options.network, "specification": options.vnnlib}
    return Outcome(about | record_of(found.facts()))


def _csv_rows(found: LocalCertificate) -> list[Row]:
    """A row for each ball, its units in the names of the columns."""
    of = "model" if found.input_scale is None else "raw"
    columns = {
        "labels": "label",
        "predicted": "predicted",
        "clean_margin": "clean margin (outputs)",
        "decided": "settled by",
        "least_margin": "certified margin (outputs)",
        "radius": f"radius ({found.norm} of {of} inputs)",
        "seconds": "seconds (s)",
    }
    rows = enumerate(found.table())
    return [{"index": k, **{said: row[n] for n, said in columns.items()}} for k, row in rows]
