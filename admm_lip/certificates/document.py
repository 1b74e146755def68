"""What every kind of certificate has in common: what it states of its network, and its file.

A file is JSON with a checksum.  Nothing in it is trusted: sizes, fields and types are checked, and
what it claims is for :func:`admm_lip.verify` to prove.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from .. import strict_json
from ..errors import CertificateError, UnitsError
from ..files import write_atomic
from ..networks.activations import promises_in
from ..networks.layers import Shape
from ..networks.network import Chain
from ..shown import Fact, Shown, record_of, word
from ..units import Units
from .claim_matrices import NORMS, check_units
from .fields import (
    keep,
    number_of,
    numbers_of,
    one_of,
    shown,
    sizes_of,
    text_of,
    tuple_of,
    whole_of,
)

FORMAT = 2
MODEL_UNITS = "model input"
RAW_UNITS = "raw input"
# Phases beyond which nobody looks at them.
MOST_PHASES = 1024
_MAX_FILE = 256 * 2**20
_TEXTS = ("digest", "package_version", "solver", "solver_version")


class LayerSlopes(NamedTuple):
    """What a certificate supposes of a hidden layer: its activation and its slope range."""

    activation: str
    alpha: float
    beta: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Document(Shown):
    """The fields that every certificate has.

    Whole numbers become floats; what is kept has passed every check of this module, whether it was
    computed, written by hand or read from a file.

    Attributes:
        slopes: per hidden layer, the activation and its slope range.
        digest: SHA-256 of the network (``Network.digest``).
        input_shape: shape of one input.
        solver: backend that found the multipliers, ``""`` where none was needed.
        solver_version: version of that backend.
        norm: of inputs: ``"l2"`` or ``"linf"``.  Outputs are measured in l2.
        kind: what is bounded.
        units: of inputs and outputs; ``None`` is those of the numbers that the model takes and
            gives.
        phases: of an image network taken frequency by frequency, most of the multipliers that a
            channel has along rows and columns, in turn, in front of strides
            (``certificates/torus/phases.py``); 1: one per channel.
        package_version: of admm-lip.
        format: of the file.

    Raises:
        CertificateError: naming the field, for a value of the wrong type or range.
    """

    slopes: tuple[LayerSlopes, ...]
    digest: str
    input_shape: Shape
    solver: str
    solver_version: str
    kind: str
    norm: str = "l2"
    units: Units | None = None
    phases: int = 1
    package_version: str = ""
    format: int = FORMAT

    # What the class may be of.
    kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if type(self.format) is not int or self.format != FORMAT:
            raise CertificateError(f"format: expected {FORMAT}, got {shown(self.format)}")
        for name in _TEXTS:
            text_of(name, getattr(self, name))
        one_of("kind", self.kind, self.kinds)
        one_of("norm", self.norm, NORMS)
        shape = sizes_of("input_shape", self.input_shape)
        if self.units is not None and not isinstance(self.units, Units):
            raise CertificateError(f"units: expected Units or None, got {shown(self.units)}")
        keep(self, slopes=_slopes_of(self.slopes), input_shape=shape)
        if self.units is not None:
            check_units(self.units, math.prod(shape))

    def check_phases(self, apart: bool) -> None:
        """Raise :class:`CertificateError` for more than one where none are told apart."""
        whole_of("phases", self.phases, 1, MOST_PHASES if apart else 1)

    @property
    def input_scale(self) -> tuple[float, ...] | None:
        """What each input feature is divided by in front of the model, ``None`` without units."""
        return None if self.units is None else self.units.input_scales(math.prod(self.input_shape))

    @property
    def promised(self) -> dict[str, tuple[float, float]]:
        """By name, the slope ranges that a user promised (``admm_lip.register_activation``).

        The bound is proven for every function that has them; that it has them is not.
        """
        found: dict[str, tuple[float, float]] = {}
        for name, (alpha, beta) in (p for s in self.slopes for p in promises_in(s.activation)):
            low, high = found.get(name, (alpha, beta))
            found[name] = (max(low, alpha), min(high, beta))
        return found

    def reported(self) -> dict[str, Any]:
        """What the maker says and no check proves, by field."""
        return record_of(fact for fact in self.facts() if fact.noted)

    def title(self) -> str:
        """Kind and measure."""
        return f"{self.kind} certificate ({self.measure()})"

    def measure(self) -> str:
        """The norm of distances, and their unit."""
        return f"{self.norm}, {MODEL_UNITS if self.units is None else self.units.ratio()}"

    def unit(self) -> str:
        """What is said after a bound: its unit, where that is known."""
        return "" if self.units is None else f" {self.units.ratio()}"

    def makers_notes(self) -> tuple[Fact, ...]:
        """How the certificate was made, and which slopes were promised for it."""
        labels = {
            "solver": "solver",
            "solver_version": "version of it",
            "package_version": "version of admm-lip",
            "promised": "slopes promised",
        }
        said = {name: getattr(self, name) for name in labels}
        return tuple(word(n, labels[n], value, noted=True) for n, value in said.items() if value)

    def save(self, path: str | Path) -> None:
        """Write ``path`` as JSON, atomically; floats are written so that they read back exactly."""
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected an existing folder, got {path.parent}")
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a certificate's file; ``verify`` it before relying on it.

        Raises:
            CertificateError: for a file that is missing, truncated, edited, of another format or
                of another kind.
        """
        found: Self = in_file(path, cls.from_json)
        return found

    def to_json(self) -> str:
        """The certificate as JSON text, with a checksum of its content."""
        data = asdict(self)
        data["slopes"] = [s._asdict() for s in self.slopes]
        data["units"] = None if self.units is None else self.units.to_json()
        data["checksum"] = checksum(data)
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls.from_data(parsed(text))

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """A certificate of this class from the JSON object of its file."""
        names = {f.name for f in fields(cls)} | {"checksum"}
        old = isinstance(data, dict) and type(data.get("format")) is int and data["format"] == 1
        names = (names | {"input_scale"}) - _ADDED if old else names
        wrong = set(data) ^ names if isinstance(data, dict) else set()
        if not isinstance(data, dict) or not wrong <= names & _ADDED:
            got = sorted(wrong) if isinstance(data, dict) else data
            raise CertificateError(
                f"not a certificate of format {FORMAT}: see {shown(got)}; certify the network anew "
                "(admm-lip certify PATH)"
            )
        stated = {name: value for name, value in data.items() if name != "checksum"}
        if data["checksum"] != checksum(stated):
            raise CertificateError(
                "checksum: the file was edited or damaged after it was written; certify anew"
            )
        return cls(**cls._from_lists(_of_format_2(stated) if old else stated))

    @classmethod
    def _from_lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        """JSON's lists as the tuples that a certificate keeps."""
        slopes = tuple_of("slopes", data["slopes"])
        if not all(isinstance(s, dict) and set(s) == set(LayerSlopes._fields) for s in slopes):
            raise CertificateError(f"slopes: expected {LayerSlopes._fields} per hidden layer")
        return {
            **data,
            "slopes": tuple(LayerSlopes(**s) for s in slopes),
            "input_shape": tuple_of("input_shape", data["input_shape"]),
            "units": None if data["units"] is None else _units_of(data["units"]),
        }


