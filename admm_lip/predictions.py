"""Predictions of a run, or of a network in a file, on raw rows, with what is proven of them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .certificates.beside import certificate_of, has_certificate
from .certificates.certificate import AnyCertificate, Certificate, load_certificate
from .certificates.radii import radii_of
from .certificates.verify import check
from .data.options import DataError
from .data.table import read_features
from .errors import RunFolderError
from .foreign.open import open_network
from .networks.built import build_module
from .networks.network import Network
from .records import RunFolder, open_run, read_json
from .sharing import is_saved
from .shown import Fact, Row, Shown, number, word
from .units import Array, Units

if TYPE_CHECKING:
    from .plots import Sheet

# A run on a table; the settings are not read as YAML, which is not in the base install.
_TABLE = re.compile(r"^data: ['\"]?csv:", re.MULTILINE)


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Shown):
    """What a run says of raw rows.

    Attributes:
        values: predicted targets in their raw unit, ``(rows, outputs)``; a classifier's scores.
        names: of the outputs, or of the classes.
        classes: the predicted class of each row by its name, ``()`` for a regression.
        radius: of a classifier: how far a raw row may move before its class can change, proven,
            ``(rows,)``; ``None`` for a regression and where nothing is proven.
        lip: the proven Lipschitz constant of the raw function; ``None`` where there is no
            certificate, or one of functionals.
        ratio: the unit of ``lip``.
        norm: of input distances; empty where nothing is proven.
        left_out: columns of the rows that the run does not take.
    """

    values: Array
    names: tuple[str, ...]
    classes: tuple[str, ...]
    radius: Array | None
    lip: float | None
    ratio: str
    norm: str
    left_out: tuple[str, ...] = ()

    brief = ("rows", "lip", "mean_radius")

    def title(self) -> str:
        """What is predicted."""
        return "predicted classes" if self.classes else "predicted values"

    def facts(self) -> tuple[Fact, ...]:
        """How many rows, and what is proven of them."""
        unit = f" {self.ratio}, {self.norm}"
        found = [word("rows", "rows", len(self.values))]
        if self.lip is not None:
            found.append(number("lip", "proven Lipschitz constant", self.lip, unit))
        if self.radius is not None and len(self.radius):
            mean, raw = float(self.radius.mean()), f", raw {self.norm}"
            found.append(number("mean_radius", "mean certified radius", mean, raw))
        if self.left_out:
            found.append(word("left_out", "columns left out", ", ".join(self.left_out)))
        return tuple(found)

    def table(self) -> list[Row]:
        """One row per row: the class and its radius, or the values and their slope bound."""
        if self.classes:
            radii = [None] * len(self.classes) if self.radius is None else self.radius.tolist()
            pairs = zip(self.classes, radii, strict=True)
            return [{"class": name, "certified_radius": radius} for name, radius in pairs]
        names, bound = self.names, {"slope_bound": self.lip}
        return [dict(zip(names, row, strict=True)) | bound for row in self.values.tolist()]

    def plot(self) -> Sheet:
        """The share of rows beyond each certified radius, for classes."""
        from .result_plots import plot_shares

        if self.radius is None:
            return super().plot()
        return plot_shares(self.radius.tolist(), f"certified radius, raw {self.norm}")


def predict(
    run: str | os.PathLike[str],
    rows: Any,
    *,
    task: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Predictions:
    """Predict raw rows by a network on disk; the certificate beside it is checked on the way.

    Args:
        run: folder of a training run (``admm-lip train``), one that ``save_pretrained`` wrote, or
            what :func:`admm_lip.open_network` reads.
        rows: a CSV file's path, a data frame, a mapping of columns, or numbers ``(rows, features)``
            in the order of the run's features.  Columns are found by name, others are left out;
            where features have no names, all columns are taken in their order.
        task: ``"classification"`` or ``"regression"``; ``None``: as the run was trained, of a file
            regression.
        input_shape: of one input, where a file leaves it open.

    Raises:
        NetworkError: for a network that cannot be read.
        RunFolderError: for a folder that is no finished run.
        DataError: naming the columns that are missing, or the row and column of what is no finite
            number.
        CertificateError: where the folder's certificate does not prove its bound.

    Example:
        >>> import tempfile
        >>> from admm_lip.cli import main
        >>> from admm_lip import predict
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = ["a,b", *(f"{i},{3 * i}" for i in range(40))]
        >>> _ = (folder / "t.csv").write_text(chr(10).join(rows))
        >>> main(["train", "--data", f"csv:{folder}/t.csv", "--epochs", "1", "--quiet",
        ...       "--run-dir", f"{folder}/run"])  # doctest: +ELLIPSIS
        <BLANKLINE>
        ...
        >>> found = predict(folder / "run", {"a": [1.0, 2.0]})
        >>> found.values.shape, found.ratio
        ((2, 1), 'b per a')
    """
    if task not in (None, "classification", "regression"):
        raise ValueError(f"task: expected classification, regression or none, got {task!r}")
    path = Path(run)
    folder = open_run(path) if path.is_dir() and not is_saved(path) else None
    network = open_network(path, input_shape)
    certificate = _certificate(path) if folder is None else load_certificate(_raw_of(folder))
    if certificate is not None:
        check(certificate, network)
    units, named = _units(path, network, certificate)
    raw, left_out = raw_rows(rows, units, named)
    scores = _outputs(network, units.to_model(raw))
    own = units.classes
    if not own and (task or _task(folder)) == "classification":
        own = tuple(map(str, range(max(2, scores.shape[1]))))
    picked = _classes(scores) if own else np.zeros(0, dtype=np.int64)
    return Predictions(
        values=scores if own else units.from_model(scores),
        names=own or units.output_names or tuple(f"output {k}" for k in range(scores.shape[1])),
        classes=tuple(own[k] for k in picked),
        radius=_radii(network, raw, picked, certificate, units) if own and certificate else None,
        lip=certificate.lip if isinstance(certificate, Certificate) else None,
        ratio=units.ratio(),
        norm=certificate.norm if certificate else "",
        left_out=left_out,
    )


def units_of(folder: RunFolder) -> Units | None:
    """The units of a run's data; ``None`` where it took them as they were."""
    return Units.from_json(read_json(folder.units)) if folder.units.is_file() else None


