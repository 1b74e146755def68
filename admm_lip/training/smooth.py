"""A trained network made flat where the data do not look, before it is brought under a bound.

Weights hold what training left in directions that the data hardly excite: it moves no output, yet
the norms, and with them every bound, pay for it.  Three steps, none of which needs labels:

1. **Smoothing.**  Layer after layer, the pre-activations ``z`` of the network as given are fitted
   anew from the inputs ``h`` that the layer has in the network fitted so far, with a ridge:

       min  E |W h + b - z|^2 + ridge E|h - E h|^2 |W|_F^2

   This is the projection's distance measured in the data's own metric, in closed form.
2. **Choice.**  Of several ridges the one with the largest mean certified radius on the data.
3. **Gauge.**  A homogeneous neuron may be scaled by c, its outgoing weights by 1/c: the network
   stays, T changes to T / c^2.  c is chosen so that T is the same for all neurons of a layer, for
   T stays fixed in the rounds that follow and is the metric in which they move.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..certificates.certifier import certify_global
from ..certificates.radii import radii_of
from ..networks.chain import linear_layers, read_network
from ..solvers import SolverConfig
from .multiplier_step import HOMOGENEOUS

# Smallest multiplier that the gauge makes equal to the others, as a share of the largest.
_LEAST = 1e-3
# The gauge and the choice need no more than this relative gap.
_TOL = 1e-3


def smoothed(model: nn.Module, x: Tensor, ridge: float) -> nn.Module:
    """Step 1: a copy of ``model`` whose layers are refitted on ``x``.

    Args:
        model: Linear layers and activations in turn, in eval mode.
        x: inputs ``(samples, ...)``.
        ridge: weight of the squared weights, as a share of the total variance of the layer's input.
    """
    fitted = copy.deepcopy(model)
    for mine, given in zip(linear_layers(fitted), linear_layers(model), strict=True):
        inputs, _ = _passing(fitted, mine, x)
        _, goal = _passing(model, given, x)
        free = mine.bias is not None
        centre = inputs.mean(dim=0) if free else torch.zeros_like(inputs[0])
        middle = goal.mean(dim=0) if free else torch.zeros_like(goal[0])
        inputs, goal = inputs - centre, goal - middle
        gram = inputs.T @ inputs
        # A layer whose inputs do not vary at all keeps what it says of their mean.
        weight = ridge * gram.trace() + torch.finfo(torch.float64).tiny
        gram.diagonal().add_(weight)
        solution = torch.linalg.solve(gram, inputs.T @ goal).T
        with torch.no_grad():
            mine.weight.copy_(solution)
            if free:
                mine.bias.copy_(middle - solution @ centre)
    return fitted


def best_smoothed(
    model: nn.Module, x: Tensor, y: Tensor, ridges: Sequence[float], solver: SolverConfig
) -> nn.Module:
    """Step 2: the network of the largest mean certified radius on ``(x, y)``, the given one too."""
    candidates = [model, *(smoothed(model, x, ridge) for ridge in ridges)]
    return max(candidates, key=lambda m: mean_radius(m, x, y, solver))


def mean_radius(model: nn.Module, x: Tensor, y: Tensor, solver: SolverConfig) -> float:
    """Mean certified radius by the bound of all outputs together, infinite ones left out."""
    radii = radii_of(model, x, y, certify_global(model, solver=solver))
    finite = radii[torch.isfinite(radii)]
    return float(finite.mean()) if len(finite) else 0.0


def even_gauge(model: nn.Module, solver: SolverConfig) -> nn.Module:
    """Step 3: the same function with even multipliers; any other network as it is."""
    kinds = {spec.kind for spec in read_network(model).chain().activations}
    if not kinds or not HOMOGENEOUS.issuperset(kinds):
        return model
    scaled = copy.deepcopy(model)
    multiplier = certify_global(model, solver=solver).multiplier
    layers = pairwise(linear_layers(scaled))
    with torch.no_grad():
        for t, (incoming, outgoing) in zip(multiplier, layers, strict=True):
            root = torch.tensor(t, dtype=torch.float64)
            root = root.clamp(min=_LEAST * float(root.max())).sqrt()
            factor = (root / root.mean()).to(incoming.weight)
            incoming.weight.mul_(factor[:, None])
            if incoming.bias is not None:
                incoming.bias.mul_(factor)
            outgoing.weight.div_(factor)
    return scaled


def coarse(solver: SolverConfig) -> SolverConfig:
    """The solver's settings at the accuracy that these steps need."""
    return replace(solver, tol=max(solver.tol, _TOL))


def _passing(model: nn.Module, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into a layer and what comes out, float64 ``(samples, width)``."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, i, o: seen.append((i[0], o)))
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    ((inputs, outputs),) = seen
    return inputs.double().flatten(0, -2), outputs.double().flatten(0, -2)
