"""Each activation as a module, an exported program and an ONNX file: one network, one bound."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from activation_cases import CASES, model_of
from torch import Tensor, nn

from admm_lip import certify, verify
from admm_lip.certificates.in_onnx import export_onnx
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign import open_network
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


WRITTEN = [n for n in OPEN if n not in ("silu", "tanhshrink", "softshrink")]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_as_onnx_reads_back(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    if ("softplus" in name.split() and name != "softplus") or name == "log sigmoid":
        with pytest.raises(UnsupportedModule, match=r"only beta=1\.0 can"):
            export_onnx(model, tmp_path / "m.onnx")
        return
    certificate = certify(model)
    export_onnx(model, tmp_path / "m.onnx")
    verify(certificate, open_network(tmp_path / "m.onnx"))


@pytest.mark.parametrize("name", sorted({*OPEN} - {*WRITTEN}))
def test_what_onnx_has_no_operator_for_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModule, match="is no operator of ONNX's opset 20"):
        export_onnx(model_of(name), tmp_path / "m.onnx")


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
