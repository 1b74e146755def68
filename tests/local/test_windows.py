"""Ranges of neurons behind convolutions, from the windows that they see."""

from __future__ import annotations

import pytest
import torch
from test_lifted_layers import graph
from torch import nn

from admm_lip.local import LocalConfig, curved_layers
from admm_lip.local.backward_lines import BackwardLines
from admm_lip.local.certify import task_of
from admm_lip.local.seen import Seen
from admm_lip.local.windows import windows_of
from admm_lip.networks.sorting_torch import MaxMin

NETWORKS = {
    "padded": lambda: (nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU()),
    "uneven": lambda: (
        *(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0)), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(4, 4, 3, 1, (0, 2), dilation=(1, 2)), nn.ReLU()),
        *(nn.Conv2d(4, 3, 2, 2), nn.ReLU()),
    ),
    "skips": lambda: graph("s", "relu", 0)[:-2],
    "sorted": lambda: (nn.Conv2d(2, 4, 4, 2, 1), MaxMin(), nn.Conv2d(4, 4, 3), MaxMin()),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_and_whole_rows_have_equal_ranges(
    name: str,
    box: tuple[float, float] | None,
    scale: float | None,
    norm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curved_layers, "_FORMED", 0)
    torch.manual_seed(0)
    body = nn.Sequential(*NETWORKS[name](), nn.Flatten()).double()
    x = torch.rand(3, 2, 9, 9).double()
    model = nn.Sequential(*body, nn.Linear(body(x).shape[1], 3).double())
    config = LocalConfig("norms", box=box, norm=norm, input_scale=scale)
    task = task_of(model, x, torch.zeros(3, dtype=torch.int64), None, config, None)
    seen = Seen.of(task, torch.tensor([0.0, 0.05, 0.4]).double())
    whole = BackwardLines(seen.lines.layers, seen.lines.region)
    for k in range(1, len(seen.forward.layers)):
        layer = whole.layers[k]
        windows, left = windows_of(whole.layers[: k + 1], whole.region)
        assert windows
        assert bool((left <= layer.copies).all())
        by_windows = whole.range(seen.forward.layers[:k], k)
        by_rows = whole._by_rows(seen.forward.layers[:k], k, ~layer.copies)
        for one, other in zip(by_windows, by_rows, strict=True):
            assert torch.allclose(one, other, rtol=0.0, atol=1e-10)


def test_what_is_no_convolution_has_no_windows() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.rand(1, 2, 2, 2).double()
    task = task_of(model, x, None, None, LocalConfig("norms"), None)
    lines = Seen.of(task, torch.tensor([0.1]).double()).lines
    windows, left = windows_of(lines.layers[:2], lines.region)
    assert windows == []
    assert bool(left.all())
