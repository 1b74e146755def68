"""Networks of convolutions trained and projected under a bound, one ball per layer."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_nets import IMAGE, QUICK, data, small
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, certify, project, train, verify
from admm_lip.certificates.certificate import Certificate
from admm_lip.certificates.torus.product import certify_product
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.sorting_torch import GroupSort2, MaxMin
from admm_lip.solvers import ProjectSolution
from admm_lip.training.config import AdmmConfig, FinetuneConfig
from admm_lip.training.kernel_ball import KernelBall
from admm_lip.training.kernel_layers import kernel_layers
from admm_lip.training.lipschitz_step import lipschitz_step
from admm_lip.training.project_kernels import moved_by
from admm_lip.training.terms import LayerNorms, grouped


def unrolled_norms(model: nn.Module, certificate: Certificate) -> float:
    """Steepest slope found by singular values of Jacobians at random points."""
    points = torch.randn(16, *certificate.input_shape, generator=torch.Generator().manual_seed(2))
    flat = model.double()
    return max(
        float(
            torch.linalg.matrix_norm(
                torch.autograd.functional.jacobian(flat, p[None].double()).reshape(-1, p.numel()), 2
            )
        )
        for p in points
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "strided, pooled, dense head": small,
    "sorted upwards": lambda: small(sort=GroupSort2),
    "global average": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 4, 2, 1), MaxMin(), nn.Conv2d(4, 6, 3, 1, 1, groups=2), MaxMin()),
        *(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(6, 2)),
    ),
    "dilated, same, no bias": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, (3, 2), 1, "same", 2, bias=False), MaxMin()),
        *(nn.Conv2d(4, 2, 3, 3), nn.Flatten(), nn.Linear(8, 2)),
    ),
    "modules": lambda: small(sort=nn.ReLU),
    "modules, linear in front of the flattening": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 4, 2, 1), nn.Flatten()),
        *(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2)),
    ),
    "modules, one layer left": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)),
        *(nn.Conv2d(4, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_run_ends_under_its_bound_with_a_proof(name: str) -> None:
    torch.manual_seed(0)
    model = NETS[name]()
    before = copy.deepcopy(model.state_dict())
    result = train(model, data(), QUICK, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [type(m) for m in result.model] == [type(m) for m in model]
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 1.0
    product = result.certificate.norm_product
    assert (1.0 + 1e-6 < product < 4.0) if "modules" in name else 0.95 < product < 1.0 + 1e-6
    assert unrolled_norms(result.model, result.certificate) <= result.certificate.lip
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.75 * losses[0]
    assert {row["backend"] for row in result.history} == {"layer_norms"}


def test_every_layer_is_in_its_ball_and_used_up() -> None:
    result = train(small(), data(), QUICK, progress=False)
    layers, norms = kernel_layers(result.model, IMAGE)
    assert [*layers] == ["0", "2", "6", "8"]
    assert norms.gain == pytest.approx(0.5)
    each = 2.0**0.25
    found = [
        ball.norm(layer.weight.detach())
        for ball, layer in zip(norms.balls, layers.values(), strict=True)
    ]
    assert found == pytest.approx([each] * 4, rel=1e-5)
    exact = certify(result.model, IMAGE, structure="exact")
    assert exact.lip <= result.certificate.lip


_LAYERS = {
    "modules": [2, 2],
    "modules, linear in front of the flattening": [2, 2],
    "modules, one layer left": [2, 1, 1],
}


@pytest.mark.parametrize("name", _LAYERS)
def test_every_module_is_in_its_ball_and_used_up_and_no_layer_is(name: str) -> None:
    torch.manual_seed(0)
    result = train(NETS[name](), data(), QUICK, progress=False)
    layers, norms = kernel_layers(result.model, IMAGE)
    weights = tuple(layer.weight.detach() for layer in layers.values())
    groups = [*grouped(norms.balls, weights)]
    assert [ball.layers for ball, _ in groups] == _LAYERS[name]
    each = norms.share(1.0, len(weights))
    assert [ball.norm_of(own) for ball, own in groups] == pytest.approx(
        [each] * len(groups), rel=1e-3
    )
    _, alone = kernel_layers(result.model, IMAGE, "layers")
    assert {ball.layers for ball in alone.balls} == {1}
    assert _product(layers, alone) > 1.05
    # What training proved is what the certificate says, and what others find is less still.
    assert result.certificate.method == "closed_form"
    exact = certify(result.model, IMAGE, structure="exact")
    assert exact.lip <= result.certificate.lip


class TestModules:
    """Two layers in one ball, in whatever a constraint does."""

    def test_a_frozen_or_masked_layer_leaves_its_module(self) -> None:
        net = small(sort=nn.ReLU)
        net[0].weight.requires_grad_(False)
        kept = net[0].weight.detach().clone()
        mask = torch.zeros(8, 24, dtype=torch.bool)
        mask[:, :3] = True
        result = train(net, data(), QUICK, held={"6.weight": mask}, progress=False)
        verify(result.certificate, result.model)
        assert result.certificate.lip <= 1.0
        assert torch.equal(result.model[0].weight, kept)
        assert torch.equal(result.model[6].weight[mask], net[6].weight[mask])
        found = Constraint(net, Lipschitz(1.0), input_shape=IMAGE).terms.slopes
        assert isinstance(found, LayerNorms)
        assert [ball.layers for ball in found.balls] == [1, 1, 2]
        assert found.sharing(4) == (False, True, True, True)

    def test_a_run_goes_on_from_its_folder_to_equal_bits(self, tmp_path: Path) -> None:
        check_goes_on(lambda: small(sort=nn.ReLU), data(), QUICK, tmp_path)

    def test_the_price_moves_the_bound_by_the_derivative_of_what_is_minimised(self) -> None:
        asked = Lipschitz(mu=0.3)
        constraint = Constraint(small(sort=nn.ReLU), asked, input_shape=IMAGE)
        generator = torch.Generator().manual_seed(5)
        anchor = tuple(
            w + 0.3 * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            for w in constraint.state.consensus
        )
        config = dataclasses.replace(constraint.terms.config, projection_tol=1e-9)
        terms = dataclasses.replace(constraint.terms, config=config)

        def solved(log_s: float) -> ProjectSolution:
            state = dataclasses.replace(constraint.state, target_sq=math.exp(log_s))
            return lipschitz_step(anchor, state, terms)

        here = solved(-1.0)
        rows = zip(anchor, here.weights, strict=True)
        pull = sum(float(((v - w) * w).sum()) for v, w in rows) / 4.0
        slope = 0.3 * here.lip_sq - 0.5 * constraint.state.rho * pull
        away = 1e-3
        change = solved(-1.0 + away).objective - solved(-1.0 - away).objective
        assert change / (2.0 * away) == pytest.approx(slope, rel=1e-3)

    def test_a_projection_suits_layers_of_any_scale(self) -> None:
        """The nearest network in the balls that weigh a module's layers as they are scaled."""
        net = small(4, nn.ReLU)
        with torch.no_grad():
            net[0].weight.mul_(8.0)
            net[2].weight.div_(8.0)
        bound = 0.5 * certify_product(network_of(net, IMAGE)).lip
        found = project(net, bound, input_shape=IMAGE)
        verify(found.certificate, found.model)
        assert 0.99 * bound < found.certificate.lip <= bound
        scaled = copy.deepcopy(net)
        with torch.no_grad():
            for k in (0, 2, 6, 8):
                scaled[k].weight.mul_(0.5**0.25)
        assert 0.0 < found.distance < 0.9 * moved_by(net, scaled)

    @pytest.mark.parametrize(
        ("net", "shape", "match"),
        [
            (small, IMAGE, "balls: 'modules' needs two convolutions"),
            (lambda: nn.Sequential(nn.Linear(4, 2)), None, "balls: 'modules' is for networks of"),
        ],
    )
    def test_modules_are_refused_where_there_are_none(
        self, net: Callable[[], nn.Module], shape: tuple[int, ...] | None, match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            Constraint(net(), Lipschitz(1.0), AdmmConfig(balls="modules"), input_shape=shape)


def test_layers_are_measured_on_the_torus_of_the_certificate() -> None:
    _, norms = kernel_layers(small(), IMAGE)
    assert [ball.grid for ball in norms.balls[:2] if isinstance(ball, KernelBall)] == [(5, 5)] * 2
    _, alone = kernel_layers(nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1)), (1, 7, 9))
    assert alone.balls == (KernelBall((3, 3), (4, 5), (2, 2), start=(1, 1)),)


