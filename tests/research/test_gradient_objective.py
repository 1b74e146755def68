import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as functional
from gradient_nets import batch, residual, tanh_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip.research.input_gradients import (
    GradientPenalty,
    dual_norm,
    gradient_sizes,
    loss_gradient_norms,
    one_step_adversarial,
    penalised_loss,
    row_losses,
)
from admm_lip.training.losses import named_loss

CE = functional.cross_entropy
NORMS = ["l2", "linf"]


def parameter_gradient(model, x, y, penalty, loss=CE):
    model.zero_grad()
    penalised_loss(model, x, y, loss, penalty).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def single_gradients(model, x, y):
    """Every sample's own input gradient, one at a time, by plain autograd."""
    found = []
    for one, label in zip(x, y, strict=True):
        leaf = one[None].clone().requires_grad_(True)
        found.append(torch.autograd.grad(CE(model(leaf), label[None]), leaf)[0])
    return torch.cat(found)


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_the_direction_has_length_one_and_reaches_the_dual_norm(norm, seed, scale):
    g = scale * batch(seed, 7, 3, 4)[0]
    row = dual_norm(norm)
    d = row.direction(g)
    length = d.flatten(1).norm(p=2 if norm == "l2" else math.inf, dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))
    torch.testing.assert_close((g * d).flatten(1).sum(dim=1), row.size(g))
    torch.testing.assert_close(
        row.squared_length(12), float(d[0].square().sum()), rtol=1e-12, atol=0.0
    )
    other = row.direction(batch(seed + 1, 7, 3, 4)[0])
    assert ((g * other).flatten(1).sum(dim=1) <= row.size(g) * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scheme", ["finite", "double"])
def test_the_objective_is_the_formula(norm, scheme):
    model, (x, y) = tanh_net(), batch(1, 12, 5)
    sizes = dual_norm(norm).size(single_gradients(model, x, y))
    unit = 1.0 if norm == "l2" else 5.0
    expected = CE(model(x), y) + 0.3 * sizes.mean() + 0.2 * sizes.max()
    expected = expected + 0.5 * 0.7 / unit * sizes.square().mean()
    penalty = GradientPenalty(0.3, 0.2, 0.7, norm=norm, scheme=scheme, step=1e-6)
    found = penalised_loss(model, x, y, CE, penalty)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(loss_gradient_norms(model, x, y, norm), sizes)


@pytest.mark.parametrize("norm", NORMS)
def test_double_backpropagation_agrees_with_differences_in_the_weights(norm):
    model, (x, y) = tanh_net(), batch(2, 10, 5)
    penalty = GradientPenalty(0.3, 0.2, 0.7, norm=norm, scheme="double")
    found = parameter_gradient(model, x, y, penalty)
    parameters = list(model.parameters())
    torch.manual_seed(0)
    directions = [torch.randn_like(p) for p in parameters]
    h, values = 1e-6, []
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), directions, strict=True):
                p.add_(sign * h * d)
        values.append(float(penalised_loss(moved, x, y, CE, penalty).detach()))
    slope = float(found @ torch.cat([d.flatten() for d in directions]))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_differences_approach_double_backpropagation_at_first_order(norm):
    model, (x, y) = tanh_net(), batch(3, 10, 5)
    exact = parameter_gradient(model, x, y, GradientPenalty(1.0, norm=norm, scheme="double"))
    errors = [
        float(
            (
                parameter_gradient(model, x, y, GradientPenalty(1.0, norm=norm, step=h)) - exact
            ).norm()
        )
        for h in (1e-2, 1e-3, 1e-4)
    ]
    orders = [math.log10(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.9 < order < 1.1 for order in orders), orders
    assert errors[0] > 1e-4 * float(exact.norm())  # not interchangeable: the step shows


@pytest.mark.parametrize("norm", NORMS)
def test_what_differences_add_is_curvature(norm):
    model, (x, y) = tanh_net(), batch(4, 6, 5)
    h = 1e-4
    _, finite = gradient_sizes(model, x, y, CE, GradientPenalty(1.0, norm=norm, step=h))
    _, double = gradient_sizes(model, x, y, CE, GradientPenalty(1.0, norm=norm, scheme="double"))
    d = dual_norm(norm).direction(single_gradients(model, x, y))
    for k in range(len(x)):
        hessian = torch.autograd.functional.hessian(
            lambda v, k=k: CE(model(v[None]), y[k : k + 1]), x[k]
        )
        curvature = 0.5 * h * float(d[k] @ hessian @ d[k])
        assert float((finite[k] - double[k]).detach()) == pytest.approx(
            curvature, rel=2e-2, abs=1e-8
        )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("weights", [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3)])
