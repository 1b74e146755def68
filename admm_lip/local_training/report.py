"""What was proven of a set of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..certificates.fields import keep, number_of
from ..errors import CertificateError

# How a sample was decided, by the cheapest means that sufficed.
LEVELS = ("wrong", "open", "global", "box", "local")
WRONG, OPEN, GLOBAL, BOX, LOCAL = range(len(LEVELS))


@dataclass(frozen=True, eq=False)
class LocalReport:
    """Which samples provably keep their class on the ball of radius ``eps``.

    Attributes:
        eps: the radius.
        bound: ``"local"`` or ``"global"``.
        predicted: the class at the sample, int64.
        correct: whether it is the label, strictly and beyond rounding.
        certified: whether no input in the ball (and the data range) has another class; implies
            ``correct``.
        margin: proven lower bound of ``f_y - max f_j`` over the ball, by the means that were used;
            greater than 0 exactly where certified.
        level: index into :data:`LEVELS` of what decided.
        varying: share of hidden units that can move on the ball, NaN where not computed.
        ratio: proven local over global bound up to the last layer, NaN where not computed.

    All tensors are ``(batch,)`` on the CPU.

    Raises:
        CertificateError: where the columns do not belong together.
    """

    eps: float
    bound: str
    predicted: Tensor
    correct: Tensor
    certified: Tensor
    margin: Tensor
    level: Tensor
    varying: Tensor
    ratio: Tensor

    def __post_init__(self) -> None:
        keep(self, eps=number_of("eps", self.eps, least=0.0))
        if bool(self.margin.isnan().any()):
            raise CertificateError("margin: expected bounds, got a NaN")
        proven = self.correct & (self.margin > 0.0)
        if not torch.equal(self.certified, proven):
            raise CertificateError("certified: expected exactly the correct with a margin above 0")

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def clean_accuracy(self) -> float:
        """Share classified correctly."""
        return _mean(self.correct)

    @property
    def certified_accuracy(self) -> float:
        """Share certified."""
        return _mean(self.certified)

    @property
    def mean_varying(self) -> float:
        """Mean share of units that can move, over the samples where it was computed."""
        return float(self.varying.nanmean())

    @property
    def mean_ratio(self) -> float:
        """Mean ratio of local to global bound, over the samples where it was computed."""
        return float(self.ratio.nanmean())

    def to_record(self) -> dict[str, float | str]:
        """Means and counts, ready for JSON; what was not computed is left out."""
        decided = torch.bincount(self.level, minlength=len(LEVELS)).tolist()
        means = {"varying": self.mean_varying, "ratio": self.mean_ratio}
        return {
            "eps": self.eps,
            "bound": self.bound,
            "rows": len(self),
            "clean_accuracy": self.clean_accuracy,
            "certified_accuracy": self.certified_accuracy,
            **{name: value for name, value in means.items() if value == value},
            **{f"decided_{name}": count for name, count in zip(LEVELS, decided, strict=True)},
        }


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0
