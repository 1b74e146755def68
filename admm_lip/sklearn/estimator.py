"""What the classifier and the regressor share: parameters, training, and the module they stand for.

Rows are standardised inside, and the bound is that of the function of the rows as they come: a
gradient of at most ``bound`` in the units of X (:class:`admm_lip.Units`).
"""

from __future__ import annotations

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
from ..foreign.from_sklearn import Shift
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
