"""Training under a bound and a direction at a time: one network, one certificate for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import (
    All,
    Constraint,
    Lipschitz,
    Monotone,
    MonotoneCertificate,
    PlusLinear,
    TrainConfig,
    Units,
    certify,
    export_onnx,
    train,
    verify,
)
from admm_lip.training.checkpoint import CheckpointError
from admm_lip.training.monotone import split

ASKED = All(Lipschitz(3.0), Monotone(increasing=[0], decreasing=[2]))
SETTINGS = TrainConfig(epochs=12, batch_size=64, loss="squared_error")


def core(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, outputs))


def table() -> tuple[torch.Tensor, torch.Tensor]:
    """Monotone but for noise, and for the last column against what is asked of it."""
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    return x, torch.tanh(x[:, :1]) + x[:, 1:2].sin() + x[:, 2:]


def slopes(model: nn.Module) -> torch.Tensor:
    x = (3.0 * torch.randn(2000, 3)).requires_grad_(True)
    return torch.autograd.grad(model(x).sum(), x)[0]


def test_train_gives_one_network_with_one_certificate_of_both() -> None:
    result = train(core(), table(), SETTINGS, constraint=ASKED, progress=False)
    made = result.certificate
    assert isinstance(made, MonotoneCertificate) and isinstance(result.model, PlusLinear)
    verify(made, result.model)
    assert made.lip <= 3.0 == made.requested
    assert {proof.column: proof.sign for proof in made.columns} == {0: 1, 2: -1}
    found = slopes(result.model)
    assert found[:, 0].min() >= 0.0 >= found[:, 2].max()
    assert found.norm(dim=1).max() <= made.lip * (1.0 + 1e-6)
    # Nothing holds the same network to it that is trained under the bound alone.
    free = train(core(), table(), SETTINGS, constraint=Lipschitz(3.0), progress=False)
    assert slopes(free.model)[:, 2].max() > 0.1


def test_bounds_and_names_in_the_units_of_the_data() -> None:
    units = Units(input_scale=(2.0, 0.5, 4.0), output_scale=10.0, input_names=("a", "b", "c"))
    asked = All(Lipschitz(20.0), Monotone(increasing=["c"], slope=1.5))
    result = train(core(), table(), SETTINGS, constraint=asked, units=units, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 20.0 and result.certificate.units == units
    assert [proof.column for proof in result.certificate.columns] == [2]
    raw = 10.0 * slopes(result.model)[:, 2] / 4.0
    assert raw.min() >= 0.0 and raw.max() <= 2 * 1.5


@settings(max_examples=40, deadline=None)
@given(
    bound=st.floats(0.1, 50.0),
    share=st.floats(0.05, 1.0),
    named=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_the_sum_keeps_the_bound_whatever_the_core_is(
    bound: float, share: float, named: int, seed: int
) -> None:
    """Of any gradient that the core's bound admits, the steepest among them included."""
    slope = share * bound / (1.0 + named**0.5)
    found = split(All(Lipschitz(bound), Monotone(range(named), slope=slope)), 6, 1)
    random, units = torch.Generator().manual_seed(seed), found.core.units
    assert units is not None and found.core.bound is not None
    directions = torch.randn(4000, 6, generator=random).double()
    directions[:2000, :named] = directions[:2000, :1].abs()  # along the linear term
    directions /= directions.norm(dim=1, keepdim=True)
    gradients = found.core.bound * directions * torch.tensor(units.input_scales(6))
    total = gradients + found.term
    assert total.norm(dim=1).max() <= bound
    assert total[:, :named].min() >= 0.0
    # The bound is used up: the steepest sum, in the plane of the term and one free column.
    angles = torch.linspace(0.0, torch.pi / 2, 2000, dtype=torch.float64)
    plane = torch.zeros(2000, 6, dtype=torch.float64)
    plane[:, :named] = (angles.sin() / named**0.5)[:, None]
    plane[:, named] = angles.cos()
    steepest = found.core.bound * plane * torch.tensor(units.input_scales(6)) + found.term
    assert steepest.norm(dim=1).max() >= bound * (1.0 - 1e-3)


def test_a_loop_of_ones_own_resumes_under_the_same_claim_only() -> None:
    x, y = table()
    other = All(Lipschitz(3.0), Monotone(increasing=[0, 2]))

    def begun(asked: All) -> tuple[PlusLinear, torch.optim.Optimizer, Constraint]:
        net = PlusLinear(core(), asked)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        return net, optimizer, Constraint(net, asked).attach(optimizer)

    net, optimizer, constraint = begun(ASKED)
    for _ in range(17):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    kept = constraint.state_dict()
    with pytest.raises(CheckpointError, match="monotone"):
        begun(other)[2].load_state_dict(kept)
    with pytest.raises(ValueError, match="cannot change beside a linear term"):
        constraint.ask(Lipschitz(1.0))
    with constraint.shipped() as model:
        before = model(x).detach()
    model, certificate = constraint.finish()
    verify(certificate, model)
    again, _, resumed = begun(ASKED)
    again.load_state_dict(net.state_dict())
    resumed.load_state_dict(kept)
    assert resumed.state.steps == 1 and before.shape == y.shape


