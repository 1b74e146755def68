"""Which cases of the solver benchmark are run, and how rows of several runs make one record."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.catalogue import chosen, parser_of
from benchmarks.random_networks import gaussian, residual_chain
from benchmarks.solver_sweep import curves, within
from benchmarks.solver_times import CASES, HUGE, WARM, merged


def test_cases_are_chosen_by_parts_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    choose, names = partial(chosen, parser_of("solver_times")), [*CASES, *HUGE, *WARM]
    assert choose(["64x64"], names) == ["64 x 64 chain"]
    assert choose(["50x1000", "10 x 40"], names) == ["10 x 40 signed", "50 x 1000"]
    assert choose([], names) == names
    with pytest.raises(SystemExit):
        choose(["nothing"], names)
    assert "no case holds ['nothing']" in capsys.readouterr().err


def test_a_new_row_takes_the_place_of_the_old_one() -> None:
    old = [{"kind": "certify", "case": c, "threads": 1, "seconds": 1.0} for c in "ab"]
    new = [{"kind": "certify", "case": "a", "threads": n, "seconds": 2.0} for n in (1, 2)]
    rows = merged(old, new)
    assert [(r["case"], r["threads"], r["seconds"]) for r in rows] == [
        ("a", 1, 2.0),
        ("b", 1, 1.0),
        ("a", 2, 2.0),
    ]


def test_a_rival_counts_while_it_is_close_within_the_cap() -> None:
    row = {"scs_excess": 5e-4, "scs_seconds": 20.0, "clarabel_seconds": 3.0, "descent_excess": 0.1}
    assert within(row, "scs", 30.0) and not within(row, "scs", 10.0)
    assert not within(row, "clarabel", 30.0)  # failed: nothing was proven
    assert not within(row | {"descent_seconds": 1.0}, "descent", 30.0)


def test_one_curve_per_solver_and_number_of_threads() -> None:
    rows = [
        {"curve": "width", "size": n, "threads": k, "seconds": 0.1 * n, "scs_seconds": 1.0 * n}
        for n in (1, 2)
        for k in (1, 2)
    ]
    lines = curves(rows, "width")
    assert [line.label for line in lines] == ["native, 1 thread", "native, 2 threads", "SCS"]
    assert curves(rows, "depth") == []


def test_the_residual_chain_carries_its_stream_past_the_activations() -> None:
    depth, width = 3, 4
    problem = residual_chain(depth, width, outputs=2)
    drawn = gaussian(*[width] * (2 * depth + 2), 2)
    x = torch.randn(width, generator=torch.Generator().manual_seed(1)).double()
    y = drawn[0] @ x
    for into, out in zip(drawn[1:-1:2], drawn[2:-1:2], strict=True):
        y = y + out @ torch.relu(into @ y)
    value = x
    for w, s in zip(problem.weights, problem.slopes, strict=False):
        heard = w @ value
        value = torch.where(s.alpha == s.beta, s.alpha * heard, torch.relu(heard))
    assert torch.allclose(problem.weights[-1] @ value, drawn[-1] @ y)
