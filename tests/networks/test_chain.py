"""Reading torch modules: what is read computes the same, what cannot be read is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admm_lip.errors import UnsupportedModule
from admm_lip.networks import trace
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.network import Network


def evaluated(network: Network, x: Tensor) -> Tensor:
    """The chain's formula in float64, activations by torch."""
    chain = network.chain()
    value = x.double().flatten(1)
    for k, w in enumerate(chain.weights):
        value = value @ torch.from_numpy(w).T + torch.from_numpy(chain.biases[k])
        if k < len(chain.activations):
            spec = chain.activations[k]
            single = Network((spec,), {}, (value.shape[1],))
            value = build_module(single)(value)
    return value


class Functional(nn.Module):
    """Every call that is read as a module, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.ELU(), nn.Linear(6, 6)))
        self.act = nn.Tanh()
        self.head = nn.Linear(6, 3)
        self.unused = nn.LSTM(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.leaky_relu(self.conv(x), 0.2), 2)
        x = x.view(x.size(0), -1)
        x = self.act(self.body(x)).relu()
        x = F.dropout(torch.sigmoid(F.softplus(x, beta=2)), 0.5, training=self.training)
        x = F.gelu(x, approximate="tanh").reshape(x.shape[0], 6)
        return F.hardtanh(self.head(self.act(x)), -2.0, max_val=2.0).tanh().flatten(1)


MODELS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Linear(4, 3), (4,)),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.SiLU(), nn.Linear(3, 2)), (3, 2, 2)),
    (lambda: Functional().eval(), (1, 4, 4)),
    (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, groups=2, padding=(1, 0)),
            nn.AvgPool2d(2, 1, 1),
            nn.GELU(),
            nn.Conv2d(4, 3, 2, dilation=2, bias=False),
            nn.Flatten(),
            nn.Linear(18, 5),
            nn.LeakyReLU(1.5),
        ),
        (2, 7, 8),
    ),
]


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_the_chain_computes_what_the_module_computes(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(5, *shape, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    network = read_network(model, shape)
    expected = model(x).flatten(1)
    torch.testing.assert_close(evaluated(network, x), expected, rtol=1e-12, atol=1e-12)
    rebuilt = build_module(network)
    torch.testing.assert_close(rebuilt(x).flatten(1), expected, rtol=1e-12, atol=1e-12)
    assert read_network(rebuilt, shape).digest() == network.digest()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_read_exactly(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).to(dtype)
    chain = read_network(nn.Sequential(layer)).chain()
    np.testing.assert_array_equal(chain.weights[0], layer.weight.detach().double().numpy())


def test_a_parametrized_weight_is_read_as_it_acts() -> None:
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1)).eval()
    weight = read_network(model).chain().weights[0]
    np.testing.assert_array_equal(weight, layer.weight.detach().double().numpy())
    with pytest.raises(UnsupportedModule, match="0: its weight is parametrized; remove it with"):
        linear_layers(model)
    with pytest.raises(UnsupportedModule, match=r"in training mode.*call model\.eval\(\) first"):
        read_network(model.train())


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.scale = nn.Parameter(torch.ones(4))


class InPlaceBeside(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        F.relu_(h)
        return self.b(h)


class Shared(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.act(self.a(x)))


class Scaled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 / self.a(x)


class Product(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * x


class ControlFlow(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


class Softmax(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.a(x), dim=0)


class View(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.view(-1, 2, 2))


class TwoInputs(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


class FlattenBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.flatten(x))


class Dropping(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (InPlaceBeside(), r"the function relu_\(\): is used beside the layers"),
        (Shared(), "a: this module is used more than once"),
        (Scaled(), r"the function truediv\(\): divides a constant by a value, which is not affine"),
        (Product(), r"the function mul\(\): combines 2 values"),
        (ControlFlow(), "ControlFlow: its forward cannot be read as a chain of layers"),
        (Softmax(), "dim=0; only 1, the outputs of a vector"),
        (View(), r"the method \.view\(\): only a flatten is supported"),
        (TwoInputs(), r"the input x and the input y: expected one input"),
        (FlattenBatch(), r"flatten \(Flatten\): start_dim=0, end_dim=-1; only 1 and -1"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
            r"1 \(BatchNorm1d\): normalises by the batch that it is given",
        ),
        (nn.Sequential(Doubled(4, 4)), r"0 \(Doubled\) is not supported"),
        (Dropping(), r"dropout \(Dropout\): is in training mode, where it is random"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="reflect")), "padding_mode='reflect'"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode=True is not handled"),
        (nn.Sequential(nn.Linear(2, 2, device="meta")), "got torch.float32 on meta"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_anything_else_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        read_network(model, (4,))


def test_modules_with_forward_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    handle = model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(UnsupportedModule, match=r"0 \(Linear\): has forward hooks"):
        read_network(model)
    handle.remove()
    assert read_network(model).size_in == 2


def test_an_activation_module_may_be_used_twice() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act, nn.Linear(3, 1))
    assert read_network(model).chain().widths == (3, 3, 3, 1)


def _sequential(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *parts, nn.Linear(4, 2))


_SHARED = nn.Tanh()


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        (_sequential(nn.ReLU()), True),
        (_sequential(_SHARED, nn.Sequential(nn.Linear(4, 4), nn.Sequential()), _SHARED), True),
        (_sequential(nn.ReLU(inplace=True), nn.Dropout(), nn.Identity()), True),
        (nn.Sequential(), True),
        (_sequential(nn.Softplus(), nn.Tanh()), False),  # may be one activation written out
        (nn.Sequential(nn.ModuleDict()), False),
        (type("Sequential", (nn.Sequential,), {})(nn.Linear(4, 2)), False),
    ],
)
def test_a_sequential_is_listed_as_it_would_be_recorded(
    model: nn.Sequential, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (trace._listed(model) is not None) == listed
    if listed:
        found = trace.steps(model.eval())
        monkeypatch.setattr(trace, "_listed", lambda root: None)
        assert found == trace.steps(model)


def test_a_sequential_that_holds_itself_is_refused() -> None:
    model = _sequential()
    model.append(model)
    with pytest.raises(UnsupportedModule, match="RecursionError"):
        read_network(model)


def test_dropout_is_the_identity_once_evaluating() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.ReLU(), nn.Linear(3, 1))
    with_dropout = read_network(model.eval())
    without = read_network(nn.Sequential(model[0], model[2], model[3]))
    assert with_dropout.digest() == without.digest()


def test_linear_layers_are_those_of_the_chain() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2)))
    layers = linear_layers(model)
    assert [id(layer) for layer in layers] == [id(model[1]), id(model[2][1])]
    for layer, weight in zip(layers, read_network(model).chain().weights, strict=True):
        np.testing.assert_array_equal(layer.weight.detach().numpy(), weight)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()), r"0 \(Conv2d\): only networks whose"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "0 and 1 follow each other without"),
        (nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), "an activation comes first, last, or"),
        (tied(), "layers 0 and 1 .* share one weight"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        linear_layers(model)
