"""Bounds of single outputs and of pairs that share multipliers per channel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import (
    Certificate,
    CertificateError,
    FunctionalCertificate,
    certified_radii,
    certify,
    certify_local,
    load_certificate,
    verify,
)
from admm_lip.certificates.torus import certify as choice

SHAPE = (1, 4, 4)


def network(*behind: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    front = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU())
    dense = (nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
    return nn.Sequential(*front, *dense, *behind).eval()


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return network()


@pytest.fixture(scope="module")
def pairs(model: nn.Sequential) -> FunctionalCertificate:
    return certify(model, SHAPE, kind="pairwise", structure="torus")


@pytest.fixture(scope="module")
def together(model: nn.Sequential) -> Certificate:
    return certify(model, SHAPE, structure="torus")


def test_a_pair_lies_between_the_exact_bound_and_that_of_all_outputs(
    model: nn.Sequential, pairs: FunctionalCertificate, together: Certificate
) -> None:
    exact = certify(model, SHAPE, kind="pairwise", structure="exact")
    assert pairs.switch == len(pairs.shared) > 0
    assert (pairs.lips >= exact.lips * (1.0 - 1e-3)).all()
    # Each pair is two outputs of length sqrt(2) together, with multipliers of its own behind.
    assert (pairs.lips <= np.sqrt(2.0) * together.lip * (1.0 + 1e-3)).all()
    assert pairs.lips.mean() < 0.9 * np.sqrt(2.0) * together.lip
    for bound in pairs.bounds:
        assert 0.0 < bound.sampled_lower <= bound.lip <= bound.norm_product * (1.0 + 1e-9)


def test_single_outputs_are_proven_and_hold(model: nn.Sequential) -> None:
    found = certify(model, SHAPE, kind="per_output", structure="torus")
    verify(found, model)
    x = torch.rand(200, *SHAPE, dtype=torch.float64)
    y = x + 0.01 * torch.randn_like(x)
    net = network().double()
    rises = (net(x) - net(y)).abs() / (x - y).flatten(1).norm(dim=1)[:, None]
    assert (rises.amax(0).detach().numpy() <= found.lips).all()


def test_the_file_reads_back_and_is_proven(
    model: nn.Sequential, pairs: FunctionalCertificate, tmp_path: Path
) -> None:
    pairs.save(tmp_path / "pairs.json")
    back = load_certificate(tmp_path / "pairs.json")
    assert back == pairs
    verify(back, model)


@pytest.mark.parametrize("scale", [0.999, 1.001, 0.5])
def test_edited_shared_multipliers_are_found_out(
    model: nn.Sequential, pairs: FunctionalCertificate, scale: float
) -> None:
    shared = tuple(tuple(scale * t for t in some) for some in pairs.shared)
    with pytest.raises(CertificateError, match=r"not proven|shared"):
        verify(dataclasses.replace(pairs, shared=shared), model)


def test_a_lowered_pair_is_found_out(model: nn.Sequential, pairs: FunctionalCertificate) -> None:
    low = dataclasses.replace(pairs.bounds[2], lip=pairs.bounds[2].lip * (1.0 - 1e-5))
    forged = dataclasses.replace(pairs, bounds=(*pairs.bounds[:2], low, *pairs.bounds[3:]))
    with pytest.raises(CertificateError, match=r"bounds\[2\]\.lip"):
        verify(forged, model)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"shared": ()}, "multiplier"),
        ({"shared": ((0.0, 0.0),)}, r"shared|slopes"),
        ({"norm": "linf"}, "torus|slopes|shared"),
    ],
)
def test_shared_multipliers_must_fit_what_is_claimed(
    model: nn.Sequential, pairs: FunctionalCertificate, changed: dict[str, object], says: str
) -> None:
    with pytest.raises(CertificateError, match=says):
        verify(dataclasses.replace(pairs, **changed), model)


def test_radii_of_pairs_are_no_smaller(
    model: nn.Sequential, pairs: FunctionalCertificate, together: Certificate
) -> None:
    x = torch.rand(20, *SHAPE)
    y = model(x).argmax(1)
    of_pairs = certified_radii(model, x, y, certificate=pairs)
    assert (of_pairs >= certified_radii(model, x, y, certificate=together) * (1 - 1e-3)).all()
    local = certify_local(model, x, 0.9 * of_pairs.min(), y, certificate=pairs)
    assert bool(local.robust.all())


def test_differences_of_log_softmax_are_those_before_it(pairs: FunctionalCertificate) -> None:
    ended = network(nn.LogSoftmax(dim=1))
    found = certify(ended, SHAPE, kind="pairwise", structure="torus")
    verify(found, ended)
    assert found.lips == pytest.approx(pairs.lips)
    with pytest.raises(CertificateError, match="softmax"):
        certify(ended, SHAPE, kind="per_output", structure="torus")


def test_twin_outputs_never_differ() -> None:
    model = network()
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[1] = last.weight[0]
    found = certify(model, SHAPE, kind="pairwise", structure="torus")
    verify(found, model)
    assert found.bounds[0].lip == 0.0 == found.bounds[0].norm_product


def test_large_networks_are_taken_by_frequency(
    model: nn.Sequential, pairs: FunctionalCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "EXACT_NEURONS", 10)
    assert certify(model, SHAPE, kind="pairwise") == pairs


def test_what_single_outputs_cannot_be_read_off_is_refused() -> None:
    with pytest.raises(CertificateError, match="every_size"):
        certify(network(), SHAPE, kind="pairwise", structure="every_size")
    whole = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    with pytest.raises(CertificateError, match="exact"):
        certify(whole, SHAPE, kind="per_output", structure="torus")
