"""Networks with skips, branches and concatenations: read, lowered to a chain, certified."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip import certify, export_onnx, verify
from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.foreign import open_network, read_exported
from admm_lip.foreign.open import network_of
from admm_lip.local import certify_local
from admm_lip.networks.activations import ACTIVATIONS
from admm_lip.networks.built import build_layer, build_module
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.forward import forward
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.networks.storage import load_network, save_network
from admm_lip.networks.tied import TiedBlock, TiedBlock2d


class Residual(nn.Module):
    """``y + F relu(G y)`` twice, between two linear layers."""

    def __init__(self, blocks: int = 2, width: int = 6, inplace: bool = False) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 5), nn.ReLU(inplace), nn.Linear(5, width))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        for block in self.blocks:
            y = y + block(y)
        return self.end(y)


class Densely(nn.Module):
    """Every layer hears all the values before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(7, 4), nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.a(x))
        second = torch.relu(self.b(torch.cat([x, first], dim=1)))
        return self.c(torch.cat([x, first, second], 1))


class Images(nn.Module):
    """A residual block of convolutions with a sort of channels, then a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv2d(1, 4, 3, padding=1)
        self.sort = MaxMin()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.end = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        return self.end((y + self.inner(self.sort(y))).flatten(1))


CASES = [
    (Residual(), (4,)),
    (Residual(3, 4, inplace=True), (4,)),
    (Densely(), (3,)),
    (Images(), (1, 4, 4)),
]
IDS = ["residual", "in place", "dense", "images"]


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model.double().eval()


def through_the_chain(network: Network, x: Tensor) -> Tensor:
    chain = network.chain()
    value = x.flatten(1)
    for k, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        value = value @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        if k < len(chain.activations):
            with torch.no_grad():
                value = build_layer(network, chain.activations[k])(value)
    return value


@pytest.mark.parametrize(("model", "shape"), CASES, ids=IDS)
def test_a_graph_computes_what_the_module_does(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = seeded(model)
    network = read_network(model, shape)
    assert not network.is_path
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(torch.from_numpy(forward(network, x.numpy())), expected)
    assert torch.allclose(through_the_chain(network, x), expected)


@pytest.mark.parametrize(("model", "shape"), CASES, ids=IDS)
def test_bounds_of_a_graph_hold_and_are_checked(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = seeded(model)
    found = certify(model, shape)
    verify(found, model)
    pairs = certify(model, shape, kind="pairwise", progress=False)
    verify(pairs, model)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, *shape, generator=generator).double()
    model.requires_grad_(False)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(x).flatten(2)
    steepest = float(torch.linalg.matrix_norm(jacobians, 2).max())
    assert steepest <= found.lip * (1.0 + 1e-9)
    assert steepest > 0.2 * found.lip
    matrix = pairs.pair_lips()
    for i, j in itertools.combinations(range(jacobians.shape[1]), 2):
        slope = (jacobians[:, i] - jacobians[:, j]).norm(dim=1).max()
        assert float(slope) <= matrix[i, j] * (1.0 + 1e-9)
    y = model(x[:5]).argmax(1)
    near = certify_local(model, x[:5], radius=0.05, y=y)
    verify(near, model)
    moved = 0.05 * nn.functional.normalize(torch.randn(400, *shape).double().flatten(1))
    for point, label, kept in zip(x[:5], y, near.robust, strict=True):
        same = model(point + moved.view(-1, *shape)).argmax(1) == label
        assert not bool(kept) or bool(same.all())


def graph_bound(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    """The matrix inequality of a graph, ``v = A w + B x, f = C w + D x``, slopes [0, 1]."""
    neurons, inputs = b.shape
    t, rho = cp.Variable(neurons, nonneg=True), cp.Variable()
    scale = cp.diag(t)
    lmi = cp.bmat(
        [
            [rho * np.eye(inputs) - d.T @ d, -b.T @ scale - d.T @ c],
            [-scale @ b - c.T @ d, 2.0 * scale - scale @ a - a.T @ scale - c.T @ c],
        ]
    )
    cp.Problem(cp.Minimize(rho), [lmi >> 0]).solve(solver="CLARABEL")
    return float(np.sqrt(rho.value))


def state_space(network: Network) -> tuple[np.ndarray, ...]:
    """``A, B, C, D`` by pushing unit vectors through the affine layers alone."""
    sources, sizes = network.sources(), network.shapes()
    neurons = [s.name for s in network.layers if s.kind in ACTIVATIONS]
    widths = [sizes["input"][0], *(sizes[name][0] for name in neurons)]
    starts = dict(zip(["input", *neurons], np.cumsum([0, *widths]), strict=False))
    total = sum(widths)
    values: dict[str, Any] = {"input": np.eye(total)[: widths[0]]}
    heard = []
    for spec in network.layers:
        given = [values[name] for name in sources[spec.name]]
        if spec.kind == "linear":
            values[spec.name] = network.arrays[f"{spec.name}.weight"] @ given[0]
        elif spec.kind == "add":
            values[spec.name] = sum(given)
        elif spec.kind == "concatenate":
            values[spec.name] = np.vstack(given)
        else:
            heard.append(given[0])
            start = starts[spec.name]
            values[spec.name] = np.eye(total)[start : start + len(given[0])]
    into, out = np.vstack(heard), values[network.layers[-1].name]
    n = widths[0]
    return into[:, n:], into[:, :n], out[:, n:], out[:, :n]


@st.composite
def graphs(draw: st.DrawFn) -> Network:
    """Random graphs of linear layers, ReLU and tanh, sums and concatenations."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = {"input": draw(st.integers(1, 4))}
    layers, arrays = [], {}
    for k in range(draw(st.integers(3, 9))):
        kind = draw(st.sampled_from(["linear", "relu", "tanh", "add", "concatenate"]))
        names = list(sizes)
        source = draw(st.sampled_from(names[-3:]))
        same = [n for n in names if sizes[n] == sizes[source]]
        other = draw(st.sampled_from(same if kind == "add" else names))
        name = f"{kind} {k}"
        given = (source, other) if kind in ("add", "concatenate") else (source,)
        layers.append(LayerSpec(kind, name, {}, given))
        sizes[name] = sum(sizes[n] for n in given) if kind == "concatenate" else sizes[source]
        if kind == "linear":
            sizes[name] = draw(st.integers(1, 4))
            weight = rng.standard_normal((sizes[name], sizes[source]))
            arrays[f"{name}.weight"] = weight / np.sqrt(sizes[source])
    last = layers[-1].name
    layers.append(LayerSpec("linear", "end", {}, (last,)))
    arrays["end.weight"] = rng.standard_normal((2, sizes[last]))
    return Network(tuple(layers), arrays, (sizes["input"],))


