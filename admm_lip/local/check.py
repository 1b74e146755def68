"""The check of a local certificate: bounds and slopes computed anew, no search, no solver."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.restate import NORMS as MEASURES
from ..errors import CertificateError
from ..networks.network import Network
from ..networks.storage import network_of
from .bounds import preactivation_bounds
from .certify import LocalConfig, Task, check_measure, functionals_for, radii_of
from .curves import Range
from .gain import proves, reduce, with_outputs
from .known import known_of
from .levels import CLOSED, GLOBAL, LEVELS, NORMS, gathered, masked_norms
from .linear import center_values, margin_bounds
from .region import Region
from .result import LocalCertificate
from .tensors import Net, chunks, net_of

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
        certificate: the one that bounds of level ``"global"`` were taken from; verify it as well.

    Raises:
        CertificateError: naming the first input whose claim is not proven.
    """
    if not isinstance(found, LocalCertificate):
        found = LocalCertificate.load(found)
    network = network_of(model, found.input_shape)
    if network.digest() != found.digest:
        raise CertificateError(
            f"digest: the local certificate is of another network ({found.digest[:12]}...); "
            "certify this model anew"
        )
    task = _task(found, network, certificate)
    for rows in task.batches():
        for group in chunks(rows, _GROUP):
            _check_group(task.part(group), found, group)


def _net(found: LocalCertificate, network: Network) -> Net:
    """The network, with distances measured as the certificate says."""
    if found.norm not in MEASURES:
        raise CertificateError(f"norm: expected one of {', '.join(MEASURES)}, got {found.norm!r}")
    return net_of(network.chain(), found.norm, found.input_scale)


def _task(found: LocalCertificate, network: Network, certificate: AnyCertificate | None) -> Task:
    net = _net(found, network)
    outputs, hidden = len(net.maps[-1].bias), sum(len(a.bias) for a in net.maps[:-1])
    if found.x.shape[1] != net.maps[0].weight.shape[1]:
        raise CertificateError(f"x: expected {net.maps[0].weight.shape[1]} features per input")
    try:
        radii_of(found.radius, len(found.x))
    except ValueError as error:
        raise CertificateError(str(error)) from None
    if not bool(torch.isfinite(found.x).all()):
        raise CertificateError("x: expected finite inputs")
    labels = found.labels
    if labels is not None and outputs > 1 and len(labels):
        if not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
            raise CertificateError(f"labels: expected classes from 0 to {outputs - 1}")
    elif labels is not None and not bool((labels.abs() == 1).all()):
        raise CertificateError("labels: expected +1 and -1 for one output")
    functionals, items = functionals_for(labels, len(found.x), outputs)
    if found.lip.shape != items.shape or found.roots.shape[2] != hidden:
        raise CertificateError("lip, roots: expected one per functional, and per hidden neuron")
    if certificate is not None:
        check_measure(certificate, network, found.norm, found.input_scale)
    known = None if certificate is None else known_of(certificate, outputs)
    config, scale = LocalConfig(box=found.box, norm=found.norm), found.input_scale
    return Task(network, net, found.x, labels, functionals, items, known, config, scale)


def _check_group(task: Task, found: LocalCertificate, rows: Tensor) -> None:
    net = task.net
    region = Region(task.points, found.radius[rows], found.box)
    bounds = preactivation_bounds(net, region)
    if task.labels is not None:
        flat = task.functionals[:, :, 0]
        center, margin = found.center[rows], found.margin[rows]
        lower = margin_bounds(net, bounds, flat)
        # Claims of at most 0 decide nothing.
        _demand("center", (center <= center_values(net, bounds, flat)) | (center <= 0.0), rows)
        _demand("margin", (margin <= lower) | (margin <= 0.0), rows)
    slopes = [s.anchored if task.labels is not None else s.slopes for s in bounds.layers]
    claimed = torch.isfinite(found.lip[rows])
    _demand("lip", ~claimed | _proven(task, found, rows, slopes), rows)


def _proven(task: Task, found: LocalCertificate, rows: Tensor, slopes: list[Range]) -> Tensor:
    """Which bounds hold, each by the means that its level names."""
    net, lip, level = task.net, found.lip[rows], found.level[rows]
    held = torch.zeros_like(lip, dtype=torch.bool)
    if bool((level == NORMS).any()):
        norms = masked_norms(net, slopes, task.functionals)
        held |= (level == NORMS) & (norms <= lip)
    if bool((level == GLOBAL).any()):
        if task.known is None:
            raise CertificateError(
                "certificate: some bounds are those of a certificate for all inputs; give it"
            )
        held |= (level == GLOBAL) & (task.known.lips(task.labels, len(rows)) <= lip)
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
