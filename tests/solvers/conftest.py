"""Every backend through one fixture: ``native``, ``clarabel`` and ``scs`` must run.

``mosek`` skips, with its reason, where it has no licence.
"""

from __future__ import annotations

import pytest
from judging import (
    MUST_RUN,
    TOLERANCES,
    Judge,
)

from admm_lip.solvers import (
    available,
)
from admm_lip.solvers.registry import names


@pytest.fixture(params=names())
def judge(request: pytest.FixtureRequest) -> Judge:
    name = request.param
    found = available()[name]
    if not found.usable:
        assert name not in MUST_RUN, found.reason
        pytest.skip(f"{name}: {found.reason}")
    return Judge(name, TOLERANCES[name])
