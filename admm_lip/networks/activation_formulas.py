"""The formulas of ``activation_table.py`` that take more than a line: values, slopes, knots."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from ..errors import UnsupportedModule
from .activation_row import Curve, Knot, Options, SlopeRange
from .scalar_math import Math


def outwards(low: float, high: float) -> SlopeRange:
    """A range whose ends were rounded once, one step wider."""
    return SlopeRange(math.nextafter(low, -math.inf), math.nextafter(high, math.inf))


# Correctly rounded decimals, then one step outwards.
SILU_MAX = math.nextafter(1.0998393201288670, 2.0)
GELU_MAX = {"none": math.nextafter(1.1289041451851548, 2.0), "tanh": 1.12899309}
MISH = outwards(-0.1125261223894625564, 1.088498161251727861)
# Roots of phi'' > 0: sqrt 2; x s'(x) tanh s(x) = (1 + 6 c x^2) / (1 + 3 c x^2) for the tanh form;
# x tanh(x / 2) = 2 for SiLU.
GELU_TURNS = {"none": math.sqrt(2.0), "tanh": 1.4185040087908284}
SILU_TURN = 2.3993572805154677
MISH_TURNS = (-2.256376396360793, 1.4905711794854284)

# Beyond beta x = threshold torch replaces softplus by x.  At 20 that jump is 2e-9, below a float32
# rounding; an earlier switch is a real discontinuity, for which no Lipschitz constant exists.
SOFTPLUS_THRESHOLD = 20.0


def fixed(alpha: float, beta: float) -> Callable[[Options], SlopeRange]:
    """A range that no option changes."""
    return lambda options: SlopeRange(alpha, beta)


def sign(value: float) -> int:
    """-1, 0 or 1."""
    return (value > 0.0) - (value < 0.0)


def overshoot(greatest: float) -> SlopeRange:
    """``phi'(x) + phi'(-x) = 1``: the least slope is 1 minus the greatest, rounded outwards."""
    return SlopeRange(math.nextafter(1.0 - greatest, -1.0), greatest)


def smooth(places: Mapping[float, float]) -> tuple[Knot, ...]:
    """Knots where ``phi'`` turns, with the slopes there."""
    return tuple(Knot(at, slope, slope, 0) for at, slope in places.items())


def turning(places: Mapping[float, float], *signs: int, **more: Any) -> dict[str, Any]:
    """The fields of a curve whose knots no option moves."""
    knots = smooth(places)
    return {"knots": lambda o: knots, "signs": lambda o: signs, **more}


def bent(left: float, right: float) -> tuple[Knot, ...]:
    """The knot at 0 of a function that has these slopes beside it."""
    return (Knot(0.0, min(left, right), max(left, right), sign(right - left)),)


# --- LeakyReLU and its like: two lines ------------------------------------------------------------


def leaky(options: Options) -> SlopeRange:
    """``phi'`` is 1 for x > 0 and the slope below."""
    slope = float(options["negative_slope"])
    return SlopeRange(min(slope, 1.0), max(slope, 1.0))


def prelu_parts(arrays: Options) -> list[tuple[str, Options, int]]:
    """Runs of neurons of one slope."""
    slopes = np.asarray(arrays["weight"], dtype=np.float64).ravel().tolist()
    runs = [(slope, len(list(run))) for slope, run in groupby(slopes)]
    return [("leaky_relu", {"negative_slope": slope}, count) for slope, count in runs]


def per_channel(arrays: Options, shape: tuple[int, ...]) -> dict[str, Any]:
    """One number for all, or one per channel (feature)."""
    weight = np.asarray(arrays["weight"], dtype=np.float64)
    columns = weight.reshape(-1, *(1 for _ in shape[1:]))
    return {"weight": np.broadcast_to(columns, shape)}


# --- Exponentials below 0 -------------------------------------------------------------------------


