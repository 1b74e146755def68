"""Rejecting inputs at which the model is steep.

An input is rejected when the norm of the model's Jacobian there exceeds a threshold, chosen on
clean data for a given share of false alarms (Finlay et al., arXiv 1808.09540, section 7).  Inputs
near a decision boundary, where attacks of small norm end, are steep in the probabilities.

This is a filter, not a certificate: an attack that knows it can look for points that are wrong and
flat, see :func:`admm_lip.research.attack_suite.evasive`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from .. import strict_json
from .input_gradients.measures import check_kind, jacobian_norms

_FORMAT = 1


class DetectorError(ValueError):
    """A detector that cannot be calibrated or read, or scores it was not calibrated for."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Jacobian norms ``(n,)`` of some inputs, with what they were measured on.

    Attributes:
        values: the norms.
        kind: ``"2_inf"`` or ``"frobenius"``.
        output: ``"probabilities"`` or ``"logits"``.
        model: digest of the model, see :func:`model_digest`.
    """

    values: Tensor
    kind: str
    output: str
    model: str


@dataclass(frozen=True)
class Detector:
    """A threshold, bound to the model and the norm it was calibrated for.

    Attributes:
        threshold: inputs that score strictly above it are rejected.
        false_positive_rate: the share of clean inputs that may be rejected.
        samples: clean inputs it was calibrated on.
        kind: of the norm.
        output: what is differentiated.
        model: digest of the model.

    Example:
        >>> import torch
        >>> from admm_lip.research.detection import calibrate, score
        >>> from admm_lip.networks.models import build_mlp
        >>> model, x = build_mlp(4, 3), torch.randn(200, 4)
        >>> detector = calibrate(score(model, x), false_positive_rate=0.05)
        >>> bool(detector.rejects(score(model, x)).float().mean() <= 0.05)
        True
    """

    threshold: float
    false_positive_rate: float
    samples: int
    kind: str
    output: str
    model: str

    def rejects(self, scores: Scores) -> Tensor:
        """Boolean ``(n,)``: which inputs are rejected.

        Raises:
            DetectorError: for scores of another model or another norm.
        """
        _check_same(self, scores)
        return scores.values > self.threshold

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector as JSON, atomically."""
        target = Path(path)
        record = {"format": _FORMAT} | dataclasses.asdict(self)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(target)


def load_detector(path: str | os.PathLike[str]) -> Detector:
    """Read a detector that :meth:`Detector.save` wrote.

    Raises:
        DetectorError: for a file that is not one.
    """
    try:
        record = strict_json.loads(Path(path).read_text())
        if record.pop("format") != _FORMAT:
            raise ValueError("unknown format")
        detector = Detector(**record)
        check_kind(detector.kind, detector.output)
        if not math.isfinite(detector.threshold):
            raise ValueError("threshold is not finite")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DetectorError(
            f"{path}: expected a detector written by Detector.save, got {error}; calibrate again"
        ) from error
    return detector


def score(
    model: nn.Module,
    x: Tensor,
    kind: str = "2_inf",
    output: str = "probabilities",
    *,
    batch_size: int = 500,
) -> Scores:
    """The Jacobian norms of ``x``; arguments are as in ``input_gradients.jacobian_norms``."""
    values = jacobian_norms(model, x, kind, output, batch_size=batch_size)
    return Scores(values, kind, output, model_digest(model))


