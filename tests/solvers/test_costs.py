"""Which form a solve takes: by its work, and by the time that there is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.native.lmi.costs import Costs
from admm_lip.solvers.native.lmi.progress import Progress
from admm_lip.solvers.problem import CertifyProblem, unit_slopes
from admm_lip.solvers.spectrum import top_eigenpair, top_eigenvalue


def costs_of(*widths: int) -> Costs:
    @dataclass
    class Widths:
        widths: tuple[int, ...]

    return Costs.of(Widths(widths))  # type: ignore[arg-type]


def timed(seconds: float, limit: float | None) -> Progress:
    """A run that knows what a pass takes."""
    run = Progress(SolverConfig(time_limit=limit))
    run._longest["passes"] = seconds
    return run


@pytest.mark.parametrize(
    ("widths", "pairs", "dense"),
    [
        ((10, 64, 64, 784), True, True),
        ((10, 1568, 784), False, True),
        ((1568, 1568, 1568), False, True),
        ((16,) * 33, True, True),  # 0.8 s against 1.3
        ((150,) * 6, True, True),  # 1.5 s against 2.1
        ((100,) * 11, True, False),  # 2.0 s against 1.7
        ((64,) * 65, True, False),  # 68 s against 18
        ((64,) * 65, False, True),
        ((10, 100, 1568, 3136, 784), False, False),  # two convolutions: the descent is cheaper
        ((80,) * 102, True, False),  # beyond the memory
    ],
)
def test_the_form_follows_from_the_work(widths: tuple[int, ...], pairs: bool, dense: bool) -> None:
    assert costs_of(*widths).dense_is_best(Progress(SolverConfig()), pairs) is dense


def test_a_time_limit_that_the_dense_form_would_pass_forbids_it() -> None:
    wide = costs_of(1568, 1568, 1568)
    assert wide.dense_is_best(timed(1.0, 1000.0), False)
    assert not wide.dense_is_best(timed(1.0, 100.0), False)
    assert wide.dense_is_best(timed(1.0, None), False)
    # A pass over a tiny network is all overhead, and says nothing.
    assert costs_of(4, 6, 5, 2).dense_is_best(timed(1e-3, 0.1), False)


def test_the_work_is_that_of_the_problem_s_widths() -> None:
    weights = tuple(torch.ones(m, n, dtype=torch.float64) for n, m in ((3, 5), (5, 4), (4, 2)))
    assert Costs.of(CertifyProblem(weights, unit_slopes(weights))) == costs_of(3, 5, 4, 2)


@pytest.mark.parametrize("rank", [0, 3, 1200])
def test_the_largest_eigenvalue_of_a_large_matrix_is_found_by_iteration(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(1200, max(rank, 1), generator=generator, dtype=torch.float64)
    gram = root @ root.T if rank else torch.zeros(1200, 1200, dtype=torch.float64)
    value, vector = top_eigenpair(gram)
    exact = float(torch.linalg.eigvalsh(gram)[-1])
    assert value == pytest.approx(exact, rel=1e-9)
    assert float((gram @ vector - value * vector).norm()) <= 1e-6 * exact
    assert top_eigenvalue(gram) == value
