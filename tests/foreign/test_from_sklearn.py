"""scikit-learn's own estimators, read, certified and verified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC

from admm_lip import certify, verify
from admm_lip.errors import CertificateError, NetworkError, UnsupportedModule
from admm_lip.foreign.from_sklearn import module_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = load_iris(return_X_y=True)
SHORT: dict[str, Any] = {"hidden_layer_sizes": (6, 5), "max_iter": 30, "random_state": 0}
SCALERS = (
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    MinMaxScaler((-1.0, 2.0)),
    MaxAbsScaler(),
    RobustScaler(),
    RobustScaler(with_centering=False, with_scaling=False),
    PCA(3),
    PCA(3, whiten=True),
)
LAST = (
    *(MLPRegressor(activation=a, **SHORT) for a in ("identity", "logistic", "tanh", "relu")),
    LinearRegression(),
    Ridge(),
)
SCORES = (LogisticRegression(), LinearSVC(random_state=0))


def outputs(estimator: Any) -> np.ndarray:
    with torch.no_grad():
        return module_of(estimator)(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_scalers_in_front(scaler: Any) -> None:
    found = make_pipeline(scaler, "passthrough", LinearRegression()).fit(X, X[:, :2] @ [1.0, -3.0])
    np.testing.assert_allclose(outputs(found)[:, 0], found.predict(X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last", LAST, ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_regressions(last: Any, several: bool) -> None:
    targets = X[:, 1:] if several else X[:, 3]
    found = make_pipeline(make_pipeline(StandardScaler()), last).fit(X, targets)
    np.testing.assert_allclose(
        outputs(found), found.predict(X).reshape(len(X), -1), rtol=1e-10, atol=1e-10
    )
    certificate = certify(found)
    verify(certificate, found)
    step = 1e-6 * np.random.default_rng(0).normal(size=X.shape)
    moved = np.linalg.norm((found.predict(X + step) - found.predict(X)).reshape(len(X), -1), axis=1)
    assert (moved / np.linalg.norm(step, axis=1)).max() <= certificate.lip * (1.0 + 1e-6)


@pytest.mark.parametrize("last", SCORES, ids=str)
@pytest.mark.parametrize("binary", [False, True])
def test_scores_of_linear_classifiers(last: Any, binary: bool) -> None:
    found = last.fit(X, Y == 1 if binary else Y)
    scores = found.decision_function(X).reshape(len(X), -1)
    np.testing.assert_allclose(outputs(found), scores, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("binary", [False, True])
def test_a_classifier_is_its_scores_before_probabilities(binary: bool) -> None:
    found = MLPClassifier(**SHORT).fit(X, Y == 1 if binary else Y)
    scores = torch.from_numpy(outputs(found))
    likely = scores.sigmoid()[:, 0] if binary else scores.softmax(1)
    expected = found.predict_proba(X)
    np.testing.assert_allclose(likely, expected[:, 1] if binary else expected, atol=1e-12)
    verify(certify(found), found)


def test_another_scaler_is_another_network() -> None:
    one = make_pipeline(StandardScaler(), MLPRegressor(**SHORT)).fit(X, X[:, 0])
    certificate = certify(one)
    one[0].scale_ = one[0].scale_ * 2.0
    with pytest.raises(CertificateError):
        verify(certificate, one)


@pytest.mark.parametrize(
    ("estimator", "error", "said"),
    [
        (MLPRegressor(), NetworkError, "MLPRegressor.*coefs_; call fit first"),
        (make_pipeline(StandardScaler(), Ridge()), NetworkError, "standardscaler.*call fit first"),
        (make_pipeline(Normalizer(), Ridge()).fit(X, Y), UnsupportedModule, "normalizer"),
        (GaussianNB().fit(X, Y), UnsupportedModule, "GaussianNB"),
        (
            make_pipeline(MinMaxScaler(clip=True), Ridge()).fit(X, Y),
            UnsupportedModule,
            "clip=True is not handled",
        ),
    ],
    ids=str,
)
def test_refused_by_name(estimator: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        certify(estimator)
