"""The estimators are scikit-learn's own kind, and their bounds hold in the units of the data."""

from __future__ import annotations

import io
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from admm_lip import certify, verify
from admm_lip.errors import CertificateError
from admm_lip.sklearn import LipschitzClassifier, LipschitzRegressor

QUICK: dict[str, Any] = {"hidden": (8,), "epochs": 12, "batch_size": 16, "random_state": 0}
QUICKEST = QUICK | {"hidden": (4,), "epochs": 6}
WORDS = np.array(["no", "perhaps", "yes"])


@parametrize_with_checks(
    [LipschitzClassifier(3.0, **QUICKEST), LipschitzRegressor(3.0, **QUICKEST)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_what_scikit_learn_asks_of_estimators(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def iris() -> tuple[pd.DataFrame, np.ndarray]:
    """With the lengths in other units than the widths, and words as classes."""
    x, y = load_iris(return_X_y=True, as_frame=True)
    return x * np.array([10.0, 1.0, 0.1, 1.0]), WORDS[y]


@pytest.fixture(scope="module")
def classifier(iris: tuple[pd.DataFrame, np.ndarray]) -> LipschitzClassifier:
    return LipschitzClassifier(hidden=(16,), epochs=40, random_state=1).fit(*iris)


def slopes(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Spectral norms of the Jacobians."""
    rows = torch.tensor(np.asarray(x, dtype=np.float64))
    jacobians = torch.func.vmap(torch.func.jacrev(module))(rows).detach()
    return torch.linalg.matrix_norm(jacobians, 2).numpy()


class TestClassifier:
    def test_its_bound_holds_in_the_units_of_the_rows(
        self, classifier: LipschitzClassifier, iris: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        assert classifier.lip_ <= 1.0
        assert classifier.lip_ > 0.9  # it is used
        assert slopes(classifier.as_module(), iris[0]).max() <= classifier.lip_
        assert classifier.score(*iris) > 0.9
        verify(classifier.certificate_, classifier)

    def test_a_radius_survives_what_an_attack_finds(
        self, classifier: LipschitzClassifier, iris: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        x, _ = iris
        radii = classifier.certified_radius(x)
        assert (radii > 0.0).mean() > 0.9
        directions = np.random.default_rng(0).normal(size=(40, *x.shape))
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        before = classifier.predict(x)
        for direction in directions:
            assert (classifier.predict(x + radii[:, None] * direction) == before).all()

    def test_scores_fall_with_the_radius_from_the_accuracy(
        self, classifier: LipschitzClassifier, iris: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        scores = [classifier.certified_score(*iris, radius) for radius in (0.0, 0.1, 0.3, 1e3)]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == classifier.score(*iris)
        assert scores[-1] == 0.0

    def test_a_certificate_of_another_bound_is_refused(
        self, classifier: LipschitzClassifier, iris: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        other = LipschitzClassifier(hidden=(16,), epochs=5, random_state=2).fit(*iris)
        with pytest.raises(CertificateError):
            verify(classifier.certificate_, other)

    def test_parts_of_the_data_train_it_too(self) -> None:
        x, y = load_iris(return_X_y=True)
        found = LipschitzClassifier(hidden=(8,), batch_size=16, random_state=0)
        for k in range(12):
            found.partial_fit(x[k % 3 :: 3], y[k % 3 :: 3], classes=[0, 1, 2])
            assert found.lip_ <= 1.0
        assert found.score(x, y) > 0.85
        with pytest.raises(ValueError, match=r"classes: expected \[0 1 2\]"):
            found.partial_fit(x, y, classes=[0, 1])

    def test_the_first_part_wants_all_classes(self) -> None:
        with pytest.raises(ValueError, match="classes: expected all labels"):
            LipschitzClassifier().partial_fit(np.eye(3), [0, 1, 2])

    def test_sorting_pairs_wants_rows_as_they_are(self) -> None:
        x, y = load_iris(return_X_y=True)
        found = LipschitzClassifier(activation="max_min", **QUICK)
        with pytest.raises(ValueError, match="standardize=False"):
            found.fit(x, y)
        assert found.set_params(standardize=False).fit(x, y).lip_ <= 1.0

    @pytest.mark.parametrize("radius", [-1.0, float("nan")])
    def test_a_radius_is_a_distance(self, classifier: LipschitzClassifier, radius: float) -> None:
        with pytest.raises(ValueError, match="radius: expected"):
            classifier.certified_score(np.zeros((1, 4)), ["no"], radius)


class TestRegressor:
    def test_its_bound_is_in_the_units_of_rows_and_targets(self) -> None:
        x = np.linspace(0.0, 1000.0, 120)[:, None]
        y = 1e4 * np.sin(x[:, 0] / 300.0)  # slopes of up to 33
        found = LipschitzRegressor(bound=20.0, hidden=(16,), epochs=60, random_state=0).fit(x, y)
        assert 19.0 < found.lip_ <= 20.0
        assert slopes(found.as_module(), x).max() <= found.lip_
        assert found.score(x, y) > 0.8
        verify(found.certificate_, found)

    def test_slopes_along_features_of_other_scales(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(150, 2)) * np.array([1000.0, 1.0])
        y = np.stack([np.sin(x[:, 0] / 1000.0), np.abs(x[:, 1])], axis=1)
        found = LipschitzRegressor(bound=2.0, **QUICK).fit(x, y)
        steepest = found.slope_
        assert steepest.shape == (2, 2)
        rows = torch.tensor(x)
        jacobians = torch.func.vmap(torch.func.jacrev(found.as_module()))(rows).detach().numpy()
        assert (abs(jacobians).max(axis=0) <= steepest).all()
        assert (steepest <= found.lip_).all()
        assert (steepest[:, 0] < 0.01 * steepest[:, 1]).all()
        plain = LipschitzRegressor(bound=2.0, standardize=False, **QUICK).fit(x[:, 1:], y[:, 1])
        assert plain.slope_ == pytest.approx([plain.lip_])

    def test_an_interval_holds_every_neighbour(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(100, 2))
        found = LipschitzRegressor(bound=2.0, **QUICK).fit(x, np.abs(x))  # two outputs
        low, high = found.interval(x, 0.3)
        for _ in range(20):
            step = rng.normal(size=x.shape)
            moved = found.predict(x + 0.3 * step / np.linalg.norm(step, axis=1, keepdims=True))
            assert ((low <= moved) & (moved <= high)).all()

    def test_parts_keep_the_number_of_outputs(self) -> None:
        x = np.random.default_rng(0).normal(size=(40, 2))
        found = LipschitzRegressor(**QUICK).partial_fit(x, x[:, 0]).partial_fit(x, x[:, 1])
        assert found.predict(x).shape == (40,)
        with pytest.raises(ValueError, match="y: expected 1 outputs"):
            found.partial_fit(x, x)


class TestTogetherWithScikitLearn:
    def test_a_search_over_the_bound_in_a_pipeline(self) -> None:
        x, y = load_wine(return_X_y=True)
        steps = make_pipeline(StandardScaler(), LipschitzClassifier(**QUICK))
        grid = {"lipschitzclassifier__bound": [0.5, 2.0]}
        search = GridSearchCV(steps, grid, cv=2, n_jobs=2).fit(x, y)
        assert search.best_score_ > 0.8
        best = search.best_estimator_
        found = certify(best)  # of the raw rows
        verify(found, best)
        assert slopes_of(best, x).max() <= found.lip
        inner = best[-1]
        assert found.lip <= inner.lip_ / best[0].scale_.min() * (1.0 + 1e-6)

    def test_in_the_units_of_a_pipeline(
        self, iris: tuple[pd.DataFrame, np.ndarray], classifier: LipschitzClassifier
    ) -> None:
        x, y = iris
        last = LipschitzClassifier(standardize=False, **QUICK)
        line = make_pipeline(StandardScaler(), last).fit(x, y)
        raw = line[-1].in_units_of(line)
        assert (raw.predict(x) == line.predict(x)).all()
        assert raw.lip_ == pytest.approx(certify(line).lip, rel=1e-6)
        assert raw.lip_ != pytest.approx(last.lip_, rel=0.1)
        verify(raw.certificate_, raw)
        radii = raw.certified_radius(x)
        step = np.random.default_rng(0).normal(size=x.shape)
        step *= (0.999 * radii / np.linalg.norm(step, axis=1))[:, None]
        assert (radii > 0.0).all()
        assert (line.predict(x + step) == line.predict(x)).all()
        with pytest.raises(ValueError, match="pipeline: expected one whose last step"):
            classifier.in_units_of(line)

    def test_folds(self) -> None:
        x, y = load_iris(return_X_y=True)
        assert cross_val_score(LipschitzClassifier(**QUICK), x, y, cv=2).min() > 0.7

    def test_the_same_seed_gives_the_same_network(self) -> None:
        x, y = load_iris(return_X_y=True)
        one, other = (LipschitzClassifier(**QUICK).fit(x, y) for _ in range(2))
        assert (one.decision_function(x) == other.decision_function(x)).all()

    def test_it_is_kept_by_joblib(self, classifier: LipschitzClassifier) -> None:
        kept = io.BytesIO()
        joblib.dump(classifier, kept)
        kept.seek(0)
        again = joblib.load(kept)
        rows = np.random.default_rng(0).normal(size=(5, 4))
        rows = pd.DataFrame(rows, columns=classifier.feature_names_in_)
        assert (again.decision_function(rows) == classifier.decision_function(rows)).all()
        verify(again.certificate_, again)

    def test_a_clone_has_learned_nothing(self, classifier: LipschitzClassifier) -> None:
        fresh = clone(classifier)
        assert fresh.get_params() == classifier.get_params()
        assert not hasattr(fresh, "certificate_")


def slopes_of(pipeline: Any, x: np.ndarray) -> np.ndarray:
    """Differences of scores over short distances."""
    step = 1e-5 * np.random.default_rng(0).normal(size=x.shape)
    moved = pipeline.decision_function(x + step) - pipeline.decision_function(x)
    return np.linalg.norm(moved, axis=1) / np.linalg.norm(step, axis=1)
