"""The check of a local certificate: bounds and slopes computed anew, no search, no solver."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.verify import certified_network
from ..certificates.verify import check as check_global
from ..errors import CertificateError
from ..networks.network import Network
from .bounds import preactivation_bounds
from .certify import LocalConfig, Task, ball_region, check_measure, functionals_for
from .curves import Range
from .gain import proves, reduce, with_outputs
from .known import known_of
from .levels import CLOSED, GLOBAL, LEVELS, NORMS, gathered, masked_norms
from .linear import center_values, margin_bounds
from .result import LocalCertificate
from .tensors import chunks, net_of

_GROUP = 32


def verify_local(
    found: LocalCertificate | str | Path,
    model: nn.Module | Network | str | Path,
    certificate: AnyCertificate | None = None,
) -> None:
    """Prove every bound of a local certificate for exactly this model.

    Args:
        found: the local certificate, or the path of its file.
        model: a torch module, a network, or the folder of a run.
        certificate: the one that bounds of level ``"global"`` were taken from; it is verified, too.

    Raises:
        CertificateError: naming the first input whose claim is not proven.
    """
    if not isinstance(found, LocalCertificate):
        found = LocalCertificate.load(found)
    found.check()
    network = certified_network(found, model)
    if certificate is not None:
        check_global(certificate, network)
    task = _task(found, network, certificate)
    for rows in task.batches():
        for group in chunks(rows, _GROUP):
            _check_group(task.part(group), found, group)


def _task(found: LocalCertificate, network: Network, certificate: AnyCertificate | None) -> Task:
    net = net_of(network.chain(), found.norm, found.input_scale)
    outputs, hidden = len(net.maps[-1].bias), sum(len(a.bias) for a in net.maps[:-1])
    labels, count = found.labels, len(found.x)
    expected = (count, 1 if labels is None else outputs, hidden)
    if found.roots.shape != expected:
        raise CertificateError(
            f"lip, roots: expected one per functional, and per hidden neuron: {expected}, "
            f"got {tuple(found.roots.shape)}"
        )
    functionals, items = functionals_for(labels, count, outputs)
    if certificate is not None:
        check_measure(certificate, network, found.norm, found.input_scale)
    known = None if certificate is None else known_of(certificate, outputs)
    config, scale = LocalConfig(box=found.box, norm=found.norm), found.input_scale
    return Task(network, net, found.x, labels, functionals, items, known, config, scale)


def _check_group(task: Task, found: LocalCertificate, rows: Tensor) -> None:
    net = task.net
    region, everywhere = ball_region(task, found.radius[rows])
    bounds = preactivation_bounds(net, region)
    if task.labels is not None:
        flat = task.functionals[:, :, 0]
        lower = torch.where(everywhere, -math.inf, margin_bounds(net, bounds, flat))
        for name, proven in (("center", center_values(net, bounds, flat)), ("margin", lower)):
            claim = getattr(found, name)[rows]
            _demand(name, torch.isneginf(claim) | (claim <= proven), rows)
    slopes = [s.anchored if task.labels is not None else s.slopes for s in bounds.layers]
    lip = found.lip[rows]
    held = _proven(task, found, rows, slopes) & ~everywhere
    _demand("lip", torch.isposinf(lip) | held | _proven_everywhere(task, found, rows), rows)


def _proven_everywhere(task: Task, found: LocalCertificate, rows: Tensor) -> Tensor:
    """Which bounds hold by the certificate for all inputs, where their level says so."""
    lip, by_global = found.lip[rows], found.level[rows] == GLOBAL
    by_global &= torch.isfinite(lip)
    if not bool(by_global.any()):
        return by_global
    if task.known is None:
        raise CertificateError(
            "certificate: some bounds are those of a certificate for all inputs; give it"
        )
    return by_global & (task.known.lips(task.labels, len(rows)) <= lip)


def _proven(task: Task, found: LocalCertificate, rows: Tensor, slopes: list[Range]) -> Tensor:
    """Which bounds hold, each by the means that its level names."""
    net, lip, level = task.net, found.lip[rows], found.level[rows]
    held = torch.zeros_like(lip, dtype=torch.bool)
    if bool((level == NORMS).any()):
        norms = masked_norms(net, slopes, task.functionals)
        held |= (level == NORMS) & (norms <= lip)
    items = ((level >= CLOSED) & (level < len(LEVELS))).nonzero()
    if len(items) and slopes:
        reduced = reduce(net, slopes)
        local, functional = items[:, 0], items[:, 1]
        gain = with_outputs(net, reduced, local, task.functionals[local, functional])
        roots = gathered(net, reduced, local, found.roots[rows][local, functional])
        held[local, functional] = proves(gain, roots, lip[local, functional])
    return held


def _demand(name: str, good: Tensor, rows: Tensor) -> None:
    if not bool(good.all()):
        row, functional = (~good).nonzero()[0].tolist()
        raise CertificateError(
            f"{name}: the claim for input {int(rows[row])}, functional {functional}, is not proven"
        )
