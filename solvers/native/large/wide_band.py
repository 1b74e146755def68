"""A wider band of H, for a preconditioner that deep networks need few products with.

The completion of H's own band (``schur_band.py``) leaves out how a layer's multipliers act on
those two layers on.  Near the end of a deep network's solve that takes 42 to 61 products a system.
Let :data:`GROUP` layers be one block instead: the band then holds all layers that are closer than
that, and its completion is nearly H, with 7 to 12 products.

Every clique, two groups of layers, is the whole H of a network of its own: the window of those
layers, what comes in before them as its input.  Written out in its small order it is that of
``lmi_operator.py``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...phases import phase
from ..lmi.block_cholesky import Band, block_slices
from ..lmi.lmi_operator import LmiOperator, schur_complement
from .markov import Markov

# Layers in a block.  With 8 the products are a third fewer, and the band costs twice as much.
GROUP = 4
# Neurons in a block: a window of two is written out, a dozen matrices of its order.
_MOST_NEURONS = 1000


class Window(NamedTuple):
    """Two neighbouring groups of hidden layers, ``first + 1`` to ``last``, layer 0 the input.

    ``own`` is how many variables the first group has; rho is one of the first layers.
    """

    first: int
    last: int
    op: LmiOperator
    own: int


def windows(op: LmiOperator) -> list[Window]:
    """The windows of a chain of two hidden layers or more."""
    layers = len(op.sizes) - 1
    fitting = math.ceil(sum(op.sizes[1:]) / _MOST_NEURONS)
    count = min(layers, max(2, round(layers / GROUP), fitting))
    cuts = [round(i * layers / count) for i in range(count + 1)]
    found = []
    for first, middle, last in zip(cuts, cuts[1:], cuts[2:], strict=False):
        neurons = op.fixed.new_zeros(sum(op.sizes[first + 1 : last + 1]))
        part = LmiOperator(op.problem.between(first, last), neurons)
        own = sum(op.sizes[first + 1 : middle + 1]) + (first == 0)
        found.append(Window(first, last, part, own))
    return found


@phase("products")
def wide_band(op: LmiOperator, z: Markov, p: Markov) -> Band:
    """``tr(A_i Z A_j P)`` for every group of layers with itself and with the next one."""
    diagonal, lower = [], []
    rest = op.fixed.new_empty(0, 0)
    for first, last, part, own in windows(op):
        z_forms, p_forms = (part.forms(written_out(m, first, last)) for m in (z, p))
        whole = schur_complement(z_forms, p_forms)
        mine = whole[1:, 1:] if first else whole
        diagonal.append(mine[:own, :own])
        lower.append(mine[own:, :own])
        rest = mine[own:, own:]
    return Band([*diagonal, rest], lower)


def written_out(m: Markov, first: int, last: int) -> Tensor:
    """The dense matrix of the layers ``first`` to ``last``."""
    blocks = m.band.diagonal[first : last + 1]
    at = block_slices([len(b) for b in blocks])
    dense = blocks[0].new_empty(at[-1].stop, at[-1].stop)
    dense[at[0], at[0]] = blocks[0]
    for (here, after), gain, corner in zip(
        pairwise(at), m.gains[first:last], blocks[1:], strict=True
    ):
        row = torch.mm(gain, dense[here, : here.stop])
        dense[after, : here.stop], dense[: here.stop, after] = row, row.T
        dense[after, after] = corner
    return dense
