"""The former door to methods other than ADMM; :func:`admm_lip.train` takes its place."""

from __future__ import annotations

import warnings
from typing import Any

from .config import TrainConfig
from .method import Method
from .train import TrainResult as FitResult
from .train import train

__all__ = ["FitConfig", "FitResult", "fit"]


def FitConfig(**settings: Any) -> TrainConfig:
    """Settings without a bound: ``TrainConfig`` is the new name."""
    warnings.warn(
        "FitConfig is now admm_lip.TrainConfig without bound and mu", DeprecationWarning, 2
    )
    return TrainConfig(**{"checkpoint_seconds": 60.0, **settings})


def fit(
    model: Any, data: Any, method: Method, config: TrainConfig, loss: Any = None, **more: Any
) -> FitResult:
    """``train(model, data, config, loss, method=method)`` is the new name."""
    warnings.warn(
        "fit is now admm_lip.train(model, data, config, loss, method=method)", DeprecationWarning, 2
    )
    return train(model, data, config, loss, method=method, **more)
