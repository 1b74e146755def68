"""Proven Lipschitz bounds with the multipliers that prove them: the certificates, and their making.

Reading and checking a certificate needs no torch; :func:`certify` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, overload

import numpy as np

from ..errors import CertificateError, UnitsError
from ..networks.layers import Array, Shape
from ..networks.network import Network
from ..units import Units
from .document import Document, LayerSlopes, chain_slopes, in_file, parsed
from .fields import keep, multiplier_of, number_of, numbers_of, one_of, shown, tuple_of, tuples_of
from .restate import functionals_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..local.certify import LocalConfig
    from ..local.result import LocalCertificate
    from ..solvers.config import SolverConfig

__all__ = [
    "AnyCertificate",
    "Certificate",
    "FunctionalBound",
    "FunctionalCertificate",
    "LayerSlopes",
    "certify",
    "chain_slopes",
    "load_certificate",
]

Functionals = Literal["pairwise", "per_output", "directions"]

# Where a multiplier comes from.
METHODS = ("lipsdp", "given", "closed_form", "norm_product", "constant")


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificate(Document):
    """``||f(x) - f(y)||_2 <= lip ||x - y||`` for all x, y, with its proof.

    It speaks of the real-valued function of the stored weights, in evaluation mode.

    Attributes:
        lip: the proven bound.
        multiplier: the proof: ``(t_1, ..., t_l)``, one number > 0 per hidden neuron; for
            ``norm="linf"`` with ``t_0`` in front, one number per input, whose sum is at most
            ``lip^2 / 2``.
        method: where the multiplier comes from: ``"lipsdp"``, ``"given"``, ``"closed_form"``,
            ``"norm_product"``, or ``"constant"`` for a network that does not depend on its input.
        requested: the bound that was asked for, or ``None``.
        lower_lip: what no multiplier of this kind can beat: the solver's dual bound, or
            ``sampled_lower`` where that is larger.
        norm_product: product of the spectral norms and the greatest slopes, for comparison (times
            the square root of the number of inputs for ``norm="linf"``).
        sampled_lower: largest Jacobian norm found: no method can certify less.
        kind: ``"global"``: for all inputs.

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

    kinds: ClassVar[tuple[str, ...]] = ("global",)

    def __post_init__(self) -> None:
        super().__post_init__()
        requested = self.requested
        if requested is not None:
            requested = number_of("requested", requested, least=0.0)
        keep(self, requested=requested, **_bound_of(self))

    def claims(self) -> str:
        """The bound."""
        return f"lip={self.lip!r}"

    def reported(self) -> dict[str, Any]:
        """What the maker says and no check proves, by field."""
        names = ("method", "requested", "lower_lip", "sampled_lower")
        return {**{name: getattr(self, name) for name in names}, **super().reported()}

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
    """

    bounds: tuple[FunctionalBound, ...]
    kinds: ClassVar[tuple[str, ...]] = ("pairwise", "per_output", "directions")

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = self.bounds
        if not (isinstance(bounds, tuple) and bounds) or not all(
            isinstance(bound, FunctionalBound) for bound in bounds
        ):
            raise CertificateError(f"bounds: expected FunctionalBounds, got {shown(bounds)}")
        _check_directions(self.kind, [bound.direction for bound in bounds])

    def claims(self) -> str:
        """The bounds, in their order."""
        return f"lips={[bound.lip for bound in self.bounds]!r:.200}"

    def reported(self) -> dict[str, Any]:
        """What the maker says and no check proves, by field."""
        of_each = "method, lower_lip and sampled_lower of each"
        return {"bounds": of_each, **super().reported()}

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
        return super()._from_lists({**data, "bounds": bounds})


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


def _terms(direction: Any) -> str:
    """A functional in the words of a person: ``f_0 - f_3``."""
    terms = [f"{c:+g} f_{i}" for i, c in enumerate(direction) if c != 0.0]
    return " ".join(terms).replace("+1 ", "+ ").replace("-1 ", "- ") or "0"


AnyCertificate = Certificate | FunctionalCertificate

# The class of each kind of certificate.
CLASSES: Mapping[str, type[Certificate] | type[FunctionalCertificate]] = {
    kind: cls for cls in (Certificate, FunctionalCertificate) for kind in cls.kinds
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


@overload
def certify(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    kind: Literal["global"] = "global",
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
) -> Certificate: ...


@overload
def certify(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    kind: Functionals,
    directions: Any = None,
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    solver: str | SolverConfig = "auto",
    progress: bool = True,
) -> FunctionalCertificate: ...


@overload
def certify(
    model: nn.Module | Network,
    input_shape: Tensor,
    *,
    kind: Literal["local"],
    radius: float | Tensor,
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    y: Tensor | None = None,
    certificate: AnyCertificate | None = None,
    config: LocalConfig | None = None,
) -> LocalCertificate: ...


def certify(
    model: nn.Module | Network,
    input_shape: Shape | Tensor | None = None,
    *,
    kind: str = "global",
    directions: Any = None,
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
    progress: bool = True,
    **local: Any,
) -> AnyCertificate | LocalCertificate:
    """Find multipliers, prove the Lipschitz bounds they give, and return both.

    A multiplier is LipSDP's optimum (Fazlyab et al., 2019, diagonal form) as far as the solver
    reaches it; the bound is recomputed from it and raised by as little as a floating-point proof
    needs (about 1e-10, relatively).  Where the product of norms is smaller than what the solver
    reached, the multiplier that proves the product is returned instead.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.networks.network.Network`.
        input_shape: shape of one input without the batch; needed in front of convolutions.  For
            ``kind="local"`` the inputs themselves, ``(batch, *input_shape)``.
        kind: ``"global"``: all outputs together; ``"pairwise"``: every difference of two outputs,
            which serves :func:`admm_lip.certified_radii` best; ``"per_output"``: every output;
            ``"directions"``: the functionals given; ``"local"``: on the l2 balls of ``radius``
            around inputs (:func:`admm_lip.local.certify_local`).
        directions: linear functionals of the outputs, shape ``(functionals, outputs)``.
        norm: of inputs: ``"l2"`` or ``"linf"``.
        units: of a user's rows, where the model takes and gives standardised numbers: the bound
            is then of the raw function F (:class:`admm_lip.Units`), in raw units.
        input_scale: short for ``units=Units(input_scale=...)``.
        solver: a backend's name or a ``SolverConfig``.  A name stands for a relative gap in ``L^2``
            of 1e-6 for the global bound and 1e-3 for each functional.
        requested: the bound that was asked for; noted, not enforced.
        multiplier: one that is known already (a training run's): tried beside the solver's, and
            the solver's warm start; arrays or tensors, shapes as in the certificate.
        progress: show a bar where functionals take more than two seconds.
        local: ``radius``, ``y``, ``certificate`` and ``config`` for ``kind="local"``; a ``config``
            says norm and scale itself.

    Returns:
        A :class:`Certificate`, a :class:`FunctionalCertificate` for the kinds of functionals, or a
        ``LocalCertificate``, that passes :func:`admm_lip.verify`'s proof.

    Raises:
        UnsupportedModule: by qualified name, for a layer that cannot be certified.
        SolverError: when no backend found a multiplier.
        CertificateError: when no bound could be proven through rounding, or an argument does not
            fit the network.

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
    units = units_given(units, input_scale)
    if kind == "local":
        return _certify_local(model, cast("Tensor", input_shape), norm, units, local)
    _check_arguments(kind, directions, requested, multiplier, local)
    # Here and not above: a certificate is read and verified without torch.
    from .certifier import Order, certified
    from .functionals import certified_functionals

    order = Order(norm=norm, units=units, solver=solver)
    shape = cast("Shape | None", input_shape)
    if kind == "global":
        return certified(model, shape, order, requested, multiplier)
    return certified_functionals(model, shape, order, kind, directions, progress)


def _certify_local(
    model: nn.Module | Network,
    x: Tensor,
    norm: str,
    units: Units | None,
    local: dict[str, Any],
) -> LocalCertificate:
    """The local kind; a ``config`` among its arguments says norm and scale itself."""
    from ..local.certify import LocalConfig, certify_local

    if units is not None and units.scales_outputs:
        raise CertificateError(
            "units: local bounds measure outputs as the model gives them; expected "
            f"output_scale 1, got {units.output_scale!r:.80}"
        )
    scale = None if units is None else units.input_scale
    config = local.pop("config", None) or LocalConfig(norm=norm, input_scale=scale)
    return certify_local(model, x, config=config, **local)


def units_given(units: Units | None, input_scale: Any) -> Units | None:
    """The units of a call that takes ``input_scale`` as a short form of them.

    Raises:
        CertificateError: for both at once, or a scale that is none.
    """
    if units is not None and not isinstance(units, Units):
        raise CertificateError(f"units: expected admm_lip.Units, got {type(units).__name__}")
    if input_scale is None:
        return units
    if units is not None:
        raise CertificateError("units, input_scale: give one of them; units hold the scale too")
    try:
        found = Units(input_scale=input_scale)
    except UnitsError as error:
        raise CertificateError(str(error)) from None
    scale = found.input_scale
    return Units(input_scale=scale[0]) if isinstance(scale, tuple) and len(scale) == 1 else found


def _check_arguments(
    kind: str,
    directions: Any,
    requested: float | None,
    multiplier: Sequence[Any] | None,
    local: dict[str, Any],
) -> None:
    """Raise :class:`CertificateError` for arguments that do not go together."""
    if kind not in CLASSES:
        raise CertificateError(f"kind: expected one of {', '.join(CLASSES)}, local, got {kind!r}")
    if local:
        raise CertificateError(f"{', '.join(local)}: goes with kind='local' only, got {kind!r}")
    if (directions is None) == (kind == "directions"):
        raise CertificateError(
            f"directions: goes with kind='directions' and with no other, got kind={kind!r} and "
            f"directions={'None' if directions is None else 'given'}"
        )
    if kind != "global" and not (requested is None and multiplier is None):
        raise CertificateError("requested, multiplier: go with kind='global' only")
