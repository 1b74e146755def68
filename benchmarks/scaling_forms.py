"""What ``scaling`` measures: every form of the work, the networks it is done on, what it holds.

Certificates in a form that :func:`admm_lip.certify` would not choose by itself are made by telling
its estimate (``solvers/native/lmi/costs.py``) what to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from admm_lip import (
    Constraint,
    Lipschitz,
    LocalConfig,
    SolverConfig,
    certify,
    certify_local,
    project,
    verify,
)
from admm_lip.certificates.torus.certify import EXACT_NEURONS
from admm_lip.solvers import CertifyProblem, side_by_side
from admm_lip.solvers.native.lmi.costs import Costs
from admm_lip.solvers.native.lmi.progress import Progress

from .random_networks import gaussian

Work = Callable[[], Any]
# Rounds of training that one measurement is the mean of, and rows of a batch in them.
ROUNDS, _ROWS = 10, 64
_CHANNELS = 3  # of a picture
_OPEN = 0.5  # radius at which cheap bounds leave classes open, so that no level is skipped


class Sizes(NamedTuple):
    """Of a case: a perceptron's, or an image network's with ``width`` channels."""

    inputs: int = 784
    width: int = 64
    depth: int = 2
    classes: int = 10
    side: int = 8
    pictures: int = 32
    ranks: int = 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Of a perceptron, the inputs first."""
        return self.inputs, *[self.width] * self.depth, self.classes


# Axis -> the network that it varies, n in the place of what it varies, and the sizes of the rest.
AXES: Mapping[str, tuple[str, Sizes]] = MappingProxyType(
    {
        "width": ("784-n-n-10", Sizes(pictures=1)),
        "depth": ("n layers of 32", Sizes(inputs=32, width=32)),
        "side": ("conv4-conv8s2-10 on 3 x n x n", Sizes(width=4)),
        "classes": ("64-32-32-n", Sizes(inputs=64, width=32)),
        "pictures": ("784-64-64-10, n pictures", Sizes()),
        "ranks": ("784-128-128-10, n processes", Sizes(width=128)),
    }
)
SMALL = Sizes(inputs=5, width=4, classes=3, side=4, pictures=2)


class Form(NamedTuple):
    """One kind of work.

    Attributes:
        label: its name in tables and pictures.
        prepare: from sizes to the work that is timed.
        memory: axis -> q, where what it holds grows as ``a + b n^q``: dense matrices of the order
            of the inequality as its square, bands of it linearly in depth.
        units: how many of what is told the work does.
    """

    label: str
    prepare: Callable[[Sizes], Work]
    memory: Mapping[str, float]
    units: int = 1


def perceptron(sizes: Sizes) -> nn.Sequential:
    """Signed Gaussian weights, so that no layer is contracting."""
    layers: list[nn.Module] = []
    for (n, m), weight in zip(pairwise(sizes.widths), gaussian(*sizes.widths), strict=True):
        layers += [nn.Linear(n, m), nn.ReLU()]
        cast(nn.Linear, layers[-2]).weight.data = weight.float()
    return nn.Sequential(*layers[:-1])


def images(sizes: Sizes) -> nn.Sequential:
    """Two convolutions, the second with twice the channels and stride 2, and a dense head."""
    channels, half = sizes.width, math.ceil(sizes.side / 2)
    return nn.Sequential(
        *(nn.Conv2d(_CHANNELS, channels, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * channels * half**2, sizes.classes)),
    )


@contextmanager
def forced(dense: bool) -> Iterator[None]:
    """Within it, certificates of chains are made with the Schur complement, or never with it."""
    with ExitStack() as stack:
        told = mock.patch.object(Costs, "dense_is_best", lambda *args, **kwargs: dense)
        stack.enter_context(told)
        if not dense:
            stack.enter_context(mock.patch.object(side_by_side, "fits", lambda problem: False))
        yield


def _certified(dense: bool) -> Callable[[Sizes], Work]:
    def prepare(sizes: Sizes) -> Work:
        model = perceptron(sizes)

        def work() -> Any:
            with forced(dense):
                return certify(model)

        return work

    return prepare


def _by_structure(structure: str) -> Callable[[Sizes], Work]:
    def prepare(sizes: Sizes) -> Work:
        model, shape = images(sizes), (_CHANNELS, sizes.side, sizes.side)
        return lambda: certify(model, shape, structure=structure)

    return prepare


def _pairs(sizes: Sizes) -> Work:
    model = perceptron(sizes)
    return lambda: certify(model, kind="pairwise", progress=False)


