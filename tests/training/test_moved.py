"""Pictures shifted and mirrored in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resumed_runs import check_goes_on
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from admm_lip import TrainConfig, cli, train, verify
from admm_lip.records import read_yaml
from admm_lip.training.batches import as_batches
from admm_lip.training.moved import MovedBatches, moved, moved_as

QUICK = TrainConfig(
    bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch", shift=1
)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**16))
def test_every_picture_is_a_shifted_one(shift: int, mirror: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 2, 3, 4, generator=generator)
    found = moved(x, shift, mirror, generator)
    assert found.shape == x.shape
    padded = nn.functional.pad(x, (shift,) * 4)
    places = [(a, b) for a in range(2 * shift + 1) for b in range(2 * shift + 1)]
    for given_one, one in zip(padded, found, strict=True):
        views = [given_one[:, a : a + 3, b : b + 4] for a, b in places]
        views += [view.flip(-1) for view in views] if mirror else []
        assert any(torch.equal(one, view) for view in views)


def test_all_places_are_drawn_alike() -> None:
    x = torch.zeros(20_000, 1, 5, 5)
    x[:, 0, 2, 2] = 1.0
    found = moved(x, 1, False, torch.Generator().manual_seed(0)).mean(dim=0)[0]
    assert torch.allclose(found[1:4, 1:4], torch.full((3, 3), 1.0 / 9.0), atol=0.01)
    x[:, 0, :, :2] = 1.0
    found = moved(x, 0, True, torch.Generator().manual_seed(0)).mean(dim=0)[0]
    assert torch.allclose(found[0, [0, 4]], torch.tensor([0.5, 0.5]), atol=0.02)


def test_an_epoch_can_be_entered_anywhere_and_another_one_is_another() -> None:
    batches = moved_as(QUICK, as_batches(data(), 16, small()))
    assert isinstance(batches, MovedBatches)
    whole = list(batches.epoch(3, 0))
    for (x, y), (u, v) in zip(batches.epoch(3, 2), whole[2:], strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    plain = [*as_batches(data(), 16, small()).epoch(3, 0)]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, plain, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(whole, plain, strict=True))
    still = as_batches(data(), 16, small())
    assert moved_as(dataclasses.replace(QUICK, shift=0), still) is still


def test_a_run_on_moved_pictures_is_proven_and_goes_on_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)
    results = [
        train(small(), data(), dataclasses.replace(QUICK, shift=shift), progress=False)
        for shift in (0, 1)
    ]
    for result in results:
        verify(result.certificate, result.model)
        assert result.certificate.lip <= 1.0
    assert not torch.equal(results[0].model[0].weight, results[1].model[0].weight)


@pytest.mark.parametrize("mirror", [False, True])
def test_what_are_no_pictures_in_memory_is_refused(mirror: bool) -> None:
    config = TrainConfig(bound=1.0, epochs=1, shift=0 if mirror else 1, mirror=mirror)
    x, y = data()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ValueError, match=r"shift, mirror: go with .* got inputs of shape \(36,\)"):
        train(nn.Sequential(nn.Linear(36, 2)), (x.flatten(1), y), config, progress=False)
    with pytest.raises(ValueError, match=r"in memory, got a DataLoader or Dataset"):
        train(flat, _Own(x, y), config, progress=False)
    with pytest.raises(ValueError, match=r"shift: expected a whole number >= 0"):
        TrainConfig(bound=1.0, shift=-1)


class _Own(TensorDataset):
    """Somebody's own data set."""


def test_the_command_line_moves_pictures(tmp_path: Path) -> None:
    words = ["--convnet.name", "2C2F", "--convnet.width", "0.125", "--shift", "1", "--epochs", "1"]
    quick = ["--evaluate.steps", "2", "--evaluate.samples", "10", "--quiet"]
    assert cli.main(["train", *words, *quick, "--run-dir", str(tmp_path / "run")]) == 0
    assert read_yaml(tmp_path / "run/config.yaml")["shift"] == 1
    assert cli.main(["verify", str(tmp_path / "run")]) == 0
