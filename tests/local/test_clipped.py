"""Clipped activations as modules, and as the certifier and files see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clipped_nets import mlp
from torch import nn

from admm_lip import certified_radii, certify, verify
from admm_lip.errors import NetworkError
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU, PairClip, keep_thresholds
from admm_lip.networks.network import Network
from admm_lip.networks.storage import load_network, save_network

CLIPPED = ["clipped_relu", "clipped_max_min"]


def test_values_by_hand() -> None:
    relu = ClippedReLU((2,), 1.5)
    assert relu(torch.tensor([[-1.0, 2.0], [1.0, 0.0]])).tolist() == [[0.0, 1.5], [1.0, 0.0]]
    pair = ClippedMaxMin((2, 1, 1), 1.0)
    images = torch.tensor([[0.5, 3.0], [-4.0, 0.2]]).view(2, 2, 1, 1)
    assert torch.allclose(pair(images).flatten(1), torch.tensor([[1.0, 0.5], [0.2, -1.0]]))


def test_thresholds_learn_only_where_they_bind() -> None:
    relu = ClippedReLU((3,), 1.0)
    relu(torch.tensor([[-1.0, 0.5, 4.0]])).sum().backward()
    assert relu.threshold.grad is not None
    assert relu.threshold.grad.tolist() == [0.0, 0.0, 1.0]
    relu.threshold.data -= 3.0
    keep_thresholds(nn.Sequential(relu))
    assert relu.threshold.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("build", [ClippedReLU, ClippedMaxMin, PairClip])
@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_bad_thresholds_are_refused(build: type[nn.Module], threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold: expected a finite number >= 0"):
        build((4,), threshold)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="features_shape: expected sizes"):
        ClippedReLU(())
    with pytest.raises(ValueError, match="even number"):
        ClippedMaxMin((3,))
    with pytest.raises(ValueError, match=r"ClippedReLU: expected a batch .* \(4,\)"):
        ClippedReLU((4,))(torch.zeros(2, 5))


@pytest.mark.parametrize("activation", CLIPPED)
def test_a_clipped_network_is_certified_and_survives_a_file(
    activation: str, tmp_path: Path
) -> None:
    model = mlp(activation)
    certificate = certify(model)
    verify(certificate, model)
    network = read_network(model)
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.digest() == network.digest()
    x = torch.randn(40, 5)
    step = 1e-3 * torch.randn(40, 5)
    with torch.no_grad():
        again = build_module(loaded)(x)
        assert torch.equal(again, model(x))
        slope = (model(x + step) - model(x)).norm(dim=1) / step.norm(dim=1)
    assert float(slope.max()) <= certificate.lip * (1 + 1e-3)
    y = again.argmax(1)
    radii = certified_radii(model, x, y, certificate=certificate)
    assert bool((radii > 0).all())


@pytest.mark.parametrize("activation", CLIPPED)
def test_a_convolutional_one_is_certified(activation: str) -> None:
    act = {"clipped_relu": ClippedReLU, "clipped_max_min": ClippedMaxMin}[activation]
    layers = nn.Conv2d(1, 4, 3), act((4, 2, 2), 0.5), nn.Flatten(), nn.Linear(16, 3)
    model = nn.Sequential(*layers)
    certificate = certify(model, input_shape=(1, 4, 4))
    verify(certificate, model)
    x = torch.randn(10, 1, 4, 4)
    assert certified_radii(model, x, model(x).argmax(1), certificate=certificate).min() > 0.0


def test_the_digest_knows_the_thresholds() -> None:
    one, two = mlp("clipped_relu"), mlp("clipped_relu")
    two[1].threshold.data[0] += 0.1  # type: ignore[operator, union-attr]
    assert read_network(one).digest() != read_network(two).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update({"1.threshold": np.full(8, -1.0)}), "expected thresholds >= 0"),
        (lambda a: a.update({"1.threshold": np.ones(7)}), "one threshold per neuron"),
        (lambda a: a.pop("1.threshold"), "got none"),
    ],
)
def test_files_with_bad_thresholds_are_refused(change: object, message: str) -> None:
    network = read_network(mlp("clipped_relu"))
    arrays = dict(network.arrays)
    change(arrays)  # type: ignore[operator]
    with pytest.raises(NetworkError, match=message):
        Network(network.layers, arrays).chain()
