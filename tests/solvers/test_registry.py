"""The table of backends, the chain of fallbacks, and what is said when one cannot or does not."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from oracles import random_net, signed_net

from admm_lip.solvers import (
    Availability,
    CertifyProblem,
    ProblemError,
    ProjectProblem,
    SolveFailed,
    SolverConfig,
    SolverError,
    SolverUnavailable,
    Status,
    Structure,
    UnknownBackend,
    available,
    doctor,
    register_backend,
    registry,
    solve,
    solve_certify,
    solve_project,
    unit_slopes,
)
from admm_lip.solvers.cvxpy_ import mosek_licence
from admm_lip.solvers.reduction import reduce_certify
from admm_lip.solvers.solution import CertifyClaim, ProjectClaim
from admm_lip.solvers.solve import ball_norm, make_feasible, proving

WEIGHTS = tuple(torch.as_tensor(w) for w in random_net((3, 5, 4, 2), 0).weights)
SLOPES = unit_slopes(WEIGHTS)
ONES = tuple(torch.ones(len(w), dtype=torch.float64) for w in WEIGHTS[:-1])
CERTIFY = CertifyProblem(WEIGHTS, SLOPES)
PROJECT = ProjectProblem(WEIGHTS, SLOPES, ONES, bound=0.5)


@dataclass
class Scripted:
    """A backend that answers as it is told, and remembers what it was asked."""

    name: str = "scripted"
    found: Availability = field(default_factory=lambda: Availability(True, "scripted"))
    answer: Any = None
    error: Exception | None = None
    warms: list[Any] = field(default_factory=list)

    def availability(self) -> Availability:
        return self.found

    def certify(self, problem: CertifyProblem, config: SolverConfig, warm: Any) -> Any:
        return self._reply(warm)

    def project(self, problem: ProjectProblem, config: SolverConfig, warm: Any) -> Any:
        return self._reply(warm)

    def _reply(self, warm: Any) -> Any:
        self.warms.append(warm)
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """A backend called ``scripted`` among a user's own, and nothing logged yet."""
    backend = Scripted()
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(solve, "_said", set())
    register_backend(backend)
    return backend


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("name", "near"), [("mosec", "mosek"), ("SCS", "scs"), ("nativ", "native"), ("aut", "auto")]
)
def test_an_unknown_name_is_refused_with_its_near_miss(name: str, near: str) -> None:
    message = (
        f"solver: no backend named '{name}'; did you mean '{near}'? "
        "expected one of auto, native, mosek, clarabel, scs"
    )
    for call in (
        lambda: solve_certify(CERTIFY, SolverConfig(name)),
        lambda: solve_project(PROJECT, SolverConfig(name)),
        lambda: solve_project(PROJECT, SolverConfig("native", fallback=(name,))),
    ):
        with pytest.raises(UnknownBackend) as caught:
            call()
        assert str(caught.value) == message
    assert issubclass(UnknownBackend, ValueError)
    assert issubclass(UnknownBackend, SolverError)


def test_a_name_like_no_other_is_refused_without_a_hint() -> None:
    with pytest.raises(UnknownBackend, match="no backend named 'xyz'; expected one of auto"):
        registry.backend("xyz")


def test_a_backend_of_a_users_own_is_asked_by_name_measured_and_replaced_by_its_next(
    scripted: Scripted,
) -> None:
    class Boasting(Scripted):
        """The native multipliers, and a bound that they do not prove."""

        def certify(self, problem: CertifyProblem, config: SolverConfig, warm: Any) -> Any:
            return replace(registry.backend("native").certify(problem, config, warm), lip_sq=1e-6)

    register_backend(Boasting())
    solution = solve_certify(CERTIFY, SolverConfig("scripted", fallback=()))
    assert (solution.backend, scripted.warms) == ("scripted", [])
    assert solution.lip == pytest.approx(solve_certify(CERTIFY).lip, rel=1e-6)
    register_backend(again := Scripted())
    assert registry.backend("scripted") is again
    assert registry.names().count("scripted") == 1
    assert "scripted" not in [b.name for b in registry.chain("auto", (), 10)]


@pytest.mark.parametrize("name", ["auto", "native", "scs", "two words", "", None])
def test_a_name_that_is_taken_or_no_word_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=f"backend: expected a name .* got {name!r}"):
        register_backend(Scripted(name=name))


