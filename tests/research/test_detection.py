import copy
import math
from dataclasses import replace

import pytest
import torch
from gradient_nets import batch, residual, tanh_net
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from admm_lip.research.detection import (
    Detector,
    DetectorError,
    Scores,
    auc,
    calibrate,
    load_detector,
    model_digest,
    roc,
    score,
)


def scores(values) -> Scores:
    return Scores(torch.as_tensor(values, dtype=torch.float64), "2_inf", "probabilities", "m")


@given(st.integers(0, 10_000), st.integers(20, 300), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(seed, count, rate):
    values = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    detector = calibrate(scores(values), rate)
    # Exchangeability: of all count + 1 scores, one in count + 1 ranks is the new one's.
    alarms = int((values > detector.threshold).sum()) + 1
    assert alarms <= rate * (count + 1) + 1e-9
    lower = values[values < detector.threshold].max()
    assert int((values > lower).sum()) + 1 > rate * (count + 1) - 1e-9


def test_new_clean_inputs_are_rejected_at_the_promised_rate():
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(300):
        draw = torch.rand(400, generator=generator, dtype=torch.float64)
        detector = calibrate(scores(draw[:99]), 0.05)
        shares.append(float(detector.rejects(scores(draw[99:])).double().mean()))
    mean = sum(shares) / len(shares)
    assert mean == pytest.approx(0.05, abs=0.005)  # three standard errors are 0.004


@given(st.integers(0, 10_000), st.booleans())
def test_roc_and_area_agree_with_scikit_learn(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(37, generator=generator, dtype=torch.float64)
    attacked = torch.rand(23, generator=generator, dtype=torch.float64) + 0.3
    if ties:
        clean, attacked = (10 * clean).round(), (10 * attacked).round()
    truth, values = [0] * 37 + [1] * 23, torch.cat([clean, attacked]).numpy()
    found = roc(scores(clean), scores(attacked))
    false_positive, true_positive, _ = roc_curve(truth, values, drop_intermediate=False)
    # Ours counts scores at or above a threshold, from infinity downwards, as scikit-learn does.
    assert found.false_positive.tolist() == pytest.approx(false_positive.tolist())
    assert found.true_positive.tolist() == pytest.approx(true_positive.tolist())
    area = auc(scores(clean), scores(attacked))
    assert area.value == pytest.approx(roc_auc_score(truth, values))
    assert 0.0 <= area.low <= area.value <= area.high <= 1.0


def test_the_interval_covers_the_true_area_as_often_as_it_says():
    shift, generator = 1.5, torch.Generator().manual_seed(1)
    true = 0.5 * (1 + math.erf(shift / 2))  # two normals, one apart by shift
    hits = 0
    for _ in range(400):
        draw = torch.randn(80, generator=generator, dtype=torch.float64)
        area = auc(scores(draw[:40]), scores(draw[40:] + shift))
        hits += area.low <= true <= area.high
    assert 0.92 <= hits / 400 <= 0.985


def test_perfect_separation_still_has_an_interval():
    area = auc(scores([0.0, 1.0, 2.0]), scores([3.0, 4.0]))
    assert (area.value, area.high) == (1.0, 1.0)
    assert 0.2 < area.low < 0.9
    opposite = auc(scores([3.0, 4.0]), scores([0.0, 1.0, 2.0]))
    assert (opposite.value, opposite.low) == (0.0, 0.0)
    assert opposite.high == pytest.approx(1.0 - area.low)


def test_a_detector_is_of_one_model_and_one_norm():
    model, (x, _) = tanh_net(), batch(1, 60, 5)
    detector = calibrate(score(model, x))
    assert int(detector.rejects(score(copy.deepcopy(model), x)).sum()) <= 3
    with pytest.raises(DetectorError, match="scores: expected kind '2_inf', got 'frobenius'"):
        detector.rejects(score(model, x, "frobenius"))
    with pytest.raises(DetectorError, match="expected output 'probabilities', got 'logits'"):
        detector.rejects(score(model, x, output="logits"))
    with torch.no_grad():
        model[0].bias[0] += 1e-9
    with pytest.raises(DetectorError, match=r"expected model '.*calibrate on the scores of this"):
        detector.rejects(score(model, x))
    with pytest.raises(DetectorError, match="scores: expected model"):
        auc(score(model, x), score(tanh_net(1), x))
    with pytest.raises(DetectorError, match="scores: expected output"):
        roc(score(model, x), score(model, x, output="logits"))


def test_the_digest_sees_weights_buffers_and_architecture():
    model = residual()
    first = model_digest(model)
    assert model_digest(copy.deepcopy(model)) == first
    model.blocks[0][1].running_mean[0] += 1.0
    second = model_digest(model)
    model.blocks[0][2] = torch.nn.ReLU()
    assert len({first, second, model_digest(model)}) == 3


def test_too_little_or_bad_data_is_refused():
    with pytest.raises(DetectorError, match=r"clean: expected at least 19 scores.* got 18"):
        calibrate(scores(torch.rand(18)), 0.05)
    assert calibrate(scores(torch.arange(19)), 0.05).threshold == 18.0
    for rate in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(
            DetectorError, match=r"false_positive_rate: expected a number in \(0, 1"
        ):
            calibrate(scores(torch.rand(50)), rate)
    with pytest.raises(DetectorError, match="clean: expected finite scores"):
        calibrate(scores([math.inf] * 50))
    with pytest.raises(DetectorError, match=r"level: expected a number in \(0, 1\), got 2"):
        auc(scores([1.0]), scores([1.0]), level=2)


def test_a_detector_survives_its_file_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "detector.json"
    detector = Detector(0.25, 0.05, 100, "frobenius", "logits", "ab")
    detector.save(path)
    assert load_detector(path) == detector
    assert list(tmp_path.iterdir()) == [path]
    for damage in ("", "[]", "{}", path.read_text().replace("frobenius", "other")):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(DetectorError, match=r"expected a detector written by Detector\.save"):
            load_detector(tmp_path / "bad.json")
    replace(detector, threshold=math.nan).save(path)
    with pytest.raises(DetectorError, match="holds NaN, which JSON does not have"):
        load_detector(path)
    with pytest.raises(DetectorError, match="expected a detector written by"):
        load_detector(tmp_path / "missing.json")
