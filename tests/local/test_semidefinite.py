"""The dual of a semidefinite relaxation: against the truth, against the relaxation, and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_nets import check_apart, inside, network
from test_quadratic_search import BENT, images, open_pass
from torch import Tensor, nn

from admm_lip import CertificateError
from admm_lip.errors import InputsLeftOut
from admm_lip.local import (
    LocalCertificate,
    LocalConfig,
    certify_local,
    local_radii,
    semidefinite_witness,
    verdicts,
    verify_local,
)
from admm_lip.local.semidefinite_dual import (
    Functional,
    Lagrangian,
    Multipliers,
    OnBall,
    Pixels,
    Relaxation,
)
from admm_lip.local.semidefinite_proof import ExactDual, multipliers_of, row_of
from admm_lip.local.semidefinite_search import FirstLayer, searched
from admm_lip.local.semidefinite_witness import Relaxations

Box = tuple[float, float] | None


def relaxations(
    model: nn.Module, x: Tensor, radius: Tensor, box: Box = None, norm: str = "l2"
) -> list[tuple[OnBall, Functional]]:
    """Of each sample, with the difference of its first two outputs."""
    passing, rows = open_pass(model, x, radius, LocalConfig(box=box, norm=norm))
    every, found = Relaxations(passing), []
    for k in range(len(x)):
        ball = every.ball(k)
        assert ball is not None
        found.append((ball, every.functional(k, rows[k, 1])))
    return found


def random_multipliers(relaxation: Relaxation, random: np.random.Generator) -> Multipliers:
    """Of very different sizes; enough on the ball and the box to be convex now and then."""
    neurons = 10.0 ** random.uniform(-4.0, 1.0, relaxation.allowed.shape) * relaxation.allowed
    size = 10.0 ** random.uniform(-1.0, 4.0)
    box = size * random.uniform(0.0, 1.0, len(relaxation.ball.up))
    return Multipliers(size, box, neurons)


def value_at(
    relaxation: Relaxation, y: Multipliers, functional: Functional, x: np.ndarray
) -> float:
    """The Lagrangian at variables in the displacement's own coordinates."""
    inputs, pixels = len(y.box), Pixels.of(relaxation.ball, y)
    neurons = Lagrangian.of(relaxation, y.neurons, functional)
    matrix, linear = neurons.quadratic(relaxation)
    d = x[:inputs]
    own = 0.5 * x @ matrix @ x + linear @ x + neurons.constant
    return float(own + pixels.constant + pixels.linear @ d + 0.5 * pixels.diagonal @ (d * d))


def variables_at(relaxation: Relaxation, d: np.ndarray) -> np.ndarray:
    """What the network makes of a displacement."""
    moved, opened = d, []
    for layer in relaxation.ball.layers:
        z = layer.at + layer.weight @ moved
        opened.append((np.maximum(z, 0.0) - np.maximum(layer.at, 0.0))[layer.open])
        moved = np.where(z > 0.0, z, layer.below * z) - layer.out
    return np.concatenate([d, *opened])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(BENT),
    box=st.sampled_from([None, (-1.0, 1.0)]),
    norm=st.sampled_from(["l2", "linf"]),
)
def test_no_multipliers_prove_more_than_the_truth(
    seed: int, activation: str, box: Box, norm: str
) -> None:
    """The least value on a fine grid of the ball is the truth but for the grid."""
    random = torch.Generator().manual_seed(seed)
    model = network(activation, (2, 6, 4, 2), seed=seed % 97)
    x = (2.0 * torch.rand(2, 2, generator=random) - 1.0).double()
    radius = 10.0 ** (-1.5 * torch.rand(2, generator=random).double())
    line = torch.linspace(-1.0, 1.0, 61).double()
    grid = torch.cartesian_prod(line, line)
    grid = grid if norm == "linf" else grid[grid.norm(dim=1) <= 1.0]
    numbers = np.random.default_rng(seed)
    for k, (ball, functional) in enumerate(relaxations(model, x, radius, box, norm)):
        cloud = x[k] + grid * radius[k]
        cloud = cloud if box is None else cloud.clamp(*box)
        out = model(cloud).detach()
        values = (out[:, 0] - out[:, 1]).numpy()
        exact = ExactDual.of(ball)
        found = searched(ball, FirstLayer.of(ball.layers[0].weight), functional, 12)
        if found is None:
            assert values.min() <= 1e-2 * np.ptp(values) + 1e-9
        made = random_multipliers(exact.relaxation, numbers)
        for y in (made, *(() if found is None else (found,))):
            near, bound = exact.bound(y, functional)
            assert bound <= values.min() + 1e-12
            if np.isfinite(bound):
                assert exact.proves(near, functional, bound)
                assert not exact.proves(near, functional, values.min() + 1e-9)
        for d in (cloud[::97] - x[k]).numpy():
            at = variables_at(exact.relaxation, d)
            true = ball.displaced(functional, d)
            assert value_at(exact.relaxation, made, functional, at) <= true + 1e-9 * made.ball


