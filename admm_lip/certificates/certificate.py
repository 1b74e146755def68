"""Proven Lipschitz bounds with the multipliers that prove them: the records and their files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..errors import CertificateError
from ..networks.layers import Array
from ..shown import Fact, Row, number, record_of, word
from .claim_matrices import functionals_of
from .column_proof import ColumnProof
from .document import Document, in_file, parsed
from .fields import (
    keep,
    multiplier_of,
    number_of,
    numbers_of,
    one_of,
    shown,
    tuple_of,
    tuples_of,
    whole_of,
)

if TYPE_CHECKING:
    from ..plots import Sheet

Functionals = Literal["pairwise", "per_output", "directions"]

# Points per side of the finest grid of frequencies that a check goes through.
MOST_POINTS = 2048
# Where a multiplier comes from.
METHODS = ("lipsdp", "given", "closed_form", "norm_product", "constant", "torus")


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificate(Document):
    """``||f(x) - f(y)||_2 <= lip ||x - y||`` for all x, y, with its proof.

    It speaks of the real-valued function of the stored weights, in evaluation mode.

    Attributes:
        lip: the proven bound.
        multiplier: the proof: ``(t_1, ..., t_l)``, one number > 0 per hidden neuron; for
            ``norm="linf"`` with ``t_0`` in front, one number per input, whose sum is at most
            ``lip^2 / 2``.  Of the first ``switch`` activations it has one number per channel, and
            phase (and of the input then, whose sum over all pixels is below 2).
        method: where the multiplier comes from: ``"lipsdp"``, ``"given"``, ``"closed_form"``,
            ``"norm_product"``, ``"constant"`` for a network that does not depend on its input, or
            ``"torus"`` where some are per channel.
        requested: the bound that was asked for, or ``None``.
        lower_lip: what no multiplier of this kind can beat: the solver's dual bound, or
            ``sampled_lower`` where that is larger.
        norm_product: product of the spectral norms and the greatest slopes, for comparison (times
            the square root of the number of inputs for ``norm="linf"``).
        sampled_lower: largest Jacobian norm found: no method can certify less.
        kind: ``"global"``: for all inputs.
        switch: how many activations of an image network are taken frequency by frequency, with
            multipliers constant over space (``certificates/torus``); 0: none.
        every_size: points per side of the grid of frequencies from which the bound is proven for
            images of every size, the layers as they were read at ``input_shape``
            (``certificates/torus/every_size.py``); 0: for images of ``input_shape`` alone.

    The other fields are those of :class:`~admm_lip.certificates.document.Document`.  ``verify``
    proves ``lip`` from ``multiplier`` and the weights alone and computes ``norm_product`` again;
    :meth:`reported` names what is noted and not proven.

    Raises:
        CertificateError: naming the field, for a value of the wrong type, range or order.
    """

    lip: float
    multiplier: tuple[tuple[float, ...], ...]
    method: str
    requested: float | None
    lower_lip: float
    norm_product: float
    sampled_lower: float
    kind: str = "global"
    switch: int = 0
    every_size: int = 0

    kinds: ClassVar[tuple[str, ...]] = ("global",)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_of("switch", self.switch, 0, len(self.slopes))
        whole_of("every_size", self.every_size, 0, MOST_POINTS if self.switch else 0)
        self.check_phases(self.switch > 0 and not self.every_size)
        if self.requested is not None:
            keep(self, requested=number_of("requested", self.requested, least=0.0))
        keep(self, **_bound_of(self))

    brief: ClassVar[tuple[str, ...]] = ("lip", "gap", "method", "promised")

    def facts(self) -> tuple[Fact, ...]:
        """The bound and what it is held against."""
        return (*bound_facts(vars(self), self.unit()), *_scales_of(self), *self.makers_notes())

    def table(self) -> list[Row]:
        """One row per hidden layer: its slope range and its multipliers."""
        own = self.multiplier[self.norm == "linf" :]  # t_0 belongs to the inputs
        return [
            {
                "layer": k,
                **slope._asdict(),
                "multipliers": len(values),
                "least": min(values, default=math.nan),
                "greatest": max(values, default=math.nan),
            }
            for k, slope in enumerate(self.slopes)
            for values in own[k : k + 1] or ((),)
        ]

    def plot(self) -> Sheet:
        """The bound among what it is held against."""
        from ..plots import plot_bounds

        return plot_bounds({**vars(self), "measure": self.measure()})

    @classmethod
    def _from_lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        multiplier = tuples_of("multiplier", data["multiplier"])
        return super()._from_lists({**data, "multiplier": multiplier})


@dataclass(frozen=True)
class FunctionalBound:
    """``|c'f(x) - c'f(y)| <= lip ||x - y||`` for one linear functional c of the outputs.

    Attributes:
        direction: c, one number per output.

    The others are as in :class:`Certificate`.
    """

    direction: tuple[float, ...]
    lip: float
    multiplier: tuple[tuple[float, ...], ...]
    method: str
    lower_lip: float
    norm_product: float
    sampled_lower: float

    def __post_init__(self) -> None:
        keep(self, direction=numbers_of("direction", self.direction), **_bound_of(self))

    @staticmethod
    def from_data(name: str, data: Any) -> FunctionalBound:
        """A bound from its JSON object."""
        names = {f.name for f in fields(FunctionalBound)}
        if not isinstance(data, dict) or set(data) != names:
            raise CertificateError(f"{name}: expected the fields {sorted(names)}")
        direction = tuple_of(f"{name}.direction", data["direction"])
        multiplier = tuples_of(f"{name}.multiplier", data["multiplier"])
        try:
            return FunctionalBound(**{**data, "direction": direction, "multiplier": multiplier})
        except CertificateError as error:
            raise CertificateError(f"{name}.{error}") from None


def _bound_of(bound: Certificate | FunctionalBound) -> dict[str, Any]:
    """The fields that every bound has, checked."""
    names = ("lip", "lower_lip", "norm_product", "sampled_lower")
    return {
        **{name: number_of(name, getattr(bound, name), least=0.0) for name in names},
        "method": one_of("method", bound.method, METHODS),
        "multiplier": multiplier_of("multiplier", bound.multiplier),
    }


@dataclass(frozen=True, kw_only=True, repr=False)
class FunctionalCertificate(Document):
    """Bounds of linear functionals of the outputs, each with its own proof.

    Attributes:
        bounds: one per functional.  For ``kind="pairwise"`` those of ``e_i - e_j`` for all
            ``i < j`` in lexicographic order, for ``"per_output"`` those of ``e_i``.
        kind: ``"pairwise"``, ``"per_output"`` or ``"directions"``.
        shared: of an image network taken frequency by frequency, the multipliers per channel of its
            first activations (``certificates/torus``), for ``norm="linf"`` the input's in front.
    """

    bounds: tuple[FunctionalBound, ...]
    shared: tuple[tuple[float, ...], ...] = ()
    kinds: ClassVar[tuple[str, ...]] = ("pairwise", "per_output", "directions")

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = self.bounds
        held = isinstance(bounds, tuple) and all(isinstance(b, FunctionalBound) for b in bounds)
        if not (held and bounds):
            raise CertificateError(f"bounds: expected FunctionalBounds, got {shown(bounds)}")
        _check_directions(self.kind, [bound.direction for bound in bounds])
        keep(self, shared=multiplier_of("shared", self.shared))
        self.check_phases(self.switch > 0)

    @property
    def switch(self) -> int:
        """How many activations are taken frequency by frequency."""
        return max(0, len(self.shared) - (self.norm == "linf"))

    brief = ("bounds", "largest", "gap", "promised")

    def facts(self) -> tuple[Fact, ...]:
        """How many bounds, their range, and the largest gap."""
        unit, lips = self.unit(), self.lips
        gap = max(gap_of(b.lip, b.lower_lip) for b in self.bounds)
        return (
            word("bounds", f"{self.kind} bounds", len(lips)),
            number("smallest", "from", float(lips.min()), unit),
            number("largest", "to", float(lips.max()), unit),
            number("mean", "mean", float(lips.mean()), unit),
            Fact("gap", "largest relative gap", gap, f"{gap:.2g}", noted=True),
            *_scales_of(self),
            *self.makers_notes(),
        )

    def table(self) -> list[Row]:
        """One row per functional."""
        names = (self.units and (self.units.output_names or self.units.classes)) or ()
        return [
            {"functional": _terms(b.direction, names), **record_of(bound_facts(vars(b)))}
            for b in self.bounds
        ]

    def plot(self) -> Sheet:
        """Every bound among what it is held against."""
        from ..result_plots import plot_functionals

        return plot_functionals(self.table(), self.measure())

    @property
    def lips(self) -> Array:
        """The proven bounds, in the order of ``bounds``."""
        return np.array([b.lip for b in self.bounds])

    def pair_lips(self) -> Array:
        """The symmetric matrix of the ``L_ij``, zero on its diagonal.

        Raises:
            CertificateError: for another kind than ``"pairwise"``.
        """
        if self.kind != "pairwise":
            raise CertificateError(f"kind: expected pairwise, got {self.kind}")
        outputs = len(self.bounds[0].direction)
        matrix = np.zeros((outputs, outputs))
        matrix[np.triu_indices(outputs, 1)] = self.lips
        return np.asarray(matrix + matrix.T)

    @classmethod
    def _from_lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        rows = tuple_of("bounds", data["bounds"])
        bounds = tuple(FunctionalBound.from_data(f"bounds[{k}]", r) for k, r in enumerate(rows))
        shared = tuples_of("shared", data.get("shared", []))
        return super()._from_lists({**data, "bounds": bounds, "shared": shared})


def _scales_of(found: AnyCertificate) -> tuple[Fact, ...]:
    """What is said of input scales that frequencies cannot tell apart."""
    if not found.switch or found.units is None or found.units.is_uniform(found.input_shape):
        return ()
    return (word("input_scales", "input scales", "the least of each channel"),)


def _check_directions(kind: str, given: Sequence[tuple[float, ...]]) -> None:
    """Raise :class:`CertificateError` unless these are the functionals of the kind, in order."""
    outputs = len(given[0])
    for k, direction in enumerate(given):
        if not len(direction) == outputs > 0:
            raise CertificateError(
                f"bounds[{k}].direction: expected one number per output, as many as in bounds[0], "
                f"{outputs}, got {len(direction)}"
            )
    wanted = functionals_of(kind, given, outputs)
    if len(given) != len(wanted):
        raise CertificateError(f"bounds: expected {len(wanted)} of kind {kind}, got {len(given)}")
    for k, (direction, row) in enumerate(zip(given, wanted, strict=True)):
        if direction != tuple(row.tolist()):
            raise CertificateError(
                f"bounds[{k}].direction: expected {_terms(row)}, got {_terms(direction)}"
            )


def _terms(direction: Any, names: Sequence[str] = ()) -> str:
    """A functional in the words of a person: ``f_0 - f_3``, with names where there are any."""
    own = names if len(names) == len(direction) else [f"f_{i}" for i in range(len(direction))]
    terms = [f"{c:+g} {name}" for c, name in zip(direction, own, strict=True) if c != 0.0]
    said = " ".join(terms).replace("+1 ", "+ ").replace("-1 ", "- ")
    return said.removeprefix("+ ") or "0"


def bound_facts(bound: Mapping[str, Any], unit: str = "") -> tuple[Fact, ...]:
    """What a bound states, from its fields by name; of a run's records as of a certificate.

    Args:
        bound: the fields.
        unit: what is said after the bound.
    """
    asked, lip = bound.get("requested"), bound["lip"]
    proven = number("lip", "proven Lipschitz constant", lip, unit)
    if asked:
        proven = proven._replace(said=f"{proven.said}   (asked for {asked:g})")
    labels = {
        "sampled_lower": "steepest slope sampled",
        "lower_lip": "least provable this way",
        "requested": "bound asked for",
    }
    gap = gap_of(lip, bound["lower_lip"])
    return (
        proven,
        number("norm_product", "product of layer norms", bound["norm_product"]),
        *(
            number(n, s, bound[n], noted=True)
            for n, s in labels.items()
            if bound.get(n) is not None
        ),
        Fact("gap", "relative gap", gap, f"{gap:.2g}", noted=True),
        *(word(n, n, bound[n], noted=True) for n in ("method",) if n in bound),
    )


def gap_of(lip: float, lower: float) -> float:
    """Relative gap between a bound and the least provable one."""
    return (lip - lower) / lip if lip > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class MonotoneCertificate(Certificate):
    """A :class:`Certificate` that also proves one output monotone in some inputs.

    Attributes:
        columns: one proof per input and output.  They are about the numbers that the model takes
            and gives; units, whose scales are positive, change no sign.
    """

    columns: tuple[ColumnProof, ...]
    kind: str = "monotone"
    kinds: ClassVar[tuple[str, ...]] = ("monotone",)

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = self.columns
        if not (isinstance(columns, tuple) and columns) or not all(
            isinstance(column, ColumnProof) for column in columns
        ):
            raise CertificateError(f"columns: expected ColumnProofs, got {shown(columns)}")

    brief = (*Certificate.brief, "increasing", "decreasing")

    def facts(self) -> tuple[Fact, ...]:
        """The bound, the columns of either direction, and what the bound is held against."""
        names = () if self.units is None else self.units.input_names
        said: dict[int, list[str]] = {1: [], -1: []}
        for proof in self.columns:
            said[proof.sign].append(str(names[proof.column] if names else proof.column))
        ways = (("increasing", said[1]), ("decreasing", said[-1]))
        lip, *others = super().facts()
        return (lip, *(word(way, f"{way} in", ", ".join(c)) for way, c in ways if c), *others)

    @classmethod
    def _from_lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        rows = tuple_of("columns", data["columns"])
        columns = (ColumnProof.from_data(f"columns[{k}]", row) for k, row in enumerate(rows))
        return super()._from_lists({**data, "columns": tuple(columns)})


AnyCertificate = Certificate | FunctionalCertificate

# The class of each kind of certificate.
CLASSES: Mapping[str, type[Certificate] | type[FunctionalCertificate]] = {
    kind: cls
    for cls in (Certificate, MonotoneCertificate, FunctionalCertificate)
    for kind in cls.kinds
}


def load_certificate(path: str | Path) -> AnyCertificate:
    """Read a certificate of any kind; ``verify`` it before relying on it.

    Raises:
        CertificateError: for a file that is missing, truncated, edited, or of a kind or format
            that this version does not know.
    """
    found: AnyCertificate = in_file(path, _any_from_json)
    return found


def _any_from_json(text: str) -> AnyCertificate:
    data = parsed(text)
    kind = data.get("kind") if isinstance(data, dict) else None
    return CLASSES[one_of("kind", kind, CLASSES)].from_data(data)
