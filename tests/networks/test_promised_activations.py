"""Activations of a user's own, by the slopes that are promised for them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip import (
    Lipschitz,
    LocalConfig,
    certified_radii,
    certify,
    certify_local,
    export_onnx,
    load_certificate,
    open_network,
    project,
    register_activation,
    train,
    verify,
)
from admm_lip.certificates.exact import exact_check
from admm_lip.cli import main
from admm_lip.errors import CertificateError, NetworkError, UnsupportedModule
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.forward import forward
from admm_lip.networks.storage import load_network, save_network


class Bend(nn.Module):
    """Slopes in [1/2, 1], with a parameter that changes none of them."""

    def __init__(self, height: float = 1.0) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))

    def forward(self, x: Tensor) -> Tensor:
        return 0.75 * x + 0.25 * torch.sqrt(self.height + x * x)


class OwnReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


def wave(x: Tensor) -> Tensor:
    return torch.nn.functional.relu(x) - 0.3 * torch.sin(x)


register_activation(Bend, slopes=(0.5, 1.0), name="Bend")
register_activation(OwnReLU, slopes=(0, 1))
register_activation(wave, slopes=(-0.3, 1.3))
register_activation(torch.erf, slopes=(0.0, 1.13), name="erf")


def model_of(make: Callable[[], nn.Module], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 7), make(), nn.Linear(7, 6), make(), nn.Linear(6, 3)).eval()


class Called(nn.Module):
    """The function is called in the forward, beside a known activation on a skip."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(wave(z) + torch.relu(z))


class CallsErf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.erf(self.first(x)))


# Use.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_a_module_to_a_folder_and_back(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(Bend).to(dtype)
    certificate = certify(model)
    network = read_network(model)
    save_network(network, tmp_path)
    certificate.save(tmp_path / "certificate.json")
    layers = json.loads((tmp_path / "architecture.json").read_text())["layers"]
    stated = {"name": "Bend", "alpha": 0.5, "beta": 1.0}
    assert [(s["kind"], s["options"]) for s in layers if s["options"]] == [("promised", stated)] * 2
    assert load_network(tmp_path).digest() == network.digest() == certificate.digest
    again = load_certificate(tmp_path / "certificate.json")
    for of in (model, tmp_path, network):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "admm_lip"):
            verify(again, of)
        said = [r.getMessage() for r in caplog.records if "promised, not proven" in r.getMessage()]
        assert len(said) == 1 and "Bend" in said[0] and "[0.5, 1.0]" in said[0]


def test_what_is_promised_is_reported_and_shown() -> None:
    certificate = certify(model_of(Bend))
    assert certificate.reported()["promised"] == {"Bend": (0.5, 1.0)}
    assert "not proven" in repr(certificate)
    assert "{'Bend': (0.5, 1.0)}" in repr(certificate).partition("not proven")[2]
    assert "promised" not in certify(model_of(nn.ReLU)).reported()


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(Bend)
    save_network(read_network(model), tmp_path)
    certify(model).save(tmp_path / "certificate.json")
    assert main(["verify", str(tmp_path)]) == 0
    noted = capsys.readouterr().out.partition("not proven")[2]
    assert "promised {'Bend': (0.5, 1.0)}" in noted


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["global", "pairwise", "per_output"])
def test_the_bound_is_that_of_a_known_activation_with_the_same_slopes(kind: Any, norm: str) -> None:
    own, known = (certify(model_of(make), kind=kind, norm=norm) for make in (OwnReLU, nn.ReLU))
    lips = [np.atleast_1d(getattr(c, "lips", getattr(c, "lip", None))) for c in (own, known)]
    np.testing.assert_array_equal(*lips)
    verify(own, model_of(OwnReLU))
    assert own.digest != known.digest


def test_the_bound_holds_where_the_function_is_steep() -> None:
    model = model_of(Bend).double().requires_grad_(False)
    lip, x = certify(model).lip, 50.0 + torch.randn(500, 4, dtype=torch.float64)
    rises = (model(x) - model(x + 1e-3)).norm(dim=1) / 2e-3
    assert 0.0 < float(rises.max()) < lip


def test_a_function_that_a_forward_calls() -> None:
    model = Called(wave)
    certificate = certify(model)
    verify(certificate, model)
    assert certificate.reported()["promised"] == {"wave": (-0.3, 1.3)}
    assert "relu" in certificate.slopes[0].activation


def test_a_function_of_torch_that_no_table_has() -> None:
    model = CallsErf()
    certificate = certify(model)
    verify(certificate, model)
    assert certificate.reported()["promised"] == {"erf": (0.0, 1.13)}


