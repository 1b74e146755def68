"""Each activation as a module, an exported program and an ONNX file: one network, one bound."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from activation_cases import CASES, model_of
from torch import Tensor, nn

from admm_lip import certify, project, verify
from admm_lip.certificates.in_onnx import export_onnx
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.foreign.onnx_file import OnnxNode, serialise
from admm_lip.foreign.open import network_of
from admm_lip.networks.chain import read_network
from admm_lip.networks.forward import forward
from admm_lip.networks.network import Network

# Of these there is no module of torch's own.
OWN = ("clipped relu", "pair clip", "abs", "other hardsigmoid")
OPEN = [n for n in CASES if n not in OWN]
# The exporter to ONNX writes comparisons for Softshrink, which are refused by name.
COMPARED = ("softshrink",)


def exported(model: nn.Module, x: Tensor, path: Path) -> Network:
    torch.export.save(torch.export.export(model, (x,)), path)
    return open_network(path)


def traced(model: nn.Module, x: Tensor, path: Path, opset: int = 20) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), opset_version=opset, dynamo=False)
    return open_network(path)


def assert_one_network(module: nn.Module, *others: Network) -> None:
    own = read_network(module)
    for network in others:
        assert network.digest() == own.digest()
    verify(certify(module), others[0])


@pytest.mark.parametrize("name", [n for n in OPEN if n not in COMPARED])
def test_module_program_and_onnx_are_one_network(name: str, tmp_path: Path) -> None:
    model, x = model_of(name), torch.randn(3, 4)
    assert_one_network(
        model, exported(model, x, tmp_path / "m.pt2"), traced(model, x, tmp_path / "m.onnx")
    )


@pytest.mark.parametrize("name", [n for n in OPEN if n not in COMPARED])
def test_what_the_newer_exporter_writes_is_the_same_network(name: str, tmp_path: Path) -> None:
    """Softplus comes with a comparison: above the threshold torch gives its input itself."""
    pytest.importorskip("onnxscript")
    model, path = model_of(name), tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(3, 4),), path, dynamo=True, verbose=False)
    assert_one_network(model, open_network(path))


@pytest.mark.parametrize("name", OPEN)
def test_what_is_written_as_onnx_reads_back_and_runs_the_same(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, path, x = model_of(name), tmp_path / "m.onnx", torch.randn(16, 4)
    certificate = certify(model)
    export_onnx(model, path)
    assert open_network(path).digest() == read_network(model).digest()
    verify(certificate, open_network(path))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=2e-5, atol=2e-5)


def where(limit: float, rate: float, scale: float) -> bytes:
    """``rate x > limit ? x : softplus(rate x) scale``."""
    return serialise(
        [
            OnnxNode("Mul", "scaled", ("input", "rate"), "e", {}),
            OnnxNode("Softplus", "soft", ("e",), "s", {}),
            OnnxNode("Mul", "back", ("s", "scale"), "b", {}),
            OnnxNode("Greater", "above", ("e", "limit"), "c", {}),
            OnnxNode("Where", "choice", ("c", "input", "b"), "output", {}),
        ],
        {k: np.float32(v) for k, v in (("rate", rate), ("scale", scale), ("limit", limit))},
        ((3,), (3,)),
        {},
    )


def test_a_comparison_is_softplus_only_where_the_jump_is_torchs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(where(20.0, 2.0, 0.5))
    (layer,) = open_network(path).layers
    assert (layer.kind, layer.options["beta"]) == ("softplus", 2.0)
    # A lower threshold jumps, another factor is another function.
    for numbers in ((5.0, 2.0, 0.5), (20.0, 2.0, 0.25), (20.0, 2.0, -0.5)):
        path.write_bytes(where(*numbers))
        with pytest.raises(UnsupportedModule, match=r"\(Greater\) is not supported"):
            open_network(path)


class Clipping(nn.Module):
    """One step between two linear layers."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.step = nn.Linear(4, 4), nn.Linear(4, 2), step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


CLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.clamp": lambda z: torch.clamp(z, -0.5, 1.0),
    "by keywords": lambda z: z.clamp(min=-0.5, max=1.0),
    "in place": lambda z: z.clamp_(-0.5, 1.0),
    "torch.clip": lambda z: torch.clip(z, -0.5, 1.0),
    "hardtanh_": lambda z: F.hardtanh_(z, -0.5, 1.0),
    "constants": lambda z: torch.clamp(z, torch.tensor(-0.5), torch.tensor(1.0)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_is_one_activation(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Clipping(CLIPS[name]).eval(), torch.randn(3, 4)
    own = network_of(model)
    plain = nn.Sequential(model.first, nn.Hardtanh(-0.5, 1.0), model.last)
    assert own.digest() == read_network(plain).digest()
    assert traced(model, x, tmp_path / "m.onnx").digest() == own.digest()
    assert exported(model, x, tmp_path / "m.pt2").digest() == own.digest()


def test_limits_are_constants_in_order() -> None:
    for step, message in (
        (lambda z: z.clamp(1.0, 0.5), "expected min < max, got 1.0 and 0.5"),
        (lambda z: z.clamp(max=z[:, :1]), "combines 2 values"),
    ):
        with pytest.raises(UnsupportedModule, match=message):
            network_of(Clipping(step))


def test_a_clip_is_trained_and_projected() -> None:
    """``torch.fx`` reads it, which is what training looks through."""
    model = Clipping(CLIPS["torch.clamp"])
    nearer = project(model, bound=0.3)
    assert nearer.certificate.lip <= 0.3
    verify(nearer.certificate, nearer.model)


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_slope_per_channel_as_a_call(dynamo: bool, tmp_path: Path) -> None:
    """The exporters write the slope with an axis for the batch, or without."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), Slopes(), nn.Flatten()).eval()
    x = torch.randn(2, 1, 5, 5)
    own = network_of(model, (1, 5, 5))
    assert exported(model, x, tmp_path / "m.pt2").digest() == own.digest()
    if dynamo:
        pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=dynamo, verbose=False)
    assert open_network(tmp_path / "m.onnx").digest() == own.digest()


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.5, -1.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.slopes)


class Called(nn.Module):
    """The activations as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(16))

    def forward(self, x: Tensor) -> Tensor:
        steps = (
            lambda z: F.celu(z, 2.0),
            lambda z: F.selu(z),
            lambda z: F.mish(z),
            lambda z: F.hardswish(z),
            lambda z: F.hardsigmoid(z),
            lambda z: F.softsign(z),
            lambda z: F.logsigmoid(z),
            lambda z: F.softshrink(z, 0.25),
            lambda z: F.tanhshrink(z),
            lambda z: torch.sin(z),
            lambda z: z.sin(),
            lambda z: z.abs(),
            lambda z: torch.abs(z),
            lambda z: F.relu6(z),
            lambda z: F.leaky_relu(z, 0.3),
        )
        for layer, step in zip(self.layers, steps, strict=False):
            x = step(layer(x))
        return self.layers[-1](x)


def test_functions_are_the_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Called().eval()
    kinds = [spec.kind for spec in read_network(model).layers if spec.kind != "linear"]
    assert kinds == [
        *("celu", "selu", "mish", "hardswish", "hardsigmoid", "softsign", "softplus", "softshrink"),
        *("tanhshrink", "sin", "sin", "leaky_relu", "leaky_relu", "hardtanh", "leaky_relu"),
    ]
    certify(model)


def test_a_slope_per_channel_of_an_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.PReLU(3), nn.Flatten(), nn.Linear(27, 2)).eval()
    model[1].weight.data = torch.tensor([0.5, -1.5, 2.0])
    x = torch.randn(2, 1, 5, 5)
    network = read_network(model, (1, 5, 5))
    assert network.chain().slopes[0].beta.reshape(3, 9)[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert network.chain().slopes[0].alpha.reshape(3, 9)[:, 8].tolist() == [0.5, -1.5, 1.0]
    for other in (exported(model, x, tmp_path / "m.pt2"), traced(model, x, tmp_path / "m.onnx")):
        assert other.digest() == network.digest()
    certificate = certify(model, (1, 5, 5))
    export_onnx(model, tmp_path / "w.onnx", input_shape=(1, 5, 5))
    verify(certificate, open_network(tmp_path / "w.onnx"))


class OneLimit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).clamp(min=-0.5).clamp(max=1.5))


def test_one_limit_is_a_relu_between_shifts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OneLimit().eval()
    for network in (
        exported(model, torch.randn(2, 4), tmp_path / "m.pt2"),
        traced(model, torch.randn(2, 4), tmp_path / "m.onnx"),
    ):
        x = torch.randn(40, 4)
        found = torch.from_numpy(forward(network, x.numpy())).float()
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
        assert certify(network).lip > 0.0
