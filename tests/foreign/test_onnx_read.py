"""ONNX chains as other tools write them, against onnx's reference implementation."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_build import Node, evaluate, forward, onnx_model, seeded, write

from admm_lip import certify
from admm_lip.foreign import open_network
from admm_lip.networks.layers import AFFINE

R = seeded(1)
W = R.normal(size=(4, 6)).astype("f4")
V = R.normal(size=(3, 4)).astype("f4")
B = R.normal(size=4).astype("f4")
K = R.normal(size=(4, 2, 3, 2)).astype("f4")
C = R.normal(size=4).astype("f4")
HEAD = R.normal(size=(2, 100)).astype("f4")


def check(
    folder: Path, nodes: list[Node], arrays: dict[str, np.ndarray], shape: tuple[int, ...]
) -> list[str]:
    """Read, compare outputs with the reference, return the kinds of the layers."""
    model = onnx_model(nodes, arrays, ["batch", *shape])
    network = open_network(write(model, folder))
    x = seeded(2).normal(size=(5, *shape)).astype("f4")
    np.testing.assert_allclose(forward(network, x), evaluate(model, x), rtol=2e-5, atol=2e-5)
    return [spec.kind for spec in network.layers]


DENSE = {
    "gemm, both transposed or not": [
        ("Gemm", ["x", "WT", "B"], {}),
        ("Relu", ["v0"], {}),
        ("Gemm", ["v1", "V"], {"transB": 1}),
    ],
    "gemm with factors": [
        ("Gemm", ["x", "W", "B"], {"transB": 1, "alpha": 0.3, "beta": -1.7}),
        ("Tanh", ["v0"], {}),
        ("Gemm", ["v1", "V", "one"], {"transB": 1, "beta": 0.5}),
    ],
    "matmul and add, in either order": [
        ("MatMul", ["x", "WT"], {}),
        ("Add", ["B", "v0"], {}),
        ("Sigmoid", ["v1"], {}),
        ("MatMul", ["v2", "VT"], {}),
        ("Add", ["v3", "one"], {}),
    ],
    "two biases": [
        ("Gemm", ["x", "W", "B"], {"transB": 1}),
        ("Add", ["v0", "B"], {}),
        ("Relu", ["v1"], {}),
    ],
    "activations": [
        ("Gemm", ["x", "W"], {"transB": 1}),
        ("LeakyRelu", ["v0"], {}),
        ("Elu", ["v1"], {"alpha": 0.4}),
        ("Softplus", ["v2"], {}),
        ("Gelu", ["v3"], {"approximate": "tanh"}),
        ("Clip", ["v4", "low", "one"], {}),
        ("Clip", ["v5", "zero"], {}),
    ],
    "things that do nothing": [
        ("Identity", ["x"], {}),
        ("Dropout", ["v0"], {}),
        ("Reshape", ["v1", "flat"], {}),
        ("Gemm", ["v2", "W"], {"transB": 1}),
        ("Flatten", ["v3"], {"axis": -1}),
        ("Dropout", ["v4", "half", "no"], {"seed": 3}),
    ],
    "a transposed constant": [
        ("Transpose", ["V"], {"perm": [1, 0]}),
        ("Gemm", ["x", "W"], {"transB": 1}),
        ("Identity", ["v0"], {}),
        ("MatMul", ["v1", "v2"], {}),
    ],
    "normalised in front": [
        ("Sub", ["x", "mean"], {}),
        ("Div", ["v0", "std"], {}),
        ("Mul", ["v1", "two"], {}),
        ("Gemm", ["v2", "W", "B"], {"transB": 1}),
    ],
    "a softplus of another beta": [
        ("Gemm", ["x", "W"], {"transB": 1}),
        ("Mul", ["two", "v0"], {}),
        ("Softplus", ["v1"], {}),
        ("Div", ["v2", "two"], {}),
        ("Sub", ["one", "v3"], {}),
    ],
    "scaled in the middle": [
        ("Gemm", ["x", "W"], {"transB": 1}),
        ("Mul", ["v0", "B"], {}),
        ("Relu", ["v1"], {}),
        ("Div", ["v2", "two"], {}),
        ("MatMul", ["v3", "VT"], {}),
    ],
}
ARRAYS = {
    "W": W,
    "WT": W.T.copy(),
    "V": V,
    "VT": V.T.copy(),
    "B": B,
    "one": np.float32(1),
    "two": np.array([2.0], "f4"),
    "low": np.float32(-0.3),
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "no": np.array(False),
    "flat": np.array([-1, 6]),
    "mean": R.normal(size=(1, 6)).astype("f4"),
    "std": R.uniform(0.1, 3, size=6).astype("f4"),
}


def used(nodes: list[Node]) -> dict[str, np.ndarray]:
    names = {name for _, inputs, _ in nodes for name in inputs}
    return {name: array for name, array in ARRAYS.items() if name in names}


@pytest.mark.parametrize("name", [n for n in DENSE if n != "things that do nothing"])
def test_a_dense_chain_is_read(tmp_path: Path, name: str) -> None:
    check(tmp_path, DENSE[name], used(DENSE[name]), (6,))


def test_what_does_nothing_leaves_no_layer(tmp_path: Path) -> None:
    nodes = DENSE["things that do nothing"]
    arrays = {k: v for k, v in used(nodes).items() if k != "no"}
    nodes = [n if "no" not in n[1] else (n[0], ["v4", "half"], n[2]) for n in nodes]
    assert check(tmp_path, nodes, arrays, (6,)) == ["linear"]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 2], "dilations": [1, 2]},
        {"auto_pad": "VALID", "kernel_shape": [3, 2]},
        {"dilations": [2, 3], "pads": [1, 1, 1, 1]},
    ],
    ids=str,
)
def test_convolutions(tmp_path: Path, attributes: dict[str, object]) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "K", "C"], attributes),
        ("Relu", ["v0"], {}),
        ("Conv", ["v1", "D"], {"group": 4}),
        ("Add", ["v2", "E"], {}),
    ]
    arrays = {"K": K, "C": C, "D": R.normal(size=(4, 1, 2, 2)).astype("f4")}
    kinds = check(tmp_path, nodes, {**arrays, "E": C.reshape(4, 1, 1)}, (2, 7, 8))
    assert kinds == ["conv2d", "relu", "conv2d"]  # the addition is the second one's bias


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [1, 0, 1, 1], "count_include_pad": 1, "strides": [2, 2]},
        {"auto_pad": "VALID", "strides": [2, 3]},
    ],
    ids=str,
)
def test_average_pools(tmp_path: Path, attributes: dict[str, object]) -> None:
    nodes: list[Node] = [("AveragePool", ["x"], {"kernel_shape": [3, 2], **attributes})]
    assert check(tmp_path, nodes, {}, (2, 7, 8)) == ["avg_pool2d"]


def test_an_automatic_pad_of_a_pool_counts_what_lies_inside(tmp_path: Path) -> None:
    nodes: list[Node] = [("AveragePool", ["x"], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"})]
    network = open_network(write(onnx_model(nodes, {}, [1, 1, 3, 3]), tmp_path))
    ones = np.ones((1, 9))
    np.testing.assert_allclose(forward(network, ones), ones)


@pytest.mark.parametrize("form", ["constant", "computed", "value_ints", "copied"])
def test_reshapes_that_flatten(tmp_path: Path, form: str) -> None:
    conv: Node = ("Conv", ["x", "K"], {})
    nodes: dict[str, list[Node]] = {
        "constant": [conv, ("Reshape", ["v0", "flat"], {}), ("Gemm", ["v1", "H"], {"transB": 1})],
        "value_ints": [
            conv,
            ("Constant", [], {"value_ints": [0, -1]}),
            ("Reshape", ["v0", "v1"], {}),
            ("Gemm", ["v2", "H"], {"transB": 1}),
        ],
        "copied": [
            conv,
            ("Reshape", ["v0", "grid"], {}),
            ("Flatten", ["v1"], {}),
            ("Gemm", ["v2", "H"], {"transB": 1}),
        ],
        "computed": [
            conv,
            ("Shape", ["v0"], {}),
            ("Gather", ["v1", "first"], {}),
            ("Unsqueeze", ["v2", "axes"], {}),
            ("Concat", ["v3", "rest"], {"axis": 0}),
            ("Reshape", ["v0", "v4"], {}),
            ("Gemm", ["v5", "H"], {"transB": 1}),
        ],
    }
    arrays = {
        "K": K,
        "H": HEAD[:, :60],
        "flat": np.array([-1, 60]),
        "grid": np.array([0, 0, 3, 5]),
        "first": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
    }
    names = {name for _, inputs, _ in nodes[form] for name in inputs}
    kinds = check(tmp_path, nodes[form], {k: v for k, v in arrays.items() if k in names}, (2, 5, 6))
    assert kinds == ["conv2d", "flatten", "linear"]


def test_a_vector_reshaped_to_an_image_before_the_first_layer_is_an_image(tmp_path: Path) -> None:
    nodes: list[Node] = [("Reshape", ["x", "image"], {}), ("Conv", ["v0", "K"], {})]
    arrays = {"image": np.array([-1, 2, 5, 6]), "K": K}
    assert check(tmp_path, nodes, arrays, (60,)) == ["reshape", "conv2d"]
    vector, image = (
        open_network(write(onnx_model(n, {**arrays}, [1, *shape]), tmp_path))
        for n, shape in ((nodes, (60,)), ([("Conv", ["x", "K"], {})], (2, 5, 6)))
    )
    assert vector.digest() == image.digest()


@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 6), (60,)])
def test_normalisation_before_a_flatten(tmp_path: Path, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    nodes: list[Node] = [
        ("Sub", ["x", "mean"], {}),
        ("Div", ["v0", "std"], {}),
        ("Flatten", ["v1"], {}),
        ("Gemm", ["v2", "H"], {"transB": 1}),
    ]
    scalars = {"mean": np.float32(0.1307), "std": np.float32(0.3081)}
    kinds = check(tmp_path, nodes, {**scalars, "H": HEAD[:, :size]}, shape)
    flat = ["flatten"] * (len(shape) > 1)
    assert kinds == ["elementwise", "elementwise", *flat, "linear"]
    for form in ((shape[0], *(1 for _ in shape[1:])), (1, *shape), shape[-1:]):
        arrays = {k: (v * (1 + seeded(3).random(form))).astype("f4") for k, v in scalars.items()}
        assert check(tmp_path, nodes, {**arrays, "H": HEAD[:, :size]}, shape) == kinds


STD = np.array([0.3081, -0.7, 3.0, 2.0], "f4")
MEAN = np.array([0.1, 0.2, 1e-9, 0.5], "f4")


@pytest.mark.parametrize("behind", [False, True])
def test_what_constants_lose_by_rounding_is_kept_with_the_layer(
    tmp_path: Path, behind: bool
) -> None:
    nodes: list[Node] = [
        ("Sub", ["x", "mean"], {}),
        ("Div", ["v0", "std"], {}),
        ("Relu", ["v1"], {}),
    ]
    if behind:
        nodes = [("Relu", ["x"], {}), ("Sub", ["v0", "mean"], {}), ("Div", ["v1", "std"], {})]
    arrays = {"std": STD, "mean": MEAN}
    chain = open_network(write(onnx_model(nodes, arrays, [1, 4]), tmp_path)).chain()
    k = 1 if behind else 0
    exact = [1 / Fraction(float(s)) for s in STD]
    lost = [Fraction(float(v)) - e for v, e in zip(np.diag(chain.weights[k]), exact, strict=True)]
    off = [
        Fraction(float(b)) + Fraction(float(m)) * e
        for b, m, e in zip(chain.biases[k], MEAN, exact, strict=True)
    ]
    assert 0 < sum(e * e for e in lost) <= Fraction(chain.errors[k]) ** 2 < Fraction(1, 2**98)
    assert 0 < max(abs(e) for e in off) <= Fraction(chain.bias_errors[k]) < Fraction(1, 2**50)
    assert chain.weights[k][3, 3] == 0.5


def test_constants_that_floats_hold_have_no_error(tmp_path: Path) -> None:
    nodes: list[Node] = [("Sub", ["x", "mean"], {}), ("Div", ["v0", "std"], {})]
    arrays = {"std": np.array([2.0, -0.5], "f4"), "mean": np.array([0.1, 0.2], "f4")}
    chain = open_network(write(onnx_model(nodes, arrays, [1, 2]), tmp_path)).chain()
    assert (chain.errors, chain.bias_errors) == ((0.0,), (0.0,))


def test_float32_parameters_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """The slope that runs is 1.10000002384, not the 1.1 that was written: 2.2e-8 above it."""
    nodes: list[Node] = [("LeakyRelu", ["x"], {"alpha": 1.1}), ("Clip", ["v0", "a", "b"], {})]
    arrays = {"a": np.float32(-0.1), "b": np.float32(0.7)}
    network = open_network(write(onnx_model(nodes, arrays, [1, 4]), tmp_path))
    stored = [float(np.float32(v)) for v in (1.1, -0.1, 0.7)]
    assert dict(network.layers[0].options) == {"negative_slope": stored[0]}
    assert dict(network.layers[1].options) == {"min_val": stored[1], "max_val": stored[2]}
    assert certify(network).lip >= stored[0] > 1.1


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("raw", [True, False])
def test_every_float_type_is_read_exactly(tmp_path: Path, dtype: str, raw: bool) -> None:
    weight = W.astype(dtype)
    model = onnx_model([("Gemm", ["x", "W"], {"transB": 1})], {"W": weight}, [1, 6], dtype)
    if not raw:
        tensor = model.graph.initializer[0]
        flat = weight.ravel()
        tensor.CopyFrom(onnx.helper.make_tensor("W", tensor.data_type, weight.shape, flat.tolist()))
        assert not tensor.HasField("raw_data")
    network = open_network(write(model, tmp_path))
    assert network.arrays["n0.weight"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(network.arrays["n0.weight"], weight)


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    model = onnx_model([("Gemm", ["x", "W"], {"transB": 1})], {"W": W}, [1, 6])
    tensor = model.graph.initializer[0]
    tensor.data_type, tensor.raw_data = 16, (W.view("<u4") >> 16).astype("<u2").tobytes()
    network = open_network(write(model, tmp_path))
    expected = (W.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")
    np.testing.assert_array_equal(network.arrays["n0.weight"], expected)


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    model = onnx_model([("Gemm", ["x", "W"], {"transB": 1})], {"W": W}, ["batch", 6])
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == W.nbytes
    np.testing.assert_array_equal(open_network(path).arrays["n0.weight"], W)


def test_layers_go_by_the_names_of_their_nodes_and_stay_distinct(tmp_path: Path) -> None:
    model = onnx_model(DENSE["gemm, both transposed or not"], ARRAYS, [1, 6])
    del model.graph.initializer[6:]
    for node in model.graph.node:
        node.name = "same"
    names = [spec.name for spec in open_network(write(model, tmp_path)).layers]
    assert names == ["same", "same:2", "same:3"]


def test_every_affine_kind_is_reached_from_onnx(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "K"], {}),
        ("AveragePool", ["v0"], {"kernel_shape": [2, 5]}),
        ("Neg", ["v1"], {}),
        ("Transpose", ["v2"], {"perm": [0, 2, 3, 1]}),
        ("ReduceSum", ["v3", "axes"], {"keepdims": 0}),
        ("Flatten", ["v4"], {}),
        ("MatMul", ["v5", "VT"], {}),
    ]
    arrays = {"K": K, "VT": V.T.copy(), "axes": np.array([1])}
    assert set(AFFINE) <= set(check(tmp_path, nodes, arrays, (2, 5, 6)))
