import math

import pytest
import torch
from gradient_nets import batch, tanh_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.evaluation.attacks import fooled
from admm_lip.research.distances import ClassDistance, class_distance, estimate_distances
from admm_lip.research.input_gradients import dual_norm


def two_classes(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 2).double().requires_grad_(False)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_first_order_estimate_is_exact_for_a_linear_margin(norm):
    model, (x, _) = two_classes(), batch(1, 20, 5)
    y = model(x).argmax(dim=1)
    found = estimate_distances(model, x, y, norm, "margin")
    w = model.weight[0] - model.weight[1]
    gap = (model(x)[:, 0] - model(x)[:, 1]).abs()
    exact = gap / dual_norm(norm).size(w[None])
    torch.testing.assert_close(found.first_order, exact)
    torch.testing.assert_close(found.steepest, exact)  # one slope everywhere
    wrong = estimate_distances(model, x, 1 - y, norm, "margin")
    assert not wrong.first_order.any()
    assert not wrong.steepest.any()
    assert found.heuristic


def test_cross_entropy_starts_to_be_wrong_at_log_two():
    """With two classes exactly there; with more, never below it."""
    model, (x, y) = tanh_net(), batch(2, 400, 5)
    rows = nn.functional.cross_entropy(model(x), y, reduction="none")
    bad = fooled(model, x, y)
    assert bad.any()
    assert (rows[bad] >= math.log(2.0)).all()
    assert (rows[bad] < math.log(3.0)).any()  # so log(classes) would be no lower bound
    found = estimate_distances(model, x, y)
    assert not found.first_order[bad].any()


def test_the_estimate_of_a_convex_loss_is_an_upper_one():
    """Cross-entropy of a linear model is convex: its tangent underestimates the loss."""
    model, (x, _) = two_classes(), batch(3, 20, 5)
    y = model(x).argmax(dim=1)
    exact = estimate_distances(model, x, y, "l2", "margin").first_order
    found = estimate_distances(model, x, y, "l2", "cross_entropy")
    assert (found.first_order >= exact * (1 - 1e-9)).all()
    assert (found.steepest <= found.first_order).all()


def test_the_loss_is_named():
    model, (x, y) = tanh_net(), batch(2, 4, 5)
    with pytest.raises(
        ValueError, match="loss: expected one of cross_entropy, margin, got 'hinge'"
    ):
        estimate_distances(model, x, y, loss="hinge")


@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    block=st.integers(1, 40),
    classes=st.integers(2, 5),
)
@settings(max_examples=60)
def test_the_closest_pair_by_enumeration(seed, scale, offset, block, classes):
    generator = torch.Generator().manual_seed(seed)
    x = (scale * (torch.rand(40, 6, generator=generator) + offset)).float()
    y = torch.randint(0, classes, (40,), generator=generator)
    y[0], y[1] = 0, 1
    lengths = (x[:, None].double() - x[None].double()).norm(dim=2)
    exact = float(lengths[y[:, None] != y[None]].min())
    found = class_distance(x, y, block=block)
    assert found.distance == pytest.approx(exact, rel=1e-12)
    i, j = found.rows
    assert y[i] != y[j]
    assert found.classes == (int(y[i]), int(y[j]))
    assert float(lengths[i, j]) == pytest.approx(exact, rel=1e-12)
    assert found.lipschitz == pytest.approx(1.0 / exact)


def test_pairs_that_single_precision_cannot_tell_apart():
    """Far from the origin, near ties: the screen must keep all of them."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(200, 300, generator=generator)
    x = torch.cat([base, base + torch.linspace(1.0, 1.0001, 200)[:, None] * 1e-2]) + 50.0
    y = torch.arange(400) // 200
    lengths = torch.cdist(
        x[:200].double(), x[200:].double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert class_distance(x, y, block=64).distance == pytest.approx(float(lengths.min()), rel=1e-9)


def test_identical_inputs_of_two_classes_have_no_lipschitz_function():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    found = class_distance(x, torch.tensor([0, 0, 1]))
    assert found == ClassDistance(0.0, (0, 2), (0, 1))
    assert found.lipschitz == math.inf


def test_what_has_no_class_distance():
    with pytest.raises(ValueError, match="y: expected at least two classes, got 1"):
        class_distance(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"y: expected one label per input \(3\), got 2"):
        class_distance(torch.rand(3, 2), torch.zeros(2, dtype=torch.int64))
