"""A solve of narrow layers has one thread of torch, and its caller's number stands afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import threadpoolctl
import torch

from admm_lip.solvers import CertifyProblem, SolverConfig, solve_certify, unit_slopes
from admm_lip.solvers.threads import as_many_threads_as_pay, blas_has_one_thread


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("widths", "threads"), [((64, 64), 1), ((), 1), ((64, 400), 2)])
def test_narrow_layers_have_one_thread(widths: tuple[int, ...], threads: int) -> None:
    with as_many_threads_as_pay(widths):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_the_callers_threads_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), as_many_threads_as_pay((8,)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_a_solve_leaves_the_threads_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from admm_lip.solvers.native.interior import interior_point

    seen: list[int] = []
    solve = interior_point.certify

    def certify(*given: object) -> object:
        seen.append(torch.get_num_threads())
        return solve(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(interior_point, "certify", certify)
    torch.manual_seed(0)
    # Too large for the dense form of small networks.
    weights = tuple(torch.randn(60, 60, dtype=torch.float64) for _ in range(8))
    found = solve_certify(CertifyProblem(weights, unit_slopes(weights)), SolverConfig(tol=1e-2))
    assert found.lip > 0.0 and seen == [1]
    assert torch.get_num_threads() == 2


def test_blas_has_one_thread_within_a_narrow_solve_and_the_callers_number_afterwards() -> None:
    def numbers() -> list[int]:
        found = threadpoolctl.threadpool_info()
        return [library["num_threads"] for library in found if library["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        outside = numbers()
        with as_many_threads_as_pay((64, 64)):
            assert blas_has_one_thread() and set(numbers()) <= {1}
        assert numbers() == outside
