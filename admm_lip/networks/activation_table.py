"""The one table of activations: every fact about one stands in its row.

The slope range of a scalar function ``phi`` is the interval of its difference quotients,

    alpha <= (phi(u) - phi(v)) / (u - v) <= beta        for all u != v,

which for a continuous, piecewise differentiable ``phi`` is the range of its derivative.  End points
that are not floating-point numbers are rounded outwards.  GELU, SiLU, Mish and Hardswish leave
``[0, 1]``: treating them like ReLU certifies too little.

Those that overshoot have the form ``phi(x) = x g(x)``.  Where ``g(x) + g(-x) = 1``, also
``phi'(x) + phi'(-x) = 1``, so the least slope is 1 minus the greatest:

* SiLU, ``g`` the logistic function: ``phi'' = 0`` where ``x tanh(x / 2) = 2``, and there
  ``phi' = 1/2 + x/4``;
* GELU, ``g = Phi`` the normal distribution: ``phi'' = (2 - x^2) Phi'(x)``, so the greatest slope is
  ``Phi(sqrt 2) + sqrt 2 Phi'(sqrt 2)``;
* GELU's tanh form: the root of ``phi''`` near 1.4185; the range holds for the constants
  ``sqrt(2 / pi)`` and 0.044715 to within ``2^-22`` of themselves, as float32 keeps them;
* Hardswish: ``phi' = (2 x + 3) / 6`` between -3 and 3;
* Mish, ``x tanh(log(1 + e^x))``: both roots of ``phi''``, near -2.2564 and 1.4906.

Roots and extremes are proven by interval arithmetic on the formulas below
(``tests/activations/test_slope_proofs.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from . import activation_formulas as F
from .activation_row import Activation as Row
from .activation_row import Curve, Knot, SlopeRange, Spelling

ACTIVATIONS: Mapping[str, Row] = {
    "relu": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.clip(z, 0.0, math.inf),
        curve=Curve(
            lambda m, o, z: m.pieces(z, 0.0, 0.0, 1.0), lambda o: F.bent(0.0, 1.0), lambda o: (0, 0)
        ),
        spellings=(
            Spelling(
                "ReLU",
                ("torch.relu", "torch.relu_", "F.relu", ".relu", ".relu_"),
                ("relu", "relu_"),
                "Relu",
            ),
        ),
        roundings=0,
    ),
    "leaky_relu": Row(
        F.leaky,
        lambda m, o, z: m.pieces(z, 0.0, o["negative_slope"] * z, z),
        {"negative_slope": 0.01},
        Curve(
            lambda m, o, z: m.pieces(z, 0.0, o["negative_slope"], 1.0),
            lambda o: F.bent(o["negative_slope"], 1.0),
            lambda o: (0, 0),
        ),
        (
            Spelling(
                "LeakyReLU",
                ("F.leaky_relu",),
                ("leaky_relu", "leaky_relu_"),
                "LeakyRelu",
                {"negative_slope": ("alpha", 0.01)},
            ),
            Spelling("", ("torch.abs", ".abs"), ("abs",), "Abs", fixed={"negative_slope": -1.0}),
        ),
        roundings=1,
    ),
    "prelu": Row(
        F.fixed(-math.inf, math.inf),  # those of its parts
        lambda m, o, z: m.pieces(z, 0.0, o["weight"] * z, z),
        spellings=(Spelling("PReLU"),),
        arrays=("weight",),
        array_shapes=lambda shape: ([(1,), shape[:1]], "one slope, or one per channel"),
        per_neuron=F.per_channel,
        parts=F.prelu_parts,
        roundings=1,
    ),
    "elu": Row(
        F.elu,
        lambda m, o, z: F.exponential(m, 1.0, o["alpha"], 1.0, z),
        {"alpha": 1.0},
        Curve(
            lambda m, o, z: F.exponential_slope(m, 1.0, o["alpha"], 1.0, z),
            lambda o: F.bent(float(o["alpha"]), 1.0),
            lambda o: (F.sign(o["alpha"]), 0),
            peaked=lambda o: bool(o["alpha"] >= 0.0),
        ),
        (
            Spelling(
                "ELU",
                ("F.elu",),
                ("elu", "elu_"),
                "Elu",
                {"alpha": ("alpha", 1.0)},
                needs={"scale": 1, "input_scale": 1},
            ),
        ),
        condition=lambda o: max(1.0, abs(o["alpha"])),
    ),
    "selu": Row(
        F.selu,
        lambda m, o, z: F.exponential(m, o["scale"], o["alpha"], 1.0, z),
        {"alpha": 1.6732632423543772, "scale": 1.0507009873554805},
        F.selu_curve(),
        (
            Spelling(
                "SELU",
                ("F.selu", "torch.selu"),
                ("selu", "selu_"),
                "Selu",
                {
                    "alpha": ("alpha", 1.67326319217681884765625),
                    "scale": ("gamma", 1.05070102214813232421875),
                },
            ),
        ),
        condition=lambda o: max(1.0, abs(o["scale"])) * max(1.0, abs(o["alpha"])),
    ),
    "celu": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: F.exponential(m, 1.0, o["alpha"], 1.0 / o["alpha"], z),
        {"alpha": 1.0},
        Curve(
            lambda m, o, z: F.exponential_slope(m, 1.0, o["alpha"], 1.0 / o["alpha"], z),
            lambda o: F.bent(1.0, 1.0),
            lambda o: (1, 0),
            peaked=lambda o: True,
        ),
        (
            Spelling(
                "CELU",
                ("F.celu", "torch.celu"),
                ("celu", "celu_"),
                "Celu",
                {"alpha": ("alpha", 1.0)},
            ),
        ),
        problem=F.celu_problem,
        condition=lambda o: max(1.0, o["alpha"], 1.0 / o["alpha"]),
    ),
    "tanh": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.tanh(z),
        curve=Curve(
            lambda m, o, z: 1.0 - m.tanh(z) ** 2,
            **F.turning({0.0: 1.0}, 1, -1, peaked=lambda o: True),
        ),
        spellings=(Spelling("Tanh", ("torch.tanh", "F.tanh", ".tanh"), ("tanh", "tanh_"), "Tanh"),),
    ),
    "sigmoid": Row(
        F.fixed(0.0, 0.25),
        lambda m, o, z: m.sigmoid(z),
        curve=Curve(
            lambda m, o, z: m.sigmoid(z) * m.sigmoid(-z),
            **F.turning({0.0: 0.25}, 1, -1, peaked=lambda o: True),
        ),
        spellings=(
            Spelling(
                "Sigmoid",
                ("torch.sigmoid", "F.sigmoid", ".sigmoid"),
                ("sigmoid", "sigmoid_"),
                "Sigmoid",
            ),
        ),
    ),
    # phi' is the logistic function of beta x, whatever beta.
    "softplus": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.softplus(o["beta"] * z) / o["beta"],
        {"beta": 1.0, "threshold": 20.0},
        Curve(
            lambda m, o, z: m.sigmoid(o["beta"] * z),
            lambda o: (),
            lambda o: (F.sign(o["beta"]),),
        ),
        (
            Spelling("Softplus", ("F.softplus",), ("softplus",), "Softplus"),
            Spelling(
                "LogSigmoid",
                ("F.logsigmoid",),
                ("log_sigmoid",),
                fixed={"beta": -1.0, "threshold": 20.0},
            ),
        ),
        F.softplus_problem,
        condition=lambda o: max(1.0, 1.0 / abs(o["beta"])),
        jump=lambda o: math.exp(-o["threshold"]) / abs(o["beta"]),
    ),
    "softsign": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: z / (1.0 + m.abs(z)),
        curve=Curve(
            lambda m, o, z: (1.0 / (1.0 + m.abs(z))) ** 2,
            **F.turning({0.0: 1.0}, 1, -1, peaked=lambda o: True),
        ),
        spellings=(Spelling("Softsign", ("F.softsign",), (), "Softsign"),),
    ),
    "sin": Row(
        F.fixed(-1.0, 1.0),
        lambda m, o, z: m.sin(z),
        curve=Curve(
            lambda m, o, z: m.cos(z),
            **F.turning(
                {k * math.pi: (-1.0) ** k for k in range(-2, 3)},
                *(1, -1, 1, -1, 1, -1),
                period=2.0 * math.pi,
            ),
        ),
        spellings=(Spelling("", ("torch.sin", ".sin"), ("sin", "sin_"), "Sin"),),
    ),
    "tanhshrink": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: z - m.tanh(z),
        curve=Curve(lambda m, o, z: m.tanh(z) ** 2, **F.turning({0.0: 0.0}, -1, 1)),
        spellings=(Spelling("Tanhshrink", ("F.tanhshrink",)),),
    ),
    "softshrink": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: z - m.clip(z, -o["lambd"], o["lambd"]),
        {"lambd": 0.5},
        Curve(
            lambda m, o, z: m.pieces(z, -o["lambd"], 1.0, m.pieces(z, o["lambd"], 0.0, 1.0)),
            lambda o: (Knot(-o["lambd"], 0.0, 1.0, -1), Knot(o["lambd"], 0.0, 1.0, 1)),
            lambda o: (0, 0, 0),
        ),
        (Spelling("Softshrink", ("F.softshrink",), ("softshrink",)),),
        lambda o: None if o["lambd"] >= 0.0 else "lambd: expected at least 0",
        roundings=1,
    ),
    "hardtanh": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.clip(z, o["min_val"], o["max_val"]),
        {"min_val": -1.0, "max_val": 1.0},
        F.clip_curve(lambda o: (o["min_val"], o["max_val"])),
        (
            Spelling(
                "Hardtanh",
                ("F.hardtanh",),
                ("hardtanh", "hardtanh_"),
                "Clip",
                {"min_val": ("min", None), "max_val": ("max", None)},
            ),
            Spelling(
                "ReLU6", ("F.relu6",), ("relu6", "relu6_"), fixed={"min_val": 0.0, "max_val": 6.0}
            ),
        ),
        F.hardtanh_problem,
        roundings=0,
    ),
    "hardsigmoid": Row(
        F.hardsigmoid_slopes,
        lambda m, o, z: m.clip(o["alpha"] * z + o["beta"], 0.0, 1.0),
        {"alpha": 1.0 / 6.0, "beta": 0.5},
        Curve(
            lambda m, o, z: F.inside(m, z, *F.hardsigmoid_ends(o), o["alpha"], 0.0),
            F.hardsigmoid_knots,
            lambda o: (0, 0, 0),
            peaked=lambda o: bool(o["alpha"] > 0.0),
        ),
        (
            Spelling(
                "Hardsigmoid",
                ("F.hardsigmoid",),
                ("hardsigmoid", "hardsigmoid_"),
                "HardSigmoid",
                {"alpha": ("alpha", 0.2), "beta": ("beta", 0.5)},
            ),
        ),
        F.not_zero("alpha"),
        condition=lambda o: max(1.0, abs(o["alpha"]), abs(o["beta"])),
    ),
    "hardswish": Row(
        F.fixed(-0.5, 1.5),
        lambda m, o, z: z * m.clip(z + 3.0, 0.0, 6.0) / 6.0,
        curve=Curve(
            lambda m, o, z: F.inside(m, z, -3.0, 3.0, (2.0 * z + 3.0) / 6.0, 1.0),
            lambda o: (Knot(-3.0, -0.5, 0.0, -1), Knot(3.0, 1.0, 1.5, -1)),
            lambda o: (0, 1, 0),
        ),
        spellings=(
            Spelling("Hardswish", ("F.hardswish",), ("hardswish", "hardswish_"), "HardSwish"),
        ),
    ),
    "gelu": Row(
        lambda o: F.overshoot(F.GELU_MAX[o["approximate"]]),
        F.gelu,
        {"approximate": "none"},
        Curve(F.gelu_slope, F.gelu_knots, lambda o: (-1, 1, -1)),
        (
            Spelling(
                "GELU", ("F.gelu",), ("gelu",), "Gelu", {"approximate": ("approximate", "none")}
            ),
        ),
        F.gelu_problem,
    ),
    "silu": Row(
        lambda o: F.overshoot(F.SILU_MAX),
        lambda m, o, z: z * m.sigmoid(z),
        curve=Curve(
            F.silu_slope,
            **F.turning(
                dict(zip((-F.SILU_TURN, F.SILU_TURN), F.overshoot(F.SILU_MAX), strict=True)),
                -1,
                1,
                -1,
            ),
        ),
        spellings=(Spelling("SiLU", ("F.silu",), ("silu", "silu_")),),
    ),
    "mish": Row(
        lambda o: F.MISH,
        lambda m, o, z: z * m.tanh(m.softplus(z)),
        curve=Curve(
            F.mish_slope, **F.turning(dict(zip(F.MISH_TURNS, F.MISH, strict=True)), -1, 1, -1)
        ),
        spellings=(Spelling("Mish", ("F.mish",), ("mish", "mish_"), "Mish"),),
    ),
    "clipped_relu": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.clip(z, 0.0, o["threshold"]),
        curve=F.clip_curve(lambda o: (0.0, o["threshold"])),
        arrays=("threshold",),
        roundings=0,
    ),
    "pair_clip": Row(
        F.fixed(0.0, 1.0),
        lambda m, o, z: m.clip(z, o["low"], o["high"]),
        curve=F.clip_curve(lambda o: (o["low"], o["high"])),
        arrays=("cap", "floor"),
        array_shapes=lambda shape: ([(shape[0] // 2, *shape[1:])], "one threshold per pair"),
        per_neuron=F.ends_of_pairs,
        roundings=0,
    ),
    # What a user says of a function of their own (``promises.py``).
    "promised": Row(
        lambda o: SlopeRange(float(o["alpha"]), float(o["beta"])),
        F.promised_value,
        {"name": "", "alpha": 0.0, "beta": 1.0},
        problem=F.promise_problem,
        known=False,
    ),
}
