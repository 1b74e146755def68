"""What benchmarks there are, by the question that they answer: the one table of their facts.

The list of ``python -m benchmarks``, every ``--help`` and the order of the report are read off it.
Minutes are not in it: they are read off the records.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import record

CELLS = ("cell_seconds",)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; the module of its name has a function ``main(argv)``.

    Attributes:
        shows: one line for a reader.
        data: what it reads that the package does not bring.
        source: the table or figure, and the paper that it is from.
        clock: fields of the record's rows, or products ``a*b`` of them, that add up to seconds of
            its work; all of it where they are ``CELLS``.
    """

    shows: str
    data: str = "none"
    source: str = "ours"
    clock: tuple[str, ...] = CELLS


_PAULI = "Pauli et al., L-CSS 2022"
_FINLAY = "Finlay et al., arXiv 1808.09540"
_CROWN = "SDP-CROWN, ICML 2025"
_IMAGES = "MNIST, Fashion-MNIST"
_RIVALS = ("seconds", "descent_seconds", "clarabel_seconds", "scs_seconds")
_BOUNDS = ("cpu_seconds", "verify_cpu_seconds", "exact_cpu_seconds", "every_size_cpu_seconds")

_FOOTNOTE = (
    "Times are read off the committed records.  over: what the record timed alone; training and",
    "loading come on top.  NAME --help says where data are looked for.",
)

QUESTIONS: dict[str, dict[str, Benchmark]] = {
    "How tight are certificates, and how long do they take?": {
        "certificates": Benchmark(
            "what each kind of certificate proves of networks trained without a bound",
            "MNIST",
            "ours",
            ("seconds",),
        ),
        "image_bounds": Benchmark(
            "bounds of convolutional and residual networks, frequency by frequency",
            "MNIST, CIFAR-10, networks of SDP-CROWN",
            "ours",
            _BOUNDS,
        ),
        "solver_times": Benchmark(
            "seconds and proven gaps of the solvers, against plain descent, SCS, Clarabel",
            "MNIST",
            "sizes of the literature, ours",
            _RIVALS,
        ),
        "solver_sweep": Benchmark(
            "seconds against width and depth: native, descent, Clarabel, SCS", clock=_RIVALS
        ),
        "speed": Benchmark(
            "seconds of whole calls of certify against another version, by turns",
            "a checkout of the other version",
            clock=("cpu_seconds", "cpu_seconds_before"),
        ),
        "scaling": Benchmark(
            "how seconds and memory grow with width, depth, classes, image side, pictures, ranks",
            clock=("cpu_seconds",),
        ),
        "solver_pairs": Benchmark(
            "processor seconds of the native solver against another version, in pairs",
            "a checkout of the other version",
            clock=("cpu_seconds", "cpu_seconds_before"),
        ),
    },
    "How do networks trained under a bound compare?": {
        "toy2d": Benchmark(
            "the 2D toy: decision regions and confidence, five methods", source=f"{_PAULI}: 2D toy"
        ),
        "mnist_noise": Benchmark(
            "the MNIST networks: proven L, noise, attack, five methods",
            "MNIST",
            f"{_PAULI}: accuracy under noise",
        ),
        "rounds": Benchmark(
            "the bound holds in every round, in both modes", "MNIST", f"{_PAULI}: its cases", ()
        ),
        "front": Benchmark(
            "accuracy against proven L: penalty, enforced bound, six others", "MNIST"
        ),
        "mnist_bound": Benchmark(
            "MNIST 784-64-64-10 under bound 1: accuracy, certified accuracy, cost",
            "MNIST",
            "ours",
            ("cpu_seconds", "plain_cpu_seconds"),
        ),
        "images_tuning": Benchmark(
            "step sizes of images, on validation rows; run before it", _IMAGES
        ),
        "images": Benchmark(
            "MNIST and Fashion-MNIST, 784-64-64-10: clean and certified accuracy", _IMAGES
        ),
        "images_wide": Benchmark("MNIST, 784-256-256-10 and wider, likewise", "MNIST"),
        "image_training": Benchmark(
            "plain convolutions trained under a bound, beside a dense network", "MNIST, CIFAR-10"
        ),
        "image_peers": Benchmark(
            "the same by this package and by others, and what it costs over no bound",
            "MNIST, CIFAR-10",
        ),
        "square_wave": Benchmark(
            "a square wave under slope bounds 1, 5 and 10: tightness and error",
            source="Wang and Manchester, ICML 2023: square wave",
        ),
        "finetune": Benchmark(
            "a trained network as the start under a bound, against training from scratch", "MNIST"
        ),
        "ablation": Benchmark("one setting of the ADMM trainer changed at a time", "MNIST"),
    },
    "What does training cost?": {
        "images_cost": Benchmark("seconds of every method over plain training", "MNIST"),
        "backends": Benchmark("one run with every solver backend: same answer, seconds"),
        "gpu": Benchmark(
            "seconds on a device against the CPU: certify, project, train, balls",
            "an accelerator",
            "ours",
            (),
        ),
        "warm_projection": Benchmark(
            "seconds of the projection on the anchors of consecutive training rounds",
            "MNIST",
            "ours",
            (),
        ),
    },
    "What holds on a ball around one input?": {
        "local_table": Benchmark(
            "local certificates on networks and pictures of a published comparison",
            "networks of SDP-CROWN",
            f"{_CROWN}: table 1",
            ("cpu_seconds_each*pictures",),
        ),
        "local_bounds": Benchmark(
            "local certificates and radii against pairwise ones and an attack",
            "MNIST",
            "ours",
            ("cpu_seconds", "verify_cpu_seconds"),
        ),
        "local_training": Benchmark(
            "training with local against global Lipschitz bounds",
            "MNIST, CIFAR-10",
            "Huang et al., NeurIPS 2021: small versions of its networks",
        ),
        "balls_paired": Benchmark(
            "bounds on balls and their seconds, against an older checkout, case by case",
            "networks of SDP-CROWN, an older checkout",
            "ours",
            ("old_cpu_seconds", "new_cpu_seconds"),
        ),
    },
    "Tables and physical data": {
        "tabular": Benchmark(
            "regression tables, published splits: error against L",
            "the regression tables",
            "ours, on splits of Hernandez-Lobato and Adams, 2015",
        ),
    },
    "What do gradient penalties give?": {
        "gradient_study": Benchmark(
            "input-gradient penalties on a small convolutional network",
            "MNIST, CIFAR-10",
            f"{_FINLAY}: orderings of table 2",
            ("seconds",),
        ),
        "gradient_detection": Benchmark(
            "attacks told from clean inputs by the norm of the Jacobian",
            "MNIST",
            f"{_FINLAY}: detection, section 7",
            (),
        ),
        "gradient_theory": Benchmark(
            "the theory of gradient penalties in three pictures, and their cost",
            "none",
            f"{_FINLAY}: figure 1",
            (),
        ),
        "class_distances": Benchmark(
            "Lipschitz constants of MNIST, Fashion-MNIST and CIFAR-10, exactly",
            f"{_IMAGES}, CIFAR-10",
            f"{_FINLAY}: table 3",
            ("seconds",),
        ),
    },
    "Has anybody tried to break it?": {
        "forgeries": Benchmark(
            "ten thousand forged certificates of every kind, none of them believed"
        ),
        "falsification": Benchmark(
            "attacks on thousands of certified radii of every kind of certificate", "MNIST"
        ),
        "attacked_balls": Benchmark(
            "a million attacked balls: every kind of certificate, small networks"
        ),
        "enumerated_balls": Benchmark(
            "margins of every level against exact ones, by listing all pieces of small networks"
        ),
        "kills": Benchmark(
            "runs of the command line killed a hundred times, against untouched ones", clock=()
        ),
    },
    "All of it on one page": {
        "report": Benchmark(
            "one HTML page of all tables and plots, in under a minute", "the records", "-", ()
        ),
    },
}
BENCHMARKS = {name: found for some in QUESTIONS.values() for name, found in some.items()}


