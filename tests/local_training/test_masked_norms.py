"""Operators and the norms of their masked matrices, against dense ones."""

from __future__ import annotations

import pytest
import torch
from clipped_nets import convnet, dense, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip.errors import NetworkError, UnsupportedModule
from admm_lip.local_training.boxes import Masks
from admm_lip.local_training.norms import masked_norms, vector_shape
from admm_lip.local_training.operators import OPERATORS, Operator
from admm_lip.local_training.proven_norms import ProvenNorms
from admm_lip.local_training.stages import Stage, read_stages
from admm_lip.local_training.torus import torus_norm
from admm_lip.local_training.warm_starts import WarmStarts

torch.manual_seed(0)
LAYERS: dict[str, tuple[str, nn.Module, tuple[int, ...]]] = {
    "linear": ("linear", nn.Linear(7, 5), (7,)),
    "tall": ("linear", nn.Linear(3, 9), (3,)),
    "plain": ("conv2d", nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "strided": ("conv2d", nn.Conv2d(3, 2, 4, stride=2, padding=1), (3, 7, 8)),
    "sparse": ("conv2d", nn.Conv2d(2, 4, 2, stride=3), (2, 8, 7)),
    "point": ("conv2d", nn.Conv2d(2, 4, 1, stride=2), (2, 5, 5)),
    "dilated": ("conv2d", nn.Conv2d(2, 2, 3, dilation=2, padding=2), (2, 6, 6)),
    "grouped": ("conv2d", nn.Conv2d(4, 4, 3, groups=2), (4, 5, 5)),
    "uneven": ("conv2d", nn.Conv2d(2, 2, (3, 2), stride=(2, 1)), (2, 6, 5)),
    "same": ("conv2d", nn.Conv2d(2, 2, 3, padding="same", bias=False), (2, 4, 4)),
    "pool": ("avg_pool2d", nn.AvgPool2d(2), (2, 6, 5)),
    "padded_pool": ("avg_pool2d", nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 5, 5)),
    "divided_pool": ("avg_pool2d", nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def operator(name: str) -> Operator:
    kind, layer, shape = LAYERS[name]
    return OPERATORS[kind](name, layer.double(), shape)


def masks_of(op: Operator, count: int = 4, seed: int = 0) -> Masks:
    g = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, *op.shape_out, generator=g) < 0.7
    columns = torch.rand(count, *op.shape_in, generator=g) < 0.6
    return Masks(rows.double(), columns.double())


def masked(op: Operator, masks: Masks) -> Tensor:
    """Masked dense matrices, ``(batch, out, in)``."""
    assert masks.rows is not None
    assert masks.columns is not None
    return masks.rows.flatten(1)[:, :, None] * dense(op) * masks.columns.flatten(1)[:, None]


@pytest.mark.parametrize("count", range(1, 12))
def test_rows_of_pools_are_doubles(count: int) -> None:
    op = OPERATORS["avg_pool2d"]("pool", nn.AvgPool2d((1, count)), (1, 2, count))
    assert op.row_norms().item() == pytest.approx(count**-0.5, rel=1e-15)


@every_layer
def test_operators_are_their_matrices(name: str) -> None:
    op = operator(name)
    matrix = dense(op)
    x = torch.randn(3, *op.shape_in, dtype=torch.float64)
    u = torch.randn(3, *op.shape_out, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(op.forward(x).flatten(1), x.flatten(1) @ matrix.T)
        assert torch.allclose(op.adjoint(u).flatten(1), u.flatten(1) @ matrix)
        assert torch.allclose(op.absolute(x).flatten(1), x.flatten(1) @ matrix.abs().T)
        mask = (x > 0).double()
        squared = mask.flatten(1) @ matrix.square().T
        assert bool((op.squared(mask).flatten(1) >= squared - 1e-12).all())
        norms = op.row_norms().expand(op.shape_out).flatten()
        assert bool((norms >= matrix.norm(dim=1) - 1e-12).all())


@every_layer
def test_trained_products_have_torch_gradients(name: str) -> None:
    op = operator(name)
    x = torch.randn(3, *op.shape_in, dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, *op.shape_out, dtype=torch.float64)
    learned = [x] if op.weight is None else [x, op.weight]
    mine = torch.autograd.grad((op.trained(x) * u).sum(), learned)
    theirs = torch.autograd.grad((op.forward(x) * u).sum(), learned)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other)


@every_layer
def test_power_iteration_finds_the_norm_of_the_masked_matrix(name: str) -> None:
    op, g = operator(name), torch.Generator().manual_seed(1)
    masks = masks_of(op)
    start = torch.randn(4, *vector_shape(op), generator=g, dtype=torch.float64)
    exact = torch.linalg.matrix_norm(masked(op, masks), 2)
    few, _ = masked_norms(op, masks, start, 2)
    many, vectors = masked_norms(op, masks, start, 3000)
    assert bool((few <= exact * (1 + 1e-12)).all())
    assert torch.allclose(many.detach(), exact, rtol=1e-4)
    again, _ = masked_norms(op, masks, vectors, 1)
    assert torch.allclose(again.detach(), exact, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "tall", "plain", "strided"])