def test_an_image_network_frequency_by_frequency() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 1, 3, padding=1), None, nn.Conv2d(1, 1, 3, padding=1), None)
    lips = []
    for make in (OwnReLU, nn.ReLU):
        model = nn.Sequential(*(make() if m is None else m for m in layers), nn.Flatten())
        certificate = certify(model, (1, 4, 4), structure="torus")
        verify(certificate, model)
        lips.append(certificate.lip)
        assert ("promised" in certificate.reported()) == (make is OwnReLU)
    assert lips[0] == lips[1]


def test_float32_weights_do_not_round_the_promise() -> None:
    class Tilted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1.3 * x.abs()

    register_activation(Tilted, slopes=(-1.3, 1.3), name="Tilted")
    slopes = read_network(model_of(Tilted)).chain().slopes[0]
    assert set(slopes.alpha) == {-1.3} and set(slopes.beta) == {1.3}


# Promises that are not kept.


@pytest.mark.parametrize(
    ("phi", "slopes"),
    [
        (lambda x: 1.01 * x.clamp_min(0.0), (0.0, 1.0)),
        (lambda x: torch.where(x > 50.0, 2.0 * x - 50.0, x), (0.0, 1.0)),
        (lambda x: x.abs(), (0.0, 1.0)),
        (lambda x: x * torch.sigmoid(x), (0.0, 1.1)),
        (lambda x: torch.where(x > 0.7, 1.0, 0.0).to(x.dtype), (0.0, 1.0)),
        (lambda x: torch.sin(40.0 * x) / 39.0, (-1.0, 1.0)),
    ],
    ids=["steeper", "steeper far out", "decreasing", "a dip below 0", "a jump", "a fast wave"],
)
def test_a_false_promise_is_refused_with_the_two_points(
    phi: Callable[[Tensor], Tensor], slopes: tuple[float, float]
) -> None:
    class False_(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return phi(x)

    register_activation(False_, slopes=slopes, name=f"False_{id(phi)}")
    with pytest.raises(UnsupportedModule, match=r"1 \(False_\d+\): was promised slopes") as error:
        certify(model_of(False_))
    words = str(error.value).replace(",", " ").replace(";", " ").split()
    low, high, quotient = _points_in(words)
    x = torch.tensor([low, high], dtype=torch.float64)
    rise = float((phi(x)[1] - phi(x)[0]) / (x[1] - x[0]))
    assert rise == pytest.approx(quotient, rel=1e-6)
    assert not slopes[0] <= rise <= slopes[1]


def _points_in(words: list[str]) -> tuple[float, float, float]:
    between, of = words.index("between"), words.index("quotient") + 1
    return float(words[between + 1]), float(words[between + 3]), float(words[of + 1])


class _Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1.0 + x.norm(dim=1, keepdim=True))


class _Ramp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 1.0, x.shape[1], dtype=x.dtype)


class _Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2]


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("cls", [_Norm, _Ramp, _Random])
def test_what_does_not_act_entry_by_entry_is_refused(cls: type[nn.Module]) -> None:
    register_activation(cls, slopes=(-2.0, 2.0))
    model = nn.Sequential(nn.Linear(4, 6), cls(), nn.Linear(6, 2))
    with pytest.raises(UnsupportedModule, match=rf"1 \({cls.__name__}\): expected an activation"):
        certify(model)


def test_an_activation_that_drops_entries_is_read_as_what_it_does() -> None:
    register_activation(_Halved, slopes=(0.0, 1.0))
    with pytest.raises(UnsupportedModule, match=r"1 \(_Halved\): expected an activation"):
        certify(nn.Sequential(nn.Linear(4, 6), _Halved()))
    certificate = certify(nn.Sequential(nn.Linear(4, 6), _Halved(), nn.Linear(3, 2)))
    assert "promised" not in certificate.reported()


def test_values_that_are_no_numbers_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    register_activation(Root, slopes=(0.0, 1.0), name="Root")
    with pytest.raises(UnsupportedModule, match=r"1 .*Root.*nan"):
        certify(model_of(Root))


