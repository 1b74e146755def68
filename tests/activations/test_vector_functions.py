"""Max pooling as a graph of its own, and a softmax at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip import CertificateError, Units, certified_radii, certify, verify
from admm_lip.certificates.in_onnx import export_onnx
from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.foreign import open_network
from admm_lip.local import certify_local
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.running_error import enclosed

# Kernel, stride, padding, dilation, and how many windows the busiest entry of a 6 x 6 image is in.
POOLS: list[tuple[Any, Any, Any, Any, int]] = [
    (2, 2, 0, 1, 1),
    (3, 2, 1, 1, 4),
    (3, 1, 0, 1, 9),
    (2, 1, 0, 1, 4),
    ((3, 2), 2, 1, 1, 2),
    (2, 2, 0, 2, 4),
    ((1, 5), (1, 3), (0, 2), 1, 2),
]
every_pool = pytest.mark.parametrize("pool", POOLS, ids=str)


def network(pool: Any, size: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(*pool[:4]), nn.Flatten()
    )
    features = model(torch.zeros(1, 1, size, size)).shape[1]
    return nn.Sequential(*model, nn.Linear(features, 3)).eval()


@every_pool
def test_a_pool_alone_has_the_root_of_its_overlap(pool: Any) -> None:
    """An entry that is the greatest of k windows moves k outputs: reached, and proven."""
    found = certify(nn.Sequential(nn.MaxPool2d(*pool[:4]), nn.Flatten()), (1, 6, 6))
    assert found.lip <= math.sqrt(pool[4]) * (1.0 + 1e-6)
    assert found.sampled_lower <= found.lip
    if pool[0] != (1, 5):
        assert found.sampled_lower >= math.sqrt(pool[4]) * (1.0 - 1e-6)


@every_pool
def test_the_graph_computes_the_pool_and_its_bound_holds(pool: Any) -> None:
    model = network(pool)
    read = read_network(model, (1, 6, 6))
    x = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    value, error = (torch.from_numpy(part) for part in enclosed(read, x.double()))
    wide = network(pool).double()
    with torch.no_grad():
        truth = wide(x.double())
    assert bool(((value - truth).abs() <= error + 1e-14).all())
    certificate = certify(model, (1, 6, 6))
    verify(certificate, model)
    step = 1e-3 * torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        slope = (wide(x + step) - truth).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert float(slope.max()) <= certificate.lip


@every_pool
def test_module_program_and_onnx_are_one_network(pool: Any, tmp_path: Path) -> None:
    model, x = network(pool), torch.randn(2, 1, 6, 6)
    own = read_network(model, (1, 6, 6))
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    assert open_network(tmp_path / "m.pt2").digest() == own.digest()
    export_onnx(model, tmp_path / "m.onnx", input_shape=(1, 6, 6))
    assert open_network(tmp_path / "m.onnx").digest() == own.digest()
    assert read_network(build_module(own), (1, 6, 6)).digest() == own.digest()
    assert Network.from_json(own.to_json(), own.arrays).digest() == own.digest()


def test_a_pool_sees_rows_and_columns() -> None:
    """The same numbers as another image are another function."""
    layers = (LayerSpec("max_pool2d", "p", POOL), LayerSpec("flatten", "f", {"size": None}))
    wide, tall = (Network(layers, {}, shape) for shape in ((1, 2, 8), (1, 8, 2)))
    assert wide.digest() != tall.digest()


POOL = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0] * 4, "dilation": [1, 1]}


def test_local_bounds_of_a_pool_hold() -> None:
    model = network(POOLS[0]).double()
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    local = certify_local(model, x, radius=0.2)
    verify(local, model)
    way = torch.randn(2_000, 3, 1, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    ball = x + 0.2 * way / way.flatten(2).norm(dim=2)[:, :, None, None, None]
    with torch.no_grad():
        moved = (model(ball.flatten(0, 1)).reshape(2_000, 3, 3) - model(x)).norm(dim=2) / 0.2
    assert bool((moved <= local.lip[:, 0]).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": [2, 0, 0, 0]}, "lies wholly in the padding"),
        ({"kernel_size": [9, 9]}, "does not fit an input of"),
        ({"kernel_size": [0, 2]}, "kernel_size cannot be"),
        ({"kernel_size": [2**30, 1], "padding": [2**29, 0, 0, 0]}, "matrix would be|fit"),
    ],
)
def test_pools_that_fit_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        Network((LayerSpec("max_pool2d", "p", {**POOL, **options}),), {}, (1, 4, 4)).chain()


def classifier(last: nn.Module, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, outputs), last).eval()


@pytest.mark.parametrize(
    ("last", "factor"), [(nn.Softmax(1), 0.5), (nn.LogSoftmax(-1), math.sqrt(4.0))], ids=str
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_softmax_multiplies_by_its_constant(last: nn.Module, factor: float, norm: str) -> None:
    model = classifier(last)
    whole, logits = certify(model, norm=norm), certify(model[:-1], norm=norm)
    assert whole.lip == pytest.approx(factor * logits.lip, rel=1e-6)
    verify(whole, model)
    with pytest.raises(CertificateError, match="is not proven"):
        verify(_lowered(whole), model)
    scaled = certify(model, norm=norm, units=Units(output_scale=10.0))
    assert scaled.lip == pytest.approx(10.0 * whole.lip, rel=1e-6)


def _lowered(certificate: Any) -> Any:
    import dataclasses

    lip = 0.999 * certificate.lip
    return dataclasses.replace(certificate, lip=lip, lower_lip=0.5 * lip)


@pytest.mark.parametrize("outputs", [2, 3, 10])
def test_the_constants_hold_and_are_reached(outputs: int) -> None:
    """Near a corner for LogSoftmax, half way between two corners for Softmax."""
    last: dict[nn.Module, float] = {nn.Softmax(1): 0.5, nn.LogSoftmax(1): math.sqrt(outputs)}
    generator = torch.Generator().manual_seed(outputs)
    z = 5.0 * torch.randn(3_000, outputs, generator=generator, dtype=torch.float64)
    z[0], z[1] = -40.0, -40.0
    z[0, :2], z[1, 0] = 0.0, 40.0
    for module, constant in last.items():
        jacobians = torch.func.vmap(torch.func.jacrev(lambda v, m=module: m(v[None])[0]))(z)
        norms = torch.linalg.matrix_norm(jacobians, ord=2)
        assert float(norms.max()) <= constant * (1.0 + 1e-12)
        assert float(norms.max()) >= constant * (1.0 - 1e-6)


def test_differences_of_log_softmax_are_those_of_the_logits() -> None:
    model = classifier(nn.LogSoftmax(1))
    pairs, logits = certify(model, kind="pairwise"), certify(model[:-1], kind="pairwise")
    np.testing.assert_allclose(pairs.lips, logits.lips, rtol=2e-3)
    verify(pairs, model)
    with pytest.raises(CertificateError, match="no constant is at hand"):
        certify(model, kind="per_output")
    with pytest.raises(CertificateError, match="no constant is at hand"):
        certify(model, kind="directions", directions=[[1e16, 1.0, -1e16, 0.0]])


class Argmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(1)


def test_what_a_softmax_does_not_allow_is_refused_by_name(tmp_path: Path) -> None:
    model = classifier(nn.Softmax(1))
    with pytest.raises(CertificateError, match="no constant is at hand"):
        certify(model, kind="pairwise")
    with pytest.raises(CertificateError, match="one output_scale for all outputs"):
        certify(model, units=Units(output_scale=(1.0, 2.0, 1.0, 1.0)))
    for refused in (
        lambda: certify_local(model, torch.zeros(1, 3), radius=0.1),
        lambda: certify(nn.Sequential(*model, nn.Linear(4, 2))),
    ):
        with pytest.raises(UnsupportedModule, match="is supported as the last layer only"):
            refused()
    with pytest.raises(UnsupportedModule, match="neither trained nor projected"):
        linear_layers(model)
    with pytest.raises(UnsupportedModule, match="dim=0; only 1"):
        certify(nn.Sequential(nn.Linear(3, 2), nn.Softmax(0)))
    with pytest.raises(UnsupportedModule, match=r"argmax\(\)"):
        certify(Argmax())


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=str)
def test_radii_of_a_softmax_are_those_of_its_margins(last: nn.Module) -> None:
    model, x = classifier(last), torch.randn(30, 3, generator=torch.Generator().manual_seed(5))
    certificate = certify(model)
    top = model.double()(x.double()).detach().topk(2, dim=1)
    radii = certified_radii(model, x, top.indices[:, 0], certificate=certificate)
    margin = (top.values[:, 0] - top.values[:, 1]) / (math.sqrt(2.0) * certificate.lip)
    assert bool((radii <= margin).all())
    torch.testing.assert_close(radii, margin, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=str)
def test_a_softmax_through_every_door(last: nn.Module, tmp_path: Path) -> None:
    model = classifier(last)
    certificate = certify(model)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3),)), tmp_path / "m.pt2")
    verify(certificate, open_network(tmp_path / "m.pt2"))
    export_onnx(model, tmp_path / "m.onnx", certificate)
    verify(certificate, open_network(tmp_path / "m.onnx"))


def test_a_softmax_behind_an_image_network_is_bounded_neuron_by_neuron() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)), nn.Softmax(1)
    ).eval()
    whole = certify(model, (1, 12, 12))
    assert whole.lip == pytest.approx(
        0.5 * certify(model[:-1], (1, 12, 12), structure="exact").lip, rel=1e-5
    )
    with pytest.raises(UnsupportedModule, match="as the last layer only"):
        certify(model, (1, 12, 12), structure="torus")
