"""Forged certificates: true ones of small networks, with one thing in them changed.

A forgery is a file as a liar would write it: every field, type, shape and proof may be wrong, and
the checksum is right.  :func:`forged` makes one, :func:`judged` asks the package what it says of it
and, where it is accepted, an oracle that shares nothing with the proof (``forging_truth.py``).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from admm_lip import CertificateError, certify, verify
from admm_lip.certificates.certificate import AnyCertificate, load_certificate
from admm_lip.certificates.document import checksum
from admm_lip.local import LocalCertificate, LocalConfig, certify_local, local_radii, verify_local
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Network
from admm_lip.networks.sorting_torch import MaxMin

from . import forging_truth
from .forging_documents import DOCUMENT_EDITS, Random
from .forging_local import LOCAL_EDITS, LocalFile

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "steep": lambda: nn.LeakyReLU(-1.5),
    "elu": lambda: nn.ELU(2.5),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "max_min": MaxMin,
}
REFUSED, CONFIRMED, FALSE, RAW = "refused", "confirmed", "false", "raw error"


@dataclass(frozen=True)
class Case:
    """What is certified.

    Attributes:
        kind: ``"global"``, ``"pairwise"``, ``"per_output"``, ``"directions"`` or ``"local"``.
        activation: a name of ``ACTIVATIONS``.
        widths: from the inputs to the outputs.
        norm: of the inputs.
        scaled: whether distances are in raw units.
        sizes: what each layer's weights are multiplied by.
        dead: how many neurons of the first layer have weights 0.
        labels: whether a local certificate has labels.
        box: ends of the admissible inputs of a local certificate.
        image: shape of the inputs of a network of convolutions, whose last width alone counts.
        structure: in which form such a network is certified.
        level: of a local certificate; ``"global"`` leans on one for all inputs, ``"radii"``
            searches the radii.
    """

    kind: str
    activation: str = "relu"
    widths: tuple[int, ...] = (3, 5, 4, 3)
    norm: str = "l2"
    scaled: bool = False
    sizes: tuple[float, ...] = ()
    dead: int = 0
    labels: bool = True
    box: tuple[float, float] | None = None
    image: tuple[int, ...] = ()
    structure: str = "torus"
    level: str = "closed"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with a true certificate, and the one for all inputs that it leans on."""

    case: Case
    model: nn.Sequential
    network: Network
    certificate: AnyCertificate | LocalCertificate
    companion: AnyCertificate | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of a forgery: which edit, the outcome, and what was said."""

    edit: str
    outcome: str
    said: str


@cache
def subject(case: Case, seed: int = 0) -> Subject:
    """The network of a case, certified."""
    model = _image_model(case, seed) if case.image else _model(case, seed)
    network = read_network(model, case.image or None)
    scale = [0.5, 2.0, 3.0, 0.7][: case.widths[0]] if case.scaled else None
    if case.kind == "local":
        return _local(case, model, network, scale, seed)
    options: dict[str, Any] = {} if case.kind == "global" else {"progress": False}
    if case.image:
        options["structure"] = case.structure
    if case.kind == "directions":
        rows = np.random.default_rng(seed).integers(-2, 3, (2, case.widths[-1]))
        options["directions"] = rows + np.eye(2, case.widths[-1]) / 3.0
    found = certify(
        network,
        kind=case.kind,  # type: ignore[call-overload]
        norm=case.norm,
        input_scale=scale,
        **options,
    )
    return Subject(case, model, network, found)


def _model(case: Case, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(itertools.pairwise(case.widths)):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        size = case.sizes[k] if case.sizes else 1.5
        layer.weight.data *= size
        # Biases that matter as much as without the sizes.
        layer.bias.data *= math.prod(case.sizes[: k + 1]) if case.sizes else 1.0
        if k == 0 and case.dead:
            layer.weight.data[: case.dead] = 0.0
        layers += [layer, ACTIVATIONS[case.activation]()]
    return nn.Sequential(*layers[:-1])


def _image_model(case: Case, seed: int) -> nn.Sequential:
    """Two convolutions, the second one with a stride and a head behind it unless of every size."""
    torch.manual_seed(seed)
    channels, rows, columns = case.image
    first, activation = nn.Conv2d(channels, 2, 3, padding=1), ACTIVATIONS[case.activation]
    if case.structure == "every_size":
        layers = [first, activation(), nn.Conv2d(2, case.widths[-1], 3, padding=1)]
    else:
        middle = [nn.Conv2d(2, 2, 2, stride=2), activation(), nn.Flatten()]
        head = nn.Linear(2 * (rows // 2) * (columns // 2), case.widths[-1])
        layers = [first, activation(), *middle, head]
    return nn.Sequential(*layers).double()


def _local(
    case: Case, model: nn.Sequential, network: Network, scale: list[float] | None, seed: int
) -> Subject:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, case.widths[0], generator=generator, dtype=torch.float64).clamp(-1.0, 1.0)
    logits = model(x).detach()
    binary = logits.shape[1] == 1
    y = (logits[:, 0] > 0.0).long() if binary else logits.argmax(dim=1)
    searched = case.level == "radii"
    level = case.level if case.level in ("norms", "closed", "optimised") else "closed"
    config = LocalConfig(level=level, box=case.box, norm=case.norm, input_scale=scale)
    whole = None
    if case.level == "global":
        whole = certify(network, norm=case.norm, input_scale=scale)
    if searched:
        return Subject(case, model, network, local_radii(network, x, y, config=config))
    radius = torch.tensor([0.05, 0.4, 30.0], dtype=torch.float64)
    found = certify_local(
        network, x, radius, y if case.labels else None, certificate=whole, config=config
    )
    return Subject(case, model, network, found, whole)


def forged(about: Subject, seed: int, path: Path) -> str:
    """Write a forgery to ``path`` and return the name of the edit."""
    random = Random(np.random.default_rng(seed))
    if isinstance(about.certificate, LocalCertificate):
        edits = LOCAL_EDITS
        name = str(random.one_of(list(edits)))
        about.certificate.save(path)
        file = LocalFile.of(path)
        raw = edits[name](random, file)
        path.write_bytes(file.to_bytes() if raw is None else raw)
        return name
    name = str(random.one_of(list(DOCUMENT_EDITS)))
    tree = json.loads(about.certificate.to_json())
    tree.pop("checksum")
    text = DOCUMENT_EDITS[name](random, tree)
    if text is None:
        text = json.dumps({**tree, "checksum": checksum(tree)})
    path.write_text(text)
    return name


def judged(about: Subject, edit: str, path: Path) -> Verdict:
    """What the package says of a file, and, where it accepts, what the oracle says."""
    local = isinstance(about.certificate, LocalCertificate)
    try:
        found = LocalCertificate.load(path) if local else load_certificate(path)
        if isinstance(found, LocalCertificate):
            verify_local(found, about.network, about.companion)
        else:
            verify(found, about.network)
    except CertificateError as error:
        return Verdict(edit, REFUSED, str(error).partition(": ")[2][:80])
    except Exception as error:
        return Verdict(edit, RAW, f"{type(error).__name__}: {error}"[:200])
    reason = forging_truth.untrue(about.model, about.network, found)
    return Verdict(edit, CONFIRMED if reason is None else FALSE, reason or "")
