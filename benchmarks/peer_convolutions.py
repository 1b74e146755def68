"""Convolutional networks of other packages, as training methods: deel-torchlip and orthogonium.

Each takes the network given, puts the package's own layer of the same shape in the place of every
convolution and linear layer, and leaves the activations as they are; what is trained comes back as
plain layers of torch, so that every bound is proven by this package and none is taken on trust.
Both are optional: a cell of a study that asks for one that is not installed fails by name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from admm_lip.research.comparators.torchlip import load_torchlip
from admm_lip.training.method import Method


@dataclass(frozen=True)
class PeerConvolutions(Method):
    """Layers of a package in the place of torch's, and torch's again when they are trained."""

    def layers(self) -> tuple[Any, Any]:
        """What stands for a convolution and for a linear layer, called as torch's are.

        Raises:
            ModuleNotFoundError: with the line that installs the package.
        """
        raise NotImplementedError

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network of the package's layers."""
        return _replaced(model, *self.layers())

    def finish(self, model: nn.Module) -> nn.Module:
        """Plain layers with the weights in effect."""
        return nn.Sequential(*(_exported(m) for m in model.eval().children()))


@dataclass(frozen=True)
class TorchlipConvolutions(PeerConvolutions):
    """Spectral normalisation and Bjorck's iteration of the kernel seen as one matrix."""

    name: ClassVar[str] = "torchlip"
    source: ClassVar[str] = "deel-torchlip (PyPI): SpectralConv2d, SpectralLinear"

    def layers(self) -> tuple[Any, Any]:
        """Those of the package."""
        package = load_torchlip()
        return package.SpectralConv2d, package.SpectralLinear


@dataclass(frozen=True)
class OrthogoniumConvolutions(PeerConvolutions):
    """Adaptive orthogonal convolutions (Boissin et al., 2025)."""

    name: ClassVar[str] = "orthogonium"
    source: ClassVar[str] = "orthogonium (PyPI): AdaptiveOrthoConv2d, OrthoLinear"

    def layers(self) -> tuple[Any, Any]:
        """Those of the package."""
        convolution = _orthogonium("layers.conv.AOC.ortho_conv").AdaptiveOrthoConv2d
        return convolution, _orthogonium("layers.linear").OrthoLinear


def _orthogonium(module: str) -> Any:
    try:
        return importlib.import_module(f"orthogonium.{module}")
    except ModuleNotFoundError as error:
        if error.name != "orthogonium":
            raise
        raise ModuleNotFoundError(
            "orthogonium: the package is not installed; install it with `pip install orthogonium`"
        ) from error


def _replaced(model: nn.Module, convolution: Any, linear: Any) -> nn.Sequential:
    """The same network with other convolutions and linear layers, newly drawn."""

    def layer(m: nn.Module) -> nn.Module:
        if isinstance(m, nn.Conv2d):
            how = {"stride": m.stride[0], "padding": m.padding, "padding_mode": m.padding_mode}
            return convolution(m.in_channels, m.out_channels, m.kernel_size[0], **how)  # type: ignore[no-any-return]
        if isinstance(m, nn.Linear):
            return linear(m.in_features, m.out_features)  # type: ignore[no-any-return]
        return m

    return nn.Sequential(*(layer(m) for m in model.children()))


def _exported(m: Any) -> nn.Module:
    if hasattr(m, "vanilla_export"):
        return m.vanilla_export()  # type: ignore[no-any-return]
    if isinstance(m, nn.Conv2d):
        how: Any = {"stride": m.stride, "padding": m.padding, "padding_mode": m.padding_mode}
        kernel: Any = m.kernel_size
        plain: Any = nn.Conv2d(m.in_channels, m.out_channels, kernel, **how)
    elif isinstance(m, nn.Linear):
        plain = nn.Linear(m.in_features, m.out_features)
    else:
        return m  # type: ignore[no-any-return]
    with torch.no_grad():
        plain.weight.copy_(m.weight)
        plain.bias.copy_(m.bias)
    return plain  # type: ignore[no-any-return]