@settings(max_examples=60, deadline=None)
@given(network=graphs(), seed=st.integers(0, 1000))
def test_the_chain_of_a_random_graph_is_the_graph(network: Network, seed: int) -> None:
    x = torch.randn(3, *network.shapes()["input"], generator=torch.Generator().manual_seed(seed))
    x = x.double()
    expected = torch.from_numpy(forward(network, x.numpy()))
    assert torch.allclose(through_the_chain(network, x), expected, atol=1e-12)
    again = Network.from_json(json.loads(json.dumps(network.to_json())), network.arrays)
    assert again.digest() == network.digest()


@settings(max_examples=15, deadline=None)
@given(network=graphs())
def test_the_bound_is_the_optimum_of_the_graphs_own_inequality(network: Network) -> None:
    assume(any(spec.kind in ACTIVATIONS for spec in network.layers))
    parts = state_space(network)
    exact = graph_bound(*parts)
    found = certify(network)
    verify(found, network)
    assert exact * (1.0 - 1e-5) - 1e-6 <= found.lip <= exact * (1.0 + 1e-4) + 1e-6


@pytest.mark.parametrize(("model", "shape"), [CASES[0], CASES[2]], ids=["residual", "dense"])
def test_module_program_and_onnx_are_one_network(
    model: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = seeded(model)
    network = read_network(model, shape)
    x = torch.randn(2, *shape).double()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    export_onnx(model, tmp_path / "m.onnx")
    (tmp_path / "folder").mkdir()
    save_network(network, tmp_path / "folder")
    readings = [open_network(tmp_path / "m.pt2"), open_network(tmp_path / "m.onnx")]
    readings.append(load_network(tmp_path / "folder"))
    certificate = certify(network)
    for other in readings:
        assert other.digest() == network.digest()
        verify(certificate, other)


def test_a_residual_network_of_non_negative_weights_is_exact() -> None:
    model = seeded(Residual(3)).requires_grad_(False)
    for p in model.parameters():
        p.abs_()
    product = model.start.weight
    for block in model.blocks:
        product = product + block[2].weight @ (block[0].weight @ product)
    exact = float(torch.linalg.matrix_norm(model.end.weight @ product, 2))
    assert certify(model).lip == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", ["a carried", "value a", "segment 0", "segment 0 carried"])
def test_no_name_of_a_layer_changes_what_is_certified(name: str) -> None:
    arrays = {"a.weight": np.array([[3.0, 1.0], [1.0, -2.0]])}
    found = []
    for act in (name, "r"):
        layers = (spec("linear", "a"), spec("relu", act), spec("add", "s", act, "a"))
        network = Network(layers, arrays)
        x = torch.tensor([[1.0, -2.0]]).double()
        expected = torch.from_numpy(forward(network, x.numpy()))
        assert torch.allclose(through_the_chain(network, x), expected)
        found.append(certify(network).lip)
    assert found[0] == found[1]


def spec(kind: str, name: str, *inputs: str) -> LayerSpec:
    return LayerSpec(kind, name, {}, inputs)


def test_digests_tell_wirings_apart() -> None:
    arrays = {f"{n}.weight": np.eye(2) + k for k, n in enumerate("ab")}
    wirings = [
        (spec("linear", "a"), spec("relu", "r"), spec("linear", "b"), spec("add", "s", first, "b"))
        for first in ("a", "r", "b", "input")
    ]
    found = {Network(layers, arrays).digest() for layers in wirings}
    path = Network(wirings[0][:3], arrays).digest()
    assert len({*found, path}) == 5
    named = (spec("linear", "a", "input"), spec("relu", "r", "a"), spec("linear", "b", "r"))
    assert Network(named, arrays).digest() == path


class Overwriting(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(3, 3), nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.way == "module":
            return self.b(self.act(y)) + y
        if self.way == "view":
            return self.b(self.act(y.flatten(1))) + y
        if self.way == "sum":
            z = self.b(y)
            z += y
            return z + self.a(torch.relu_(y))
        return y * self.b(y)


@pytest.mark.parametrize("way", ["module", "view", "sum", "product"])
def test_what_overwrites_or_multiplies_values_is_refused_or_read_as_it_runs(way: str) -> None:
    """``torch.fx`` refuses it; what ``torch.export`` records is compared with what runs."""
    torch.manual_seed(0)
    model = Overwriting(way)
    with pytest.raises(UnsupportedModule):
        read_network(model)
    try:
        network = network_of(model)
    except UnsupportedModule:
        assert way != "module"
        return
    x = torch.randn(7, 3)
    with torch.no_grad():
        np.testing.assert_allclose(forward(network, x.numpy()), model(x), rtol=1e-5, atol=1e-5)


class OverwritingAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.view(-1, 3).mul_(5.0)
        z = y.unsqueeze(1).relu_()
        return y + z.squeeze(1)


def test_a_program_that_overwrites_a_view_is_refused() -> None:
    program = torch.export.export(OverwritingAView(), (torch.zeros(2, 3),))
    with pytest.raises(UnsupportedModule, match=r"mul_.*works in place on what .* used elsewhere"):
        read_exported(program)
    with pytest.raises(UnsupportedModule):
        certify(OverwritingAView())


def test_nodes_that_lead_nowhere_are_left_out_of_a_file(tmp_path: Path) -> None:
    layers = (spec("tanh", "t", "input"), spec("relu", "r", "input"), spec("add", "s", "r", "r"))
    ours = Network(layers, {}, (2,))
    export_onnx(ours, tmp_path / "dead.onnx")
    read = open_network(tmp_path / "dead.onnx")
    assert [layer.kind for layer in read.layers] == ["relu", "add"]
    assert certify(read).lip == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(("model", "shape"), CASES, ids=IDS)
def test_a_module_built_of_a_graph_is_the_graph(model: nn.Module, shape: tuple[int, ...]) -> None:
    network = network_of(seeded(model), shape)
    built = build_module(network)
    x = torch.randn(4, *shape, dtype=next(model.parameters()).dtype)
    torch.testing.assert_close(built(x), model(x))
    assert read_network(built, shape).digest() == network.digest()


@pytest.mark.parametrize("block", [TiedBlock(4, 3), TiedBlock2d(2, 3)])
def test_a_tied_block_is_built_with_one_weight(block: nn.Module, tmp_path: Path) -> None:
    shape = (4,) if isinstance(block, TiedBlock) else (2, 5, 4)
    network = network_of(block, shape)
    built = build_module(network)
    assert sum(p.ndim > 1 for p in built.parameters()) == 1
    assert read_network(built, shape).digest() == network.digest()
    with torch.no_grad():
        next(built.parameters()).mul_(2.0)
        next(block.parameters()).mul_(2.0)
    x = torch.randn(3, *shape)
    torch.testing.assert_close(built(x), block(x))
    moved = read_network(built, shape)
    save_network(moved, tmp_path)
    assert load_network(tmp_path).digest() == moved.digest()


def test_what_wants_a_path_says_so() -> None:
    with pytest.raises(UnsupportedModule, match="only chains of layers"):
        linear_layers(Residual())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((spec("linear", "a", "r"), spec("relu", "r")), "no layer before it"),
        ((spec("linear", "a"), spec("add", "s", "a", "input")), "expected equal ones"),
    ],
)
def test_a_cycle_and_shapes_that_do_not_fit_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        Network(layers, {"a.weight": np.ones((2, 3))}).shapes()


