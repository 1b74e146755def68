"""``admm-lip train --method NAME``: another method, certified and measured the same way."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .options import UsageError

if TYPE_CHECKING:
    from ..methods import Method
    from ..records import RunFolder
    from .finish import Summary
    from .recipes import Job

ADMM = "admm"


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of that name with its settings.

    Raises:
        UsageError: for a name or a setting that does not exist, with the near miss.
    """
    from ..methods import METHODS

    if name not in METHODS:
        raise UsageError(
            f"method: expected {ADMM} or one of {', '.join(METHODS)}, got {name!r}"
            + _near(name, (ADMM, *METHODS))
        )
    fields = [f.name for f in dataclasses.fields(METHODS[name])]
    for key in settings:
        if key not in fields:
            raise UsageError(
                f"method-settings: {name} takes {', '.join(fields) or 'none'}, got {key!r}"
                + _near(key, fields)
            )
    return METHODS[name](**settings)


def _near(given: str, names: Any) -> str:
    close = difflib.get_close_matches(given, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def train_and_finish(folder: RunFolder, job: Job, method: Method, *, progress: bool) -> Summary:
    """Train by ``method``, certify the plain network that it ends with, measure, record, draw."""
    from ..certificates.certificate import certify
    from ..training.fit import FitConfig, fit
    from .finish import finish

    same = [f.name for f in dataclasses.fields(FitConfig)]
    shared = {name: getattr(job.train, name) for name in same if hasattr(job.train, name)}
    config = FitConfig(**shared, lip=job.train.bound or 1.0)
    result = fit(job.model, job.data.train, method, config, progress=progress)
    certificate = certify(result.model, solver=job.train.solver)
    about = {
        "stopped": "finished",
        "method": method.name,
        "method_settings": dataclasses.asdict(method),
        "claimed_lip": result.claimed_lip,
        "rounds": job.train.epochs,
        "epochs": job.train.epochs,
        "train_seconds": result.seconds,
        "losses": [row["loss"] for row in result.history],
    }
    return finish(folder, result.model, certificate, job, about)
