"""A device without float64 is refused by name; one that is full hands the solve to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import Constraint, Lipschitz
from admm_lip.solvers import (
    CertifyProblem,
    ProjectProblem,
    SolverConfig,
    devices,
    solve_certify,
    solve_project,
    unit_slopes,
)
from admm_lip.solvers import solve as solve_module

WEIGHTS = tuple(torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0)).double())


def full_at_first(work: Callable[..., Any]) -> Callable[..., Any]:
    """A device whose memory is full the first time."""
    calls = []

    def run(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return work(*args)

    return run


def problem_of(kind: str) -> Any:
    certify = CertifyProblem(WEIGHTS, unit_slopes(WEIGHTS))
    if kind == "certify":
        return certify
    ones = (torch.ones(9).double(),)
    return ProjectProblem(WEIGHTS, certify.slopes, ones, bound=1.0)


@pytest.mark.parametrize(
    ("kind", "solve"), [("certify", solve_certify), ("project", solve_project)]
)
def test_a_full_device_hands_the_solve_to_the_cpu(
    kind: str,
    solve: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = solve(problem_of(kind))
    work = getattr(solve_module, f"_{kind}")
    monkeypatch.setattr(solve_module, f"_{kind}", full_at_first(work))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        solve(problem_of(kind))  # the CPU itself is full: nowhere to go
    monkeypatch.setattr(solve_module, f"_{kind}", full_at_first(work))
    monkeypatch.setattr(devices, "device_of", lambda problem: torch.device("cuda", 0))
    back = devices.moved
    monkeypatch.setattr(devices, "moved", lambda value, device: back(value, torch.device("cpu")))
    found = solve(problem_of(kind))
    assert found.lip_sq == expected.lip_sq if kind == "project" else found.lip == expected.lip
    (line,) = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert line == "solve: cuda:0 is out of memory; this solve is done on the CPU"


@dataclass(frozen=True)
class Nested:
    """Of the shape of a problem, without its checks, which a device without numbers cannot pass."""

    tensors: tuple[Any, ...]
    bound: float


def test_every_tensor_of_a_problem_is_moved() -> None:
    given = Nested((torch.ones(2), (Nested((torch.ones(3),), 2.0),)), 1.0)
    found = devices.moved(given, torch.device("meta"))
    assert devices.device_of(found).type == found.tensors[1][0].tensors[0].device.type == "meta"
    assert (found.bound, found.tensors[1][0].bound) == (1.0, 2.0)
    assert devices.device_of(given).type == "cpu"


def test_a_device_without_float64_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.ones

    def without_float64(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dtype") is torch.float64 and "device" in kwargs:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made(*args, **kwargs)

    assert devices.float64_home(torch.empty(1, device="meta")).type == "meta"
    assert devices.float64_home([1.0]).type == "cpu"
    devices.has_float64.cache_clear()
    monkeypatch.setattr(torch, "ones", without_float64)
    try:
        assert devices.float64_home(torch.empty(1, device="meta")).type == "cpu"
        with pytest.raises(ValueError, match=r"which has no float64.*model.to\(\"cpu\"\)"):
            Constraint(nn.Sequential(nn.Linear(2, 2)), Lipschitz(1.0))
    finally:
        devices.has_float64.cache_clear()


@pytest.mark.parametrize(
    ("kind", "solve"), [("certify", solve_certify), ("project", solve_project)]
)
def test_a_solve_goes_to_the_device_asked_for_and_comes_back(
    kind: str, solve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = []

    def noted(value: Any, device: torch.device) -> Any:
        trips.append(device.type)
        return value

    monkeypatch.setattr(devices, "moved", noted)
    found = solve(problem_of(kind), SolverConfig("native", device="cuda"))
    assert trips == ["cuda", "cuda", "cpu"]
    assert found.backend == "native"
