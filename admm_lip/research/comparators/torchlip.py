"""deel-torchlip as it is: spectral normalisation, Bjorck iterations and GroupSort2."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...training.method import Method, check_positive
from .segments import cut, join
from .spectral import layer_cap, linears, product_bound, spectral_norm


@dataclass(frozen=True)
class Torchlip(Method):
    """Train a network of deel-torchlip's layers with the given widths.

    An optional extra: the package is imported when a model is prepared.

    Args:
        bound: on the network's Lipschitz constant.
        activation: ``"groupsort2"`` in place of the given activations, or ``"given"`` to keep them.
            With it the method's own bound is the product of the norms.
    """

    name: ClassVar[str] = "torchlip"
    source: ClassVar[str] = "deel-torchlip (PyPI); C. Anil, J. Lucas, R. Grosse, ICML 2019"

    bound: float = 1.0
    activation: str = "groupsort2"

    def __post_init__(self) -> None:
        check_positive(bound=self.bound)
        if self.activation not in ("groupsort2", "given"):
            raise ValueError(
                f"activation: expected 'groupsort2' or 'given', got {self.activation!r}"
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """deel-torchlip's ``Sequential``; of the given model only the widths remain.

        Raises:
            ModuleNotFoundError: with the line that installs the package.
            ValueError: for an odd width, which cannot be sorted in pairs.
        """
        torchlip = load_torchlip()
        parts = cut(model)
        like = parts.linears[0].weight
        # The factor of its Sequential comes too late for layers that exist already (1.0.5).
        cap = layer_cap(self.bound, parts.linears)
        layers = [
            torchlip.SpectralLinear(
                m.in_features, m.out_features, bias=m.bias is not None, k_coef_lip=cap
            )
            for m in parts.linears
        ]
        between = list(parts.between)
        if self.activation == "groupsort2":
            for layer in parts.linears[:-1]:
                if layer.out_features % 2:
                    raise ValueError(
                        f"model: GroupSort2 needs even widths, got {layer.out_features}; "
                        "change the width, or use activation='given'"
                    )
            between[1:-1] = [nn.Sequential(torchlip.GroupSort2()) for _ in between[1:-1]]
        return torchlip.Sequential(*join(between, layers)).to(like)  # type: ignore[no-any-return]

    def finish(self, model: nn.Module) -> nn.Module:
        """The package's export: ordinary ``Linear`` layers, and GroupSort2 where it was used."""
        exported: Any = model.eval()
        return exported.vanilla_export()  # type: ignore[no-any-return]

    def lipschitz(self, model: nn.Module) -> float:
        """The product of the spectral norms; GroupSort2 is 1-Lipschitz."""
        if self.activation == "given":
            return product_bound(model)
        return math.prod(spectral_norm(m.weight) for m in linears(model))


def load_torchlip() -> Any:
    """The package ``deel.torchlip``.

    Raises:
        ModuleNotFoundError: with the line that installs it.
    """
    try:
        return importlib.import_module("deel.torchlip")
    except ModuleNotFoundError as error:
        if error.name not in ("deel", "deel.torchlip"):
            raise
        raise ModuleNotFoundError(
            "torchlip: the package deel-torchlip is not installed; install it with "
            "`pip install deel-torchlip`"
        ) from error
