"""How good a network is on test data, and whether its certificate withstands attack.

Certified accuracy at radius r is the share of test rows that are classified correctly and whose
certified l2 radius is at least r; attack accuracy at r is the share that no attack of that radius
broke.  The truth lies between the two curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import Certificate
from ..certificates.radii import radii_of
from ..data import DataSet
from ..networks.interface import interface_of
from ..shown import Fact, Shown, share
from ..units import Units
from .attacks import AttackConfig, frozen, gradient_free, pgd
from .config import EvaluateConfig as EvaluateConfig
from .falsify import assert_sound, in_units
from .samples import attackable

if TYPE_CHECKING:
    from ..plots import Sheet

# Rows whose certified ball is attacked on purpose.
_SOUND_ROWS = 1000


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """What was measured on the test set; every number is a plain float, ready for JSON.

    Attributes:
        task: ``"classification"`` or ``"regression"``.
        rows: test rows measured.
        clean_accuracy: share classified correctly (classification, else ``None``).
        report_radius: radius of the two headline numbers below.
        certified_at_report: certified accuracy there, on all rows.
        attacked_at_report: attack accuracy there, on ``curve_rows`` rows.
        radii: grid of the curves; the first is 0.
        certified_accuracy: one number per radius, on ``curve_rows`` rows.
        attack_accuracy: one number per radius, on the same rows.
        curve_rows: rows that the curves are measured on.
        rmse: root mean squared error in the target's standardised units (regression).
        rmse_raw: the same in the target's raw unit (regression with one target).
        rmse_targets: of each target in its own raw unit (regression with several).
        r2: share of the test targets' variance explained (regression).
    """

    task: str
    rows: int
    clean_accuracy: float | None = None
    report_radius: float | None = None
    certified_at_report: float | None = None
    attacked_at_report: float | None = None
    radii: tuple[float, ...] = ()
    certified_accuracy: tuple[float, ...] = ()
    attack_accuracy: tuple[float, ...] = ()
    curve_rows: int | None = None
    rmse: float | None = None
    rmse_raw: float | None = None
    rmse_targets: tuple[float, ...] = ()
    r2: float | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields that apply to the task, as a dictionary for JSON."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != ()}

    brief = ("clean_accuracy", "certified_at_report", "rmse")

    def title(self) -> str:
        """What was measured on what."""
        return f"{self.task} on {self.rows} test rows"

    def facts(self) -> tuple[Fact, ...]:
        """Accuracies, or errors."""
        return measured_facts(self.to_record())

    def plot(self) -> Sheet:
        """Accuracy against radius, for a classifier."""
        from ..plots import plot_radius

        return plot_radius(self.to_record()) if self.radii else super().plot()


def measured_facts(
    measured: Mapping[str, Any], rows: str = "", targets: Sequence[str] = ("the target",)
) -> tuple[Fact, ...]:
    """What an evaluation states, from its record.

    Args:
        measured: :meth:`Evaluation.to_record`, or the same read from a run's folder.
        rows: of what sort the rows are that radii are measured in.
        targets: names of a regression's targets.
    """
    found: list[Fact] = []
    if "clean_accuracy" in measured:
        radius, of = measured["report_radius"], f" ({rows} rows)" if rows else ""
        some = f"(PGD and random search, {measured['curve_rows']} rows)"
        found += [
            share(name, label, measured[name], said)
            for name, label, said in (
                ("clean_accuracy", "clean accuracy", f" of {measured['rows']} test rows"),
                ("certified_at_report", "certified accuracy", f" at l2 radius {radius:g}{of}"),
                ("attacked_at_report", "accuracy under attack", f" at that radius {some}"),
            )
        ]
    if "rmse" in measured:
        each = measured.get("rmse_targets") or [measured["rmse_raw"]]
        errors = (f"{e:.5g} {t}" for e, t in zip(each, targets, strict=True))
        said = f"{', '.join(errors)}, in the units of the file"
        found += [
            Fact("rmse", "test error (RMSE)", measured["rmse"], said),
            share("r2", "variance explained", measured.get("r2", math.nan)),
        ]
    return tuple(found)


def evaluate(
    model: nn.Module,
    data: DataSet,
    certificate: Certificate,
    config: EvaluateConfig | None = None,
) -> Evaluation:
    """Measure a network on the test set, and attack it to check its bound.

    Args:
        model: the network; run in eval mode, left as it was.
        data: the data set whose test part is used.
        certificate: of this network; its units are those of the radii.
        config: see :class:`EvaluateConfig`.

    Raises:
        SoundnessError: when an attack succeeds inside a certified radius.

    Example:
        >>> from admm_lip import certify
        >>> from admm_lip.data import load_data
        >>> from admm_lip.evaluation.evaluate import evaluate
        >>> from admm_lip.networks.models import build_mlp
        >>> model = build_mlp(2, 3)
        >>> evaluate(model, load_data("toy2d"), certify(model)).rows
        5000
    """
    config = config or EvaluateConfig()
    if data.task == "regression":
        return _evaluate_regression(model, data)
    return _evaluate_classifier(model, data, certificate, config)


def _evaluate_classifier(
    model: nn.Module, data: DataSet, certificate: Certificate, config: EvaluateConfig
) -> Evaluation:
    x, y = data.test
    radii = radii_of(model, x, y, certificate)
    model, x, y = attackable(model, x, y)
    radii = radii.to(x.device)
    model, x = in_units(model, x, certificate.input_scale)
    report = report_radius(data, config)
    if config.report_radius is None and certificate.units is not None:
        report *= min(certificate.units.input_scales(data.n_features))
    grid = sorted({0.0, report, *(config.radii or radius_grid(radii, report))})
    attack = AttackConfig(steps=config.steps, restarts=config.restarts, seed=config.seed)
    rows = _sample(len(y), config)
    some = rows[:_SOUND_ROWS]
    assert_sound(model, x[some], y[some], radii[some], attack)
    survived = attack_accuracy(model, x[rows], y[rows], radii[rows], grid, attack)
    right = ~_wrong(model, x, y)
    return Evaluation(
        task=data.task,
        rows=len(y),
        clean_accuracy=float(right.double().mean()),
        report_radius=report,
        certified_at_report=_share_certified(right, radii, report),
        attacked_at_report=survived[grid.index(report)],
        radii=tuple(grid),
        certified_accuracy=tuple(_share_certified(right[rows], radii[rows], r) for r in grid),
        attack_accuracy=tuple(survived),
        curve_rows=len(rows),
    )


def _share_certified(right: Tensor, radii: Tensor, radius: float) -> float:
    return float((right & (radii >= radius)).double().mean())


def _sample(count: int, config: EvaluateConfig) -> Tensor:
    """Row numbers of the curves: all of them in order, or a seeded draw."""
    if config.samples is None or config.samples >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: config.samples]


def report_radius(data: DataSet, config: EvaluateConfig) -> float:
    """The radius of the headline numbers: as configured, or a tenth of the scale of the inputs.

    That is 0.1 x the input range; for a standardised table, whose range is set by its outliers, a
    tenth of a standard deviation.
    """
    low, high = (0.0, 1.0) if data.units else data.input_range
    return config.report_radius or 0.1 * (high - low)


def attack_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    certified: Tensor,
    radii: Sequence[float],
    config: AttackConfig,
) -> list[float]:
    """Share of rows still right after an attack, for each of the ascending ``radii``.

    A row broken at one radius is broken at every larger one, and no attack can break a row within
    its certified radius (``assert_sound`` tries): only the others are attacked.

    Args:
        model: classifier.
        x: inputs ``(n, ...)``.
        y: labels ``(n,)``.
        certified: certified radii ``(n,)``; zeros attack every row.
        radii: to attack at.
        config: see :class:`~admm_lip.evaluation.attacks.AttackConfig`.
    """
    alive = ~_wrong(model, x, y)
    accuracy = []
    for radius in radii:
        for attack in (pgd, gradient_free) if radius > 0 else ():
            rows = (alive & (certified < radius)).nonzero().flatten()
            if len(rows):
                found = attack(model, x[rows], y[rows], radius, config)
                alive[rows] = ~_wrong(model, found, y[rows])
        accuracy.append(float(alive.double().mean()))
    return accuracy


def radius_grid(radii: Tensor, report: float) -> list[float]:
    """About twenty round radii up to where 2 % of the rows are certified, and past ``report``."""
    # A constant network certifies an infinite radius where it is right.
    finite = radii[torch.isfinite(radii)].double()
    top = max(float(torch.quantile(finite, 0.98)) if len(finite) else 0.0, 1.5 * report)
    decade = 10.0 ** math.floor(math.log10(top / 20.0))
    step = next(m * decade for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * decade >= top / 20.0)
    return [round(step * k, 12) for k in range(1, math.ceil(top / step) + 1)]


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Boolean ``(n,)``: not strictly the best score for ``y``; a tie counts as wrong."""
    with frozen(model), torch.no_grad():
        logits: Tensor = model(x)
    return (logits >= logits.gather(1, y[:, None])).sum(dim=1) != 1


def _evaluate_regression(model: nn.Module, data: DataSet) -> Evaluation:
    x, y = data.test
    takes = interface_of(model, "x", x)
    with frozen(model), torch.no_grad():
        residual = model(takes.inputs("x", x).to(takes.device)).cpu().double() - y.double()
    rmse = float(residual.square().mean().sqrt())
    spread = float((y.double() - y.double().mean(dim=0)).square().mean())
    units, outputs = data.units or Units(), data.n_outputs
    raw = residual * torch.tensor(units.output_scales(outputs), dtype=torch.float64)
    each = tuple(raw.square().mean(dim=0).sqrt().tolist())
    return Evaluation(
        task=data.task,
        rows=len(y),
        rmse=rmse,
        rmse_raw=each[0] if outputs == 1 else None,
        rmse_targets=each if outputs > 1 else (),
        r2=1.0 - rmse**2 / spread if spread > 0 else None,
    )
