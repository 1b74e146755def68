"""Modules that torch.fx does not read: read by torch.export, or refused with both reasons."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.foreign import read_exported
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.forward import forward
from admm_lip.networks.refusals import NoBound


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)


class Sliced(Base):
    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.tanh(self.layer(x)).split([1, 2, 1], dim=1)
        return torch.stack([first[:, 0], 3.0 * rest[1].select(1, 0)], dim=1)


class Shared(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Mirrored(Base):
    def forward(self, x: Tensor) -> Tensor:
        left, right = self.layer(x).unbind(1)[:2]
        return torch.cat([x.flip(1), torch.stack([right, left], 1)], -1).narrow(1, 1, 4)


class AsIs(nn.Module):
    """A bare convolution of a weight, a view of images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x.view(-1, 1, 4, 4), self.weight, padding="same")
        return nn.functional.adaptive_avg_pool2d(x, 2)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Sliced(), (4,)),
        (Sliced(), None),
        (Shared(), None),
        (nn.Sequential(Doubled(3, 2), nn.ReLU()), None),
        (Mirrored().double(), None),
        (AsIs(), (16,)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
def test_a_module_that_fx_does_not_read_is_read(
    model: nn.Module, shape: tuple[int, ...] | None
) -> None:
    model.train()
    network = read_module(model, shape)
    x = torch.randn(5, *(network.input_shape or ()), dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        np.testing.assert_allclose(forward(network, x.numpy()), model(x), rtol=1e-5, atol=1e-5)
    assert model.training


class ByBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if len(x) < 100 else 100.0 * self.layer(x)


class ByValue(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() < 1e6 else 100.0 * self.layer(x)


class ByMean(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - x.mean(0)


class ByTracing(Base):
    """Something else where nobody records it."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 if torch.compiler.is_exporting() else 100.0
        return scale * self.layer(x)[:, :2]


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1.0
        return self.layer(x)[:, :2]


class Product(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * x[:, :1]


class Halved(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.half().float())


class OuterSum(Base):
    """Of the shapes (N,) and (N, 1): every sample's with every other's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :1] + x.sum(1)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (ByBatch(), r"fx.*; nor by torch.export \(UserError: Constraints violated"),
        (ByValue(), r"branches on its input.*; nor by torch.export \(GuardOnDataDependent"),
        (ByMean(), r"function sub\(\): combines 2 values.*nor by torch.export .* not the batch's"),
        (ByTracing(), "ByTracing: running it gives something else"),
        (Counting(), "is changed by running"),
        (Product(), r"aten.mul.Tensor\): combines linear and slice.*no Lipschitz constant"),
        (Halved(), r"aten.to.dtype\): dtype=6 is not handled"),
        (OuterSum(), r"node add \(aten.add.Tensor\): adds values of the shapes \(1,\), \(\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax2d()), "Softmax2d.*nor by torch.export"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_what_neither_reads_is_refused_with_both_reasons(model: nn.Module, match: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModule, match=re.compile(match, re.DOTALL)):
        read_module(model)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_an_unknown_shape_is_asked_for() -> None:
    with pytest.raises(NetworkError, match="give input_shape, so that"):
        read_module(AsIs())


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(h, h, h)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), r"1 \(LayerNorm\): divides every input"),
        (nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)), r"1 \(GroupNorm\): divides every"),
        (nn.Sequential(nn.InstanceNorm2d(4)), r"0 \(InstanceNorm2d\): divides every input"),
        (nn.Sequential(nn.LSTM(4, 4)), r"0 \(LSTM\): a recurrent cell multiplies values"),
        (nn.Sequential(nn.GRUCell(4, 4)), r"0 \(GRUCell\): a recurrent cell multiplies values"),
        (nn.Sequential(nn.Embedding(4, 4)), r"0 \(Embedding\): takes whole numbers"),
        (nn.TransformerEncoderLayer(4, 2), "attention multiplies values by each other"),
        (Attending(), "scaled_dot_product_attention.*attention multiplies values by each other"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_what_no_bound_can_be_had_of_is_refused_by_name(model: nn.Module, match: str) -> None:
    with pytest.raises(NoBound, match=match):
        read_module(model, (4,))


@pytest.mark.parametrize("model", [nn.LayerNorm(4), nn.GroupNorm(2, 4), Attending()])
def test_programs_of_them_are_refused_as_well(model: nn.Module) -> None:
    program = torch.export.export(model, (torch.zeros(2, 4),))
    with pytest.raises(NoBound, match=r"\(aten\..*\): (divides every input|attention)"):
        read_exported(program)


def test_batch_normalisation_in_training_mode_is_refused_in_a_program() -> None:
    program = torch.export.export(nn.BatchNorm1d(4).train(), (torch.zeros(2, 4),))
    with pytest.raises(UnsupportedModule, match=r"call model.eval\(\) if it counts"):
        read_exported(program)


def test_modules_may_be_read_by_several_threads() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_module, models))
    assert [f.digest() for f in found] == [read_module(model).digest() for model in models]
