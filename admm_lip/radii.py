"""Certified radii: how far an input may move before its class can change.

A global bound L gives ``(f_y - max_{j != y} f_j) / (sqrt(2) L)``, because ``(e_y - e_j)' f`` has
Lipschitz constant at most ``sqrt(2) L``.  The logits are those of the real-valued function of the
stored weights; they are enclosed, not estimated: evaluated in float64 with a running bound on every
rounding, and the margin is taken at its lower end.  For the functions of the mathematical library
(tanh, exp, erf) an accuracy of 32 units in the last place is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .certificate import Certificate
from .chain import build_layer
from .errors import CertificateError
from .layers import Shape
from .network import Chain, LayerSpec, Network
from .storage import network_of
from .verify import check_belongs

_U = 2.0**-53
# Covers the rounding of the error bounds themselves.
_SLACK = 1.001
_BATCH_ENTRIES = 2**24

Evaluated = Callable[[LayerSpec, Tensor, Tensor], Tensor]


def certified_radii(
    model: nn.Module | Network, x: Tensor, y: Tensor, *, certificate: Certificate
) -> Tensor:
    """Radius of the l2 ball around each input in which the predicted class provably is ``y``.

    Args:
        model: a classifier, the one the certificate was made for.  One output is read as a binary
            classifier that decides at 0.
        x: inputs, ``(batch, *input_shape)``; any real dtype, taken at its exact values.
        y: integer labels, ``(batch,)``; for one output 0 / 1 or -1 / 1.
        certificate: of this model, ``norm="l2"``, ``kind="global"``.  Its digest is compared with
            the model's; whether its bound is proven is for :func:`admm_lip.verify` to say.

    Returns:
        float64 tensor ``(batch,)`` on the device of ``x``, in the units of ``x``: 0 where the class
        is wrong, tied within rounding, or an input or logit is not finite; ``inf`` where the
        network is constant and right.

    Raises:
        CertificateError: for a certificate of another network, norm or kind.
        ValueError: naming ``x`` or ``y``, for shapes and labels that make no sense.

    Example:
        >>> import torch
        >>> from admm_lip import certified_radii, certify
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])
        >>> radii = certified_radii(model, x, y, certificate=certify(model))
        >>> [round(r, 6) for r in radii.tolist()]
        [1.414214, 0.0]
    """
    if (certificate.norm, certificate.kind) != ("l2", "global"):
        raise CertificateError(
            "norm / kind: expected l2 / global, "
            f"got {certificate.norm} / {certificate.kind}; certify the model anew"
        )
    network = network_of(model, certificate.input_shape)
    check_belongs(certificate, network)
    chain = network.chain()
    points = _points(x, network.input_shape or ())
    labels = _labels(y, len(points), chain.widths[-1])
    rows = max(1, _BATCH_ENTRIES // sum(chain.widths))
    parts = [
        _margin(*logits_with_error(network, chain, points[k : k + rows]), labels[k : k + rows])
        for k in range(0, len(points), rows)
    ]
    margin = torch.cat(parts) if parts else points.new_zeros(0)
    steepest = certificate.lip * (math.sqrt(2.0) if chain.widths[-1] > 1 else 1.0)
    radius = margin / steepest * (1.0 - 8.0 * _U)
    return torch.where(margin > 0.0, radius, torch.zeros_like(radius)).to(x.device)


def logits_with_error(network: Network, chain: Chain, points: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in float64 and a bound on each one's distance from the real-valued network's.

    Per layer, with e the error of its input: ``|W| e + gamma_{n+2} (|W| |x| + |b|)`` for the
    product, then the steepest slope times that, plus the error of evaluating the activation.

    Args:
        network: the network.
        chain: ``network.chain()``.
        points: float64, ``(batch, inputs)``, exact.
    """
    value, error = points, torch.zeros_like(points)
    for k, numpy_weight in enumerate(chain.weights):
        weight, bias = torch.from_numpy(numpy_weight), torch.from_numpy(chain.biases[k])
        size = weight.shape[1] + 2
        gamma = size * _U / (1.0 - size * _U)
        spread = value.abs() @ weight.abs().T + bias.abs()
        merged = chain.errors[k] * (value.norm(dim=1) + error.norm(dim=1))[:, None]
        error = error @ weight.abs().T + gamma * spread + merged + chain.bias_errors[k]
        error = _SLACK * error + 2.0**-1000
        value = value @ weight.T + bias
        if k < len(chain.activations):
            spec, slopes = chain.activations[k], chain.slopes[k]
            steepest = torch.from_numpy(abs(slopes.alpha)).maximum(
                torch.from_numpy(abs(slopes.beta))
            )
            with torch.no_grad():
                output = build_layer(network, spec)(value)
            evaluated = _EVALUATED.get(spec.kind, _library)(spec, value, output)
            value, error = output, _SLACK * (steepest * error + evaluated)
    return value, error