def calibrate(clean: Scores, false_positive_rate: float = 0.05) -> Detector:
    """The lowest threshold that keeps the promise on false alarms.

    Of n clean scores, the ``ceil((n + 1)(1 - rate))``-th smallest: a new clean input, exchangeable
    with them, exceeds it with probability at most ``rate``.

    Args:
        clean: scores of clean validation inputs, not of training inputs.
        false_positive_rate: in (0, 1).

    Raises:
        DetectorError: a rate outside (0, 1), scores that are not finite, or too few of them.
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise DetectorError(
            f"false_positive_rate: expected a number in (0, 1), got {false_positive_rate!r}"
        )
    count = len(clean.values)
    rank = math.ceil((count + 1) * (1.0 - false_positive_rate))
    if rank > count:
        raise DetectorError(
            f"clean: expected at least {math.ceil(1.0 / false_positive_rate) - 1} scores for a "
            f"rate of {false_positive_rate:g}, got {count}; calibrate on more inputs"
        )
    if not bool(torch.isfinite(clean.values).all()):
        raise DetectorError("clean: expected finite scores, got NaN or infinity")
    threshold = float(clean.values.sort().values[rank - 1])
    return Detector(threshold, false_positive_rate, count, clean.kind, clean.output, clean.model)


@dataclass(frozen=True, eq=False)
class Roc:
    """A receiver operating characteristic: both rates, rising from 0 to 1, and their thresholds."""

    false_positive: Tensor
    true_positive: Tensor
    thresholds: Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


def roc(clean: Scores, attacked: Scores) -> Roc:
    """Shares of clean and of attacked inputs above every threshold.

    Raises:
        DetectorError: when the two were measured on different models or norms.
    """
    _check_same(clean, attacked)
    both = torch.cat([clean.values, attacked.values])
    levels = torch.unique(both).flip(0)
    thresholds = torch.cat([levels.new_tensor([math.inf]), levels])

    def share(values: Tensor) -> Tensor:
        above = torch.searchsorted(values.sort().values, thresholds, right=False)
        return 1.0 - above.double() / len(values)

    return Roc(share(clean.values), share(attacked.values), thresholds)


def auc(clean: Scores, attacked: Scores, level: float = 0.95) -> Interval:
    """Area under the curve: how often an attacked input scores above a clean one, ties half.

    The interval is a score interval, which stays inside [0, 1] and does not collapse at its ends:
    all A with ``|A - estimate| <= z sqrt(V(A))`` and, for m clean and n attacked inputs,

        V(A) = A (1 - A) (1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))) / (m n),  N = (m + n) / 2

    (Newcombe, Statistics in Medicine 25, 2006, method 5).  It supposes independent inputs: attack
    other inputs than the clean ones.

    Raises:
        DetectorError: when the two were measured on different models or norms.
    """
    _check_same(clean, attacked)
    if not 0.0 < level < 1.0:
        raise DetectorError(f"level: expected a number in (0, 1), got {level!r}")
    ordered = clean.values.sort().values
    below = torch.searchsorted(ordered, attacked.values, right=False)
    up_to = torch.searchsorted(ordered, attacked.values, right=True)
    m, n = len(ordered), len(attacked.values)
    value = float((below + up_to).double().mean()) / (2 * m)
    z = NormalDist().inv_cdf(0.5 + 0.5 * level)

    def excess(area: float) -> float:
        spread = (1.0 - area) / (2.0 - area) + area / (1.0 + area)
        variance = area * (1.0 - area) * (1.0 + (0.5 * (m + n) - 1.0) * spread) / (m * n)
        return abs(area - value) - z * math.sqrt(variance)

    # At an estimate of 0 or 1 the excess has a root there that is not the other end.
    edge = min(max(value, 1e-9), 1.0 - 1e-9)
    low = 0.0 if value == 0.0 else float(brentq(excess, 1e-12, edge))
    high = 1.0 if value == 1.0 else float(brentq(excess, edge, 1.0 - 1e-12))
    return Interval(value, low, high)


def model_digest(model: nn.Module) -> str:
    """sha256 over the architecture as printed and every parameter and buffer.

    Works for any module; a copy of the model has the same digest, a model trained on has another.
    """
    found = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_same(mine: Detector | Scores, theirs: Scores) -> None:
    for name, next_step in (
        ("kind", "score with the same norm"),
        ("output", "score the same output"),
        ("model", "calibrate on the scores of this model"),
    ):
        expected, got = getattr(mine, name), getattr(theirs, name)
        if expected != got:
            short = [v[:12] for v in (expected, got)] if name == "model" else [expected, got]
            raise DetectorError(
                f"scores: expected {name} {short[0]!r}, got {short[1]!r}; a threshold means "
                f"nothing elsewhere: {next_step}"
            )
