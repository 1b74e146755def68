"""Certificates of many linear functionals: pairs of classes, single outputs, given directions.

The functionals differ in the last matrix alone.  Shared are the chain, the norms of its layers, and
the triangular factor of the first matrix, which is all that the solver sees of the inputs; each
functional then is a problem of one output, which the solver reads from that end.  Threads, one per
core and each with one thread of linear algebra, take the functionals in turn: NumPy's own threads,
unlimited, would wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from ..errors import CertificateError
from ..foreign.open import network_of
from ..networks.layers import Array, Shape
from ..networks.network import Network
from ..parallel import run_tasks, workers_of
from ..progress import working
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..units import Units
from .certificate import FunctionalBound, FunctionalCertificate
from .certifier import Order, names_of, stated
from .chain_bound import Proven, Task, constant, prove, solve_all
from .claim_matrices import Matrices, functional, functionals_of, scales_of
from .functional_base import FunctionalBase, behind_torus, neuron_by_neuron
from .last_layer import check_functionals, split
from .norm_product import spectral_norm
from .proof import is_constant_functional
from .sampled_functionals import sampled_functionals
from .sampled_slope import sampled_quotients
from .torus.certify import certified_on_torus, wants_torus

# Relative gap in L^2 to prove for each functional, where the caller names no other.
TOL = 1e-3
# How many a thread solves side by side where they are small.
_TOGETHER = 16
# The share of the time for what they share.
_IN_FRONT = 0.7
# What all solves at a time may take, in bytes, and what one takes per squared order of its matrix.
_MEMORY = 4 * 2**30
_BYTES = 12 * 8


def certify_functionals(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    kind: str,
    directions: Any = None,
    norm: str = "l2",
    units: Units | None = None,
    solver: str | SolverConfig = "auto",
    structure: str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> FunctionalCertificate:
    """What :func:`admm_lip.certify` does for kinds of functionals; arguments are as there."""
    order = Order(norm, units, solver)
    config = order.config(TOL)
    deadline = Deadline(config.time_limit)
    network = network_of(model, input_shape)
    inner, last = split(network)
    base, per_channel = _base(inner, order, structure or "auto", deadline)
    rows = functionals_of(kind, directions, base.plain.widths[-1])
    # Each functional scales its own outputs: one of a small unit keeps its relative accuracy.
    scales = scales_of(order.units, inner.size_in, base.plain.widths[-1])[1]
    check_functionals(last, rows, scales)
    constant_rows = [is_constant_functional(base.chain, row, scales) for row in rows]
    wanted = [
        None if flat else functional(base.seen, row, scales)
        for row, flat in zip(rows, constant_rows, strict=True)
    ]
    proofs = _proofs(_tasks(base, wanted), config, deadline, n_jobs, progress)
    if per_channel:  # other multipliers in front might go below what the solver could not
        proofs = [replace(proven, dual_bound=0.0) for proven in proofs]
    norms = base.norms()
    products = [
        0.0 if flat else base.product(functional(base.plain, row, scales), norms)
        for row, flat in zip(rows, constant_rows, strict=True)
    ]
    steep = _sampled(inner, base, rows * scales, order, deadline, on_torus=bool(per_channel))
    found = zip(rows, proofs, products, steep, strict=True)
    return FunctionalCertificate(
        bounds=tuple(_bound(*each) for each in found),
        kind=kind,
        **per_channel,
        **stated(network, base.slopes, order, {proven.backend for proven in proofs}),
    )


def _bound(row: Array, proven: Proven, norm_product: float, steep: float) -> FunctionalBound:
    """What is claimed of one functional."""
    return FunctionalBound(
        direction=tuple(row.tolist()),
        lip=proven.candidate.lip,
        multiplier=proven.multiplier,
        method=proven.candidate.method,
        norm_product=norm_product,
        **proven.lower_bounds(steep),
    )


def _base(
    network: Network, order: Order, structure: str, deadline: Deadline
) -> tuple[FunctionalBase, dict[str, Any]]:
    """What the functionals share, and what is stated of it where it is on a torus."""
    if structure == "every_size":
        raise CertificateError("structure: 'every_size' goes with kind='global' only")
    if not wants_torus(structure, network, order.norm, order.units):
        return neuron_by_neuron(network, order.norm, order.units), {}
    measure = order.on_torus(network, order.units and order.units.of_inputs())
    share = deadline.share(_IN_FRONT)
    made = certified_on_torus(network, order.config(), share, measure, headed=True)
    shared = made.multiplier[: len(made.chain.activations)]
    stated_of = {"shared": tuple(tuple(t.tolist()) for t in shared), "phases": made.phases}
    return behind_torus(made.chain, shared), stated_of


def _sampled(
    inner: Network,
    base: FunctionalBase,
    directions: Array,
    order: Order,
    deadline: Deadline,
    on_torus: bool,
) -> list[float]:
    """The steepest slope found for each functional."""
    if on_torus:
        return sampled_quotients(inner, directions, deadline, norm=order.norm, units=order.units)
    seen = base.seen.weights[-len(base.chain.weights) :]
    return sampled_functionals(inner, base.chain, seen, directions, order.norm, deadline)


def _tasks(base: FunctionalBase, wanted: list[Matrices | None]) -> list[Task | Matrices]:
    """Of each functional what is to be proven; all matrices where it is constant."""
    matrices, names = base.seen, names_of(base.chain, base.seen)
    norms = [spectral_norm(w) for w in matrices.weights[:-1]]
    solved = compressed(matrices)

    def task_of(own: Matrices) -> Task:
        last = own.weights[-1]
        alike = replace(solved, weights=(*solved.weights[:-1], last)) if norms else own
        return Task(own, alike, [*norms, spectral_norm(last)], names)

    return [matrices if own is None else task_of(own) for own in wanted]


def _proven(
    some: list[Task | Matrices], config: SolverConfig, seconds: float | None
) -> list[Proven]:
    """The proofs of functionals that are solved side by side."""
    answers = iter(solve_all([task for task in some if isinstance(task, Task)], config))
    share = Deadline(seconds)
    return [
        prove(task, config, share, solution=next(answers))
        if isinstance(task, Task)
        else constant(task)
        for task in some
    ]


def _proofs(
    tasks: list[Task | Matrices],
    config: SolverConfig,
    deadline: Deadline,
    n_jobs: int | None,
    progress: bool,
) -> list[Proven]:
    """The proofs of all functionals, in their order, each in its share of what time is left."""
    elsewhere = workers_of(n_jobs)
    here = min(len(tasks), torch.get_num_threads(), _fitting(tasks[0]))
    workers = min(len(tasks), elsewhere or here)
    # In its share of the time each is alone.
    together = 1 if config.time_limit else min(_TOGETHER, math.ceil(len(tasks) / workers))
    parts = [tasks[first : first + together] for first in range(0, len(tasks), together)]

    def share(k: int) -> float | None:
        return deadline.share(1.0 / math.ceil((len(tasks) - k * together) / workers)).limit()

    with working("certify", len(tasks), "bounds", show=progress) as work:
        if elsewhere:
            names = [f"functionals from number {k * together} on" for k in range(len(parts))]
            prove_some = partial(_proven, config=config, seconds=share(0))
            step = partial(work.step, together)
            found = run_tasks(prove_some, parts, names, n_jobs=n_jobs, done=step)
            return [proven for part in found for proven in part]
        proofs = list[Proven]()
        with _pool(workers) as pool:
            for part in pool.map(lambda k: _proven(parts[k], config, share(k)), range(len(parts))):
                proofs.extend(part)
                work.step(len(part))
        return proofs


def compressed(matrices: Matrices) -> Matrices:
    """The same but for a triangular factor in place of a wide first matrix.

    The inequality sees the first matrix through ``W_0 W_0'`` only, so the optimal multipliers are
    the same.
    """
    first = matrices.weights[0]
    if len(matrices.weights) == 1 or first.shape[1] <= first.shape[0]:
        return matrices
    largest = float(np.abs(first).max()) or 1.0
    upper = np.asarray(np.linalg.qr((first / largest).T, mode="r"))
    lower = np.ascontiguousarray(largest * upper.T)
    return replace(matrices, weights=(lower, *matrices.weights[1:]))


def _fitting(task: Task | Matrices) -> int:
    """How many solves fit into memory at a time; at least one."""
    matrices = task.matrices if isinstance(task, Task) else task
    order = min(matrices.widths[:2]) + sum(matrices.widths[1:-1])
    return max(1, _MEMORY // (_BYTES * order**2))


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores; what has not begun is dropped when something fails."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        with threadpool_limits(share, user_api="blas"):
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
