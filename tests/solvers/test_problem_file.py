"""A problem written for a report is read back to the last bit, and a damaged file by its fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from admm_lip.solvers import (
    CertifyProblem,
    ProblemError,
    ProjectProblem,
    Slopes,
    SolveFailed,
    SolverConfig,
    Structure,
    load_problem,
    save_problem,
    solve_certify,
    solve_project,
)

NATIVE = SolverConfig("native", fallback=())


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WEIGHTS = (draw(5, 3), draw(4, 5).T.contiguous().T, draw(2, 4))
RANGES = tuple(Slopes(torch.full((n,), -0.1).double(), torch.ones(n).double()) for n in (5, 4))
CERTIFY = CertifyProblem(WEIGHTS, RANGES)
HELD = Structure(held=draw(5, 3) > 1.0)
TIED = Structure(ties=torch.arange(20).reshape(4, 5) % 7 - 1, metric=draw(4, 5).abs() + 0.1)
PROJECT = ProjectProblem(
    WEIGHTS, RANGES, tuple(0.3 + draw(n).abs() for n in (5, 4)), bound=0.1 + 0.2, rho=1.0 / 3.0
)
PROBLEMS = {
    "certify": CERTIFY,
    "affine": CertifyProblem(WEIGHTS[:1], ()),
    "project": PROJECT,
    "penalised": replace(PROJECT, bound=None, mu=0.7),
    "structure": replace(PROJECT, structure=(HELD, TIED, Structure())),
}


def parts(problem: CertifyProblem | ProjectProblem) -> list[Any]:
    """Every field, tensors as the bytes of their numbers."""
    found: list[Any] = [type(problem)]
    pending = [getattr(problem, name) for name in problem.__dataclass_fields__]
    while pending:
        value = pending.pop()
        if isinstance(value, tuple):
            found.append(len(value))
            pending.extend(value)
        elif isinstance(value, Structure):
            pending.extend([value.metric, value.held, value.ties])
        elif isinstance(value, torch.Tensor):
            found.append((value.dtype, value.shape, value.contiguous().numpy().tobytes()))
        else:
            found.append(value)
    return found


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_comes_back_to_the_last_bit(
    problem: CertifyProblem | ProjectProblem, tmp_path: Path
) -> None:
    path = tmp_path / "problem.safetensors"
    path.write_bytes(b"what was there before")
    save_problem(problem, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert parts(load_problem(path)) == parts(problem)


def test_its_solve_is_the_solve_of_the_original(tmp_path: Path) -> None:
    rows = tuple(w.contiguous() for w in WEIGHTS)  # the order in which a file has the numbers
    before, anchored = replace(CERTIFY, weights=rows), replace(PROJECT, anchor=rows)
    save_problem(before, tmp_path / "a")
    save_problem(anchored, tmp_path / "b")
    certify, project = load_problem(tmp_path / "a"), load_problem(tmp_path / "b")
    assert isinstance(certify, CertifyProblem)
    assert isinstance(project, ProjectProblem)
    ours, theirs = (solve_certify(p, NATIVE) for p in (before, certify))
    assert (ours.lip, ours.lower_lip) == (theirs.lip, theirs.lower_lip)
    for a, b in zip(ours.multiplier, theirs.multiplier, strict=True):
        assert torch.equal(a, b)
    near, far = (solve_project(p, NATIVE) for p in (anchored, project))
    assert all(torch.equal(a, b) for a, b in zip(near.weights, far.weights, strict=True))


def test_a_failure_hands_over_the_problem_and_says_how_to_report_it(tmp_path: Path) -> None:
    tiny = replace(PROJECT, structure=tuple(Structure(held=w.abs() > 0) for w in WEIGHTS))
    with pytest.raises(SolveFailed, match=r"save_problem\(error\.problem, path\)") as failed:
        solve_project(tiny, NATIVE)
    save_problem(failed.value.problem, tmp_path / "p")
    assert parts(load_problem(tmp_path / "p")) == parts(tiny)


Header = dict[str, Any]


def without(name: str) -> Callable[[Header], Header]:
    return lambda header: {key: value for key, value in header.items() if key != name}


def changed(name: str, **fields: Any) -> Callable[[Header], Header]:
    return lambda header: {**header, name: {**header[name], **fields}}


BAD_HEADERS: dict[str, tuple[Callable[[Header], Any], str]] = {
    "a list": (lambda header: [], "does not say the format"),
    "no format": (without("__metadata__"), "does not say the format"),
    "another format": (changed("__metadata__", format="x"), "does not say the format"),
    "another kind": (changed("__metadata__", kind="train"), "expected 'certify' or 'project'"),
    "a weight less": (without("weights.1"), "its place in the file"),
    "a name more": (
        lambda header: {**header, "x": {**header["weights.0"], "shape": [0]}},
        "its place in the file",
    ),
    "objects": (changed("weights.0", dtype="O"), "expected a vector or matrix of F64"),
    "a negative side": (changed("weights.0", shape=[-5, -3]), "expected a vector or matrix"),
    "a huge side": (changed("weights.0", shape=[2**60, 3]), "its place in the file"),
    "flags for sides": (changed("weights.0", shape=[True, 15]), "expected a vector or matrix"),
    "another shape": (changed("weights.0", shape=[3, 5]), "columns to follow"),
    "overlap": (changed("weights.1", data_offsets=[0, 160]), "its place in the file"),
}


@pytest.mark.parametrize(("change", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_that_lies_is_refused_by_its_fault(
    change: Callable[[Header], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p"
    save_problem(CERTIFY, path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(ProblemError, match=message) as refused:
        load_problem(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "longer than the file"),
        ((2**63).to_bytes(8, "little") + b"{}", "longer than the file"),
        ((2).to_bytes(8, "little") + b"{", "longer than the file"),
        ((16).to_bytes(8, "little") + b'{"a": 1, "a": 2}', "names something twice"),
        ((10).to_bytes(8, "little") + b'{"a": NaN}', "NaN"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "expected a file of save_problem"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ProblemError, match=message):
        load_problem(tmp_path / "p")
    with pytest.raises(ProblemError, match="No such file"):
        load_problem(tmp_path / "missing")


def test_numbers_cut_off_or_added_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    save_problem(CERTIFY, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ProblemError, match=r"its place in the file|fewer or more"):
            load_problem(path)