# Fields that format 2 was given later; a file of before means their defaults.
_ADDED = frozenset({"switch", "every_size", "shared", "phases"})


def _units_of(data: Any) -> Units:
    try:
        return Units.from_json(data)
    except UnitsError as error:
        raise CertificateError(f"units: {error}") from None


def _of_format_2(data: dict[str, Any]) -> dict[str, Any]:
    """The data of a certificate of format 1, which knew scales of inputs only."""
    units, scale = data["units"], data["input_scale"]
    wanted = MODEL_UNITS if scale is None else RAW_UNITS
    if units != wanted:
        have = "no" if scale is None else "an"
        raise CertificateError(
            f"units: expected {wanted!r} with {have} input_scale, got {shown(units)}"
        )
    if scale is not None:
        values = numbers_of("input_scale", tuple_of("input_scale", scale))
        plain = Units().to_json() | {"input_scale": list(values)}
    kept = {name: value for name, value in data.items() if name != "input_scale"}
    return {**kept, "format": FORMAT, "units": None if scale is None else plain}


def in_file(path: str | Path, read: Any) -> Any:
    """``read`` of a file's text, errors with the file's name in front."""
    path = Path(path)
    if not path.is_file():
        raise CertificateError(f"{path}: expected a certificate file, found none")
    if path.stat().st_size > _MAX_FILE:
        raise CertificateError(f"{path}: larger than the limit of {_MAX_FILE} bytes")
    try:
        return read(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise CertificateError(f"{path}: not a text file") from None
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror})") from None
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None


def parsed(text: str) -> Any:
    """JSON text as data, without NaN, infinities and keys given twice."""
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise CertificateError(f"truncated or not JSON ({error})") from None


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of the data in canonical form: damage is told before anything is computed."""
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    except (RecursionError, MemoryError, ValueError):
        raise CertificateError("nested too deep, or too large to be read") from None
    return hashlib.sha256(text.encode()).hexdigest()


def chain_slopes(chain: Chain) -> tuple[LayerSlopes, ...]:
    """The slope ranges of a chain as a certificate states them (one range per layer)."""
    return tuple(
        LayerSlopes(spec.label, float(slopes.alpha.min()), float(slopes.beta.max()))
        for spec, slopes in zip(chain.activations, chain.slopes, strict=True)
    )


def _slopes_of(slopes: Any) -> tuple[LayerSlopes, ...]:
    if not isinstance(slopes, tuple):
        raise CertificateError(f"slopes: expected a tuple of LayerSlopes, got {shown(slopes)}")
    found = []
    for k, given in enumerate(slopes):
        if not isinstance(given, LayerSlopes) or not isinstance(given.activation, str):
            raise CertificateError(f"slopes[{k}]: expected LayerSlopes, got {shown(given)}")
        alpha = number_of(f"slopes[{k}].alpha", given.alpha)
        beta = number_of(f"slopes[{k}].beta", given.beta, least=alpha)
        found.append(LayerSlopes(given.activation, alpha, beta))
    return tuple(found)
