"""Many small certify problems at a time: those of equal widths in one stack (``native/stack``)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .config import SolverConfig
from .native.stack.solve import fits, solve_stack
from .problem import CertifyProblem, Multiplier
from .registry import chain
from .solution import CertifySolution, Status

# Entries of one matrix of all problems that are solved side by side: 4 MiB.
_STACK_ENTRIES = 2**19


def solve_certify_all(
    problems: Sequence[CertifyProblem], config: SolverConfig | None = None
) -> list[CertifySolution | None]:
    """:func:`~.solve.solve_certify` of many small problems, those of equal widths side by side.

    Args:
        problems: of any widths.
        config: as there.

    Returns:
        the solutions in the order of the problems, ``None`` for one that is to be solved alone: a
        large one, one with a neuron of known slope or that does not matter, one under a limit.

    Example:
        >>> import torch
        >>> from admm_lip.solvers import CertifyProblem, solve_certify_all, unit_slopes
        >>> hat = (torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[1.0, -1.0]]).double())
        >>> twice = CertifyProblem((2.0 * hat[0], hat[1]), unit_slopes(hat))
        >>> found = solve_certify_all([CertifyProblem(hat, unit_slopes(hat)), twice])
        >>> [round(solution.lip, 5) for solution in found]
        [1.0, 2.0]
    """
    config = config or SolverConfig()
    found: list[CertifySolution | None] = [None] * len(problems)
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, problem in enumerate(problems):
        if stackable(problem, config):
            alike.setdefault(problem.widths, []).append(k)
    for widths, places in alike.items():
        most = max(1, _STACK_ENTRIES // sum(widths) ** 2)
        for k in range(0, len(places), most):
            part = places[k : k + most]
            answers = stacked([problems[i] for i in part], config.tol)
            for i, answer in zip(part, answers, strict=True):
                found[i] = answer
    return found


def stackable(problem: CertifyProblem, config: SolverConfig) -> bool:
    """Whether the native solver would take a problem side by side with others."""
    native = next(iter(chain(config.name, config.fallback, 0))).name == "native"
    free = config.time_limit is None and config.max_iterations is None
    here = config.device == "cpu" == problem.weights[0].device.type
    return native and free and here and fits(problem)


def stacked(
    problems: Sequence[CertifyProblem], tol: float, warm: Multiplier | None = None
) -> list[CertifySolution | None]:
    """The answers of a stack, measured; ``warm`` as in ``solve_stack``."""
    begin = time.perf_counter()
    answers = solve_stack(problems, tol, warm)
    seconds = (time.perf_counter() - begin) / len(problems)
    return [
        None
        if a is None
        else CertifySolution(
            status=Status.OPTIMAL,
            backend="native",
            multiplier=a.multiplier,
            lip=a.lip,
            lower_lip=min(a.lower_lip, a.lip),
            claimed_lip=a.claimed_lip,
            iterations=a.steps,
            seconds=seconds,
            message="dense, side by side",
        )
        for a in answers
    ]
