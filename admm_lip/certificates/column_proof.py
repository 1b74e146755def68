"""What a certificate holds of one input in which an output is monotone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import CertificateError
from .fields import keep, multiplier_of, number_of, shown, tuples_of


@dataclass(frozen=True)
class ColumnProof:
    """``sign * f_output`` never falls in input ``column``, whatever the other inputs are.

    Attributes:
        column: of the inputs, by number.
        output: by number.
        sign: 1: increasing, -1: decreasing.
        centre: c, such that ``sign * f_output - c x_column`` is c-Lipschitz in ``x_column``: the
            slope lies in [0, 2 c] (``claim_matrices.off_centre``).  0: it does not depend on it.
        multiplier: the proof of that, one number per hidden neuron and one per layer for the input
            that is carried beside them.
    """

    column: int
    output: int
    sign: int
    centre: float
    multiplier: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name in ("column", "output"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise CertificateError(f"{name}: expected a whole number >= 0, got {shown(value)}")
        if type(self.sign) is not int or self.sign not in (1, -1):
            raise CertificateError(f"sign: expected 1 or -1, got {shown(self.sign)}")
        centre = number_of("centre", self.centre, least=0.0)
        keep(self, centre=centre, multiplier=multiplier_of("multiplier", self.multiplier))

    @staticmethod
    def from_data(name: str, data: Any) -> ColumnProof:
        """A proof from its JSON object."""
        names = {f.name for f in fields(ColumnProof)}
        if not isinstance(data, dict) or set(data) != names:
            raise CertificateError(f"{name}: expected the fields {sorted(names)}")
        multiplier = tuples_of(f"{name}.multiplier", data["multiplier"])
        try:
            return ColumnProof(**{**data, "multiplier": multiplier})
        except CertificateError as error:
            raise CertificateError(f"{name}.{error}") from None
