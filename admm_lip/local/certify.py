"""Local certificates: on the ball around each input, a proven Lipschitz bound and margin.

from admm_lip.local import LocalConfig, certify_local
found = certify_local(model, x, radius=0.5, y=labels)
found.robust        # which inputs provably keep their class on their ball
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..certificates.certificate import AnyCertificate
from ..certificates.claim_matrices import scales_of, units_given
from ..certificates.radii import labels_of, points_of
from ..data.arrays import as_numbers
from ..errors import InputsLeftOut
from ..foreign.open import network_of
from ..networks.network import Network
from .ball_proofs import prove
from .class_proofs import prove_classes
from .config import LocalConfig as LocalConfig
from .config import check_inside
from .global_bounds import global_bounds
from .input_region import Box
from .parts import certificate_of, run_parts
from .result import LocalCertificate
from .tasks import Task, check_measure, functionals_for, prepared_of, size_out
from .verdicts import left_open


def certify_local(
    model: nn.Module | Network,
    x: Any,
    radius: Any,
    y: Any = None,
    *,
    certificate: AnyCertificate | None = None,
    config: LocalConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: Sequence[Any] | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
    state: str | Path | None = None,
) -> LocalCertificate:
    """Prove what a network does on the ball around each input (of l2, unless ``config`` says).

    Without labels: a Lipschitz constant of the whole output between any two points of the ball.
    With labels: for every other class j a constant of ``f_y - f_j`` between the input and any point
    of its ball (fewer slopes are possible then, so it is smaller), and a lower bound of the margin
    from linear bounds; the class is proven where either keeps the margin positive.

    Args:
        model: a chain of supported layers, or a :class:`~admm_lip.networks.network.Network`.
        x: inputs ``(batch, *input_shape)``, a tensor or any array, taken at their exact values.
        radius: of the balls, in the units of ``x`` (raw ones with ``config.input_scale``): one
            number, or one per input.
        y: labels, ``(batch,)``, ``(batch, 1)`` or one-hot, or ``None``.
        certificate: of this model, in the norm and units of ``config``: no bound will be above
            the certificate's, and its multipliers serve the level ``"implied"``.
        config: effort and input box.
        input_shape: where it is not that of ``x`` (a flattened batch in front of convolutions).
        classes: the labels in the order of the outputs, where ``y`` holds words or other numbers.
        n_jobs: workers that take the inputs in batches, -1 for one per core; not given: those of
            ``joblib.parallel_config`` (a cluster of Dask, Ray or Spark, say), else none.
        progress: whether to say how far it is and what settled the inputs, after two seconds.
        state: folder in which every batch is kept as soon as it is proven: the same call goes on
            from what an ended process left there.  It is made, and is the caller's to remove.

    Returns:
        A :class:`LocalCertificate`, every number of it proven through rounding.

    Raises:
        ValueError: naming ``x``, ``y`` or ``radius``.
        CertificateError: for a certificate of another network, norm or unit.
        RunFolderError: where ``state`` was left by a call with other arguments, naming one.

    Warns:
        InputsLeftOut: where the level ``semidefinite`` does not take inputs that are open.

    Example:
        >>> import torch
        >>> from admm_lip.local import certify_local
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(),
        ...                             torch.nn.Linear(2, 1))
        >>> for p, v in zip(model.parameters(), ([[1.], [1.]], [0., -1.], [[1., -1.]], [0.])):
        ...     p.data = torch.tensor(v)      # relu(x) - relu(x - 1): constant from 1 on
        >>> found = certify_local(model, torch.tensor([[0.5], [3.0]]), radius=0.25)
        >>> [round(v, 6) for v in found.lip[:, 0].tolist()]
        [1.0, 0.0]
    """
    task = task_of(model, x, y, certificate, config, input_shape, classes)
    radii = checked_radii(radius, len(task.points))
    found = run_parts(_on_balls, task, radii, n_jobs=n_jobs, progress=progress, state=state)
    return told(found)


def told(found: LocalCertificate) -> LocalCertificate:
    """The same, with a warning of open inputs that the level asked for does not take."""
    if why := left_open(found.left):
        warnings.warn(
            f"level: semidefinite leaves open inputs: {why}; what cheaper levels proved of them "
            "stands",
            InputsLeftOut,
            stacklevel=3,
        )
    return found


def _on_balls(part: tuple[Task, Tensor]) -> LocalCertificate:
    task, radii = part
    means = prove_classes if task.config.decide else prove
    return certificate_of(task, radii, means(task, radii, deadline=task.deadline()))


def task_of(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    certificate: AnyCertificate | None,
    config: LocalConfig | None,
    input_shape: tuple[int, ...] | None,
    classes: Sequence[Any] | None = None,
) -> Task:
    """Read and check everything but the radius."""
    x = as_numbers("x", x)
    shape = certificate.input_shape if certificate is not None else input_shape
    if shape is None and x.ndim > 2:
        shape = tuple(x.shape[1:])
    network = network_of(model, shape)
    config = config or LocalConfig()
    outputs = size_out(network)
    units = units_given(None, config.input_scale)
    scales, _ = scales_of(units, network.size_in, outputs)
    scale = None if units is None else tuple(scales.tolist())
    if certificate is not None:
        check_measure(certificate, network, config.norm, scale)
    points = points_of(x, network.input_shape or ()).contiguous()
    check_points(points, config.box)
    labels = None if y is None else labels_of(y, len(points), outputs, classes)
    functionals, items = functionals_for(labels, len(points), outputs)
    known = None if certificate is None else global_bounds(certificate, outputs)
    return Task(prepared_of(network, config, scale), points, labels, functionals, items, known)


def check_points(points: Tensor, box: Box | None) -> None:
    """Raise :class:`ValueError` for inputs that are not finite or outside the box."""
    finite = torch.isfinite(points).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(f"x: expected finite inputs, got a NaN or infinity in row {row}")
    check_inside(points, box)


def checked_radii(radius: Any, count: int) -> Tensor:
    """One radius per sample, checked."""
    radii = torch.as_tensor(radius, dtype=torch.float64).detach().cpu()
    if radii.ndim > 1 or (radii.ndim == 1 and len(radii) != count):
        raise ValueError(
            f"radius: expected one number or one per input, ({count},), got {tuple(radii.shape)}"
        )
    radii = radii.expand(count).clone()
    for value in radii.tolist():
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"radius: expected finite numbers >= 0, got {value!r}")
    return radii


def certify_samples(
    model: nn.Module | Network,
    x: Any,
    y: Any,
    eps: float,
    *,
    classes: Sequence[Any] | None = None,
    bound: str = "local",
    running_radius: bool = True,
    data_range: Box | None = None,
    box: bool = True,
    everything: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> LocalCertificate:
    """The old name of ``certify_local(model, x, eps, y, config=...)``.

    ``bound="local"`` is ``LocalConfig(level="masked")``, ``bound="global"`` is ``level="product"``,
    ``data_range`` is ``box`` and ``everything=False`` is ``decide=True``; ``running_radius``,
    ``box`` and ``batch_size`` say nothing any more: the tighter is used always.
    """
    levels = {"local": "masked", "global": "product"}
    if bound not in levels:
        raise ValueError(f"bound: expected one of {', '.join(levels)}, got {bound!r}")
    warnings.warn(
        "certify_samples: use certify_local(model, x, eps, y, "
        f'config=LocalConfig(level="{levels[bound]}", box=data_range))',
        DeprecationWarning,
        stacklevel=2,
    )
    config = LocalConfig(levels[bound], box=data_range, decide=not everything)
    return certify_local(model, x, eps, y, config=config, classes=classes, progress=progress)