def benchmark_of(name: str) -> str | None:
    """The benchmark that a record is of: its own name, or one made with ``--record NAME_MORE``."""
    return max((b for b in BENCHMARKS if f"{name}_".startswith(f"{b}_")), key=len, default=None)


def question_of(name: str) -> str:
    """The question that a record answers."""
    found = benchmark_of(name)
    return next((q for q, some in QUESTIONS.items() if found in some), "Other records")


def minutes(name: str) -> str:
    """What a benchmark took, as far as its committed record says it."""
    if not (record.RESULTS / f"{name}.json").is_file():
        return "not recorded"
    found, clock = record.load(name), BENCHMARKS[name].clock
    seconds = sum(_seconds(row, field) for row in found["rows"] for field in clock)
    if clock == CELLS and seconds:
        return f"about {_rounded(seconds / found['settings'].get('jobs', 1))}"
    if "seconds" in found:
        return f"about {_rounded(max(found['seconds'], seconds))}"
    return f"over {_rounded(seconds)}" if seconds else "not recorded"


def machine(loaded: Mapping[str, Any]) -> str:
    """The machine of a record, without the versions."""
    stamp = loaded["machine"].items()
    return ", ".join(f"{key} {value}" for key, value in stamp if key != "versions")


def _seconds(row: Mapping[str, Any], product: str) -> float:
    return math.prod(float(row.get(field) or 0.0) for field in product.split("*"))


def _rounded(seconds: float) -> str:
    return f"{max(1, round(seconds / 60.0))} min" if seconds >= 30.0 else f"{seconds:.0f} s"


def listing() -> str:
    """All benchmarks by question, two lines each."""
    lines = ["usage: python -m benchmarks NAME [options]"]
    for question, some in QUESTIONS.items():
        lines += ["", question]
        for name, found in some.items():
            lines.append(f"  {name:18} {found.shows}")
            lines.append(f"  {'':18} {minutes(name)}; data: {found.data}; {found.source}")
    return "\n".join([*lines, "", *_FOOTNOTE])


def chosen(
    parser: argparse.ArgumentParser, parts: Sequence[str], cases: Iterable[str]
) -> list[str]:
    """The cases that hold one of the ``--only`` parts, blanks aside; all of them without parts."""
    names, wanted = list(cases), [part.replace(" ", "") for part in parts] or [""]
    found = [name for name in names if any(part in name.replace(" ", "") for part in wanted)]
    if not found:
        parser.error(f"--only: no case holds {parts}; there are {names}")
    return found


def parser_of(name: str) -> argparse.ArgumentParser:
    """A parser whose help says what the module's docstring and the table say."""
    found, there = BENCHMARKS[name], (record.RESULTS / f"{name}.json").is_file()
    facts = {
        "question": question_of(name),
        "shows": found.shows,
        "time": minutes(name) + (f" ({machine(record.load(name))})" if there else ""),
        "data": found.data,
        "source": found.source,
    }
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=importlib.import_module(f"benchmarks.{name}").__doc__,
        epilog="\n".join(f"{key + ':':10} {value}" for key, value in facts.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