def test_the_short_way_has_the_gradient_of_the_formula(norm, weights):
    """Two backward passes instead of three: the same derivative in the weights."""
    model, (x, y) = tanh_net(), batch(5, 9, 5)
    penalty = GradientPenalty(*weights, norm=norm, step=1e-2)
    found = parameter_gradient(model, x, y, penalty)
    model.zero_grad()
    rows, sizes = gradient_sizes(model, x, y, CE, penalty)
    (rows.mean() + weights[0] * sizes.mean() + weights[1] * sizes.max()).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in model.parameters()]))


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_adversarial_training_is_a_total_variation_penalty(norm):
    model, (x, y) = tanh_net(), batch(6, 9, 5)
    eps = 0.1
    attacked = x + eps * dual_norm(norm).direction(single_gradients(model, x, y))
    model.zero_grad()
    expected = CE(model(attacked), y)
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    penalty = one_step_adversarial(eps, norm)
    torch.testing.assert_close(penalised_loss(model, x, y, CE, penalty), expected)
    torch.testing.assert_close(parameter_gradient(model, x, y, penalty), gradient)


@pytest.mark.parametrize("norm", NORMS)
def test_the_equivalence_is_of_second_order(norm):
    model, (x, y) = tanh_net(), batch(7, 20, 5)
    gaps = []
    for eps in (1e-2, 1e-3, 1e-4):
        attacked = penalised_loss(model, x, y, CE, one_step_adversarial(eps, norm))
        penalised = penalised_loss(
            model, x, y, CE, GradientPenalty(eps, norm=norm, scheme="double")
        )
        gaps.append(abs(float((attacked - penalised).detach())))
    orders = [math.log10(a / b) for a, b in itertools.pairwise(gaps)]
    assert all(1.9 < order < 2.1 for order in orders), orders


def test_without_weights_it_is_the_mean_loss():
    model, (x, y) = tanh_net(), batch(8, 9, 5)
    found = penalised_loss(model, x, y, CE, GradientPenalty())
    torch.testing.assert_close(found, CE(model(x), y))


@pytest.mark.parametrize("loss", [CE, nn.CrossEntropyLoss(reduction="none")])
def test_losses_with_and_without_reduction_are_the_same(loss):
    model, (x, y) = tanh_net(), batch(9, 9, 5)
    rows = row_losses(loss, model(x), y)
    torch.testing.assert_close(rows, CE(model(x), y, reduction="none"))


def test_a_sum_or_a_weighted_mean_is_refused():
    model, (x, y) = tanh_net(), batch(9, 9, 5)
    for loss in (
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)),
    ):
        with pytest.raises(
            ValueError, match=r"loss: expected the mean of a loss per sample.*'none'"
        ):
            penalised_loss(model, x, y, loss, GradientPenalty(0.1))


def test_a_loss_of_another_shape_or_with_decisions_is_refused():
    model, (x, y) = tanh_net(), batch(9, 9, 5)
    with pytest.raises(ValueError, match=r"loss: expected a scalar or one value per sample \(9,\)"):
        penalised_loss(model, x, y, lambda o, t: o, GradientPenalty(0.1))

    def deciding(outputs, targets):
        return (
            CE(outputs, targets) if float(outputs.detach().sum()) > 0 else 2 * CE(outputs, targets)
        )

    with pytest.raises(ValueError, match=r"cannot be evaluated sample by sample.*'none'"):
        penalised_loss(model, x, y, deciding, GradientPenalty(0.1))


class Wrapped(nn.Module):
    """The smooth net, followed by anything."""

    def __init__(self, then):
        super().__init__()
        self.net, self.then = tanh_net(), then

    def forward(self, x):
        return self.then(self.net(x))


@pytest.mark.parametrize("scheme", ["finite", "double"])
@pytest.mark.parametrize(
    ("then", "wording"),
    [
        (torch.detach, "got a gradient that is missing"),
        (lambda z: (10 * z).round(), "got a gradient that is 0 in every entry"),
        (lambda z: z.softmax(dim=1), "expected logits, got rows of probabilities"),
        (lambda z: z[:, 0], r"expected class logits of shape \(9, classes\), got \(9,\)"),
        (lambda z: z[:, :1], "logits of at least 2 classes, got 1 output"),
        (lambda z: (z, z), "expected class logits of shape .* got tuple"),
    ],
)
def test_models_that_cannot_be_penalised(scheme, then, wording):
    x, y = batch(10, 9, 5)
    with pytest.raises(ValueError, match=wording):
        penalised_loss(Wrapped(then), x, y, CE, GradientPenalty(0.1, scheme=scheme))


@pytest.mark.parametrize("scheme", ["finite", "double"])
def test_a_constant_network_is_trained_on(scheme):
    """All units dead, as after too strong a penalty: its biases still have a gradient."""
    model, (x, y) = tanh_net(), batch(10, 9, 5)
    with torch.no_grad():
        model[0].weight.zero_()
    found = parameter_gradient(model, x, y, GradientPenalty(0.1, 0.1, scheme=scheme))
    assert found.isfinite().all()
    assert found.any()


def test_whole_numbers_are_no_inputs():
    with pytest.raises(
        ValueError, match=r"inputs: expected floating point numbers, got torch.int64"
    ):
        penalised_loss(
            tanh_net(), torch.ones(3, 5, dtype=torch.int64), torch.zeros(3), CE, GradientPenalty(1)
        )


