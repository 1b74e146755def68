"""A list of networks in one call: the certificates of each alone, and the one that fails named."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import SolverConfig, certify, verify
from admm_lip.certificates import many
from admm_lip.errors import CertificateError, UnsupportedModule


def net(*sizes: int, seed: int = 0, act: Any = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [(nn.Linear(a, b), act()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for pair in layers for part in pair))[:-1]


# Two of equal widths apart from each other, other widths, a linear map, a skip, a constant.
class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(x))


def mixed() -> list[nn.Module]:
    constant = net(2, 3, 1)
    constant[0].weight.data.zero_()
    torch.manual_seed(3)
    return [net(3, 5, 2), net(4, 4, 4, 1), net(3, 5, 2, seed=1), nn.Linear(3, 2), Skip(), constant]


def test_every_certificate_is_that_of_its_network_alone() -> None:
    models = mixed()
    found = certify(models)
    assert len(found) == len(models)
    for model, one in zip(models, found, strict=True):
        alone = certify(model)
        verify(one, model)
        assert one.digest == alone.digest and one.method == alone.method
        assert one.lip == pytest.approx(alone.lip, rel=1e-9)
        assert one.sampled_lower == pytest.approx(alone.sampled_lower, rel=1e-9)


def test_parts_of_the_list_go_to_workers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    models, seen = mixed(), dict[int, int]()
    real = many._side_by_side

    def noted(part: Any) -> Any:
        seen[part.first] = len(part.models)  # a part that was lost comes again
        return real(part)

    monkeypatch.setattr(many, "_side_by_side", noted)
    with joblib.parallel_config("threading"):
        found = certify(tuple(models), n_jobs=2)
    assert sum(seen.values()) == len(models) and len(seen) > 1
    assert [one.digest for one in found] == [one.digest for one in certify(models)]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_network_that_fails_is_named(n_jobs: int | None) -> None:
    joblib = pytest.importorskip("joblib")
    models = [net(3, 5, 2), net(3, 5, 2), nn.Sequential(nn.Linear(3, 2), nn.Dropout())]
    with joblib.parallel_config("threading"), pytest.raises(UnsupportedModule, match=r"model\[2\]"):
        certify(models, n_jobs=n_jobs)


def test_options_are_those_of_every_network() -> None:
    models = [net(3, 5, 2, act=nn.Tanh), net(3, 5, 2, seed=1)]
    for kind in ("pairwise", "per_output"):
        found = certify(models, kind=kind, progress=False)
        assert [one.kind for one in found] == [kind] * 2
    limited = certify(models, solver=SolverConfig(time_limit=60.0), requested=9.0, norm="linf")
    for model, one in zip(models, limited, strict=True):
        verify(one, model)
        assert one.requested == 9.0 and one.norm == "linf"
    assert certify([]) == []


def test_workers_are_for_lists() -> None:
    with pytest.raises(CertificateError, match="n_jobs: goes with a list"):
        certify(net(3, 5, 2), n_jobs=2)  # type: ignore[call-overload]
