"""Processes killed at random moments: what is resumed ends bit for bit as if nothing had happened.

The long form, a hundred kills, is ``python -m benchmarks kills``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import COMMANDS, Trial, trained_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return trained_network(tmp_path_factory.mktemp("network") / "run")


# The loop of another command under another loss.
LONG = {"train --method lmt"}


def _marked(name: str, seed: int) -> Any:
    return pytest.param(name, seed, marks=[pytest.mark.slow] if name in LONG else [])


@pytest.mark.parametrize(("name", "seed"), [_marked(n, k) for k, n in enumerate(COMMANDS)])
def test_a_killed_command_ends_as_an_untouched_one(
    name: str, seed: int, network: Path, tmp_path: Path
) -> None:
    rows = Trial.of(name, tmp_path, network).rows(2, seed)
    assert rows
    assert all(row["identical"] and row["clean"] for row in rows), rows


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_again_and_again(name: str, network: Path, tmp_path: Path) -> None:
    trial = Trial.of(name, tmp_path, network)
    rows = [row for seed in range(5) for row in trial.rows(5, 100 + seed)]
    assert len(rows) >= 15
    assert all(row["identical"] and row["clean"] for row in rows), rows
