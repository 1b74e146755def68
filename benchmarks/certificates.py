"""What each kind of certificate proves of a network that nobody trained for a bound.

    python -m benchmarks certificates --data-dir DIR [--seed 0] [--keep FOLDER]

Two MNIST networks 784-64-64-10, one trained plainly and one adversarially, their weights left as
they are; for each level of certificate the share of test pictures that are certified, and what it
costs.  ``--keep`` saves the networks with their proofs, so that ``admm-lip verify`` can check them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admm_lip import certified_radii, certify, verify
from admm_lip.certificates.certificate import AnyCertificate, Certificate, FunctionalCertificate
from admm_lip.data import load_data
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.storage import save_network
from admm_lip.research.comparators import METHODS
from admm_lip.training.train import TrainConfig

from . import record
from .catalogue import parser_of
from .whole_run import train

RADII = (0.1, 0.5, 1.58)
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """How a network under test is trained: plain data."""

    method: str
    options: dict[str, Any]
    epochs: int
    lr: float
    schedule: str


SUBJECTS = {
    "plain": Subject("nominal", {}, epochs=15, lr=1e-3, schedule="constant"),
    "pgd": Subject("pgd", {"eps": 0.5, "norm": "l2"}, epochs=6, lr=1e-3, schedule="constant"),
}


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of all threads together: a busy machine stretches the first."""

    wall: float
    cpu: float


@dataclass(frozen=True, eq=False)
class Proofs:
    """The two certificates that the levels are read from, and what they took."""

    whole: Certificate
    pairs: FunctionalCertificate
    whole_cost: Cost
    pairs_cost: Cost


def of_products(certificate: Certificate) -> Certificate:
    """The same claim with the product of norms in place of the bound."""
    return replace(certificate, lip=certificate.norm_product)


def of_pair_products(certificate: FunctionalCertificate) -> FunctionalCertificate:
    """The same claims, each with its own product of norms: of the layers and the row difference."""
    bounds = (replace(b, lip=b.norm_product) for b in certificate.bounds)
    return replace(certificate, bounds=tuple(bounds))


# Level -> the certificate whose radii it counts, and what it took (products: next to nothing).
LEVELS: dict[str, Callable[[Proofs], tuple[AnyCertificate, Cost | None]]] = {
    "norm product": lambda p: (of_products(p.whole), None),
    "pairwise norm products": lambda p: (of_pair_products(p.pairs), None),
    "LipSDP, sqrt(2) rule": lambda p: (p.whole, p.whole_cost),
    "pairwise LipSDP": lambda p: (p.pairs, p.pairs_cost),
}


def trained(subject: Subject, data: Any, seed: int, hidden: tuple[int, ...]) -> nn.Module:
    """The network of a subject, from the seed alone."""
    model = build_mlp(data[0].shape[1], 10, ModelConfig(hidden), seed=seed)
    config = TrainConfig(
        epochs=subject.epochs,
        seed=seed,
        loss="cross_entropy",
        lr=subject.lr,
        schedule=subject.schedule,
    )
    return train(model, data, config, method=METHODS[subject.method](**subject.options)).model


def timed(make: Callable[[], Any]) -> tuple[Any, Cost]:
    """What ``make`` returns and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def proofs_of(model: nn.Module) -> Proofs:
    """Both certificates, made and verified."""
    whole, whole_cost = timed(lambda: certify(model))
    pairs, pairs_cost = timed(lambda: certify(model, kind="pairwise"))
    for certificate in (whole, pairs):
        verify(certificate, model)
    return Proofs(whole, pairs, whole_cost, pairs_cost)


def level_rows(name: str, model: nn.Module, x: Tensor, y: Tensor, proofs: Proofs) -> list[Row]:
    """One row per level."""
    with torch.no_grad():
        clean = 100.0 * float((model(x).argmax(dim=1) == y).float().mean())
    rows: list[Row] = []
    for level, find in LEVELS.items():
        certificate, cost = find(proofs)
        radii = certified_radii(model, x, y, certificate=certificate)
        row: Row = {"network": name, "clean": clean, "level": level}
        row |= {"seconds": cost and cost.wall, "cpu_seconds": cost and cost.cpu}
        for radius in RADII:
            row[f"certified_{radius}"] = 100.0 * float((radii > radius).double().mean())
        rows.append(row)
    return rows


def bounds_row(name: str, model: nn.Module, proofs: Proofs) -> Row:
    """The bounds themselves, their gaps and the CPU seconds of checking them."""
    pairs = proofs.pairs.bounds
    return {
        "network": name,
        "lip": proofs.whole.lip,
        "norm_product": proofs.whole.norm_product,
        "sampled_lower": proofs.whole.sampled_lower,
        "global_gap": 1.0 - proofs.whole.lower_lip / proofs.whole.lip,
        "largest_pair_gap": max(1.0 - b.lower_lip / b.lip for b in pairs),
        "mean_pair_lip": sum(b.lip for b in pairs) / len(pairs),
        "mean_pair_sampled": sum(b.sampled_lower for b in pairs) / len(pairs),
        "verify_seconds": timed(lambda: verify(proofs.whole, model))[1].cpu,
        "verify_pairs_seconds": timed(lambda: verify(proofs.pairs, model))[1].cpu,
    }


def keep(folder: Path, model: nn.Module, proofs: Proofs) -> None:
    """Save the network with both proofs."""
    folder.mkdir(parents=True, exist_ok=True)
    save_network(read_network(model), folder)
    proofs.whole.save(folder / "certificate.json")
    proofs.pairs.save(folder / "pairwise.json")


def main(argv: list[str]) -> None:
    """Train, certify, count, and write the record."""
    parser = parser_of("certificates")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--keep", type=Path, default=None, help="save networks and proofs here")
    parser.add_argument("--record", default="certificates", help="name of the record")
    options = parser.parse_args(argv)
    data = load_data("mnist", options.data_dir)
    rows: list[Row] = []
    for name in options.subjects:
        model = trained(SUBJECTS[name], data.train, options.seed, tuple(options.hidden))
        proofs = proofs_of(model)
        rows += [*level_rows(name, model, *data.test, proofs), bounds_row(name, model, proofs)]
        if options.keep is not None:
            keep(options.keep / name, model, proofs)
    for row in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    settings = vars(options) | {"data_dir": None, "keep": None, "subjects": options.subjects}
    settings |= {"threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
    settings["training"] = {name: vars(SUBJECTS[name]) for name in options.subjects}
    record.save(options.record, settings, rows)
