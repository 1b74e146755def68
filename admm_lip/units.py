"""Units: how the numbers that a model takes and gives are those of a user's data.

A model f is mostly trained on standardised numbers.  What its user means is

    F(x) = output_shift + output_scale * f((x - input_shift) / input_scale),

a function of raw rows.  Its Lipschitz constant is that of f with ``W_0 diag(1 / input_scale)`` as
its first matrix and ``diag(output_scale) W_l`` as its last one.  NumPy only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UnitsError, shown

Array = NDArray[np.float64]
Numbers = float | tuple[float, ...]
Names = tuple[str, ...]

# Scales outside this range would overflow a weight or make it vanish.
SCALES = (2.0**-200, 2.0**200)
# A column whose spread is this share of its mean is constant up to rounding.
_CONSTANT = 1e-12
# Names that are written out in a line for a person.
_SHOWN = 4


@dataclass(frozen=True)
class Units:
    """Shift and scale of a model's inputs and outputs, with their names.

    Each number is one for all features (or outputs), or a sequence with one for each; NumPy arrays
    and tensors are read too.

    Args:
        input_shift: subtracted from a raw feature.
        input_scale: what the difference is then divided by, > 0.
        output_scale: what an output is multiplied by, > 0.
        output_shift: then added.
        input_names: of the features, all different.
        output_names: of the outputs, all different.
        input_units: physical units of the raw features, such as ``("m", "kg")``.
        output_units: of the raw outputs.
        classes: where the outputs are scores of classes: their names, in the order of the scores.
            One output and two classes are a classifier that decides at 0.

    Raises:
        UnitsError: naming the field, for a scale that is not a finite number > 0, lengths that do
            not agree, or a name given twice.

    Example:
        >>> units = Units(input_shift=(10.0, 0.0), input_scale=(5.0, 0.1), output_scale=3.0)
        >>> units.to_model([[15.0, 0.2]]).tolist()
        [[1.0, 2.0]]
        >>> units.from_model([[2.0]]).tolist()
        [[6.0]]
        >>> Units.from_json(units.to_json()) == units
        True
    """

    input_shift: Numbers = 0.0
    input_scale: Numbers = 1.0
    output_shift: Numbers = 0.0
    output_scale: Numbers = 1.0
    input_names: Names = ()
    output_names: Names = ()
    input_units: Names = ()
    output_units: Names = ()
    classes: Names = ()

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name in _NAMES:
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for side in ("input", "output"):
            _check_lengths({f: getattr(self, f) for f in (*_NUMBERS, *_NAMES) if side in f})
        for name in ("input_names", "output_names", "classes"):
            _check_different(name, getattr(self, name))
        if len(self.classes) == 1:
            raise UnitsError(f"classes: expected none, or at least 2, got {self.classes!r}")

    @staticmethod
    def standardising(
        inputs: Any, targets: Any = None, input_names: Any = (), output_names: Any = ()
    ) -> Units:
        """The units in which every column has mean 0 and standard deviation 1.

        A constant column has nothing to divide by: its scale is 1.

        Args:
            inputs: raw rows, ``(rows, features)``.
            targets: raw targets of a regression, ``(rows, outputs)``; ``None`` leaves outputs as
                they are.
            input_names: of the features.
            output_names: of the targets.

        Example:
            >>> Units.standardising([[1.0, 7.0], [3.0, 7.0]])
            Units(input_shift=(2.0, 7.0), input_scale=(1.0, 1.0), output_shift=0.0, \
output_scale=1.0)
        """
        shift, scale = _moments(inputs)
        found = Units(input_shift=shift, input_scale=scale, input_names=tuple(input_names))
        if targets is None:
            return replace(found, output_names=tuple(output_names))
        shift, scale = _moments(targets)
        return replace(
            found, output_shift=shift, output_scale=scale, output_names=tuple(output_names)
        )

    def __repr__(self) -> str:
        shown = (f for f in fields(self) if f.name in _NUMBERS or getattr(self, f.name))
        return f"Units({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def to_model(self, raw: Any) -> Array:
        """Raw rows as the model takes them, float64 ``(rows, features)``."""
        return np.asarray((_array(raw) - self.input_shift) / self.input_scale)

    def from_model(self, outputs: Any) -> Array:
        """Outputs of the model in the raw unit, float64 ``(rows, outputs)``."""
        return np.asarray(_array(outputs) * self.output_scale + self.output_shift)

    def target_to_model(self, raw: Any) -> Array:
        """Raw targets as the model gives them, float64 ``(rows, outputs)``."""
        return np.asarray((_array(raw) - self.output_shift) / self.output_scale)

    def of_inputs(self) -> Units:
        """These units with the outputs left as the model gives them."""
        return Units(self.input_shift, self.input_scale, input_names=self.input_names)

    def input_scales(self, inputs: int) -> tuple[float, ...]:
        """One scale for each of so many features.

        Raises:
            UnitsError: where the units are of another number of features.
        """
        return _spread("input_scale", "input feature", self.input_scale, inputs)

    def is_uniform(self, shape: tuple[int, ...]) -> bool:
        """Whether all entries of a channel, the first axis of a sample, have one input scale."""
        scales = np.array(self.input_scales(math.prod(shape))).reshape(shape[0], -1)
        return bool((scales == scales[:, :1]).all())

    def output_scales(self, outputs: int) -> tuple[float, ...]:
        """One scale for each of so many outputs; errors as :meth:`input_scales`."""
        return _spread("output_scale", "output", self.output_scale, outputs)

    def check_fits(self, inputs: int, outputs: int | None = None) -> None:
        """Raise :class:`UnitsError` unless these are the units of so many inputs and outputs."""
        for side, count in (("input", inputs), ("output", outputs)):
            for name in (*_NUMBERS, *_NAMES):
                value = getattr(self, name)
                given = isinstance(value, tuple) and side in name and count is not None
                if given and len(value) not in (0, count):
                    raise UnitsError(
                        f"{name}: expected {count} entries, one per {side} of the network, got "
                        f"{len(value)}"
                    )
        if self.classes and outputs is not None and len(self.classes) != max(outputs, 2):
            raise UnitsError(
                f"classes: expected {max(outputs, 2)}, for a network of {outputs} outputs, got "
                f"{len(self.classes)}"
            )

    @property
    def scales_outputs(self) -> bool:
        """Whether an output is in another unit than the model's."""
        return bool(np.any(np.asarray(self.output_scale) != 1.0))

    def slope_limits(self, lip: float, inputs: int, outputs: int) -> Array:
        """What the constant ``lip`` of f says of each raw slope: ``|dF_i / dx_j|`` at most this.

        ``lip * output_scale_i / input_scale_j``, rounded up; shape ``(outputs, inputs)``.  It is
        what stays readable where the scales of the features differ so much that one constant for
        all of them speaks of the smallest only.

        Example:
            >>> Units(input_scale=(1e6, 1e-6), output_scale=2.0).slope_limits(1.5, 2, 1).round(12)
            array([[3.e-06, 3.e+06]])
        """
        s_in = np.array(self.input_scales(inputs))
        s_out = np.array(self.output_scales(outputs))
        return np.asarray(lip * s_out[:, None] / s_in * (1.0 + 2.0**-50))

    def ratio(self) -> str:
        """The unit of a Lipschitz constant of F, for a person: ``"price [EUR] per (area [m2])"``.

        Example:
            >>> Units(input_names=("area", "age"), output_names=("price",)).ratio()
            'price per (area, age)'
        """
        outputs = _listed(self.output_names, self.output_units, "scores" if self.classes else "")
        names = _listed(self.input_names, self.input_units, "raw input")
        names = f"({names})" if len(self.input_names) > 1 else names
        return f"{outputs or 'raw output'} per {names}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; floats are written so that they read back exactly."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> Units:
        """The inverse of :meth:`to_json`.

        Raises:
            UnitsError: for anything else.
        """
        expected = [f.name for f in fields(cls)]
        if not isinstance(data, dict) or set(data) != set(expected):
            raise UnitsError(f"units: expected an object with {', '.join(expected)}")
        for name in _NUMBERS:
            given = data[name] if isinstance(data[name], list) else [data[name]]
            if not all(type(v) in (int, float) for v in given):
                raise UnitsError(f"{name}: expected a number, or a list of numbers")
        for name in _NAMES:
            if not isinstance(data[name], list):
                raise UnitsError(f"{name}: expected a list of names, got {data[name]!r:.200}")
        return cls(**data)


