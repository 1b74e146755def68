"""A proven Lipschitz bound with the multiplier that proves it: what it holds, its file, its making.

Reading and checking a certificate needs no torch; :func:`certify` does.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import CertificateError
from .layers import Shape
from .network import Chain, Network
from .storage import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from .solvers.config import SolverConfig

FORMAT = 1
_MAX_FILE = 256 * 2**20


class LayerSlopes(NamedTuple):
    """What a certificate supposes of a hidden layer: its activation and its slope range."""

    activation: str
    alpha: float
    beta: float


@dataclass(frozen=True)
class Certificate:
    """``||f(x) - f(y)|| <= lip ||x - y||`` for all x, y, with its proof.

    It speaks of the real-valued function of the stored weights, in evaluation mode.

    Attributes:
        lip: the proven bound.
        multiplier: the proof: ``(t_1, ..., t_l)``, one number > 0 per hidden neuron.
        slopes: per hidden layer, the activation and its slope range.
        digest: SHA-256 of the network (``Network.digest``).
        input_shape: shape of one input.
        method: where the multiplier comes from: ``"lipsdp"``, ``"given"``, ``"norm_product"``, or
            ``"constant"`` for a network that does not depend on its input.
        solver: backend that found it, ``""`` where none was needed.
        solver_version: version of that backend.
        requested: the bound that was asked for, or ``None``.
        lower_lip: what no multiplier of this kind can beat: the solver's dual bound, or
            ``sampled_lower`` where that is larger.
        norm_product: product of the spectral norms and the greatest slopes, for comparison.
        sampled_lower: largest Jacobian norm found: no method can certify less.
        norm: of inputs and outputs.
        kind: ``"global"``: for all inputs.
        units: of the input distance: that of the numbers the model takes.
        package_version: of admm-lip.
        format: of the file.

    Only ``lip`` is proven; ``verify`` checks it from ``multiplier`` and the weights alone.

    Raises:
        CertificateError: naming the field, for a value of the wrong type or range.
    """

    lip: float
    multiplier: tuple[tuple[float, ...], ...]
    slopes: tuple[LayerSlopes, ...]
    digest: str
    input_shape: Shape
    method: str
    solver: str
    solver_version: str
    requested: float | None
    lower_lip: float
    norm_product: float
    sampled_lower: float
    norm: str = "l2"
    kind: str = "global"
    units: str = "model input"
    package_version: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT or isinstance(self.format, bool):
            raise CertificateError(f"format: expected {FORMAT}, got {self.format!r}")
        for name in ("lip", "lower_lip", "norm_product", "sampled_lower"):
            _check_number(name, getattr(self, name), least=0.0)
        if self.requested is not None:
            _check_number("requested", self.requested, least=0.0)
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise CertificateError(f"{name}: expected text, got {getattr(self, name)!r}")
        if not self.input_shape or not all(type(n) is int and n > 0 for n in self.input_shape):
            raise CertificateError(f"input_shape: expected sizes > 0, got {self.input_shape!r}")
        for k, t in enumerate(self.multiplier):
            if not isinstance(t, tuple):
                raise CertificateError(f"multiplier[{k}]: expected a tuple, got {t!r}")
            for i, value in enumerate(t):
                _check_number(f"multiplier[{k}][{i}]", value, least=0.0)
        for k, slopes in enumerate(self.slopes):
            if not isinstance(slopes, LayerSlopes) or not isinstance(slopes.activation, str):
                raise CertificateError(f"slopes[{k}]: expected LayerSlopes, got {slopes!r}")
            _check_number(f"slopes[{k}].alpha", slopes.alpha)
            _check_number(f"slopes[{k}].beta", slopes.beta, least=slopes.alpha)

    def save(self, path: str | Path) -> None:
        """Write ``path`` as JSON, atomically; floats are written so that they read back exactly."""
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected an existing folder, got {path.parent}")
        write_atomic(path, self.to_json().encode())

    @staticmethod
    def load(path: str | Path) -> Certificate:
        """Read a certificate's file; ``verify`` it before relying on it.

        Raises:
            CertificateError: for a file that is missing, truncated, edited or of another format.
        """
        path = Path(path)
        if not path.is_file():
            raise CertificateError(f"{path}: expected a certificate file, found none")
        if path.stat().st_size > _MAX_FILE:
            raise CertificateError(f"{path}: larger than the limit of {_MAX_FILE} bytes")
        try:
            return Certificate.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise CertificateError(f"{path}: not a text file") from None
        except CertificateError as error:
            raise CertificateError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The certificate as JSON text, with a checksum of its content."""
        data = asdict(self)
        data["slopes"] = [s._asdict() for s in self.slopes]
        data["checksum"] = _checksum(data)
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Certificate:
        """The inverse of :meth:`to_json`."""
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CertificateError(f"truncated or not JSON ({error})") from None
        names = {f.name for f in fields(Certificate)}
        if not isinstance(data, dict) or set(data) != names | {"checksum"}:
            got = sorted(set(data) ^ (names | {"checksum"})) if isinstance(data, dict) else data
            raise CertificateError(f"not a certificate of format {FORMAT}: see {got!r:.200}")
        checksum = data.pop("checksum")
        if checksum != _checksum(data):
            raise CertificateError(
                "checksum: the file was edited or damaged after it was written; certify anew"
            )
        return Certificate(**_from_lists(data))


