"""Runs of the command line that are killed again and again, against runs that nobody touched.

Every process is killed by SIGKILL or SIGTERM, at a random time or while a file is being written,
and the command is given again with ``--resume``; after a few kills it is left to end.  Weights and
certificate (of a comparison, its rows) must then be bit for bit those of an uninterrupted run.
The processes are forked from one that has imported everything, and so begin at the command line.
``certify --kind local`` needs no ``--resume``: the same words go on.

    python -m benchmarks kills --kills 100
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from admm_lip.cli import main as main_of_the_package
from admm_lip.files import meant_for
from admm_lip.local import LocalCertificate
from admm_lip.records import read_rows

from .catalogue import parser_of
from .record import save

Words = tuple[str, ...]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
# Kills of one run before it is left to end.
PER_RUN = 8
_TIMEOUT = 600.0
_QUICK: Words = ("--evaluate.steps", "3", "--evaluate.samples", "20", "--checkpoint-seconds", "0")
_TRAIN: Words = ("train", "--data", "toy2d", "--quiet", "--model.hidden", "[6]", *_QUICK)
_COMPARE: Words = ("compare", "--data", "toy2d", "--model.hidden", "[6]", *_QUICK)
_CERTIFY: Words = (
    *("certify", "{network}", "--kind", "local", "--data", "toy2d", "--samples", "160"),
    *("--local.level", "tuned", "--output", "{folder}/local.safetensors"),
)
_PROJECT: Words = ("--bound", "3", "--finetune", "toy2d", "--checkpoint-seconds", "0")


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        start: its words, but for the folder, unless ``{folder}`` is among them; ``{network}`` is
            a trained network's folder.
        outcome: what must be the same in the end, in few digits, from the run's folder.
    """

    start: Words
    outcome: Callable[[Path], str]

    def words(self, folder: Path, network: Path) -> Words:
        """What to type: the start, or how to go on where the folder knows."""
        if any("{folder}" in word for word in self.start):
            return tuple(w.format(network=network, folder=folder) for w in self.start)
        needed = "project.yaml" if self.start[0] == "project" else "config.yaml"
        if (folder / needed).is_file():
            return (self.start[0], "--resume", str(folder))
        return (*(w.format(network=network) for w in self.start), "--run-dir", str(folder))


def _of_network(folder: Path) -> str:
    content = [(folder / n).read_bytes() for n in ("weights.safetensors", "certificate.json")]
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]


def _of_rows(folder: Path) -> str:
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_rows(folder / "front.jsonl")
    ]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _of_balls(folder: Path) -> str:
    found = LocalCertificate.load(folder / "local.safetensors")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in found.table()]
    return hashlib.sha256(repr((found.digest, rows)).encode()).hexdigest()[:16]


COMMANDS = {
    "train": Command((*_TRAIN, "--epochs", "600"), _of_network),
    "train --method lmt": Command((*_TRAIN, "--epochs", "600", "--method", "lmt"), _of_network),
    "project --finetune": Command(
        ("project", "{network}", *_PROJECT, "--epochs", "300"), _of_network
    ),
    "certify --kind local": Command(_CERTIFY, _of_balls),
    "compare": Command((*_COMPARE, "--mus", "[0.001,0.01]", "--epochs", "100"), _of_rows),
}


@dataclass(frozen=True)
class Kill:
    """One kill and what it met.

    Attributes:
        signal: its name.
        moment: what the process was doing, read from the folder it left.
        code: how the process ended.
        leftovers: temporary files that it left.
    """

    signal: str
    moment: str
    code: int
    leftovers: int


def run_with_kills(
    command: Command, folder: Path, network: Path, kills: int, seconds: float, dice: random.Random
) -> list[Kill]:
    """Start, kill, resume, kill, ..., and let the last one end.

    Args:
        command: to run.
        folder: where it is to work; it must not exist.
        network: a trained network, for projections.
        kills: how many processes to kill.
        seconds: that an untouched run takes.
        dice: draws the signals and the moments.

    Returns:
        The kills that met a living process.

    Raises:
        AssertionError: when the last process fails, or one that was left alone.
    """
    met = []
    for _ in range(kills):
        begun = time.time()
        running = Running(command.words(folder, network))
        _wait(running, folder, dice, seconds)
        if running.alive:
            number = dice.choice(SIGNALS)
            moment = _moment(folder, begun)
            running.send(number)
            code, left = running.wait(), len(_leftovers(folder))
            met.append(Kill(number.name, "while writing" if left else moment, code, left))
        else:
            assert running.wait() == 0, f"{command.start[:4]} failed"
    finish(command, folder, network)
    return met


