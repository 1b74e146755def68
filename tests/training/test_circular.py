"""Circular padding under a bound: norms on the torus of the image itself, trained and projected."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, TrainConfig, certify, project, train, verify
from admm_lip.certificates.torus.read import furthest_chain
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.foreign.pt2 import read_exported
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.module_ball import ModuleBall
from admm_lip.training.residual_ball import ResidualBall
from admm_lip.training.terms import TiedBall

IMAGE = (1, 8, 8)
QUICK = TrainConfig(bound=1.0, epochs=4, batch_size=32, loss="margin", eps=0.1, start="scratch")


def circular(*sizes: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*sizes, padding_mode="circular", **options)


class Around(nn.Module):
    """Circular along the columns only, as panoramas are; zeros above and below."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.CircularPad2d((1, 1, 0, 0)), nn.Conv2d(2, 3, 3, padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class Block(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.into = circular(channels, hidden, 3, padding=1)
        self.back = circular(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.into(x)))


class Added(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = circular(channels, channels, (2, 3), padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Tied(nn.Module):
    """``x - K' relu(K x)``, the adjoint padded around as well."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv, self.pad = circular(channels, hidden, 3, padding=1), nn.CircularPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pad(torch.relu(self.conv(x)))
        return x + F.conv2d(hidden, -self.conv.weight.transpose(0, 1).flip(2, 3))


def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A linear layer, column by column."""
    size = math.prod(shape)
    with torch.no_grad():
        rows = layer(torch.eye(size).double().reshape(-1, *shape))
        return (rows - layer(torch.zeros(1, *shape).double())).flatten(1).T


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: circular(2, 3, 3, padding=1), (2, 5, 6)),
    "strided": (lambda: circular(2, 3, 4, padding=1, stride=2), (2, 6, 4)),
    "uneven, dilated": (lambda: circular(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 4, 5)),
    "groups": (lambda: circular(4, 6, 3, padding=1, groups=2), (4, 5, 3)),
    "one row": (
        lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"),
        (2, 7),
    ),
    "added": (lambda: Added(2), (2, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_is_that_of_the_layer_itself(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    layers, norms = kernel_layers(nn.Sequential(layer), shape)
    (ball,), ((_, own),) = norms.balls, layers.items()
    exact = float(torch.linalg.matrix_norm(matrix_of(layer, shape), 2))
    assert norms.gain == 1.0
    assert ball.norm_of((own.weight.detach(),)) == pytest.approx(exact, rel=1e-9)
    near = ball.nearest_to((own.weight.detach(),), 0.5 * exact, 1e-7)[0]
    own.weight.data.copy_(near[0])
    found = float(torch.linalg.matrix_norm(matrix_of(layer, shape), 2))
    assert 0.5 * exact * (1.0 - 1e-5) < found <= 0.5 * exact * (1.0 + 1e-9)


def test_one_axis_around_and_zeros_along_the_other() -> None:
    torch.manual_seed(0)
    layer = Around().double()
    layers, norms = kernel_layers(layer, (2, 5, 4))
    (ball,), (own,) = norms.balls, layers.values()
    assert ball.grid == (6, 4)
    exact = float(torch.linalg.matrix_norm(matrix_of(layer, (2, 5, 4)), 2))
    taller = float(torch.linalg.matrix_norm(matrix_of(layer, (2, 24, 4)), 2))
    assert exact < ball.norm(own.weight.detach())
    assert ball.norm(own.weight.detach()) == pytest.approx(taller, rel=0.05)


def test_a_module_stands_on_the_image_or_is_none() -> None:
    torch.manual_seed(0)
    pair = [circular(2, 3, 3, padding=1), nn.ReLU(), circular(3, 2, 4, padding=1, stride=2)]
    net = nn.Sequential(*pair).double()
    layers, norms = kernel_layers(net, (2, 6, 4))
    (ball,) = norms.balls
    assert isinstance(ball, ModuleBall)
    weights = tuple(layer.weight.detach() for layer in layers.values())
    first, second = matrix_of(net[0], (2, 6, 4)), matrix_of(net[2], (3, 6, 4))
    exact = torch.linalg.matrix_norm(torch.cat((first.T, second)), 2) / math.sqrt(2.0)
    assert ball.norm_of(weights) == pytest.approx(float(exact), rel=1e-9)
    net[0] = nn.Conv2d(2, 3, 3, padding=1).double()
    assert [type(b).__name__ for b in kernel_layers(net, (2, 6, 4))[1].balls] == ["KernelBall"] * 2


def test_a_residual_block_is_the_matrix_inequality_of_its_matrices() -> None:
    torch.manual_seed(0)
    block, shape = Block(2, 3).double(), (2, 4, 5)
    layers, norms = kernel_layers(block, shape, growth=1.5)
    (ball,) = norms.balls
    assert isinstance(ball, ResidualBall)
    g1, g2 = matrix_of(block.into, shape), matrix_of(block.back, (3, 4, 5))
    whole = torch.cat((g2, (g1.T + g2) / math.sqrt(1.5**2 - 1.0)))
    exact = float(torch.linalg.matrix_norm(whole, 2)) / math.sqrt(2.0)
    weights = tuple(layer.weight.detach() for layer in layers.values())
    assert ball.norm_of(weights) == pytest.approx(exact, rel=1e-9)
    tied = kernel_layers(Tied(2, 3).double(), shape)[1].balls[0]
    assert isinstance(tied, TiedBall)


def small(seed: int = 0, act: Callable[[], nn.Module] = MaxMin) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(circular(1, 4, 4, padding=1, stride=2), act(), circular(4, 4, 3, padding=1), act()),
        *(nn.Flatten(), nn.Linear(64, 2)),
    )


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(circular(1, 4, 4, padding=1, stride=2), MaxMin(), Block(4, 6), Added(4), MaxMin()),
        *(Tied(4, 3), nn.Flatten(), nn.Linear(64, 2)),
    )


def mixed() -> nn.Sequential:
    net = small()
    net[2] = nn.Conv2d(4, 4, 3, padding=1)
    return net


NETS = {"plain": small, "modules": lambda: small(act=nn.ReLU), "blocks": blocks, "mixed": mixed}


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :4].sum((1, 2)) > 0).long()


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("name", NETS)
def test_a_run_ends_under_its_bound_with_a_proof_and_so_does_a_projection(name: str) -> None:
    net = NETS[name]()
    found = project(net, 0.4, input_shape=IMAGE)
    assert 0.99 * 0.4 < found.certificate.lip <= 0.4
    result = train(net, data(), QUICK, progress=False)
    assert 0.8 < result.certificate.lip <= 1.0
    for model, certificate in (
        (result.model, result.certificate),
        (found.model, found.certificate),
    ):
        verify(certificate, model)
        for x in torch.randn(4, 1, *IMAGE, dtype=torch.float64):
            slope = torch.autograd.functional.jacobian(model.double(), x).reshape(2, -1)
            assert float(torch.linalg.matrix_norm(slope, 2)) <= certificate.lip


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)


