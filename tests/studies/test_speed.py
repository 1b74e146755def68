"""Rows of the speed benchmark: ratios within a turn, bounds of both versions, lists and loops."""

from __future__ import annotations

from typing import Any

import pytest

from admm_lip import certify
from benchmarks.speed import CASES, Case, measured, row_of


def turn(cpu: float, lips: list[float], lowers: list[float]) -> dict[str, Any]:
    times = {"cpu_seconds": cpu, "seconds": 2.0 * cpu, "measured": 1}
    return times | {"lips": lips, "lowers": lowers}


def test_a_row_has_the_median_ratio_and_the_least_times() -> None:
    name = next(iter(CASES))
    old = turn(4.0, [2.0, 1.0], [1.9, 1.0])
    row = row_of(name, [(turn(cpu, [1.99, 1.0], [1.95, 0.9]), old) for cpu in (1.0, 3.0, 2.0)])
    assert row["ratio"] == 0.5 and row["cpu_seconds"] == 1.0 and row["seconds_before"] == 8.0
    assert row["lip_over_before_least"] == pytest.approx(0.995)
    assert row["largest_gap"] == pytest.approx(0.1) and row["consistent"]


def test_a_bound_below_the_other_versions_lower_bound_is_told() -> None:
    below, other = turn(1.0, [1.8], [1.7]), turn(1.0, [2.0], [1.9])
    assert not row_of("2-12-1", [(below, other)])["consistent"]
    assert not row_of("2-12-1", [(other, below)])["consistent"]


@pytest.mark.parametrize("takes_lists", [False, True])
def test_many_networks_count_as_many_however_they_are_taken(takes_lists: bool) -> None:
    calls = list[int]()

    def counting(models: Any, **options: Any) -> Any:
        calls.append(len(models) if type(models) is list else 1)
        return certify(models, **options)

    found = measured(counting, Case((2, 3, 1), {}, 21), takes_lists)
    assert set(calls) == ({21} if takes_lists else {1})
    assert found["measured"] == (21 if takes_lists else 20) and len(found["lips"]) == 20
    assert found["cpu_seconds"] > 0.0
