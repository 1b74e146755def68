"""Long work is heard of, once it is long; short work is not."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
import time

import pytest

from admm_lip import progress
from admm_lip.progress import working


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.1)
    monkeypatch.setattr(progress, "EVERY", 0.2)


def last(seconds: float) -> None:
    time.sleep(seconds)


def test_short_work_is_silent_and_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with working("certify", 2, "rows") as work:
        work.step()
    assert threading.active_count() == before
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_plain_lines_with_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with working("training", 8, "steps", done=2) as work:
        work.step(3)
        work.note = "loss 0.5"
        last(0.5)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 2 <= len(lines) <= 3
    said = r"training: 5 of 8 steps, \d+ s, about \d+ s left; loss 0.5"
    assert all(re.fullmatch(said, line) for line in lines)


def test_one_long_solve_is_heard_of(capsys: pytest.CaptureFixture[str]) -> None:
    with working("certify 8-8-2 relu"):
        last(0.2)
    assert re.fullmatch(r"certify 8-8-2 relu: \d+ s\n", capsys.readouterr().err)


def test_the_innermost_long_work_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with working("outer"), working("inner"):
        last(0.6)
    names = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert names.count("inner") >= 2
    assert names.count("outer") <= 1  # both begin at the same time


def test_many_short_works_do_not_silence_the_long_one(capsys: pytest.CaptureFixture[str]) -> None:
    with working("compare", 10, "runs") as work:
        for _ in range(10):
            with working("training"):
                last(0.05)
            work.step()
    assert {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()} == {"compare"}


def test_what_is_not_shown_silences_what_is_within(capsys: pytest.CaptureFixture[str]) -> None:
    with working("train", show=False), working("measure"):
        last(0.3)
    assert capsys.readouterr().err == ""


def test_it_ends_with_the_error_of_the_work() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), working("certify"):
        last(0.2)
        _ = 1 / 0
    assert threading.active_count() == before


CODE = """
import time
from admm_lip import progress
progress.DELAY = 0.1
with progress.working("certify", 4, "rows") as work:
    for _ in range(4):
        time.sleep(0.3)
        work.step()
    with progress.aside():
        print("a row")
"""


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    fcntl, termios = (pytest.importorskip(name) for name in ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # its other end is closed
        pass
    os.close(ours)
    assert done.stdout == b"a row\n"
    shown = seen.decode().split("\r")
    assert any(line.startswith("certify:") and "3/4" in line for line in shown)
    assert not shown[-1].strip()
    assert not shown[-2].strip()
