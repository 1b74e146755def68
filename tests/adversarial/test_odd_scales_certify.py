"""Layers of any scale: a bound that holds, or an error that names a layer; never a raw error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, certify, verify

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "steep": lambda: nn.LeakyReLU(1.5),
}


def scaled_net(scales: tuple[float, ...], activation: str = "relu") -> nn.Sequential:
    """3-5-4-2, each layer's weights times its scale."""
    torch.manual_seed(0)
    widths, layers = (3, 5, 4, 2), []
    for k, scale in enumerate(scales):
        linear = nn.Linear(widths[k], widths[k + 1], dtype=torch.float64)
        linear.weight.data.mul_(scale)
        layers += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    ("scales", "named"),
    [
        ((1e-155, 1e-10, 1e165), "'2'"),
        ((1e155, 1e-10, 1e-145), "'2'"),
        ((1e-50, 1e-50, 1e100), "'4'"),
        ((1e300, 1.0, 1.0), "'0'"),
        ((1.0, 1.0, 1e-300), "'4'"),
        ((1e300, 1e300, 1e300), "'0'"),
        ((5e-324, 1.0, 1.0), "'0'"),
    ],
)
def test_what_no_proof_can_hold_is_refused_by_the_layer_s_name(
    scales: tuple[float, ...], named: str
) -> None:
    with pytest.raises(CertificateError, match="no bound could be proven") as caught:
        certify(scaled_net(scales))
    assert f"layer {named}" in str(caught.value) or f"layers from {named}" in str(caught.value)
    assert "rescale the layers" in str(caught.value)


def test_powers_of_two_between_layers_change_no_digit() -> None:
    plain, moved = certify(scaled_net((1.0, 1.0, 1.0))), scaled_net((2.0**90, 2.0**-70, 2.0**-20))
    certificate = certify(moved)
    verify(certificate, moved)
    assert certificate.lip == plain.lip
    assert certificate.norm_product == pytest.approx(plain.norm_product, rel=1e-12)


@settings(max_examples=12)
@given(
    powers=st.tuples(*[st.integers(-310, 307)] * 3),
    balanced=st.booleans(),
    activation=st.sampled_from(sorted(_ACTIVATIONS)),
    kind=st.sampled_from(["global", "per_output"]),
    norm=st.sampled_from(["l2", "linf"]),
)
def test_a_bound_or_an_error_that_says_what_to_do(
    powers: tuple[int, int, int], balanced: bool, activation: str, kind: str, norm: str
) -> None:
    if balanced:  # within what a proof can hold, mostly
        first, second = powers[0] // 6, powers[1] // 6
        powers = (first, second, -first - second)
    model = scaled_net(tuple(float(f"1e{p}") for p in powers), activation)
    try:
        found = certify(model, kind=kind, norm=norm)
    except CertificateError as error:
        assert "rescale the layers" in str(error) and "'" in str(error)
        return
    verify(found, model)
    for bound in [found] if isinstance(found, Certificate) else found.bounds:
        assert 0.0 < bound.lip <= bound.norm_product * (1.0 + 1e-6) < math.inf
        assert bound.sampled_lower <= bound.lower_lip <= bound.lip
