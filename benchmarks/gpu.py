"""What an accelerator is worth: everything that may be put on one, against the CPU beside it.

    python -m benchmarks gpu [--device cuda] [--minutes 8] [--quick]

Every case runs on the CPU and on the device, by turns: once to warm up, then ``--repeats`` times;
seconds are medians on the clock, the device synchronised.  ``difference`` is that of the two
answers, relatively: bounds are proven in float64 on the CPU wherever they were found.  Cases that
no longer fit into ``--minutes`` are named as left out.  ``--device cpu --quick`` tries the script.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from admm_lip import SolverConfig, TrainConfig, certify, project
from admm_lip.local import LocalConfig, certify_local
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.sorting_torch import MaxMin

from . import record
from .catalogue import parser_of
from .whole_run import train

Row = dict[str, Any]
# What a case does on a device; the number that it gives is compared.
Work = Callable[[str], float]


def network(*sizes: int, activation: str = "relu") -> nn.Sequential:
    """A random perceptron, the same on every device."""
    config = ModelConfig(sizes[1:-1], activation, init="torch")
    return build_mlp(sizes[0], sizes[-1], config, seed=0)


def images(rows: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs with labels of ten classes."""
    dice = torch.Generator().manual_seed(0)
    return torch.rand(rows, *shape, generator=dice), torch.randint(0, 10, (rows,), generator=dice)


def certified(*sizes: int) -> Work:
    """The interior point, the sampling and the proof of a perceptron."""
    model = network(*sizes)
    return lambda device: (
        certify(model.to(device), solver=SolverConfig("native", device=device)).lip
    )


def projected(*sizes: int) -> Work:
    """A perceptron brought under half its bound by the splitting."""
    model = network(*sizes)
    bound = 0.5 * certify(model).lip
    return lambda device: (
        project(
            model.to(device), bound, solver=SolverConfig("native", device=device), progress=False
        ).certificate.lip
    )


def trained(rows: int, *sizes: int) -> Work:
    """Two epochs under L = 1, the constraint on the device."""
    data = images(rows, sizes[0])

    def run(device: str) -> float:
        model = network(*sizes, activation="max_min").to(device)
        solver = SolverConfig("native", device=device)
        config = TrainConfig(bound=1.0, epochs=2, batch_size=256, solver=solver)
        return train(model, data, config, progress=False).certificate.lip

    return run


def convolutions(rows: int, side: int, channels: int) -> Work:
    """Two epochs of plain convolutions under L = 1."""
    data = images(rows, 1, side, side)

    def run(device: str) -> float:
        torch.manual_seed(0)
        first = (nn.Conv2d(1, channels, 4, 2, 1), MaxMin(), nn.Conv2d(channels, channels, 4, 2, 1))
        ends = (MaxMin(), nn.Flatten(), nn.Linear(channels * (side // 4) ** 2, 10))
        model = nn.Sequential(*first, *ends).to(device)
        config = TrainConfig(bound=1.0, epochs=2, batch_size=256)
        return train(model, data, config, progress=False).certificate.lip

    return run


def balls(count: int, side: int, channels: int) -> Work:
    """Local certificates of a convolutional network, pictures side by side."""
    torch.manual_seed(0)
    first = (nn.Conv2d(1, channels, 4, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 4, 2, 1))
    head = (nn.Linear(channels * (side // 4) ** 2, 50), nn.ReLU(), nn.Linear(50, 10))
    model = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), *head)
    x, _ = images(count, 1, side, side)
    y = model(x).argmax(1)

    def run(device: str) -> float:
        found = certify_local(
            model.to(device), x.to(device), 0.05, y.to(device), config=LocalConfig("quadratic")
        )
        return float(found.margin.double().cpu().mean())

    return run


def cases(quick: bool) -> dict[str, Callable[[], Work]]:
    """Name to what makes the work of it."""
    if quick:
        return {
            "certify 6-4-3": lambda: certified(6, 4, 3),
            "project 6-4-3": lambda: projected(6, 4, 3),
            "train 6-4-10": lambda: trained(64, 6, 4, 10),
            "train convolutions, 4 channels": lambda: convolutions(32, 8, 4),
            "4 balls, 2 channels": lambda: balls(4, 8, 2),
        }
    return {
        "certify 784-64-64-10": lambda: certified(784, 64, 64, 10),
        "certify 10 x 100": lambda: certified(*[100] * 11, 10),
        "certify 784-512-512-10": lambda: certified(784, 512, 512, 10),
        "project 784-256-256-10": lambda: projected(784, 256, 256, 10),
        "project 784-1024-1024-10": lambda: projected(784, 1024, 1024, 10),
        "train 784-64-64-10": lambda: trained(20_000, 784, 64, 64, 10),
        "train 784-512-512-10": lambda: trained(20_000, 784, 512, 512, 10),
        "train 784-1024-1024-10": lambda: trained(20_000, 784, 1024, 1024, 10),
        "train convolutions, 32 channels": lambda: convolutions(5_000, 28, 32),
        "64 balls, 16 channels": lambda: balls(64, 28, 16),
    }


def timed(work: Work, device: str) -> tuple[float, float]:
    """The answer, and seconds on the clock."""
    begun = time.perf_counter()
    answer = work(device)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return answer, time.perf_counter() - begun


def row_of(name: str, work: Work, device: str, repeats: int) -> Row:
    """One case, both by turns."""
    seconds: dict[str, list[float]] = {"cpu": [], device: []}
    answers = {where: work(where) for where in seconds}
    for _ in range(repeats):
        for where, spent in seconds.items():
            answers[where], took = timed(work, where)
            spent.append(took)
    cpu, there = (statistics.median(seconds[where]) for where in ("cpu", device))
    difference = abs(answers[device] - answers["cpu"]) / max(abs(answers["cpu"]), 1e-300)
    return {
        "case": name,
        "answer": answers["cpu"],
        "difference": difference,
        "cpu_seconds": cpu,
        "device_seconds": there,
        "ratio": cpu / there,
    }


def main(argv: list[str]) -> None:
    """Measure every case, print and record."""
    parser = parser_of("gpu")
    parser.add_argument("--device", default="cuda", help="such as cuda or cuda:1")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", default="gpu", help="name of the record")
    parser.add_argument("--quick", action="store_true", help="tiny cases, no record")
    options = parser.parse_args(argv)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: torch finds no {options.device} here; --device cpu --quick tries")
    rows: list[Row] = []
    end = time.monotonic() + 60.0 * options.minutes
    for name, make in cases(options.quick).items():
        late = time.monotonic() > end
        rows.append(
            {"case": name, "left_out": "no time left"}
            if late
            else row_of(name, make(), options.device, options.repeats)
        )
        print(rows[-1], flush=True)
    if not options.quick:
        name = torch.cuda.get_device_name(options.device)
        settings = {"device": name, "threads": torch.get_num_threads()}
        record.save(options.record, settings | {"repeats": options.repeats}, rows)
