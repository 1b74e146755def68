"""What every kind of certificate has in common: what it states of its network, and its file.

A file is JSON with a checksum.  Nothing in it is trusted: sizes, fields and types are checked, and
what it claims is for :func:`admm_lip.verify` to prove.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..errors import CertificateError
from ..networks.layers import Shape
from ..networks.network import Chain
from ..networks.storage import write_atomic

FORMAT = 1
MODEL_UNITS = "model input"
RAW_UNITS = "raw input"
_MAX_FILE = 256 * 2**20
_TEXTS = ("digest", "norm", "kind", "units", "package_version", "solver", "solver_version")


class LayerSlopes(NamedTuple):
    """What a certificate supposes of a hidden layer: its activation and its slope range."""

    activation: str
    alpha: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class Document:
    """The fields that every certificate has.

    Attributes:
        slopes: per hidden layer, the activation and its slope range.
        digest: SHA-256 of the network (``Network.digest``).
        input_shape: shape of one input.
        solver: backend that found the multipliers, ``""`` where none was needed.
        solver_version: version of that backend.
        norm: of inputs: ``"l2"`` or ``"linf"``.  Outputs are measured in l2.
        kind: what is bounded.
        units: of the input distance: ``"model input"``, the numbers that the model takes, or
            ``"raw input"``, where those are ``raw / input_scale`` and a constant.
        input_scale: per input feature, ``None`` for ``"model input"``.
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
    units: str = MODEL_UNITS
    input_scale: tuple[float, ...] | None = None
    package_version: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT or isinstance(self.format, bool):
            raise CertificateError(f"format: expected {FORMAT}, got {self.format!r}")
        for name in _TEXTS:
            check_text(name, getattr(self, name))
        if not self.input_shape or not all(type(n) is int and n > 0 for n in self.input_shape):
            raise CertificateError(f"input_shape: expected sizes > 0, got {self.input_shape!r}")
        for k, slopes in enumerate(self.slopes):
            if not isinstance(slopes, LayerSlopes) or not isinstance(slopes.activation, str):
                raise CertificateError(f"slopes[{k}]: expected LayerSlopes, got {slopes!r}")
            check_number(f"slopes[{k}].alpha", slopes.alpha)
            check_number(f"slopes[{k}].beta", slopes.beta, least=slopes.alpha)
        if self.input_scale is not None:
            check_numbers("input_scale", self.input_scale)

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
        data["checksum"] = checksum(data)
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls.from_data(parsed(text))

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """A certificate of this class from the JSON object of its file."""
        names = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or set(data) != names | {"checksum"}:
            got = sorted(set(data) ^ (names | {"checksum"})) if isinstance(data, dict) else data
            raise CertificateError(f"not a certificate of format {FORMAT}: see {got!r:.200}")
        if data.pop("checksum") != checksum(data):
            raise CertificateError(
                "checksum: the file was edited or damaged after it was written; certify anew"
            )
        return cls(**cls._from_lists(data))

    @classmethod
    def _from_lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        """JSON's lists as the tuples that a certificate keeps."""
        for name in ("slopes", "input_shape"):
            if not isinstance(data[name], list):
                raise CertificateError(f"{name}: expected a list, got {data[name]!r:.200}")
        slopes = data["slopes"]
        if not all(isinstance(s, dict) and set(s) == set(LayerSlopes._fields) for s in slopes):
            raise CertificateError(f"slopes: expected {LayerSlopes._fields} per hidden layer")
        scale = data["input_scale"]
        return {
            **data,
            "slopes": tuple(LayerSlopes(**s) for s in slopes),
            "input_shape": tuple(data["input_shape"]),
            "input_scale": None if scale is None else tuple_of("input_scale", scale),
        }


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
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None


def parsed(text: str) -> Any:
    """JSON text as data, without NaN and infinities."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"truncated or not JSON ({error})") from None


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of the data in canonical form: damage is told before anything is computed."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def chain_slopes(chain: Chain) -> tuple[LayerSlopes, ...]:
    """The slope ranges of a chain as a certificate states them (one range per layer)."""
    return tuple(
        LayerSlopes(spec.kind, float(slopes.alpha.min()), float(slopes.beta.max()))
        for spec, slopes in zip(chain.activations, chain.slopes, strict=True)
    )


def check_number(name: str, value: Any, least: float = -sys.float_info.max) -> None:
    """Raise :class:`CertificateError` unless ``value`` is a finite number >= ``least``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparisons, because math.isfinite fails on integers beyond the floats.
    if not is_number or not least <= value <= sys.float_info.max:
        above = f" >= {least:g}" if least > -sys.float_info.max else ""
        raise CertificateError(f"{name}: expected a finite number{above}, got {value!r}")


def check_numbers(name: str, values: Any, least: float = -sys.float_info.max) -> None:
    """Raise :class:`CertificateError` unless ``values`` is a tuple of such numbers."""
    if not isinstance(values, tuple):
        raise CertificateError(f"{name}: expected a tuple, got {values!r}")
    for i, value in enumerate(values):
        check_number(f"{name}[{i}]", value, least)


def check_multiplier(name: str, multiplier: Any) -> None:
    """Raise :class:`CertificateError` unless there is a tuple of numbers >= 0 per layer."""
    for k, t in enumerate(multiplier):
        check_numbers(f"{name}[{k}]", t, least=0.0)


def check_text(name: str, value: Any) -> None:
    """Raise :class:`CertificateError` unless ``value`` is text."""
    if not isinstance(value, str):
        raise CertificateError(f"{name}: expected text, got {value!r}")


def tuple_of(name: str, values: Any) -> tuple[Any, ...]:
    """A JSON list as a tuple."""
    if not isinstance(values, list):
        raise CertificateError(f"{name}: expected a list, got {values!r:.200}")
    return tuple(values)


def tuples_of(name: str, values: Any) -> tuple[tuple[Any, ...], ...]:
    """A JSON list of lists as tuples: a multiplier."""
    if not isinstance(values, list):
        raise CertificateError(f"{name}: expected a list, got {values!r:.200}")
    if not all(isinstance(t, list) for t in values):
        raise CertificateError(f"{name}: expected a list of numbers per hidden layer")
    return tuple(tuple(t) for t in values)


def _refuse_constant(name: str) -> float:
    raise CertificateError(f"holds {name}, which no certificate does")
