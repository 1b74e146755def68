"""Random networks that solvers are timed on; they need the solvers alone."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from admm_lip.solvers import CertifyProblem, Slopes

Weights = tuple[Tensor, ...]


def gaussian(*sizes: int, seed: int = 0) -> Weights:
    """Signed Gaussian weights, each layer divided by the square root of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n, m in pairwise(sizes)
    )


def residual_chain(depth: int, width: int, outputs: int = 10, seed: int = 0) -> CertifyProblem:
    """``C y_l``, ``y_k = y_{k-1} + G_k relu(H_k y_{k-1})``, ``y_0 = V x``, all Gaussian.

    ``y`` is carried past the activations by neurons whose slope is 1.
    """
    drawn = gaussian(*[width] * (2 * depth + 2), outputs, seed=seed)
    first, last, inner = drawn[0], drawn[-1], drawn[1:-1]
    weights = [torch.cat([inner[0] @ first, first])]
    for into, out in zip(inner[2::2], inner[1:-1:2], strict=True):
        carried = torch.cat([out, torch.eye(width).double()], dim=1)
        weights.append(torch.cat([into @ carried, carried]))
    weights.append(last @ torch.cat([inner[-1], torch.eye(width).double()], dim=1))
    ones = torch.ones(2 * width).double()
    low = torch.cat([torch.zeros(width), torch.ones(width)]).double()
    return CertifyProblem(tuple(weights), (Slopes(low, ones),) * depth)
