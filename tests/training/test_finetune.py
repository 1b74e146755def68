"""Projection with data: the bound holds, the report is true, the network given is not touched."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import certified_radii, certify, project, verify
from admm_lip.data import load_data
from admm_lip.networks.chain import linear_layers
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.solvers import SolverConfig
from admm_lip.training import judging
from admm_lip.training.batches import TensorBatches
from admm_lip.training.finetune import FinetuneConfig, Taught, labelled, step_size
from admm_lip.training.losses import SPARE, margin_loss
from admm_lip.training.projected import Projection
from admm_lip.training.smooth import best_smoothed, even_gauge, mean_radius, smoothed

CONFIG = FinetuneConfig(eps=0.1)
module = importlib.import_module("admm_lip.training.project")  # the package's name is the function


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits: Any) -> nn.Module:
    model = build_mlp(64, 10, ModelConfig((24, 16)), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = digits.train
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def tuned(trained: nn.Module, digits: Any) -> Projection:
    return project(
        trained, 1.0, finetune=digits.train, judge=digits.test, config=CONFIG, progress=False
    )


def test_the_bound_holds_and_the_report_is_true(
    trained: nn.Module, tuned: Projection, digits: Any
) -> None:
    assert tuned.certificate.lip <= 1.0
    verify(tuned.certificate, tuned.model)
    x, y = digits.test
    assert tuned.before is not None
    assert tuned.after is not None
    for model, judged in ((trained, tuned.before), (tuned.model, tuned.after)):
        pairs = certify(model, kind="pairwise", progress=False)
        radii = certified_radii(model, x, y, certificate=pairs)
        assert judged.certified == pytest.approx(float((radii > 0.1).double().mean()))
        right = (model(x).argmax(1) == y).double().mean()
        assert judged.accuracy == pytest.approx(float(right))
        assert (judged.samples, judged.radius, judged.kind) == (360, 0.1, "pairwise")


def test_nothing_is_judged_before_somebody_asks(
    trained: nn.Module, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[nn.Module] = []
    real = judging.radii_of

    def watched(model: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        asked.append(model)
        return real(model, *arguments, **keywords)

    monkeypatch.setattr(judging, "radii_of", watched)
    config = FinetuneConfig(eps=0.1, ridges=(), even=False)
    found = project(trained, 1.0, finetune=digits.train, epochs=1, config=config, progress=False)
    assert asked == []
    assert found.after is found.after
    assert found.after is not None
    assert found.after.samples == len(digits.train[1])
    (judged,) = asked  # a copy, in the dtype that norms are computed in
    weights = zip(judged.parameters(), found.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_rounds_beat_the_bare_projection_and_raise_what_is_certified(
    trained: nn.Module, tuned: Projection, digits: Any
) -> None:
    bare = project(trained, 1.0)
    x, y = digits.test
    certified = [
        float((certified_radii(m, x, y, certificate=c) > 0.1).double().mean())
        for m, c in ((bare.model, bare.certificate), (tuned.model, tuned.certificate))
    ]
    assert certified[1] > certified[0] + 0.1
    assert bare.before is bare.after is None


def test_the_network_given_is_not_touched(trained: nn.Module, digits: Any) -> None:
    before = copy.deepcopy(trained.state_dict())
    x, _ = digits.train
    found = project(trained, 1.0, finetune=x[:200], epochs=1, config=CONFIG, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert found.before is found.after is None  # nobody knows the classes
    assert found.distance > 0.0


def test_inputs_alone_get_the_classes_of_the_network(trained: nn.Module, digits: Any) -> None:
    x, _ = digits.train
    batches = labelled(trained, x, CONFIG)
    assert isinstance(batches, TensorBatches)
    assert torch.equal(batches.inputs, x)
    assert torch.equal(batches.targets, trained(x).argmax(1))
    with pytest.raises(ValueError, match="finetune: a network of one output predicts no class"):
        labelled(nn.Linear(64, 1), x, CONFIG)


def test_a_regression_is_projected_and_then_fitted() -> None:
    x = torch.linspace(-1.0, 1.0, 128)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    config = FinetuneConfig(lr=1e-2, batch_size=32, distill=0.0)
    found = project(model, 0.5, finetune=(x, 0.3 * x), epochs=30, config=config, progress=False)
    assert found.certificate.lip <= 0.5
    assert found.before is None
    error = (found.model(x) - 0.3 * x).detach()
    assert float(error.square().mean()) < 0.1 * float((0.3 * x).var())


class TestSmoothing:
    def test_without_a_ridge_nothing_changes_on_the_data(
        self, trained: nn.Module, digits: Any
    ) -> None:
        x, _ = digits.train
        same = smoothed(trained, x, 1e-12)
        torch.testing.assert_close(same(x), trained(x), atol=1e-3, rtol=1e-3)

    def test_directions_without_data_lose_their_weight(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        x = torch.randn(200, 6)
        x[:, 4:] = 0.5
        flat = smoothed(model, x, 1e-6)
        assert float(flat[0].weight[:, 4:].abs().max().detach()) < 1e-6
        torch.testing.assert_close(flat(x), model(x), atol=1e-3, rtol=1e-3)
        assert certify(flat).lip < certify(model).lip

    def test_layers_without_bias(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
        x = torch.randn(200, 6)
        torch.testing.assert_close(smoothed(model, x, 1e-9)(x), model(x), atol=1e-4, rtol=1e-4)

    def test_the_best_is_no_worse_than_the_given(self, trained: nn.Module, digits: Any) -> None:
        solver = SolverConfig(tol=1e-3)
        best = best_smoothed(trained, *digits.train, (1e-3,), solver)
        given = mean_radius(trained, *digits.train, solver)
        assert mean_radius(best, *digits.train, solver) >= given

    def test_the_gauge_changes_no_output_and_evens_the_multipliers(
        self, trained: nn.Module, digits: Any
    ) -> None:
        x, _ = digits.test
        solver = SolverConfig()
        even = even_gauge(trained, solver)
        torch.testing.assert_close(even(x), trained(x), atol=1e-3, rtol=1e-3)

        def unevenness(model: nn.Module) -> float:
            return max(max(t) / min(t) for t in certify(model).multiplier)

        assert unevenness(even) < 1.1 + 0.01 * unevenness(trained)
        tanh = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        assert even_gauge(tanh, solver) is tanh


def gradient(value: torch.Tensor, model: nn.Linear) -> torch.Tensor:
    return torch.autograd.grad(value, model.weight)[0]


def test_the_teachers_probabilities_enter_the_targets() -> None:
    """Up to what depends on no weight: the gradients are those of soft targets."""
    torch.manual_seed(0)
    teacher, model = nn.Linear(3, 4), nn.Linear(3, 4)
    x, y = torch.randn(8, 3), torch.randint(4, (8,))
    config = FinetuneConfig(eps=0.2, distill=0.25)
    loss, lip = margin_loss(0.2, 0.3), 2.0
    method = Taught(teacher, lip, config, temperature=3.0)
    mine = method.objective(model, x, y, lambda f, t: loss(f, t, lip), 0.0)
    one_hot = nn.functional.one_hot(y, 4)
    q = 0.75 * one_hot + 0.25 * (teacher(x) / 3.0).softmax(1).detach()
    radius = 0.2 + min(0.2, SPARE * 0.2 + 0.3)
    z = model(x) / (0.3 * lip) - 2.0**0.5 * radius / 0.3 * one_hot
    soft = -0.3 * (q * z.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(gradient(mine, model), gradient(soft, model))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-20.0, 20.0), st.floats(0.1, 3.0))
def test_soft_labels_are_the_same_at_any_scale_of_the_teacher(
    seed: int, classes: int, power: float, softness: float
) -> None:
    torch.manual_seed(seed)
    teacher, x = nn.Linear(3, classes).double(), torch.randn(71, 3).double()
    config = FinetuneConfig(softness=softness)
    found = []
    for scale in (1.0, 10.0**power):
        with torch.no_grad():
            scaled = copy.deepcopy(teacher)
            for parameter in scaled.parameters():
                parameter.mul_(scale)
            found.append(Taught.by(scaled, x, 1.0, config).chances(scaled(x)))
    torch.testing.assert_close(found[0], found[1])
    lead = found[0].topk(2, dim=1).values.log().diff(dim=1)
    assert float(-lead.median()) == pytest.approx(1.0 / softness)  # the median row's odds


def test_a_teacher_whose_outputs_are_all_tied_teaches_nothing() -> None:
    teacher, x = nn.Linear(3, 4), torch.randn(5, 3)
    nn.init.constant_(teacher.weight, 0.5)
    nn.init.constant_(teacher.bias, 0.5)
    even = Taught.by(teacher, x, 1.0, CONFIG).chances(teacher(x))
    torch.testing.assert_close(even, torch.full((5, 4), 0.25))


def test_a_smaller_teacher_ends_at_the_same_network(trained: nn.Module, digits: Any) -> None:
    """Smaller by the same factor in every layer, which the start takes back."""
    x, _ = digits.test
    smaller = copy.deepcopy(trained)
    with torch.no_grad():
        for k, layer in enumerate(linear_layers(smaller), start=1):
            layer.weight.mul_(0.5)
            layer.bias.mul_(0.5**k)
    torch.testing.assert_close(smaller(x), 0.125 * trained(x))
    found = [
        project(net, 0.5, finetune=digits.train, epochs=2, config=CONFIG, progress=False)
        for net in (trained, smaller)
    ]
    assert found[1].distance > 1.0  # both are scaled down to the bound
    with torch.no_grad():
        one, two = (each.model(x) for each in found)
    assert float((one - two).abs().max()) < 1e-2 * float(one.std())


def test_steps_are_short_where_they_are_few() -> None:
    sizes = [step_size(n) for n in (1, 100, 300, 1000, 10**6)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (3e-3, 1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1.0}, "eps: expected a finite number >= 0, got -1.0"),
        ({"lr": 0.0}, "lr: expected a finite number > 0 or None, got 0.0"),
        ({"distill": 1.5}, r"distill: expected a number in \[0, 1\], got 1.5"),
        ({"softness": 0.0}, "softness: expected a finite number > 0"),
        ({"ridges": (0.1, -1.0)}, r"ridges\[1\]: expected a finite number > 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**change)


def test_arguments_that_do_not_go_together_are_named(trained: nn.Module, digits: Any) -> None:
    with pytest.raises(
        ValueError, match="config, judge, run_dir, resume: go with finetune=data only"
    ):
        project(trained, 1.0, config=CONFIG)
    with pytest.raises(ValueError, match="epochs: expected a whole number >= 1, got 0"):
        project(trained, 1.0, finetune=digits.train, epochs=0)