_NUMBERS = ("input_shift", "input_scale", "output_shift", "output_scale")
_NAMES = ("input_names", "output_names", "input_units", "output_units", "classes")
# Per kind of number, what is admitted and how that is said.
_ADMITTED: dict[str, tuple[str, Callable[[Array], Any]]] = {
    "shift": ("finite numbers", lambda v: np.abs(v) <= sys.float_info.max),
    "scale": ("finite numbers > 0", lambda v: (v >= SCALES[0]) & (v <= SCALES[1])),
}


def _numbers(name: str, given: Any) -> Numbers:
    """One finite number, or a tuple of them."""
    values = _array(given, name)
    expected, admitted = _ADMITTED[name.rpartition("_")[2]]
    if values.size == 0 or not bool(np.all(admitted(values))):
        raise UnitsError(f"{name}: expected {expected}, got {_some(values)}")
    return float(values) if values.ndim == 0 else tuple(values.ravel().tolist())


def _array(given: Any, name: str = "rows") -> Array:
    """Numbers of any kind as float64; a tensor is taken off its device and graph."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    try:
        found = np.asarray(given)
        # Whole numbers beyond int64 are objects to NumPy; texts are no numbers.
        sorts = (int, float, np.number)
        mixed = found.dtype == object and all(isinstance(v, sorts) for v in found.ravel())
        if found.dtype.kind in "biuf" or mixed:
            return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UnitsError(f"{name}: expected numbers that a float holds, got {shown(given)}")


def _some(values: Array) -> str:
    """The first number that is at fault in most cases, and how many there are."""
    worst = [v for v in values.ravel().tolist() if not SCALES[0] <= v <= SCALES[1]]
    return f"{worst[0]!r}" if worst else f"{values.size} numbers"


def _names(name: str, given: Any) -> Names:
    if isinstance(given, str) or not all(isinstance(n, str) and n for n in given):
        raise UnitsError(f"{name}: expected names, texts that are not empty, got {given!r:.200}")
    return tuple(given)


def _check_lengths(values: dict[str, Any]) -> None:
    """Raise unless all sequences that are not empty have one length."""
    lengths = {name: len(v) for name, v in values.items() if isinstance(v, tuple) and v}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise UnitsError(f"{next(iter(lengths))}: expected as many entries in each, got {said}")


def _check_different(name: str, names: Names) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UnitsError(f"{name}: expected different names, got {twice[0]!r} twice")


def _spread(name: str, what: str, scale: Numbers, count: int) -> tuple[float, ...]:
    if isinstance(scale, float):
        return (scale,) * count
    if len(scale) != count:
        raise UnitsError(
            f"{name}: expected {count} finite numbers > 0, one per {what}, got {len(scale)}"
        )
    return scale


def _moments(values: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column, 1 where it is constant."""
    rows = _array(values)
    if rows.ndim != 2 or len(rows) == 0:
        raise UnitsError(f"rows: expected a table (rows, columns), got shape {rows.shape}")
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(std > _CONSTANT * np.abs(mean), std, 1.0)
    return tuple(mean.tolist()), tuple(scale.tolist())


def _listed(names: Names, units: Names, otherwise: str) -> str:
    """``"area [m2], age, ..."``"""
    if not names:
        return otherwise
    own = units or ("",) * len(names)
    said = [f"{n} [{u}]" if u else n for n, u in zip(names, own, strict=True)]
    more = [f"... {len(names)} in all"] if len(names) > _SHOWN else []
    return ", ".join([*said[:_SHOWN], *more])
