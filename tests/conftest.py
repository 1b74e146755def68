"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets: ``ADMM_LIP_SHARED``, else ``../shared/data`` beside the repo."""
    named = os.environ.get("ADMM_LIP_SHARED")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set ADMM_LIP_SHARED to the folder of the data sets")
    return folder