def least_of_relaxation(ball: OnBall, functional: Functional) -> float:
    """The semidefinite relaxation of a network with ReLU, in lifted variables, by another solver.

    Rows over (1, d, p of open neurons) are what the network computes; the mean of the product of
    two is ``row X row``.
    """
    opened = sum(int(layer.open.sum()) for layer in ball.layers)
    lifted = cp.Variable((1 + len(ball.up) + opened,) * 2, PSD=True)
    one, *moved = np.eye(lifted.shape[0])[: 1 + len(ball.up)]
    fresh = iter(np.eye(lifted.shape[0])[1 + len(ball.up) :])

    def mean(p: np.ndarray, q: np.ndarray) -> cp.Expression:
        return p @ lifted @ q

    facts = [lifted[0, 0] == 1.0, sum(mean(row, row) for row in moved) <= ball.radius**2]
    for row, down, up in zip(moved, ball.down, ball.up, strict=True):
        facts.append(mean(row + down * one, up * one - row) >= 0.0)
    for layer in ball.layers:
        outputs = []
        for at, weights, low, high in zip(
            layer.at, layer.weight, layer.low, layer.high, strict=True
        ):
            z = at * one + weights @ np.array(moved)
            outputs.append(z if low >= 0.0 else np.zeros_like(z))
            if low >= 0.0:
                facts.append(mean(z - low * one, high * one - z) >= 0.0)
            elif high > 0.0:
                p = outputs[-1] = next(fresh)
                facts += [mean(p, z - p) == 0.0, mean(one, p) >= 0.0, mean(one, p - z) >= 0.0]
                facts += [mean(p, high * one - p) >= 0.0, mean(z - p, low * one - z + p) >= 0.0]
                facts.append(mean(one, high * (z - low * one) - (high - low) * p) >= 0.0)
        moved = [p - out * one for p, out in zip(outputs, layer.out, strict=True)]
    goal = functional.row @ (np.array(moved) @ lifted[:, 0] + ball.layers[-1].out)
    problem = cp.Problem(cp.Minimize(goal + functional.value), facts)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_the_search_comes_close_to_the_relaxation(seed: int) -> None:
    """And never above it, as any multipliers bound it from below."""
    model = network("relu", (3, 6, 5, 2), seed=seed)
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).double()
    ((ball, functional),) = relaxations(model, x, torch.tensor([0.4]).double())
    least = least_of_relaxation(ball, functional)
    # A search ends where it is above 0.
    near = 0.005 * (1.0 + abs(least))
    goal = dataclasses.replace(functional, value=functional.value - least + near)
    found = searched(ball, FirstLayer.of(ball.layers[0].weight), goal, 300)
    assert found is not None
    _, bound = ExactDual.of(ball).bound(found, functional)
    assert least - near <= bound <= least + 1e-6


