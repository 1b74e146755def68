"""Malformed problems and configurations are refused, each by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.errors import ProblemError, SolverError
from admm_lip.solvers.problem import (
    CertifyProblem,
    ProjectProblem,
    Slopes,
    Structure,
    unit_slopes,
)

WEIGHTS = (torch.ones(3, 2).double(), torch.ones(1, 3).double())
SLOPES = unit_slopes(WEIGHTS)
T = (torch.ones(3).double(),)


def test_unit_slopes_are_zero_one_per_hidden_neuron() -> None:
    (slopes,) = SLOPES
    assert slopes.alpha.tolist() == [0.0] * 3
    assert slopes.beta.tolist() == [1.0] * 3
    assert slopes.beta.dtype == torch.float64


def test_widths_run_from_input_to_output() -> None:
    assert CertifyProblem(WEIGHTS, SLOPES).widths == (2, 3, 1)
    assert ProjectProblem(WEIGHTS, SLOPES, T, bound=1.0).widths == (2, 3, 1)


@pytest.mark.parametrize(
    ("weights", "slopes", "message"),
    [
        ((), (), "weights: expected at least one weight matrix, got none"),
        (
            (WEIGHTS[0].float(), WEIGHTS[1]),
            SLOPES,
            r"weights\[0\]: expected a non-empty float64 matrix, got torch.float32",
        ),
        ((torch.ones(3).double(),), (), r"weights\[0\]: expected a non-empty float64 matrix"),
        ((torch.ones(0, 2).double(),), (), r"of shape \(0, 2\)"),
        (
            (WEIGHTS[0], torch.ones(1, 4).double()),
            SLOPES,
            r"weights\[1\]: expected 3 columns to follow weights\[0\], got 4",
        ),
        (
            (WEIGHTS[0] * float("nan"), WEIGHTS[1]),
            SLOPES,
            r"weights\[0\]: holds a value that is NaN or infinite",
        ),
        (
            (WEIGHTS[0], WEIGHTS[1] * float("inf")),
            SLOPES,
            r"weights\[1\]: holds a value that is NaN or infinite",
        ),
        (WEIGHTS, (), "slopes: expected 1 layers of them, got 0"),
        (
            WEIGHTS,
            (Slopes(torch.zeros(2).double(), torch.ones(3).double()),),
            r"slopes\[0\]: expected alpha and beta of shape \(3,\), got \(2,\) and \(3,\)",
        ),
        (
            WEIGHTS,
            (Slopes(torch.zeros(3).double(), torch.full((3,), float("inf")).double()),),
            r"slopes\[0\]: holds a value that is NaN or infinite",
        ),
        (
            WEIGHTS,
            (Slopes(torch.ones(3).double(), torch.zeros(3).double()),),
            r"slopes\[0\]: expected alpha <= beta for every neuron",
        ),
    ],
)
def test_certify_problem_refuses(weights: Any, slopes: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        CertifyProblem(weights, slopes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": None}, "bound, mu: give exactly one of them, got neither"),
        ({"mu": 1.0}, "bound, mu: give exactly one of them, got both"),
        ({"bound": 0.0}, "bound: expected a finite number > 0, got 0.0"),
        ({"bound": float("nan")}, "bound: expected a finite number > 0, got nan"),
        ({"bound": None, "mu": -1.0}, "mu: expected a finite number > 0, got -1.0"),
        ({"rho": float("inf")}, "rho: expected a finite number > 0, got inf"),
        ({"multiplier": ()}, "multiplier: expected 1 layers of it, got 0"),
        (
            {"multiplier": (torch.ones(2).double(),)},
            r"multiplier\[0\]: expected shape \(3,\), got \(2,\)",
        ),
        (
            {"multiplier": (torch.zeros(3).double(),)},
            r"multiplier\[0\]: expected finite entries > 0",
        ),
        (
            {"slopes": (Slopes(torch.full((3,), 0.1).double(), torch.ones(3).double()),)},
            "slopes: the projection needs alpha <= 0",
        ),
        ({"structure": (Structure(),)}, "structure: expected 2 entries, one per weight, got 1"),
    ],
)
def test_project_problem_refuses(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"anchor": WEIGHTS, "slopes": SLOPES, "multiplier": T, "bound": 1.0}
    with pytest.raises(ProblemError, match=message):
        ProjectProblem(**{**good, **change})


def test_a_problem_error_is_a_value_error_and_a_solver_error() -> None:
    assert issubclass(ProblemError, ValueError)
    assert issubclass(ProblemError, SolverError)


def test_structure_is_plain_only_without_any_part() -> None:
    ones = torch.ones(3, 2)
    assert Structure().is_plain
    assert not Structure(metric=ones).is_plain
    assert not Structure(held=ones.bool()).is_plain
    assert not Structure(ties=ones.long()).is_plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": 0.0}, r"tol: expected a number in \(0, 1\), got 0.0"),
        ({"tol": float("nan")}, r"tol: expected a number in \(0, 1\), got nan"),
        ({"time_limit": 0.0}, "time_limit: expected seconds > 0 or None, got 0.0"),
        ({"max_iterations": 0}, "max_iterations: expected a whole number of at least 1 or None"),
        ({"max_iterations": True}, "max_iterations: expected .* got True"),
        ({"max_iterations": 5.0}, "max_iterations: expected a whole number .* got 5.0"),
        ({"time_limit": True}, "time_limit: expected seconds > 0 or None, got True"),
        ({"time_limit": float("nan")}, "time_limit: expected .* got nan"),
        ({"tol": "1e-6"}, r"tol: expected a number in \(0, 1\), got '1e-6'"),
        ({"tol": None}, r"tol: expected a number in \(0, 1\), got None"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolverConfig(**change)


def test_config_keeps_a_tuple_of_fallbacks_whatever_yaml_hands_over() -> None:
    assert SolverConfig(fallback=["scs"]).fallback == ("scs",)  # type: ignore[arg-type]
