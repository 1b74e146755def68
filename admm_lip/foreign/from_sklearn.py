"""scikit-learn's perceptrons, linear models and pipelines, as torch modules of the same function.

A pipeline becomes one module of its raw rows: scalers and projections are affine maps in front.  A
classifier is read as its scores, before the softmax or the logistic function that makes
probabilities of them; both give the same class.  scikit-learn itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NetworkError, UnsupportedModule

Reader = Callable[[Any], list[nn.Module]]


class Shift(nn.Module):
    """``(x - centre) / scale`` per feature, as scalers compute it."""

    centre: Tensor
    scale: Tensor

    def __init__(self, centre: Any, scale: Any) -> None:
        super().__init__()
        self.register_buffer("centre", torch.as_tensor(centre, dtype=torch.float64))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``(batch, features)``."""
        return (x - self.centre) / self.scale


def is_estimator(model: Any) -> bool:
    """Whether a class of scikit-learn is among its ancestors."""
    return any(c.__module__.split(".")[0] == "sklearn" for c in type(model).__mro__)


def module_of(estimator: Any) -> nn.Module:
    """The module of a fitted estimator: of its predictions, or of a classifier's scores.

    Float64, in evaluation mode.  It agrees with the estimator up to rounding.

    Raises:
        NetworkError: for an estimator that is not fitted.
        UnsupportedModule: by name, for a step that is no affine map or no perceptron.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LinearRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from admm_lip import certify
        >>> x = np.arange(10.0)[:, None]
        >>> line = make_pipeline(StandardScaler(), LinearRegression()).fit(x, 3.0 * x[:, 0])
        >>> round(certify(line).lip, 6)
        3.0
    """
    layers = [layer for name, step in _steps(estimator) for layer in _layers(name, step)]
    return nn.Sequential(*layers).double().eval()


def _steps(estimator: Any) -> list[tuple[str, Any]]:
    """The steps of a pipeline, of pipelines within it too, or the estimator alone."""
    if not hasattr(estimator, "steps"):
        return [(type(estimator).__name__, estimator)]
    return [
        (name if len(inner) == 1 else f"{name}.{of}", found)
        for name, step in estimator.steps
        if step is not None and step != "passthrough"
        for inner in [_steps(step)]
        for of, found in inner
    ]


def _layers(name: str, step: Any) -> list[nn.Module]:
    if hasattr(step, "as_module"):
        return [step.as_module()]
    for ancestor in type(step).__mro__:
        if ancestor.__module__.split(".")[0] == "sklearn" and ancestor.__name__ in READERS:
            break
    else:
        raise UnsupportedModule(
            f"{name} ({type(step).__name__}): expected one of {', '.join(READERS)} or an estimator "
            "of admm_lip.sklearn; replace the step, or give the part behind it alone"
        )
    try:
        return READERS[ancestor.__name__](step)
    except AttributeError as missing:
        raise NetworkError(
            f"{name} ({type(step).__name__}): expected a fitted estimator, got one without "
            f"{missing.name}; call fit first"
        ) from None


def _dense(weight: Any, bias: Any) -> nn.Linear:
    """``weight x + bias``, ``weight`` of shape ``(outputs, features)``."""
    rows = np.atleast_2d(np.asarray(weight, dtype=np.float64))
    layer = nn.Linear(rows.shape[1], rows.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rows.copy()))
        layer.bias.copy_(torch.from_numpy(np.broadcast_to(bias, (len(rows),)).astype(np.float64)))
    return layer


def _perceptron(step: Any) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for weight, bias in zip(step.coefs_, step.intercepts_, strict=True):
        layers += [_dense(weight.T, bias), _ACTIVATIONS[step.activation]()]
    return layers[:-1]


def _linear(step: Any) -> list[nn.Module]:
    return [_dense(step.coef_, step.intercept_)]


def _shift(step: Any, centre: Any, scale: Any) -> list[nn.Module]:
    """``None`` stands for 0 and for 1."""
    features = step.n_features_in_
    return [
        Shift(
            np.zeros(features) if centre is None else centre,
            np.ones(features) if scale is None else scale,
        )
    ]


def _standard(step: Any) -> list[nn.Module]:
    mean = step.mean_ if step.with_mean else None
    return _shift(step, mean, step.scale_ if step.with_std else None)


def _min_max(step: Any) -> list[nn.Module]:
    if step.clip:
        raise UnsupportedModule("MinMaxScaler: clip=True is not handled; use clip=False")
    return [Shift(-step.min_ / step.scale_, 1.0 / step.scale_)]


def _max_abs(step: Any) -> list[nn.Module]:
    return _shift(step, None, step.scale_)


def _robust(step: Any) -> list[nn.Module]:
    centre = step.center_ if step.with_centering else None
    return _shift(step, centre, step.scale_ if step.with_scaling else None)


def _pca(step: Any) -> list[nn.Module]:
    size = np.sqrt(step.explained_variance_) if step.whiten else np.ones(len(step.components_))
    rows = step.components_ / size[:, None]
    return [_dense(rows, -rows @ step.mean_)]


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}
READERS: Mapping[str, Reader] = {
    "MLPClassifier": _perceptron,
    "MLPRegressor": _perceptron,
    "LinearRegression": _linear,
    "Ridge": _linear,
    "LogisticRegression": _linear,
    "LinearSVC": _linear,
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _max_abs,
    "RobustScaler": _robust,
    "PCA": _pca,
}