class Mismatch(nn.Module):
    """Two linear layers of 6 and 3 outputs, combined as the test says."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.a, self.b, self.combine = nn.Linear(4, 6), nn.Linear(4, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.a, self.b, x)


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda a, b, x: a(x) + b(x), r"^add: adds values of the shapes \(6,\), \(3,\)"),
        (lambda a, b, x: a(x) + torch.ones(5), r"\(5,\) does not broadcast to a value .*\(6,\)"),
        (lambda a, b, x: a(x) * torch.ones(2, 6), r"\(2, 6\) does not broadcast to a value"),
        (lambda a, b, x: a(b(x)), r"^a: expected an input of 4 features, got shape \(3,\)"),
        (lambda a, b, x: torch.fft.fft(a(x)).real, r"the function fft_fft\(\) is not supported"),
    ],
    ids=["values", "constant", "batch", "features", "unknown"],
)
def test_a_module_whose_parts_do_not_fit_is_refused_by_name(combine: Any, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        certify(Mismatch(combine))


@pytest.mark.parametrize(
    "inputs", [("a",), "a", [1, 2], None], ids=["tuple", "text", "numbers", "null"]
)
def test_odd_wiring_in_a_file_is_refused(inputs: Any) -> None:
    layer = {"kind": "linear", "name": "a", "options": {}, "inputs": inputs}
    data = {"format": 1, "input_shape": [3], "layers": [layer]}
    with pytest.raises(NetworkError):
        Network.from_json(data, {"a.weight": np.ones((2, 3))})


def test_joins_take_several_values_and_others_one() -> None:
    for kind, sources in (("add", ("input",)), ("relu", ("input", "input"))):
        with pytest.raises(UnsupportedModule, match="takes"):
            LayerSpec(kind, "x", {}, sources)
