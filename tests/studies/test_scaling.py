"""How cost grows: the lines that are fitted, the forms that are measured, where certify changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from admm_lip.certificates.torus.certify import neurons_of, wants_torus
from admm_lip.foreign.open import network_of
from admm_lip.solvers import CertifyProblem, SolverConfig, solve_certify, unit_slopes
from admm_lip.solvers.native.lmi.costs import DENSE_LIMIT
from admm_lip.solvers.reduction import reduce_certify
from benchmarks import record, scaling
from benchmarks.growth import Fixed, Power
from benchmarks.random_networks import gaussian
from benchmarks.scaling_forms import (
    AXES,
    CHOICES,
    FORMS,
    Sizes,
    at,
    forced,
    images,
    last_of_first,
    reduced_widths,
)


def test_memory_is_a_fixed_part_and_a_known_power() -> None:
    sizes = np.array([32.0, 64.0, 128.0, 256.0])
    found = Fixed.through(sizes, 5.0 + 3e-3 * sizes**2, 2.0)
    assert (found.fixed, found.slope) == pytest.approx((5.0, 3e-3))
    assert found.size_at(24576.0) == pytest.approx(np.sqrt((24576.0 - 5.0) / 3e-3))
    assert Fixed.through(sizes, [7.0, 6.0, 6.0, 5.0], 2.0).size_at(100.0) is None
    assert found.size_at(4.0) is None and found._replace(power=0.0).size_at(9.0) is None


def test_seconds_are_a_power_of_the_larger_half() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = Power.through(sizes, [9.0, 9.0, 3.0 * 4**2.5, 3.0 * 8**2.5, 3.0 * 16**2.5])
    assert found.power == pytest.approx(2.5) and found.at(32.0) == pytest.approx(3.0 * 32**2.5)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(20, 6, 2, 3), Sizes(4, 6, 3, 10), Sizes(20, 5, 2, 9), Sizes(2, 5, 1, 4)],
)
def test_the_widths_that_the_solver_sees(sizes: Sizes) -> None:
    weights = gaussian(*sizes.widths)
    problem = reduce_certify(CertifyProblem(weights, unit_slopes(weights))).problem
    assert reduced_widths(sizes) == problem.widths


@pytest.mark.parametrize("axis", CHOICES)
def test_certify_changes_where_the_benchmark_says(axis: str) -> None:
    last, still = last_of_first(axis), CHOICES[axis][2]
    assert last is not None and still(at(axis, last)) and not still(at(axis, last + 1))
    assert last_of_first("pictures") is None
    if axis == "side":
        for side, torus in ((last, False), (last + 1, True)):
            network = network_of(images(at(axis, side)), (3, side, side))
            assert wants_torus("auto", network, "l2", None) is torus, neurons_of(network)
    else:
        assert sum(at(axis, last).widths[1:-1]) <= DENSE_LIMIT


@pytest.mark.parametrize(("dense", "said"), [(True, "primal-dual"), (False, "first-order")])
def test_a_form_is_the_one_that_was_told(dense: bool, said: str) -> None:
    weights = gaussian(4, 6, 6, 3)
    problem = CertifyProblem(weights, unit_slopes(weights))
    with forced(dense):
        found = solve_certify(problem, SolverConfig("native", max_iterations=300))
    assert said in found.message or (dense and found.message == "dense, side by side")


def test_every_form_knows_what_it_holds_on_its_axes() -> None:
    rows = record.load("scaling")["rows"]
    assert {row["form"] for row in rows} == set(FORMS)
    assert all(row["axis"] in FORMS[row["form"]].memory and row["axis"] in AXES for row in rows)
    assert all(json.dumps(row) and row["cpu_seconds"] > 0.0 for row in rows)


def test_what_measures_seconds_runs_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--quick", "--jobs", "2"])
    assert "--jobs: expected 1, since cells side by side" in capsys.readouterr().err
