"""Bounds of convolutional and residual networks: frequency by frequency, beside other bounds.

Networks of random weights, networks that others trained without a bound (``sdp_crown`` in the data
folder), and networks trained here for some epochs, without one: LeNet-5 and a small one on MNIST,
residual ones on CIFAR-10, their batch normalisation folded.  Each is certified with multipliers per
channel up to a switch layer (``structure="torus"``) and checked again; where the settings ask for
it, neuron by neuron as well (``structure="exact"``), or for images of every size at once
(``structure="every_size"``).  In front of strides multipliers are per channel and phase
(``phases``) where those are few.  ``lower_lip`` is what no multipliers of that form can beat: where
the limit of seconds on the clock ends the search, it says little.  Seconds are processor time of
one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates.torus import certify as torus
from admm_lip.data import load_data
from admm_lip.networks.chain import read_network

from .study import Cell, Row, Study, run_from_command_line
from .tables import markdown

Shape = tuple[int, ...]


class Case(NamedTuple):
    """A network, the shape of its inputs, and its accuracy on test rows in percent, where known."""

    model: nn.Module
    shape: Shape
    clean: float | None = None


class Block(nn.Module):
    """Two convolutions and a shortcut (He, Zhang, Ren and Sun, 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        plain = (channels, stride) == (out, 1)
        self.shortcut: nn.Module = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        branch = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(branch)) + self.shortcut(x))


def resnet(depth: int, first: int = 16, side: int = 32) -> nn.Sequential:
    """A CIFAR ResNet of ``depth = 6 n + 2`` layers, of ``first`` to four times as many channels."""
    n = (depth - 2) // 6
    blocks: list[nn.Module] = []
    channels = first
    for out, stride in ((first, 1), (2 * first, 2), (4 * first, 2)):
        for k in range(n):
            blocks.append(Block(channels, out, stride if k == 0 else 1))
            channels = out
    stem = (nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
    head = (nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(4 * first, 10))
    return nn.Sequential(*stem, *blocks, *head)


def small_random() -> Case:
    """conv4s2-conv8s2-flatten128-16-10 on 16 x 16."""
    layers = (nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU())
    head = (nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 10))
    return Case(nn.Sequential(*layers, *head), (1, 16, 16))


def plain() -> nn.Sequential:
    """conv16s2-conv32s2-flatten1568-100-10 on MNIST's images."""
    layers = (nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU())
    head = (nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(*layers, *head)


def kernels(channels: int, hidden: int) -> Case:
    """A chain of 3 x 3 kernels on 28 x 28, no activation after the last."""
    layers: list[nn.Module] = []
    for k in range(hidden):
        layers += [nn.Conv2d(channels if k else 1, channels, 3, 1, 1), nn.ReLU()]
    return Case(nn.Sequential(*layers, nn.Conv2d(channels, channels, 3, 1, 1)), (1, 28, 28))


def deep_random() -> Case:
    """3-32-64s2-64-128s2-pool-10 on 32 x 32, about 90,000 neurons."""
    layers: list[nn.Module] = []
    sizes = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
    for channels, out, stride in sizes:
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU()]
    head = (nn.AvgPool2d(8), nn.Flatten(), nn.Linear(128, 10))
    return Case(nn.Sequential(*layers, *head), (3, 32, 32))


def published(name: str, folder: Path) -> Case:
    """A network of the SDP-CROWN comparison."""
    stored = np.load(folder / "sdp_crown" / f"{name}.npz", allow_pickle=False)
    weights = [torch.from_numpy(stored[key]) for key in stored.files]
    convolutions = [w for w in weights if w.ndim == 4]
    padding = 0 if name == "cifar10_convsmall" else 1
    shape = (1, 28, 28) if name.startswith("mnist") else (3, 32, 32)
    layers: list[nn.Module] = []
    for w in convolutions:
        layers += [nn.Conv2d(w.shape[1], w.shape[0], 4, 2, padding), nn.ReLU()]
    (first, last) = (w for w in weights if w.ndim == 2)
    layers += [nn.Flatten(), nn.Linear(first.shape[1], first.shape[0]), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(last.shape[1], last.shape[0]))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    return Case(model, shape)


