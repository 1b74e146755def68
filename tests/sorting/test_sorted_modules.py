"""MaxMin and GroupSort2 as modules and as data: values, gradients, chains, files, refusals."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.networks.built import build_layer, build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import GroupSort2, HalfAbs, MaxMin
from admm_lip.networks.storage import load_network, save_network

SORTING = [MaxMin(), GroupSort2()]


@pytest.mark.parametrize("module", SORTING, ids=str)
@pytest.mark.parametrize("shape", [(3, 6), (0, 4), (2, 4, 3, 2), (1, 2, 5)])
def test_pairs_of_neighbours_are_sorted(module: MaxMin, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    pairs = x.reshape(shape[0], shape[1] // 2, 2, *shape[2:])
    expected = torch.sort(pairs, dim=2, descending=module.descending)[0].reshape(shape)
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x.transpose(0, 1).contiguous().transpose(0, 1)), expected)


@pytest.mark.parametrize("module", [*SORTING, HalfAbs()], ids=str)
def test_first_and_second_derivatives(module: nn.Module) -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use
@pytest.mark.parametrize("module", [MaxMin(), GroupSort2(), HalfAbs()])
def test_function_transforms(module: nn.Module) -> None:
    """jvp, jacrev, jacfwd, vmap over any axis and functional_call, against plain autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), module, nn.Linear(6, 3)).double()
    x, v = torch.randn(2, 5, 4).double()
    whole = torch.autograd.functional.jacobian(model, x)
    each = torch.stack([whole[k, :, k] for k in range(5)])
    single = lambda sample: model(sample[None])[0]  # noqa: E731
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(transform(single))(x), each)
        torch.testing.assert_close(transform(model)(x), whole)
    moved = torch.func.jvp(model, (x,), (v,))[1]
    torch.testing.assert_close(moved, torch.einsum("koi,ki->ko", each, v))
    assert torch.equal(
        torch.func.functional_call(model, dict(model.named_parameters()), x), model(x)
    )
    images = torch.randn(2, 3, 4, 5)
    for axis in range(4):
        samples = torch.func.vmap(module, in_dims=axis, out_dims=axis)
        if images.movedim(axis, 0).shape[2] % 2 == 0:
            apart = torch.stack([module(part) for part in images.unbind(axis)], axis)
            assert torch.equal(samples(images), apart)


def test_the_jacobian_permutes_even_at_ties() -> None:
    x = torch.tensor([[1.0, 1.0, 2.0, 3.0]], requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda v: MaxMin()(v[None])[0], x[0])
    assert torch.equal(jacobian.sum(0), torch.ones(4))
    assert torch.equal(jacobian @ jacobian.T, torch.eye(4))