def _library(spec: LayerSpec, z: Tensor, value: Tensor) -> Tensor:
    """Functions of the mathematical library, composed of a few steps."""
    error: Tensor = 32.0 * _U * (1.0 + z.abs() + value.abs())
    return error


def _softplus(spec: LayerSpec, z: Tensor, value: Tensor) -> Tensor:
    """As above; beyond its threshold torch drops ``log(1 + exp(-beta z)) / beta``."""
    dropped = math.exp(-spec.options["threshold"]) / abs(spec.options["beta"])
    return torch.add(_library(spec, z, value), dropped)


def _exact(spec: LayerSpec, z: Tensor, value: Tensor) -> Tensor:
    return torch.zeros_like(z)


# Error of evaluating an activation at a given number; _library where a kind is not listed.
_EVALUATED: Mapping[str, Evaluated] = {
    "relu": _exact,
    "hardtanh": _exact,
    "leaky_relu": lambda spec, z, value: 2.0 * _U * value.abs(),
    "softplus": _softplus,
}


def _margin(logits: Tensor, error: Tensor, labels: Tensor) -> Tensor:
    """Lower end of ``f_y - max_{j != y} f_j`` (one output: of ``+-f``); NaN where not finite."""
    if logits.shape[1] == 1:
        return labels * logits[:, 0] - error[:, 0]
    own = labels[:, None]
    gap = logits.gather(1, own) - logits
    lower = gap - _SLACK * (error.gather(1, own) + error) - 2.0 * _U * gap.abs()
    finite = torch.isfinite(lower).all(dim=1)
    others = lower.scatter(1, own, math.inf).amin(dim=1)
    return torch.where(finite, others, torch.full_like(others, math.nan))


def _points(x: Any, shape: Shape) -> Tensor:
    """The inputs as float64 rows, exactly."""
    if not isinstance(x, Tensor) or x.is_complex() or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected a real tensor of shape (batch, {_sizes(shape)}), got {got}")
    if tuple(x.shape[1:]) != shape and math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"x: expected shape (batch, {_sizes(shape)}), as the certificate's input_shape, "
            f"got {tuple(x.shape)}"
        )
    return x.detach().to("cpu", torch.float64).flatten(1)


def _labels(y: Any, count: int, outputs: int) -> Tensor:
    """Class indices; for one output the sign of the class."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"y: expected a tensor of integer class labels, got {got}; a regression has no radius: "
            "within distance r its output moves by at most certificate.lip * r"
        )
    if tuple(y.shape) != (count,):
        raise ValueError(f"y: expected shape ({count},), one label per input, got {tuple(y.shape)}")
    labels = y.detach().to("cpu", torch.int64)
    if outputs == 1:
        if not (((labels == 0) | (labels == 1)).all() or (labels.abs() == 1).all()):
            raise ValueError(
                "y: a network of one output is a binary classifier; expected labels 0 and 1, or "
                f"-1 and 1, got {sorted(set(labels.tolist()))[:8]}"
            )
        return torch.where(labels == 1, 1.0, -1.0).to(torch.float64)
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        raise ValueError(
            f"y: expected labels from 0 to {outputs - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    return labels


def _sizes(shape: Shape) -> str:
    return ", ".join(map(str, shape))
