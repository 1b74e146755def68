"""A classifier whose scores cannot change faster than a bound, with proven radii."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from ..certificates.radii import radii_of
from .estimator import Array, LipschitzEstimator

Floats = NDArray[np.float64]


class LipschitzClassifier(ClassifierMixin, LipschitzEstimator):  # type: ignore[misc]
    """A perceptron whose scores have a proven Lipschitz constant of at most ``bound``.

    A prediction then provably stands on the ball of radius ``margin / (sqrt(2) lip_)`` around its
    row (Tsuzuku et al., 2018).  ``bound`` alone only scales scores; what makes radii large is
    ``radius``, which the margin loss trains for.

    Args:
        bound: the largest Lipschitz constant, scores per unit of X, l2.
        hidden: widths of the hidden layers.
        activation: ``relu``, ``tanh`` and others of
            :class:`~admm_lip.networks.model_config.ModelConfig`; ``max_min`` (even widths), which
            loses least under a bound, wants ``standardize=False``.
        loss: ``margin``, or ``cross_entropy``.
        radius: how far a row may be moved that the margin loss trains for, in units of X.
        epochs: passes over the rows; ``None``: 2,000 steps, at least 15 passes and at most 200.
        batch_size: rows of a step.
        learning_rate: of Adam.
        standardize: train on standardised rows; the bound and all results are in the units of
            the data all the same.
        random_state: as elsewhere in scikit-learn.
        verbose: whether to show a bar.

    Attributes:
        classes_: labels, sorted, in the order of the scores.
        certificate_: the proof, of the function of rows as they come.
        lip_: the constant it proves.
        model_: that function as a torch module.
        n_features_in_, feature_names_in_: of ``fit``.
        n_iter_: steps of the optimizer.

    Raises:
        ValueError: as other classifiers do, and for settings by name.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from admm_lip.sklearn import LipschitzClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> found = LipschitzClassifier(hidden=(16,), epochs=30, random_state=0).fit(X, y)
        >>> found.lip_ <= 1.0, found.score(X, y) > 0.9
        (True, True)
        >>> bool((found.certified_radius(X) > 0.0).all())
        True
    """

    def __init__(
        self,
        bound: float = 1.0,
        hidden: tuple[int, ...] = (64, 64),
        *,
        activation: str = "relu",
        loss: str = "margin",
        radius: float = 0.1,
        epochs: int | None = None,
        batch_size: int = 64,
        learning_rate: float = 1e-2,
        standardize: bool = True,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            bound,
            hidden,
            activation=activation,
            loss=loss,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            standardize=standardize,
            random_state=random_state,
            verbose=verbose,
        )
        self.radius = radius

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows ``(samples, features)`` and labels ``(samples,)``, and prove the bound."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = unique_labels(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: expected at least two classes, got one class alone: {self.classes_[0]!r}"
            )
        return self._train(X, self._numbers(y), self._units_of(X), len(self.classes_))

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """One pass over these rows, from where the last call ended.

        Args:
            X: rows ``(samples, features)``; those of the first call set how rows are standardised.
            y: labels.
            classes: all labels there will be; needed in the first call.
        """
        first = not hasattr(self, "_result")
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        if first and classes is None:
            raise ValueError("classes: expected all labels in the first call of partial_fit")
        labels = self.classes_ if classes is None else unique_labels(classes)
        if not first and not np.array_equal(labels, self.classes_):
            raise ValueError(f"classes: expected {self.classes_} as before, got {classes!r}")
        self.classes_ = labels
        return self._train(X, self._numbers(y), self._units_of(X), len(labels), part=True)

    def decision_function(self, X: Any) -> Floats:
        """Scores ``(samples, classes)``; of two classes the second's minus the first's."""
        scores = self._run(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """The label of the largest score."""
        picked = self._run(X).argmax(axis=1)
        labels: Array = self.classes_[picked]
        return labels

    def certified_radius(self, X: Any, y: Any = None) -> Floats:
        """How far each row may move before its class can change, proven, in units of X.

        Args:
            X: rows.
            y: labels; ``None``: what is predicted.  0 where another class is predicted.
        """
        check_is_fitted(self)
        labels = self.predict(X) if y is None else np.asarray(y)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found = radii_of(self.as_module(), X, self._numbers(labels), certificate=self.certificate_)
        radii: Floats = found.numpy()
        return radii

    def certified_score(self, X: Any, y: Any, radius: float) -> float:
        """The share of rows that are right on the whole ball of ``radius`` around them, proven."""
        if not radius >= 0.0:
            raise ValueError(f"radius: expected a number >= 0, got {radius!r}")
        right = self.predict(X) == np.asarray(y)
        return float((right & (self.certified_radius(X, y) >= radius)).mean())

    def _numbers(self, y: Array) -> NDArray[np.int64]:
        known = np.isin(y, self.classes_)
        if not known.all():
            raise ValueError(f"y: expected labels of {self.classes_}, got {y[~known][0]!r}")
        return np.searchsorted(self.classes_, y).astype(np.int64)

    def _radius(self) -> float:
        return self.radius

    def _outputs(self) -> range:
        return range(len(self.classes_))
