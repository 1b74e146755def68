"""Which multipliers are variables, and at what the others are held."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ...problem import CertifyProblem, Multiplier, Slopes

# A neuron whose slope is known to this accuracy is linear.  Its best multiplier is infinite.  Where
# it is not substituted (``eliminated_operator.py``) it is held at this multiple of its natural
# scale, which costs about the inverse of the bound.
_KNOWN = 1e-7
_STIFF = 1e7
# A neuron whose row and column together weigh less than this share of the largest of its layer: its
# multiplier may be anything between the share and its inverse, so it is held at its natural scale.
# Weight decay leaves such neurons; the centre of so long an interval is beyond double precision.
NEGLIGIBLE = 1e-12


def spread(problem: CertifyProblem) -> CertifyProblem:
    """The problem with slopes nearly known as ``a`` replaced by ``[min(a, 0), max(a, 0)]``.

    There t has a scale.  Closed forms take linear neurons as they are.
    """
    slopes = []
    for s, close in zip(problem.slopes, _known(problem), strict=True):
        known = close & (s.alpha != s.beta)
        low, high = s.alpha.clamp(max=0.0), s.beta.clamp(min=0.0)
        slopes.append(Slopes(torch.where(known, low, s.alpha), torch.where(known, high, s.beta)))
    return CertifyProblem(problem.weights, tuple(slopes))


def _known(problem: CertifyProblem) -> list[Tensor]:
    """Per hidden layer, the neurons whose slope is known: their best t is infinite."""
    return [
        s.beta - s.alpha <= _KNOWN * torch.maximum(s.alpha.abs(), s.beta.abs())
        for s in problem.slopes
    ]


def fixed(problem: CertifyProblem, natural: Multiplier) -> Tensor:
    """Multipliers of the neurons of known slope and of negligible ones, 0 for the others."""
    known, scale = torch.cat(_known(problem)), torch.cat(list(natural))
    free = torch.where(_negligible(problem), scale, torch.zeros_like(scale))
    return torch.where(known, _STIFF * scale, free)


def all_free(problem: CertifyProblem) -> bool:
    """Whether every neuron's multiplier is a variable."""
    return not bool((torch.cat(_known(problem)) | _negligible(problem)).any())


def _negligible(problem: CertifyProblem) -> Tensor:
    """The neurons, of all layers, that hear next to nothing or that next to nobody hears."""
    masks = []
    for into, out in pairwise(problem.weights):
        share = torch.linalg.vector_norm(into, dim=1) * torch.linalg.vector_norm(out, dim=0)
        masks.append(share <= NEGLIGIBLE * share.max())
    return torch.cat(masks)
