"""The one table of activations: each kind's options and its true slope range.

The slope range of a scalar function ``phi`` is the interval of its difference quotients,

    alpha <= (phi(u) - phi(v)) / (u - v) <= beta        for all u != v,

which for a continuous, piecewise differentiable ``phi`` is the range of its derivative.  End points
that are not floating-point numbers are rounded outwards.  GELU and SiLU leave ``[0, 1]``: treating
them like ReLU certifies too little.

Every one of the smooth ones that overshoot has the form ``phi(x) = x g(x)`` with
``g(x) + g(-x) = 1``, so ``phi'(x) + phi'(-x) = 1`` and the least slope is 1 minus the greatest:

* SiLU, ``g`` the logistic function: ``phi'' = 0`` where ``x tanh(x / 2) = 2``, and there
  ``phi' = 1/2 + x/4``;
* GELU, ``g = Phi`` the normal distribution: ``phi'' = (2 - x^2) Phi'(x)``, so the greatest slope is
  ``Phi(sqrt 2) + sqrt 2 Phi'(sqrt 2)``;
* GELU's tanh form: the root of ``phi''`` near 1.4185, found numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from ..errors import NetworkError, UnsupportedModule

Options = Mapping[str, Any]
Array = npt.NDArray[np.float64]


class SlopeRange(NamedTuple):
    """Least and greatest difference quotient of a scalar activation."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    Attributes:
        slopes: from the options to the slope range.
        defaults: the options and their default values; every other option is refused.
        value: the function, from the options, its input ``(batch, *)`` and the layer's arrays.
        problem: from the options to what is wrong with them, or ``None``.
        arrays: names of the per-neuron arrays that the layer holds.
        jump: how far torch's own evaluation is from the function, beside its rounding.
    """

    slopes: Callable[[Options], SlopeRange]
    defaults: Mapping[str, float | str]
    value: Callable[[Options, Array, Mapping[str, Array]], Array]
    problem: Callable[[Options], str | None] = lambda options: None
    arrays: tuple[str, ...] = ()
    jump: Callable[[Options], float] = lambda options: 0.0


# Correctly rounded decimals, then one step outwards.
_SILU_MAX = math.nextafter(1.0998393201288670, 2.0)
_GELU_MAX = {
    "none": math.nextafter(1.1289041451851548, 2.0),
    "tanh": math.nextafter(1.1289930686587718, 2.0),
}

# Beyond beta x = threshold torch replaces softplus by x.  At 20 that jump is 2e-9, below a float32
# rounding; an earlier switch is a real discontinuity, for which no Lipschitz constant exists.
_SOFTPLUS_THRESHOLD = 20.0


def _fixed(alpha: float, beta: float) -> Callable[[Options], SlopeRange]:
    return lambda options: SlopeRange(alpha, beta)


def _overshoot(greatest: float) -> SlopeRange:
    """``phi'(x) + phi'(-x) = 1``: the least slope is 1 minus the greatest, rounded outwards."""
    return SlopeRange(math.nextafter(1.0 - greatest, -1.0), greatest)


def _leaky_relu(options: Options) -> SlopeRange:
    slope = float(options["negative_slope"])
    return SlopeRange(min(slope, 1.0), max(slope, 1.0))


def _elu(options: Options) -> SlopeRange:
    """``phi' = 1`` for x > 0 and ``a e^x``, between 0 and a, below."""
    a = float(options["alpha"])
    return SlopeRange(min(a, 0.0), max(a, 1.0))


def _gelu_problem(options: Options) -> str | None:
    known = isinstance(options["approximate"], str) and options["approximate"] in _GELU_MAX
    return None if known else f"approximate: expected one of {sorted(_GELU_MAX)}"


def _softplus_problem(options: Options) -> str | None:
    if options["beta"] == 0.0:
        return "beta: expected a number other than 0"
    if options["threshold"] < _SOFTPLUS_THRESHOLD:
        return (
            f"threshold: expected at least {_SOFTPLUS_THRESHOLD:g} (below it torch's softplus "
            "jumps, and a jump has no Lipschitz constant)"
        )
    return None


def _hardtanh_problem(options: Options) -> str | None:
    return None if options["min_val"] < options["max_val"] else "min_val: expected below max_val"


def _elu_value(o: Options, z: Array, arrays: Mapping[str, Array]) -> Array:
    return np.where(z > 0.0, z, o["alpha"] * np.expm1(np.minimum(z, 0.0)))


def _softplus_value(o: Options, z: Array, arrays: Mapping[str, Array]) -> Array:
    scaled = o["beta"] * z
    return np.where(scaled > o["threshold"], z, np.logaddexp(scaled, 0.0) / o["beta"])


def _gelu_value(o: Options, z: Array, arrays: Mapping[str, Array]) -> Array:
    if o["approximate"] == "none":
        value: Array = z * np.asarray(special.ndtr(z))
        return value
    inner = math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)
    return np.asarray(0.5 * z * (1.0 + np.tanh(inner)))


