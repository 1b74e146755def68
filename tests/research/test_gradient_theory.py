"""The statements of Finlay, Calder, Abbasi and Oberman (arXiv 1808.09540, section 4 on).

Everywhere ``J[u] = mean_i loss(u(x_i), y_i) + weight * Lip(u)``.
"""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from admm_lip.research.input_gradients import GradientPenalty, penalised_loss


def absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """|u - y|: the gradient in x of the loss is as long as that of the model."""
    return (outputs[:, 0] - targets).abs()


def exact_fit(t: np.ndarray, y: np.ndarray, weight: float) -> tuple[np.ndarray, float, float]:
    """Values at the points, Lipschitz constant and mean absolute loss of the minimiser, by an LP.

    Variables (u_1..u_n, r_1..r_n, L); on a line, neighbours suffice for the Lipschitz constant.
    """
    n = len(t)
    cost = np.concatenate([np.zeros(n), np.full(n, 1.0 / n), [weight]])
    rows, right = [], []
    for i in range(n):
        for sign in (1.0, -1.0):
            row = np.zeros(2 * n + 1)
            row[i], row[n + i] = sign, -1.0
            rows.append(row)
            right.append(sign * y[i])
    for i in range(n - 1):
        for sign in (1.0, -1.0):
            row = np.zeros(2 * n + 1)
            row[i + 1], row[i], row[-1] = sign, -sign, -(t[i + 1] - t[i])
            rows.append(row)
            right.append(0.0)
    bounds = [(None, None)] * n + [(0, None)] * (n + 1)
    found = linprog(cost, np.array(rows), np.array(right), bounds=bounds)
    assert found.success
    return found.x[:n], float(found.x[-1]), float(found.x[n : 2 * n].mean())


def problem(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.uniform(0.0, 1.0, n)) + 1e-3 * np.arange(n)
    return t, generator.normal(size=n)


@given(seed=st.integers(0, 10_000), n=st.integers(3, 15), weight=st.floats(1e-3, 10.0))
@settings(max_examples=25)
def test_the_regularisation_lemma(seed, n, weight):
    """loss(f_w) <= loss(f_0) + w R(f_0);  R(f_w) <= C / w with C the loss of the best constant."""
    t, y = problem(seed, n)
    _, lip, loss = exact_fit(t, y, weight)
    free = float(np.abs(np.diff(y) / np.diff(t)).max())  # f_0 interpolates: its loss is 0
    assert loss <= weight * free * (1 + 1e-7) + 1e-9
    constant = float(np.abs(y - np.median(y)).mean())
    assert lip <= constant / weight * (1 + 1e-7) + 1e-9
    _, smaller, larger_loss = exact_fit(t, y, 2 * weight)
    assert smaller <= lip * (1 + 1e-7) + 1e-9
    assert larger_loss >= loss * (1 - 1e-7) - 1e-9


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scheme", ["finite", "double"])
def test_a_linear_model_reaches_the_optimum_of_the_convex_problem(norm, scheme):
    """For u(x) = <w, x> and the absolute loss, J = mean |<w, x_i> - y_i| + weight |w|_+."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([2.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    y = y + 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)
    weight = 0.4
    w = cp.Variable(4)
    size = cp.norm(w, 2 if norm == "l2" else 1)
    exact = cp.Problem(cp.Minimize(cp.norm1(x.numpy() @ w - y.numpy()) / 40 + weight * size))
    best = exact.solve(solver="CLARABEL")
    model = nn.Linear(4, 1, bias=False).double()
    penalty = GradientPenalty(largest=weight, norm=norm, scheme=scheme, step=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for _ in range(700):
        optimizer.zero_grad()
        penalised_loss(model, x, y, absolute, penalty).backward()
        optimizer.step()
        schedule.step()
    reached = float(penalised_loss(model, x, y, absolute, penalty).detach())
    assert best * (1 - 1e-3) <= reached <= best * (1 + 1e-2)


def test_a_network_on_corrupted_labels_comes_near_the_exact_linear_program():
    """A line of 40 points with a tenth of the labels replaced; figure 1 of the paper."""
    generator = np.random.default_rng(3)
    t = np.linspace(0.0, 1.0, 40)
    clean = np.sin(2 * math.pi * t)
    y = clean.copy()
    bad = generator.choice(40, 4, replace=False)
    y[bad] = generator.uniform(-2.0, 2.0, 4)
    weight = 0.02
    values, lip, loss = exact_fit(t, y, weight)
    best = loss + weight * lip
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    ).double()
    x, targets = torch.from_numpy(t)[:, None], torch.from_numpy(y)
    penalty = GradientPenalty(largest=weight, scheme="finite", step=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
    for _ in range(1500):
        optimizer.zero_grad()
        penalised_loss(model, x, targets, absolute, penalty).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        fine = model(torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None])[:, 0]
        at_points = model(x)[:, 0].numpy()
    steepest = float(fine.diff().abs().max() * 4000)
    reached = float(np.abs(at_points - y).mean()) + weight * steepest
    assert best * (1 - 1e-6) <= reached <= 1.15 * best
    assert np.abs(at_points - values).mean() < 0.1
    # The point of it: corrupted labels are passed by, clean ones are fitted.
    good = np.setdiff1d(np.arange(40), bad)
    assert np.abs(at_points - clean)[good].mean() < 0.1
    assert np.abs(at_points - y)[bad].mean() > 0.5


def test_the_rate_on_a_curve_is_at_least_the_proven_one():
    """Squared error of the minimiser from n samples of a curve, m = 1: (log n / n)^(1/3) or faster.

    Arc length t in [0, 1], labels y = a t, loss (u - y)^2: for infinitely many samples the
    minimiser is known, u = a/2 + (a - 6 w)(t - 1/2).
    """
    slope, weight = 2.0, 0.1
    generator = np.random.default_rng(0)
    sizes, errors = (20, 80, 320), []
    for n in sizes:
        found = []
        for _ in range(8):
            t = np.sort(generator.uniform(0.0, 1.0, n))
            u, lip = cp.Variable(n), cp.Variable(nonneg=True)
            loss = cp.sum_squares(u - slope * t) / n
            steep = cp.abs(cp.diff(u)) <= lip * np.diff(t)
            cp.Problem(cp.Minimize(loss + weight * lip), [steep]).solve(solver="CLARABEL")
            limit = slope / 2 + (slope - 6 * weight) * (t - 0.5)
            found.append(float(np.square(u.value - limit).mean()))
        errors.append(sum(found) / len(found))
    bound = [(math.log(n) / n) ** (1 / 3) for n in sizes]
    for k in (1, 2):
        assert errors[k] / errors[0] <= bound[k] / bound[0]
