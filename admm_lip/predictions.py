"""Predictions of a trained run on raw rows, with what is proven of them, from its folder alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .certificates.certificate import Certificate
from .certificates.radii import radii_of
from .certificates.verify import check
from .data.options import DataError
from .data.table import read_features
from .networks.chain import build_module
from .networks.network import Network
from .networks.storage import load_network
from .records import RunFolder, open_run, read_json
from .shown import Fact, Row, Shown, number, word
from .units import Array, Units

if TYPE_CHECKING:
    from .plots import Sheet


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Shown):
    """What a run says of raw rows.

    Attributes:
        values: predicted targets in their raw unit, ``(rows, outputs)``; a classifier's scores.
        names: of the outputs, or of the classes.
        classes: the predicted class of each row by its name, ``()`` for a regression.
        radius: of a classifier: how far a raw row may move before its class can change, proven,
            ``(rows,)``; ``None`` for a regression and where no such proof is in the folder.
        lip: the proven Lipschitz constant of the raw function; ``None`` for a classifier whose
            radii say more.
        ratio: the unit of ``lip``.
        norm: of input distances.
        left_out: columns of the rows that the run does not take.
    """

    values: Array
    names: tuple[str, ...]
    classes: tuple[str, ...]
    radius: Array | None
    lip: float
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
        found = [
            word("rows", "rows", len(self.values)),
            number("lip", "proven Lipschitz constant", self.lip, unit),
        ]
        if self.radius is not None and len(self.radius):
            mean, raw = float(self.radius.mean()), f", raw {self.norm}"
            found.append(number("mean_radius", "mean certified radius", mean, raw))
        if self.left_out:
            found.append(word("left_out", "columns left out", ", ".join(self.left_out)))
        return tuple(found)

    def table(self) -> list[Row]:
        """One row per row: the class and its radius, or the values and their slope bound."""
        if self.radius is not None:
            pairs = zip(self.classes, self.radius.tolist(), strict=True)
            return [{"class": name, "certified_radius": radius} for name, radius in pairs]
        names, bound = self.names, {"slope_bound": self.lip}
        return [dict(zip(names, row, strict=True)) | bound for row in self.values.tolist()]

    def plot(self) -> Sheet:
        """The share of rows beyond each certified radius, for classes."""
        from .result_plots import plot_shares

        if self.radius is None:
            return super().plot()
        return plot_shares(self.radius.tolist(), f"certified radius, raw {self.norm}")


def predict(run: str | os.PathLike[str], rows: Any) -> Predictions:
    """Predict raw rows by the network of a run folder; its proof is checked on the way.

    Args:
        run: folder of a training run (``admm-lip train``).
        rows: a CSV file's path, a data frame, a mapping of columns, or numbers ``(rows, features)``
            in the order of the run's features.  Columns are found by name; others are left out.

    Raises:
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
    folder = open_run(run)
    network = load_network(folder.path)
    chain = network.chain()
    units = units_of(folder)
    certificate = Certificate.load(_raw_certificate(folder))
    check(certificate, network)
    if units is None:
        units = Units(input_names=tuple(str(c) for c in range(chain.widths[0])))
    elif certificate.units is None or certificate.units != units:
        raise DataError(f"{folder.units}: expected the units of the certificate beside it")
    raw, left_out = raw_rows(rows, units)
    scores = _outputs(network, units.to_model(raw))
    own = units.classes or _numbered(folder, scores.shape[1])
    picked = _classes(scores) if own else np.zeros(0, dtype=np.int64)
    return Predictions(
        values=scores if own else units.from_model(scores),
        names=own or units.output_names or tuple(f"output {k}" for k in range(scores.shape[1])),
        classes=tuple(own[k] for k in picked),
        radius=_radii(network, raw, picked, certificate, units) if own else None,
        lip=certificate.lip,
        ratio=units.ratio(),
        norm=certificate.norm,
        left_out=left_out,
    )


def units_of(folder: RunFolder) -> Units | None:
    """The units of a run's data; ``None`` where it took them as they were."""
    return Units.from_json(read_json(folder.units)) if folder.units.is_file() else None


def raw_rows(rows: Any, units: Units) -> tuple[Array, tuple[str, ...]]:
    """Rows of any of the kinds that :func:`predict` takes, and the columns left out."""
    if isinstance(rows, str | os.PathLike):
        return read_features(Path(rows), units)
    wanted, left_out = units.input_names, tuple[str, ...]()
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):
        named = [str(name) for name in rows]
        missing = [name for name in wanted if name not in named]
        if missing:
            raise DataError(
                f"rows: expected the columns {', '.join(wanted)}; missing: {', '.join(missing)}"
            )
        left_out = tuple(name for name in named if name not in wanted)
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


def _raw_certificate(folder: RunFolder) -> Path:
    """The certificate in raw units: its own file where the bound was meant in others."""
    return folder.raw_certificate if folder.raw_certificate.is_file() else folder.certificate


def _outputs(network: Network, rows: Array) -> Array:
    """The network in double precision, as its certificate speaks of it."""
    module = build_module(network).double().eval()
    shape = network.input_shape or (rows.shape[1],)
    with torch.no_grad():
        found: Tensor = module(torch.from_numpy(rows).reshape(-1, *shape))
    return np.asarray(found.numpy())


def _numbered(folder: RunFolder, outputs: int) -> tuple[str, ...]:
    """Classes without names, where the run was judged as a classifier."""
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    task = summary.get("evaluation", {}).get("task")
    return tuple(str(k) for k in range(outputs)) if task == "classification" else ()


def _classes(scores: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    if scores.shape[1] == 1:
        return np.asarray(scores[:, 0] > 0.0).astype(np.int64)
    return np.asarray(scores.argmax(axis=1))


def _radii(
    network: Network, raw: Array, picked: Any, certificate: Certificate, units: Units
) -> Array:
    """Proven radii of the predicted classes, in raw units."""
    labels = torch.from_numpy(picked)
    own = units if certificate.units is not None else None
    found = radii_of(network, torch.from_numpy(raw), labels, certificate, units=own)
    return np.asarray(found.numpy())
