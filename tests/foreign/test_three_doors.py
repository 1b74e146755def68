"""One network from three doors: the module, its exported program, its ONNX file.

All give the same function, and one bound; it is no less than any slope that is seen, and that of
the same network written by hand as plain layers.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip import certify, verify
from admm_lip.foreign import open_network
from admm_lip.foreign.open import network_of
from admm_lip.networks.forward import forward
from admm_lip.networks.network import Network

Shape = tuple[int, ...]


class Acas(nn.Module):
    """As ACAS-Xu networks are: normalising constants of an image's shape before a flatten."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([[[[1.5, 0.25, 0.0, 2.0, -1.0]]]]))
        self.register_buffer("spread", torch.tensor([[[[3.0, 0.7, 1.0, 1.1, 2.0]]]]))
        sizes = [5, *[width] * depth, 5]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.spread).flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def plain(self) -> nn.Module:
        scale = nn.Linear(5, 5)
        scale.weight.data = torch.diag(1.0 / self.spread.flatten())
        scale.bias.data = -(self.mean / self.spread).flatten()
        hidden = [part for layer in self.layers[:-1] for part in (layer, nn.ReLU())]
        return nn.Sequential(nn.Flatten(), scale, *hidden, self.layers[-1])


class NormalisedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(4),
            nn.Linear(4, 6),
            nn.BatchNorm1d(6, affine=False),
            nn.LeakyReLU(0.1),
            nn.Dropout(),
            nn.Linear(6, 3),
            nn.BatchNorm1d(3),
        )
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def plain(self) -> nn.Module:
        layers = [as_linear(m) if isinstance(m, nn.BatchNorm1d) else m for m in self.body]
        return nn.Sequential(*(m for m in layers if not isinstance(m, nn.Dropout)))


class NormalisedCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.pool, self.head = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(3, 2)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))

    def plain(self) -> nn.Module:
        conv = nn.Conv2d(1, 3, 3, padding=1)
        norm = self.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight.data = self.conv.weight * scale[:, None, None, None]
        conv.bias.data = norm.bias + (self.conv.bias - norm.running_mean) * scale
        return nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), self.head)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        x = x - 0.5 * torch.tanh(self.second(x))
        return self.last(x)


