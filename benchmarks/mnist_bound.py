"""MNIST 784-64-64-10 under bound 1 against the same loop without a constraint.

    python -m benchmarks mnist_bound --data-dir DIR [--activation max_min] [--validation]

Each seed trains the network with the same loss and no constraint first, and the constrained one
straight after it.  The ratio is of processor time, on one thread, for the whole calls: data checks,
start and certification included.
``--validation`` holds 10,000 training pictures out and scores on them: the mode for tuning.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from admm_lip import TrainConfig, certified_radii
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.training.method import Method

from . import record
from .catalogue import parser_of
from .whole_run import train

RADII = (0.1, 0.5, 1.58)


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of rows classified correctly, in per cent."""
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def one_seed(
    data: Any, scored: Any, seed: int, config: TrainConfig, shape: ModelConfig
) -> dict[str, Any]:
    """Plain training, then training under the bound, from the same start."""
    x, y = scored
    model = build_mlp(x.shape[1], 10, shape, seed=seed)
    begun = time.process_time()
    plain = train(
        model,
        data,
        TrainConfig(
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=seed,
            lr=config.lr,
            loss=config.loss,
            eps=config.eps,
            temperature=config.temperature,
            schedule=config.schedule,
        ),
        method=Method(),
        progress=False,
    )
    plain_seconds = time.process_time() - begun
    begun = time.process_time()
    result = train(model, data, config, progress=False)
    seconds = time.process_time() - begun
    radii = certified_radii(result.model, x, y, certificate=result.certificate)
    row = {
        "seed": seed,
        "clean": accuracy(result.model, x, y),
        "lip": result.certificate.lip,
        "highest_ball_norm": max(r["ball_norm"] for r in result.history),
        "rounds": len(result.history),
        "projection_iterations": sum(r["iterations"] for r in result.history) / len(result.history),
        "cpu_seconds": seconds,
        "plain_cpu_seconds": plain_seconds,
        "ratio": seconds / plain_seconds,
        "plain_clean": accuracy(plain.model, x, y),
    }
    for radius in RADII:
        row[f"certified_{radius}"] = 100.0 * float((radii > radius).float().mean())
    return row


def main(argv: list[str]) -> None:
    """Run all seeds and write the record."""
    parser = parser_of("mnist_bound")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--activation", default="relu", choices=["relu", "max_min"])
    parser.add_argument("--round-steps", type=int, default=None)
    parser.add_argument("--validation", action="store_true", help="score on a validation split")
    parser.add_argument("--record", default="mnist_bound", help="name of the record")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    loaded = load_data("mnist", options.data_dir)
    if options.validation:
        loaded = loaded.split(validation=1 / 6, seed=0)
    rows = []
    for seed in options.seeds:
        config = TrainConfig(
            bound=1.0,
            loss="margin",
            eps=options.eps,
            epochs=options.epochs,
            seed=seed,
            round_steps=options.round_steps,
        )
        shape = ModelConfig(tuple(options.hidden), options.activation)
        row = one_seed(loaded.train, loaded.test, seed, config, shape)
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    record.save(options.record, vars(options) | {"data_dir": None}, rows)