@pytest.mark.parametrize(
    ("field", "value", "wording"),
    [
        ("total_variation", -1.0, "total_variation: expected a finite number >= 0, got -1.0"),
        ("largest", math.inf, "largest: expected a finite number >= 0, got inf"),
        ("squared", math.nan, "squared: expected a finite number >= 0, got nan"),
        ("step", 0.0, "step: expected a finite number > 0, got 0.0"),
        ("norm", "l1", "norm: expected one of l2, linf, got 'l1'"),
        ("scheme", "triple", "scheme: expected one of finite, double, got 'triple'"),
    ],
)
def test_settings_are_checked(field, value, wording):
    with pytest.raises(ValueError, match=wording):
        GradientPenalty(**{field: value})


@pytest.mark.parametrize("scheme", ["finite", "double"])
def test_batch_statistics_move_once(scheme):
    model, (x, y) = residual(), batch(11, 12, 1, 8, 8)
    plain = copy.deepcopy(model)
    plain.train()(x)
    model.train()
    penalised_loss(model, x, y, CE, GradientPenalty(0.3, 0.1, 0.1, scheme=scheme)).backward()
    for (name, mine), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    assert all("forward" not in vars(m) for m in model.modules())


@pytest.mark.parametrize("scheme", ["finite", "double"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_in_training_mode_the_second_pass_is_the_same_function(scheme, dropout):
    """Its statistics held, every sample has a gradient of its own; so it is in evaluation mode."""
    model, (x, y) = residual(dropout=dropout), batch(12, 12, 1, 8, 8)
    model.train()
    torch.manual_seed(5)
    rows, sizes = gradient_sizes(model, x, y, CE, GradientPenalty(1.0, scheme=scheme, step=1e-6))
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the running averages become those of this batch
    torch.manual_seed(5)
    torch.testing.assert_close(rows, CE(frozen(x), y, reduction="none"))
    for layer in frozen.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval().running_var *= (12 * 64 - 1) / (12 * 64)  # running: unbiased
    leaf = x.clone().requires_grad_(True)
    torch.manual_seed(5)
    held = CE(frozen(leaf), y, reduction="sum")
    (gradient,) = torch.autograd.grad(held, leaf)
    torch.testing.assert_close(sizes, gradient.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("scheme", ["finite", "double"])
def test_the_derivative_flows_through_the_statistics(scheme):
    """Statistics held as numbers would leave an error of the order of 1 / step."""
    model, (x, y) = residual(), batch(13, 6, 1, 8, 8)
    model.train()
    penalty = GradientPenalty(0.5, 0.1, 0.1, scheme=scheme, step=1e-2)
    found = parameter_gradient(model, x, y, penalty)
    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in model.parameters()]
    rows, h = [], 1e-6
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.add_(sign * h * d)
        rows.append(float(penalised_loss(moved, x, y, CE, penalty).detach()))
    slope = float(found @ torch.cat([d.flatten() for d in direction]))
    # Finite differences hold their direction, which itself depends on the weights: by the envelope
    # theorem that is of first order in the step.
    tolerance = 1e-5 if scheme == "double" else 3e-2
    assert (rows[0] - rows[1]) / (2 * h) == pytest.approx(slope, rel=tolerance)


def test_dropout_draws_one_mask_and_leaves_the_stream_where_one_pass_leaves_it():
    model, (x, y) = residual(dropout=0.5), batch(14, 12, 1, 8, 8)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # so that the short way is taken
    torch.manual_seed(3)
    model(x)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    value = penalised_loss(model, x, y, CE, GradientPenalty(0.3, 0.2, step=1e-6))
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(3)
    rows, sizes = gradient_sizes(model, x, y, CE, GradientPenalty(0.3, scheme="double"))
    expected = rows.mean() + 0.3 * sizes.mean() + 0.2 * sizes.max()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)


class Counting(nn.Module):
    """Counts its passes in a buffer."""

    def __init__(self):
        super().__init__()
        self.net = tanh_net()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.net(x)


def test_no_other_buffer_moves_either():
    model, (x, y) = Counting(), batch(15, 4, 5)
    penalised_loss(model, x, y, CE, GradientPenalty(0.1, 0.1)).backward()
    assert model.count == 1


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "squared_error"])
def test_every_loss_of_the_package_splits_into_samples(name):
    model, (x, y) = tanh_net(), batch(16, 8, 5)
    bounded = named_loss(name, 0.3, 0.5)
    targets = model(x).detach() + 1.0 if name == "squared_error" else y

    def loss(outputs, targets):
        return bounded(outputs, targets, 2.0)

    single = [loss(model(a[None]), b[None]) for a, b in zip(x, targets, strict=True)]
    torch.testing.assert_close(row_losses(loss, model(x), targets), torch.stack(single))
    penalty = GradientPenalty(0.2, 0.1, 0.1, scheme="double")
    assert penalised_loss(model, x, targets, loss, penalty) > loss(model(x), targets)
