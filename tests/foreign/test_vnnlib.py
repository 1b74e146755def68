"""VNNLIB files: what they say is taken exactly, and what can be read in two ways is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from admm_lip.errors import NetworkError, SpecificationError
from admm_lip.foreign import read_vnnlib
from admm_lip.foreign.vnnlib import parse_vnnlib

HEAD = """; a controller
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
"""
BOX = """
(assert (<= X_0 0.1)) (assert (>= X_0 -0.1))
(assert (and (<= X_1 2e-1) (>= X_1 (- 3))))
"""
UNSAFE = "(assert (>= Y_0 Y_1))\n"


def test_numbers_are_exact() -> None:
    (case,) = parse_vnnlib(HEAD + BOX + UNSAFE).cases
    assert case.low == (Fraction(-1, 10), Fraction(-3))
    assert case.high == (Fraction(1, 10), Fraction(1, 5))
    assert [(dict(c.coefficients), c.bound) for c in case.constraints] == [({0: -1, 1: 1}, 0)]


def test_linear_terms_are_gathered() -> None:
    text = "(assert (<= (+ (* 2 Y_0) (* (- 1 0.5) Y_1) Y_0 3) (- (* 2 (- Y_1 Y_0)) 4.25)))"
    (case,) = parse_vnnlib(HEAD + BOX + text).cases
    (space,) = case.constraints
    assert (dict(space.coefficients), space.bound) == ({0: 5, 1: Fraction(-3, 2)}, Fraction(-29, 4))


def test_cases_are_every_way_to_meet_all_assertions() -> None:
    text = """
    (assert (>= X_1 0)) (assert (<= X_1 1))
    (assert (or (and (>= X_0 0) (<= X_0 1) (<= Y_0 0)) (and (>= X_0 2) (<= X_0 3) (>= Y_0 7))))
    (assert (or (>= Y_1 1) (<= Y_1 -1)))
    """
    cases = parse_vnnlib(HEAD + text).cases
    assert [(c.low[0], c.high[0]) for c in cases] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [[s.bound for s in c.constraints] for c in cases] == [
        [0, -1],
        [0, -1],
        [-7, -1],
        [-7, -1],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= X_0 0.2))", "X_0: two upper ends, 0.1 and 0.2; state one"),
        ("(assert (<= (* 2 X_0) 1))", "X_0: two upper ends, 0.1 and 0.5; state one"),
        ("(assert (<= X_0 1e999))", "X_0: two upper ends, 0.1 and a number beyond float64"),
        ("(assert (<= X_0 X_1))", "a constraint of X_0, X_1 together; expected a box"),
        ("(assert (<= Y_0 X_1))", "a constraint of X_1, Y_0 together"),
        ("(assert (<= (* Y_0 Y_1) 1))", "a product of variables; constraints must be linear"),
        ("(assert (<= (* Y_0 Y_0) 1))", "a product of variables"),
        ("(assert (<= (- Y_0 Y_0) 1))", "a constraint without variables"),
        ("(assert (<= 0 1))", "a constraint without variables"),
        ("(assert (< Y_0 1))", r"expected \(and ...\), \(or ...\), \(<= A B\) or \(>= A B\)"),
        ("(assert (<= Y_0 1 2))", r"expected \(and ...\)"),
        ("(assert (and))", r"expected \(and ...\)"),
        ("(assert (not (<= Y_0 1)))", r"expected \(and ...\)"),
        ("(assert (<= Y_0 (/ 1 2)))", r"expected a number, a variable, \(\+ ...\)"),
        ("(assert (<= Y_0 ()))", "expected a number, a variable"),
        ("(assert (<= Y_0 ((+) 1)))", "expected a number, a variable"),
        ("(assert (<= Y_0 (* 1 2 3)))", "expected two factors"),
        ("(assert (<= Y_0 1/2))", "expected a number or a variable, got '1/2'"),
        ("(assert (<= Y_0 nan))", "expected a number or a variable, got 'nan'"),
        ("(assert (<= Y_0 1_0))", "expected a number or a variable, got '1_0'"),
        ("(assert (<= Y_0 ١))", "expected a number or a variable"),
        ("(assert (<= Y_2 1))", "Y_2 is not declared before it is used"),
        ("(assert (<= Y_00 1))", "expected a number or a variable, got 'Y_00'"),
        ("(declare-const X_1 Real)", "line 10: X_1 is declared twice"),
        ("(declare-const X_3 Real)", "X_2 is not declared"),
        ("(declare-const Z Real)", "expected a variable named X_0"),
        ("(declare-const X_2 Int)", r"expected \(declare-const NAME Real\) or \(assert FORMULA\)"),
        ("(set-logic QF_LRA)", "expected .*, got 'set-logic'"),
        ("(vnnlib-version <2.0>)", "expected .*, got 'vnnlib-version'"),
        ("()", "expected .*, got '()'"),
        ("(assert (<= Y_0 1)", r"line 10: a \( without its \)"),
        ("(assert (<= Y_0 1)))", r"line 10: a \) without its \("),
        ("assert", "line 10: expected a command, got 'assert'"),
        ("(assert " + "(and " * 99 + ")" * 100, "nested deeper than 32"),
        ("(assert (or (<= Y_0 1) (<= Y_1 1)))" * 13, "more than 4096 cases"),
    ],
)
def test_what_is_not_one_box_and_half_spaces_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecificationError, match=message.replace("'()'", r"'\(\)'")):
        parse_vnnlib(HEAD + BOX + UNSAFE + text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + UNSAFE, "X_0: no lower end is stated"),
        (HEAD + BOX.replace("(>= X_0 -0.1)", "(>= X_0 0.2)") + UNSAFE, "X_0: its lower end 0.2 is"),
        (HEAD + BOX, "no constraint of the outputs"),
        ("", "X_0 is not declared"),
        ("(declare-const X_0 Real)", "Y_0 is not declared"),
        (UNSAFE + HEAD + BOX, "line 1: Y_"),
    ],
)
def test_what_is_missing_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        parse_vnnlib(text)


def test_files_are_bounded_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.vnnlib"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecificationError, match=r"a\.vnnlib: expected text in UTF-8"):
        read_vnnlib(path)
    path.write_text(HEAD)
    with pytest.raises(SpecificationError, match=r"a\.vnnlib: X_0: no lower end"):
        read_vnnlib(path)
    with path.open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(NetworkError, match="above the limit"):
        read_vnnlib(path)
    with pytest.raises(NetworkError, match="expected a file, found none"):
        read_vnnlib(tmp_path)