def test_a_derived_class_is_not_promised() -> None:
    class Steeper(OwnReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * super().forward(x)

    assert "promised" not in {s.kind for s in _read_or_none(model_of(Steeper))}


def _read_or_none(model: nn.Module) -> tuple[Any, ...]:
    try:
        return read_network(model).layers
    except UnsupportedModule:
        return ()


# What is registered.


@pytest.mark.parametrize(
    ("slopes", "error", "words"),
    [
        ((1.0, 0.0), ValueError, "slopes: expected alpha < beta.*swap"),
        ((1.0, 1.0), ValueError, "slopes: expected alpha < beta.*linear layer"),
        ((0.0, math.nan), ValueError, "slopes: expected finite"),
        ((-math.inf, 1.0), ValueError, "slopes: expected finite"),
        (("0", "1"), TypeError, "slopes: expected two numbers"),
        ((False, True), TypeError, "slopes: expected two numbers"),
        ((0.0, 0.5, 1.0), TypeError, "slopes: expected two numbers"),
        (1.0, TypeError, "slopes: expected two numbers"),
    ],
)
def test_intervals_that_are_none(slopes: Any, error: type[Exception], words: str) -> None:
    class Fresh(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(error, match=words):
        register_activation(Fresh, slopes=slopes)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (nn.ReLU, ValueError),
        (type("Inherits", (nn.GELU,), {}), ValueError),
        (torch.tanh, ValueError),
        (torch.add, ValueError),
        (nn.ReLU(), TypeError),
        ("relu", TypeError),
        (int, TypeError),
    ],
)
def test_what_cannot_be_registered(what: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="what: "):
        register_activation(what, slopes=(0.0, 1.0))


def test_registering_twice() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    register_activation(Bend, slopes=(0.5, 1), name="Bend")
    with pytest.raises(ValueError, match=r"Bend: is registered already.*\(0.5, 1.0\)"):
        register_activation(Bend, slopes=(0.5, 1.5), name="Bend")
    with pytest.raises(ValueError, match=r"name: 'Bend' stands for .*Bend already"):
        register_activation(Other, slopes=(0.0, 1.0), name="Bend")
    for name in ("", "a b", "x [0, 1]", "n" * 201):
        with pytest.raises(ValueError, match="name: expected letters"):
            register_activation(torch.Tensor.arctan, slopes=(0.0, 1.0), name=name)
    with pytest.raises(ValueError, match=r"name: expected.*give name="):
        register_activation(lambda x: x, slopes=(0.0, 2.0))


# Files.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 2.0}, "alpha < beta"),
        ({"alpha": 1.0}, "alpha < beta"),
        ({"beta": "1"}, "finite number"),
        ({"name": "x [0.0, 1.0] + promised y"}, "name"),
        ({"name": 3}, "name"),
        ({"gamma": 3}, "options"),
    ],
)
def test_edited_promises_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_network(read_network(model_of(Bend)), tmp_path)
    file = tmp_path / "architecture.json"
    data = json.loads(file.read_text())
    data["layers"][1]["options"].update(change)
    file.write_text(json.dumps(data))
    with pytest.raises(NetworkError, match=words):
        open_network(tmp_path)


@pytest.mark.parametrize("change", [{"beta": 0.9}, {"name": "Other"}])
def test_another_promise_is_another_network(change: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(Bend)
    save_network(read_network(model), tmp_path)
    file = tmp_path / "architecture.json"
    data = json.loads(file.read_text())
    data["layers"][1]["options"].update(change)
    file.write_text(json.dumps(data))
    with pytest.raises(CertificateError, match="digest"):
        verify(certify(model), tmp_path)


def test_a_certificate_cannot_hide_or_narrow_what_is_promised() -> None:
    from dataclasses import replace

    model = model_of(Bend)
    certificate = certify(model)
    for label in ("relu", "promised Bend [0.5, 0.9]", "promised Other [0.5, 1.0]"):
        forged = tuple(s._replace(activation=label) for s in certificate.slopes)
        with pytest.raises(CertificateError, match="slopes"):
            verify(replace(certificate, slopes=forged), model)


# What needs the function itself.


def _saved(model: nn.Module, folder: Path) -> Path:
    save_network(read_network(model), folder)
    return folder


_X, _Y = torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
_REFUSED: dict[str, Callable[[nn.Module, Path], Any]] = {
    "local": lambda m, _: certify_local(m, _X, 0.1, _Y),
    "samples": lambda m, _: certify_local(m, _X, 0.1, _Y, config=LocalConfig(level="masked")),
    "radii": lambda m, _: certified_radii(m, _X, _Y, certificate=certify(m)),
    "exact": lambda m, _: exact_check(read_network(m), certify(m)),
    "onnx": lambda m, folder: export_onnx(read_network(m), folder / "model.onnx", certify(m)),
    "forward of a folder": lambda m, folder: forward(open_network(_saved(m, folder)), _X.numpy()),
    "a module of a folder": lambda m, folder: build_module(open_network(_saved(m, folder))),
    "training": lambda m, _: train(m, (_X, _Y), Lipschitz(1.0)),
    "projection": lambda m, _: project(m, 1.0),
}


@pytest.mark.parametrize("what", _REFUSED)
def test_what_evaluates_the_function_is_refused_with_the_reason(what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModule) as error:
        _REFUSED[what](model_of(Bend), tmp_path)
    assert "Bend" in str(error.value) and "promised" in str(error.value)
    assert not (tmp_path / "model.onnx").exists()
