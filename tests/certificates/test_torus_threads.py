"""Networks on a torus are certified on one thread of NumPy's linear algebra."""

from __future__ import annotations

from typing import Any

import pytest
import threadpoolctl
import torch
from torch import nn

from admm_lip import certify
from admm_lip.certificates.torus import certify as torus
from admm_lip.certificates.torus.product import certify_product
from admm_lip.networks.chain import read_network


def _numbers() -> set[int]:
    found = threadpoolctl.threadpool_info()
    return {library["num_threads"] for library in found if library["user_api"] == "blas"}


def test_a_search_has_one_thread_and_the_caller_its_own_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1))
    seen: list[set[int]] = []
    search = torus.search

    def watched(*given: Any, **more: Any) -> Any:
        seen.append(_numbers())
        return search(*given, **more)

    monkeypatch.setattr(torus, "search", watched)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = _numbers()
        made = certify(net, (1, 6, 6), structure="torus")
        product = certify_product(read_network(net, (1, 6, 6)))
        assert _numbers() == before
    assert seen and all(numbers <= {1} for numbers in seen)
    assert made.lip <= product.lip * (1.0 + 1e-6)
