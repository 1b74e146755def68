"""The constraint in somebody's own loop: the same numbers as ``train``, whatever drives it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import Constraint, Lipschitz, TrainConfig, certify, train, verify
from admm_lip.errors import TrainingFailed
from admm_lip.training.batches import as_batches
from admm_lip.training.checkpoint import CheckpointError
from admm_lip.training.config import AdmmConfig
from admm_lip.training.loop import epoch_seed

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, -1, 0])
Y = (X[:, 0] > 2.0).long() + (X[:, 1] > 0.0).long()
LOSS = nn.CrossEntropyLoss()
EPOCHS, BATCH = 4, 16


def net(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3)
    )


def batches(epochs: int = EPOCHS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Those of ``train`` with seed 0, in its order."""
    stream = as_batches((X, Y), BATCH, net())
    return [pair for k in range(epochs) for pair in stream.epoch(epoch_seed(0, k), 0)]


def plain_steps(model: nn.Module, optimizer: Any, data: Any) -> None:
    for x, y in data:
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()


def closure_steps(model: nn.Module, optimizer: Any, data: Any) -> None:
    for x, y in data:

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = LOSS(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def keyword_closure_steps(model: nn.Module, optimizer: Any, data: Any) -> None:
    """As Lightning does it, whose optimizer wrapper passes the closure on by its name."""

    class Wrapped:
        def __init__(self) -> None:
            self.zero_grad = optimizer.zero_grad

        def step(self, closure: Callable[[], Any]) -> Any:
            return optimizer.step(closure=closure)

    closure_steps(model, Wrapped(), data)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


ADAM: dict[str, Any] = {"lr": 1e-2, "fused": True}  # what ``train`` makes


@pytest.mark.parametrize("drive", [plain_steps, closure_steps, keyword_closure_steps])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("asked", [Lipschitz(1.5), Lipschitz(mu=1e-2)])
def test_a_hand_written_loop_is_train_bit_for_bit(
    drive: Callable, activation: type[nn.Module], asked: Lipschitz
) -> None:
    config = TrainConfig(
        bound=asked.bound, mu=asked.mu, epochs=EPOCHS, batch_size=BATCH, schedule="constant"
    )
    expected = train(net(activation), (X, Y), config, progress=False)
    model = net(activation)
    constraint = Constraint(model, asked, mean=X.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    constraint.attach(optimizer)
    drive(model, optimizer, batches())
    finished, certificate = constraint.finish()
    assert finished is model
    assert same_weights(finished, expected.model)
    assert certificate.to_json() == expected.certificate.to_json()
    verify(certificate, finished)
    assert constraint.state.measured["lip"] == expected.history[-1]["lip"]


def test_after_finish_the_optimizer_is_free_and_the_layers_are_plain() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constraint = Constraint(model, Lipschitz(1.0), mean=X.mean(0)).attach(optimizer)
    plain_steps(model, optimizer, batches(1))
    constraint.finish()
    assert not model[0]._forward_pre_hooks
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # nothing pulls any more
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    Constraint(model, Lipschitz(0.5)).attach(optimizer).detach()


def test_a_pull_reaches_weights_that_the_loss_does_not() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = AdmmConfig(restart=False, rho=1.0)
    constraint = Constraint(model, Lipschitz(1.0), config).attach(optimizer)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    away = float((model[0].weight.detach() - constraint.state.consensus[0]).norm())
    optimizer.step()
    nearer = float((model[0].weight.detach() - constraint.state.consensus[0]).norm())
    assert nearer == pytest.approx(0.9 * away, rel=1e-5)


def clipped_gradient(model: nn.Module, x: Any, y: Any, most: float) -> list[torch.Tensor]:
    grads = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))
    size = torch.stack([g.norm() for g in grads]).norm()
    return [g * min(1.0, most / (float(size) + 1e-6)) for g in grads]


def test_clipping_bounds_the_loss_s_gradient_and_leaves_the_pull_alone() -> None:
    model, rho, lr, most = net(), 2.0, 0.1, 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    constraint = Constraint(model, Lipschitz(1.0), AdmmConfig(rho=rho)).attach(optimizer)
    weights = [model[k].weight for k in (0, 2, 4)]
    with torch.no_grad():
        for w in weights:
            w.add_(0.1)
    expected = []
    clipped = clipped_gradient(model, X, Y, most)
    for w, g, target in zip(weights, clipped[::2], constraint.state.consensus, strict=True):
        expected.append((w - lr * (g + rho * (w - target))).detach().float())
    optimizer.zero_grad()
    LOSS(model(X), Y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), most)
    optimizer.step()
    for w, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.detach(), wanted)


