"""What follows a network and its proof: measurements, records, plots, and a summary to read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import shown
from ..api import certified_radii
from ..certificates.certificate import Certificate, bound_facts
from ..data import DataSet
from ..evaluation.evaluate import evaluate, measured_facts
from ..networks.activations import ACTIVATIONS
from ..networks.chain import read_network
from ..networks.live_check import place_of
from ..networks.network import Network
from ..networks.sorting import SORTS
from ..networks.storage import save_network
from ..records import RunFolder, machine_stamp, write_arrays, write_json, write_rows
from ..shown import Fact
from ..training.train_result import GROWS_ON
from .hints import Hint
from .hints import lines as hint_lines
from .in_units import STANDARDISED, in_both_units, record_units, unit_facts
from .plot import draw_if_possible
from .recipes import Job

if TYPE_CHECKING:
    from ..training.train import TrainResult
    from ..units import Units

# layers that give a network its name -> what stands before their width
_WIDTHS = {"linear": "", "conv2d": "conv"}

_GRID = 200  # points along each axis of the decision regions
Summary = dict[str, Any]


def finish_run(folder: RunFolder, job: Job, result: TrainResult, *, measure: bool) -> Summary:
    """Write everything a training run leaves behind, and draw its plots.

    Args:
        folder: the run folder, which holds the settings and the checkpoint already.
        job: what was trained on what.
        result: what training gave back.
        measure: evaluate on the test set (left out for an interrupted run).
    """
    write_rows(folder.metrics, result.history)
    about = {
        "stopped": result.stopped,
        "rounds": len(result.history),
        "epochs": job.train.epochs,
        "train_seconds": result.seconds,
        **({GROWS_ON.name: True} if result.grows_on else {}),
    }
    measured, units = job if measure else None, job.data.units
    return finish(folder, result.model, result.certificate, measured, about, units)


def finish(
    folder: RunFolder,
    model: nn.Module,
    certificate: Certificate,
    job: Job | None,
    about: Summary,
    units: Units | None = None,
) -> Summary:
    """Write network, certificate, measurements and plots; returns the summary written.

    Args:
        folder: the run folder.
        model: the network.
        certificate: its proof.
        job: the data and the evaluation to make; ``None`` makes none.
        about: what else the summary should say.
        units: of the data, where there is no job to know them.
    """
    network = read_network(model, certificate.input_shape)
    save_network(network, folder.path)
    certificate.save(folder.certificate)
    summary: Summary = {**about, "bounds": bounds_of(certificate), "network": describe(network)}
    plain = certificate
    units = job.data.units if job is not None else units
    if units is not None:
        both = in_both_units(network, certificate, units)
        plain = both[STANDARDISED]
        dropped = () if job is None else job.data.dropped
        summary["units"] = record_units(folder, units, dropped, certificate, both)
    if job is not None:
        summary["data"] = job.data.name
        summary["evaluation"] = evaluate(model, job.data, certificate, job.evaluate).to_record()
        if job.data.n_classes and job.data.n_features == 2:
            write_arrays(folder.regions, decision_regions(model, job.data, plain))
    summary["machine"] = machine_stamp(torch.get_num_threads())
    write_json(folder.summary, summary)
    draw_if_possible(folder)
    return summary


def bounds_of(certificate: Certificate) -> Summary:
    """The Lipschitz constants that a certificate states, those it has."""
    return {
        "lip": certificate.lip,
        "requested": certificate.requested,
        "norm_product": certificate.norm_product,
        "sampled_lower": certificate.sampled_lower,
        "lower_lip": certificate.lower_lip,
        "norm": certificate.norm,
        "unit": None if certificate.units is None else certificate.units.ratio(),
    }


def network_on(model: nn.Module, data: DataSet) -> Network:
    """The network with the shape of its inputs, which convolutions need."""
    shape = tuple(data.train[0].shape[1:])
    return read_network(model, shape if len(shape) > 1 else None)


def describe(network: Network) -> str:
    """Widths and activations in one line: ``64-32-10 relu``, ``1x28x28-conv16-100-10 max_min``."""
    shapes = network.shapes()
    words = ["x".join(map(str, network.input_shape or ()))]
    for spec in network.layers:
        if spec.kind in _WIDTHS:
            words.append(f"{_WIDTHS[spec.kind]}{shapes[spec.name][0]}")
    acting = (s.kind for s in network.layers if s.kind in ACTIVATIONS or s.kind in SORTS)
    return "-".join(words) + "".join(f" {kind}" for kind in dict.fromkeys(acting))


def decision_regions(
    model: nn.Module, data: DataSet, certificate: Certificate
) -> dict[str, np.ndarray[Any, Any]]:
    """Predicted class and certified radius on a grid over the training points' range."""
    points, labels = data.train
    low, high = points.amin(dim=0), points.amax(dim=0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    x, y = (torch.linspace(float(low[k]), float(high[k]), _GRID) for k in (0, 1))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([columns.flatten(), rows.flatten()], dim=1)
    with torch.no_grad():
        classes = model.eval()(grid.to(place_of(model)[1])).argmax(dim=1).cpu()
    radius = certified_radii(model, grid, classes, certificate=certificate)
    radius = radius.clamp(max=float((high - low).norm()))  # infinite where f is constant
    return {
        "extent": np.array([low[0], high[0], low[1], high[1]], dtype=np.float64),
        "classes": classes.reshape(_GRID, _GRID).numpy().astype(np.uint8),
        "radius": radius.reshape(_GRID, _GRID).numpy().astype(np.float32),
        "points": points.numpy(),
        "labels": labels.numpy(),
    }


def summary_lines(folder: RunFolder, summary: Summary, hints: Iterable[Hint]) -> list[str]:
    """The summary for a person: the network, what was proven, what was measured, what next."""
    lines = ["", f"{summary['network']}" + _trained(summary), ""]
    lines += shown.lines(_results(summary))
    lines += ["", f"  everything is in {folder.path}/"]
    plots = sorted(p.name for p in folder.plots.glob("*.png"))
    lines += [f"    {', '.join(sorted(p.name for p in folder.path.iterdir() if p.is_file()))}"]
    lines += [f"    plots/: {', '.join(plots)}"] if plots else []
    return lines + hint_lines(hints)


def _trained(summary: Summary) -> str:
    if "train_seconds" not in summary:
        return ""
    method = summary.get("method")
    how = f"{summary['epochs']} epochs by {method}" if method else f"{summary['rounds']} rounds"
    where = summary.get("data", "data")
    return f", trained on {where} for {how} in {summary['train_seconds']:.1f} s"


def _results(summary: Summary) -> list[Fact]:
    """What a person is told of a run, from its summary."""
    named = summary.get("units")
    stated = {fact.name: fact for fact in bound_facts(summary["bounds"])}
    bound = unit_facts(summary) if named else [stated["lip"]]
    of, targets = (named["bound"], named["targets"]) if named else ("", ["the target"])
    measured = measured_facts(summary.get("evaluation", {}), of, targets)
    limit = [GROWS_ON] if summary.get(GROWS_ON.name) else []
    return [*bound, *limit, stated["norm_product"], stated["sampled_lower"], *measured]