def test_an_onnx_file_of_it_is_proven_as_well(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = train(core(), table(), SETTINGS, constraint=ASKED, progress=False).model
    export_onnx(model, tmp_path / "model.onnx")
    from admm_lip import open_network

    read = open_network(tmp_path / "model.onnx")
    made = certify(read, kind="monotone", monotone=ASKED.monotone)
    verify(made, read)
    assert made.lip == pytest.approx(certify(model).lip, rel=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (All(Lipschitz(3.0), Monotone([4])), "increasing: expected a number from 0 to 2, got 4"),
        (All(Lipschitz(3.0), Monotone(["age"])), "increasing: expected one of none"),
        (All(Lipschitz(3.0), Monotone([0], slope=2.0)), "slope: expected at most 1.5 for 1 col"),
        (All(Lipschitz(3.0, norm="linf"), Monotone([0])), "norm: training keeps an l2 constant"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: All, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(core(), table(), SETTINGS, constraint=asked, progress=False)


def test_several_outputs_want_one_named() -> None:
    x, y = table()
    with pytest.raises(ValueError, match="output: expected which of the 2 outputs is meant"):
        train(core(2), (x, (y[:, 0] > 0).long()), SETTINGS, constraint=ASKED, progress=False)
    asked = All(Lipschitz(3.0), Monotone(increasing=[0], output=1))
    result = train(core(2), (x, torch.cat([y, y], 1)), SETTINGS, constraint=asked, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.columns[0].output == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "expected one Lipschitz and one Monotone, got nothing"),
        ((Lipschitz(1.0), Lipschitz(1.0)), "got Lipschitz, Lipschitz"),
        ((Lipschitz(mu=1.0), Monotone([0])), "Monotone goes with a bound, got a price"),
        ((Lipschitz(1.0), Monotone([0]), 3), "got Lipschitz, Monotone, int"),
    ],
)
def test_all_is_of_one_bound_and_one_direction(parts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        All(*parts)


def test_a_constraint_wants_the_linear_term_of_its_claim() -> None:
    with pytest.raises(TypeError, match=r"model: Monotone needs a linear term; .* got Sequential"):
        Constraint(core(), ASKED)
    other = PlusLinear(core(), All(Lipschitz(3.0), Monotone(increasing=[1])))
    with pytest.raises(ValueError, match="model: its linear term is of another claim"):
        Constraint(other, ASKED)


def test_a_claim_is_given_once() -> None:
    with pytest.raises(ValueError, match="constraint: goes with settings without bound and mu"):
        train(core(), table(), TrainConfig(bound=1.0), constraint=ASKED)
    with pytest.raises(ValueError, match="constraint: expected once"):
        train(core(), table(), ASKED, constraint=ASKED)
    with pytest.raises(ValueError, match="units: expected once"):
        asked = Lipschitz(3.0, units=Units())
        train(core(), table(), SETTINGS, constraint=asked, units=Units())
    begun = train(core(), table(), TrainConfig(bound=3.0, epochs=1), progress=False)
    with pytest.raises(TypeError, match="expected the result of a run under All"):
        train(begun, table(), SETTINGS, constraint=ASKED)


def test_a_run_folder_resumes_under_the_same_claim_only(tmp_path: Path) -> None:
    where: dict[str, Any] = {"run_dir": tmp_path / "run", "progress": False}
    short = TrainConfig(epochs=2, loss="squared_error", schedule="constant", batch_size=64)
    first = train(core(), table(), short, constraint=ASKED, **where)
    longer = TrainConfig(epochs=4, loss="squared_error", schedule="constant", batch_size=64)
    with pytest.raises(CheckpointError, match="monotone"):
        other = All(Lipschitz(3.0), Monotone(increasing=[0, 2]))
        train(core(), table(), longer, constraint=other, resume=True, **where)
    resumed = train(core(), table(), longer, constraint=ASKED, resume=True, **where)
    whole = train(core(), table(), longer, constraint=ASKED, progress=False)
    assert first.steps < resumed.steps == whole.steps
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_result_goes_on_under_the_same_claim_and_under_another() -> None:
    first = train(core(), table(), SETTINGS, constraint=ASKED, progress=False)
    still = TrainConfig(epochs=1, batch_size=64, loss="squared_error", lr=1e-9)
    again = train(first, table(), still, constraint=ASKED, progress=False)
    x = table()[0]
    assert torch.equal(again.model.linear.weight, first.model.linear.weight)
    # The state goes on too: one without it would find another multiplier and another rho.
    assert again.state is not None and first.state is not None
    assert again.state.rho == first.state.rho
    assert torch.allclose(again.model(x), first.model(x), atol=0.05)
    more = train(first, table(), SETTINGS, constraint=ASKED, progress=False)
    assert more.history[-1]["loss"] <= first.history[-1]["loss"] * 1.05
    verify(more.certificate, more.model)
    other = All(Lipschitz(2.0), Monotone(increasing=[0]))
    moved = train(first, table(), still, constraint=other, progress=False)
    verify(moved.certificate, moved.model)
    assert moved.certificate.lip <= 2.0 and len(moved.certificate.columns) == 1
    assert moved.history[0]["loss"] < 2.0 * first.history[0]["loss"]
