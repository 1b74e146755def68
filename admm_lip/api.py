"""The doors: ``certify``, ``verify`` and ``certified_radii``, by one table of kinds.

A kind of certificate is one row of :data:`KINDS`: its record, what makes it, what checks it, what
reads radii off it.  Records and makers below know nothing of each other's kinds, and nothing of
this table.  What a row names is loaded when it is first used: reading and checking a certificate
needs neither torch nor a solver.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from .certificates.certificate import (
    AnyCertificate,
    Certificate,
    FunctionalCertificate,
    Functionals,
    MonotoneCertificate,
    load_certificate,
)
from .certificates.claim_matrices import units_given
from .errors import CertificateError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .lipschitz import Monotone
    from .local.config import LocalConfig
    from .local.result import LocalCertificate
    from .networks.layers import Shape
    from .networks.network import Network
    from .solvers.config import SolverConfig
    from .units import Units


class Kind(NamedTuple):
    """One kind of certificate; each field names a ``module:object`` of this package.

    Attributes:
        record: the class of its certificates.
        prove: makes one: ``prove(model, input_shape, norm=, units=, solver=, **options)``; a local
            one has a door of its own.
        check: proves one again: ``check(certificate, model)``.
        radii: certified radii from one.
        options: what is given for this kind and not for every other.
    """

    record: str
    prove: str
    check: str
    radii: str
    options: tuple[str, ...]


_GLOBAL = Kind(
    record="certificates.certificate:Certificate",
    prove="certificates.certifier:certify_global",
    check="certificates.verify:check",
    radii="certificates.radii:radii_of",
    options=("requested", "multiplier", "structure"),
)
_FUNCTIONALS = Kind(
    record="certificates.certificate:FunctionalCertificate",
    prove="certificates.functionals:certify_functionals",
    check="certificates.verify:check",
    radii="certificates.radii:radii_of",
    options=("kind", "structure", "n_jobs", "progress"),
)
KINDS: Mapping[str, Kind] = {
    "global": _GLOBAL,
    "monotone": _GLOBAL._replace(
        record="certificates.certificate:MonotoneCertificate",
        prove="certificates.monotone:certify_monotone",
        check="certificates.monotone:check_monotone",
        options=("monotone", *_GLOBAL.options),
    ),
    "pairwise": _FUNCTIONALS,
    "per_output": _FUNCTIONALS,
    "directions": _FUNCTIONALS._replace(options=("directions", *_FUNCTIONALS.options)),
    "local": Kind(
        record="local.result:LocalCertificate",
        prove="local.certify:certify_local",
        check="local.check:verify_local",
        radii="local.radii:local_radii",
        options=("radius", "y", "certificate", "config"),
    ),
}


def _of(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


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
    structure: str | None = None,
) -> Certificate: ...


@overload
def certify(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    kind: Literal["monotone"],
    monotone: Monotone,
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
    structure: str | None = None,
) -> MonotoneCertificate: ...


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
    structure: str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> FunctionalCertificate: ...


@overload
def certify(
    model: Sequence[nn.Module | Network],
    input_shape: Shape | None = None,
    *,
    n_jobs: int | None = None,
    **options: Any,
) -> list[Any]: ...


def certify(
    model: nn.Module | Network | Sequence[nn.Module | Network],
    input_shape: Shape | None = None,
    *,
    kind: str = "global",
    directions: Any = None,
    monotone: Monotone | None = None,
    norm: str = "l2",
    units: Units | None = None,
    input_scale: Any = None,
    solver: str | SolverConfig = "auto",
    requested: float | None = None,
    multiplier: Sequence[Any] | None = None,
    structure: str | None = None,
    progress: bool = True,
    n_jobs: int | None = None,
    **local: Any,
) -> AnyCertificate | LocalCertificate | list[Any]:
    """Find multipliers, prove the Lipschitz bounds they give, and return both.

    A multiplier is LipSDP's optimum (Fazlyab et al., 2019, diagonal form) as far as the solver
    reaches it; the bound is recomputed from it and raised by as little as a floating-point proof
    needs (about 1e-10, relatively).  Where the product of norms is smaller than what the solver
    reached, the multiplier that proves the product is returned instead.

    Args:
        model: made of supported layers, read in the mode that it is in (dropout and batch
            normalisation want ``model.eval()`` first), a
            :class:`~admm_lip.networks.network.Network`, or a fitted perceptron, linear model or
            pipeline of scikit-learn (``foreign/from_sklearn.py``).  A list of such: those of equal
            widths are solved together.
        input_shape: shape of one input without the batch; needed in front of convolutions.
        kind: ``"global"``: all outputs together; ``"pairwise"``: every difference of two outputs,
            which serves :func:`admm_lip.certified_radii` best; ``"per_output"``: every output;
            ``"directions"``: the functionals given; ``"monotone"``: all outputs together, and that
            one never falls (rises) in some inputs.  On balls around inputs:
            :func:`admm_lip.certify_local`.
        directions: linear functionals of the outputs, shape ``(functionals, outputs)``.
        monotone: the :class:`admm_lip.Monotone` to prove, for ``kind="monotone"``.
        norm: of inputs: ``"l2"`` or ``"linf"``.
        units: of a user's rows, where the model takes and gives standardised numbers: the bound
            is then of the raw function F (:class:`admm_lip.Units`), in raw units.
        input_scale: short for ``units=Units(input_scale=...)``.
        solver: a backend's name or a ``SolverConfig``.  A name stands for a relative gap in ``L^2``
            of 1e-6 for the global bound and 1e-3 for each functional.
        requested: the bound that was asked for; noted, not enforced.
        multiplier: one that is known already (a training run's): tried beside the solver's, and
            the solver's warm start; arrays or tensors, shapes as in the certificate.
        structure: of the multipliers of a network of images: ``"exact"``: one per neuron;
            ``"torus"``: one per channel of the first layers, frequency by frequency, and one per
            neuron of the rest (in front of strides one per channel and phase where those are
            few); ``"every_size"``: one per channel, of a chain of convolutions without stride, for
            images of every size at once; ``"auto"`` or not given: per channel beyond 3,000
            neurons.  Functionals share the multipliers per channel.  Per channel is then also what
            ``input_scale`` has, the least of its pixels.
        progress: say how far functionals are, after two seconds.
        n_jobs: for a list or functionals, joblib's: so many processes, -1 for one per core,
            ``None`` for what ``joblib.parallel_config`` says (Dask, say), else threads.
        local: what ``kind="local"`` took before it had a door of its own.

    Returns:
        A :class:`Certificate`, or a :class:`FunctionalCertificate` for the kinds of functionals,
        that passes :func:`admm_lip.verify`'s proof; for a list of networks a list of these, in its
        order (an error begins with the one that it is of, as ``model[3]``).

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
        older: LocalCertificate = _of("local.older_door:certify_local_as_a_kind")(
            model, input_shape, norm, units, local
        )
        return older
    given = {
        "kind": kind,
        "directions": directions,
        "monotone": monotone,
        "requested": requested,
        "multiplier": multiplier,
        "structure": structure,
        "progress": progress,
    }
    row = _row_for(kind, {**given, **local})
    given["n_jobs"] = None if isinstance(model, list | tuple) else n_jobs
    options = {name: given[name] for name in row.options}
    options |= {"input_shape": input_shape, "norm": norm, "units": units, "solver": solver}
    if isinstance(model, list | tuple):
        return list(_of("certificates.many:certify_all")(_of(row.prove), model, options, n_jobs))
    if n_jobs is not None and "n_jobs" not in row.options:
        raise CertificateError(f"n_jobs: goes with a list or functionals, got one and {n_jobs!r}")
    made: AnyCertificate = _of(row.prove)(model, **options)
    return made


def _row_for(kind: str, given: Mapping[str, Any]) -> Kind:
    """The row of a kind, once nothing is given that goes with others only.

    Raises:
        CertificateError: naming the argument and the kinds it goes with.
    """
    if kind not in KINDS:
        raise CertificateError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    row = KINDS[kind]
    for name in sorted(given.keys() - {"kind", "progress"}):
        if given[name] is not None and name not in row.options:
            owners = [repr(k) for k, other in KINDS.items() if name in other.options]
            if not owners:
                raise TypeError(f"certify() got an unexpected keyword argument {name!r}")
            raise CertificateError(
                f"{name}: goes with kind={' or '.join(owners)} only, got {kind!r}"
            )
    return row


def verify(
    certificate: AnyCertificate | LocalCertificate | str | Path,
    model: nn.Module | Network | str | Path,
) -> None:
    """Prove every bound of a certificate for exactly this ``model``.

    What is proven speaks of the real-valued function of the stored weights, evaluated without
    rounding, dropout off.

    Args:
        certificate: the certificate, of any kind, or the path of its file (a local one ends in
            ``.safetensors``).
        model: a torch module, a :class:`~admm_lip.networks.network.Network`, a fitted estimator
            of scikit-learn, or the folder of a run.

    Raises:
        CertificateError: for another network, an edited multiplier, a lowered bound, slopes that
            the activations do not have, or a norm, kind or unit that this version cannot check.

    Example:
        >>> import torch
        >>> from admm_lip import certify, verify
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(),
        ...                             torch.nn.Linear(5, 2))
        >>> verify(certify(model), model)
    """
    if isinstance(certificate, str | Path):
        local = Path(certificate).suffix == ".safetensors"
        load = _of(KINDS["local"].record).load if local else load_certificate
        certificate = load(certificate)
    _of(_row_of(certificate).check)(certificate, model)


def _row_of(certificate: Any) -> Kind:
    """The row of a certificate's kind."""
    row = KINDS.get(getattr(certificate, "kind", ""))
    if row is None or not isinstance(certificate, _of(row.record)):
        raise CertificateError(
            f"certificate: expected one of kind {', '.join(KINDS)}, got {certificate!r:.80}"
        )
    return row


def certified_radii(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    *,
    certificate: AnyCertificate | None = None,
    units: Units | None = None,
    kind: Literal["local"] | None = None,
    config: LocalConfig | None = None,
    classes: Sequence[Any] | None = None,
    n_jobs: int | None = None,
) -> Tensor:
    """Radius of the ball around each input in which the predicted class provably is ``y``.

    The ball is that of the certificate's norm (l2 or linf), the radius in its units.

    Args:
        model: a classifier, the one the certificate was made for.  One output is read as a binary
            classifier that decides at 0.
        x: inputs as the model takes them, ``(batch, *input_shape)``: a tensor, a NumPy array, a
            data frame or a list of any real dtype, taken at its exact values.
        y: labels, ``(batch,)``, ``(batch, 1)`` or one-hot; for one output 0 / 1 or -1 / 1.
        certificate: of this model, of kind ``"global"``, ``"pairwise"`` (the largest radii) or
            ``"per_output"``.  Its digest is compared with the model's; whether its bounds are
            proven is for :func:`admm_lip.verify` to say.  ``kind="local"`` does without.
        units: where ``x`` are raw rows: those of these rows.  The radii are in the units of the
            certificate all the same, so make it with ``certify(model, units=units)``.
        kind: ``"local"`` searches the largest ball around each input on which the class can be
            proven (:func:`admm_lip.local.local_radii`), but for rounding never below what
            ``certificate`` gives.
        config: effort of that search.
        classes: the labels in the order of the outputs (``result.classes`` after training), where
            ``y`` holds words or other numbers.
        n_jobs: workers that search local radii, as for :func:`admm_lip.certify_local`.

    Returns:
        float64 tensor ``(batch,)`` on the device of ``x`` (the CPU where that is no tensor, or has
        no float64), in the units of the certificate (raw ones where it has ``units``, else those of
        the model's input): 0 where the class is wrong, tied within rounding, or an input or logit
        is not finite; ``inf`` where the margins are constant and right.

    Raises:
        CertificateError: for a certificate of another network, or of a kind without radii, or one
            whose units are not those of ``units``.
        TypeError, ValueError: naming ``x`` or ``y``, for what is no number or no label, and for
            shapes that make no sense.

    Example:
        >>> import torch
        >>> from admm_lip import certified_radii, certify
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> model[0].weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])
        >>> radii = certified_radii(model, x, y, certificate=certify(model))
        >>> [round(r, 6) for r in radii.tolist()]
        [1.414214, 0.0]
    """
    if kind == "local":
        if units is not None:
            raise CertificateError(
                "units: kind='local' takes rows as the model does; convert them by "
                "units.to_model, and give LocalConfig the input_scale"
            )
        options = {"config": config, "classes": classes, "n_jobs": n_jobs}
        found = _of(KINDS[kind].radii)(model, x, y, certificate=certificate, **options)
        local: Tensor = found.radius.to(_of("solvers.devices:float64_home")(x))
        return local
    if certificate is None or kind is not None:
        raise CertificateError(
            f"certificate, kind: expected a certificate, or kind='local', got kind={kind!r}"
        )
    read: Callable[..., Tensor] = _of(_row_of(certificate).radii)
    return read(model, x, y, certificate, units=units, classes=classes)