def finish(command: Command, folder: Path, network: Path) -> None:
    """Run to the end, from wherever it is."""
    code = Running(command.words(folder, network)).wait()
    assert code == 0, f"{command.start[:4]} ended with {code}"


def trained_network(folder: Path) -> Path:
    """A network to project."""
    assert Running((*_TRAIN, "--epochs", "100", "--run-dir", str(folder))).wait() == 0
    return folder


class Running:
    """One process of the command line."""

    def __init__(self, words: Words) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([__name__, *_PRELOADED])
        self.process = server.Process(target=_typed, args=(words,))
        self.process.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def wait(self) -> int:
        """Its exit code; minus the signal's number where that ended it."""
        self.process.join(_TIMEOUT)
        assert self.process.exitcode is not None, f"no end after {_TIMEOUT} seconds"
        return self.process.exitcode

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid or 0, number)


_PRELOADED = (
    *(f"admm_lip.commands.{n}" for n in ("train", "project", "compare", "certify", "finish")),
    *("admm_lip.local", "admm_lip.local.radii"),
    *("admm_lip.commands.recipes", "admm_lip.training.train"),
    *(
        "admm_lip.training.project",
        "admm_lip.research.comparators",
        "admm_lip.plots",
        "admm_lip.foreign",
    ),
)


def _typed(words: Words) -> NoReturn:
    """What a shell would do."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    sys.exit(main_of_the_package(words))


def _wait(running: Running, folder: Path, dice: random.Random, seconds: float) -> None:
    """Until a random time in its first half; every other time on, until a file is being written."""
    until = time.monotonic() + dice.uniform(0.0, 0.5 * seconds)
    in_writing = dice.random() < 0.5
    while running.alive:
        if time.monotonic() >= until and (not in_writing or _leftovers(folder)):
            return
        time.sleep(0.0005 if time.monotonic() >= until else 0.01)


def _names(folder: Path) -> set[str]:
    return {name for _, _, files in os.walk(folder) for name in files}


def _leftovers(folder: Path) -> list[str]:
    return [name for name in _names(folder) if meant_for(name) != name]


def _moment(folder: Path, begun: float) -> str:
    """What a process is doing that began at ``begun``, from the files it has written."""
    names = _names(folder)
    if "config.yaml" not in names:
        return "before the settings"
    if not names & {"checkpoint.safetensors", "front.jsonl"}:
        return "before the first checkpoint"
    network = folder / "weights.safetensors"
    ended = network.is_file() and network.stat().st_mtime >= begun
    return "after training" if ended else "training"


@dataclass(frozen=True)
class Trial:
    """A command, what an untouched run of it took and left, and where runs of it are made."""

    name: str
    folder: Path
    network: Path
    seconds: float
    expected: str

    @classmethod
    def of(cls, name: str, folder: Path, network: Path) -> Trial:
        """Run the command untouched."""
        whole, begun = folder / f"{name} whole", time.monotonic()
        finish(COMMANDS[name], whole, network)
        return cls(name, folder, network, time.monotonic() - begun, COMMANDS[name].outcome(whole))

    def rows(self, kills: int, seed: int) -> list[dict[str, Any]]:
        """One run with kills: a row for each of them."""
        command, place = COMMANDS[self.name], self.folder / f"{self.name} {seed}"
        dice = random.Random(f"{self.name} {seed}")
        met = run_with_kills(command, place, self.network, kills, self.seconds, dice)
        same, clean = command.outcome(place) == self.expected, not _leftovers(place)
        about = {"command": self.name, "seed": seed, "identical": same, "clean": clean}
        return [about | vars(kill) for kill in met]


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kills by command, signal and moment, and how many of their runs ended the same."""
    keys = ("command", "signal", "moment")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, group, strict=True))
        | {
            "kills": len(kills),
            "identical": sum(kill["identical"] for kill in kills),
            "nothing_left_over": sum(kill["clean"] for kill in kills),
            "exit_codes": sorted({kill["code"] for kill in kills}),
        }
        for group, kills in sorted(groups.items())
    ]


def main(argv: list[str]) -> None:
    """Kill until enough processes were met alive, and write the record."""
    parser = parser_of("kills")
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        network = trained_network(Path(place) / "network")
        trials = [Trial.of(name, Path(place), network) for name in COMMANDS]
        for seed in itertools.count():
            if len(rows) >= options.kills:
                break
            for trial in trials:
                rows += trial.rows(PER_RUN, seed)
            print(f"{len(rows)} kills, {sum(r['identical'] for r in rows)} identical", flush=True)
    commands = {name: " ".join(command.start) for name, command in COMMANDS.items()}
    save("kills", {"kills_per_run": PER_RUN, "commands": commands}, counted(rows))
