"""Every backend through one fixture: ``native``, ``clarabel`` and ``scs`` must run.

``mosek`` skips, with its reason, where it has no licence.  ``native`` goes through all of it on an
accelerator as well, where there is one.
"""

from __future__ import annotations

import pytest
import torch
from judging import (
    MUST_RUN,
    TOLERANCES,
    Judge,
)

from admm_lip.solvers import (
    available,
)
from admm_lip.solvers.registry import names

_ON_DEVICE = ["native on cuda"] if torch.cuda.is_available() else []


@pytest.fixture(params=[*names(), *_ON_DEVICE])
def judge(request: pytest.FixtureRequest) -> Judge:
    name, _, device = request.param.partition(" on ")
    found = available()[name]
    if not found.usable:
        assert name not in MUST_RUN, found.reason
        pytest.skip(f"{name}: {found.reason}")
    return Judge(name, TOLERANCES[name], device or "cpu")
