"""The gallery's controller: what it calls proven, by other means than its own."""

from __future__ import annotations

import runpy
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "docs" / "gallery" / "plot_controller.py"
BOUNDED, FREE = "gain at most 3.2 Nm per unit", "unconstrained"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    matplotlib.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMM_LIP_SHARED", str(tmp_path_factory.mktemp("empty")))
        return runpy.run_path(str(SCRIPT))


Exact = list[list[Fraction]]


def exact(matrix: Any) -> Exact:
    return [[Fraction(float(v)) for v in row] for row in np.atleast_2d(matrix)]


def turned(a: Exact) -> Exact:
    return [list(column) for column in zip(*a, strict=True)]


def times(a: Exact, b: Exact) -> Exact:
    return [
        [sum(map(Fraction.__mul__, row, column), Fraction(0)) for column in turned(b)] for row in a
    ]


def minus(a: Exact, b: Exact) -> Exact:
    return [list(map(Fraction.__sub__, *rows)) for rows in zip(a, b, strict=True)]


def is_positive_definite(matrix: Exact) -> bool:
    """By pivots in rational numbers, which round nothing."""
    if not matrix:
        return True
    (pivot, *row), *below = matrix
    if pivot <= 0:
        return False
    return is_positive_definite(
        [[v - r[0] / pivot * w for v, w in zip(r[1:], row, strict=True)] for r in below]
    )


def decrease(region: Any, s: float, gamma: float) -> Exact:
    """What has to be positive definite for V to fall, from the plant as its users write it."""
    dt, gravity, mass, length, friction = (
        Fraction(v) for v in ("0.02", "10", "0.15", "0.5", "0.05")
    )
    push = dt / (mass * length**2)
    k = exact(region.gain)[0]
    velocity = [
        gravity / length * dt * Fraction(s) + push * k[0],
        1 - friction * push + push * k[1],
    ]
    M = [[Fraction(1), dt, Fraction(0)], [*velocity, push]]
    P, D = exact(region.P), exact(region.D)
    kept = [[*row, Fraction(0)] for row in P]
    for j in range(2):
        kept[j][j] -= (Fraction(gamma) * D[j][j]) ** 2
    kept.append([Fraction(0), Fraction(0), Fraction(1)])
    return minus(kept, times(turned(M), times(P, M)))


@pytest.mark.parametrize("name", [BOUNDED, FREE])
def test_the_inequality_holds_in_rational_numbers(example: dict[str, Any], name: str) -> None:
    region = example["certified"][name]
    for s in (1.0, np.sin(region.radius) / region.radius):
        assert is_positive_definite(decrease(region, s, region.gamma))
        assert not is_positive_definite(decrease(region, s, 3.0 * region.gamma))
    # The region lies in the ball: level times the inverse of P is below that of D^2 / radius^2.
    ball, level = exact(region.D**2), Fraction(region.level) * (1 - Fraction(1, 10**9))
    scaled = [[v * level / Fraction(region.radius) ** 2 for v in row] for row in ball]
    assert is_positive_definite(minus(exact(region.P), scaled))


def test_the_bounded_one_is_stable_on_a_far_larger_region(example: dict[str, Any]) -> None:
    bounded, free = (example["certified"][name] for name in (BOUNDED, FREE))
    assert bounded.area > 5.0 * free.area > 0.0
    assert np.sqrt(bounded.level * np.linalg.inv(bounded.P)[0, 0]) > 0.5  # rad


@pytest.mark.parametrize("name", [BOUNDED, FREE])
def test_no_sampled_state_contradicts_the_proofs(example: dict[str, Any], name: str) -> None:
    region, net, scale = example["certified"][name], example["nets"][name], example["SCALE"]
    random = np.random.default_rng(3)
    x = random.standard_normal((4000, 2))
    x *= (
        region.radius
        * random.uniform(0, 1, (4000, 1))
        / np.linalg.norm(x @ region.D, axis=1, keepdims=True)
    )
    with torch.no_grad():
        u = net(torch.tensor(x / scale, dtype=torch.float32))[:, 0].double().numpy()
    rest = np.abs(u - x @ region.gain[0])
    assert (rest <= region.gamma * np.linalg.norm(x @ region.D, axis=1) + 1e-5).all()

    inside = x[np.einsum("ni,ij,nj->n", x, region.P, x) <= region.level]
    path = example["simulated"](net, inside, 200)
    V = np.einsum("tni,ij,tnj->tn", path, region.P, path)
    assert len(inside) > 100 and (V[1:] <= V[:-1] + 1e-9 * region.level).all()
    assert V[-1].max() < 1e-3 * region.level


def test_the_proven_gains_hold_and_the_bound_was_kept(example: dict[str, Any]) -> None:
    for name, (lip, angle, velocity) in example["gains"].items():
        z = torch.randn(2000, 2, requires_grad=True)
        slopes = torch.autograd.grad(example["nets"][name](z).sum(), z)[0].double().numpy()
        assert np.linalg.norm(slopes, axis=1).max() <= lip + 1e-5
        assert (
            np.abs(slopes / example["SCALE"]).max(axis=0) <= np.array([angle, velocity]) + 1e-5
        ).all()
    assert example["gains"][BOUNDED][0] <= 3.2 < example["gains"][FREE][0]
