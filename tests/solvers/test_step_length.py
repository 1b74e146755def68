"""The longest steps: against eigenvalues of the whole matrices, written out or by Lanczos."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from admm_lip.solvers.native.lmi import step_length
from admm_lip.solvers.native.lmi.block_cholesky import (
    Band,
    band_of,
    block_slices,
    factorize,
    factorize_cliques,
)
from admm_lip.solvers.native.lmi.primal_dual_pair import Pair, longest_steps
from admm_lip.solvers.native.lmi.step_length import LENGTHS

SIZES = st.lists(st.integers(1, 7), min_size=2, max_size=5)


def _dense(band: Band) -> Tensor:
    at = block_slices([d.shape[0] for d in band.diagonal])
    full = torch.zeros(band.size, band.size, dtype=torch.float64)
    for s, d in zip(at, band.diagonal, strict=True):
        full[s, s] = d
    for (a, b), block in zip(pairwise(at), band.lower, strict=True):
        full[b, a], full[a, b] = block, block.T
    return full


def _longest(positive: Tensor, direction: Tensor) -> float:
    half = torch.linalg.inv(torch.linalg.cholesky(positive))
    least = float(torch.linalg.eigvalsh(half @ direction @ half.T)[0])
    return -1.0 / least if least < 0.0 else float("inf")


def _random(sizes: list[int], seed: int) -> tuple[Band, Band]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    root, free = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
    positive = _dense(band_of(root @ root.T, sizes))
    shift = max(0.0, -float(torch.linalg.eigvalsh(positive)[0])) + 1.0
    positive += shift * torch.eye(n, dtype=torch.float64)
    return band_of(positive, sizes), band_of(free + free.T, sizes)


@pytest.mark.parametrize("written_out", [0, 300])
@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_the_longest_steps_are_those_of_the_whole_matrices(
    written_out: int, sizes: list[int], seed: int
) -> None:
    slack, direction = _random(sizes, seed)
    factor, cliques = factorize(slack), factorize_cliques(slack)
    assert factor is not None
    assert cliques is not None
    whole, moved = _dense(slack), _dense(direction)
    at = block_slices(sizes)
    pairs = [slice(a.start, b.stop) for a, b in pairwise(at)]
    longest = min(_longest(whole[s, s], moved[s, s]) for s in pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_length, "_DENSE", written_out)
        found = step_length.slack_step(factor, direction)
        of_cliques = step_length.cliques_step(cliques, direction)
    # Lanczos errs on the short side only, by its accuracy.
    for step, right in ((found, _longest(whole, moved)), (of_cliques, longest)):
        assert step <= right * (1.0 + 1e-9)
        assert step >= right * (0.98 if written_out == 0 else 1.0 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31), size=st.floats(-2.0, 3.0))
def test_steps_of_narrow_blocks_are_the_longest_of_the_table(
    sizes: list[int], seed: int, size: float
) -> None:
    slack, direction = _random(sizes, seed)
    direction = direction.times(10.0**size)
    factor, cliques = factorize(slack), factorize_cliques(slack)
    assert factor is not None
    assert cliques is not None
    at = block_slices(sizes)
    whole, moved = _dense(slack), _dense(direction)
    parts = [slice(a.start, b.stop) for a, b in pairwise(at)]
    pair = Pair(torch.zeros(1), slack, factor, slack, cliques)
    exact = _longest(whole, moved), min(_longest(whole[s, s], moved[s, s]) for s in parts)
    for wanted, table in ((True, LENGTHS), (False, step_length.ROUGHLY)):
        steps = longest_steps(pair, direction, direction, whole=wanted)
        for step, right in zip(steps, exact, strict=True):
            within = [a for a in table if a < right]
            assert step == (float("inf") if len(within) == len(table) else within[-1])


@pytest.mark.parametrize("written_out", [0, 300])
def test_nothing_limits_a_positive_direction_and_nan_stops_at_once(
    written_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_length, "_DENSE", written_out)
    slack, _ = _random([3, 4], 0)
    factor = factorize(slack)
    assert factor is not None
    assert step_length.slack_step(factor, slack) == float("inf")
    assert step_length.slack_step(factor, slack.times(float("nan"))) == 0.0


def test_the_aim_is_a_share_of_mu_that_grows_with_what_the_predictor_leaves() -> None:
    left = np.linspace(-0.1, 1.5, 33)
    for gap in (1e-6, 1.0):
        for shorter in (0.0, 0.3, 1.0):
            found = step_length.centring_share(left, shorter, gap)
            one_by_one = [float(step_length.centring_share(x, shorter, gap)) for x in left]
            np.testing.assert_array_equal(found, one_by_one)
            assert (np.diff(found) >= 0.0).all() and found[0] == 0.0 and found[-1] == 1.0
            assert (found <= np.clip(left, 0.0, 1.0)).all()
    # A predictor that goes far is believed more.
    far, near = (float(step_length.centring_share(0.5, a, 1e-6)) for a in (0.9, 0.1))
    assert far < near
