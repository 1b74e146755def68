"""The Jacobian of a chain at given points, of the size that its norm needs.

At almost every point it is ``W_l D_l ... D_1 W_0`` with D_k the slopes of the activations there.  A
wide first matrix is ``W_0 = R Q`` with orthonormal rows Q: normally distributed x have normally
distributed ``Q x``, so points are drawn as inputs of R, and the l2 norm of ``J`` is that of J
with R in place of ``W_0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.built import build_layer
from ..networks.layers import Array
from ..networks.network import Chain, Network
from .layer_scales import usual_power

# Powers of two that layers may multiply to, one way or the other, in single precision; and what
# biases may be.
_WITHIN = 60.0


@dataclass(frozen=True, eq=False)
class JacobianField:
    """Matrices of a chain, for its Jacobian at points.

    Of many chains side by side every matrix, point and vector has the chain as its leading
    dimension.

    Attributes:
        weights: those that points go through, the first one reduced to ``points`` columns.
        biases, activations: of the chain.
        unit: those of the Jacobian, each over a power of two that brings it near norm 1, so that no
            product leaves the range; the first one reduced for inputs in l2.
        power: the sum of these powers.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    activations: list[nn.Module]
    unit: list[Tensor]
    power: int

    @classmethod
    def of(
        cls, network: Network, chain: Chain, measured: Sequence[Array] | None, norm: str
    ) -> JacobianField:
        """The field of a chain whose Jacobian is in the units of the matrices ``measured``."""
        seen = chain.weights if measured is None else measured
        powers = [usual_power(w) for w in seen]
        unit = [np.ldexp(w, -e) for w, e in zip(seen, powers, strict=True)]
        entry, own = usual_power(chain.weights[0]), list(chain.weights)
        first = _reduced(np.ldexp(own[0], -entry))
        if norm == "l2":
            unit[0] = first if seen[0] is own[0] else _reduced(unit[0])
        own[0] = np.ldexp(first, entry)
        biases = [torch.from_numpy(b)[None] for b in chain.biases]
        activations = [build_layer(network, spec) for spec in chain.activations]
        weights, near_one = (list(map(torch.from_numpy, matrices)) for matrices in (own, unit))
        return cls(weights, biases, activations, near_one, sum(powers))

    @classmethod
    def stacked(cls, fields: Sequence[JacobianField]) -> JacobianField:
        """Fields of equal shapes and activations side by side, each over a power of its own."""
        weights, biases, unit = (
            list(map(torch.stack, zip(*parts, strict=True)))
            for parts in zip(*((f.weights, f.biases, f.unit) for f in fields), strict=True)
        )
        return cls(weights, biases, fields[0].activations, unit, 0)

    def rounded(self) -> JacobianField:
        """The same in single precision; itself where more than digits could be lost.

        That is where values of the layers may leave its range, or activations hold numbers.
        """
        gains = [
            torch.linalg.vector_norm(w, dim=(-2, -1)) / w.shape[-2] ** 0.5 for w in self.weights
        ]
        spread = float(torch.stack(gains).log2().abs().sum(0).max())
        biases = max((float(b.abs().max()) for b in self.biases), default=0.0)
        inside = spread < _WITHIN and biases < 2.0**_WITHIN
        if not inside or any(phi.state_dict() for phi in self.activations):
            return self
        fields = {"weights": self.weights, "biases": self.biases, "unit": self.unit}
        low = {name: [x.float() for x in part] for name, part in fields.items()}
        return JacobianField(**low, activations=self.activations, power=self.power)

    @property
    def points(self) -> int:
        """Length of a point."""
        return self.weights[0].shape[-1]

    @property
    def entries(self) -> int:
        """Entries of all matrices of one chain: the work of a pass, per point."""
        return sum(w.shape[-1] * w.shape[-2] for w in self.weights)

    @property
    def width(self) -> int:
        """Numbers that a pass holds, per point."""
        return self.points + sum(w.shape[-2] for w in self.weights)

    def slopes(self, points: Tensor) -> list[Tensor]:
        """Per hidden layer, the derivative of each neuron's activation: shape (points, neurons)."""
        seen, total, x = list[Tensor](), torch.zeros((), dtype=points.dtype), points
        with torch.enable_grad():
            for w, b, phi in zip(self.weights, self.biases, self.activations, strict=False):
                z = (x @ w.mT + b).requires_grad_()
                y = phi(z.flatten(0, -2))  # of a batch of vectors, as torch's layers take them
                total, x = total + y.sum(), y.detach().view_as(z)
                seen.append(z)
            return list(torch.autograd.grad(total, seen)) if seen else []

    def forth(self, vectors: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """``J v`` for each point and its vector, over ``2^power``."""
        for w, d in zip(self.unit, slopes, strict=False):
            vectors = (vectors @ w.mT) * d
        return vectors @ self.unit[-1].mT

    def back(self, vectors: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """``J'u`` for each point and its vector, over ``2^power``."""
        vectors = vectors @ self.unit[-1]
        for w, d in zip(reversed(self.unit[:-1]), reversed(slopes), strict=True):
            vectors = (vectors * d) @ w
        return vectors


def _reduced(w: Array) -> Array:
    """R of ``W = R Q``, or W itself where it is not wide."""
    if w.shape[0] >= w.shape[1]:
        return w
    triangle: Tensor = torch.linalg.qr(torch.from_numpy(w.T), mode="r").R
    return triangle.T.numpy()
