"""Torch networks written as ONNX, by this package and by torch, and read back with their proof."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_build import MODELS, dtype_of, evaluate, forward, model_of
from torch import nn

from admm_lip import certify, verify
from admm_lip.certificates.in_onnx import export_onnx, read_certificate
from admm_lip.errors import CertificateError, NetworkError, UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.networks.storage import save_network

TOLERANCE = {torch.float16: 5e-3, torch.float32: 2e-5, torch.float64: 1e-12}
# What float64 lacks in onnx's reference implementation and in onnxruntime.
EVERY = sorted(MODELS)


def sample(name: str) -> tuple[nn.Module, tuple[int, ...], torch.Tensor]:
    model, shape = model_of(name)
    generator = torch.Generator().manual_seed(5)
    return model, shape, torch.randn(4, *shape, generator=generator).to(dtype_of(model))


def expected(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.double()(x.double()).numpy()


@pytest.mark.parametrize("name", EVERY)
def test_an_exported_network_is_the_same_everywhere(tmp_path: Path, name: str) -> None:
    model, shape, x = sample(name)
    network, tolerance = read_network(model, shape), TOLERANCE[dtype_of(model)]
    path = tmp_path / "model.onnx"
    export_onnx(model, path, input_shape=shape)
    onnx.checker.check_model(path, full_check=True)
    back = open_network(path)
    assert back.digest() == network.digest()
    assert back.input_shape == network.input_shape
    theirs = evaluate(path, x.numpy())
    ours = forward(back, x.numpy())
    truth = expected(model, x)
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(theirs, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["image", "dense", "viewed", "half"])
def test_onnxruntime_agrees(tmp_path: Path, name: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, shape, x = sample(name)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, input_shape=shape)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": x.numpy()})
    tolerance = TOLERANCE[x.dtype]
    np.testing.assert_allclose(output, expected(model, x), rtol=tolerance, atol=tolerance)


class TestTorchExporter:
    """Files of ``torch.onnx.export``: another naming, MatMul for Gemm, Reshape for Flatten."""

    @staticmethod
    def check(model: nn.Module, shape: tuple[int, ...], x: torch.Tensor, path: Path) -> None:
        certificate = certify(model, shape)
        network = open_network(path)
        assert network.digest() == read_network(model, shape).digest()
        verify(certificate, network)
        np.testing.assert_allclose(
            forward(network, x.numpy()), expected(model, x), rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("batch", ["open", "fixed"])
    @pytest.mark.parametrize("name", ["image", "dense", "viewed", "affine"])
    def test_by_tracing(self, tmp_path: Path, name: str, batch: str) -> None:
        model, shape, x = sample(name)
        path = tmp_path / "torch.onnx"
        axes = {"input": {0: "batch"}} if batch == "open" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (x,), str(path), dynamo=False, input_names=["input"], dynamic_axes=axes
            )
        self.check(model, shape, x, path)

    @pytest.mark.parametrize("name", ["image", "viewed"])
    def test_by_graph_capture(self, tmp_path: Path, name: str) -> None:
        if importlib.util.find_spec("onnxscript") is None:
            pytest.skip("onnxscript is not installed: torch.onnx.export(dynamo=True) needs it")
        model, shape, x = sample(name)
        if isinstance(model, nn.Sequential):
            model[3] = nn.Tanh()  # this exporter spells Softplus out with branches
        path = tmp_path / "torch.onnx"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
        self.check(model, shape, x, path)


class TestCertificate:
    def test_travels_in_the_metadata_and_verifies_against_the_weights(self, tmp_path: Path) -> None:
        model, shape, _ = sample("image")
        certificate = certify(model, shape)
        path = tmp_path / "model.onnx"
        export_onnx(model, path, certificate, input_shape=shape)
        read = read_certificate(path)
        assert read == certificate
        verify(read, open_network(path))

    def test_of_another_network_is_refused_and_nothing_written(self, tmp_path: Path) -> None:
        model, shape, _ = sample("dense")
        other = certify(model, shape)
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-3
        with pytest.raises(CertificateError, match="digest: the certificate is of another network"):
            export_onnx(model, tmp_path / "model.onnx", other)
        assert not list(tmp_path.iterdir())

    def test_does_not_verify_against_a_changed_weight(self, tmp_path: Path) -> None:
        model, shape, _ = sample("dense")
        path = tmp_path / "model.onnx"
        export_onnx(model, path, certify(model, shape))
        proto = onnx.load(path)
        tensor = proto.graph.initializer[0]
        changed = np.frombuffer(tensor.raw_data, "f4").copy()
        changed[0] *= 1.0001
        tensor.raw_data = changed.tobytes()
        onnx.save(proto, path)
        with pytest.raises(CertificateError, match="digest"):
            verify(read_certificate(path), open_network(path))

    def test_missing(self, tmp_path: Path) -> None:
        model, _, _ = sample("affine")
        path = tmp_path / "model.onnx"
        export_onnx(model, path)
        with pytest.raises(CertificateError, match="carries no certificate; certify the network"):
            read_certificate(path)
        with pytest.raises(CertificateError, match=r"none\.onnx: expected a file, found none"):
            read_certificate(tmp_path / "none.onnx")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"lip": 0}', "x" * 100])
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        model, _, _ = sample("affine")
        path = tmp_path / "model.onnx"
        export_onnx(model, path)
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, {"admm_lip.certificate": text})
        onnx.save(proto, path)
        with pytest.raises(CertificateError, match=r"model\.onnx: its certificate: "):
            read_certificate(path)

    def test_twice(self, tmp_path: Path) -> None:
        model, shape, _ = sample("affine")
        path = tmp_path / "model.onnx"
        export_onnx(model, path, certify(model, shape))
        proto = onnx.load(path)
        proto.metadata_props.append(proto.metadata_props[0])
        onnx.save(proto, path)
        with pytest.raises(CertificateError, match="metadata: a key stands more than once"):
            read_certificate(path)


def test_a_folder_and_a_network_can_be_exported(tmp_path: Path) -> None:
    model, shape, _ = sample("image")
    network = read_network(model, shape)
    save_network(network, tmp_path)
    export_onnx(tmp_path, tmp_path / "a.onnx")
    export_onnx(network, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_mixed_types_are_stored_in_the_widest(tmp_path: Path) -> None:
    arrays = {"a.weight": np.eye(2, dtype="f4") / 3, "b.weight": np.eye(2) / 3}
    layers = tuple(
        LayerSpec(kind, name, {})
        for kind, name in (("linear", "a"), ("relu", "r"), ("linear", "b"))
    )
    network = Network(layers, arrays)
    export_onnx(network, tmp_path / "model.onnx")
    back = open_network(tmp_path / "model.onnx")
    assert back.digest() == network.digest()
    assert {a.dtype for a in back.arrays.values()} == {np.dtype("f8")}


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (MaxMin(), "max_min is no operator of ONNX's opset 20; can be written: .*silu.*linear"),
        (nn.Softplus(2.0, 50.0), r"softplus .* cannot be written as ONNX; only threshold=20\.0"),
        (nn.LeakyReLU(1 / 3), r"negative_slope=0.333\d* has more digits than ONNX keeps"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override cannot be written"),
    ],
)
def test_what_onnx_cannot_state_is_refused(tmp_path: Path, layer: nn.Module, match: str) -> None:
    with pytest.raises(UnsupportedModule, match=match):
        export_onnx(nn.Sequential(layer), tmp_path / "model.onnx", input_shape=(2, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: expected an existing folder"):
        export_onnx(nn.Linear(2, 2), tmp_path / "no" / "model.onnx")


def test_a_file_that_does_not_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from admm_lip.foreign import onnx_model

    writers = {**onnx_model._WRITERS, "relu": onnx_model._plain("Tanh")}
    monkeypatch.setattr(onnx_model, "_WRITERS", writers)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(NetworkError, match="does not read back from ONNX as the same one"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_digest_ignores_what_exporters_change() -> None:
    """Names, reshapes, 1 for 1.0, and how a pool without padding counts; nothing else."""

    def network(*options: object, name: str = "a") -> Network:
        kinds = ("avg_pool2d", "elu")
        layers = [LayerSpec(k, f"{name}{k}", o) for k, o in zip(kinds, options, strict=True)]
        return Network(tuple(layers), {}, (1, 4, 4))

    pool = {
        "kernel_size": [2, 2],
        "stride": [2, 2],
        "padding": [0] * 4,
        "count_include_pad": True,
        "divisor_override": None,
    }
    base = network(pool, {"alpha": 1.0})
    for same in (
        network(pool, {"alpha": 1}),
        network({**pool, "count_include_pad": False}, {"alpha": 1.0}),
        network(pool, {"alpha": 1.0}, name="b"),
        dataclasses.replace(base, layers=(*base.layers, LayerSpec("flatten", "f", {"size": 4}))),
    ):
        assert same.digest() == base.digest()
    padded = {**pool, "padding": [1] * 4}
    different = [
        network(pool, {"alpha": 1.5}),
        network(padded, {"alpha": 1.0}),
        network({**padded, "count_include_pad": False}, {"alpha": 1.0}),
        network({**pool, "stride": [1, 1]}, {"alpha": 1.0}),
    ]
    assert len({n.digest() for n in (base, *different)}) == 1 + len(different)


def test_the_module_itself_is_left_as_it_was(tmp_path: Path) -> None:
    model, shape, _ = sample("image")
    before = io.BytesIO()
    torch.save(model.state_dict(), before)
    export_onnx(model, tmp_path / "model.onnx", input_shape=shape)
    after = io.BytesIO()
    torch.save(model.state_dict(), after)
    assert before.getvalue() == after.getvalue()
