"""What the methods share that write every weight as a function of free parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from ...networks.chain import linear_layers
from ...training.method import Method, check_positive
from .spectral import check_slopes, layer_cap, product_bound, shrink_to


@dataclass(frozen=True)
class LayerwiseParametrization(Method):
    """Every layer of norm at most ``bound^(1 / layers)`` by construction.

    While training, each ``Linear`` computes its weight from free parameters; ``finish`` turns it
    into an ordinary ``Linear`` with that weight.

    Args:
        bound: on the network's Lipschitz constant.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_positive(bound=self.bound)

    def parametrization(self, layer: nn.Linear, cap: float) -> nn.Module:
        """From free parameters of the layer's shape to its weight, of norm at most ``cap``."""
        raise NotImplementedError(f"{type(self).__name__}: a subclass says how weights are made")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Parametrize every layer; its given weight becomes the start of the free parameters."""
        check_slopes(model, -1.0, 1.0)
        layers = linear_layers(model)
        for layer in layers:
            made = self.parametrization(layer, layer_cap(self.bound, layers))
            parametrize.register_parametrization(layer, "weight", made)
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """Plain layers; a norm that rounding left above its cap is scaled to it."""
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            shrink_to(layer, layer_cap(self.bound, layers))
        return model

    def lipschitz(self, model: nn.Module) -> float:
        """The product of the spectral norms."""
        return product_bound(model)
