"""Layers brought near norm 1 by powers of two, and back: nothing over- or underflows between.

With ``W_k = 2^e_k V_k`` and ``E_k = e_k + ... + e_l`` the congruence of the matrix inequality by
``2^-E_k`` on block k (1 on the outputs) is the inequality of the ``V_k`` with

    T_k = 4^E_k T'_k,        L = 2^E_0 L',

and the same slopes, whatever the activations.  Powers of two round nothing: both inequalities are
proven by the same arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..networks.layers import Array
from .claim_matrices import Matrices
from .norm_product import scaled


def usual_power(matrix: Array) -> int:
    """The power of two of a matrix's usual singular value, the root of their mean square."""
    power = math.frexp(float(np.abs(matrix).max()))[1]
    mean = float(np.linalg.norm(np.ldexp(matrix, -power))) / math.sqrt(min(matrix.shape))
    return power + math.frexp(mean)[1]


@dataclass(frozen=True)
class LayerScales:
    """The powers ``e_0, ..., e_l`` of the module's docstring."""

    powers: tuple[int, ...]

    @property
    def sums(self) -> list[int]:
        """``E_0, ..., E_l``."""
        return [sum(self.powers[k:]) for k in range(len(self.powers))]

    def unit(self, matrices: Matrices) -> Matrices:
        """The chain of the ``V_k``."""
        pairs = list(zip(self.powers, matrices.weights, matrices.errors, strict=True))
        return replace(
            matrices,
            weights=tuple(np.ldexp(w, -e) for e, w, _ in pairs),
            errors=tuple(float(np.ldexp(off, -e)) for e, _, off in pairs),
        )

    def lip(self, unit: float) -> float:
        """L from L'; 0 or infinite where it is no double."""
        return scaled(unit, self.sums[0])

    def multiplier(self, unit: Sequence[Array]) -> tuple[Array, ...]:
        """T from T'."""
        return self._moved(unit, 2)

    def unit_multiplier(self, multiplier: Sequence[Array]) -> tuple[Array, ...]:
        """T' from T."""
        return self._moved(multiplier, -2)

    def _moved(self, multiplier: Sequence[Array], factor: int) -> tuple[Array, ...]:
        sums = zip(multiplier, self.sums[1:], strict=True)
        with np.errstate(over="ignore", under="ignore"):
            return tuple(np.asarray(np.ldexp(t, factor * e)) for t, e in sums)
