"""Certificates of a list of networks: read one by one, solved side by side, on any workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..parallel import run_tasks, workers_of
from .certificate import Certificate
from .certifier import Order, certify_global, finished, prepared
from .chain_bound import solve_all
from .sampled_slope import sampled_slopes

# So many share one call of the solver, and a worker is handed at a time.
_TOGETHER = 128
# Parts that each worker gets, so that no one waits long for the others.
_PARTS = 4


class _Part(NamedTuple):
    """Consecutive networks of the list, the place of the first, and what is asked of all."""

    first: int
    models: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """What a person calls each of them."""
        return [f"model[{self.first + k}]" for k in range(len(self.models))]


def certify_all(
    prove: Callable[..., Any],
    models: Sequence[Any],
    options: Mapping[str, Any],
    n_jobs: int | None = None,
) -> list[Any]:
    """The certificate of every network, in their order.

    Args:
        prove: makes a certificate of one: ``prove(model, **options)``.
        models: networks of any kind and shape; those of equal widths are solved together.
        options: as for :func:`admm_lip.certify`.
        n_jobs: as for :func:`admm_lip.parallel.workers_of`.

    Raises:
        Exception: what the first network that failed raised, ``model[k]`` in front.
    """
    every = _Part(0, models, options)
    limited = getattr(options["solver"], "time_limit", None)  # of each, so each is alone
    if prove is not certify_global or options["multiplier"] is not None or limited:
        return run_tasks(partial(prove, **options), models, every.names, n_jobs=n_jobs)
    workers = workers_of(n_jobs)
    share = math.ceil(len(models) / (_PARTS * workers)) if workers else _TOGETHER
    size = max(1, min(_TOGETHER, share))
    parts = [_Part(k, models[k : k + size], options) for k in range(0, len(models), size)]
    if not workers:
        return [made for part in parts for made in _side_by_side(part)]
    names = [f"{part.names[0]} to {part.names[-1]}" for part in parts]
    return [made for part in run_tasks(_side_by_side, parts, names, n_jobs=n_jobs) for made in part]


def _side_by_side(part: _Part) -> list[Certificate]:
    """The certificates of one part."""
    asked = dict(part.options)
    shape, structure = asked.pop("input_shape"), asked.pop("structure")
    requested, _ = asked.pop("requested"), asked.pop("multiplier")
    order = Order(**asked)
    read = partial(prepared, input_shape=shape, order=order, structure=structure)
    begun = run_tasks(read, part.models, part.names, n_jobs=1)
    tasks = [p.task for p in begun if p.task]
    answers: Iterator[Any] = iter(solve_all(tasks, order.config()))
    samples = [p.sampled for p in begun]
    slopes = iter(sampled_slopes([s for s in samples if s], norm=order.norm))
    each = [
        (p, next(answers) if p.task else None, next(slopes) if sample else 0.0)
        for p, sample in zip(begun, samples, strict=True)
    ]

    def end(one: Any) -> Certificate:
        return finished(one[0], order, requested=requested, solution=one[1], slope=one[2])

    return run_tasks(end, each, part.names, n_jobs=1)
