"""Networks as data: exact matrices, merged maps and their error bounds, digests, files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.networks.chain import read_network
from admm_lip.networks.layers import AffineMap
from admm_lip.networks.network import LayerSpec, Network, merged
from admm_lip.networks.storage import load_network, save_network

LINEAR = LayerSpec("linear", "in", {})


def as_affine(module: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and bias of an affine torch module, by applying it to the unit vectors."""
    module = module.double()
    size = int(np.prod(shape))
    with torch.no_grad():
        bias = module(torch.zeros(1, *shape, dtype=torch.float64)).reshape(-1)
        images = module(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    return (images.reshape(size, -1) - bias).T.numpy(), bias.numpy()


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 2),
    out=st.integers(1, 2),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
    seed=st.integers(0, 99),
)
def test_the_matrix_of_a_convolution_is_torchs(
    groups: int,
    per_group: int,
    out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: Any,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (groups * per_group, 7, 8)
    conv = nn.Conv2d(
        shape[0],
        out * groups,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    chain = read_network(nn.Sequential(conv, nn.Flatten()), shape).chain()
    matrix, bias = as_affine(conv, shape)
    assert chain.errors == (0.0,)
    assert set(np.unique(chain.weights[0])) <= {0.0, *conv.weight.detach().numpy().ravel()}
    np.testing.assert_allclose(chain.weights[0], matrix, atol=1e-14)
    np.testing.assert_allclose(chain.biases[0], bias, atol=1e-14)


@pytest.mark.parametrize("kernel", [(3, 3), (3, 5), (1, 3)])
def test_same_padding_is_torchs(kernel: tuple[int, int]) -> None:
    conv = nn.Conv2d(2, 3, kernel, padding="same", dilation=(1, 2))
    chain = read_network(nn.Sequential(conv), (2, 6, 5)).chain()
    np.testing.assert_allclose(chain.weights[0], as_affine(conv, (2, 6, 5))[0], atol=1e-14)


@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    include=st.booleans(),
    divisor=st.sampled_from([None, 5]),
)
def test_the_matrix_of_an_average_pool_is_torchs(
    kernel: int, stride: int, padding: int, include: bool, divisor: int | None
) -> None:
    pool = nn.AvgPool2d(
        kernel,
        stride,
        min(padding, kernel // 2),
        count_include_pad=include,
        divisor_override=divisor,
    )
    chain = read_network(nn.Sequential(pool), (2, 6, 7)).chain()
    matrix, _ = as_affine(pool, (2, 6, 7))
    np.testing.assert_allclose(chain.weights[0], matrix, atol=1e-15)


def exact_product(a: np.ndarray, b: np.ndarray) -> list[list[Fraction]]:
    def row(values: Any) -> list[Fraction]:
        return [Fraction(float(v)) for v in values]

    columns = [row(column) for column in b.T]
    return [
        [sum((x * y for x, y in zip(row(r), c, strict=True)), Fraction(0)) for c in columns]
        for r in a
    ]


@given(st.integers(0, 50), st.sampled_from([1e-9, 1.0, 1e9]))
def test_the_error_bound_of_a_merged_map_covers_the_exact_product(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = scale * rng.standard_normal((3, 5)), rng.standard_normal((5, 4))
    p, q = rng.standard_normal(3), scale * rng.standard_normal(5)
    both = merged(AffineMap(a, p, 0.0, (3,)), AffineMap(b, q, 0.0, (5,)))
    exact = exact_product(a, b)
    squares = [
        (Fraction(float(both.matrix[i, j])) - exact[i][j]) ** 2 for i in range(3) for j in range(4)
    ]
    off = float(sum(squares)) ** 0.5
    assert off <= both.error <= 1e-12 * np.linalg.norm(a) * np.linalg.norm(b)
    bias = exact_product(a, q[:, None])
    for i in range(3):
        exact_bias = bias[i][0] + Fraction(float(p[i]))
        assert abs(Fraction(float(both.bias[i])) - exact_bias) <= both.bias_error


def test_a_rounded_average_and_merged_layers_state_their_error() -> None:
    thirds = read_network(nn.Sequential(nn.AvgPool2d(3)), (1, 6, 6)).chain()
    halves = read_network(nn.Sequential(nn.AvgPool2d(2)), (1, 6, 6)).chain()
    deep = read_network(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.ReLU())).chain()
    assert halves.errors == (0.0,)
    off = (Fraction(1, 9) - Fraction(1.0 / 9.0)) ** 2 * np.count_nonzero(thirds.weights[0])
    assert float(off) ** 0.5 <= thirds.errors[0] < 1e-15
    assert deep.errors[0] > 0.0
    assert deep.errors[1] == 0.0
    assert deep.names == (("0", "1"), ())


def test_a_chain_starts_and_ends_with_an_affine_map() -> None:
    chain = read_network(nn.Sequential(nn.Tanh(), nn.Linear(3, 2), nn.ReLU(), nn.Sigmoid())).chain()
    assert chain.widths == (3, 3, 2, 2, 2)
    np.testing.assert_array_equal(chain.weights[0], np.eye(3))
    assert [spec.kind for spec in chain.activations] == ["tanh", "relu", "sigmoid"]
    assert chain.slopes[2].beta.tolist() == [0.25, 0.25]


def test_a_leaky_relu_of_slope_one_is_no_activation() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(1.0), nn.Linear(2, 1))
    assert read_network(model).chain().widths == (3, 1)


def test_the_digest_is_of_the_function_not_of_names_or_dtype() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    digest = read_network(model).digest()
    wrapped = nn.Sequential(nn.Flatten(), nn.Sequential(model), nn.Identity())
    assert read_network(wrapped, (1, 2, 2)).digest() == digest
    assert read_network(model.double()).digest() == digest
    model[0].weight.data[0, 0] = torch.nextafter(model[0].weight.data[0, 0], torch.tensor(9.0))
    assert read_network(model).digest() != digest


def test_the_digest_sees_kinds_options_biases_and_image_sizes() -> None:
    def net(slope: float, size: int = 4) -> Network:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(slope))
        return read_network(model, (1, size, size))

    assert net(0.1).digest() == net(0.1).digest()
    assert len({net(0.1).digest(), net(0.2).digest(), net(0.1, 5).digest()}) == 3
    model = nn.Sequential(nn.Linear(2, 2))
    before = read_network(model).digest()
    model[0].bias.data += 1.0
    assert read_network(model).digest() != before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].bias.data[1] = value
    with pytest.raises(NetworkError, match=r"2\.bias: holds a value that is NaN or infinite"):
        read_network(model)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)), None, "1: expected an input of 3 feat"),
        (nn.Sequential(nn.Conv2d(1, 1, 3)), None, "does not determine it; give input_shape"),
        (nn.Sequential(nn.Conv2d(2, 1, 3)), (1, 5, 5), r"expected an input of shape \(2, height"),
        (nn.Sequential(nn.Conv2d(1, 1, 9)), (1, 5, 5), "a window of 9x9 does not fit"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(3, 1)), (1, 5, 5), "put a Flatten before it"),
        (nn.Sequential(nn.Linear(3, 2)), (4,), "expected an input of 3 features"),
        (nn.Sequential(nn.Linear(3, 2)), (0,), "input_shape: expected sizes > 0"),
        (nn.Sequential(nn.ReLU()), None, "a network without affine layers"),
        (nn.Sequential(nn.Conv2d(3, 64, 3)), (3, 224, 224), "above the limit"),
    ],
)
def test_shapes_that_do_not_chain_are_refused(
    model: nn.Module, shape: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(NetworkError, match=message):
        read_network(model, shape).chain()


def test_json_and_folder_round_trips(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.GELU("tanh"),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    network = read_network(model, (1, 4, 4))
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.digest() == network.digest()
    assert loaded.layers == network.layers
    assert loaded.input_shape == (1, 4, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "architecture.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "expected a JSON object with format 1, got 99"),
        (lambda d: d.update(input_shape=[-1]), "input_shape: expected sizes > 0"),
        (lambda d: d.update(layers=3), "layers: expected a list"),
        (lambda d: d["layers"][0].pop("kind"), r"layers\[0\]: expected kind, name and options"),
        (lambda d: d["layers"][0].update(name=3), r"layers\[0\]: expected two strings"),
        (lambda d: d["layers"][0].update(kind="lstm"), "layer kind 'lstm' is not supported"),
        (lambda d: d["layers"][0].update(name="x"), "x: its weight is missing"),
        (lambda d: d["layers"][1].update(options={"negative_slope": "a"}), "expected a finite num"),
        (lambda d: d["layers"][1].update(name="in"), "layers: expected distinct names"),
    ],
)
def test_an_edited_architecture_is_refused_by_field(change: Any, message: str) -> None:
    layers = (LINEAR, LayerSpec("leaky_relu", "act", {"negative_slope": 0.1}))
    arrays = {"in.weight": np.ones((2, 3))}
    data = json.loads(json.dumps(Network(layers, arrays).to_json()))
    change(data)
    with pytest.raises(NetworkError, match=message):
        Network.from_json(data, arrays).chain()


def test_damaged_folders_are_refused_by_file(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"expected a file architecture\.json"):
        load_network(tmp_path)
    save_network(Network((LINEAR,), {"in.weight": np.ones((2, 3))}), tmp_path)
    weights = tmp_path / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    with pytest.raises(NetworkError, match=r"weights\.safetensors: truncated"):
        load_network(tmp_path)
    weights.write_bytes(content)
    (tmp_path / "architecture.json").write_text("{")
    with pytest.raises(NetworkError, match=r"architecture\.json: not a JSON file"):
        load_network(tmp_path)


def test_options_and_arrays_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(UnsupportedModule, match="linear takes the options"):
        LayerSpec("linear", "a", {"stride": 1})
    pool = {"stride": [1, 1], "padding": [0] * 4, "count_include_pad": True}
    with pytest.raises(UnsupportedModule, match="kernel_size cannot be"):
        LayerSpec("avg_pool2d", "a", {**pool, "kernel_size": [0, 1], "divisor_override": None})
    with pytest.raises(NetworkError, match="expected floating-point numbers, got int64"):
        Network((LINEAR,), {"in.weight": np.ones((2, 3), dtype=np.int64)})
    with pytest.raises(NetworkError, match=r"in\.bias: expected shape \(2,\)"):
        Network((LINEAR,), {"in.weight": np.ones((2, 3)), "in.bias": np.ones(3)}).chain()
