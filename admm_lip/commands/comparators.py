"""``admm-lip train --method NAME``: another method, certified and measured the same way."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .arguments import UsageError
from .run_options import ADMM

if TYPE_CHECKING:
    from torch import nn

    from ..records import RunFolder
    from ..research.comparators import Method
    from .finish import Summary
    from .recipes import Job


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of that name with its settings.

    Raises:
        UsageError: for a name or a setting that does not exist, with the near miss.
    """
    from ..research.comparators import METHODS

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


def radius_of_method(name: str, radius: float) -> dict[str, Any]:
    """The settings that the option ``--eps`` stands for."""
    return {"eps": radius} if name in _FINISH else {}


def train_and_finish(folder: RunFolder, job: Job, method: Method) -> Summary | str:
    """Train by ``method``, certify the plain network that it ends with, measure, record, draw.

    Returns:
        The summary; of a run that was stopped and can be continued, how it was stopped.
    """
    from ..records import write_rows
    from ..training.signals import EXIT_CODES
    from ..training.train import train

    supposed = job.train.lip or job.train.bound or 1.0
    config = dataclasses.replace(job.train, bound=None, mu=None, lip=supposed)
    result = train(
        job.model,
        job.data.train,
        config,
        method=method,
        run_dir=folder.path,
        resume=folder.resumable,
    )
    write_rows(folder.epochs, result.history)
    if result.stopped in EXIT_CODES:
        return result.stopped
    about = {
        "stopped": result.stopped,
        "method": method.name,
        "method_settings": dataclasses.asdict(method),
        "claimed_lip": result.claimed_lip,
        "rounds": job.train.epochs,
        "epochs": job.train.epochs,
        "train_seconds": result.seconds,
        "losses": [row["loss"] for row in result.history],
    }
    return _FINISH.get(method.name, _certified)(folder, result.model, job, method, about)


def _certified(
    folder: RunFolder, model: nn.Module, job: Job, method: Method, about: Summary
) -> Summary:
    """One Lipschitz constant for the whole network, proven by the LMI."""
    from ..api import certify
    from .finish import finish, network_on

    certificate = certify(network_on(model, job.data), solver=job.train.solver)
    return finish(folder, model, certificate, job, about)


def _by_samples(
    folder: RunFolder, model: nn.Module, job: Job, method: Method, about: Summary
) -> Summary:
    """A local bound at every test sample."""
    from ..research.comparators.local import LocalLipschitz
    from .samples import finish_samples

    assert isinstance(method, LocalLipschitz), method
    return finish_samples(folder, model, job, method, about)


# method -> how its network is judged, where that is not by one constant
_FINISH: dict[str, Callable[..., Summary]] = {"local": _by_samples}
