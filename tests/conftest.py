"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# Wall time says nothing on a shared machine, and examples should be the same in every run.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets: ``ADMM_LIP_SHARED``, else ``../shared/data`` beside the repo."""
    named = os.environ.get("ADMM_LIP_SHARED")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set ADMM_LIP_SHARED to the folder of the data sets")
    return folder
