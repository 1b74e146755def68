"""Which matrices a bound is about, and distances between networks all the same.

The weights W of a run act on standardised rows.  A bound in the units of the data is about the raw
function (``units.py``), hence about the matrices ``V_0 = W_0 diag(1 / s)`` and ``V_l = diag(S)
W_l``.  The run moves W as ever; the Lipschitz step projects V in the metric in which its entries
are weighed as those of W::

    ||W - A||^2 = sum_ij s_j^2 (V_0 - B_0)_ij^2 + ... + sum_ij (V_l - B_l)_ij^2 / S_i^2

with B made of A as V of W, so that nothing depends on the scales but what the bound says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solvers import CertifyProblem, Slopes, SolverConfig, Structure, solve_certify
from ..units import Units
from .admm_state import Matrices


@dataclass(frozen=True, eq=False)
class Metric:
    """From the weights of a run to those that the bound is about.

    Attributes:
        inputs: s, ``(n_0,)``; ``None`` is 1.
        outputs: S, ``(n_{l+1},)``.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @staticmethod
    def of(units: Units | None, weights: Matrices) -> Metric:
        """The metric of units for these weights."""
        if units is None:
            return Metric()
        n_in, n_out = weights[0].shape[1], len(weights[-1])
        units.check_fits(n_in, n_out)
        like = weights[0].new_tensor
        return Metric(like(units.input_scales(n_in)), like(units.output_scales(n_out)))

    @property
    def is_plain(self) -> bool:
        """Whether the bound is about the weights themselves."""
        return self.inputs is None or self.outputs is None

    @property
    def length(self) -> float:
        """The distance between inputs that the bound is most about: the least scale."""
        return 1.0 if self.inputs is None else float(self.inputs.min())

    def seen(self, weights: Matrices) -> Matrices:
        """``V`` of ``W``."""
        if self.inputs is None or self.outputs is None:
            return weights
        seen = list(weights)
        seen[0] = seen[0] / self.inputs
        seen[-1] = self.outputs[:, None] * seen[-1]
        return tuple(seen)

    def back(self, seen: Matrices) -> Matrices:
        """``W`` of ``V``."""
        if self.inputs is None or self.outputs is None:
            return seen
        weights = list(seen)
        weights[-1] = weights[-1] / self.outputs[:, None]
        weights[0] = weights[0] * self.inputs
        return tuple(weights)

    def structure(self, weights: Matrices) -> tuple[Structure, ...]:
        """The weight of each entry of V in the distance."""
        if self.inputs is None or self.outputs is None:
            return ()
        weighed: dict[int, Tensor] = {}
        last = len(weights) - 1
        weighed[0] = self.inputs.square().expand_as(weights[0])
        own = weighed.get(last, torch.ones_like(weights[last]))
        weighed[last] = own / self.outputs[:, None].square()
        return tuple(_weighed(weighed, k) for k in range(len(weights)))

    def admitted(
        self, weights: Matrices, slopes: tuple[Slopes, ...], bound: float, solver: SolverConfig
    ) -> Matrices:
        """The weights with the columns of ``W_0`` shrunk until V meets the bound.

        With L the constant of W and ``c_j = min(1, bound s_j / (L max S))``, V of ``W_0 diag(c)``
        has at most ``max S L max_j c_j / s_j <= bound``.  Shrinking all layers evenly would also
        take from the features of large scale, which the bound hardly asks anything of.
        """
        if self.inputs is None or self.outputs is None:
            return weights
        lip = solve_certify(CertifyProblem(weights, slopes), solver).lip
        share = (bound * self.inputs / (lip * self.outputs.max())).clamp(max=1.0)
        return (weights[0] * share, *weights[1:])


def _weighed(weighed: Mapping[int, Tensor], layer: int) -> Structure:
    return Structure(metric=weighed[layer]) if layer in weighed else Structure()


# The weights themselves.
PLAIN = Metric()
