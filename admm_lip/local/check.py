"""The check of a local certificate: bounds and slopes computed anew, no search, no solver."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.verify import certified_network
from ..certificates.verify import check as check_global
from ..errors import CertificateError
from ..networks.lowering import is_activation
from ..networks.network import Network
from .backward_lines import center_values
from .config import LocalConfig
from .global_bounds import global_bounds
from .input_region import chunks
from .lipschitz_levels import (
    CLOSED,
    GLOBAL,
    MASKED,
    NORMS,
    OPTIMISED,
    PRODUCT,
    gathered,
    norm_products,
)
from .quadratic_proof import Witness
from .reduced_inequality import proves, reduce, with_outputs
from .result import LocalCertificate
from .seen import Seen
from .semidefinite_witness import Duals, proven
from .tasks import Task, check_measure, functionals_for, prepared_of, size_out

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
    _check_rows(_task(found, network, certificate), found)


def check_part(found: LocalCertificate, task: Task) -> None:
    """The same for what was kept of some samples of a task, with its bounds for all inputs.

    Raises:
        CertificateError: as :func:`verify_local`.
    """
    found.check()
    _check_rows(replace(_task(found, task.prepared.network, None), known=task.known), found)


def _check_rows(task: Task, found: LocalCertificate) -> None:
    for rows in task.batches():
        for group in chunks(rows, _GROUP):
            _check_group(task.part(group), found, group)


def _task(found: LocalCertificate, network: Network, certificate: AnyCertificate | None) -> Task:
    by_norms = bool(((found.level == PRODUCT) | (found.level == MASKED)).any())
    by_lines = bool(((found.level >= NORMS) & (found.level <= OPTIMISED)).any())
    if by_norms and (by_lines or found.roots.shape[2]):
        raise CertificateError(
            "level: expected levels product and masked alone, without roots, or none of them"
        )
    acting = any(map(is_activation, network.layers))
    unstated = acting and not (by_lines or found.roots.shape[2])
    dear = bool(((found.level >= CLOSED) & (found.level <= OPTIMISED)).any())
    level = "masked" if by_norms or unstated else "closed" if dear else "norms"
    config = LocalConfig(level, box=found.box, norm=found.norm)
    prepared, outputs = prepared_of(network, config, found.input_scale), size_out(network)
    labels, count = found.labels, len(found.x)
    hidden = sum(prepared.widths[:-1]) if config.by_lines else 0
    expected = (count, 1 if labels is None else outputs, hidden)
    if found.roots.shape != expected:
        raise CertificateError(
            f"lip, roots: expected one per functional, and per hidden neuron: {expected}, "
            f"got {tuple(found.roots.shape)}"
        )
    functionals, items = functionals_for(labels, count, outputs)
    if certificate is not None:
        check_measure(certificate, network, found.norm, found.input_scale)
    known = None if certificate is None else global_bounds(certificate, outputs)
    return Task(prepared, found.x, labels, functionals, items, known)


def _check_group(task: Task, found: LocalCertificate, rows: Tensor) -> None:
    lip, everywhere = found.lip[rows], torch.isposinf(found.radius[rows])[:, None]
    proven = _by_lines if task.config.by_lines else _by_norms
    held, center, margin = proven(task, found, rows)
    if task.labels is not None:
        margin = torch.where(everywhere, -math.inf, margin)
        for name, lower in (("center", center), ("margin", margin)):
            claim = getattr(found, name)[rows]
            _demand(name, torch.isneginf(claim) | (claim <= lower), rows)
    held = (held & ~everywhere) | _proven_everywhere(task, found, rows)
    _demand("lip", torch.isposinf(lip) | held, rows)


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


# Which bounds hold, each by the means that its level names, and lower bounds of the functionals at
# the samples and on their balls.
_Proven = tuple[Tensor, Tensor, Tensor]


def _by_norms(task: Task, found: LocalCertificate, rows: Tensor) -> _Proven:
    norms, level, lip = task.prepared.norms, found.level[rows], found.lip[rows]
    radius, f = found.radius[rows], task.functionals
    radius = torch.where(torch.isposinf(radius), 0.0, radius)
    center = torch.zeros_like(lip)
    if task.labels is not None:
        at = norms.at_samples(task.points)
        center = center_values(norms.layers[-1], at, f[:, :, 0])
    held, margin = torch.zeros_like(lip, dtype=torch.bool), torch.full_like(lip, -math.inf)
    unnamed = (level != PRODUCT) & (level != MASKED)
    for number, means in ((PRODUCT, norms.by_box), (MASKED, norms.by_masked)):
        own = level == number
        whole = unnamed.all(dim=1) & (number == PRODUCT)
        some = (own.any(dim=1) | (level == GLOBAL).any(dim=1) | whole).nonzero()[:, 0]
        if len(some):
            best = means(task.points[some], radius[some], f[some])
            held[some] |= own[some] & (best.lip <= lip[some])
            higher = (own | unnamed)[some] & (best.margin > margin[some])
            margin[some] = torch.where(higher, best.margin, margin[some])
    return held, center, margin


def _by_lines(task: Task, found: LocalCertificate, rows: Tensor) -> _Proven:
    net, lip, level = task.prepared.curved, found.lip[rows], found.level[rows]
    seen, centred = Seen.of(task, found.radius[rows]), task.labels is not None
    slopes = seen.slopes(centred)
    center = margin = torch.zeros_like(lip)
    if centred:
        flat = task.functionals[:, :, 0]
        center, margin = seen.center(flat), seen.margin(flat)
        margin = _quadratic(seen, flat, margin, found, rows)
    held = torch.zeros_like(lip, dtype=torch.bool)
    if bool((level == NORMS).any()):
        held |= (level == NORMS) & (norm_products(net, slopes, task.functionals) <= lip)
    items = ((level >= CLOSED) & (level <= OPTIMISED)).nonzero()
    if len(items) and slopes:
        reduced = reduce(net, slopes)
        local, functional = items[:, 0], items[:, 1]
        gain = with_outputs(net, reduced, local, task.functionals[local, functional])
        roots = gathered(net, reduced, local, found.roots[rows][local, functional])
        held[local, functional] = proves(gain, roots, lip[local, functional])
    return held, center, margin


def _quadratic(
    seen: Seen, flat: Tensor, margin: Tensor, found: LocalCertificate, rows: Tensor
) -> Tensor:
    """Margins raised to what duals and quadratic bounds prove of the claims above them."""
    claims = found.margin[rows]
    higher = claims > margin
    passing = seen.open_pass(higher.any(dim=1))
    if passing is None:
        return margin
    if found.dual is not None and found.multipliers is not None:
        duals = Duals(found.dual, found.multipliers).part(rows)
        duals = duals.select(passing.among(higher)[duals.items])
        held = duals.items.clone()
        held[duals.items] = proven(passing, flat, duals, claims[duals.items])
        margin, higher = torch.where(held, claims, margin), higher & ~duals.items
    stated = [t for t in (found.slopes, found.curvatures, found.metric) if t is not None]
    if found.tuned is not None:
        witness = Witness(found.tuned, *stated).part(rows)
        tuned = passing.among(witness.items & higher)
        witness = witness.select(tuned[witness.items])
        margin[tuned] = torch.maximum(margin[tuned], passing.proven(flat, witness, claims[tuned]))
        higher = higher & ~tuned
    return torch.maximum(margin, passing.closed(flat, higher)) if bool(higher.any()) else margin


def _demand(name: str, good: Tensor, rows: Tensor) -> None:
    if not bool(good.all()):
        row, functional = (~good).nonzero()[0].tolist()
        raise CertificateError(
            f"{name}: the claim for input {int(rows[row])}, functional {functional}, is not proven"
        )