@pytest.mark.parametrize("module", [*SORTING, HalfAbs()], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (4,)])
def test_odd_widths_are_refused(module: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{type(module).__name__}: expected .*even number of"):
        module(torch.zeros(shape))


def applied(network: Network, x: Tensor) -> Tensor:
    """The chain of matrices and per-neuron activations, applied as it stands."""
    chain = network.chain()
    value = x.flatten(1)
    for k, (w, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        value = value @ torch.from_numpy(w).T + torch.from_numpy(b)
        if k < len(chain.activations):
            value = build_layer(network, chain.activations[k])(value)
    return value


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "both": (
        nn.Sequential(nn.Linear(5, 6), MaxMin(), nn.Linear(6, 4), GroupSort2(), nn.Linear(4, 3)),
        (5,),
    ),
    "mixed": (
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), MaxMin(), nn.Linear(4, 2)),
        (5,),
    ),
    "images": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            MaxMin(),
            nn.AvgPool2d(2),
            GroupSort2(),
            nn.Flatten(),
            nn.Linear(16, 6),
            MaxMin(),
            nn.Linear(6, 2),
        ),
        (1, 6, 6),
    ),
    "in a row": (
        nn.Sequential(MaxMin(), GroupSort2(), nn.Linear(6, 4), HalfAbs(), MaxMin(), MaxMin()),
        (6,),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_chain_is_the_network(name: str, tmp_path: Path) -> None:
    module, shape = NETS[name]
    torch.manual_seed(0)
    module = module.double()
    x = torch.randn(50, *shape, dtype=torch.float64)
    network = read_network(module, shape)
    with torch.no_grad():
        assert torch.allclose(applied(network, x), module(x).flatten(1), rtol=0, atol=1e-14)
        assert torch.equal(build_module(network)(x), module(x))
    save_network(network, tmp_path)
    assert load_network(tmp_path).digest() == network.digest()


def test_the_slope_ranges_are_those_of_sums_and_differences() -> None:
    network = read_network(nn.Sequential(nn.Linear(3, 4), MaxMin(), nn.Linear(4, 1)))
    (slopes,) = network.chain().slopes
    assert slopes.alpha.tolist() == [1.0, 1.0, -1.0, -1.0]
    assert slopes.beta.tolist() == [1.0] * 4


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-200, 1e-6, 1.0, 1e6, 1e200]),
    spread=st.sampled_from([0.0, 5.0, 20.0]),
)
def test_what_rounding_takes_from_a_matrix_is_bounded(
    seed: int, scale: float, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    first = scale * rng.standard_normal((4, 3)) * np.exp(spread * rng.standard_normal((4, 3)))
    last = rng.standard_normal((2, 4)) * np.exp(spread * rng.standard_normal((2, 4)))
    layers = [LayerSpec("linear", "a", {}), LayerSpec("group_sort2", "s", {})]
    layers.append(LayerSpec("linear", "b", {}))
    chain = Network(tuple(layers), {"a.weight": first, "b.weight": last}).chain()
    exact = np.vectorize(Fraction, otypes=[object])
    f, g = exact(first), exact(last)
    before = np.concatenate([f[0::2] + f[1::2], f[0::2] - f[1::2]])
    after = np.concatenate([g[:, 0::2] + g[:, 1::2], g[:, 1::2] - g[:, 0::2]], axis=1) / 2
    for found, true, error in zip(chain.weights, (before, after), chain.errors, strict=True):
        lost = np.sum((exact(found) - true) ** 2)
        assert lost <= Fraction(error) ** 2


def test_float32_weights_lose_nothing() -> None:
    torch.manual_seed(1)
    assert read_network(build_mlp(50, 3, ModelConfig((20, 10), "max_min"))).chain().errors == (
        0.0,
        0.0,
        0.0,
    )


def test_the_two_orders_are_two_networks() -> None:
    digests = set()
    for kind in ("max_min", "group_sort2"):
        specs = (LayerSpec("linear", "a", {}), LayerSpec(kind, "s", {}))
        digests.add(Network(specs, {"a.weight": np.eye(2)}).digest())
    assert len(digests) == 2


def test_a_sort_that_sees_an_image_keeps_its_shape_in_the_digest() -> None:
    specs = (LayerSpec("max_min", "s", {}), LayerSpec("flatten", "f", {"size": None}))
    tall, wide = (Network(specs, {}, shape).digest() for shape in ((2, 4, 1), (4, 2, 1)))
    assert tall != wide


def _torchlip_sort(group_size: int = 2, factor: float = 1.0) -> nn.Module:
    """A stand-in with the name, place and settings of deel-torchlip's module."""

    class Sort(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.group_size, self._coefficient_lip = group_size, factor

        def forward(self, x: Tensor) -> Tensor:
            first, second = x[:, 0::2], x[:, 1::2]
            pairs = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], 2)
            return pairs.flatten(1) * self._coefficient_lip

    Sort.__name__, Sort.__module__ = "GroupSort2", "deel.torchlip.modules.activation"
    return Sort()


def test_torchlips_sort_is_read() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(_torchlip_sort()), nn.Linear(4, 2))
    network = read_network(model.double())
    assert [spec.kind for spec in network.layers] == ["linear", "group_sort2", "linear"]
    x = torch.randn(9, 3, dtype=torch.float64)
    assert torch.allclose(build_module(network)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"group_size": 4}, {"factor": 2.0}])
def test_torchlips_sort_with_other_settings_is_refused(change: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), _torchlip_sort(**change), nn.Linear(4, 2))
    with pytest.raises(UnsupportedModule, match=r"1 \(GroupSort2\): group_size=.*only 2 and 1"):
        read_network(model)


@pytest.mark.parametrize("kind", ["max_min", "group_sort2", "half_abs"])
def test_an_odd_width_is_refused_by_name(kind: str) -> None:
    specs = (LayerSpec("linear", "a", {}), LayerSpec(kind, "sort", {}))
    network = Network(specs, {"a.weight": np.ones((3, 2))})
    with pytest.raises(NetworkError, match=f"sort: {kind} works on pairs of features .* got 3"):
        network.chain()


def test_options_are_refused() -> None:
    with pytest.raises(UnsupportedModule, match=r"sort: max_min takes no options, got \['size'\]"):
        LayerSpec("max_min", "sort", {"size": 3})


def test_an_overflowing_sum_is_refused() -> None:
    specs = (LayerSpec("linear", "a", {}), LayerSpec("max_min", "sort", {}))
    network = Network(specs, {"a.weight": np.full((2, 1), 1.5e308)})
    with np.errstate(all="ignore"), pytest.raises(NetworkError, match="the sum of two weights ov"):
        network.chain()
