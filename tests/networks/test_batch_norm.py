"""Batch normalisation folded into the layer before it: the same function, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from admm_lip import certify, fold_batch_norm, project, verify
from admm_lip.errors import UnsupportedModule
from benchmarks.image_bounds import resnet


def used(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """In double precision, statistics and factors such as data leave behind."""
    torch.manual_seed(0)
    net = net.double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for _ in range(3):
        net(torch.randn(8, *shape).double())
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a residual network": (lambda: resnet(8), (3, 32, 32)),
    "a perceptron": (
        lambda: nn.Sequential(
            *(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2, bias=False)),
            nn.BatchNorm1d(2, affine=False),
        ),
        (3,),
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten()),
        (2, 4, 4),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_the_same_and_the_network_is_left_as_it_was(name: str) -> None:
    make, shape = NETWORKS[name]
    net = used(make(), shape)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold_batch_norm(net)
    assert net.training and not folded.training
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    x = torch.randn(4, *shape).double()
    torch.testing.assert_close(folded(x), net.eval()(x), atol=1e-12, rtol=1e-12)
    again = fold_batch_norm(folded)
    assert torch.equal(again(x), folded(x))


class Twice(nn.Module):
    """What its convolution gives is also taken by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "in front": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)), "0 "),
    "behind an activation": (
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)),
        "2 ",
    ),
    "taken twice": (Twice(), "norm "),
    "no statistics": (
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        "1 ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_by_name(name: str) -> None:
    net, where = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=rf"^{where}\(BatchNorm2d\): is folded into"):
        fold_batch_norm(net)


def test_a_projection_folds_by_itself() -> None:
    net = used(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(36, 2)),
        ),
        (1, 6, 6),
    )
    bound = 0.5 * certify(fold_batch_norm(net), (1, 6, 6), structure="torus").lip
    found = project(net, bound, input_shape=(1, 6, 6))
    verify(found.certificate, found.model)
    assert 0.9 * bound < found.certificate.lip <= bound
    wide = project(net, 1e6, input_shape=(1, 6, 6))
    x = torch.randn(5, 1, 6, 6).double()
    torch.testing.assert_close(wide.model(x), net.eval()(x))
    assert wide.distance == 0.0