def raw_rows(rows: Any, units: Units, named: bool = True) -> tuple[Array, tuple[str, ...]]:
    """Rows of any of the kinds that :func:`predict` takes, and the columns left out.

    Args:
        rows: of one of these kinds.
        units: of the features.
        named: whether columns are found by name.
    """
    if isinstance(rows, str | os.PathLike):
        return read_features(Path(rows), units, named)
    wanted, left_out = units.input_names, tuple[str, ...]()
    if not named and isinstance(rows, Mapping):
        rows = np.stack([np.asarray(column) for column in rows.values()], axis=-1)
    elif named and (isinstance(rows, Mapping) or hasattr(rows, "columns")):
        there = [str(name) for name in rows]
        missing = [name for name in wanted if name not in there]
        if missing:
            raise DataError(
                f"rows: expected the columns {', '.join(wanted)}; missing: {', '.join(missing)}"
            )
        left_out = tuple(name for name in there if name not in wanted)
        keys = {str(name): name for name in rows}
        rows = np.stack([np.asarray(rows[keys[name]]) for name in wanted], axis=-1)
    return _numbers(rows, wanted), left_out


def _numbers(rows: Any, names: tuple[str, ...]) -> Array:
    """Finite float64 ``(rows, features)``."""
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu()
    try:
        values = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"rows: expected numbers ({error})") from None
    if values.ndim > 2:
        values = values.reshape(len(values), -1)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(
            f"rows: expected shape (rows, {len(names)}), one column for each of "
            f"{', '.join(names[:8])}, got {values.shape}"
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"rows: expected finite numbers, got {values[row, column]} in row {row}, column "
            f"{names[column]!r} ({len(bad)} such numbers); fill or drop those rows"
        )
    return values


def _certificate(path: Path) -> AnyCertificate | None:
    """Of a network in a file; ``None`` where there is none."""
    return certificate_of(path) if has_certificate(path) else None


def _units(path: Path, network: Network, certificate: AnyCertificate | None) -> tuple[Units, bool]:
    """Units of the rows, of the run or else of the certificate, and whether features are named."""
    folder = RunFolder(path)
    own, stated = units_of(folder), certificate and certificate.units
    if own is None and folder.config.is_file() and _TABLE.search(folder.config.read_text()):
        raise RunFolderError(
            f"run: {path} was trained on standardised columns by a version that did not keep their "
            f"units; train it anew with: admm-lip train --config {shlex.quote(str(folder.config))}"
        )
    if own is not None and own != stated and (stated is not None or _scales(own)):
        raise DataError(
            f"{path}: expected a certificate in the units beside it, made by certify(model, "
            "units=units), got one in others"
        )
    units = own or stated or Units()
    if units.input_names:
        return units, True
    names = tuple(map(str, range(network.chain().widths[0])))
    return replace(units, input_names=names), False


def _scales(units: Units) -> bool:
    """Whether a row, or an output, is another number than the model's."""
    plain = replace(units, input_shift=0.0, input_scale=1.0, output_shift=0.0, output_scale=1.0)
    return plain != units


def _raw_of(folder: RunFolder) -> Path:
    """The certificate in raw units: its own file where the bound was meant in others."""
    return folder.raw_certificate if folder.raw_certificate.is_file() else folder.certificate


def _outputs(network: Network, rows: Array) -> Array:
    """The network in double precision, as its certificate speaks of it."""
    module = build_module(network).double().eval()
    shape = network.input_shape or (rows.shape[1],)
    with torch.no_grad():
        found: Tensor = module(torch.from_numpy(rows).reshape(-1, *shape))
    return np.asarray(found.numpy())


def _task(folder: RunFolder | None) -> Any:
    """What the run was judged as."""
    summary = read_json(folder.summary) if folder and folder.summary.is_file() else {}
    return summary.get("evaluation", {}).get("task")


def _classes(scores: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    if scores.shape[1] == 1:
        return np.asarray(scores[:, 0] > 0.0).astype(np.int64)
    return np.asarray(scores.argmax(axis=1))


def _radii(
    network: Network, raw: Array, picked: Any, certificate: AnyCertificate, units: Units
) -> Array:
    """Proven radii of the predicted classes, in raw units."""
    labels = torch.from_numpy(picked)
    own = certificate.units and units
    found = radii_of(network, torch.from_numpy(raw), labels, certificate, units=own)
    return np.asarray(found.numpy())
