"""What the classifier and the regressor share: parameters, training, and the module they stand for.

Rows are standardised inside, and the bound is that of the function of the rows as they come: a
gradient of at most ``bound`` in the units of X (:class:`admm_lip.Units`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from ..certificates.certificate import Certificate
from ..certificates.certifier import certify_global
from ..foreign.from_sklearn import Shift, module_of
from ..networks.model_config import PAIRED, ModelConfig
from ..networks.models import build_mlp
from ..training.config import TrainConfig
from ..training.train import TrainResult, train
from ..units import Units

Array = NDArray[Any]

# Steps of the optimizer that ``epochs=None`` makes, and the fewest and most passes for it.
_STEPS, _PASSES = 2_000, (15, 200)


class LipschitzEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of both; see them."""

    def __init__(
        self,
        bound: float = 1.0,
        hidden: tuple[int, ...] = (64, 64),
        *,
        activation: str = "relu",
        loss: str = "auto",
        epochs: int | None = None,
        batch_size: int = 64,
        learning_rate: float = 1e-2,
        standardize: bool = True,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.bound = bound
        self.hidden = hidden
        self.activation = activation
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.standardize = standardize
        self.random_state = random_state
        self.verbose = verbose

    def as_module(self) -> nn.Module:
        """The fitted function as a plain torch module of rows as they come, float64.

        ``admm_lip.certify`` and ``admm_lip.verify`` read the estimator through it.

        Raises:
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        module: nn.Module = self.model_
        return module

    @property
    def lip_(self) -> float:
        """The proven Lipschitz constant: outputs per unit of X, both measured in l2."""
        return float(self.certificate_.lip)

    def in_units_of(self, pipeline: Any) -> Self:
        """This estimator as a function of the rows of a fitted pipeline that ends in it.

        Scalers and projections in front become a part of the network: ``certificate_``, ``lip_``,
        radii and intervals of what is returned are in the units of raw rows.

        Args:
            pipeline: a ``Pipeline`` whose last step is this estimator.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: for a pipeline that ends in something else.
            UnsupportedModule: by name, for a step that is no affine map.

        Example:
            >>> from sklearn.datasets import load_diabetes
            >>> from sklearn.pipeline import make_pipeline
            >>> from sklearn.preprocessing import StandardScaler
            >>> from admm_lip.sklearn import LipschitzRegressor
            >>> X, y = load_diabetes(return_X_y=True)
            >>> last = LipschitzRegressor(bound=50.0, hidden=(8,), epochs=5, random_state=0)
            >>> line = make_pipeline(StandardScaler(), last).fit(X, y)
            >>> raw = line[-1].in_units_of(line)
            >>> bool(abs(raw.predict(X) - line.predict(X)).max() < 1e-9), raw.lip_ > 50.0
            (True, True)
        """
        check_is_fitted(self)
        steps = getattr(pipeline, "steps", None)
        if not steps or steps[-1][1] is not self:
            raise ValueError(
                f"pipeline: expected one whose last step is this {type(self).__name__}, got "
                f"{pipeline!r:.80}; give the fitted pipeline as it is, and its own last step"
            )
        found, module = copy(self), module_of(pipeline)
        first = steps[0][1]
        found.n_features_in_ = first.n_features_in_
        vars(found).pop("feature_names_in_", None)
        if hasattr(first, "feature_names_in_"):
            found.feature_names_in_ = first.feature_names_in_
        found.model_ = module
        found.certificate_ = certify_global(module, multiplier=self.certificate_.multiplier)
        return found

    def _train(
        self, X: Array, targets: Array, units: Units, outputs: int, *, part: bool = False
    ) -> Self:
        """Train from the start, or make one pass from where training ended."""
        if self.standardize and self.activation in PAIRED:
            raise ValueError(
                f"activation: {self.activation} is trained in the units that rows come in; give "
                "standardize=False, and put a StandardScaler in front"
            )
        earlier = getattr(self, "_result", None) if part else None
        if earlier is None:
            self._units, config = units, ModelConfig(tuple(self.hidden), self.activation)
            start = build_mlp(X.shape[1], outputs, config, seed=self._seed()).double()
        epochs = 1 if part else self._passes(len(X))
        settings = TrainConfig(
            bound=self.bound,
            epochs=epochs,
            batch_size=self.batch_size,
            lr=self.learning_rate,
            loss=self.loss,
            eps=self._radius(),
            schedule="constant" if part else "hold_then_linear",
            seed=self._seed(),
        )
        result = train(
            start if earlier is None else earlier,
            (torch.from_numpy(self._units.to_model(X)), torch.from_numpy(targets)),
            settings,
            units=self._units if self.standardize else None,
            classes=self._outputs(),
            progress=bool(self.verbose),
        )
        return self._enter(result)

    def _enter(self, result: TrainResult) -> Self:
        """The module of raw rows, and its proof: the multiplier of training proves it too."""
        self._result = replace(result, history=())
        units = self._units
        scale, shift = np.asarray(units.output_scale), np.asarray(units.output_shift)
        front = [Shift(units.input_shift, units.input_scale)]
        behind = [] if result.classes else [Shift(-shift / scale, 1.0 / scale)]  # scale f + shift
        trained = list(result.model.children())
        layers = [*front, *trained, *behind] if self.standardize else trained
        self.model_ = nn.Sequential(*layers).eval()
        self.certificate_: Certificate = certify_global(
            self.model_, requested=self.bound, multiplier=result.certificate.multiplier
        )
        self.n_iter_ = result.steps
        return self

    def _run(self, X: Any) -> Array:
        """Outputs on rows, ``(rows, outputs)``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():  # a copy: rows may be a file that is only read
            found: Array = self.as_module()(torch.tensor(X)).numpy()
        return found

    def _units_of(self, X: Array, targets: Array | None = None) -> Units:
        """In which training takes rows, and a regression's targets."""
        return Units.standardising(X, targets) if self.standardize else Units()

    def _passes(self, rows: int) -> int:
        if self.epochs is not None:
            return self.epochs
        steps = -(-rows // self.batch_size)
        return int(np.clip(-(-_STEPS // steps), *_PASSES))

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _radius(self) -> float:
        """What the margin loss trains for, in units of X."""
        return 0.0

    def _outputs(self) -> range | None:
        """Numbers of the classes; none of a regression."""
        return None