def test_a_hand_written_loop_keeps_the_bound_and_is_proven() -> None:
    net, (x, y) = small(), data()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    constraint = Constraint(net, Lipschitz(bound=2.0), input_shape=IMAGE).attach(optimizer)
    for rows in torch.randint(256, (12, 32), generator=torch.Generator().manual_seed(3)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        with constraint.shipped() as inside:
            assert _product(*kernel_layers(inside, IMAGE)) <= 2.0 * (1.0 + 1e-7)
    net, certificate = constraint.finish()
    verify(certificate, net)
    assert certificate.lip <= 2.0


def _product(layers: dict[str, nn.Module], norms: LayerNorms) -> float:
    pairs = zip(norms.balls, layers.values(), strict=True)
    return norms.gain * math.prod(ball.norm(layer.weight.detach()) for ball, layer in pairs)


def test_a_constraint_goes_on_from_its_state_to_equal_bits() -> None:
    x, y = data()

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for k in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                net(x[32 * k : 32 * k + 32]), y[32 * k : 32 * k + 32]
            ).backward()
            optimizer.step()

    def begun() -> tuple[nn.Module, torch.optim.Optimizer, Constraint]:
        net = small()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        made = Constraint(net, Lipschitz(bound=1.0), input_shape=IMAGE)
        return net, optimizer, made.attach(optimizer)

    net, optimizer, constraint = begun()
    steps(net, optimizer, 8)
    kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), constraint.state_dict()))
    steps(net, optimizer, 8)
    other, other_optimizer, again = begun()
    other.load_state_dict(kept[0])
    other_optimizer.load_state_dict(kept[1])
    again.load_state_dict(kept[2])
    steps(other, other_optimizer, 8)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert constraint.finish().certificate == again.finish().certificate


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(small, data(), QUICK, tmp_path)


