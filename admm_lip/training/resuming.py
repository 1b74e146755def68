"""The state of a constraint as plain data and back, and what makes two constraints the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..solvers import RESTART_TYPES
from .admm_state import AdmmState
from .checkpoint import CheckpointError
from .config import AdmmConfig
from .identity import describe, difference, fields_of
from .terms import Terms

_RECORDS = {kind.__name__: kind for kind in RESTART_TYPES}


def identity(
    terms: Terms, dtype: torch.dtype, mean: Tensor | None, weights: Sequence[Tensor]
) -> dict[str, str]:
    """Name to text of everything that must agree for a constraint to go on from a kept state."""
    own = {f.name for f in dataclasses.fields(AdmmConfig)}  # of a TrainConfig, its base
    found = fields_of(terms.config).items()
    settings = {name: text for name, text in found if name.partition(".")[0] in own}
    return {
        **{f"asked {name}": text for name, text in fields_of(terms.asked).items()},
        **{f"setting {name}": text for name, text in settings.items()},
        "dtype": str(dtype),
        "mean": describe(mean),
        "shape of the weights": describe([list(w.shape) for w in weights]),
        **({"set of entries held": describe(terms.held.masks)} if terms.held else {}),
    }


def in_step(
    terms: Terms, dtype: torch.dtype, mean: Tensor | None, weights: Sequence[Tensor]
) -> dict[str, str]:
    """What keeps several processes in step; the solver, and the numbers of the mean, are rank 0's.

    Arguments are those of :func:`identity`.
    """
    found = identity(terms, dtype, None, weights)
    shared = {name: text for name, text in found.items() if not name.startswith("setting solver")}
    return {**shared, "mean": "none" if mean is None else "some"}


def check_same(mine: Mapping[str, str], kept: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` unless ``kept`` is of this constraint."""
    if not isinstance(kept, Mapping) or set(kept) != {"constraint", "state"}:
        raise CheckpointError("state_dict: expected what Constraint.state_dict() gave")
    other = difference(dict(mine), kept["constraint"])
    if other is not None:
        raise CheckpointError(
            f"state_dict: belongs to a constraint with {other}; make the constraint as before "
            "(another bound can be asked for afterwards, by ask)"
        )


def plain_state(state: AdmmState) -> dict[str, Any]:
    """The fields of a state; restart data of the solvers become dictionaries."""
    return {f.name: _plain(getattr(state, f.name)) for f in dataclasses.fields(state)}


def restored_state(kept: Mapping[str, Any], like: Sequence[Tensor]) -> AdmmState:
    """Inverse of :func:`plain_state`, on the device of ``like``.

    Raises:
        CheckpointError: for anything else.
    """
    wanted = {f.name for f in dataclasses.fields(AdmmState)}
    if not isinstance(kept, Mapping) or set(kept) != wanted:
        raise CheckpointError("state_dict: is not the state of a constraint of this version")
    device = like[0].device
    state = AdmmState(**{name: _restored(value, device) for name, value in kept.items()})
    for name in ("consensus", "dual"):
        matrices = getattr(state, name)
        if [w.shape for w in matrices] != [w.shape for w in like]:
            raise CheckpointError(f"state_dict: {name} does not have the shapes of the weights")
    return state


def _plain(value: Any) -> Any:
    if type(value).__name__ in _RECORDS:
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": fields}
    return tuple(_plain(entry) for entry in value) if isinstance(value, tuple) else value


def _restored(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_restored(entry, device) for entry in value)
    if isinstance(value, dict) and set(value) == {"record", "fields"}:
        if value["record"] not in _RECORDS:
            raise CheckpointError(f"state_dict: unknown record {value['record']!r}")
        fields = {name: _restored(entry, device) for name, entry in value["fields"].items()}
        return _RECORDS[value["record"]](**fields)
    return value
