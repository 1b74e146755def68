"""Equal contents have equal texts in every process, other contents have others."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from admm_lip.training.batches import as_batches
from admm_lip.training.config import TrainConfig
from admm_lip.training.identity import (
    architecture,
    data_identity,
    describe,
    difference,
    identity_of,
)

WEIGHT = 2.0


def weighted(weight: Any) -> Callable:
    return lambda outputs, targets: weight * (outputs - targets).square().mean()


def reads_a_global(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return WEIGHT * (outputs - targets).abs().mean()


def factorial(n: int) -> int:
    return n * factorial(n - 1) if n else 1


class Weighted:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.weight * (outputs - targets).abs().mean()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self(outputs, targets)


@dataclass(frozen=True)
class Smooth:
    by: float = 0.1


SAME = {
    "lambda with a closure": lambda: weighted(2.0),
    "closure over a tensor": lambda: weighted(torch.ones(3)),
    "function": lambda: reads_a_global,
    "recursive": lambda: factorial,
    "torch's function": lambda: functional.cross_entropy,
    "builtin": lambda: torch.tanh,
    "partial": lambda: functools.partial(functional.cross_entropy, label_smoothing=0.1),
    "callable object": lambda: Weighted(1.0),
    "bound method": lambda: Weighted(1.0).loss,
    "module": lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    "dataclass": Smooth,
    "containers": lambda: {"a": [1, (2.0, None)], "b": {"x", "y", "z"}, "c": np.arange(3)},
    "half and bool": lambda: (torch.ones(3, dtype=torch.bfloat16), torch.tensor([True])),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_made_again_is_the_same_and_has_no_address(name: str) -> None:
    first, second = SAME[name](), SAME[name]()
    assert describe(first) == describe(second)
    assert hex(id(first)) not in describe(first)
    assert " at 0x" not in describe(first)


OTHER = {
    "closure": (weighted(2.0), weighted(3.0)),
    "closure over tensors": (weighted(torch.ones(3)), weighted(torch.zeros(3))),
    "code": (lambda o, t: (o - t).abs().mean(), lambda o, t: (o - t).abs().sum()),
    "constant": (lambda o, t: 2 * o.mean(), lambda o, t: 3 * o.mean()),
    "constant inside": (lambda o, t: [2 * k for k in o], lambda o, t: [3 * k for k in o]),
    "default": (lambda o, t, w=1.0: w * o, lambda o, t, w=2.0: w * o),
    "keyword default": (lambda o, t, *, w=1.0: w * o, lambda o, t, *, w=2.0: w * o),
    "partial": tuple(functools.partial(functional.huber_loss, delta=d) for d in (1.0, 2.0)),
    "attribute": (Weighted(1.0), Weighted(2.0)),
    "method of": (Weighted(1.0).loss, Weighted(2.0).loss),
    "module's setting": (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=2.0)),
    "module's tensor": tuple(nn.NLLLoss(torch.tensor([1.0, w])) for w in (1.0, 2.0)),
    "module's class": (nn.L1Loss(), nn.MSELoss()),
    "torch's functions": (functional.l1_loss, functional.mse_loss),
    "names": ("margin", "cross_entropy"),
    "dtype": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "one bit": (torch.tensor([1.0]), torch.tensor([1.0]).nextafter(torch.tensor(2.0))),
    "dataclass": (Smooth(), Smooth(by=0.2)),
    "arrays": (np.array([1, 2]), np.array([1, 3])),
    "words": (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
    "nesting": ([["a"], "b"], ["a", ["b"]]),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_contents_are_told_apart(name: str) -> None:
    first, second = OTHER[name]
    assert describe(first) != describe(second)


def test_a_global_that_a_loss_reads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(reads_a_global)
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    assert describe(reads_a_global) != before


def test_what_refers_to_itself_has_an_end() -> None:
    ring: list = []
    ring.append(ring)
    assert describe(ring) == "[itself]"


SCRIPT = """
import torch
from admm_lip.training.identity import describe
def made(weight):
    return lambda outputs, targets: weight * (outputs - targets).mean() if {"x", "y"} else 0
print(describe(made(2.0)), describe({"b", "a", "c"}), describe(torch.arange(5)))
"""


def test_another_process_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    said = set()
    for lines, seed in (("", "1"), ("# moved\n\n", "2")):
        file.write_text(lines + SCRIPT)
        command = [sys.executable, str(file)]
        environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(found.stdout)
    assert len(said) == 1


def nets() -> dict[str, nn.Module]:
    class Own(nn.Module):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(2, 2), scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.inner(x))

    class Other(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.inner(x))

    Other.__qualname__ = Own.__qualname__
    return {
        "relu": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        "tanh": nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
        "leaky": nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1)),
        "leakier": nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2)),
        "no bias": nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()),
        "double": nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double(),
        "own": Own(),
        "own scale": Own(2.0),
        "own forward": Other(),
    }


def test_architectures_differ_by_kind_setting_and_forward_but_not_by_weights() -> None:
    first, second = nets(), nets()
    texts = {name: str(architecture(net)) for name, net in first.items()}
    assert texts == {name: str(architecture(net)) for name, net in second.items()}
    assert len(set(texts.values())) == len(texts)
    assert str(architecture(first["relu"].eval())) == texts["relu"]


READER = nn.Linear(2, 2)
X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])


def loader(x: torch.Tensor, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(x, Y), batch_size=4, shuffle=shuffle)


class Noisy(Dataset):
    """Its samples are other ones whenever they are drawn."""

    draws = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        Noisy.draws += 1
        return X[k] + Noisy.draws, int(Y[k])


def test_data_are_known_by_their_content_and_loaders_by_their_first_batch() -> None:
    def identity(data: Any) -> dict[str, str]:
        return data_identity(as_batches(data, 4, READER))

    before = torch.get_rng_state()
    assert identity((X, Y)) == identity((X.clone(), Y.clone()))
    assert difference(identity((X + 1, Y)), identity((X, Y))).startswith("another data (inputs)")
    assert difference(identity((X, 1 - Y)), identity((X, Y))).startswith("another data (targets)")
    for shuffle in (False, True):
        assert identity(loader(X, shuffle)) == identity(loader(X.clone(), shuffle))
        other = difference(identity(loader(X + 1, shuffle)), identity(loader(X, shuffle)))
        assert other.startswith("another data (first inputs)")
    assert torch.equal(before, torch.get_rng_state())


def test_augmented_data_are_not_refused_for_their_noise() -> None:
    noisy = DataLoader(Noisy(), batch_size=4)
    first, second = (data_identity(as_batches(noisy, 4, READER)) for _ in range(2))
    assert first == second
    assert "[4, 2] torch.float32" in first.values()
    assert describe(Y[:4]) in first.values()


def test_how_long_a_run_is_and_how_often_it_is_saved_are_free() -> None:
    config = TrainConfig(bound=1.0)
    batches, net = as_batches((X, Y), 4, READER), nets()["relu"]

    def identity(settings: TrainConfig) -> dict[str, str]:
        return identity_of(settings, net, batches, "auto", None)

    free = replace(config, epochs=99, checkpoint_seconds=5.0)
    assert difference(identity(free), identity(config)) is None
    for change in ({"lr": 0.5}, {"bound": 2.0}, {"solver": replace(config.solver, tol=1e-3)}):
        changed = identity(replace(config, **change))
        assert difference(changed, identity(config)).startswith("another setting")