def test_a_backend_without_a_method_is_refused_by_the_name_of_it() -> None:
    class Half:
        name = "half"
        availability = certify = len

    with pytest.raises(TypeError, match="expected a method project, got None"):
        register_backend(Half())  # type: ignore[arg-type]


def test_a_backend_is_made_once_and_knows_its_name() -> None:
    for name in registry.names():
        assert registry.backend(name).name == name
        assert registry.backend(name) is registry.backend(name)


def test_auto_is_native_first_and_leaves_clarabel_to_small_problems() -> None:
    def names(order: int, fallback: tuple[str, ...] = ("native", "scs")) -> list[str]:
        return [b.name for b in registry.chain("auto", fallback, order)]

    assert names(20) == ["native", "mosek", "clarabel", "scs"]
    assert names(500) == ["native", "mosek", "scs"]
    assert names(500, ()) == ["native"]


def test_a_named_backend_comes_first_and_none_comes_twice() -> None:
    chain = registry.chain("scs", ("native", "scs", "native"), 20)
    assert [b.name for b in chain] == ["scs", "native"]


def test_every_backend_is_listed_with_a_reason() -> None:
    found = available()
    assert list(found) == ["native", "mosek", "clarabel", "scs"]
    assert found["native"].usable
    text = doctor()
    for line, (name, availability) in zip(text, found.items(), strict=True):
        assert line.split()[:2] == [name, "usable" if availability.usable else "unusable"]
        assert line.endswith(availability.reason)