def chain_slopes(chain: Chain) -> tuple[LayerSlopes, ...]:
    """The slope ranges of a chain as a certificate states them (one range per layer)."""
    return tuple(
        LayerSlopes(spec.kind, float(slopes.alpha.min()), float(slopes.beta.max()))
        for spec, slopes in zip(chain.activations, chain.slopes, strict=True)
    )


def certify(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
) -> Certificate:
    """Find a multiplier, prove the Lipschitz bound it gives, and return both.

    The multiplier is LipSDP's optimum (Fazlyab et al., 2019, diagonal form) as far as the solver
    reaches it; the bound is recomputed from it and raised by as little as a floating-point proof
    needs (about 1e-10, relatively).  Where the product of norms is smaller than what the solver
    reached, the multiplier that proves the product is returned instead.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.network.Network`.
        input_shape: shape of one input without the batch; needed in front of convolutions.
        solver: a backend's name or a ``SolverConfig``.
        requested: the bound that was asked for; noted, not enforced.
        multiplier: one that is known already (a training run's): tried beside the solver's, and
            the solver's warm start; arrays or tensors of shape ``(n_k,)``.

    Returns:
        A certificate that has passed :func:`admm_lip.verify`'s proof.

    Raises:
        UnsupportedModule: by qualified name, for a layer that cannot be certified.
        SolverError: when no backend found a multiplier.
        CertificateError: when no bound could be proven through rounding.

    Example:
        >>> import torch
        >>> from admm_lip import certify
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(),
        ...                             torch.nn.Linear(2, 1))
        >>> for p, v in zip(model.parameters(), ([[1.], [1.]], [0., -1.], [[1., -1.]], [0.])):
        ...     p.data = torch.tensor(v)      # relu(x) - relu(x - 1)
        >>> round(certify(model).lip, 6)
        1.0
    """
    # Here and not above: a certificate is read and verified without torch.
    from .certifier import certified

    return certified(model, input_shape, solver, requested, multiplier)


_TEXTS = (
    "digest",
    "method",
    "solver",
    "solver_version",
    "norm",
    "kind",
    "units",
    "package_version",
)


def _check_number(name: str, value: Any, least: float = -sys.float_info.max) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparisons, because math.isfinite fails on integers beyond the floats.
    if not is_number or not least <= value <= sys.float_info.max:
        above = f" >= {least:g}" if least > -sys.float_info.max else ""
        raise CertificateError(f"{name}: expected a finite number{above}, got {value!r}")


def _refuse_constant(name: str) -> float:
    raise CertificateError(f"holds {name}, which no certificate does")


def _from_lists(data: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that a certificate keeps."""
    for name in ("multiplier", "slopes", "input_shape"):
        if not isinstance(data[name], list):
            raise CertificateError(f"{name}: expected a list, got {data[name]!r:.200}")
    slopes = data["slopes"]
    if not all(isinstance(s, dict) and set(s) == set(LayerSlopes._fields) for s in slopes):
        raise CertificateError(f"slopes: expected {LayerSlopes._fields} per hidden layer")
    if not all(isinstance(t, list) for t in data["multiplier"]):
        raise CertificateError("multiplier: expected a list of numbers per hidden layer")
    return {
        **data,
        "multiplier": tuple(tuple(t) for t in data["multiplier"]),
        "slopes": tuple(LayerSlopes(**s) for s in slopes),
        "input_shape": tuple(data["input_shape"]),
    }


def _checksum(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
