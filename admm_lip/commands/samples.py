"""A network judged sample by sample: local bounds on the test set, attacks, records, a summary."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DataSet
from ..evaluation.attacks import AttackConfig
from ..evaluation.evaluate import EvaluateConfig
from ..evaluation.per_sample import robust_samples
from ..local.certify import certify_local
from ..local.config import LocalConfig
from ..local.result import LocalCertificate
from ..networks.live_check import place_of
from ..networks.storage import save_network
from ..records import RunFolder, machine_stamp, write_json, write_rows
from ..research.comparators.local import LocalLipschitz
from .finish import Summary, network_on
from .plot import draw_if_possible
from .recipes import Job

Verdicts = list[dict[str, Any]]


def finish_samples(
    folder: RunFolder, model: nn.Module, job: Job, method: LocalLipschitz, about: Summary
) -> Summary:
    """Certify and attack test samples at the radius asked for; write network, verdicts, summary.

    Args:
        folder: the run folder.
        model: the trained network.
        job: the data, the evaluation (``samples``, ``steps``, ``restarts``, ``seed``) and, as
            ``train.eps``, the radius.
        method: whose bound is used.
        about: what else the summary should say.

    Raises:
        SoundnessError: when an attack breaks a certified sample; nothing of the evaluation is
            written then.
    """
    save_network(network_on(model, job.data), folder.path)
    rows = _rows(job.data, job.evaluate)
    x, y = (values[rows].to(place_of(model)[1]) for values in job.data.test)
    begun = time.perf_counter()
    level = "masked" if method.bound == "local" else "product"
    config = LocalConfig(level, box=method.data_range, decide=True)
    report = certify_local(model, x, job.train.eps, y, config=config, progress=True)
    seconds = time.perf_counter() - begun
    certified = report.robust.to(x.device)
    robust = robust_samples(model, x, y, job.train.eps, certified, _attack(job, method))
    write_rows(folder.samples, _verdicts(rows, y, report, robust))
    summary = {
        **about,
        "data": job.data.name,
        "network": _described(job),
        "samples": {
            "eps": job.train.eps,
            "bound": method.bound,
            **report.to_record(),
            "attacked_accuracy": float(robust.double().mean()),
            "seconds": seconds,
        },
        "machine": machine_stamp(torch.get_num_threads()),
    }
    write_json(folder.summary, summary)
    draw_if_possible(folder)
    return summary


def _rows(data: DataSet, config: EvaluateConfig) -> Tensor:
    """Test rows to certify: all, or a seeded draw of ``config.samples``."""
    count = len(data.test[1])
    if config.samples is None or config.samples >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: config.samples].sort().values


def _attack(job: Job, method: LocalLipschitz) -> AttackConfig:
    config = job.evaluate
    return AttackConfig(
        steps=config.steps, restarts=config.restarts, seed=config.seed, clip=method.data_range
    )


def _verdicts(rows: Tensor, y: Tensor, report: LocalCertificate, robust: Tensor) -> Verdicts:
    columns = {
        "row": rows,
        "label": y,
        "predicted": report.predicted,
        "correct": report.correct,
        "certified": report.robust,
        "robust": robust,
        "margin": report.least_margin,
    }
    lists = [*(values.tolist() for values in columns.values()), report.decided]
    names = [*columns, "decided"]
    return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]


def _described(job: Job) -> str:
    """The network in a few words, for example ``4C3F x 0.25, clipped_relu``."""
    convnet = job.settings.get("convnet")
    if convnet:
        return f"{convnet['name']} x {convnet['width']:g}, {convnet['activation']}"
    sizes = "-".join(map(str, job.settings["model"]["hidden"]))
    return (
        f"{job.data.n_features}-{sizes}-{job.data.n_outputs} {job.settings['model']['activation']}"
    )


def sample_lines(folder: RunFolder, summary: Summary) -> list[str]:
    """The summary for a person."""
    found = summary["samples"]
    trained = f"{summary['epochs']} epochs by {summary['method']}"
    seconds = f"{summary['train_seconds']:.1f} s"
    results = [
        ("clean accuracy", f"{found['clean_accuracy']:.1%} of {found['rows']} test rows"),
        (
            "accuracy under attack",
            f"{found['attacked_accuracy']:.1%} at l2 radius {found['eps']:g}",
        ),
        (
            "certified accuracy",
            f"{found['certified_accuracy']:.1%} at that radius, by the {found['bound']} bound "
            f"({found['seconds']:.1f} s)",
        ),
    ]
    words = (("varying", "units that vary on the ball"), ("ratio", "local over global bound"))
    results += [
        (text, f"{found[name]:.3f}, where computed") for name, text in words if name in found
    ]
    return [
        "",
        f"{summary['network']}, trained on {summary['data']} for {trained} in {seconds}",
        "",
        *(f"  {name:<28}{value}" for name, value in results),
        "",
        f"  everything is in {folder.path}/",
        f"    {', '.join(sorted(p.name for p in folder.path.iterdir() if p.is_file()))}",
    ]
