"""The paper's own cases: the 2D toy (2-10-10-3 tanh) and MNIST 196-50-10, both modes.

    python -m benchmarks paper_cases [--data-dir DIR] [--seeds 0 1 2]

Shows, per run, that the consensus satisfies its bound in every round, what was proven of the
shipped weights, and the accuracy.  Settings follow the authors' code where ADMM with few steps a
round has a counterpart: 50 training points and 5,000 test points for the toy (full batches), Adam
and batches of 100 for MNIST.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.fit import FitConfig, fit
from admm_lip.methods.base import Method
from admm_lip.models import ModelConfig, build_mlp

from . import record

TOY = TrainConfig(bound=1.0, loss="cross_entropy", epochs=4000, batch_size=50, lr=5e-3)
MNIST = TrainConfig(bound=1.0, loss="cross_entropy", epochs=6, batch_size=100)
# case -> (data set, model, settings, bounds, weights mu on L^2)
CASES: dict[str, Any] = {
    "toy": ("toy2d", ModelConfig((10, 10), "tanh"), TOY, (20.0, 60.0, 130.0), (1e-5, 1e-4, 1e-3)),
    "mnist14": ("mnist14", ModelConfig((50,), "relu"), MNIST, (1.0, 3.0, 10.0), (1e-3, 1e-2, 1e-1)),
}


def accuracy(model: torch.nn.Module, pair: Any) -> float:
    """Share of rows classified correctly, in per cent."""
    x, y = pair
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def runs(case: str, seed: int, data_dir: str | None) -> list[dict[str, Any]]:
    """Every bound and every mu of one case, and the plain network beside them."""
    name, architecture, config, bounds, weights = CASES[case]
    data = load_data(name, data_dir)
    model = build_mlp(data.train[0].shape[1], data.n_classes, architecture, seed=seed)
    same = {k: getattr(config, k) for k in ("epochs", "batch_size", "lr", "loss")}
    plain = fit(model, data.train, Method(), FitConfig(seed=seed, **same), progress=False)
    rows = [{"case": case, "seed": seed, "mode": "plain", "test": accuracy(plain.model, data.test)}]
    settings = [replace(config, bound=b) for b in bounds]
    settings += [replace(config, mode="penalty", bound=None, mu=mu) for mu in weights]
    for setting in settings:
        result = train(model, data.train, replace(setting, seed=seed), progress=False)
        rows.append(
            {
                "case": case,
                "seed": seed,
                "mode": setting.mode,
                "bound": setting.bound,
                "mu": setting.mu,
                "lip": result.certificate.lip,
                "highest_ball_norm": max(r["ball_norm"] for r in result.history),
                "highest_lip_of_a_round": max(r["lip"] for r in result.history),
                "train": accuracy(result.model, data.train),
                "test": accuracy(result.model, data.test),
                "seconds": result.seconds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(argv: list[str]) -> None:
    """Run both cases and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks paper_cases", description=__doc__)
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(argv)
    rows = []
    for case in options.cases:
        for seed in options.seeds:
            rows += runs(case, seed, options.data_dir)
    record.save("paper_cases", vars(options) | {"data_dir": None}, rows)
