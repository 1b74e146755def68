"""The time limit covers the whole of a certification; the clock stands still but for what costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
from test_functionals import stacked

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates import certifier, least_proven
from admm_lip.solvers import deadline as deadline_module
from admm_lip.solvers import solve
from admm_lip.solvers.native.interior import interior_point
from admm_lip.solvers.native.large import first_order, without_schur
from admm_lip.solvers.native.lmi import costs

PASS, PROOF, NORM = 10.0, 12.0, 3.0
NET = stacked(*oracles.random_net((6,) * 6, 0).weights)


class Clock:
    """Seconds that pass only for work that was given a price."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._patch = monkeypatch
        monkeypatch.setattr(deadline_module, "perf_counter", lambda: self.now)

    def price(self, module: Any, name: str, seconds: float) -> None:
        """Let every call of a function of a module take so long."""
        work: Callable[..., Any] = getattr(module, name)

        def priced(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return work(*arguments, **options)

        self._patch.setattr(module, name, priced)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A network so large that a pass over its layers takes ten seconds, without the dense form."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(costs, "DENSE_LIMIT", 5)
    monkeypatch.setattr(costs, "PAIR_WORK", 0.0)
    clock.price(certifier, "spectral_norm", NORM)
    clock.price(solve, "reduce_certify", PASS)
    clock.price(solve, "proving", PASS)
    for module, name in (
        (least_proven, "implied_bound"),
        (interior_point, "implied_bound"),
        (interior_point, "theta_start"),
        (without_schur, "implied_bound"),
        (without_schur, "theta_start"),
        (first_order, "evaluate"),
        (without_schur, "_dual_value"),
    ):
        clock.price(module, name, PASS)
    clock.price(least_proven, "unproven", PROOF)
    clock.price(certifier, "sampled_slopes", PASS / 2.0)
    return clock


@pytest.mark.parametrize("limit", [150.0, 300.0, 600.0, 1200.0])
def test_everything_fits_into_the_limit(clock: Clock, limit: float) -> None:
    certificate = certify(NET, solver=SolverConfig(time_limit=limit, fallback=()))
    assert clock.now <= 1.1 * limit
    assert certificate.method == "lipsdp"
    verify(certificate, NET)


def test_more_time_is_never_worse(clock: Clock) -> None:
    bounds = []
    for limit in (1.0, 60.0, 150.0, 300.0, 600.0, 1200.0):
        bounds.append(certify(NET, solver=SolverConfig(time_limit=limit, fallback=())).lip)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.9 * bounds[0]


def test_a_limit_too_short_for_a_solver_still_ends_in_a_proof(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = certify(NET, solver=SolverConfig(time_limit=1.0))
    # Norms, one pass, one proof and one look for steep points: what no certificate can do without.
    assert clock.now <= 6 * NORM + PASS + PROOF + PASS / 2.0
    assert certificate.method == "norm_product"
    assert certificate.lip <= certificate.norm_product * (1.0 + 1e-6)
    assert "time_limit: too short for a solver here" in caplog.text
    verify(certificate, NET)


def test_a_second_backend_is_not_asked_when_the_first_has_used_the_time(clock: Clock) -> None:
    certificate = certify(NET, solver=SolverConfig("native", time_limit=300.0, fallback=("scs",)))
    assert certificate.solver == "native"
    assert clock.now <= 1.1 * 300.0


def test_functionals_share_the_limit(clock: Clock) -> None:
    certificate = certify(NET, kind="per_output", solver=SolverConfig(time_limit=2000.0))
    assert clock.now <= 1.1 * 2000.0
    assert {bound.method for bound in certificate.bounds} == {"lipsdp"}
