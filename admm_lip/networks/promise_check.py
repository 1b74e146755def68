"""Whether a promised activation keeps, where it is looked at, what was promised of it.

It is no proof: a function is evaluated in float64 at many points, and refused where

* an entry of what it gives depends on another entry, on its place or on the call;
* a difference quotient is outside the promised slopes by more than rounding explains.  Quotients
  of neighbouring points suffice, since those of all others are averages of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..errors import UnsupportedModule
from ..float64 import U
from .activation_row import LIBRARY, SlopeRange
from .activations import ACTIVATIONS, is_known
from .layers import Array, Shape
from .live_check import run
from .network import LayerSpec, Network
from .trace import Step

# The points: so many on either side of 0, at each scale.
_SCALES = (1e-3, 0.1, 1.0, 10.0, 100.0, 1e4)
_COUNT = 2000
# Beyond, a formula may overflow in float64 where the function does not.
_FINITE = 100.0
_ROWS = 4


def check_promises(chain: Sequence[Step], network: Network) -> None:
    """Look at every promised activation of a module that was read, in evaluation mode.

    Args:
        chain: its layers in order.
        network: what was read, one layer for each of ``chain``.

    Raises:
        UnsupportedModule: by the layer's name, for a promise that is not kept, with the points.
    """
    if network.is_known:
        return
    shapes = network.shapes()
    for step, spec in zip(chain, network.layers, strict=True):
        if not is_known(spec.kind):
            _check(step.module, spec, shapes[spec.name])


def _check(module: nn.Module, spec: LayerSpec, shape: Shape) -> None:
    label = f"{spec.name} ({spec.options['name']})"
    slopes = ACTIVATIONS[spec.kind].slopes(spec.options)
    phi = _in_float64(label, module)
    error = LIBRARY * U * max(1.0, abs(slopes.alpha), abs(slopes.beta))

    def off(x: Array, value: Array) -> Array:
        """How far rounding may have moved the values."""
        return np.asarray(error * (1.0 + np.abs(x) + np.abs(value)))

    _refuse_mixing(label, phi, off, shape)
    points = _points()
    filled = np.resize(points, (-(-len(points) // int(np.prod(shape))), *shape))
    values = phi(filled).reshape(-1)[: len(points)]
    _refuse_steeper(label, slopes, points, values, off(points, values))


_Values = Callable[[Array], Array]


def _in_float64(label: str, module: nn.Module) -> _Values:
    """A copy of the module as a function of arrays.

    One that rounds to float32 in between has steps there, which are steeper than its slopes.
    """
    try:
        own = copy.deepcopy(module).to("cpu", torch.float64)
    except Exception as error:
        raise UnsupportedModule(
            f"{label}: cannot be copied to float64 ({type(error).__name__}: {error}); a promised "
            "activation is evaluated there"
        ) from error

    def values(x: Array) -> Array:
        found = run(label, own, torch.from_numpy(x))
        if found.shape != x.shape:
            raise UnsupportedModule(
                f"{label}: expected an activation that acts on every entry by itself, got shape "
                f"{tuple(found.shape)} from {x.shape}"
            )
        return np.asarray(found.double().numpy())

    return values


def _points() -> Array:
    """Points of several scales, evenly and at random, both signs, in ascending order."""
    generator = np.random.default_rng(0)
    parts: list[Array] = [np.zeros(1)]
    for scale in _SCALES:
        parts += [np.linspace(-scale, scale, 2 * _COUNT + 1)]
        parts += [scale * generator.standard_normal(_COUNT)]
    return np.unique(np.concatenate(parts))


def _mixtures(x: Array, generator: np.random.Generator) -> Iterator[npt.NDArray[np.bool_]]:
    """Which entries of ``x`` stay while the others become other ones: half of them, or one."""
    for share in (0.5, 0.5):
        yield generator.random(x.shape) < share
    alone = np.zeros(x.size, dtype=bool)
    alone[generator.integers(x.size)] = True
    yield alone.reshape(x.shape)


def _refuse_mixing(label: str, phi: _Values, off: Callable[..., Array], shape: Shape) -> None:
    """Refuse what is not one function of every entry by itself."""
    generator = np.random.default_rng(1)
    x, other = 3.0 * generator.standard_normal((2, _ROWS, *shape))
    value = phi(x)
    order = generator.permutation(x.size)
    moved = x.reshape(-1)[order].reshape(x.shape)
    pairs = [(phi(moved), value.reshape(-1)[order].reshape(x.shape), moved)]
    for stays in _mixtures(x, generator):
        found = phi(np.where(stays, x, other))
        pairs.append((found[stays], value[stays], x[stays]))
    for found, expected, at in pairs:
        with np.errstate(invalid="ignore"):
            same = np.abs(found - expected) <= 2.0 * off(at, expected)
        # What is no number is for the points to find.
        if not bool((same | ~(np.isfinite(found) | np.isfinite(expected))).all()):
            raise UnsupportedModule(
                f"{label}: expected an activation that acts on every entry by itself, by the same "
                "function at every place and call; what it gives at one entry changes with the "
                "others, or with the place"
            )


def _refuse_steeper(
    label: str, slopes: SlopeRange, points: Array, values: Array, off: Array
) -> None:
    """Refuse, with the two points, a quotient that was promised not to be."""
    finite = np.isfinite(values)
    wrong = ~finite & (np.abs(points) <= _FINITE)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UnsupportedModule(f"{label}: gives {values[at]} at {points[at]:.9g}")
    points, values, off = points[finite], values[finite], off[finite]
    step = np.diff(points)
    quotient, slack = np.diff(values) / step, (off[1:] + off[:-1]) / step
    beyond = np.maximum(slopes.alpha - quotient, quotient - slopes.beta) - slack
    k = int(np.argmax(beyond))
    if not beyond[k] <= 0.0:
        raise UnsupportedModule(
            f"{label}: was promised slopes in [{slopes.alpha}, {slopes.beta}], but between "
            f"{points[k]:.17g} and {points[k + 1]:.17g} it goes from {values[k]:.9g} to "
            f"{values[k + 1]:.9g}, a quotient of {quotient[k]:.9g}; promise slopes that hold for "
            f"all points (those looked at are from {quotient.min():.9g} to {quotient.max():.9g})"
        )
