"""What has been read of a network so far, as steps on a torus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import CertificateError
from ...float64 import U
from ...networks.layer_spec import INPUT, LayerSpec
from ...networks.layers import Array, Shape
from ...networks.network import Network
from .steps import ZERO_PADDING, Correlation, Pair, Pointwise, Step


class NotShiftInvariant(CertificateError):
    """A layer that no torus part can hold, by name, with the reason."""


@dataclass(eq=False)
class Reading:
    """What has been read so far.

    Attributes:
        waiting: the layers that are still to be read.
        sources: of every layer, the values that it takes.
        live: which channels of the state every value that is still needed takes.
        clean: values that are 0 outside their image.
        scale: how many rows and columns of the input are one of the state.
        least: rows and columns that the input's torus must have at least.
        exact: those that it must have, where a layer reads around the edge of the image itself.
        around: values with their circular padding: rows above and below, columns left and right.
        steps: the steps so far.
    """

    network: Network
    shapes: Mapping[str, Shape]
    sources: Mapping[str, tuple[str, ...]]
    waiting: list[LayerSpec]
    live: dict[str, list[int]]
    clean: set[str] = field(default_factory=lambda: {INPUT})
    scale: Pair = (1, 1)
    least: list[int] = field(default_factory=lambda: [1, 1])
    exact: list[int | None] = field(default_factory=lambda: [None, None])
    around: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def copied(self) -> Reading:
        """The same, to be read on by itself."""
        return replace(
            self,
            waiting=[*self.waiting],
            clean={*self.clean},
            least=[*self.least],
            exact=[*self.exact],
            around={**self.around},
            steps=[*self.steps],
        )

    def needs(self, name: str, sides: Sequence[int], around: Sequence[bool]) -> None:
        """The state's torus must have so many rows and columns: these, or at least these.

        Args:
            name: of the layer that asks.
            sides: rows and columns.
            around: of each, whether no more will do: what is read beyond the image is the image.

        Raises:
            NotShiftInvariant: where no torus fits all layers.
        """
        for axis, (side, only) in enumerate(zip(sides, around, strict=True)):
            size = side * self.scale[axis]
            if only and self.exact[axis] not in (None, size):
                raise NotShiftInvariant(f"{name}: pads another image around than layers before it")
            self.exact[axis] = size if only else self.exact[axis]
            self.least[axis] = max(self.least[axis], size)
        self.fits(name)

    def fits(self, name: str) -> None:
        """Raise :class:`NotShiftInvariant` where the image's own torus does not fit the layers."""
        for exact, least, scale in zip(self.exact, self.least, self.scale, strict=True):
            if exact is not None and (exact < least or exact % scale):
                raise NotShiftInvariant(
                    f"{name}: circular padding needs a torus of the image's {exact} rows or "
                    f"columns, but other layers need {least} of them, a multiple of {scale}"
                )

    def grid(self) -> Pair:
        """Rows and columns of the input's torus."""
        rows, columns = (
            exact or scale * math.ceil(least / scale)
            for exact, least, scale in zip(self.exact, self.least, self.scale, strict=True)
        )
        return rows, columns

    def kind_of(self, name: str) -> str:
        """What a value is made by."""
        return next((s.kind for s in self.network.layers if s.name == name), INPUT)

    @property
    def width(self) -> int:
        """Channels of the state; a value and the same with its circular padding have the same."""
        return 1 + max(row for rows in self.live.values() for row in rows)

    def kept(self, but: Sequence[LayerSpec]) -> list[str]:
        """The values that other layers, still to be read, take."""
        skipped = {spec.name for spec in but}
        wanted = {n for s in self.waiting if s.name not in skipped for n in self.sources[s.name]}
        return [name for name in self.live if name in wanted]


def mix(
    reading: Reading, made: Mapping[str, Array], kept: Sequence[str], error: float = 0.0
) -> None:
    """A step without a window: new values as matrices of the whole state, others pass."""
    passing = {name: placed(reading, name, np.eye(len(reading.live[name]))) for name in kept}
    rows: list[Array] = []
    live: dict[str, list[int]] = {}
    for name, matrix in {**passing, **made}.items():
        live[name] = [*range(len(rows), len(rows) + len(matrix))]
        rows.extend(matrix)
    reading.steps.append(Correlation(np.array(rows)[:, :, None, None], error=error))
    reading.live = live


def merge(reading: Reading) -> None:
    """The last step, a selection or a sum, made part of the window before it, if there is one."""
    first, last = (None, None, *reading.steps)[-2:]
    if not isinstance(first, Correlation) or not isinstance(last, Correlation):
        return
    matrix = last.kernel[:, :, 0, 0]
    if not np.isin(matrix, (0.0, 1.0)).all():
        return
    kernel, sizes = (
        np.einsum("ab,bird->aird", matrix, k) for k in (first.kernel, abs(first.kernel))
    )
    terms = np.einsum("ab,bird->aird", matrix, (first.kernel != 0.0).astype(float))
    rounded = float(np.sqrt((np.where(terms > 1.0, terms * sizes, 0.0) ** 2).sum()))
    grown = math.sqrt(matrix.sum(axis=0).max() * matrix.sum(axis=1).max())
    error = (grown * first.error + U * rounded) * 1.01
    reading.steps[-2:] = [Correlation(kernel, first.start, first.stride, error)]


def placed(reading: Reading, name: str, matrix: Array) -> Array:
    """A matrix of one value as one of the whole state."""
    whole = np.zeros((len(matrix), reading.width))
    whole[:, reading.live[name]] = matrix
    return whole


def renamed(reading: Reading, layer: LayerSpec) -> None:
    """A value under another name; a copy of it where the old one is needed as well."""
    (source,) = reading.sources[layer.name]
    if source in reading.clean:
        reading.clean.add(layer.name)
    kept = reading.kept([layer])
    if any(reading.live[name] == reading.live[source] for name in kept):
        whole = placed(reading, source, np.eye(len(reading.live[source])))
        mix(reading, {layer.name: whole}, kept)
    else:
        reading.live = {
            layer.name if name == source else name: rows for name, rows in reading.live.items()
        }
    reading.waiting.remove(layer)


def zeroed(reading: Reading, name: str) -> None:
    """A value is 0 outside its image from here on: passes where it stands, slope 1, else slope 0.

    Zero padding is such an activation where none of the network's has come before: a multiplier
    per channel stands for it.
    """
    rows = np.array(reading.live[name])
    none = np.zeros(len(rows))
    reading.steps.append(Pointwise(ZERO_PADDING, rows, none, none + 1.0))
    reading.clean.add(name)