def test_the_gradient_is_that_of_the_singular_value(name: str) -> None:
    op = operator(name)
    masks = masks_of(op)
    start = torch.randn(4, *vector_shape(op), dtype=torch.float64)
    _, vectors = masked_norms(op, masks, start, 3000)
    norms, _ = masked_norms(op, masks, vectors, 50)
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    assert op.weight is not None
    (found,) = torch.autograd.grad((weights * norms).sum(), op.weight)
    way = torch.randn_like(op.weight)
    step, values = 1e-6, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            op.weight.add_(way, alpha=sign * step)
        values.append((weights * torch.linalg.matrix_norm(masked(op, masks), 2)).sum())
        with torch.no_grad():
            op.weight.sub_(way, alpha=sign * step)
    slope = (values[0] - values[1]) / (2 * step)
    assert float((found * way).sum()) == pytest.approx(float(slope), rel=1e-4)


@every_layer
def test_proven_norms_are_never_below_and_hardly_above(name: str) -> None:
    op = operator(name)
    with torch.no_grad():
        LAYERS[name][1].requires_grad_(False)
        proven = ProvenNorms([Stage(name, op)])
        LAYERS[name][1].requires_grad_(True)
    masks = masks_of(op, count=8)
    exact = torch.linalg.matrix_norm(masked(op, masks), 2)
    found = proven.masked(0, masks)
    assert bool((found >= exact * (1 - 1e-13)).all())
    assert torch.allclose(found, exact, rtol=1e-5)
    whole = float(torch.linalg.matrix_norm(dense(op), 2))
    assert whole * (1 - 1e-13) <= proven.whole[0] <= whole * (1 + 1e-5)
    assert bool((found <= proven.whole[0]).all())