def test_an_exact_case_is_proven_to_its_last_digits() -> None:
    """``|x| + 1`` on the ball of radius 1/2 around 1/4, whose least value is 1."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    values = ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = torch.tensor(value).double()
    x, radius = torch.tensor([[0.25]]).double(), torch.tensor([0.5]).double()
    ((ball, functional),) = relaxations(model, x, radius)
    goal = dataclasses.replace(functional, value=functional.value - 1.0 + 1e-4)
    found = searched(ball, FirstLayer.of(ball.layers[0].weight), goal, 300)
    assert found is not None
    exact = ExactDual.of(ball)
    near, bound = exact.bound(found, functional)
    assert 1.0 - 2e-4 <= bound <= 1.0
    assert not exact.proves(near, functional, 1.0 + 1e-12)


def test_a_broken_ball_is_left_at_once() -> None:
    model = network("relu", (4, 16, 16, 2), seed=7)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()
    y = model(x).argmax(dim=1)
    found = certify_local(model, x, 5.0, y, config=LocalConfig("semidefinite", steps=1))
    assert not bool(found.robust.any())
    assert found.dual is None
    ball, functional = relaxations(model, x, torch.full((3,), 5.0).double())[0]
    assert searched(ball, FirstLayer.of(ball.layers[0].weight), functional, 100) is None


def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(2)).double().clamp(-1.0, 1.0)
    return x, torch.linspace(0.1, 0.6, 12).double()


@pytest.fixture(scope="module")
def proven() -> tuple[nn.Module, LocalCertificate]:
    model, x, radius = network("relu", (16, 16, 16, 3), seed=1), *samples()
    y = model(x).argmax(dim=1)
    config = LocalConfig("semidefinite", box=(-1.0, 1.0), dual_steps=60)
    found = certify_local(model, x, radius, y, config=config)
    assert found.dual is not None
    assert bool((found.dual & (found.margin > 0.0)).any())
    return model, found


def test_it_proves_what_cheaper_levels_leave_open(
    proven: tuple[nn.Module, LocalCertificate],
) -> None:
    model, found = proven
    config = LocalConfig("optimised", box=(-1.0, 1.0))
    cheap = certify_local(model, found.x, found.radius, found.labels, config=config)
    assert int(found.robust.sum()) > int(cheap.robust.sum())
    assert bool((found.margin >= cheap.margin).all())
    for cloud in inside(found.x, found.radius, 60):
        logits = model(cloud.clamp(-1.0, 1.0)).detach()
        margin = logits.gather(1, found.labels[:, None]) - logits
        assert bool((margin >= found.margin - 1e-11).all())


def test_samples_do_not_depend_on_their_batch(proven: tuple[nn.Module, LocalCertificate]) -> None:
    model, found = proven
    assert found.labels is not None
    config = LocalConfig("semidefinite", box=(-1.0, 1.0), dual_steps=60)
    for k in found.dual.any(dim=1).nonzero()[:1, 0].tolist():
        one = slice(k, k + 1)
        alone = certify_local(
            model, found.x[one], found.radius[one], found.labels[one], config=config
        )
        torch.testing.assert_close(alone.margin, found.margin[one])


def test_small_convolutions_are_taken_and_checked() -> None:
    model, x = images()
    y = model(x).argmax(dim=1)
    config = LocalConfig("semidefinite", box=(0.0, 1.0), dual_steps=60)
    found = certify_local(model, x, 0.5, y, config=config)
    assert found.dual is not None
    verify_local(found, model)


def test_raw_units_are_those_of_the_ball() -> None:
    """Twice the scale and twice the radius are the same ball."""
    model, x, radius = network("max_min", (16, 16, 16, 3), seed=1), *samples()
    y = model(x).argmax(dim=1)
    plain, scaled = (
        certify_local(
            model, x, radius * (scale or 1.0), y,
            config=LocalConfig("semidefinite", input_scale=scale, box=(-1.0, 1.0), dual_steps=60),
        )
        for scale in (None, 2.0)
    )  # fmt: skip
    assert plain.dual is not None
    torch.testing.assert_close(plain.margin, scaled.margin, rtol=1e-5, atol=1e-6)
    verify_local(scaled, model)


def test_a_witness_survives_its_row(proven: tuple[nn.Module, LocalCertificate]) -> None:
    model, found = proven
    ball, _ = relaxations(model, found.x, found.radius, (-1.0, 1.0))[-1]
    relaxation = Relaxation.of(ball, ball.layers[0].weight)
    y = random_multipliers(relaxation, np.random.default_rng(0))
    again = multipliers_of(row_of(y, ball), relaxation)
    np.testing.assert_allclose(again.neurons, y.neurons, rtol=1e-6)
    np.testing.assert_allclose([again.ball, *again.box], [y.ball, *y.box], rtol=1e-6)


def test_a_witness_is_checked_where_no_search_was_ever_loaded(
    proven: tuple[nn.Module, LocalCertificate], tmp_path: Path
) -> None:
    model, found = proven
    check_apart(model, found, tmp_path, "semidefinite")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("multipliers", torch.zeros_like),
        ("multipliers", lambda t: t.flip(0)),
        ("multipliers", lambda t: 0.5 * t),
        ("multipliers", lambda t: 2.0 * t),
        ("multipliers", lambda t: torch.cat([0.9 * t[:, :1], t[:, 1:]], dim=1)),
        ("margin", lambda t: t + 1e-3),
        ("dual", lambda t: t.flip(0)),
        ("x", lambda t: 0.9 * t),
        ("radius", lambda t: 1.05 * t),
    ],
)
def test_a_changed_witness_proves_less(
    name: str, change: Callable[[Tensor], Tensor], proven: tuple[nn.Module, LocalCertificate]
) -> None:
    """Or its margins, samples or balls: intervals are none of the witness, but computed anew."""
    model, found = proven
    changed = dataclasses.replace(found, **{name: change(getattr(found, name))})
    with pytest.raises(CertificateError, match="is not proven"):
        verify_local(changed, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": None}, "dual, multipliers: expected all of them or none"),
        ({"multipliers": lambda t: -t}, "multipliers: expected finite numbers >= 0"),
        ({"multipliers": lambda t: t * torch.nan}, "multipliers: expected finite numbers >= 0"),
        ({"multipliers": lambda t: t[:, 1:]}, "multipliers: expected 209 a row, got 208"),
        ({"multipliers": lambda t: t[1:]}, "multipliers: expected a row for each of"),
    ],
)
def test_a_witness_that_does_not_fit_is_refused(
    changes: dict[str, object], message: str, proven: tuple[nn.Module, LocalCertificate]
) -> None:
    _, found = proven
    made = {k: v(getattr(found, k)) if callable(v) else v for k, v in changes.items()}
    with pytest.raises(CertificateError, match=message):
        dataclasses.replace(found, **made)


def test_no_steps_are_no_dual(proven: tuple[nn.Module, LocalCertificate]) -> None:
    model, found = proven
    config = LocalConfig("semidefinite", dual_steps=0)
    assert certify_local(model, found.x, 0.5, found.labels, config=config).dual is None
    with pytest.raises(ValueError, match="dual_steps: expected a number >= 0, got -1"):
        LocalConfig(dual_steps=-1)


def test_inputs_that_are_left_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that are open, too large or of other activations; of nothing where nothing is open."""
    model = network("relu", (4, 16, 16, 3), seed=7)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double()
    y, config = model(x).argmax(dim=1), LocalConfig("semidefinite", steps=1, dual_steps=5)
    small = certify_local(model, x, 0.8, y, config=config)
    assert small.left is not None
    assert not small.left.any()
    assert "left by semidefinite" not in small.summary()
    for module in (semidefinite_witness, verdicts):
        monkeypatch.setattr(module, "LARGEST_RELAXATION", 6)
    with pytest.warns(InputsLeftOut, match=r"relaxations of up to \d\d variables; it takes 6"):
        found = certify_local(model, x, 0.8, y, config=config)
    assert found.left is not None
    assert bool((found.left[~found.robust] > 6).all())
    assert not found.left[found.robust].any()
    assert f"left by semidefinite {int((~found.robust).sum())} (relax" in " ".join(
        found.summary().split()
    )
    found.save(tmp_path / "found.safetensors")
    again = LocalCertificate.load(tmp_path / "found.safetensors")
    assert again.left is not None
    assert torch.equal(again.left, found.left)
    verify_local(again, model)
    with pytest.warns(InputsLeftOut, match=r"semidefinite leaves open inputs: \d"):
        assert local_radii(model, x, y, config=config).robust.all()
    other = network("tanh", (4, 16, 16, 3), seed=7)
    with pytest.warns(InputsLeftOut, match="it takes ReLU, LeakyReLU, PReLU, MaxMin and"):
        tanh = certify_local(other, x, 0.8, other(x).argmax(dim=1), config=config)
    assert tanh.left is not None
    assert bool((tanh.left == torch.where(tanh.robust, 0, -1)).all())
