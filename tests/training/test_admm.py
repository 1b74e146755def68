"""The formulas of one ADMM round."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from admm_lip.training.admm_state import (
    Residuals,
    anchor,
    balanced_rho,
    dual_step,
    norm,
    relax,
    residuals,
)


def matrices(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (2, 3))
    )


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_scaled_and_unscaled_duals_agree(seed: int, rho: float) -> None:
    # With U = Y / rho the textbook scaled update is U+ = U + W - Wbar+.
    weights, consensus, dual = matrices(seed), matrices(seed + 1), matrices(seed + 2)
    updated = dual_step(anchor(weights, dual, rho), consensus, rho)
    for new, y, w, c in zip(updated, dual, weights, consensus, strict=True):
        torch.testing.assert_close(new / rho, y / rho + w - c)


def test_a_fixed_point_of_the_round_is_stationary() -> None:
    # If W = Wbar, the relaxed point is W, and the dual does not move.
    weights = matrices(0)
    assert all(
        torch.equal(a, b) for a, b in zip(relax(weights, weights, 1.0), weights, strict=True)
    )
    dual = matrices(1)
    moved = dual_step(anchor(relax(weights, weights, 1.0), dual, 0.7), weights, 0.7)
    torch.testing.assert_close(moved, dual)


def test_the_anchor_minimises_the_augmented_lagrangian_without_a_constraint() -> None:
    # d/dWbar of <Y, W - Wbar> + rho/2 ||W - Wbar||^2 vanishes at Wbar = W + Y / rho.
    weights, dual, rho = matrices(2), matrices(3), 0.3
    point = anchor(weights, dual, rho)
    for p, w, y in zip(point, weights, dual, strict=True):
        torch.testing.assert_close(-y - rho * (w - p), torch.zeros_like(p))


def test_residuals_are_the_norms_in_the_textbook() -> None:
    weights, consensus, previous, dual = (matrices(k) for k in range(4))
    measured = residuals(weights, consensus, previous, dual, 0.5)
    gap = norm(tuple(w - c for w, c in zip(weights, consensus, strict=True)))
    change = norm(tuple(c - p for c, p in zip(consensus, previous, strict=True)))
    assert measured.primal == pytest.approx(gap)
    assert measured.dual == pytest.approx(0.5 * change)
    assert measured.relative == max(measured.primal_relative, measured.dual_relative)


@pytest.mark.parametrize(
    ("primal", "dual", "factor"), [(1.0, 0.01, 2.0), (0.01, 1.0, 0.5), (1.0, 1.0, 1.0)]
)
def test_rho_follows_the_larger_residual(primal: float, dual: float, factor: float) -> None:
    measured = Residuals(primal, dual, primal, dual)
    assert balanced_rho(0.3, measured) == pytest.approx(0.3 * factor)
