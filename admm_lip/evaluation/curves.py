"""The share of inputs that a local certificate proves against radius, and an attack above it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..local.result import LocalCertificate
from .attacks import AttackConfig
from .evaluate import attack_accuracy, radius_grid
from .falsify import assert_sound, in_units


def certified_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    found: LocalCertificate,
    radii: Tensor,
    report: float,
    config: AttackConfig | None = None,
) -> dict[str, Any]:
    """What :func:`admm_lip.plots.plot_radius` draws.

    Args:
        model: the classifier, ``(n, ...) -> (n, classes)``, in the units that ``found`` takes.
        x: the inputs ``(n, ...)`` of ``found``, and
        y: their labels ``(n,)``.
        found: says which are right, the norm, the units and the box.
        radii: certified, ``(n,)``, at least those of ``found``.
        report: a radius of interest, in the certificate's units.
        config: effort of the attack.

    Raises:
        SoundnessError: when an attack succeeds inside a certified radius.
        ValueError: for a box in other units than the radii, which no attack can keep to.
    """
    clip, scale = found.box, found.input_scale
    if clip is not None and scale is not None:
        if len(set(scale)) > 1:
            raise ValueError("box: expected one input_scale of all features beside a box")
        clip = clip[0] * scale[0], clip[1] * scale[0]
    norm: Any = found.norm
    config = replace(config or AttackConfig(), norm=norm, clip=clip)
    model, x = in_units(model.double(), x.double(), scale)
    assert_sound(model, x, y, radii, config)
    grid = sorted({0.0, report, *radius_grid(radii, report)})
    attacked = attack_accuracy(model, x, y, radii, grid, config)
    shares = [float((found.correct & (radii >= r)).double().mean()) for r in grid]
    unit = "input units" if scale is None else "raw units"
    return {
        "measure": f"{norm} radius, in {unit}",
        "radii": grid,
        "certified_accuracy": shares,
        "attack_accuracy": attacked,
        "report_radius": report,
        "certified_at_report": shares[grid.index(report)],
        "attacked_at_report": attacked[grid.index(report)],
    }