def exponential(m: Math, slope: Any, alpha: Any, rate: Any, z: Any) -> Any:
    """``slope z`` above 0, ``slope alpha (e^(rate z) - 1)`` below."""
    below = slope * alpha * m.expm1(m.clip(z, -math.inf, 0.0) * rate)
    return m.pieces(z, 0.0, below, slope * z)


def exponential_slope(m: Math, slope: Any, alpha: Any, rate: Any, z: Any) -> Any:
    """Its derivative."""
    below = slope * alpha * rate * m.exp(m.clip(z, -math.inf, 0.0) * rate)
    return m.pieces(z, 0.0, below, slope)


def elu(options: Options) -> SlopeRange:
    """``phi' = 1`` for x > 0 and ``a e^x``, between 0 and a, below."""
    a = float(options["alpha"])
    return SlopeRange(min(a, 0.0), max(a, 1.0))


def selu(options: Options) -> SlopeRange:
    """``phi'`` is the scale for x > 0 and between 0 and scale times alpha below."""
    scale, steep = float(options["scale"]), float(options["scale"]) * float(options["alpha"])
    below = outwards(steep, steep)
    return SlopeRange(min(below.alpha, 0.0, scale), max(below.beta, 0.0, scale))


def selu_curve() -> Curve:
    """What is known of SELU on intervals."""

    def steep(o: Options) -> float:
        return float(o["scale"]) * float(o["alpha"])

    return Curve(
        lambda m, o, z: exponential_slope(m, o["scale"], o["alpha"], 1.0, z),
        lambda o: (Knot(0.0, *between(steep(o), o["scale"]), sign(o["scale"] - steep(o))),),
        lambda o: (sign(steep(o)), 0),
        peaked=lambda o: steep(o) >= 0.0 and o["scale"] >= 0.0,
    )


def between(rounded: float, other: float) -> SlopeRange:
    """The range of two slopes, the first of them rounded once."""
    low, high = outwards(rounded, rounded)
    return SlopeRange(min(low, other), max(high, other))


def celu_problem(options: Options) -> str | None:
    """Below 0 the exponential grows."""
    return None if options["alpha"] > 0.0 else "alpha: expected above 0 (below it has no bound)"


# --- x times a step -------------------------------------------------------------------------------