def test_accumulated_gradients_make_one_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constraint = Constraint(model, Lipschitz(1.0), AdmmConfig(round_steps=2)).attach(optimizer)
    rounds = []
    for k, (x, y) in enumerate(batches()[:12]):
        (LOSS(model(x), y) / 3).backward()
        if k % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        rounds.append(constraint.state.iteration)
    assert rounds == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2]


def test_several_parameter_groups_are_one_network() -> None:
    one, several = net(), net()
    results = []
    for model in (one, several):
        groups = [{"params": [p]} for p in model.parameters()] if model is several else None
        optimizer = torch.optim.Adam(groups or model.parameters(), lr=1e-2)
        constraint = Constraint(model, Lipschitz(1.5)).attach(optimizer)
        plain_steps(model, optimizer, batches(2))
        results.append(constraint.finish())
    assert same_weights(results[0].model, results[1].model)


class Overflowing:
    """A loss whose scaled gradient overflows at some steps."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.count = at, -1

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.count += 1
        loss = LOSS(outputs, targets)
        return loss * torch.inf if self.count in self.at else loss


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_scaled_gradients_lead_to_the_same_weights_and_skipped_steps_do_not_count(
    fused: bool, unscaled: bool
) -> None:
    def run(scaled: bool) -> Constraint:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        constraint = Constraint(model, Lipschitz(1.0)).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        loss = Overflowing({2, 7, 8} if scaled else set())
        data = batches()
        for x, y in (
            [*data[:2], data[0], *data[2:6], data[0], data[0], *data[6:]] if scaled else data
        ):
            optimizer.zero_grad()
            scaler.scale(loss(model(x), y)).backward()
            if unscaled and scaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return constraint

    plain, scaled = run(False), run(True)
    assert plain.state.iteration == scaled.state.iteration == 3
    for a, b in zip(plain.state.consensus, scaled.state.consensus, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lbfgs_searches_along_the_augmented_lagrangian() -> None:
    model = net()
    config = TrainConfig(
        bound=1.0, epochs=1, batch_size=BATCH, optimizer="lbfgs", lr=0.05, schedule="constant"
    )
    expected = train(net(), (X, Y), config, progress=False)
    constraint = Constraint(model, Lipschitz(1.0), mean=X.mean(0))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05)
    constraint.attach(optimizer)
    closure_steps(model, optimizer, batches(1))
    assert same_weights(constraint.finish().model, expected.model)


@pytest.mark.parametrize("stop", [3, 8, 13])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_loop_goes_on_from_state_dicts_as_if_nothing_had_happened(
    stop: int, activation: type[nn.Module]
) -> None:
    def begin(seed: int) -> tuple[nn.Module, Any, Constraint]:
        model = net(activation, seed)
        constraint = Constraint(model, Lipschitz(1.0), mean=X.mean(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, constraint.attach(optimizer)

    model, optimizer, constraint = begin(0)
    plain_steps(model, optimizer, batches()[:stop])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, constraint)], file)
    plain_steps(model, optimizer, batches()[stop:])
    whole = constraint.finish()
    file.seek(0)
    again = begin(7)
    for part, kept in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(kept)
    plain_steps(again[0], again[1], batches()[stop:])
    resumed = again[2].finish()
    assert same_weights(whole.model, resumed.model)
    assert whole.certificate.to_json() == resumed.certificate.to_json()


def test_the_state_of_another_constraint_is_refused_by_name() -> None:
    kept = Constraint(net(), Lipschitz(1.0), AdmmConfig(rho=0.5)).state_dict()
    for other, message in [
        (Constraint(net(), Lipschitz(2.0), AdmmConfig(rho=0.5)), r"another asked bound \(it has 1"),
        (Constraint(net(), Lipschitz(1.0)), "another setting rho"),
        (
            Constraint(net()[2:], Lipschitz(1.0), AdmmConfig(rho=0.5)),
            "another shape of the w",
        ),
        (Constraint(net(), Lipschitz(1.0), AdmmConfig(rho=0.5), mean=X[0]), "another mean"),
    ]:
        before = other.state
        with pytest.raises(CheckpointError, match=message):
            other.load_state_dict(kept)
        assert other.state is before
    same = Constraint(net(), Lipschitz(1.0), AdmmConfig(rho=0.5))
    with pytest.raises(CheckpointError, match=r"expected what Constraint.state_dict"):
        same.load_state_dict({"state": {}})
    with pytest.raises(CheckpointError, match="not the state of a constraint of this version"):
        same.load_state_dict({**kept, "state": {"consensus": ()}})


def test_another_bound_may_be_asked_for_on_the_way() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    config = AdmmConfig(start="scratch")  # begins at its bound
    constraint = Constraint(model, Lipschitz(4.0), config).attach(optimizer)
    plain_steps(model, optimizer, batches(2))
    assert certify(model).lip > 2.0
    classes = model(X).argmax(1)
    constraint.ask(Lipschitz(1.0))
    assert certify(model).lip <= 1.0  # at once, by a scale that changes no prediction
    assert float((model(X).argmax(1) == classes).double().mean()) > 0.8
    plain_steps(model, optimizer, batches(1))
    constraint.ask(Lipschitz(2.0))
    plain_steps(model, optimizer, batches(2))
    finished, certificate = constraint.finish()
    assert constraint.state.lip == pytest.approx(2.0, rel=1e-5)
    assert certificate.lip <= 2.0
    assert certificate.requested == 2.0
    verify(certificate, finished)


def test_what_would_be_shipped_can_be_measured_on_the_way() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    constraint = Constraint(model, Lipschitz(1.0)).attach(optimizer)
    plain_steps(model, optimizer, batches(1)[:3])
    free = copy.deepcopy(model)
    assert certify(free).lip > 1.0
    with constraint.shipped() as shipped:
        assert certify(shipped).lip <= 1.0
    assert same_weights(model, free)


def test_a_constraint_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bound, mu: expected exactly one of the two, got"):
        Lipschitz()
    with pytest.raises(ValueError, match="bound: expected a number from 1e-30 to 1e"):
        Lipschitz(-1.0)
    with pytest.raises(ValueError, match="norm: expected one of l2, linf, got 'l1'"):
        Lipschitz(1.0, norm="l1")
    with pytest.raises(ValueError, match="norm: training keeps an l2 constant, got 'linf'"):
        Constraint(net(), Lipschitz(1.0, norm="linf"))
    with pytest.raises(TypeError, match="asked: expected a Lipschitz, got float"):
        Constraint(net(), 1.0)
    with pytest.raises(ValueError, match=r"input_shape: a network of convolutions needs the shape"):
        Constraint(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3)), Lipschitz(1.0))
    with pytest.raises(ValueError, match=r"expected weights in float32 or float64, got .*float16"):
        Constraint(net().half(), Lipschitz(1.0))
    with pytest.raises(ValueError, match=r"mean: expected shape \(4,\)"):
        Constraint(net(), Lipschitz(1.0), mean=torch.zeros(3))


def test_a_weight_has_one_constraint_and_a_constraint_one_optimizer() -> None:
    model = net()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    constraint = Constraint(model, Lipschitz(1.0)).attach(first)
    with pytest.raises(ValueError, match="is attached already, to SGD; detach"):
        constraint.attach(first)
    other = Constraint(model, Lipschitz(2.0))
    for optimizer in (first, second):
        with pytest.raises(ValueError, match=r"0.weight is held .* asks L <= 1 where this one"):
            other.attach(optimizer)
    constraint.detach()
    other.attach(second)
    lacking = torch.optim.SGD([*model[:3].parameters(), model[4].bias], lr=0.1)
    third = net()
    with pytest.raises(ValueError, match=r"optimizer: does not move 0.weight"):
        Constraint(third, Lipschitz(1.0)).attach(lacking)
    other.detach()
    with pytest.raises(ValueError, match=r"optimizer: does not move 4.weight"):
        Constraint(model, Lipschitz(1.0)).attach(lacking)


def test_a_weight_that_is_replaced_is_noticed_at_the_next_round() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constraint = Constraint(model, Lipschitz(1.0), AdmmConfig(round_steps=2)).attach(optimizer)
    plain_steps(model, optimizer, batches(1)[:1])
    model[2].weight = nn.Parameter(torch.zeros(8, 12))
    with pytest.raises(ValueError, match=r"2.weight was replaced after the constraint was made"):
        plain_steps(model, optimizer, batches(1)[:1])
    with pytest.raises(ValueError, match=r"2.weight was replaced"):
        constraint.finish()


def test_weights_that_leave_the_numbers_name_the_round() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Constraint(model, Lipschitz(1.0), AdmmConfig(round_steps=1)).attach(optimizer)
    plain_steps(model, optimizer, batches(1)[:2])
    with pytest.raises(TrainingFailed, match="round 3: expected finite weights"):
        plain_steps(model, optimizer, [(X * torch.nan, Y)])
