"""Committed records: one JSON file per benchmark, stamped with the machine and the versions."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from admm_lip.records import machine_stamp, read_json, write_json

RESULTS = Path(__file__).parent / "results"
_BEGUN = time.monotonic()


def save(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write ``results/NAME.json`` atomically, with the seconds since the start, and say where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - _BEGUN, 1),
        "machine": machine_stamp(),
        "settings": settings,
        "rows": rows,
    }
    write_json(path, record)
    print(f"record: benchmarks/results/{path.name}")
    return path


def load(name: str) -> dict[str, Any]:
    """Read a committed record."""
    record: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return record
