"""Local certified radii: the largest ball on which a class can be proven, input by input.

A ball of radius r is proven for class y if for every other class j either linear bounds keep
``f_y - f_j`` positive on it, or a local bound ``L_yj(r) r`` stays below the margin at x.  The
search starts from the radius that holds everywhere, grows while the proof succeeds, and then halves
the interval between the largest proven radius and the least failed one.  Whatever the search does,
each radius it returns has been proven.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.radii import radii_of
from ..networks.network import Network
from ..rounding import lengths
from .ball_proofs import Outcome, prove
from .certify import task_of, told
from .config import LocalConfig
from .parts import certificate_of, run_parts
from .result import LocalCertificate
from .tasks import Task
from .verdicts import kept

# How much the radius grows from one success to the next while nothing has failed.
_GROWTH = 2.0
_LATER_GROWTH = 1.1
# First radius tried without a bound for all inputs, as a share of the estimate below.
_CAUTION = 0.5
# Rounding of margins by another way, relatively.
_HAIR = 1e-9


def local_radii(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    *,
    certificate: AnyCertificate | None = None,
    config: LocalConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: Sequence[Any] | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
    state: str | Path | None = None,
) -> LocalCertificate:
    """The largest l2 radius at which each input's class is proven, with its proof.

    Args:
        model: a classifier; one output is a binary classifier that decides at 0.
        x: inputs, ``(batch, *input_shape)``, a tensor or any array.
        y: labels, ``(batch,)``, ``(batch, 1)`` or one-hot.
        certificate: of this model, l2, in its own units: where the search starts; no radius will
            be below ``certified_radii(model, x, y, certificate=certificate)``, rounding apart.
        config: effort, input box, accuracy.
        input_shape: where it is not that of ``x`` (a flattened batch in front of convolutions).
        classes: the labels in the order of the outputs, where ``y`` holds words or other numbers.
        n_jobs: workers that take the inputs in batches, as for :func:`certify_local`.
        progress: whether to say how far it is, after two seconds.
        state: folder from which the same call goes on, as for :func:`certify_local`.

    Returns:
        A certificate whose ``radius`` holds the radii, 0 where the class is wrong or tied.

    Raises:
        ValueError: naming ``x`` or ``y``.
        CertificateError: for a certificate of another network, norm or unit.
        RunFolderError: where ``state`` was left by a call with other arguments, naming one.

    Example:
        >>> import torch
        >>> from admm_lip.local import local_radii
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])
        >>> [round(r, 2) for r in local_radii(model, x, y).radius.tolist()]
        [1.41, 0.0]
    """
    config = replace(config or LocalConfig(), decide=False, metric_steps=0)
    task = task_of(model, x, y, certificate, config, input_shape, classes)
    floor = torch.zeros(len(task.points), dtype=torch.float64)
    if certificate is not None:
        floor = radii_of(task.prepared.network, x, y, certificate, classes=classes).cpu()
    found = run_parts(_largest_balls, task, floor, n_jobs=n_jobs, progress=progress, state=state)
    return told(found)


def _largest_balls(part: tuple[Task, Tensor]) -> LocalCertificate:
    task, floor = part
    begun = time.perf_counter()
    proven, states, left = search(task, floor, task.deadline())
    radii, outcome = _proven(task, floor, proven, states)
    outcome.account.left.copy_(left)
    outcome.account.seconds.fill_((time.perf_counter() - begun) / max(len(floor), 1))
    return certificate_of(task, radii, outcome)


def _proven(
    task: Task, floor: Tensor, radii: Tensor, states: Tensor | None
) -> tuple[Tensor, Outcome]:
    """The proofs at these radii: what does not come out again is proven at smaller ones."""
    outcome = prove(task, radii, decide=True, states=states)
    for share in (1.0 - task.config.tol, 0.0):
        lost = (radii > floor) & ~holds(task, outcome, radii)
        if not bool(lost.any()):
            break
        radii = torch.where(lost, floor.maximum(share * radii), radii)
        outcome = prove(task, radii, decide=True, states=states)
    # The floor is rounded otherwise than the record: what that misses by a hair is given up, and
    # what holds on a ball holds on a smaller one.
    held = holds(task, outcome, radii)
    return torch.where(held, radii, radii * (1.0 - _HAIR)), outcome


def search(task: Task, floor: Tensor, deadline: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Proven radii of a batch, by lines alone, then by all means; ``floor`` is proven already.

    The second is where the searches of quadratic bounds stand, the third what the dearest level did
    not take at any radius.
    """
    zero = torch.zeros_like(floor)
    at_x = prove(task, zero, cheaply=True)
    right = holds(task, at_x, zero) & torch.isfinite(floor)
    proven = torch.where(right, torch.maximum(floor, _by_own_norms(task, at_x)), zero)
    guess = torch.where(proven > 0.0, proven * _GROWTH, _CAUTION * first_guess(task, at_x))
    proven, *_ = _bracket(task, proven, torch.where(right, guess, 0.0), deadline, cheaply=True)
    first = torch.where(proven > 0.0, proven * _LATER_GROWTH, guess)
    first = torch.where(right, first, 0.0)
    proven, states, left = _bracket(task, proven, first, deadline, cheaply=False)
    return torch.where(torch.isfinite(floor), proven, floor), states, left