@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_a_projection_meets_its_bound_and_is_near(bound: float) -> None:
    model = small(4)
    found = project(model, bound, input_shape=IMAGE)
    verify(found.certificate, found.model)
    if bound == 100.0:
        assert found.distance == 0.0
        return
    assert 0.99 * bound < found.certificate.lip <= bound
    scaled = (1.0 - (bound / certify(model, IMAGE).norm_product) ** 0.25) * math.sqrt(
        sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim > 1)
    )
    assert 0.0 < found.distance < scaled


def test_a_projection_is_fine_tuned_on_data() -> None:
    (x, y), model = data(), small(5)
    config = FinetuneConfig(eps=0.05, lr=1e-2, distill=0.0)
    found = project(model, 1.0, finetune=(x, y), epochs=6, config=config, progress=False)
    verify(found.certificate, found.model)
    assert found.certificate.lip <= 1.0
    assert found.after is not None and found.before is not None
    assert found.after.accuracy > found.before.accuracy


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "reflected pixels": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), MaxMin()),
        r"0 \(Conv2d\): padding_mode='reflect' repeats pixels",
    ),
    "replicated pixels": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate"), MaxMin()),
        r"0 \(Conv2d\): padding_mode='replicate' repeats pixels",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3, output_padding=0)),
        r"1 \(ConvTranspose2d\): transposed convolutions are not trained",
    ),
    "normalised": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), MaxMin()),
        r"1 \(BatchNorm2d\): its statistics move",
    ),
    "learnt slopes": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(2), nn.Conv2d(2, 1, 3)),
        r"1 \(PReLU\): its weight would be trained",
    ),
    "softmax": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.LogSoftmax(1)),
        r"2 \(log_softmax\): can be certified but not trained",
    ),
    "odd channels": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), MaxMin()), r"even number of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_ball_holds_is_refused_by_name(name: str) -> None:
    make, match = REFUSED[name]
    with pytest.raises((UnsupportedModule, ValueError), match=match):
        Constraint(make(), Lipschitz(1.0), input_shape=IMAGE)


def test_skips_and_ties_are_refused_by_name() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.conv(x))

    with pytest.raises(UnsupportedModule, match="skip connections or branches"):
        Constraint(Skip(), Lipschitz(1.0), input_shape=IMAGE)
    with pytest.raises(ValueError, match="input_shape: a network of convolutions needs"):
        project(small(), 1.0)
    mean = torch.zeros(64)
    with pytest.raises(ValueError, match=r"mean: goes with a first layer that is an nn\.Linear"):
        Constraint(small(), Lipschitz(1.0), input_shape=IMAGE, mean=mean)


def test_one_dimension_trains_as_images_of_one_row() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 2, 4), nn.Flatten(), nn.Linear(10, 2)
    )
    x = torch.randn(128, 2, 16, generator=torch.Generator().manual_seed(4))
    result = train(net, (x, (x[:, 0].sum(1) > 0).long()), QUICK, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 1.0
    assert isinstance(result.model[0], nn.Conv1d)