def test_the_layers_are_those_that_torch_exports() -> None:
    net = small(act=nn.ReLU)
    exported = read_exported(torch.export.export(net, (torch.zeros(2, *IMAGE),)), IMAGE)
    assert network_of(net, IMAGE).digest() == exported.digest()


class Aside(nn.Module):
    """``relu(relu(x) - x)``: the activation acts on a value that is padded around as well."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.CircularPad2d(1), nn.Conv2d(1, 1, 3, bias=False)
        self.last = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.dirac_(self.conv.weight)
        nn.init.dirac_(self.last.weight)
        self.conv.weight.data.neg_()

    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        risen = torch.relu(x)
        return torch.relu(self.last(self.conv(padded) + risen))


def test_what_is_padded_stays_while_another_layer_takes_the_same_value() -> None:
    net = Aside().double()
    chain = furthest_chain(network_of(net, (1, 4, 4)))
    assert len(chain.activations) == 2
    slope = torch.autograd.functional.jacobian(net, -torch.ones(1, 1, 4, 4).double())
    steepest = float(torch.linalg.matrix_norm(slope.reshape(16, 16), 2))
    found = certify(net, (1, 4, 4), structure="torus")
    verify(found, net)
    assert pytest.approx(steepest) == 1.0
    assert steepest <= found.lip


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "a stride that does not divide the image": lambda: circular(1, 2, 3, padding=1, stride=3),
    "more outputs than the image has": lambda: circular(1, 2, 3, padding=2),
    "a kernel beyond the image": lambda: circular(1, 2, 9, padding=4),
    "zeros beside": lambda: nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(1, 2, 3, padding=1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_convolution_on_the_image_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModule, match="pads around an image of 8 along axis 0"):
        Constraint(nn.Sequential(REFUSED[name](), nn.ReLU()), Lipschitz(1.0), input_shape=IMAGE)


def test_a_block_of_which_one_kernel_alone_is_padded_around_is_refused() -> None:
    block = Block(1, 2)
    block.back = nn.Conv2d(2, 1, 3, padding=1)
    with pytest.raises(UnsupportedModule, match=r"into: pads around, so that its block stands"):
        kernel_layers(block, IMAGE)