def _by_own_norms(task: Task, at_x: Outcome) -> Tensor:
    """Radii that the layers' own norms prove at no cost, on the way that has them; else 0."""
    if task.config.by_lines:
        return torch.zeros(len(task.points), dtype=torch.float64)
    lip = task.prepared.norms.by_product(task.functionals).lip
    radii = at_x.center / lip * (1.0 - 1e-7)
    return torch.where(task.items, radii, math.inf).amin(dim=1).clamp(min=0.0, max=1e300)


def _bracket(
    task: Task, proven: Tensor, guess: Tensor, deadline: float, *, cheaply: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Grow while proofs succeed, then halve between proven and failed; a guess of 0 is left."""
    failed = torch.full_like(proven, math.inf)
    growth = _GROWTH if cheaply else _LATER_GROWTH
    active = guess > 0.0
    states: Tensor | None = None
    left = torch.zeros(len(proven), dtype=torch.int32)
    for _ in range(task.config.rounds):
        rows = active.nonzero()[:, 0]
        if not len(rows) or time.monotonic() >= deadline:
            break
        tried, part = guess[rows], task.part(rows)
        outcome = prove(
            part,
            tried,
            decide=True,
            cheaply=cheaply,
            deadline=deadline,
            states=None if states is None else states[rows],
        )
        left[rows] = torch.where(outcome.account.left != 0, outcome.account.left, left[rows])
        states = _kept(states, rows, outcome.states, len(proven))
        good = holds(part, outcome, tried)
        proven[rows] = torch.where(good, tried.maximum(proven[rows]), proven[rows])
        failed[rows] = torch.where(good, failed[rows], tried)
        guess = torch.where(torch.isinf(failed), proven * growth, 0.5 * (proven + failed))
        active &= failed - proven > task.config.tol * proven
    return proven, states, left


def _kept(states: Tensor | None, rows: Tensor, found: Tensor | None, count: int) -> Tensor | None:
    """States of all samples after those of some have been found."""
    if found is None:
        return states
    if states is None:
        states = found.new_full((count, *found.shape[1:]), math.nan)
    states[rows] = found
    return states


def holds(task: Task, outcome: Outcome, radii: Tensor) -> Tensor:
    """Boolean ``(batch,)``: the class is proven on the ball."""
    good = kept(outcome.center, outcome.margin, outcome.found.lip, radii)
    return (good | ~task.items).all(dim=1)


def first_guess(task: Task, at_x: Outcome) -> Tensor:
    """The distance to the boundary by the slope that linear bounds see on a small ball."""
    small = 1e-4 * (1.0 + lengths(task.points))
    near = prove(task, small, cheaply=True)
    slope = (at_x.center - near.margin).clamp(min=1e-300) / small[:, None]
    distance = torch.where(task.items, at_x.center / slope, math.inf)
    return distance.amin(dim=1).clamp(min=0.0).minimum(1e16 * small)
