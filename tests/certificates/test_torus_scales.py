"""Image networks whose layers are tiny and huge: no proof leans on what under- or overflowed."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from admm_lip import Certificate, certify, verify
from admm_lip.certificates.torus.hermitian import is_below, proven_largest, sizes_of
from admm_lip.errors import CertificateError
from admm_lip.networks.chain import read_network

SHAPE = (1, 6, 6)


def network(*scales: float) -> nn.Sequential:
    """A convolution, pointwise ones, a ReLU, and the last scale's convolution behind it."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
    layers = [first, *(nn.Conv2d(2, 2, 1) for _ in scales[1:-1]), last]
    for layer, scale in zip(layers, scales, strict=True):
        nn.init.zeros_(layer.bias)
        layer.double().weight.data *= scale
    return nn.Sequential(*layers[:-1], nn.ReLU(), last)


@pytest.mark.parametrize(
    "scales",
    [
        (1e-170, 1e57, 1e57, 1e56, 1.0),
        (1e-165, 1e55, 1e55, 1e55, 1.0),
        (1e57, 1e57, 1e56, 1e-170, 1.0),
        (1e-170, 1e85, 1e85, 1.0, 1.0),
    ],
)
def test_a_covariance_that_underflows_proves_nothing(scales: tuple[float, ...]) -> None:
    """The layers' squares vanish on the way, their product is 1."""
    honest, model = certify(network(*[1.0] * 5), SHAPE, structure="torus"), network(*scales)
    assert isinstance(honest, Certificate) and honest.switch == 1
    for small in (1e-3, 1e-30, 1e-200):
        forged = dataclasses.replace(
            honest,
            digest=read_network(model, SHAPE).digest(),
            multiplier=((1e9, 1e9), *honest.multiplier[1:]),
            **{"lip": small, **dict.fromkeys(("lower_lip", "sampled_lower", "norm_product"), 0.0)},
        )
        with pytest.raises(CertificateError, match=r"lip: .* is not proven"):
            verify(forged, model)


@pytest.mark.parametrize(
    "scales",
    [(1e-170, 1e170, 1.0), (1e170, 1e-170, 1.0), (1e-80, 1e-80, 1.0), (1e150, 1e-150, 1.0)],
)
def test_scales_beyond_double_precision_are_refused_by_name(scales: tuple[float, ...]) -> None:
    with pytest.raises(CertificateError, match="structure: no bound could be proven on a torus"):
        certify(network(*scales), SHAPE, structure="torus")


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-100, 1.0, 1e100, 1e150])
def test_sizes_and_eigenvalues_are_bounded_at_every_scale(scale: float) -> None:
    p = scale * torch.eye(3, dtype=torch.complex128).numpy()[None]
    assert sizes_of(p)[0] >= scale * math.sqrt(3.0)
    top = proven_largest(p)
    assert top is not None and top[0] >= scale
    root = math.sqrt(scale)
    assert is_below(p, root * (1.0 + 1e-9))
    assert not is_below(p, root * (1.0 - 1e-9))
    for least in (0.0, 5e-324, 1e-310):
        assert not is_below(p, least)
    p[0, 0, 0] = math.inf
    assert proven_largest(p) is None