def lenet() -> nn.Sequential:
    """LeNet-5 of ReLU and average pools (LeCun, Bottou, Bengio and Haffner, 1998)."""
    first = (nn.Conv2d(1, 6, 5, 1, 2), nn.ReLU(), nn.AvgPool2d(2))
    second = (nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    head = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    return nn.Sequential(*first, *second, *head)


def trained(network: str, cell: Cell, data_dir: str | None) -> Case:
    """Trained without a bound, by SGD with momentum and one cycle of step sizes."""
    model, data = TRAINED[network](), load_data(cell["data"], data_dir).as_images()
    (x, y), (u, v) = data.train, data.test
    epochs, batches = cell["epochs"], len(x) // 128
    optimizer = torch.optim.SGD(model.parameters(), cell["lr"], momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cell["lr"], total_steps=epochs * batches
    )
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=order), 128)[:batches]:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x[rows]), y[rows]))
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in torch.split(u, 500)]) == v
    return Case(model, data.shape, 100.0 * float(right.double().mean()))


PUBLISHED = ("mnist_convsmall", "cifar10_cnn_a")
RANDOM: dict[str, Callable[[], Case]] = {
    "random conv4s2-conv8s2-16-10": small_random,
    "random, 3 kernels of 8 channels": partial(kernels, 8, 2),
    "random, 3 kernels of 16 channels": partial(kernels, 16, 2),
    "random conv16s2-conv32s2-100-10": lambda: Case(plain(), (1, 28, 28)),
    "random 3-32-64s2-64-128s2-pool-10": deep_random,
    "random ResNet-8 of 4 channels": lambda: Case(resnet(8, 4, 16), (3, 16, 16)),
    "random ResNet-8": lambda: Case(resnet(8), (3, 32, 32)),
}
TRAINED: dict[str, Callable[[], nn.Module]] = {
    "LeNet-5": lenet,
    "conv16s2-conv32s2-100-10": plain,
    "ResNet-8": partial(resnet, 8),
    "ResNet-20": partial(resnet, 20),
}


def case_of(cell: Cell, data_dir: str | None) -> Case:
    """The network of a cell."""
    name = cell["network"]
    if name in PUBLISHED:
        return published(name, Path(data_dir or "."))
    return RANDOM[name]() if name in RANDOM else trained(name, cell, data_dir)


def cells(settings: Cell) -> list[Cell]:
    """One for each network."""
    return [{"limit": settings["limit"], **network} for network in settings["networks"]]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Bounds and seconds of one network, each within a limit on the clock."""
    torch.manual_seed(0)
    model, shape, clean = case_of(cell, data_dir)
    hidden = _neurons(model, shape)
    solver = SolverConfig(time_limit=float(cell["limit"]))
    begun = time.process_time()
    found = certify(model, shape, structure="torus", solver=solver)
    spent = time.process_time() - begun
    begun = time.process_time()
    verify(found, model)
    row: Row = {
        **({} if clean is None else {"clean": clean}),
        "neurons": hidden,
        "switch": found.switch,
        "phases": found.phases,
        "lip": found.lip,
        "lower_lip": found.lower_lip,
        "norm_product": found.norm_product,
        "sampled": found.sampled_lower,
        "cpu_seconds": spent,
        "verify_cpu_seconds": time.process_time() - begun,
    }
    if cell.get("per_channel"):
        with mock.patch.object(torus, "affordable", lambda chain: 1):
            row |= _beside("channel", "torus", model, shape, solver)
    for structure in ("exact", "every_size"):
        if cell.get(structure):
            row |= _beside(structure, structure, model, shape, solver)
    return row


def _beside(name: str, structure: str, model: nn.Module, shape: Shape, solver: SolverConfig) -> Row:
    """Another bound of the network, and its seconds, under names of its own."""
    begun = time.process_time()
    found = certify(model, shape, structure=structure, solver=solver)
    return {
        f"{name}_lip": found.lip,
        f"{name}_lower": found.lower_lip,
        f"{name}_norm_product": found.norm_product,
        f"{name}_cpu_seconds": time.process_time() - begun,
    }


def _neurons(model: nn.Module, shape: Shape) -> int:
    """Hidden neurons of the network as it is read."""
    network = read_network(model.eval(), shape)
    shapes = network.shapes()
    return sum(math.prod(shapes[s.name]) for s in network.layers if s.kind == "relu")


def tabulate(rows: list[Row]) -> str:
    """Bounds beside the product of norms, the gap to the best multipliers, seconds."""
    header = ["network", "epochs", "clean %", "neurons", "bound", "norms", "gap", "CPU s"]
    return markdown(
        header,
        (
            [
                row["network"],
                row.get("epochs", ""),
                f"{row['clean']:.1f}" if "clean" in row else "",
                f"{row['neurons']:,}",
                f"{row['lip']:.4g}",
                f"{row['norm_product']:.4g}",
                f"{1.0 - row['lower_lip'] / row['lip']:.1e}",
                f"{row['cpu_seconds']:.1f}",
            ]
            for row in rows
        ),
    )


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """No picture."""
    return []


STUDY = Study("image_bounds", cells, run_cell, tabulate, draw, jobs=1)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
