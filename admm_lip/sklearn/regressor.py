"""A regression whose function cannot change faster than a bound."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..certificates.certifier import certify_global
from .estimator import LipschitzEstimator

Floats = NDArray[np.float64]


class LipschitzRegressor(RegressorMixin, LipschitzEstimator):  # type: ignore[misc]
    """A perceptron whose function has a proven Lipschitz constant of at most ``bound``.

    Args:
        bound: the largest Lipschitz constant, units of y per unit of X, l2.
        hidden: widths of the hidden layers.
        activation: ``relu``, ``tanh`` and others of
            :class:`~admm_lip.networks.model_config.ModelConfig`; ``max_min`` (even widths), which
            loses least under a bound, wants ``standardize=False``.
        loss: ``auto`` or ``squared_error``.
        epochs: passes over the rows; ``None``: 2,000 steps, at least 15 passes and at most 200.
        batch_size: rows of a step.
        learning_rate: of Adam.
        standardize: train on standardised rows and targets; the bound and all results are in the
            units of the data all the same.
        random_state: as elsewhere in scikit-learn.
        verbose: whether to show a bar.

    Attributes:
        certificate_: the proof, of the function of rows as they come.
        lip_: the constant it proves.
        model_: that function as a torch module.
        n_features_in_, feature_names_in_: of ``fit``.
        n_iter_: steps of the optimizer.

    Raises:
        ValueError: as other regressors do, and for settings by name.

    Example:
        >>> import numpy as np
        >>> from admm_lip.sklearn import LipschitzRegressor
        >>> X = np.linspace(0.0, 10.0, 200)[:, None]
        >>> found = LipschitzRegressor(bound=2.0, hidden=(16,), epochs=50, random_state=0)
        >>> found.fit(X, 40.0 * np.sin(X[:, 0])).lip_ <= 2.0
        True
        >>> low, high = found.interval(X, 0.5)
        >>> bool(np.allclose(high - low, found.lip_))
        True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows and targets ``(samples,)`` or ``(samples, outputs)``; prove the bound."""
        return self._fit(X, y, part=False)

    def partial_fit(self, X: Any, y: Any) -> Self:
        """One pass over these rows, from where the last call ended.

        The rows of the first call set how rows and targets are standardised.
        """
        return self._fit(X, y, part=True)

    def _fit(self, X: Any, y: Any, *, part: bool) -> Self:
        first = not (part and hasattr(self, "_result"))
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=first
        )
        targets = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        if first:
            self._flat, self._shape = y.ndim == 1, targets.shape[1]
        elif targets.shape[1] != self._shape:
            raise ValueError(f"y: expected {self._shape} outputs as before, got {targets.shape[1]}")
        units = self._units_of(X, targets) if first else self._units
        return self._train(X, units.target_to_model(targets), units, self._shape, part=part)

    def predict(self, X: Any) -> Floats:
        """``(samples,)``, or ``(samples, outputs)`` where ``fit`` had several."""
        found = self._run(X)
        return found[:, 0] if self._flat else found

    @property
    def slope_(self) -> Floats:
        """How steep the function can be along each feature, proven: bounds ``|d f_i / d x_j|``.

        ``(features,)``, or ``(outputs, features)`` where ``fit`` had several outputs.  Never above
        ``lip_``; where rows are standardised inside, a feature of a large scale has a small slope.
        """
        check_is_fitted(self)
        steepest = np.full((self._shape, self.n_features_in_), self.lip_)
        if self._result.certificate.units is not None:  # of the function as it was fitted
            own = certify_global(self._result.model)
            limits = self._units.slope_limits(own.lip, *steepest.shape[::-1])
            steepest = np.minimum(steepest, limits)
        return steepest[0] if self._flat else steepest

    def interval(self, X: Any, radius: float) -> tuple[Floats, Floats]:
        """The least and the largest value that a prediction can take within ``radius`` of a row.

        ``f(x) -+ lip_ radius``, proven; of several outputs each.
        """
        if not radius >= 0.0:
            raise ValueError(f"radius: expected a number >= 0, got {radius!r}")
        value = self.predict(X)
        return value - self.lip_ * radius, value + self.lip_ * radius
