"""Networks to read, ONNX files built node by node, and a forward pass in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.special import erf, expit
from torch import nn

from admm_lip.networks.network import LayerSpec, Network


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Viewed(nn.Module):
    """A forward of functions, flattened by ``x.size(0)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 5)
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x.view(x.size(0), -1))))


def _image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.LeakyReLU(0.02),
        nn.Conv2d(4, 3, (1, 3), padding="same", bias=False),
        nn.Softplus(),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.ELU(0.7),
        nn.Linear(4, 2),
    )


def _dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.Hardtanh(-0.1, 0.7),
        nn.Identity(),
        nn.Linear(6, 5),
        nn.GELU(),
        nn.Linear(5, 5),
        nn.GELU(approximate="tanh"),
        nn.Linear(5, 5),
        nn.Sigmoid(),
        nn.Linear(5, 5),
        nn.ReLU6(),
        nn.Linear(5, 3),
    )


# Name, how to build it, the shape of one input.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "image": (_image, (2, 8, 8)),
    "dense": (_dense, (7,)),
    "viewed": (Viewed, (1, 4, 4)),
    "affine": (lambda: nn.Sequential(nn.Linear(4, 2)), (4,)),
    "half": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).half(), (3,)),
    "double": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), (3,)),
}


def model_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(3)
    make, shape = MODELS[name]
    return make().eval(), shape


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _gelu(x: np.ndarray, options: Any) -> np.ndarray:
    if options["approximate"] == "none":
        return x * (1 + erf(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


FUNCTIONS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "relu": lambda x, o: np.maximum(x, 0.0),
    "leaky_relu": lambda x, o: np.where(x > 0, x, o["negative_slope"] * x),
    "elu": lambda x, o: np.where(x > 0, x, o["alpha"] * np.expm1(x)),
    "tanh": lambda x, o: np.tanh(x),
    "sigmoid": lambda x, o: expit(x),
    "softplus": lambda x, o: np.logaddexp(0.0, o["beta"] * x) / o["beta"],
    "hardtanh": lambda x, o: np.clip(x, o["min_val"], o["max_val"]),
    "gelu": _gelu,
    "silu": lambda x, o: x * expit(x),
}


def forward(network: Network, x: np.ndarray) -> np.ndarray:
    """The network on rows of flattened inputs, in float64, through its chain of matrices."""
    chain = network.chain()
    value = x.reshape(len(x), -1).astype(np.float64)
    for k, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        value = value @ weight.T + bias
        if k < len(chain.activations):
            spec: LayerSpec = chain.activations[k]
            value = FUNCTIONS[spec.kind](value, spec.options)
    return value


Node = tuple[str, Sequence[str], dict[str, Any]]


def onnx_model(
    nodes: Sequence[Node],
    arrays: dict[str, np.ndarray],
    shape: Sequence[int | str | None],
    dtype: Any = np.float32,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model from ``x``; node k is named ``n<k>`` and makes ``v<k>``, the last one ``y``."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = [
        helper.make_node(
            op, list(inputs), ["y" if k == len(nodes) - 1 else f"v{k}"], name=f"n{k}", **attributes
        )
        for k, (op, inputs, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def evaluate(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    """What onnx's own reference implementation computes."""
    source = str(model) if isinstance(model, Path) else model
    evaluator = ReferenceEvaluator(source)
    result = evaluator.run(None, {evaluator.input_names[0]: x})[0]
    return np.asarray(result, dtype=np.float64).reshape(len(x), -1)