def _projected(sizes: Sizes) -> Work:
    model = perceptron(sizes)
    bound = 0.5 * certify(model).lip
    return lambda: project(model, bound)


def _local(level: str) -> Callable[[Sizes], Work]:
    def prepare(sizes: Sizes) -> Work:
        model, x = perceptron(sizes), torch.rand(sizes.pictures, sizes.inputs)
        y = model(x).argmax(1)
        return lambda: certify_local(model, x, _OPEN, y, config=LocalConfig(level))

    return prepare


def _checked(sizes: Sizes) -> Work:
    model = perceptron(sizes)
    # Too short for a solver: a closed form is certified, and to check it is the same work.
    certificate = certify(model, solver=SolverConfig(time_limit=1e-9))
    return lambda: verify(certificate, model)


def training_rounds(sizes: Sizes, group: Any = None) -> Work:
    """``ROUNDS`` rounds of eight optimizer steps under half of the network's own bound.

    With a group the gradients are averaged as by DistributedDataParallel.
    """
    model = perceptron(sizes)
    bound = 0.5 * certify(model).lip
    trained = nn.parallel.DistributedDataParallel(model, process_group=group) if group else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    constraint = Constraint(trained, Lipschitz(bound)).attach(optimizer)
    x, y = torch.rand(_ROWS, sizes.inputs), torch.randint(0, sizes.classes, (_ROWS,))
    share = slice(None) if group is None else slice(dist.get_rank(group), None, sizes.ranks)

    def work() -> Constraint:
        last = constraint.state.iteration + ROUNDS
        while constraint.state.iteration < last:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(x[share]), y[share])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return constraint

    return work


_ORDER = MappingProxyType({"width": 2.0, "depth": 2.0})
_BAND = MappingProxyType({"width": 2.0, "depth": 1.0})
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "dense": Form("certify, interior point", _certified(True), _ORDER),
        "large": Form("certify without Schur matrix", _certified(False), _BAND),
        # Both begin with a certificate by the interior point.
        "project": Form("project", _projected, _ORDER),
        "round": Form("train, one round", training_rounds, {**_ORDER, "ranks": 0.0}, ROUNDS),
        "verify": Form("verify", _checked, _BAND),
        "closed": Form("local, closed form", _local("closed"), {"width": 2.0, "pictures": 1.0}),
        "norms": Form("local, norms", _local("norms"), {"width": 2.0, "pictures": 1.0}),
        "pairs": Form("certify, every pair", _pairs, {"classes": 2.0}),
        "torus": Form("certify by frequency", _by_structure("torus"), {"side": 2.0}),
        "exact": Form("certify, per neuron", _by_structure("exact"), {"side": 4.0}),
    }
)


def reduced_widths(sizes: Sizes) -> tuple[int, ...]:
    """The widths that the solver sees: ends no wider than their layer, the smaller one first."""
    inputs, *hidden, outputs = sizes.widths
    first, last = min(inputs, hidden[0]), min(outputs, hidden[-1])
    return min(first, last), *hidden, max(first, last)


def dense_by_itself(sizes: Sizes) -> bool:
    """Whether ``certify`` takes the form with the Schur complement without being told."""
    problem = cast(CertifyProblem, SimpleNamespace(widths=reduced_widths(sizes)))
    costs = Costs.of(problem)
    pairs = sizes.depth > 1 and costs.pairs_affordable()
    return costs.dense_is_best(Progress(SolverConfig()), pairs)


def per_neuron_by_itself(sizes: Sizes) -> bool:
    """Whether ``certify`` takes an image network neuron by neuron without being told."""
    neurons = sizes.width * (sizes.side**2 + 2 * math.ceil(sizes.side / 2) ** 2)
    return neurons <= EXACT_NEURONS


# Axis -> the form that certify takes first and the one after it, and whether it is still the first.
CHOICES: Mapping[str, tuple[str, str, Callable[[Sizes], bool]]] = MappingProxyType(
    {
        "width": ("dense", "large", dense_by_itself),
        "depth": ("dense", "large", dense_by_itself),
        "side": ("exact", "torus", per_neuron_by_itself),
    }
)


def at(axis: str, size: int) -> Sizes:
    """The sizes at one place of an axis."""
    return AXES[axis][1]._replace(**{axis: size})


def last_of_first(axis: str) -> int | None:
    """The largest size at which ``certify`` takes the first form of an axis; by bisection."""
    if axis not in CHOICES:
        return None
    still, low, high = CHOICES[axis][2], 1, 2
    while still(at(axis, high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if still(at(axis, middle)) else (low, middle)
    return low
