"""Committed records: one JSON file per benchmark, stamped with the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("admm-lip", "torch", "numpy", "scipy", "cvxpy", "scs", "clarabel")


def machine() -> dict[str, Any]:
    """Processor, cores, threads in use and versions; no names of hosts or folders."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def save(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write ``results/NAME.json`` atomically and say where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"name": name, "machine": machine(), "settings": settings, "rows": rows}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, default=str) + "\n")
    temporary.replace(path)
    print(f"record: {path}")
    return path


def load(name: str) -> dict[str, Any]:
    """Read a committed record."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record