@every_layer
def test_a_layer_too_large_to_factor_still_has_a_bound(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admm_lip.local_training.proven_norms._WORK", 1.0)
    op = operator(name)
    LAYERS[name][1].requires_grad_(False)
    proven = ProvenNorms([Stage(name, op)])
    LAYERS[name][1].requires_grad_(True)
    exact = float(torch.linalg.matrix_norm(dense(op), 2))
    assert exact * (1 - 1e-13) <= proven.whole[0] <= 1.5 * exact
    if LAYERS[name][0] != "linear" and name != "pool":
        assert bool((proven.masked(0, masks_of(op)) == proven.whole[0]).all())


def test_on_a_large_image_the_torus_is_hardly_above_the_norm() -> None:
    torch.manual_seed(0)
    for stride, kernel in ((1, 3), (2, 4)):
        layer = nn.Conv2d(3, 4, kernel, stride, 1, bias=False).double().requires_grad_(False)
        op = OPERATORS["conv2d"]("0", layer, (3, 32, 32))
        exact = ProvenNorms([Stage("0", op)]).whole[0]
        assert exact * (1 - 1e-6) <= torus_norm(layer, (3, 32, 32), (1, 1)) <= 1.02 * exact


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_have_no_norm(value: float) -> None:
    model = convnet("relu").double().requires_grad_(False)
    model[2].weight[0, 0, 0, 0] = value  # type: ignore[index, operator, union-attr]
    model[8].weight[0, 0] = value  # type: ignore[index, operator, union-attr]
    whole = ProvenNorms(read_stages(model, (1, 8, 8))).whole
    assert [w == float("inf") for w in whole] == [False, True, False, False, True]


@pytest.mark.parametrize("dead", ["rows", "columns", "both"])
def test_nothing_that_moves_has_norm_zero(dead: str) -> None:
    op = operator("plain")
    rows = torch.zeros(1, *op.shape_out) if dead != "columns" else torch.ones(1, *op.shape_out)
    columns = torch.zeros(1, *op.shape_in) if dead != "rows" else torch.ones(1, *op.shape_in)
    masks = Masks(rows.double(), columns.double())
    start = torch.randn(1, *vector_shape(op), dtype=torch.float64)
    norm, _ = masked_norms(op, masks, start, 3)
    assert norm.tolist() == [0.0]
    assert op.weight is not None
    (gradient,) = torch.autograd.grad(norm.sum(), op.weight)
    assert gradient.abs().max() == 0.0


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_warm_starts_follow_their_samples(count: int, seed: int) -> None:
    stages = read_stages(mlp("relu"), (5,))
    warm = WarmStarts([stage.operator for stage in stages])
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(50, generator=g)[:count]
    vectors = torch.randn(count, *vector_shape(stages[1].operator), generator=g)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    assert torch.equal(warm.starts(1, rows, count), warm.whole[1].expand(count, -1))
    warm.keep(1, rows, vectors)
    own = warm.starts(1, rows, count) - warm.whole[1]
    sign = torch.where((vectors * warm.whole[1]).sum(1) < 0, -1.0, 1.0)
    assert torch.allclose(own, sign[:, None] * vectors, atol=2e-3)
    assert warm.table.dtype == torch.float16
    other = WarmStarts([stage.operator for stage in stages])
    other.restore(warm.state())
    assert torch.equal(other.starts(1, rows, count), warm.starts(1, rows, count))


def test_warm_starts_of_another_architecture_are_refused() -> None:
    one, two = (
        WarmStarts([s.operator for s in read_stages(mlp("relu", widths), (5,))])
        for widths in ((5, 8, 3), (5, 8, 8, 3))
    )
    with pytest.raises(ValueError, match=r"checkpoint: expected .* of another architecture"):
        two.restore(one.state())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (4,), "1 .Tanh."),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)), (4,), "1 .Dropout."),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (4,), "BatchNorm1d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), (1, 8, 8), "MaxPool2d"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,), "ends in a Linear"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), (4,), "0 .ReLU.: an activation comes first"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same"), nn.Flatten()), (1, 4, 4), "pads"),
    ],
)
def test_other_layers_are_refused_by_name(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        read_stages(model, shape)


def test_shapes_that_do_not_chain_are_refused() -> None:
    with pytest.raises(NetworkError, match="0: expected an input of 5 features"):
        read_stages(mlp("relu"), (4,))
    with pytest.raises(NetworkError, match=r"0: expected an input of shape \(1, height, width\)"):
        read_stages(convnet("relu"), (3, 8, 8))
    with pytest.raises(NetworkError, match="put a Flatten before it"):
        read_stages(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(4, 2)), (1, 4, 4))
    wrong = convnet("clipped_relu")
    with pytest.raises(NetworkError, match="1: ClippedReLU"):
        read_stages(wrong, (1, 10, 10))
