"""What is certified is what the owner calls: in training mode some layers are no function of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, certify, certify_local, verify
from admm_lip.certificates.in_onnx import export_onnx
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.foreign.open import network_of


class Called(nn.Module):
    """Its dropout is a call; a slice is read by torch.export alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.25, training=self.training)
        return self.last(x[:, 3:])


def of_batches(**options: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Linear(6, 2))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (of_batches, r"normalises by the batch.*call model\.eval\(\) first"),
    "dropout": (dropping, r"in training mode, where it is random; call model\.eval\(\) first"),
    "called dropout": (Called, r"in training mode, where it is random; call model\.eval\(\) first"),
}


def written(model: nn.Module, folder: Path) -> list[Path]:
    """An exported program and an ONNX file, in the mode that the model is in."""
    x = torch.randn(3, 4)
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(copy.deepcopy(model), (x,)), folder / "m.pt2")
        torch.onnx.export(
            model,
            (x,),
            str(folder / "m.onnx"),
            training=mode.TRAINING if model.training else mode.EVAL,
            do_constant_folding=False,
            dynamo=False,
        )
    return [folder / "m.pt2", folder / "m.onnx"]


@pytest.mark.parametrize("name", MODELS)
def test_every_door_refuses_training_mode_by_the_same_words(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, message = MODELS[name]
    model = make().train()
    kept = copy.deepcopy(model.state_dict())
    for read in (certify, network_of, lambda m: certify_local(m, torch.zeros(1, 4), 0.1)):
        with pytest.raises(UnsupportedModule, match=message):
            read(model)
    with pytest.raises(UnsupportedModule, match=message):
        export_onnx(model, tmp_path / "own.onnx")
    assert all(part.training for part in model.modules())
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    for path in written(model, tmp_path):
        # A program that counts its batches is refused for that first.
        with pytest.raises(UnsupportedModule, match=r"call model\.eval\(\)"):
            open_network(path)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_certified_and_training_is_not_verified(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, message = MODELS[name]
    model = make().eval()
    certificate = certify(model)
    verify(certificate, model)
    for path in written(model, tmp_path):
        assert certify(open_network(path)).lip == pytest.approx(certificate.lip, rel=1e-5)
    with pytest.raises(UnsupportedModule, match=message):
        verify(certificate, model.train())


@pytest.mark.parametrize("training", [True, False])
def test_statistics_of_the_batch_alone_are_refused_in_any_mode(
    training: bool, tmp_path: Path
) -> None:
    model = of_batches(track_running_stats=False).train(training)
    with pytest.raises(UnsupportedModule, match=r"1 \(BatchNorm1d\).*use track_running_stats=True"):
        certify(model)
    torch.export.save(torch.export.export(model, (torch.randn(3, 4),)), tmp_path / "m.pt2")
    with pytest.raises(UnsupportedModule, match=r"batch_norm.*use track_running_stats=True"):
        open_network(tmp_path / "m.pt2")


def test_layers_that_are_the_same_in_both_modes_are_read_in_either() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.0), nn.Linear(6, 2))
    assert network_of(model.train()).digest() == network_of(model.eval()).digest()


def test_a_constraint_holds_for_what_is_shipped_while_dropout_trains() -> None:
    torch.manual_seed(0)
    model = dropping().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    constraint = Constraint(model, Lipschitz(bound=1.0)).attach(optimizer)
    assert model.training and model[2].training
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    shipped, certificate = constraint.finish()
    verify(certificate, shipped)
    assert not shipped.training


def test_kernels_are_kept_in_a_bound_while_dropout_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Dropout2d(), nn.Flatten(), nn.Linear(18, 2)
    ).train()
    constraint = Constraint(model, Lipschitz(bound=1.0), input_shape=(1, 5, 5))
    assert model.training and model[2].training
    shipped, certificate = constraint.finish()
    verify(certificate, shipped)
