"""Bounds of convolutional and residual networks: frequency by frequency, beside other bounds.

    python -m benchmarks image_bounds --data-dir DIR [--only NAME] [--limit 90] [--epochs 2]

Networks of random weights, networks that others trained without a bound (``sdp_crown`` in the data
folder), and networks trained here for some epochs, without one: LeNet-5 and a small one on MNIST,
residual ones on CIFAR-10, their batch normalisation folded.  Each is certified with multipliers per
channel up to a switch layer (``structure="torus"``) and checked again; where it is small enough,
neuron by neuron as well (``structure="exact"``), and chains of kernels for images of every size at
once (``structure="every_size"``).  In front of strides multipliers are per channel and phase
(``phases``) where those are few.  ``lower_lip`` is what no multipliers of that form can beat: where
the limit of seconds on the clock ends the search, it says little.  Seconds are processor time of
one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates.torus import certify as torus
from admm_lip.data import load_data
from admm_lip.networks.chain import read_network

from . import record
from .catalogue import parser_of

Shape = tuple[int, ...]
SMALL = 2000


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


def trained(
    build: Callable[[], nn.Module], name: str, rate: float, options: argparse.Namespace
) -> Case:
    """Trained without a bound, by SGD with momentum and one cycle of step sizes."""
    model, data = build(), load_data(name, options.data_dir).as_images()
    (x, y), (u, v) = data.train, data.test
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    steps = options.epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    order = torch.Generator().manual_seed(0)
    for _ in range(options.epochs):
        for rows in torch.split(torch.randperm(len(x), generator=order), 128)[: len(x) // 128]:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x[rows]), y[rows]))
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in torch.split(u, 500)]) == v
    return Case(model, data.shape, 100.0 * float(right.double().mean()))


# name -> how it is built, on what it is trained, and the largest step size
TRAINED: tuple[tuple[str, Callable[[], nn.Module], str, float], ...] = (
    ("LeNet-5", lenet, "mnist", 0.05),
    ("conv16s2-conv32s2-100-10", plain, "mnist", 0.05),
    ("ResNet-8", lambda: resnet(8), "cifar10", 0.2),
    ("ResNet-20", lambda: resnet(20), "cifar10", 0.2),
)


def cases(options: argparse.Namespace) -> Mapping[str, Callable[[], Case]]:
    """Every network by name."""
    folder = Path(options.data_dir or ".")
    names = ("mnist_convsmall", "cifar10_cnn_a")
    found: dict[str, Callable[[], Case]] = {"random conv4s2-conv8s2-16-10": small_random}
    for channels, hidden in ((8, 2), (16, 2)):
        label = f"random, {hidden + 1} kernels of {channels} channels"
        found[label] = partial(kernels, channels, hidden)
    found["random conv16s2-conv32s2-100-10"] = lambda: Case(plain(), (1, 28, 28))
    found["random 3-32-64s2-64-128s2-pool-10"] = deep_random
    found |= {name: partial(published, name, folder) for name in names}
    found["random ResNet-8 of 4 channels"] = lambda: Case(resnet(8, 4, 16), (3, 16, 16))
    found["random ResNet-8"] = lambda: Case(resnet(8), (3, 32, 32))
    for name, build, data, rate in TRAINED:
        label = f"{name}, {options.epochs} epoch{'s' * (options.epochs > 1)} of {data}"
        found[label] = partial(trained, build, data, rate, options)
    return found


def row_of(name: str, case: Callable[[], Case], limit: float) -> dict[str, Any]:
    """Bounds and seconds of one network, each within a limit on the clock."""
    torch.manual_seed(0)
    model, shape, clean = case()
    hidden = _neurons(model, shape)
    solver = SolverConfig(time_limit=limit)
    begun = time.process_time()
    found = certify(model, shape, structure="torus", solver=solver)
    spent = time.process_time() - begun
    begun = time.process_time()
    verify(found, model)
    row = {
        "network": name,
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
    if found.phases > 1:
        begun = time.process_time()
        with mock.patch.object(torus, "affordable", lambda chain: 1):
            plain = certify(model, shape, structure="torus", solver=solver)
        row |= {"channel_lip": plain.lip, "channel_lower": plain.lower_lip}
        row |= {"channel_cpu_seconds": time.process_time() - begun}
    if hidden <= SMALL:
        begun = time.process_time()
        exact = certify(model, shape, structure="exact", solver=solver)
        row |= {"exact_lip": exact.lip, "exact_norm_product": exact.norm_product}
        row |= {"exact_lower": exact.lower_lip, "exact_cpu_seconds": time.process_time() - begun}
    if "kernels" in name:
        begun = time.process_time()
        every = certify(model, shape, structure="every_size", solver=solver)
        row |= {"every_size_lip": every.lip, "every_size_lower": every.lower_lip}
        row |= {"every_size_norm_product": every.norm_product}
        row |= {"every_size_cpu_seconds": time.process_time() - begun}
    return row


def _neurons(model: nn.Module, shape: Shape) -> int:
    """Hidden neurons of the network as it is read."""
    network = read_network(model.eval(), shape)
    shapes = network.shapes()
    return sum(math.prod(shapes[s.name]) for s in network.layers if s.kind == "relu")


def main(argv: list[str]) -> None:
    """Certify every network and write the record."""
    parser = parser_of("image_bounds")
    parser.add_argument("--data-dir", default=None, help="folder of MNIST, CIFAR-10, sdp_crown")
    parser.add_argument("--only", default=None, help="networks whose name contains this")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of one certificate")
    parser.add_argument("--epochs", type=int, default=2, help="of networks trained here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name, case in cases(options).items():
        if options.only is None or options.only in name:
            rows.append(row_of(name, case, options.limit))
            print(rows[-1], flush=True)
    if options.only is None:
        record.save(
            "image_bounds", {"epochs": options.epochs, "limit": options.limit, "threads": 1}, rows
        )
