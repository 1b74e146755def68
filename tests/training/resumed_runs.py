"""A run that goes on from its folder, beside one that was never interrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from admm_lip import TrainConfig, train


def check_goes_on(
    make: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    config: TrainConfig,
    folder: Path,
) -> None:
    """Half the epochs, then all of them from the folder: the same bits and certificate."""
    steady = dataclasses.replace(config, schedule="constant")
    short = dataclasses.replace(steady, epochs=config.epochs // 2)
    train(make(), data, short, run_dir=folder, progress=False)
    on = train(make(), data, steady, run_dir=folder, resume=True, progress=False)
    whole = train(make(), data, steady, progress=False)
    assert on.steps == whole.steps
    for mine, theirs in zip(on.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert on.certificate == whole.certificate
