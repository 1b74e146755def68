"""Certified radii: against exact arithmetic, steps across a known boundary, and bad input."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from admm_lip import Certificate, CertificateError, certified_radii, certify
from admm_lip.networks.chain import read_network
from admm_lip.networks.running_error import enclosed


def exact_logits(model: nn.Sequential, x: Tensor) -> list[Fraction]:
    """A ReLU network in rational arithmetic."""
    value = [Fraction(float(v)) for v in x]
    for layer in model:
        if isinstance(layer, nn.Linear):
            rows, bias = layer.weight.tolist(), layer.bias.tolist()
            value = [
                Fraction(b) + sum(Fraction(w) * v for w, v in zip(row, value, strict=True))
                for row, b in zip(rows, bias, strict=True)
            ]
        else:
            value = [max(v, Fraction(0)) for v in value]
    return value


def relu_model(seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    for p in model.parameters():
        p.data *= scale
    return model


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_radii_are_the_exact_margin_rounded_down(scale: float) -> None:
    model = relu_model(scale=scale)
    certificate = certify(model)
    x = torch.randn(40, 6) * torch.tensor([0.01, 1.0, 100.0, 1.0]).repeat(10)[:, None]
    y = torch.randint(0, 4, (40,))
    radii = certified_radii(model, x, y, certificate=certificate)
    assert radii.dtype == torch.float64
    assert 0 < int((radii > 0).sum()) < 40
    for point, label, radius in zip(x, y.tolist(), radii.tolist(), strict=True):
        logits = exact_logits(model, point)
        margin = logits[label] - max(v for j, v in enumerate(logits) if j != label)
        if margin <= 0:
            assert radius == 0.0
            continue
        # radius <= margin / (sqrt 2 L), squared to stay rational
        assert 2 * (Fraction(radius) * Fraction(certificate.lip)) ** 2 <= margin**2
        assert radius >= (1.0 - 1e-6) * float(margin) / (math.sqrt(2.0) * certificate.lip) - 1e-12


def test_the_enclosure_of_the_logits_holds_in_rational_arithmetic() -> None:
    model = relu_model(3)
    network = read_network(model)
    x = torch.randn(10, 6, dtype=torch.float64)
    logits, error = enclosed(network, x)
    assert float(error.max()) < 1e-13
    for k in range(10):
        for value, bound, true in zip(logits[k], error[k], exact_logits(model, x[k]), strict=True):
            assert abs(Fraction(float(value)) - true) <= Fraction(float(bound))


def test_a_step_of_the_radius_towards_the_boundary_does_not_cross_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    radius = certified_radii(model, x, torch.tensor([0]), certificate=certify(model))
    worst = torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2.0)
    assert float(radius) == pytest.approx(math.sqrt(2.0), rel=1e-8)
    after = model(x + radius * worst)[0].detach()
    assert float(after[0]) > float(after[1])
    beyond = model(x + 1.0001 * radius * worst)[0].detach()
    assert float(beyond[0]) < float(beyond[1])


def test_wrong_tied_and_not_finite_inputs_have_radius_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.eye(2)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [math.nan, 0.0], [math.inf, 0.0], [1.0, 0.0]])
    radii = certified_radii(model, x, torch.zeros(5).long(), certificate=certify(model))
    assert radii[:4].tolist() == [0.0] * 4
    assert float(radii[4]) > 0.7


def test_a_constant_network_is_certified_everywhere_or_nowhere() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data.zero_()
    model[0].bias.data = torch.tensor([1.0, 0.0])
    x = torch.randn(2, 2)
    radii = certified_radii(model, x, torch.tensor([0, 1]), certificate=certify(model))
    assert radii.tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("low", [0, -1])
def test_one_output_is_a_binary_classifier(low: int) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[3.0, 4.0]])
    model[0].bias.data = torch.tensor([-5.0])
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    y = torch.tensor([1, low, low])
    radii = certified_radii(model, x, y, certificate=certify(model))
    assert radii.tolist() == pytest.approx([4.0, 0.0, 1.0], rel=1e-6)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.Softplus(), nn.ELU(3.0)])
def test_smooth_and_convolutional_networks_have_radii(activation: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.AvgPool2d(3), activation, nn.Flatten(), nn.Linear(3, 3)
    )
    certificate = certify(model, (1, 8, 8))
    x = 5.0 * torch.randn(20, 1, 8, 8)
    logits = model.double()(x.double()).detach()
    top = logits.topk(2, dim=1)
    radii = certified_radii(model, x, top.indices[:, 0], certificate=certificate)
    expected = (top.values[:, 0] - top.values[:, 1]) / (math.sqrt(2.0) * certificate.lip)
    assert bool((radii <= expected * (1.0 + 1e-9)).all())
    assert bool((radii >= expected - 1e-6).all())


@pytest.fixture(scope="module")
def case() -> tuple[nn.Sequential, Certificate]:
    model = relu_model()
    return model, certify(model)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.zeros(3, 5),
            torch.zeros(3).long(),
            r"x: expected real numbers of shape \(batch, 6\), as ",
        ),
        (
            torch.zeros(6),
            torch.zeros(1).long(),
            r"got \(6,\); add the axis of the batch, x\[None\]",
        ),
        ([["a"] * 6], torch.zeros(1).long(), "x: expected numbers, got words"),
        (torch.zeros(3, 6), torch.zeros(3), "y: .* integer class labels, got torch.float32; if"),
        (torch.zeros(3, 6), torch.zeros(2).long(), r"y: expected shape \(3,\), one label per inp"),
        (
            torch.zeros(2, 6),
            torch.tensor([0, 4]),
            r"y: expected class labels in 0\.\.3 .* got 4 in row 1",
        ),
        (
            torch.zeros(2, 6),
            torch.tensor([0, -1]),
            r"y: expected class labels in 0\.\.3 .* got -1 in row 1",
        ),
    ],
)
def test_bad_input_is_named(
    case: tuple[nn.Sequential, Certificate], x: Any, y: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        certified_radii(case[0], x, y, certificate=case[1])


def test_labels_of_a_binary_classifier_are_checked() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="expected labels 0 and 1, or -1 and 1, got"):
        certified_radii(model, torch.zeros(2, 2), torch.tensor([0, -1]), certificate=certify(model))


def test_the_certificate_must_belong_to_the_model(case: tuple[nn.Sequential, Certificate]) -> None:
    x, y = torch.zeros(1, 6), torch.zeros(1).long()
    with pytest.raises(CertificateError, match="digest: the certificate is of another network"):
        certified_radii(relu_model(7), x, y, certificate=case[1])
    other = certify(case[0], kind="directions", directions=[[1.0, 0.0, 0.0, 0.0]])
    with pytest.raises(CertificateError, match=r"kind: expected one of global, .*, got directions"):
        certified_radii(case[0], x, y, certificate=other)
    assert certified_radii(case[0], x[:0], y[:0], certificate=case[1]).shape == (0,)
