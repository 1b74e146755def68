from dataclasses import replace

import pytest
import torch
from torch import nn

from admm_lip import certified_radii, certify
from admm_lip.certificates.radii import radii_of
from admm_lip.data import DataSet, TableOptions, load_data
from admm_lip.evaluation import evaluate as module
from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.evaluate import (
    EvaluateConfig,
    attack_accuracy,
    evaluate,
    report_radius,
)
from admm_lip.evaluation.falsify import SoundnessError, assert_sound
from admm_lip.networks.models import ModelConfig, build_mlp

QUICK = EvaluateConfig(samples=60, steps=10)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def halves(n: int = 40) -> DataSet:
    """Points of the line, class 1 where x > 0; the network below decides exactly there."""
    x = torch.linspace(-1.0, 1.0, n).reshape(-1, 1)
    pair = (x, (x[:, 0] > 0).long())
    return DataSet(pair, pair, "halves", "classification", 2, (-1.0, 1.0), (1,))


def decider() -> nn.Linear:
    """``f = (-x, x)``: boundary at 0, L = sqrt(2), so the sqrt(2) rule certifies exactly |x|."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[-1.0], [1.0]])
    return layer


class TestClassifier:
    def test_the_curves_of_an_exactly_solvable_classifier(self):
        data, model = halves(), decider()
        result = evaluate(model, data, certify(model), EvaluateConfig(radii=(0.3, 0.7)))
        assert result.clean_accuracy == 1.0
        assert result.radii == (0.0, 0.2, 0.3, 0.7)
        for radius, certified, attacked in zip(
            result.radii, result.certified_accuracy, result.attack_accuracy, strict=True
        ):
            truth = (data.test[0].abs() >= radius).double().mean().item()
            # L is sqrt(2) and the margin 2|x|, so the certified radius is the distance itself.
            assert certified == pytest.approx(truth, abs=1e-12)
            assert attacked == pytest.approx(truth, abs=1e-12)
        assert result.report_radius == 0.2
        assert result.certified_at_report == result.certified_accuracy[1]

    def test_certified_below_attacked_below_clean_and_both_fall(self, digits):
        model = build_mlp(64, 10, ModelConfig((16,)), seed=1)
        nn.init.zeros_(model[0].bias)
        result = evaluate(model, digits, certify(model), replace(QUICK, samples=None))
        assert result.curve_rows == result.rows == 360
        assert result.certified_accuracy[0] == result.attack_accuracy[0] == result.clean_accuracy
        for certified, attacked in zip(
            result.certified_accuracy, result.attack_accuracy, strict=True
        ):
            assert certified <= attacked <= result.clean_accuracy
        for curve in (result.certified_accuracy, result.attack_accuracy):
            assert list(curve) == sorted(curve, reverse=True)
        assert len(result.radii) > 10
        assert result.report_radius == pytest.approx(0.1)
        assert result.report_radius in result.radii

    def test_the_clean_accuracy_is_the_share_of_right_predictions(self, digits):
        model = build_mlp(64, 10, seed=3)
        x, y = digits.test
        share = (model(x).argmax(dim=1) == y).double().mean().item()
        assert evaluate(model, digits, certify(model), QUICK).clean_accuracy == pytest.approx(share)

    def test_a_constant_network_has_infinite_radii_and_still_evaluates(self):
        model = nn.Linear(1, 2)
        model.weight.data.zero_()
        model.bias.data = torch.tensor([1.0, 0.0])
        result = evaluate(model, halves(), certify(model), QUICK)
        assert set(result.certified_accuracy) == {0.5}
        assert set(result.attack_accuracy) == {0.5}

    def test_ties_and_nan_count_as_wrong(self):
        model = nn.Linear(1, 2, bias=False)
        model.weight.data.zero_()
        data, none = halves(), torch.zeros(40)
        assert attack_accuracy(model, *data.test, none, [0.0], AttackConfig()) == [0.0]
        model.weight.data.fill_(torch.nan)
        assert attack_accuracy(model, *data.test, none, [0.0], AttackConfig()) == [0.0]

    def test_a_sample_keeps_the_curves_comparable_and_the_headline_on_all_rows(self, digits):
        model = build_mlp(64, 10, ModelConfig((16,)), seed=1)
        certificate = certify(model)
        some = evaluate(model, digits, certificate, replace(QUICK, samples=37))
        every = evaluate(model, digits, certificate, replace(QUICK, samples=None))
        assert (some.curve_rows, every.curve_rows) == (37, 360)
        assert some.clean_accuracy == every.clean_accuracy
        assert some.certified_at_report == every.certified_at_report
        for certified, attacked in zip(some.certified_accuracy, some.attack_accuracy, strict=True):
            assert certified <= attacked

    def test_not_attacking_certified_rows_changes_nothing(self, digits):
        model = build_mlp(64, 10, ModelConfig((16,)), seed=1)
        x, y = digits.test[0][:80], digits.test[1][:80]
        radii = certified_radii(model, x, y, certificate=certify(model))
        attack, grid = AttackConfig(steps=10, restarts=1), [0.0, 0.05, 0.2]
        spared = attack_accuracy(model, x, y, radii, grid, attack)
        everyone = attack_accuracy(model, x, y, torch.zeros(80), grid, attack)
        assert spared == pytest.approx(everyone, abs=0.02)

    def test_the_record_is_plain_and_complete(self):
        record = evaluate(decider(), halves(), certify(decider()), QUICK).to_record()
        assert "rmse" not in record
        assert record["curve_rows"] == 40
        assert all(isinstance(v, float) for v in record["attack_accuracy"])


class TestSoundness:
    def test_true_radii_withstand(self, digits):
        model = build_mlp(64, 10, ModelConfig((16,)), seed=2)
        x, y = digits.test[0][:100], model(digits.test[0][:100]).argmax(dim=1)
        radii = certified_radii(model, x, y, certificate=certify(model))
        assert (radii > 0).all()
        assert_sound(model, x, y, radii, AttackConfig(steps=15))

    def test_a_radius_a_little_too_large_is_caught(self):
        data, model = halves(), decider()
        radii = data.test[0].abs().flatten().double()
        assert_sound(model, *data.test, radii)
        with pytest.raises(SoundnessError, match=r"row \d+: certified up to radius .* pgd found"):
            assert_sound(model, *data.test, 1.01 * radii)

    def test_a_hidden_gradient_does_not_hide_a_wrong_radius(self):
        class Step(nn.Module):
            def forward(self, x):
                sign = torch.sign(x) + 0.0 * x
                return torch.cat([-sign, sign], dim=1)

        data = halves()
        with pytest.raises(SoundnessError, match=r"gradient_free found another class"):
            assert_sound(Step(), *data.test, torch.full((40,), 1.5), AttackConfig(restarts=1))

    def test_evaluate_raises_on_a_wrong_certificate(self, digits, monkeypatch):
        model = build_mlp(64, 10, ModelConfig((16,)), seed=2)
        honest = radii_of

        def inflated(*args, **keywords):
            return 30.0 * honest(*args, **keywords)

        monkeypatch.setattr(module, "radii_of", inflated)
        with pytest.raises(SoundnessError, match=r"certified up to radius"):
            evaluate(model, digits, certify(model), QUICK)


class TestRegression:
    def test_errors_in_both_units(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("a,b\n" + "".join(f"{i},{3 * i + 1}\n" for i in range(50)))
        data = load_data(f"csv:{path}")
        model = nn.Linear(1, 1)
        model.weight.data.fill_(1.0)  # the standardised target equals the standardised feature
        model.bias.data.fill_(0.5)
        result = evaluate(model, data, certify(model))
        assert result.rmse == pytest.approx(0.5, abs=1e-5)
        assert result.rmse_raw == pytest.approx(0.5 * data.units.output_scale[0], rel=1e-5)
        y = data.test[1].double()
        r2 = 1 - 0.25 / ((y - y.mean()) ** 2).mean().item()
        assert result.r2 == pytest.approx(r2, abs=1e-5)
        assert set(result.to_record()) == {
            "task",
            "rows",
            "rmse",
            "rmse_raw",
            "r2",
        }

    def test_tables_are_judged_at_a_tenth_of_a_deviation(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("a,b\n" + "".join(f"{i},{i % 2}\n" for i in range(50)))
        data = load_data(f"csv:{path}", table=TableOptions(task="classification"))
        assert report_radius(data, EvaluateConfig()) == pytest.approx(0.1)
        assert report_radius(data, EvaluateConfig(report_radius=0.7)) == 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": (0.1, -0.1)}, r"radii\[1\]: expected a finite number >= 0, got -0.1"),
        ({"report_radius": 0.0}, r"report_radius: expected a finite number > 0 or None, got 0.0"),
        ({"samples": 0}, r"samples: expected a whole number >= 1 or None, got 0"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**change)
