"""What is particular to the solvers behind cvxpy: options, statuses, licence, compiled models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import naive_lmi, random_net

from admm_lip.solvers import cvxpy_
from admm_lip.solvers.affine import certify_map
from admm_lip.solvers.config import SolverConfig
from admm_lip.solvers.cvxpy_ import CvxpyBackend, mosek_licence
from admm_lip.solvers.errors import SolverUnavailable
from admm_lip.solvers.problem import CertifyProblem, ProjectProblem, Slopes, unit_slopes
from admm_lip.solvers.solution import Status

mosek = pytest.importorskip("mosek", reason="mosek is not installed: its error paths are untested")


def weights_of(widths: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(w) for w in random_net(widths, seed).weights)


def certify_problem(widths: tuple[int, ...] = (3, 5, 4, 2)) -> CertifyProblem:
    weights = weights_of(widths)
    return CertifyProblem(weights, unit_slopes(weights))


def project_problem(factor: float = 1.0, **mode: float) -> ProjectProblem:
    weights = tuple(factor * w for w in weights_of((3, 5, 4, 2)))
    ones = tuple(torch.ones(len(w), dtype=torch.float64) for w in weights[:-1])
    return ProjectProblem(weights, unit_slopes(weights), ones, **(mode or {"bound": 0.5}))


@pytest.fixture
def fresh_licence() -> Iterator[None]:
    """The licence is asked for anew, and its answer forgotten afterwards."""
    mosek_licence.cache_clear()
    yield
    mosek_licence.cache_clear()


class DeniedEnv:
    """A MOSEK environment whose checkout fails with a chosen code."""

    code = mosek.rescode.err_license_expired
    checkouts = 0

    def __enter__(self) -> DeniedEnv:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def checkoutlicense(self, _feature: object) -> None:
        type(self).checkouts += 1
        raise mosek.Error(self.code, "")


@pytest.mark.parametrize(
    "code", ["err_license_expired", "err_missing_license_file", "err_license_server"]
)
def test_a_refused_licence_says_code_path_and_remedy_and_is_asked_for_once(
    code: str, fresh_licence: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = type("Denied", (DeniedEnv,), {"code": getattr(mosek.rescode, code), "checkouts": 0})
    monkeypatch.setattr(mosek, "Env", denied)
    monkeypatch.setenv("MOSEKLM_LICENSE_FILE", "27007@licence.example")
    backend = CvxpyBackend("mosek")
    found = backend.availability()
    assert not found.usable
    assert f"MOSEK error {int(getattr(mosek.rescode, code))} ({code})" in found.reason
    assert "looked for the licence at 27007@licence.example" in found.reason
    assert "set MOSEKLM_LICENSE_FILE to its path" in found.reason
    assert backend.availability() == found
    assert denied.checkouts == 1


def test_mosek_as_installed_here_is_usable_or_says_why() -> None:
    found = CvxpyBackend("mosek").availability()
    assert found.usable or "installed, but no licence: MOSEK error 10" in found.reason


def test_the_default_licence_path_is_in_the_home_folder(
    fresh_licence: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mosek, "Env", DeniedEnv)
    monkeypatch.delenv("MOSEKLM_LICENSE_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / "mosek" / "mosek.lic") in mosek_licence().reason


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvxpy_, "find_spec", lambda name: None if name == "scs" else object())
    found = CvxpyBackend("scs").availability()
    assert (found.usable, found.reason) == (
        False,
        'scs is not installed; install it with: pip install "admm-lip[cvxpy]"',
    )


def test_a_licence_lost_during_a_solve_makes_the_backend_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _raise_in_solve(monkeypatch, mosek.Error(mosek.rescode.err_license_expired, ""))
    with pytest.raises(SolverUnavailable, match=r"MOSEK error 1001 \(err_license_expired\)"):
        CvxpyBackend("mosek").certify(certify_problem(), SolverConfig("mosek"))


def test_any_other_mosek_error_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    _raise_in_solve(monkeypatch, mosek.Error(mosek.rescode.err_space, "out of space"))
    claim = CvxpyBackend("mosek").project(project_problem(), SolverConfig("mosek"))
    assert claim.status is Status.FAILED
    assert claim.weights is None
    assert "out of space" in claim.message


def test_a_solver_error_of_cvxpy_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import cvxpy

    _raise_in_solve(monkeypatch, cvxpy.error.SolverError("Solver 'SCS' failed.\nTry another."))
    claim = CvxpyBackend("scs").certify(certify_problem(), SolverConfig("scs"))
    assert claim.status is Status.FAILED
    assert claim.message == "SolverError: Solver 'SCS' failed."


def _raise_in_solve(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import cvxpy

    def solve(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cvxpy.Problem, "solve", solve)


def test_every_status_of_cvxpy_has_a_meaning() -> None:
    from cvxpy import settings

    known = {
        settings.OPTIMAL,
        settings.OPTIMAL_INACCURATE,
        settings.INFEASIBLE,
        settings.INFEASIBLE_INACCURATE,
        settings.UNBOUNDED,
        settings.UNBOUNDED_INACCURATE,
        settings.INFEASIBLE_OR_UNBOUNDED,
        settings.USER_LIMIT,
        settings.SOLVER_ERROR,
    }
    assert set(cvxpy_._STATUSES) == known


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_an_iteration_limit_is_reported_and_warns_nobody(name: str) -> None:
    config = SolverConfig(name, max_iterations=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claim = CvxpyBackend(name).certify(certify_problem(), config)
        projected = CvxpyBackend(name).project(project_problem(), config)
    assert claim.status is Status.LIMIT
    assert projected.status is Status.LIMIT
    assert claim.iterations <= 3


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_a_time_limit_is_reported(name: str) -> None:
    config = SolverConfig(name, tol=1e-9, time_limit=1e-6)
    assert CvxpyBackend(name).certify(certify_problem(), config).status is Status.LIMIT


def test_the_options_are_named_as_mosek_names_them() -> None:
    config = SolverConfig("mosek", tol=1e-5, time_limit=2.0, max_iterations=7)
    options = cvxpy_._DIALECTS["mosek"].options(config)
    with mosek.Task() as task:
        for option, value in options["mosek_params"].items():
            task.putparam(option, str(value))
        assert task.getdouparam(mosek.dparam.intpnt_co_tol_rel_gap) == 1e-5
        assert task.getdouparam(mosek.dparam.optimizer_max_time) == 2.0
        assert task.getintparam(mosek.iparam.intpnt_max_iterations) == 7


def test_mosek_is_asked_through_cvxpy_in_its_own_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    import cvxpy

    asked: dict[str, Any] = {}
    solve = cvxpy.Problem.solve

    def spy(self: Any, **options: Any) -> Any:
        asked.update(options)
        return solve(self, solver="CLARABEL")

    monkeypatch.setattr(cvxpy.Problem, "solve", spy)
    claim = CvxpyBackend("mosek").certify(certify_problem(), SolverConfig("mosek", tol=1e-7))
    assert asked["solver"] == "MOSEK"
    assert asked["mosek_params"]["MSK_DPAR_INTPNT_CO_TOL_REL_GAP"] == 1e-7
    assert claim.multiplier is not None


def test_a_nearest_point_asks_an_interior_point_for_a_squared_gap() -> None:
    config = SolverConfig(tol=1e-3)
    clarabel, scs = cvxpy_._DIALECTS["clarabel"], cvxpy_._DIALECTS["scs"]
    assert clarabel.options(config, strongly_convex=True)["tol_gap_abs"] == pytest.approx(1e-6)
    assert clarabel.options(config)["tol_gap_abs"] == 1e-3
    assert scs.options(config, strongly_convex=True) == scs.options(config)
    assert scs.options(config)["eps_abs"] == pytest.approx(1e-4)


def test_the_certification_map_is_the_naive_lmi_with_its_output_eliminated() -> None:
    net = random_net((3, 5, 4, 2), 3, (-0.1, 0.9))
    weights = tuple(torch.as_tensor(w) for w in net.weights)
    ranges = tuple(Slopes(torch.as_tensor(a), torch.as_tensor(b)) for a, b in net.ranges)
    maps = certify_map(CertifyProblem(weights, ranges))
    t = [np.random.default_rng(0).uniform(0.5, 1.5, len(w)) for w in net.weights[:-1]]
    x = np.concatenate([[1.3], *t])
    m = naive_lmi(net.weights, net.ranges, t, 1.3)
    expected = m[:-2, :-2] - m[:-2, -2:] @ m[-2:, :-2]
    got = (maps.maps @ x - maps.constant).reshape(maps.order, maps.order)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_projections_that_differ_in_the_anchor_share_a_model_and_no_state() -> None:
    config = SolverConfig("scs", tol=1e-6)
    shared, fresh = CvxpyBackend("scs"), CvxpyBackend("scs")
    shared.project(project_problem(1.0), config)
    second = shared.project(project_problem(1.7), config)
    alone = fresh.project(project_problem(1.7), config)
    assert len(shared._models) == 1
    assert second.weights is not None
    assert alone.weights is not None
    for a, b in zip(second.weights, alone.weights, strict=True):
        assert torch.equal(a, b)


def test_problems_that_differ_elsewhere_do_not_share_a_model_and_old_ones_are_dropped() -> None:
    backend, config = CvxpyBackend("scs"), SolverConfig("scs", tol=1e-4)
    bounds = [0.5, 0.6, 0.7, 0.8, 0.9]
    distances = []
    for bound in bounds:
        problem = project_problem(bound=bound)
        claim = backend.project(problem, config)
        assert claim.weights is not None
        pairs = zip(claim.weights, problem.anchor, strict=True)
        distances.append(sum(float((a - b).square().sum()) for a, b in pairs))
    assert distances == sorted(distances, reverse=True)
    assert len(backend._models) == backend._MODELS_KEPT
