"""The local certificate: what was proven of each input's ball, and all that a check needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch as st
import torch
from torch import Tensor

from ..certificates.restate import NORMS
from ..errors import CertificateError
from ..networks.layers import Shape
from ..networks.storage import write_atomic
from .levels import LEVELS
from .region import Box

FORMAT = 2
_MAX_FILE = 8 * 2**30
_TENSORS = {
    "x": (torch.float64, 2),
    "radius": (torch.float64, 1),
    "labels": (torch.int64, 1),
    "lip": (torch.float64, 2),
    "level": (torch.int8, 2),
    "roots": (torch.float64, 3),
    "margin": (torch.float64, 2),
    "center": (torch.float64, 2),
}


@dataclass(frozen=True, eq=False)
class LocalCertificate:
    """Bounds on the ball of each of ``batch`` inputs.

    It speaks of the real-valued function of the stored weights, in evaluation mode.

    Attributes:
        digest: SHA-256 of the network.
        input_shape: shape of one input.
        box: ends of the admissible inputs, or ``None``.
        x: the inputs, float64 ``(batch, features)``.
        radius: of the balls, ``(batch,)``, in the units of ``x`` times ``input_scale``.
        labels: the classes (of one output +1 / -1), or ``None``.
        lip: proven bounds, ``(batch, m)``.  Without labels (m = 1): of the Lipschitz constant of
            all outputs on the ball.  With labels: of ``|g(x') - g(x)| / |x' - x|`` for x' in the
            ball and ``g = f_y - f_j``, j = 0, 1, ...; ``inf`` for j = y and where none was sought.
        level: how each bound was found: an index of ``levels.LEVELS``.
        roots: square roots of the multipliers that prove them, ``(batch, m, hidden neurons)``.
        margin: with labels, proven lower bounds of ``f_y - f_j`` on the ball by linear bounds.
        center: with labels, proven lower bounds of ``f_y - f_j`` at x.
        norm: of the balls: ``"l2"`` or ``"linf"``.
        input_scale: per feature, where radii are in raw units and the model takes
            ``raw / input_scale``; ``None`` where they are in those of ``x``.
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

    @property
    def kind(self) -> str:
        """``"local"``, as certificates of other kinds state theirs."""
        return "local"

    @property
    def robust(self) -> Tensor:
        """Boolean ``(batch,)``: the class is proven on the whole ball.

        Raises:
            CertificateError: without labels.
        """
        if self.labels is None:
            raise CertificateError("robust: certified without labels; give y to certify_local")
        held = kept(self.center, self.margin, self.lip, self.radius)
        own = torch.zeros_like(held)
        if held.shape[1] > 1:
            own = torch.arange(held.shape[1]) == self.labels[:, None]
        return (held | own).all(dim=1)

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
        tensors = {n: getattr(self, n) for n in _TENSORS if getattr(self, n) is not None}
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
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, RecursionError) as error:
            raise CertificateError(f"{path}: truncated or damaged ({error})") from None
        try:
            return _checked(about, tensors)
        except CertificateError as error:
            raise CertificateError(f"{path}: {error}") from None


def kept(center: Tensor, margin: Tensor, lip: Tensor, radius: Tensor) -> Tensor:
    """Where ``f_y - f_j > 0`` on the whole ball: by lines, or by ``center > lip radius``."""
    reach = torch.where(radius[:, None] > 0.0, lip * radius[:, None], 0.0) * (1.0 + 1e-15)
    return (center > 0.0) & ((margin > 0.0) | (reach < center))


def _checked(about: Any, tensors: dict[str, Tensor]) -> LocalCertificate:
    """A certificate from untrusted parts."""
    if not isinstance(about, dict) or about.get("kind") != "local":
        raise CertificateError("not a local certificate")
    if about.get("format") != FORMAT:
        raise CertificateError(f"format: expected {FORMAT}, got {about.get('format')!r:.200}")
    digest, shape, box = (about.get(k) for k in ("digest", "input_shape", "box"))
    if not isinstance(digest, str):
        raise CertificateError(f"digest: expected text, got {digest!r:.200}")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise CertificateError(f"input_shape: expected sizes > 0, got {shape!r:.200}")
    if box is not None and not (
        isinstance(box, list)
        and len(box) == 2
        and all(type(v) in (int, float) and math.isfinite(v) for v in box)
    ):
        raise CertificateError(f"box: expected two finite numbers or null, got {box!r:.200}")
    norm, scale = about.get("norm"), about.get("input_scale")
    if norm not in NORMS:
        raise CertificateError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r:.200}")
    if scale is not None and not (
        isinstance(scale, list) and all(type(v) in (int, float) and math.isfinite(v) for v in scale)
    ):
        raise CertificateError(f"input_scale: expected finite numbers or null, got {scale!r:.200}")
    missing = (set(_TENSORS) - {"labels"}) - set(tensors)
    if missing or not set(tensors) <= set(_TENSORS):
        raise CertificateError(f"expected the tensors {sorted(_TENSORS)}, got {sorted(tensors)}")
    for name, tensor in tensors.items():
        dtype, ndim = _TENSORS[name]
        if tensor.dtype != dtype or tensor.ndim != ndim or len(tensor) != len(tensors["x"]):
            raise CertificateError(
                f"{name}: expected {ndim} dimensions of {dtype}, one row per input, "
                f"got {tuple(tensor.shape)} of {tensor.dtype}"
            )
    if not (tensors["lip"].shape == tensors["level"].shape == tensors["roots"].shape[:2]):
        raise CertificateError("lip, level, roots: expected equal shapes")
    if not (tensors["lip"].shape == tensors["margin"].shape == tensors["center"].shape):
        raise CertificateError("lip, margin, center: expected equal shapes")
    return LocalCertificate(
        digest=digest,
        input_shape=tuple(shape),
        box=None if box is None else (float(box[0]), float(box[1])),
        labels=tensors.pop("labels", None),
        norm=norm,
        input_scale=None if scale is None else tuple(float(v) for v in scale),
        **tensors,
    )
