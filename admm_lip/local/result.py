"""The local certificate: what was proven of each input's ball, and all that a check needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor

from .. import strict_json
from ..certificates.claim_matrices import NORMS, units_of_scale
from ..certificates.fields import (
    keep,
    numbers_of,
    one_of,
    shown,
    sizes_of,
    text_of,
    tuple_of,
)
from ..errors import CertificateError, NetworkError
from ..files import write_atomic
from ..networks.layers import Shape
from ..networks.storage import safetensors_header
from ..shown import Fact, Row, Shown, number, share, word
from . import verdicts
from .columns import TENSORS, check_tensor
from .config import LEVELS
from .input_region import Box

if TYPE_CHECKING:
    from ..plots import Sheet

FORMAT = 3
_MAX_FILE = 8 * 2**30
# What each witness is made of, the functionals that have it first.
_WITNESSES = ("tuned", "slopes", "curvatures", "metric"), ("dual", "multipliers")
_ABOUT = {"format", "kind", "digest", "input_shape", "box", "norm", "input_scale"}


@dataclass(frozen=True, eq=False, repr=False)
class LocalCertificate(Shown):
    """Bounds on the ball of each of ``batch`` inputs.

    It speaks of the real-valued function of the stored weights, in evaluation mode.

    Attributes:
        digest: SHA-256 of the network.
        input_shape: shape of one input.
        box: ends of the admissible inputs, or ``None``.
        x: the inputs, float64 ``(batch, features)``.
        radius: of the balls, ``(batch,)``, in the units of ``x`` times ``input_scale``; ``inf``
            where what holds for all inputs proves the class.
        labels: the classes (of one output +1 / -1), or ``None``.
        lip: proven bounds, ``(batch, m)``.  Without labels (m = 1): of the Lipschitz constant of
            all outputs on the ball.  With labels: of ``|g(x') - g(x)| / |x' - x|`` for x' in the
            ball and ``g = f_y - f_j``, j = 0, 1, ...; ``inf`` for j = y and where none was sought.
        level: how each bound was found: an index of ``config.LEVELS``.
        roots: square roots of the multipliers that prove them, ``(batch, m, hidden neurons)``; of
            0 neurons where the levels are ``product`` and ``masked``.
        margin: with labels, proven lower bounds of ``f_y - f_j`` on the ball by linear bounds, or
            by norms and the box of the last features; zeros without.
        center: with labels, proven lower bounds of ``f_y - f_j`` at x; zeros without.
        norm: of the balls: ``"l2"`` or ``"linf"``.
        input_scale: per feature, where radii are in raw units and the model takes
            ``raw / input_scale``; ``None`` where they are in those of ``x``.
        tuned: for which functionals a witness of a quadratic bound is given, ``(batch, m)``,
            boolean; all four ``None`` where there is none.
        slopes: its slopes, ``(rows, hidden neurons)``, float32, a row for each of ``tuned``,
        curvatures: its curvatures likewise, and
        metric: its metric.
        dual: likewise for which a witness of the dual of a semidefinite relaxation is given, and
        multipliers: its multipliers, ``(rows, 1 + inputs + 6 hidden neurons)``, float32.
        varying: share of hidden units that can move on the ball, ``(batch,)``, and
        ratio: local over global bound up to the last layer; NaN where not computed, ``None`` where
            never; not proven.
        settled: the cheapest level that proved each class, ``(batch,)``, an index of
            ``config.SETTLED``, 0 for none; and
        seconds: that each input took, ``(batch,)``, a batch's steps shared by the inputs that took
            part; and
        left: of open inputs that ``semidefinite`` does not take the size of their relaxation, -1
            for other activations, 0 elsewhere; ``None`` where not noted; none of them is proven.

    Raises:
        CertificateError: naming the field, for a value of the wrong type, shape or range.
    """

    digest: str
    input_shape: Shape
    box: Box | None
    x: Tensor
    radius: Tensor
    labels: Tensor | None
    lip: Tensor
    level: Tensor
    roots: Tensor
    margin: Tensor
    center: Tensor
    norm: str = "l2"
    input_scale: tuple[float, ...] | None = None
    tuned: Tensor | None = None
    slopes: Tensor | None = None
    curvatures: Tensor | None = None
    metric: Tensor | None = None
    dual: Tensor | None = None
    multipliers: Tensor | None = None
    varying: Tensor | None = None
    ratio: Tensor | None = None
    settled: Tensor | None = None
    seconds: Tensor | None = None
    left: Tensor | None = None

    def __post_init__(self) -> None:
        shape = sizes_of("input_shape", self.input_shape)
        one_of("norm", self.norm, NORMS)
        text_of("digest", self.digest)
        scale = self.input_scale
        if scale is not None:
            scale = numbers_of("input_scale", scale)
            units_of_scale(scale, math.prod(shape))
        keep(self, input_shape=shape, input_scale=scale, box=_box_of(self.box))
        self.check()

    def check(self) -> None:
        """Raise :class:`CertificateError` unless the tensors, which can be changed, still fit."""
        sizes = {"feature": math.prod(self.input_shape)}
        for name, column in TENSORS.items():
            if column.given or getattr(self, name) is not None:
                check_tensor(name, getattr(self, name), column, sizes)
        self._check_labels(sizes["functional"])
        self._check_witness(1 + sizes["feature"] + 6 * sizes["neuron"])
        if self.box is not None and len(self.x):
            low, high = float(self.x.min()), float(self.x.max())
            if low < self.box[0] or high > self.box[1]:
                raise CertificateError(
                    f"x: expected inputs inside the box {self.box}, got values from {low:g} to "
                    f"{high:g}"
                )

    def _check_witness(self, multipliers: int) -> None:
        """All of it or none, a row for each functional that has one."""
        for marks, *names in _WITNESSES:
            flags, *rows = (getattr(self, name) for name in (marks, *names))
            if len({one is None for one in (flags, *rows)}) > 1:
                raise CertificateError(
                    f"{', '.join((marks, *names))}: expected all of them or none of them"
                )
            if flags is not None and len(rows[0]) != int(flags.sum()):
                raise CertificateError(
                    f"{names[0]}: expected a row for each of the {int(flags.sum())} functionals "
                    f"of {marks}, got {len(rows[0])}"
                )
        if self.multipliers is not None and self.multipliers.shape[1] != multipliers:
            raise CertificateError(
                f"multipliers: expected {multipliers} a row, got {self.multipliers.shape[1]}"
            )

    def _check_labels(self, functionals: int) -> None:
        """Without labels there is one bound per input and no margin."""
        labels = self.labels
        if labels is None:
            if functionals != 1 or bool(self.margin.any()) or bool(self.center.any()):
                raise CertificateError(
                    "lip, margin, center: expected one bound per input and zeros without labels"
                )
        elif functionals == 1 and not bool((labels.abs() == 1).all()):
            raise CertificateError("labels: expected +1 and -1 for one output")
        elif functionals > 1 and not bool(((labels >= 0) & (labels < functionals)).all()):
            raise CertificateError(f"labels: expected classes from 0 to {functionals - 1}")

    def title(self) -> str:
        """Kind and measure."""
        measure = "model input" if self.input_scale is None else "raw input"
        what = "without labels" if self.labels is None else "with labels"
        return f"local certificate ({self.norm}, {measure}), {what}"

    def facts(self) -> tuple[Fact, ...]:
        """Shares of the inputs, and their radii or bounds."""
        held = self.radius if self.labels is None else self._proven_radius()
        found = [word("rows", "inputs", len(self))]
        if self.labels is not None:
            shares = (("clean_accuracy", self.correct), ("certified_accuracy", self.robust))
            found += [share(n, n.replace("_", " "), _mean(flags)) for n, flags in shares]
        if left := verdicts.left_open(self.left):
            found.append(word("left_out", "left by semidefinite", left))
        if len(self) and self.labels is None:
            found.append(number("largest_lip", "largest constant", float(self.lip.max())))
        if len(self):
            means = (("mean_radius", held.mean()), ("median_radius", held.median()))
            found += [number(n, n.replace("_", " "), float(value)) for n, value in means]
        return tuple(found)

    def table(self) -> list[Row]:
        """One row per input."""
        columns: Row = {"radius": self.radius.tolist()}
        if self.labels is None:
            columns["lip"] = self.lip[:, 0].tolist()
        else:
            flags = ("labels", "predicted", "correct", "robust", "clean_margin", "least_margin")
            columns |= {name: getattr(self, name).tolist() for name in flags}
            columns["decided"] = self.decided
        if self.seconds is not None:
            columns["seconds"] = self.seconds.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def plot(self) -> Sheet:
        """The share of inputs beyond each proven radius; without labels, beyond each bound."""
        from ..result_plots import plot_shares

        if self.labels is None:
            return plot_shares(self.lip[:, 0].tolist(), f"constant on the ball, {self.norm}")
        return plot_shares(self._proven_radius().tolist(), f"certified radius, {self.norm}")

    def _proven_radius(self) -> Tensor:
        """The radius where the class is proven on the ball, else 0."""
        return torch.where(self.robust, self.radius, 0.0)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def kind(self) -> str:
        """``"local"``, as certificates of other kinds state theirs."""
        return "local"

    @property
    def robust(self) -> Tensor:
        """Boolean ``(batch,)``: the class is proven on the whole ball; with labels alone."""
        held = verdicts.kept(self.center, self.margin, self.lip, self.radius)
        return (held | self._own("robust")).all(dim=1)

    @property
    def correct(self) -> Tensor:
        """Boolean ``(batch,)``: the class is right at the input, strictly and beyond rounding."""
        return ((self.center > 0.0) | self._own("correct")).all(dim=1)

    @property
    def predicted(self) -> Tensor:
        """The class at the input, as its lower bounds show it; of one output 0 or 1, int64."""
        own = self._own("predicted")
        if own.shape[1] > 1:
            return self.center.argmin(dim=1)
        return (self.center[:, 0] > 0.0).eq(self.labels == 1).to(torch.int64)

    @property
    def least_margin(self) -> Tensor:
        """Proven lower bound of ``f_y - max f_j`` on the ball, ``(batch,)``.

        Greater than 0 exactly where :attr:`robust`.
        """
        margins = verdicts.least_margins(self.center, self.margin, self.lip, self.radius)
        return torch.where(self._own("least_margin"), math.inf, margins).amin(dim=1)

    @property
    def clean_margin(self) -> Tensor:
        """Proven lower bound of ``f_y - max f_j`` at the input, ``(batch,)``."""
        return torch.where(self._own("clean_margin"), math.inf, self.center).amin(dim=1)

    @property
    def decided(self) -> list[str]:
        """How each input was decided: ``"wrong"``, ``"open"``, or the cheapest level that did."""
        own = self._own("decided")
        return verdicts.decided(self.robust, self.correct, self.level, self.settled, own)

    def by_level(self) -> list[Row]:
        """Of each level the rows that it settled, their share and mean seconds, cheap ones first.

        Raises:
            CertificateError: without labels.
        """
        return verdicts.by_level(self.decided, self.seconds)

    def to_record(self) -> dict[str, float]:
        """Means and counts, ready for JSON; what was not computed is left out."""
        means = {
            "varying": None if self.varying is None else float(self.varying.nanmean()),
            "ratio": None if self.ratio is None else float(self.ratio.nanmean()),
        }
        return {
            "rows": len(self),
            "clean_accuracy": _mean(self.correct),
            "certified_accuracy": _mean(self.robust),
            **{
                name: value for name, value in means.items() if value is not None and value == value
            },
            **{f"decided_{name}": n for name, n in verdicts.counted(self.decided).items()},
        }

    def _own(self, asked: str) -> Tensor:
        """Which functionals are ``f_y - f_y``, ``(batch, m)``."""
        if self.labels is None:
            raise CertificateError(f"{asked}: certified without labels; give y to certify_local")
        if self.center.shape[1] == 1:
            return torch.zeros_like(self.center, dtype=torch.bool)
        return torch.arange(self.center.shape[1]) == self.labels[:, None]

    @property
    def levels(self) -> list[list[str]]:
        """The names of ``level``."""
        return [[LEVELS[k] for k in row] for row in self.level.tolist()]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically."""
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected an existing folder, got {path.parent}")
        about = {
            "format": FORMAT,
            "kind": "local",
            "digest": self.digest,
            "input_shape": list(self.input_shape),
            "box": None if self.box is None else list(self.box),
            "norm": self.norm,
            "input_scale": None if self.input_scale is None else list(self.input_scale),
        }
        tensors = {n: getattr(self, n) for n in TENSORS if getattr(self, n) is not None}
        solid = {name: t.contiguous() for name, t in tensors.items()}
        write_atomic(path, st.save(solid, {"about": json.dumps(about)}))

    @staticmethod
    def load(path: str | Path) -> LocalCertificate:
        """Read what :meth:`save` wrote; ``verify_local`` it before relying on it.

        Raises:
            CertificateError: naming what is missing, of the wrong type, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise CertificateError(f"{path}: expected a local certificate's file, found none")
        if path.stat().st_size > _MAX_FILE:
            raise CertificateError(f"{path}: larger than the limit of {_MAX_FILE} bytes")
        try:
            return _read(path)
        except CertificateError as error:
            raise CertificateError(f"{path}: {error}") from None


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0


def _box_of(box: Any) -> Box | None:
    if box is None:
        return None
    ends = numbers_of("box", box)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise CertificateError(f"box: expected two finite ends, the lower first, got {shown(box)}")
    return ends[0], ends[1]


def _read(path: Path) -> LocalCertificate:
    """A certificate from an untrusted file; its header is judged before a tensor is read."""
    try:
        header = safetensors_header(path)
    except NetworkError as error:
        raise CertificateError(f"truncated or damaged ({error})") from None
    about = _about(header.pop("__metadata__", None))
    names = {name for name, column in TENSORS.items() if column.given or name in header}
    if set(header) != names:
        raise CertificateError(f"expected the tensors {sorted(names)}, got {sorted(header)}")
    for name, entry in header.items():
        code = entry.get("dtype") if isinstance(entry, dict) else None
        if code != TENSORS[name].code:
            raise CertificateError(f"{name}: expected {TENSORS[name].code}, got {shown(code)}")
    try:
        tensors = st.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CertificateError(f"truncated or damaged ({error})") from None
    box, scale = about["box"], about["input_scale"]
    return LocalCertificate(
        digest=about["digest"],
        input_shape=tuple_of("input_shape", about["input_shape"]),
        box=None if box is None else tuple_of("box", box),
        labels=tensors.pop("labels", None),
        norm=about["norm"],
        input_scale=None if scale is None else tuple_of("input_scale", scale),
        **tensors,
    )


def _about(metadata: Any) -> dict[str, Any]:
    text = metadata.get("about") if isinstance(metadata, dict) else None
    try:
        about = strict_json.loads(text) if isinstance(text, str) else None
    except ValueError as error:
        raise CertificateError(f"about: not JSON ({error})") from None
    if not isinstance(about, dict) or about.get("kind") != "local" or set(about) != _ABOUT:
        raise CertificateError("not a local certificate")
    if type(about["format"]) is not int or about["format"] != FORMAT:
        raise CertificateError(f"format: expected {FORMAT}, got {shown(about['format'])}")
    return about