def _pair_clip_value(o: Options, z: Array, arrays: Mapping[str, Array]) -> Array:
    """Of every pair, the first at most ``cap`` and the second at least ``floor``."""
    cap, floor = arrays["cap"], arrays["floor"]
    free = np.full_like(cap, math.inf)
    low, high = (np.stack(ends, axis=1) for ends in ((-free, floor), (cap, free)))
    return np.clip(z, low.reshape(z.shape[1:]), high.reshape(z.shape[1:]))


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(_fixed(0.0, 1.0), {}, lambda o, z, arrays: np.maximum(z, 0.0)),
    "leaky_relu": Activation(
        _leaky_relu,
        {"negative_slope": 0.01},
        lambda o, z, arrays: np.where(z > 0.0, z, o["negative_slope"] * z),
    ),
    "elu": Activation(_elu, {"alpha": 1.0}, _elu_value),
    "tanh": Activation(_fixed(0.0, 1.0), {}, lambda o, z, arrays: np.tanh(z)),
    "sigmoid": Activation(_fixed(0.0, 0.25), {}, lambda o, z, arrays: special.expit(z)),
    # phi' is the logistic function of beta x, whatever beta.
    "softplus": Activation(
        _fixed(0.0, 1.0),
        {"beta": 1.0, "threshold": 20.0},
        _softplus_value,
        _softplus_problem,
        jump=lambda o: math.exp(-o["threshold"]) / abs(o["beta"]),
    ),
    "hardtanh": Activation(
        _fixed(0.0, 1.0),
        {"min_val": -1.0, "max_val": 1.0},
        lambda o, z, arrays: np.clip(z, o["min_val"], o["max_val"]),
        _hardtanh_problem,
    ),
    "gelu": Activation(
        lambda options: _overshoot(_GELU_MAX[options["approximate"]]),
        {"approximate": "none"},
        _gelu_value,
        _gelu_problem,
    ),
    "silu": Activation(
        lambda options: _overshoot(_SILU_MAX), {}, lambda o, z, arrays: z * special.expit(z)
    ),
    "clipped_relu": Activation(
        _fixed(0.0, 1.0),
        {},
        lambda o, z, arrays: np.clip(z, 0.0, arrays["threshold"].reshape(z.shape[1:])),
        arrays=("threshold",),
    ),
    "pair_clip": Activation(_fixed(0.0, 1.0), {}, _pair_clip_value, arrays=("cap", "floor")),
}


def check_activation(kind: str, name: str, options: Options) -> None:
    """Raise :class:`UnsupportedModule` unless ``options`` are what ``kind`` takes.

    Numbers must be finite; ``name`` is the layer's qualified name, for the message.
    """
    row = ACTIVATIONS[kind]
    if set(options) != set(row.defaults):
        raise UnsupportedModule(
            f"{name}: {kind} takes the options {sorted(row.defaults)}, got {sorted(options)}"
        )
    for key, default in row.defaults.items():
        value = options[key]
        if isinstance(default, float) and not _is_finite_number(value):
            raise UnsupportedModule(
                f"{name}: {kind}'s {key}: expected a finite number, got {value!r}"
            )
    problem = row.problem(options)
    if problem is not None:
        raise UnsupportedModule(f"{name}: {kind}'s {problem}, got {dict(options)}")


def slope_range(kind: str, options: Options | None = None) -> SlopeRange:
    """Slope range ``[alpha, beta]`` of one activation; missing options take their defaults.

    Example:
        >>> slope_range("relu")
        SlopeRange(alpha=0.0, beta=1.0)
        >>> slope_range("leaky_relu", {"negative_slope": 1.5})
        SlopeRange(alpha=1.0, beta=1.5)

    Raises:
        UnsupportedModule: for a kind that is not in the table, or options it does not take.
    """
    if kind not in ACTIVATIONS:
        raise UnsupportedModule(
            f"activation {kind!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    complete = {**ACTIVATIONS[kind].defaults, **(options or {})}
    check_activation(kind, kind, complete)
    return ACTIVATIONS[kind].slopes(complete)


def as_computed(kind: str, options: Options, types: Collection[Any]) -> Options:
    """The options of an activation as they act between weights of these NumPy types.

    Kernels of float32 (and of shorter types) round them to float32: ``LeakyReLU(1.1)`` there has
    the slope 1.10000002384, which its ONNX file holds as well.

    Example:
        >>> import numpy as np
        >>> as_computed("leaky_relu", {"negative_slope": 1.1}, {np.dtype("float32")})
        {'negative_slope': 1.100000023841858}
    """
    if kind not in ACTIVATIONS or not types or any(np.dtype(t).itemsize > 4 for t in types):
        return options
    with np.errstate(over="ignore"):
        return {k: v if isinstance(v, str) else float(np.float32(v)) for k, v in options.items()}


def check_arrays(kind: str, name: str, arrays: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise :class:`NetworkError` unless an activation's thresholds fit an input of ``shape``.

    One per neuron (clipped ReLU: at least 0) or one per pair.
    """
    for key in ACTIVATIONS[kind].arrays:
        array, neurons = arrays.get(f"{name}.{key}"), 1 if key == "threshold" else 2
        expected = (shape[0] // neurons, *shape[1:])
        flat = len(shape) == 1 and array is not None and array.size == expected[0]
        fits = array is not None and (array.shape == expected or flat)
        if array is None or shape[0] % neurons or not fits:
            raise NetworkError(
                f"{name}.{key}: expected an array of shape {expected}, one threshold per "
                f"{'neuron' if neurons == 1 else 'pair'}, got "
                f"{'none' if array is None else array.shape}"
            )
        if key == "threshold" and float(array.min()) < 0.0:
            raise NetworkError(
                f"{name}.threshold: expected thresholds >= 0, got {float(array.min()):g}; "
                "clamp them (admm_lip.networks.clipped.keep_thresholds)"
            )


def _is_finite_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number of more than 308 digits
        return False
