"""The consensus satisfies its bound in every round: the paper's cases, both modes.

    python -m benchmarks rounds [--data-dir DIR] [--seeds 0 1 2]

Per run: the largest measured norm of the scaled matrix over all rounds (at most 1 where the
inequality holds), the largest L of a round, and the L proven of the shipped weights.
"""

from __future__ import annotations

from typing import Any

from admm_lip import TrainConfig
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp

from . import record
from .catalogue import parser_of
from .whole_run import train

# case -> (data set, network, settings shared by both modes, bound, mu)
Case = tuple[str, ModelConfig, dict[str, Any], float, float]
CASES: dict[str, Case] = {
    "2-10-10-3 tanh": (
        "toy2d",
        ModelConfig((10, 10), "tanh"),
        {"epochs": 2000, "batch_size": 50, "lr": 5e-3},
        40.0,
        1e-4,
    ),
    "196-50-10 relu": ("mnist14", ModelConfig((50,)), {"epochs": 6, "batch_size": 100}, 2.0, 1e-2),
}


def run(case: str, mode: str, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Train one case in one mode and read its history."""
    name, architecture, settings, bound, mu = CASES[case]
    data = load_data(name, data_dir)
    model = build_mlp(data.n_features, data.n_outputs, architecture, seed=seed)
    asked: dict[str, Any] = {"bound": bound} if mode == "bound" else {"mu": mu}
    config = TrainConfig(loss="cross_entropy", seed=seed, **asked, **settings)
    result = train(model, data.train, config, progress=False)
    return {
        "case": case,
        "mode": mode,
        **asked,
        "seed": seed,
        "rounds": len(result.history),
        "highest_ball_norm": max(row["ball_norm"] for row in result.history),
        "highest_lip": max(row["lip"] for row in result.history),
        "last_lip": result.history[-1]["lip"],
        "proven_lip": result.certificate.lip,
    }


def main(argv: list[str]) -> None:
    """Run all cases and write the record."""
    parser = parser_of("rounds")
    parser.add_argument("--data-dir", default=None, help="folder that holds MNIST/raw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    rows = [
        run(case, mode, seed, options.data_dir)
        for case in CASES
        for mode in ("bound", "penalty")
        for seed in options.seeds
    ]
    for row in rows:
        print({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    record.save("rounds", vars(options) | {"data_dir": None}, rows)