class Sdf(nn.Module):
    """A signed distance function: the input is put beside a hidden layer again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 5), nn.Linear(8, 5), nn.Linear(5, 1)
        self.act = nn.Softplus(beta=100)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        h = self.act(self.second(torch.cat([h, x], dim=-1) / 2.0**0.5))
        return self.last(h)


class Monotone(nn.Module):
    """``g(x) + L sum x_i`` increases in every input where g has slopes of at most L."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).squeeze(-1) + 0.7 * x.sum(-1)


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
        self.register_buffer("scale", torch.tensor([2.0, 0.3]))
        self.register_buffer("middle", torch.tensor([0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.body(x)) + self.middle


class Sequence(nn.Module):
    """Convolutions of a sequence, strided and padded."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2)
        self.norm, self.second = nn.BatchNorm1d(4), nn.Conv1d(4, 2, 2, groups=2)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))).mean(dim=-1)

    def plain(self) -> nn.Module:
        """The same on images of one row."""
        first, second = nn.Conv2d(2, 4, (1, 3), (1, 2), (0, 2), (1, 2)), nn.Conv2d(4, 2, (1, 2))
        norm = self.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        first.weight.data = (self.first.weight * scale[:, None, None])[:, :, None]
        first.bias.data = norm.bias + (self.first.bias - norm.running_mean) * scale
        second.weight.data.zero_()
        second.weight.data[0, :2, 0], second.weight.data[1, 2:, 0] = self.second.weight
        second.bias.data = self.second.bias
        length = (9 + 4 - 4 - 1) // 2 + 1 - 1
        pool = nn.AvgPool2d((1, length))
        return nn.Sequential(nn.Unflatten(1, (2, 1)), first, nn.ReLU(), second, pool, nn.Flatten())


class Moved(nn.Module):
    """Axes exchanged, zeros on one side, parts taken out and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x.permute(0, 3, 1, 2), (1, 0, 0, 1))
        x = torch.tanh(self.conv(x))[:, :, 2:, :-1]
        left, right = x.unsqueeze(1).squeeze(1).chunk(2, dim=3)
        x = torch.cat([right, 2.0 - left], dim=2).transpose(2, 3).float()
        return self.head(x[:, 0].reshape(x.size(0), -1)[:, 2:])


class Panorama(nn.Module):
    """Padded around, as what has no edge is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(2, 2, (3, 2), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(torch.relu(self.first(x)), (0, 2, 0, 0), mode="circular")
        return self.second(x).flatten(1)


class Broadcasting(nn.Module):
    """Values and constants whose shapes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("grid", torch.tensor([[1.0], [-2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        spread = torch.sigmoid(self.layer(x)).unsqueeze(1) * self.grid
        return (spread + x.mean(dim=1, keepdim=True).unsqueeze(1)).flatten(1)


class Greatest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).amax(dim=(-1, -2))


IMAGE = (1, 5, 9)


def pooled(pool: nn.Module) -> nn.Module:
    """Of images of 4 x 8."""
    return nn.Sequential(nn.Conv2d(1, 3, 2), pool, nn.Flatten())


def sequence(pool: nn.Module) -> nn.Module:
    """Of sequences of 8."""
    return nn.Sequential(nn.Conv1d(1, 3, 2), pool, nn.Flatten())


def settle(model: nn.Module) -> None:
    """Statistics as after a training."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3.0)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias)


def as_linear(norm: nn.BatchNorm1d) -> nn.Linear:
    layer = nn.Linear(norm.num_features, norm.num_features)
    scale = 1.0 / (norm.running_var + norm.eps).sqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
    layer.weight.data, layer.bias.data = torch.diag(scale), shift - norm.running_mean * scale
    return layer


@dataclass(frozen=True)
class Case:
    """How a model is built and the shape of its input.

    ``digest`` says whether its ONNX file has the same one, ``onnx`` whether torch's exporter writes
    it without an operator that is not read.
    """

    make: Callable[[], nn.Module]
    shape: Shape
    digest: bool = True
    onnx: bool = True


CASES = {
    # The exporter folds a normalisation into the linear layer or kernel before, rounded to float32.
    "batch norm mlp": Case(NormalisedMlp, (4,), digest=False),
    "acas": Case(lambda: Acas(8, 3), (1, 1, 5)),
    "batch norm cnn": Case(NormalisedCnn, (1, 5, 5), digest=False),
    "residual": Case(Residual, (4,)),
    "sdf": Case(Sdf, (3,)),
    "monotone": Case(Monotone, (3,)),
    "actor": Case(Actor, (3,)),
    "sequence": Case(Sequence, (2, 9), digest=False),
    "moved": Case(Moved, (4, 5, 2), digest=False),
    "panorama": Case(Panorama, (1, 4, 5)),
    "broadcasting": Case(Broadcasting, (3,)),
    "pool of odd sizes": Case(lambda: pooled(nn.MaxPool2d(2, 2, ceil_mode=True)), IMAGE),
    "padded pool of odd sizes": Case(lambda: pooled(nn.MaxPool2d(3, 3, 1, ceil_mode=True)), IMAGE),
    "spread pool of odd sizes": Case(
        lambda: pooled(nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True)), IMAGE
    ),
    "pool of sequences": Case(lambda: sequence(nn.MaxPool1d(3, 2, 1, ceil_mode=True)), (1, 9)),
    "adaptive maxima": Case(lambda: pooled(nn.AdaptiveMaxPool2d((2, 4))), IMAGE),
    "global maxima": Case(lambda: pooled(nn.AdaptiveMaxPool2d(1)), IMAGE),
    "global maxima of sequences": Case(lambda: sequence(nn.AdaptiveMaxPool1d(1)), (1, 9)),
    "maxima over axes": Case(Greatest, IMAGE),
    "adaptive means": Case(lambda: pooled(nn.AdaptiveAvgPool2d((2, None))), IMAGE),
}


def built(case: Case) -> nn.Module:
    torch.manual_seed(4)
    return case.make().eval()


def doors(model: nn.Module, shape: Shape, folder: Path, *, onnx: bool = True) -> dict[str, Network]:
    """What every door reads."""
    x = torch.randn(2, *shape)
    torch.export.save(torch.export.export(model, (x,)), folder / "model.pt2")
    found = {
        "module": network_of(model, shape),
        "program": open_network(folder / "model.pt2"),
    }
    if not onnx:
        return found
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), folder / "model.onnx", dynamo=True, verbose=False)
    return {**found, "onnx": open_network(folder / "model.onnx")}


def steepest(network: Network) -> float:
    """The greatest slope seen, by central differences in float64."""
    x = np.random.default_rng(0).normal(size=(20, network.size_in))
    eye = 1e-5 * np.eye(network.size_in)
    jacobians = [
        (forward(network, p + eye) - forward(network, p - eye)).reshape(len(eye), -1) / 2e-5
        for p in x
    ]
    return max(float(np.linalg.norm(j, 2)) for j in jacobians)


@pytest.mark.parametrize("name", CASES)
def test_three_doors_one_network_one_bound(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = built(case)
    found = doors(model, case.shape, tmp_path, onnx=case.onnx)
    x = torch.randn(6, *case.shape)
    with torch.no_grad():
        truth = model(x).numpy()
    for door, network in found.items():
        np.testing.assert_allclose(
            forward(network, x.numpy()), truth, rtol=2e-5, atol=2e-5, err_msg=door
        )
    certificate = certify(found["module"])
    # Where all is affine, differences come as near as they are rounded.
    assert certificate.lip * (1.0 + 1e-9) >= steepest(found["module"])
    verify(certificate, model)
    assert found["program"].digest() == found["module"].digest()
    onnx = found.get("onnx", found["module"])
    assert (onnx.digest() == found["module"].digest()) == case.digest
    if not case.digest:
        assert certify(onnx).lip == pytest.approx(certificate.lip, rel=1e-5)
    plain = getattr(model, "plain", None)
    if plain is not None:
        assert certify(plain(), case.shape).lip == pytest.approx(certificate.lip, rel=1e-5)


@pytest.mark.slow
def test_a_network_of_the_size_of_acas_xu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Acas(50, 6).eval()
    found = doors(model, (1, 1, 5), tmp_path)
    assert len({network.digest() for network in found.values()}) == 1
    certificate = certify(found["module"])
    assert certificate.lip >= steepest(found["module"])
    assert certify(model.plain(), (1, 1, 5)).lip == pytest.approx(certificate.lip, rel=1e-5)
