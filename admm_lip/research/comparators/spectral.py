"""Operator norms of a model's layers: exact ones, and the running estimate that training needs.

The estimate is a power iteration whose vector stays with its layer, one buffer per ``Linear``, so
that one or two products per step follow the slowly moving weights (T. Miyato et al., ICLR 2018;
Y. Yoshida and T. Miyato, 2017).  It converges from below: a training signal, never a bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModule
from ...networks.chain import read_network
from ...networks.network import Chain

_VECTOR = "power_vector"
_WARM_UP = 20
_TINY = 1e-30


def linears(model: nn.Module) -> list[nn.Linear]:
    """The ``Linear`` layers of a model, in the order of registration.

    Raises:
        UnsupportedModule: when there is none, or another layer holds weights that a method working
            on ``Linear`` layers would leave out.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None)
        if own is not None and not isinstance(module, nn.Linear):
            raise UnsupportedModule(
                f"{name or 'model'}: expected weights in Linear layers only, got "
                f"{type(module).__name__}; this method works on Linear layers"
            )
    if not found:
        raise UnsupportedModule("model: expected at least one Linear layer, got none")
    return found


def check_slopes(model: nn.Module, low: float, high: float) -> None:
    """Raise unless every activation's slopes lie in ``[low, high]``.

    Raises:
        UnsupportedModule: naming the activation, its slopes and what was expected.
    """
    chain = _chain(model)
    for spec, slopes in zip(chain.activations, chain.slopes, strict=True):
        alpha, beta = float(slopes.alpha.min()), float(slopes.beta.max())
        if alpha < low or beta > high:
            raise UnsupportedModule(
                f"{spec.name}: expected an activation with slopes in [{low:g}, {high:g}], got "
                f"{spec.kind} with [{alpha:g}, {beta:g}]; use ReLU, LeakyReLU or tanh"
            )


def product_bound(model: nn.Module) -> float:
    """Product over the layers of spectral norm times greatest slope, in float64."""
    chain = _chain(model)
    bound = math.prod(spectral_norm(torch.from_numpy(w)) for w in chain.weights)
    return bound * math.prod(
        max(abs(float(s.alpha.min())), abs(float(s.beta.max()))) for s in chain.slopes
    )


def spectral_norm(weight: Tensor) -> float:
    """Largest singular value, in float64."""
    return float(torch.linalg.matrix_norm(weight.detach().to(torch.float64), 2))


def shrink_to(layer: nn.Linear, cap: float, p: float = 2.0) -> None:
    """Scale a weight until its exact p-norm (1, 2 or inf), as stored, is at most ``cap``."""
    weight = layer.weight.detach()
    norm = float(torch.linalg.matrix_norm(weight.to(torch.float64), p))
    if norm > cap:
        rounding = 2.0 * torch.finfo(weight.dtype).eps
        weight.mul_(cap / norm * (1.0 - rounding))


def layer_cap(bound: float, layers: Sequence[nn.Linear]) -> float:
    """Every layer's share of a bound on the product: its ``len(layers)``-th root."""
    return float(bound ** (1.0 / len(layers)))


def start_vectors(layers: Iterable[nn.Linear]) -> None:
    """Give every layer a power-iteration vector, already close to its singular vector."""
    for layer in layers:
        vector = torch.randn_like(layer.weight[0].detach())
        layer.register_buffer(_VECTOR, vector / vector.norm(), persistent=False)
        _iterate(layer, _WARM_UP)


def drop_vectors(model: nn.Module) -> None:
    """Remove the vectors again."""
    for layer in linears(model):
        delattr(layer, _VECTOR)


def estimated_norm(layer: nn.Linear, iterations: int) -> Tensor:
    """``||W v||`` for the layer's vector v after that many more iterations: at most ``||W||``.

    Differentiable in W with v held, which at a simple singular value is the gradient ``u v'`` of
    the norm.
    """
    norm: Tensor = torch.linalg.vector_norm(layer.weight @ _iterate(layer, iterations))
    return norm


def estimated_product(layers: Sequence[nn.Linear], iterations: int) -> Tensor:
    """Product of the estimated norms, differentiable; 1 for no layers."""
    if not layers:
        return torch.ones(())
    return torch.stack([estimated_norm(layer, iterations) for layer in layers]).prod()


def _chain(model: nn.Module) -> Chain:
    """The model as it will be used: a copy in eval mode, where dropout is the identity."""
    return read_network(copy.deepcopy(model).eval()).chain()


@torch.no_grad()
def _iterate(layer: nn.Linear, iterations: int) -> Tensor:
    weight, vector = layer.weight, layer.get_buffer(_VECTOR)
    for _ in range(iterations):
        moved = weight.T @ (weight @ vector)
        length = torch.linalg.vector_norm(moved)
        # A weight of zeros has no singular vector: stay where we are.
        vector = torch.where(length > _TINY, moved / length.clamp_min(_TINY), vector)
    # A new tensor, not a copy into the old one, which a pending backward pass may still need.
    setattr(layer, _VECTOR, vector)
    return vector