def test_an_unlicensed_mosek_falls_back_with_one_line(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    if mosek_licence().usable:
        pytest.skip("MOSEK has a licence here")
    with caplog.at_level(logging.DEBUG, logger="admm_lip"):
        first = solve_certify(CERTIFY, SolverConfig("mosek"))
        second = solve_certify(CERTIFY, SolverConfig("mosek"))
    assert first.backend == second.backend == "native"
    (line,) = lines(caplog)
    assert line.startswith("solver 'mosek': used 'native' instead; mosek: unavailable (installed")
    assert "MOSEK error 10" in line
    assert len(caplog.records) == 2  # the second time it is a debug line


def test_an_unlicensed_mosek_without_fallback_is_an_error() -> None:
    if mosek_licence().usable:
        pytest.skip("MOSEK has a licence here")
    for call in (
        lambda config: solve_certify(CERTIFY, config),
        lambda config: solve_project(PROJECT, config),
    ):
        with pytest.raises(
            SolverUnavailable,
            match=r"solver 'mosek' is unavailable: .*MOSEK error 10\d\d .* looked for the licence "
            r"at .*; put a licence file there, or set MOSEKLM_LICENSE_FILE",
        ):
            call(SolverConfig("mosek", fallback=()))


# What a backend is asked about, and answers for, is the reduced problem.
INNER = tuple(
    torch.ones(n, dtype=torch.float64) for n in reduce_certify(CERTIFY).problem.widths[1:-1]
)
INSUFFICIENT = tuple(1e-9 * t for t in INNER)

BAD_CERTIFY = {
    "breaks down": (
        CertifyClaim(Status.FAILED, None, message="stalled"),
        r"failed \(stalled\)",
    ),
    "says infeasible": (
        CertifyClaim(Status.INFEASIBLE, None),
        r"infeasible \(the backend says no point is feasible",
    ),
    "claims and proves nothing": (
        CertifyClaim(Status.OPTIMAL, INSUFFICIENT, lip_sq=0.1),
        "the multiplier that came back proves no bound",
    ),
    "returns NaN": (
        CertifyClaim(Status.OPTIMAL, tuple(float("nan") * t for t in INNER), lip_sq=0.1),
        "the multiplier that came back proves no bound",
    ),
    "ran out of time": (CertifyClaim(Status.LIMIT, None), "no multiplier came back"),
}


@pytest.mark.parametrize(("claim", "reason"), BAD_CERTIFY.values(), ids=BAD_CERTIFY)
def test_a_bad_multiplier_falls_back_and_alone_is_an_error(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, claim: CertifyClaim, reason: str
) -> None:
    scripted.answer = claim
    solution = solve_certify(CERTIFY, SolverConfig("scripted", fallback=("scs",)))
    assert solution.backend == "scs"
    (line,) = lines(caplog)
    assert line.startswith("solver 'scripted': used 'scs' instead; scripted: ")
    with pytest.raises(SolveFailed, match=f"no backend came to a usable answer.*{reason}"):
        solve_certify(CERTIFY, SolverConfig("scripted", fallback=()))


FAR = tuple(100.0 * w for w in WEIGHTS)

BAD_PROJECT = {
    "breaks down": (ProjectClaim(Status.FAILED, None, message="stalled"), r"failed \(stalled\)"),
    "returns NaN": (
        ProjectClaim(Status.OPTIMAL, tuple(float("nan") * w for w in WEIGHTS)),
        "the weights that came back are not finite",
    ),
    "ran out of time": (ProjectClaim(Status.LIMIT, None), "no weights came back"),
}


@pytest.mark.parametrize(("claim", "reason"), BAD_PROJECT.values(), ids=BAD_PROJECT)
def test_bad_weights_fall_back_and_alone_are_an_error(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, claim: ProjectClaim, reason: str
) -> None:
    scripted.answer = claim
    solution = solve_project(PROJECT, SolverConfig("scripted", fallback=("native",)))
    assert solution.backend == "native"
    assert len(lines(caplog)) == 1
    with pytest.raises(SolveFailed, match=reason):
        solve_project(PROJECT, SolverConfig("scripted", fallback=()))


def test_a_penalised_answer_without_a_bound_is_no_answer(scripted: Scripted) -> None:
    scripted.answer = ProjectClaim(Status.OPTIMAL, WEIGHTS)
    problem = replace(PROJECT, bound=None, mu=1.0)
    with pytest.raises(SolveFailed, match=r"the L\^2 that came back is nan"):
        solve_project(problem, SolverConfig("scripted", fallback=()))


def test_infeasible_weights_are_shrunk_until_they_are_feasible(scripted: Scripted) -> None:
    scripted.answer = ProjectClaim(Status.OPTIMAL, FAR)
    solution = solve_project(PROJECT, SolverConfig("scripted", fallback=()))
    assert 1.0 - 1e-9 <= solution.ball_norm <= 1.0
    ratio = solution.weights[0] / FAR[0]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


def test_shrinking_keeps_held_entries_and_gives_up_where_they_alone_are_infeasible() -> None:
    held = tuple(torch.zeros_like(w, dtype=torch.bool) for w in WEIGHTS)
    held[0][0, 0] = True
    structure = tuple(Structure(held=h) for h in held)
    for size, possible in ((0.1, True), (1e3, False)):
        weights = tuple(w.clone() for w in FAR)
        weights[0][0, 0] = size
        problem = ProjectProblem(weights, SLOPES, ONES, bound=0.5, structure=structure)
        shrunk, norm = make_feasible(problem, weights, 0.25)
        assert (norm <= 1.0) == possible
        assert norm == ball_norm(problem, shrunk, 0.25)
        assert float(shrunk[0][0, 0]) == size


def out_of_reach() -> ProjectProblem:
    """One entry is held so far out that nothing else can make up for it."""
    held = tuple(torch.zeros_like(w, dtype=torch.bool) for w in WEIGHTS)
    held[0][0, 0] = True
    anchor = (WEIGHTS[0] + 1e3 * held[0], *WEIGHTS[1:])
    structure = tuple(Structure(held=h) for h in held)
    return ProjectProblem(anchor, SLOPES, ONES, bound=0.5, structure=structure)


def test_weights_that_cannot_be_made_feasible_are_no_answer(scripted: Scripted) -> None:
    problem = out_of_reach()
    scripted.answer = ProjectClaim(Status.OPTIMAL, problem.anchor)
    with pytest.raises(SolveFailed, match="the weights that came back are infeasible, ball norm"):
        solve_project(problem, SolverConfig("scripted", fallback=()))


def test_an_entry_held_out_of_reach_fails_on_every_backend() -> None:
    problem = out_of_reach()
    with pytest.raises(SolveFailed, match=r"native: infeasible .*; scs: "):
        solve_project(problem, SolverConfig("native", fallback=("scs",)))


def test_all_attempts_are_listed_when_all_fail(scripted: Scripted) -> None:
    scripted.found = Availability(False, "not installed: pip install scripted")
    config = SolverConfig("scripted", fallback=("clarabel", "scs"), time_limit=1e-9, tol=1e-9)
    with pytest.raises(SolveFailed) as caught:
        solve_certify(CERTIFY, config)
    text = str(caught.value)
    assert "scripted: unavailable (not installed: pip install scripted)" in text
    assert "clarabel: " in text
    assert "scs: " in text


def test_a_licence_lost_in_a_solve_falls_back_and_alone_is_an_error(scripted: Scripted) -> None:
    scripted.error = SolverUnavailable("the licence server went away")
    assert solve_certify(CERTIFY, SolverConfig("scripted")).backend == "native"
    with pytest.raises(SolverUnavailable, match="the licence server went away"):
        solve_certify(CERTIFY, SolverConfig("scripted", fallback=()))


def test_a_bug_in_a_backend_is_not_taken_for_a_failure(scripted: Scripted) -> None:
    scripted.error = KeyError("a bug")
    with pytest.raises(KeyError, match="a bug"):
        solve_certify(CERTIFY, SolverConfig("scripted"))


def limited() -> CertifyClaim:
    """A sound but loose answer, cut off by a limit."""
    return CertifyClaim(Status.LIMIT, tuple(50.0 * t for t in INNER), lip_sq=2500.0)


def test_an_answer_cut_off_by_the_time_limit_is_bettered_by_the_fallback(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.answer = limited()
    config = SolverConfig("scripted", time_limit=60.0, fallback=("native",))
    solution = solve_certify(CERTIFY, config)
    assert (solution.backend, solution.status) == ("native", Status.OPTIMAL)
    assert "scripted: time or iteration limit reached" in lines(caplog)[0]


def test_an_answer_cut_off_is_kept_where_nothing_better_comes(scripted: Scripted) -> None:
    scripted.answer = limited()
    alone = solve_certify(CERTIFY, SolverConfig("scripted", time_limit=60.0, fallback=()))
    unlimited = solve_certify(CERTIFY, SolverConfig("scripted"))
    for solution in (alone, unlimited):
        assert (solution.backend, solution.status) == ("scripted", Status.LIMIT)
        assert solution.lip < float("inf")


def test_restart_data_returns_only_to_the_backend_it_came_from(scripted: Scripted) -> None:
    scripted.answer = ProjectClaim(Status.OPTIMAL, WEIGHTS, warm="mine")
    own = solve_project(PROJECT, SolverConfig("scripted"))
    native = solve_project(PROJECT, SolverConfig("native"))
    for warm in (own.warm, native.warm, None):
        solve_project(PROJECT, SolverConfig("scripted"), warm=warm)
    assert scripted.warms == [None, "mine", None, None]


def test_native_restarts_faster_from_its_own_data() -> None:
    # At the accuracy of a training round: beyond it the last digits cost the same from anywhere.
    config = SolverConfig("native", tol=1e-3, fallback=())
    first = solve_project(PROJECT, config)
    near = replace(PROJECT, anchor=tuple(1.001 * w for w in WEIGHTS))
    cold, warm = solve_project(near, config), solve_project(near, config, warm=first.warm)
    assert warm.iterations < cold.iterations


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_never_reach_a_backend(bad: float) -> None:
    broken = (WEIGHTS[0] * bad, *WEIGHTS[1:])
    with pytest.raises(ProblemError, match=r"weights\[0\]: holds a value that is NaN or infinite"):
        CertifyProblem(broken, SLOPES)
    with pytest.raises(ProblemError, match=r"anchor\[0\]: holds a value that is NaN or infinite"):
        ProjectProblem(broken, SLOPES, ONES, bound=1.0)


def test_a_multiplier_a_little_outside_is_inflated_until_it_proves_a_bound() -> None:
    # T = 1 is the optimum of the hat, where the LMI without its input is singular.
    hat = (torch.ones(2, 1).double(), torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    problem = CertifyProblem(hat, unit_slopes(hat))
    inflated, lip = proving(problem, (torch.full((2,), 1.0 - 1e-6, dtype=torch.float64),))
    assert 1.0 <= lip <= 1.0 + 1e-4
    assert bool((inflated[0] > 1.0).all())
    hopeless = proving(problem, (torch.full((2,), 0.5, dtype=torch.float64),))
    assert hopeless[1] == float("inf")


def test_the_default_needs_no_configuration() -> None:
    net = signed_net((3, 4, 2), 1)
    weights = tuple(torch.as_tensor(w) for w in net.weights)
    solution = solve_certify(CertifyProblem(weights, unit_slopes(weights)))
    assert solution.backend == "native"
    assert solution.lip == pytest.approx(net.lip, rel=1e-6)
    assert solve_project(PROJECT).ball_norm <= 1.0
