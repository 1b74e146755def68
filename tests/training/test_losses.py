"""Named losses: their values, their invariance, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st

from admm_lip.training.losses import LOSSES, margin_loss, named_loss, resolve_loss

LABELS = torch.tensor([0, 2, 1])


def logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)


@given(st.floats(0.01, 100.0), st.integers(0, 1000))
def test_the_margin_loss_does_not_see_a_common_scale(scale: float, seed: int) -> None:
    loss = margin_loss(0.5, 0.25)
    ours, scaled = loss(logits(seed), LABELS, 1.0), loss(scale * logits(seed), LABELS, scale)
    assert float(scaled) == pytest.approx(float(ours), rel=1e-9)


def test_without_offset_the_margin_loss_is_tempered_cross_entropy() -> None:
    expected = 0.25 * functional.cross_entropy(logits() / 0.5, LABELS)
    assert float(margin_loss(0.0, 0.25)(logits(), LABELS, 2.0)) == pytest.approx(float(expected))


@pytest.mark.parametrize(("eps", "radius"), [(0.2, 0.4), (2.0, 2.7)])
def test_the_margin_loss_lowers_the_right_class_by_the_margin_of_more_than_eps(
    eps: float, radius: float
) -> None:
    tau = 0.2
    shifted = logits().clone()
    shifted[torch.arange(3), LABELS] -= math.sqrt(2) * radius
    expected = tau * functional.cross_entropy(shifted / tau, LABELS)
    assert float(margin_loss(eps, tau)(logits(), LABELS, 1.0)) == pytest.approx(float(expected))


def test_auto_follows_the_targets() -> None:
    outputs = logits()
    by_class = resolve_loss("auto", LABELS, 0.5, 0.25)
    assert float(by_class(outputs, LABELS, 1.0)) == pytest.approx(
        float(functional.cross_entropy(outputs, LABELS))
    )
    values = torch.rand(3)
    by_value = resolve_loss("auto", values, 0.5, 0.25)
    column = outputs[:, :1]
    assert float(by_value(column, values, 1.0)) == pytest.approx(
        float(((column[:, 0] - values) ** 2).mean())
    )


def test_a_torch_loss_is_taken_as_it_is() -> None:
    loss = resolve_loss(torch.nn.CrossEntropyLoss(), LABELS, 0.5, 0.25)
    assert float(loss(logits(), LABELS, 1.0)) == pytest.approx(
        float(functional.cross_entropy(logits(), LABELS))
    )


def test_bad_losses_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="loss: expected one of cross_entropy, margin"):
        named_loss("hinge", 0.5, 0.25)
    with pytest.raises(ValueError, match="needs integer class labels, got targets of type"):
        resolve_loss("margin", torch.rand(3), 0.5, 0.25)
    with pytest.raises(TypeError, match="loss: expected a name or a callable, got int"):
        resolve_loss(3, LABELS, 0.5, 0.25)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_gradient_that_differences_show(name: str) -> None:
    outputs = logits().requires_grad_(True)
    targets = LABELS if LOSSES[name][0] else torch.rand(3, 4, dtype=torch.float64)
    loss = named_loss(name, 0.5, 0.25)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, 1.3), (outputs,))
