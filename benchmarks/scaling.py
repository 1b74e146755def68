"""How cost grows: seconds and memory of each form against width, depth, classes, side and pictures.

    python -m benchmarks scaling [--minutes M] [--quick]

Each case runs in a process of its own, on one thread, after a small one of its kind; seconds are
those of the processor.  Memory is the most that the process held, its preparation included, above
what it held before (Linux only).  ``certify takes it`` says where it goes from one form to the next
by itself; before that place the next one is measured too, by force.

Seconds are fitted by ``c n^p`` on the larger half of an axis, memory by ``a + b n^q`` with q from
what the form holds (``scaling_forms.py``): dense matrices of the order of the inequality, hence
``a + b order^2``, or bands of them.  What stands beyond the sizes is extrapolated, not run.

On ``ranks`` the processes share a round's batches; rank 0 projects, and the seconds are its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from admm_lip import Constraint
from admm_lip.training.resuming import plain_state

from .growth import Fixed, Power
from .pictures import Curve, Look, draw_panels
from .scaling_forms import (
    AXES,
    CHOICES,
    FORMS,
    SMALL,
    Sizes,
    Work,
    at,
    last_of_first,
    training_rounds,
)
from .study import Cell, Row, Study, run_from_command_line
from .tables import groups, markdown

MEMORY = 24.0 * 1024.0  # MiB
_STATUS, _REFERENCED = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def cells(settings: dict[str, Any]) -> list[Cell]:
    """Every size of every axis of every form."""
    return [
        {"form": form, "axis": axis, "size": size, "seed": settings["seed"]}
        for form, axes in settings["axes"].items()
        for axis, sizes in axes.items()
        for size in sizes
    ]


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Processor seconds and peak memory, in new processes: rank 0's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ranks = at(cell["axis"], cell["size"]).ranks
    with tempfile.TemporaryDirectory() as folder, context.Pool(ranks) as pool:
        rows = pool.map(partial(measured, cell, folder), range(ranks), chunksize=1)
    others = {"other_cpu_seconds": rows[1]["cpu_seconds"]} if ranks > 1 else {}
    return {**rows[0], **others, "certify_changes_after": last_of_first(cell["axis"])}


def measured(cell: Cell, folder: str, rank: int) -> Row:
    """One case in this process, after a small one of the same kind has loaded what it needs."""
    logging.getLogger("admm_lip").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(cell["seed"])
    form, sizes = FORMS[cell["form"]], at(cell["axis"], cell["size"])
    form.prepare(SMALL)()
    before = _peak(reset=True)
    work = form.prepare(sizes) if sizes.ranks == 1 else _on_ranks(sizes, folder, rank)
    clock, cpu = time.perf_counter(), time.process_time()
    found = work()
    return {
        "cpu_seconds": (time.process_time() - cpu) / form.units,
        "seconds": (time.perf_counter() - clock) / form.units,
        "peak_mib": _peak() - before,
        **_sent(found),
    }


def _on_ranks(sizes: Sizes, folder: str, rank: int) -> Work:
    """The rounds of a group of processes, once they have met."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=sizes.ranks)
    return training_rounds(sizes, dist.group.WORLD)


def _sent(found: Any) -> Row:
    """What rank 0 of a constraint sends in a round, in MiB."""
    if not isinstance(found, Constraint):
        return {}
    sent = plain_state(replace(found.state, warm=None))  # as ``Ranks.state`` sends it
    return {"sent_mib": len(pickle.dumps(sent)) / 2**20}


def _peak(reset: bool = False) -> float:
    """Most memory of this process since the last reset, in MiB (Linux)."""
    if reset:
        _REFERENCED.write_text(_RESET_PEAK)
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) / 1024.0


_HEADER = (
    *("form", "network", "n", "seconds", "MiB", "seconds grow as", "certify takes it"),
    *("24 GiB full at n, extrapolated", "time there, extrapolated"),
)
_CLOCK = (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 0.0))


def tabulate(rows: list[Row]) -> str:
    """Per form and axis what was measured, its growth, and what that says of 24 GiB."""
    lines = []
    for (form, axis), some in groups(rows, "form", "axis").items():
        ends = [some[0], some[-1]]
        lines.append(
            (
                *(FORMS[form].label, AXES[axis][0]),
                *(_range(ends, key) for key in ("size", "cpu_seconds", "peak_mib")),
                *(_power(axis, some), _taken(form, axis, some), *_full(form, axis, some)),
            )
        )
    return markdown(_HEADER, lines)


def _range(ends: Sequence[Row], key: str) -> str:
    low, high = (_digits(row[key]) for row in ends)
    return f"{low} to {high}"


def _digits(value: float) -> str:
    """Two digits, or all of a whole number."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{float(f'{value:.1e}'):,.10g}"


def _power(axis: str, rows: Sequence[Row]) -> str:
    return f"n^{seconds_of(rows).power:.1f}" if axis != "ranks" else "-"


def seconds_of(rows: Sequence[Row]) -> Power:
    """The power through what it took."""
    return Power.through([r["size"] for r in rows], [max(r["cpu_seconds"], 1e-6) for r in rows])


def memory(form: str, axis: str, rows: Sequence[Row]) -> Fixed:
    """The line through what a form held."""
    power = FORMS[form].memory[axis]
    return Fixed.through([r["size"] for r in rows], [r["peak_mib"] for r in rows], power)


def _taken(form: str, axis: str, rows: Sequence[Row]) -> str:
    """The sizes at which ``certify`` takes a form without being told."""
    first, second, _ = CHOICES.get(axis, ("", "", None))
    last = rows[0]["certify_changes_after"]
    return {first: f"up to {last:,}", second: f"beyond {last:,}"}.get(form, "-") if last else "-"


def _full(form: str, axis: str, rows: Sequence[Row]) -> tuple[str, str]:
    """The size that fills the memory and the time that it takes, both extrapolated."""
    size = memory(form, axis, rows).size_at(MEMORY)
    if size is None:
        return "-", "-"
    size = float(f"{size:.1e}")
    return f"{size:,.0f}", _time(seconds_of(rows).at(size))


def _time(seconds: float) -> str:
    """In the largest unit of which there are two."""
    unit, length = next((u, s) for u, s in _CLOCK if seconds >= 2.0 * s)
    return f"{_digits(float(f'{seconds / (length or 1.0):.1e}'))} {unit}"


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Seconds and memory against each axis but the two ranks, one line per form."""
    paths, of_axis = [], groups(rows, "axis")
    for name, key, label in (
        ("scaling", "cpu_seconds", "processor seconds"),
        ("scaling_memory", "peak_mib", "MiB"),
    ):
        panels = {
            network: _curves(of_axis[axis,], key)
            for axis, (network, _) in AXES.items()
            if (axis,) in of_axis and axis != "ranks"
        }
        paths.append(folder / f"{name}.png")
        draw_panels(panels, paths[-1], Look("n", label, True, True))
    return paths


def _curves(rows: Sequence[Row], key: str) -> list[Curve]:
    """One per form, and a line where ``certify`` goes from one to the next."""
    values = [max(row[key], 1e-3) for row in rows]
    found = [
        Curve(
            FORMS[form].label,
            [row["size"] for row in some],
            [max(row[key], 1e-3) for row in some],
            markers=True,
        )
        for (form,), some in groups(rows, "form").items()
    ]
    last = rows[0]["certify_changes_after"]
    if last:
        ends = [min(values), max(values)]
        found.append(Curve("certify changes here", [last, last], ends, dashed=True))
    return found


STUDY = Study("scaling", cells, run_cell, tabulate, draw, jobs=1, timed=True)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)
