"""What a classifier is worth on labelled data: accuracy, and certified accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.certifier import certify_global
from ..certificates.functionals import certify_functionals
from ..certificates.radii import radii_of
from ..networks.chain import linear_layers
from ..shown import Fact, Shown, share
from ..solvers import SolverConfig
from .kernel_layers import has_kernels
from .precision import master_dtype, stored_dtype
from .shipping import certify_norms

Pair = tuple[Tensor, Tensor]
# Most outputs whose pairs are certified for a report.
_PAIRED = 16


@dataclass(frozen=True, repr=False)
class Judged(Shown):
    """A classifier on labelled data.

    Attributes:
        samples: rows measured.
        accuracy: share classified correctly.
        certified: share that is right and certified at ``radius``.
        radius: l2, in input units.
        kind: of the certificate that the radii were read from.
    """

    samples: int
    accuracy: float
    certified: float
    radius: float
    kind: str

    def title(self) -> str:
        """What was measured on what."""
        return f"classifier on {self.samples} rows"

    def facts(self) -> tuple[Fact, ...]:
        """Accuracy, and certified accuracy at the radius."""
        at = f" at l2 radius {self.radius:g} ({self.kind} bounds, {self.samples} rows)"
        return (
            share("accuracy", "clean accuracy", self.accuracy),
            share("certified", "certified accuracy", self.certified, at),
        )


@dataclass(frozen=True, eq=False)
class Judge:
    """What classifiers are judged on.

    Attributes:
        given: the classifier that went in.
        pair: inputs and labels, drawn when they are first needed.
        radius: at which accuracy is certified.
        solver: of the certificate of many outputs.
        progress: say how far it is, after two seconds.
    """

    given: nn.Module
    pair: Callable[[], Pair]
    radius: float
    solver: SolverConfig
    progress: bool

    def judged(self, model: nn.Module) -> Judged:
        """Accuracies by the strongest certificate that is quick: all pairs of up to 16 outputs.

        With convolutions it is the product of norms.
        """
        x, y = self.pair()
        model = copy.deepcopy(model).to(master_dtype(stored_dtype(model)))  # the same function
        certificate: AnyCertificate
        if has_kernels(model):
            certificate = certify_norms(model, tuple(x.shape[1:]), self.solver, None)
        elif 1 < linear_layers(model)[-1].out_features <= _PAIRED:
            certificate = certify_functionals(model, kind="pairwise", progress=self.progress)
        else:
            certificate = certify_global(model, solver=self.solver)
        radii = radii_of(model, x, y, certificate)
        with torch.no_grad():
            outputs = model(x)
        right = outputs.gather(1, y[:, None])[:, 0] == outputs.amax(dim=1)
        certified = float((right.cpu() & (radii.cpu() > self.radius)).double().mean())
        accuracy = float(right.double().mean())
        return Judged(len(y), accuracy, certified, self.radius, certificate.kind)
