"""Weights in the coordinates in which every activation acts per neuron, and the way back.

Sorting pairs acts per neuron on their sums and differences (``sorting.py``).  Divided by sqrt 2
that change of coordinates is orthogonal, so distances between weights are the same in both, and
what moves weights under the LMI of slope ranges can move these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.network import Network
from ..networks.sorting import SORTS
from .admm_state import Matrices


@dataclass(frozen=True)
class Frame:
    """Which hidden layers are turned into sums and differences.

    Attributes:
        turned: one flag per hidden layer.
    """

    turned: tuple[bool, ...]

    @staticmethod
    def of(network: Network) -> Frame:
        """The frame in which ``network.chain()`` has its slope ranges."""
        kinds = {spec.name: spec.kind for spec in network.layers}
        return Frame(tuple(kinds[a.name] in SORTS for a in network.chain().activations))

    def into(self, weights: Matrices) -> Matrices:
        """The weights on sums and differences.

        Example:
            >>> pair = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0, 0.0]])
            >>> [round(w.square().sum().item(), 4) for w in Frame((True,)).into(pair)]
            [10.0, 1.0]
        """
        return self._each(weights, _turned)

    def back(self, weights: Matrices) -> Matrices:
        """The inverse of :meth:`into`."""
        return self._each(weights, _turned_back)

    def _each(self, weights: Matrices, turn: Callable[[Tensor], Tensor]) -> Matrices:
        """The rows in front of every sort turned, and the columns behind it."""
        found = list(weights)
        for k, turned in enumerate(self.turned):
            if turned:
                found[k] = turn(found[k])
                found[k + 1] = turn(found[k + 1].T).T.contiguous()
        return tuple(found)

    def chain_multiplier(self, multiplier: Matrices) -> Matrices:
        """A multiplier of this frame for the chain, whose sums are larger by sqrt 2."""
        pairs = zip(self.turned, multiplier, strict=True)
        return tuple(0.5 * t if turn else t for turn, t in pairs)


def _turned(rows: Tensor) -> Tensor:
    even, odd = rows[0::2], rows[1::2]
    return torch.cat([even + odd, even - odd]) / math.sqrt(2.0)


def _turned_back(rows: Tensor) -> Tensor:
    total, difference = rows.chunk(2)
    pairs = torch.stack([total + difference, total - difference], dim=1)
    return pairs.flatten(0, 1) / math.sqrt(2.0)
