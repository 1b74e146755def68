"""The nearest network under a bound: feasible, near, of the same class, and the input untouched."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import Lipschitz, SolverConfig, certify, project, verify
from admm_lip.networks.sorting_torch import MaxMin


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.act = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.second(self.act(self.first(x)))))


def net(activation: nn.Module | None = None, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(activation or nn.ReLU())
    for p in model.parameters():
        p.data *= 2.0
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return math.sqrt(
        sum(float((p.double() - q.double()).square().sum().detach()) for p, q in pairs)
    )


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.LeakyReLU(0.3), nn.Tanh()])
@pytest.mark.parametrize("share", [0.8, 0.2])
def test_the_projection_is_certified_near_and_new(activation: nn.Module, share: float) -> None:
    model = net(activation)
    before = copy.deepcopy(model.state_dict())
    lip = certify(model).lip
    result = project(model, bound=share * lip)
    assert result.certificate.lip <= share * lip
    assert result.certificate.lip >= 0.99 * share * lip
    assert result.certificate.requested == share * lip
    verify(result.certificate, result.model)
    assert type(result.model) is Net
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.distance == pytest.approx(distance(model, result.model), rel=1e-6)
    # Scaling all layers evenly is one way to meet the bound; it must not be nearer.
    weights = [p.detach().double() for p in model.parameters() if p.ndim == 2]
    shrink = 1.0 - share ** (1.0 / 3.0)
    evenly = shrink * math.sqrt(sum(float(w.square().sum()) for w in weights))
    assert result.distance < 0.8 * evenly


def test_moving_the_multiplier_beats_the_first_one() -> None:
    from admm_lip.networks.chain import linear_layers, read_network
    from admm_lip.solvers import solve_project
    from admm_lip.training.config import AdmmConfig
    from admm_lip.training.project import _convex_slopes, _start
    from admm_lip.training.terms import Terms

    model = net().double()
    bound = 0.3 * certify(model).lip
    anchor = tuple(layer.weight.detach() for layer in linear_layers(model))
    terms = Terms(Lipschitz(bound), _convex_slopes(model), AdmmConfig())
    first = solve_project(_start(anchor, terms, bound, SolverConfig()))
    assert project(model, bound=bound).distance < 0.97 * first.distance
    assert read_network(model).chain().widths == (5, 8, 7, 3)


def test_a_network_inside_the_bound_stays_where_it_is() -> None:
    model = net()
    result = project(model, bound=1.01 * certify(model).lip)
    assert result.distance == 0.0
    assert distance(model, result.model) == 0.0
    assert result.model is not model


def test_a_single_affine_map_has_its_singular_values_clipped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64))
    u, s, v = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    bound = float(s[1])
    result = project(model, bound=bound)
    clipped = u @ torch.diag(s.clamp(max=bound)) @ v
    torch.testing.assert_close(result.model[0].weight.detach(), clipped, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.model[0].bias, model[0].bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_numbers_that_are_certified_are_those_of_the_models_dtype(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    bound = 0.5 * certify(model).lip
    result = project(model, bound=bound, solver="native")
    assert result.model.first.weight.dtype == dtype
    assert result.certificate.lip <= bound
    verify(result.certificate, result.model)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, "3", True])
def test_a_bound_that_is_no_positive_number_is_refused(bound: Any) -> None:
    with pytest.raises(ValueError, match="bound: expected a number from 1e-30 to"):
        project(net(), bound=bound)


def test_networks_that_cannot_be_projected_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="input_shape: a network of convolutions needs the shape"):
        project(model, bound=1.0)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        project("model.pt", bound=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [False, True])
def test_biases_of_kernels_shrink_with_what_they_are_added_to(frozen: bool) -> None:
    """Kernels that keep all norms: the nearest ones are their multiples, and so is the network."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for size in (3.0, 2.0, 5.0):
        layers += [nn.Conv2d(4, 4, 1, dtype=torch.float64), MaxMin()]
        nn.init.orthogonal_(layers[-2].weight)  # type: ignore[arg-type]
        layers[-2].weight.data.mul_(size)  # type: ignore[union-attr,operator]
    model = nn.Sequential(*layers[:-1])
    middle = layers[2].bias
    assert isinstance(middle, nn.Parameter)
    middle.requires_grad_(not frozen)
    found = project(model, bound=1.5, input_shape=(4, 3, 3))
    assert found.certificate.lip == pytest.approx(1.5, rel=3e-3)
    if frozen:
        assert torch.equal(found.model[2].bias, middle)  # type: ignore[index]
        return
    x = torch.randn(7, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(found.model(x), model(x) * (1.5 / 30.0), rtol=3e-3, atol=1e-4)