def gelu(m: Math, o: Options, z: Any) -> Any:
    """``x Phi(x)``, or its approximation by tanh."""
    if o["approximate"] == "none":
        return 0.5 * z * m.erfc(-z * math.sqrt(0.5))
    return 0.5 * z * (1.0 + m.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def gelu_slope(m: Math, o: Options, z: Any) -> Any:
    """Its derivative."""
    if o["approximate"] == "none":
        density = m.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return 0.5 * m.erfc(-z / math.sqrt(2.0)) + z * density
    z = m.clip(z, -20.0, 20.0)  # beyond, phi' is 0 or 1 to the last place
    k, c = math.sqrt(2.0 / math.pi), 0.044715
    t = m.tanh(k * (z + c * z**3))
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * k * (1.0 + 3.0 * c * z * z)


def gelu_knots(options: Options) -> tuple[Knot, ...]:
    """Both turns, a mirror image of each other."""
    kind = str(options["approximate"])
    least, greatest = overshoot(GELU_MAX[kind])
    return smooth({-GELU_TURNS[kind]: least, GELU_TURNS[kind]: greatest})


def gelu_problem(options: Options) -> str | None:
    """One of two forms."""
    known = isinstance(options["approximate"], str) and options["approximate"] in GELU_MAX
    return None if known else f"approximate: expected one of {sorted(GELU_MAX)}"


def silu_slope(m: Math, o: Options, z: Any) -> Any:
    """With ``1 - g(z) = g(-z)``."""
    return m.sigmoid(z) * (1.0 + z * m.sigmoid(-z))


def mish_slope(m: Math, o: Options, z: Any) -> Any:
    """With the derivative of log(1 + e^z), the logistic function."""
    t = m.tanh(m.softplus(z))
    return t + z * m.sigmoid(z) * (1.0 - t * t)


# --- Clipped lines --------------------------------------------------------------------------------


def inside(m: Math, z: Any, low: Any, high: Any, within: Any, right: Any) -> Any:
    """0 up to ``low``, ``within`` up to ``high``, then ``right``."""
    return m.pieces(z, low, 0.0, m.pieces(z, high, within, right))


def clip_curve(ends: Callable[[Options], tuple[Any, Any]]) -> Curve:
    """What is known on intervals of a line of slope 1 that stops at two ends."""
    return Curve(
        lambda m, o, z: inside(m, z, *ends(o), 1.0, 0.0),
        lambda o: (Knot(ends(o)[0], 0.0, 1.0, 1), Knot(ends(o)[1], 0.0, 1.0, -1)),
        lambda o: (0, 0, 0),
        peaked=lambda o: True,
    )


def hardtanh_problem(options: Options) -> str | None:
    """Limits in order."""
    return None if options["min_val"] < options["max_val"] else "min_val: expected below max_val"


def hardsigmoid_ends(options: Options) -> tuple[float, float]:
    """Where the line meets 0 and 1."""
    ends = [(end - options["beta"]) / options["alpha"] for end in (0.0, 1.0)]
    return min(ends), max(ends)


def hardsigmoid_knots(options: Options) -> tuple[Knot, ...]:
    """Both ends of the line."""
    slope, (low, high) = float(options["alpha"]), hardsigmoid_ends(options)
    ends = min(slope, 0.0), max(slope, 0.0)
    return Knot(low, *ends, sign(slope)), Knot(high, *ends, -sign(slope))


def hardsigmoid_slopes(options: Options) -> SlopeRange:
    """One step wider: torch's slope is 1/6, which no float is."""
    slope = float(options["alpha"])
    return SlopeRange(
        min(math.nextafter(slope, -math.inf), 0.0), max(math.nextafter(slope, math.inf), 0.0)
    )


def not_zero(name: str) -> Callable[[Options], str | None]:
    """Refuses 0."""
    return lambda o: None if o[name] != 0.0 else f"{name}: expected a number other than 0"


def softplus_problem(options: Options) -> str | None:
    """Where torch switches to x."""
    if options["threshold"] < SOFTPLUS_THRESHOLD:
        return (
            f"threshold: expected at least {SOFTPLUS_THRESHOLD:g} (below it torch's softplus "
            "jumps, and a jump has no Lipschitz constant)"
        )
    return not_zero("beta")(options)


def ends_of_pairs(arrays: Options, shape: tuple[int, ...]) -> dict[str, Any]:
    """Of every pair, the first at most ``cap`` and the second at least ``floor``."""
    cap, floor = arrays["cap"], arrays["floor"]
    free = np.full_like(cap, math.inf)
    low, high = (np.stack(ends, axis=1) for ends in ((-free, floor), (cap, free)))
    return {"low": low.reshape(shape), "high": high.reshape(shape)}


# Of a promised activation: what Python's qualified names are made of.
PROMISED_NAME = re.compile(r"[\w.<>]{1,200}")


def promise_problem(options: Options) -> str | None:
    """What is wrong with a promised interval, or with the name that it is promised for."""
    name = options["name"]
    if not isinstance(name, str) or PROMISED_NAME.fullmatch(name) is None:
        return "name: expected letters, digits, '_', '.', '<' and '>', at most 200"
    if not options["alpha"] < options["beta"]:
        return "interval: expected alpha < beta"
    return None


def promised_only(options: Options) -> UnsupportedModule:
    """Why an activation that is known by its slopes alone is not evaluated."""
    return UnsupportedModule(
        f"{options['name']}: only its slopes [{options['alpha']}, {options['beta']}] are promised "
        "(admm_lip.register_activation), the function itself is not known; bounds that hold for "
        "all inputs can be certified and verified, but what evaluates it needs one of the "
        "supported activations"
    )


def promised_value(m: Math, options: Options, z: Any) -> Any:
    """Refused: there is no formula."""
    raise promised_only(options)
