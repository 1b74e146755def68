"""No certificate below what is known or found, on random networks of every awkward shape."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import oracles
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from admm_lip import certify, verify

Array = NDArray[np.float64]
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
# What is computed by the oracle in float64 carries rounding of its own.
SLACK = 1.0 + 1e-9


@dataclass(frozen=True)
class Case:
    """A network with the numbers it was drawn from."""

    model: nn.Sequential
    weights: list[Array]
    biases: list[Array]
    scale: float
    positive: bool


def drawn(seed: int) -> Case:
    """Widths from 1 to 9, up to 4 hidden layers, weights from 1e-6 to 1e6, damaged rows."""
    rng = np.random.default_rng(seed)
    widths = [int(n) for n in rng.choice([1, 1, 2, 3, 5, 9], rng.integers(1, 6))]
    widths.append(int(rng.choice([1, 2, 3, 4])))
    scale = 10.0 ** rng.uniform(-6.0, 6.0)
    positive = bool(rng.random() < 0.2)
    weights = [scale * rng.standard_normal((b, a)) for a, b in itertools.pairwise(widths)]
    if positive:
        weights = [np.abs(w) for w in weights]
    for w in weights:
        damage = rng.random()
        if damage < 0.15:  # a dead neuron, or a zero output
            w[rng.integers(len(w))] = 0.0
        elif damage < 0.3:  # an input that nobody reads
            w[:, rng.integers(w.shape[1])] = 0.0
        elif damage < 0.45:  # twins
            w[rng.integers(len(w))] = w[rng.integers(len(w))]
        elif damage < 0.6:  # one neuron of another size
            w[rng.integers(len(w))] *= 10.0 ** rng.uniform(-6.0, 6.0)
    biases = [rng.standard_normal(len(w)) * np.abs(w).max() for w in weights]
    activation = nn.ReLU if positive else ACTIVATIONS[int(rng.integers(len(ACTIVATIONS)))]
    model = nn.Sequential()
    for w, b in zip(weights, biases, strict=True):
        layer = nn.Linear(w.shape[1], len(w), dtype=torch.float64)
        layer.weight.data, layer.bias.data = torch.from_numpy(w), torch.from_numpy(b)
        model.extend([layer, activation()])
    return Case(model[:-1], weights, biases, scale, positive)


def jacobians(case: Case, seed: int) -> Tensor:
    """Jacobians at points of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.arange(-8, 9).double().repeat_interleave(6)[:, None]
    points = sizes * torch.randn(
        len(sizes), case.weights[0].shape[1], generator=generator, dtype=torch.float64
    )
    found: Tensor = torch.func.vmap(torch.func.jacrev(case.model))(points).detach()
    return found


def check(seed: int) -> None:
    """All that must hold for one network, in both norms, for all outputs and for pairs."""
    case = drawn(seed)
    found = jacobians(case, seed)
    for norm, dual in (("l2", 2), ("linf", 1)):
        whole = certify(case.model, norm=norm)
        verify(whole, case.model)
        assert whole.sampled_lower <= whole.lower_lip <= whole.lip * SLACK
        assert whole.lip <= whole.norm_product * (1.0 + 1e-5)
        outputs = certify(case.model, kind="per_output", norm=norm)
        verify(outputs, case.model)
        rows = found.norm(p=dual, dim=2).amax(dim=0).numpy()
        assert bool((rows <= outputs.lips * SLACK).all())
        assert bool((outputs.lips <= whole.lip * (1.0 + 1e-3)).all())
        if norm == "l2":
            assert float(torch.linalg.matrix_norm(found, 2).max()) <= whole.lip * SLACK
        if len(case.weights[-1]) > 1:
            pairs = certify(case.model, kind="pairwise", norm=norm)
            verify(pairs, case.model)
            gaps = torch.stack([found[:, int(i)] - found[:, int(j)] for i, j in _pairs(case)])
            steepest = gaps.norm(p=dual, dim=2).amax(dim=1).numpy()
            # the difference of two large rows carries their rounding
            tiny = 1e-14 * float(rows.max())
            assert bool((steepest <= pairs.lips * SLACK + tiny).all())
            assert bool((pairs.lips <= math.sqrt(2.0) * whole.lip * (1.0 + 1e-3)).all())
        if case.positive:
            _check_positive(case, norm, whole.lip, outputs.lips)
    if case.weights[0].shape[1] == 1 and all(isinstance(m, nn.ReLU) for m in case.model[1::2]):
        exact = oracles.exact_line_constant(case.weights, case.biases)
        assert exact <= certify(case.model).lip * (1.0 + 1e-6)


def _pairs(case: Case) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(case.weights[-1])), 2))


def _check_positive(case: Case, norm: str, whole: float, outputs: Array) -> None:
    """The constant of non-negative weights is the norm of their product."""
    product = case.weights[0]
    for w in case.weights[1:]:
        product = w @ product
    dual = {"l2": 2, "linf": 1}[norm]
    exact = np.linalg.norm(product, dual, axis=1)
    assert bool((exact <= outputs * SLACK).all())
    assert bool((outputs <= exact * (1.0 + 1e-3)).all())
    most = np.linalg.norm(product, 2) if norm == "l2" else np.linalg.norm(product.sum(axis=1))
    assert most <= whole * SLACK
    assert whole <= most * (1.0 + 1e-5)


@pytest.mark.parametrize("block", range(2))
def test_twenty_random_networks(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_a_thousand_random_networks(block: int) -> None:
    for seed in range(1000 + 50 * block, 1050 + 50 * block):
        check(seed)
