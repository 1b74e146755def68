"""The optional extra: refused by name where it is missing, run where it is there."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from admm_lip import TrainConfig, train
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.torchlip import Torchlip

HAS_TORCHLIP = importlib.util.find_spec("deel") is not None
needs_torchlip = pytest.mark.skipif(
    not HAS_TORCHLIP, reason="deel-torchlip is not installed: pip install deel-torchlip"
)


@pytest.mark.skipif(HAS_TORCHLIP, reason="deel-torchlip is installed")
def test_a_missing_package_is_refused_with_the_line_that_installs_it() -> None:
    with pytest.raises(ModuleNotFoundError, match="`pip install deel-torchlip`"):
        Torchlip().prepare(build_mlp(6, 4))


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation: expected 'groupsort2' or 'given', got 'rel"):
        Torchlip(activation="relu")


@needs_torchlip
@pytest.mark.parametrize("activation", ["groupsort2", "given"])
def test_the_exported_network_keeps_its_bound(activation: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.arange(64) % 4
    result = train(
        build_mlp(6, 4, ModelConfig(hidden=(8, 6))),
        (x, y),
        TrainConfig(epochs=2, batch_size=32),
        method=Torchlip(bound=2.0, activation=activation),
        progress=False,
    )
    assert result.claimed_lip == pytest.approx(2.0, rel=1e-3)
    assert sum(isinstance(m, nn.Linear) for m in result.model) == 3


@needs_torchlip
def test_odd_widths_cannot_be_sorted_in_pairs() -> None:
    with pytest.raises(ValueError, match="GroupSort2 needs even widths, got 7"):
        Torchlip().prepare(build_mlp(6, 4, ModelConfig(hidden=(7,))))
