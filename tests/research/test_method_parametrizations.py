"""Methods whose networks keep a bound by construction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import UnsupportedModule
from admm_lip.networks.chain import linear_layers
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.research.comparators.aol import AlmostOrthogonal, almost_orthogonal
from admm_lip.research.comparators.cayley import Cayley, cayley
from admm_lip.research.comparators.sandwich import Sandwich, SandwichNet
from admm_lip.research.comparators.sll import Sll, SllBlock
from admm_lip.research.comparators.spectral import product_bound
from admm_lip.solvers.lmi import assemble, implied_bound, lmi_blocks
from admm_lip.solvers.problem import unit_slopes

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def free(shape: tuple[int, int], scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def shaken(net: nn.Module, scale: float = 0.5) -> nn.Module:
    """Every parameter moved, as training would."""
    torch.manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(scale * torch.randn_like(p))
    return net.eval()


def largest_slope(net: nn.Module, n_in: int, dtype: torch.dtype = torch.float64) -> float:
    """The best of many sampled difference quotients, some of them refined by Jacobians."""
    torch.manual_seed(5)
    x = 3.0 * torch.randn(2000, n_in, dtype=dtype)
    step = 10.0 ** (-3.0 * torch.rand(2000, 1, dtype=dtype)) * torch.randn_like(x)
    with torch.no_grad():
        slopes = (net(x + step) - net(x)).norm(dim=1) / step.norm(dim=1)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(x[:300])
    norms = torch.linalg.matrix_norm(jacobians, 2)
    return max(slopes.max().item(), norms.max().item())


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, scale=st.floats(1e-3, 30.0))
def test_cayley_is_orthogonal_on_its_shorter_side(shape: tuple[int, int], scale: float) -> None:
    q = cayley(free(shape, scale))
    gram = q.T @ q if shape[0] >= shape[1] else q @ q.T
    torch.testing.assert_close(
        gram, torch.eye(min(shape), dtype=torch.float64), rtol=0.0, atol=1e-11
    )


def test_cayley_is_the_textbook_formula() -> None:
    v = free((7, 4), 1.0)
    eye = torch.eye(4, dtype=torch.float64)
    a = v[:4] - v[:4].T + v[4:].T @ v[4:]
    inverse = torch.linalg.inv(eye + a)
    torch.testing.assert_close(cayley(v), torch.cat([inverse @ (eye - a), -2 * v[4:] @ inverse]))
    torch.testing.assert_close(cayley(v.T), cayley(v).T)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, scale=st.floats(1e-6, 1e6))
def test_aol_has_norm_at_most_one_and_keeps_orthogonal_matrices(
    shape: tuple[int, int], scale: float
) -> None:
    weight = almost_orthogonal(free(shape, scale))
    assert float(torch.linalg.matrix_norm(weight, 2)) <= 1.0 + 1e-12
    q = cayley(free(shape, 1.0))
    torch.testing.assert_close(almost_orthogonal(scale * q), q)


def test_aol_leaves_zero_columns_zero_with_finite_gradients() -> None:
    weight = free((6, 3), 1.0)
    weight[:, 1] = 0.0
    weight.requires_grad_(True)
    made = almost_orthogonal(weight)
    made.square().sum().backward()
    assert bool((made[:, 1] == 0).all())
    assert bool(torch.isfinite(weight.grad).all())


@pytest.mark.parametrize("function", [cayley, almost_orthogonal])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_parametrizations_pass_a_gradient_check(function: object, shape: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(function, free(shape, 1.0).requires_grad_(True))


@pytest.mark.parametrize("method", [Cayley(2.0), AlmostOrthogonal(2.0)])
def test_layerwise_networks_keep_the_bound_and_their_function(
    method: Cayley | AlmostOrthogonal,
) -> None:
    net = shaken(method.prepare(build_mlp(6, 4, ModelConfig(hidden=(9, 5)), seed=1)))
    x = torch.randn(50, 6)
    before = net(x).detach()
    plain = method.finish(net)
    assert float((plain(x) - before).abs().max().detach()) <= 1e-5
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert product_bound(plain) == method.lipschitz(plain) <= 2.0
    assert set(plain.state_dict()) == {f"{k}.{p}" for k in (0, 2, 4) for p in ("weight", "bias")}
    if isinstance(method, Cayley):
        assert method.lipschitz(plain) == pytest.approx(2.0, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 8), inner=st.integers(1, 8), scale=st.floats(0.1, 30.0))
def test_an_sll_block_does_not_expand(width: int, inner: int, scale: float) -> None:
    torch.manual_seed(width + 10 * inner)
    block = SllBlock(width, inner, nn.ReLU()).double()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(min(scale, 5.0) * torch.randn_like(p))
    assert block.lipschitz() <= 1.0 + 1e-9
    assert largest_slope(block, width) <= 1.0 + 1e-9


def test_the_sll_blocks_own_bound_notices_a_multiplier_that_is_too_small() -> None:
    class Cheating(SllBlock):
        def multiplier(self) -> Tensor:
            return 0.2 * super().multiplier()

    torch.manual_seed(0)
    block = Cheating(4, 4, nn.ReLU()).double()
    slope = largest_slope(block, 4)
    assert 1.5 < slope <= block.lipschitz() * (1 + 1e-12)


def test_sll_networks_keep_the_bound_and_refuse_to_be_a_chain() -> None:
    method = Sll(bound=3.0)
    net = method.prepare(build_mlp(6, 4, ModelConfig(hidden=(9, 5)), seed=1).double())
    net = shaken(net)
    x = torch.randn(50, 6, dtype=torch.float64)
    before = net(x).detach()
    done = method.finish(net)
    torch.testing.assert_close(done(x).detach(), before)
    claimed = method.lipschitz(done)
    assert largest_slope(done, 6) <= claimed <= 3.0 * (1 + 1e-9)
    with pytest.raises(UnsupportedModule):
        product_bound(done)


def test_sll_of_a_single_affine_map_is_an_almost_orthogonal_one() -> None:
    method = Sll(bound=3.0)
    done = method.finish(method.prepare(nn.Sequential(nn.Linear(6, 4))))
    assert 0.0 < method.lipschitz(done) <= 3.0 * (1 + 1e-6)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5, 6)])
@pytest.mark.parametrize("bound", [0.1, 1.0, 30.0])
def test_sandwich_networks_satisfy_the_lmi_with_their_multiplier(
    hidden: tuple[int, ...], bound: float
) -> None:
    net = build_mlp(6, 4, ModelConfig(hidden=hidden), seed=1).double()
    net = shaken(Sandwich(bound).prepare(net))
    assert isinstance(net, SandwichNet)
    weights, multiplier = [w.detach() for w in net.weights()], net.multiplier()
    lmi = assemble(*lmi_blocks(weights, unit_slopes(weights), multiplier, bound**2))
    scale = torch.diagonal(lmi).rsqrt()
    eigenvalues = torch.linalg.eigvalsh(scale[:, None] * lmi * scale)
    assert float(eigenvalues[0]) >= -1e-12
    if hidden:
        implied = implied_bound(weights, unit_slopes(weights), multiplier)
        assert implied <= bound * (1 + 1e-9)
    assert largest_slope(net, 6) <= bound * (1 + 1e-9)


def test_a_sandwich_network_equals_its_layers_one_by_one() -> None:
    net = build_mlp(6, 4, ModelConfig(hidden=(9, 5), activation="tanh"), seed=1).double()
    net = shaken(Sandwich(2.0).prepare(net))
    assert isinstance(net, SandwichNet)
    x = torch.randn(20, 6, dtype=torch.float64)
    h = math.sqrt(2.0) * x
    for k, (kernel, gain) in enumerate(zip(net.kernels, net.gains, strict=True)):
        rows = len(kernel)
        both = cayley(gain * kernel / kernel.norm())
        a, b = both[:, :rows], both[:, rows:]
        if k == 2:
            h = math.sqrt(2.0) * h @ b.T + net.biases[k]
            break
        psi = net.psi[k].exp()
        inner = torch.tanh(math.sqrt(2.0) * (h @ b.T) / psi + net.biases[k])
        h = math.sqrt(2.0) * (inner * psi) @ a
    torch.testing.assert_close(net(x), h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
def test_sandwich_ships_a_plain_chain_below_its_bound(
    dtype: torch.dtype, hidden: tuple[int, ...]
) -> None:
    method = Sandwich(3.0)
    model = nn.Sequential(nn.Flatten(), *build_mlp(6, 4, ModelConfig(hidden=hidden), seed=1))
    net = shaken(method.prepare(model.to(dtype)))
    assert isinstance(net, SandwichNet)
    x = torch.randn(50, 2, 3, dtype=dtype)
    before = net(x).detach()
    plain = method.finish(net)
    assert [type(m) for m in plain][:2] == [nn.Flatten, nn.Linear]
    assert float((plain(x) - before).abs().max().detach()) <= 30 * torch.finfo(dtype).eps * 10
    weights = [m.weight.detach().double() for m in linear_layers(plain)]
    if hidden:
        assert implied_bound(weights, unit_slopes(weights), net.multiplier()) <= 3.0
    else:
        assert float(torch.linalg.matrix_norm(weights[0], 2)) <= 3.0
    assert method.lipschitz(plain) == 3.0


@pytest.mark.parametrize("method", [Sandwich(), Sll()])
def test_slopes_outside_the_unit_range_are_refused(method: Sandwich | Sll) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(-0.5), nn.Linear(3, 3))
    with pytest.raises(UnsupportedModule, match=r"slopes in \[0, 1\], got leaky_relu"):
        method.prepare(net)
