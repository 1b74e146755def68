"""The edits that make a false certificate of a true one, for those whose file is JSON.

An edit changes its argument in place, or returns the whole file where that says what no tree can
(a key given twice, a cut).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from admm_lip.certificates.document import checksum
from admm_lip.units import Units

Tree = dict[str, Any]
# Wrong values of every type that a file can hold.
SPECIALS: tuple[Any, ...] = (
    *(0, 0.0, -0.0, -1.0, 5, 5 * 10**9, 10**400, -(10**400), 1e308, 1e-308, 5e-324, -1e-12),
    *(True, False, None, "1.0", "", [], {}, [1.0], "relu", "l2", "linf", "global", "local"),
)


@dataclass(frozen=True)
class Random:
    """Draws."""

    rng: np.random.Generator

    def one_of(self, values: Any) -> Any:
        """One of some values, as it is."""
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share: float) -> bool:
        """True for a share of the draws."""
        return bool(self.rng.random() < share)

    def factor(self) -> float:
        """From 1 - 1e-16 over 1e-300 to 1e300, both sides of 1."""
        if self.chance(0.5):
            return 1.0 - self.power(-16.0, 0.0)
        return 1.0 + self.power(-16.0, 1.0) if self.chance(0.5) else self.power(-300.0, 300.0)

    def power(self, low: float, high: float) -> float:
        """A power of ten."""
        return math.pow(10.0, float(self.rng.uniform(low, high)))

    def less(self) -> float:
        """A factor below 1, often by little; sometimes 0."""
        return 0.0 if self.chance(0.05) else 1.0 - self.power(-16.0, -0.01)


DocumentEdit = Callable[[Random, Tree], "str | None"]


def _bounds(random: Random, tree: Tree) -> Tree:
    """The part of a certificate that holds a bound: itself, or one of its functionals."""
    found: Tree = random.one_of(tree["bounds"]) if "bounds" in tree else tree
    return found


def _lip_lowered(random: Random, tree: Tree) -> None:
    _bounds(random, tree)["lip"] *= random.less()


def _all_lowered(random: Random, tree: Tree) -> None:
    """The bound with all that stands beside it, and perhaps the multiplier to match."""
    bound, less = _bounds(random, tree), random.less()
    for name in ("lip", "lower_lip", "sampled_lower"):
        bound[name] *= less
    if random.chance(0.5):
        power = random.one_of((1, 2, -1))
        factor = less**power if less else 1.0
        bound["multiplier"] = [[t * factor for t in layer] for layer in bound["multiplier"]]


def _lip_special(random: Random, tree: Tree) -> None:
    _bounds(random, tree)["lip"] = random.one_of(SPECIALS)


def _multiplier_moved(random: Random, tree: Tree) -> None:
    bound = _bounds(random, tree)
    if not bound["multiplier"]:
        bound["multiplier"] = [[1.0]]
    layer = random.one_of(bound["multiplier"])
    change = random.one_of(("entry", "layer", "special", "swapped", "cut", "all"))
    at = int(random.rng.integers(len(layer))) if layer else 0
    if change == "entry" and layer:
        layer[at] *= random.factor()
    elif change == "layer":
        factor = random.factor()
        layer[:] = [t * factor for t in layer]
    elif change == "special" and layer:
        layer[at] = random.one_of(SPECIALS)
    elif change == "swapped":
        layer[:] = [layer[k] for k in random.rng.permutation(len(layer))]
    elif change == "cut":
        bound["multiplier"].pop() if random.chance(0.5) else layer.append(1.0)
    elif change == "all":
        bound["multiplier"] = [[t * random.factor() for t in row] for row in bound["multiplier"]]
    # A lower claim with it, sometimes.
    if random.chance(0.3) and isinstance(bound["lip"], float):
        bound["lip"] *= random.less()


def _multipliers_exchanged(random: Random, tree: Tree) -> None:
    """The proof of another functional; in a global certificate the layers in another order."""
    if "bounds" in tree:
        one, other = (_bounds(random, tree) for _ in range(2))
        for name in ("multiplier", "lip"):
            one[name], other[name] = other[name], one[name]
    else:
        tree["multiplier"].reverse()


def _beside_moved(random: Random, tree: Tree) -> None:
    name = random.one_of(("lower_lip", "norm_product", "sampled_lower"))
    bound = _bounds(random, tree)
    bound[name] = bound[name] * random.factor() if random.chance(0.6) else random.one_of(SPECIALS)


def _noted_moved(random: Random, tree: Tree) -> None:
    name = random.one_of(("solver", "solver_version", "package_version", "method", "requested"))
    holder = tree if name in tree else _bounds(random, tree)
    holder[name if name in holder else "method"] = random.one_of(
        ("given", "constant", "another", 3.0, *SPECIALS)
    )


def _belongs_elsewhere(random: Random, tree: Tree) -> None:
    tree["digest"] = random.one_of(
        ("0" * 64, tree["digest"][:-1], tree["digest"].upper(), "", *SPECIALS)
    )


def _norm_exchanged(random: Random, tree: Tree) -> None:
    """The other norm, with a multiplier of as many layers as that needs."""
    to_linf = tree["norm"] == "l2"
    tree["norm"] = "linf" if to_linf else "l2"
    inputs = math.prod(tree["input_shape"])
    for bound in tree.get("bounds", [tree]):
        if random.chance(0.8):
            front = [[bound["lip"] ** 2 / (2.0 * inputs)] * inputs]
            layers = bound["multiplier"]
            bound["multiplier"] = front + layers if to_linf else layers[1:]


def _kind_relabelled(random: Random, tree: Tree) -> None:
    tree["kind"] = random.one_of(
        ("global", "pairwise", "per_output", "directions", "local", "", *SPECIALS)
    )


def _units_moved(random: Random, tree: Tree) -> None:
    """Scales of inputs or outputs, their number, or what is no units at all."""
    change = random.one_of(("scaled", "removed", "entry", "special", "cut", "shift", "units"))
    if change == "removed":
        tree["units"] = None
        return
    if change == "units":
        tree["units"] = random.one_of(("model input", "raw input", {}, [], *SPECIALS))
        return
    first = tree["bounds"][0]["direction"] if "bounds" in tree else [1.0]
    counts = {"input": math.prod(tree["input_shape"]), "output": len(first)}
    side = random.one_of(tuple(counts))
    tree["units"] = dict(tree["units"] or Units().to_json())
    if change == "shift":  # changes no slope: what is claimed stays true
        tree["units"][f"{side}_shift"] = random.one_of((1.0, -3.5, 0.0))
        return
    given = tree["units"][f"{side}_scale"]
    scale = list(given) if isinstance(given, list) else [given] * counts[side]
    factor, at = random.factor(), int(random.rng.integers(len(scale)))
    if change == "scaled":
        scale = [s * factor for s in scale]
    elif change == "entry":
        scale[at] *= factor
    elif change == "special":
        scale[at] = random.one_of(SPECIALS)
    else:
        scale = scale[:-1]
    tree["units"][f"{side}_scale"] = scale


def _shape_moved(random: Random, tree: Tree) -> None:
    n = math.prod(tree["input_shape"])
    tree["input_shape"] = random.one_of(
        ([1, n], [n, 1], [n + 1], [10**12, 10**12], [], [0], [-n], [True], [float(n)], n, "a")
    )


def _slopes_moved(random: Random, tree: Tree) -> None:
    if not tree["slopes"] or random.chance(0.2):
        tree["slopes"] = random.one_of(([], [3], {}, tree["slopes"][:-1], tree["slopes"] * 2))
        return
    slopes = random.one_of(tree["slopes"])
    name = random.one_of(("activation", "alpha", "beta"))
    values = ("relu", "tanh", 0.5, 0.25, -1.0, 0.999999, *SPECIALS)
    slopes[name] = random.one_of(values)


def _directions_moved(random: Random, tree: Tree) -> None:
    bounds = tree.get("bounds")
    if not bounds:
        _lip_lowered(random, tree)
        return
    one = random.one_of(bounds)
    change = random.one_of(("scaled", "sign", "zero", "rolled", "special", "swapped", "cut", "as"))
    row = one["direction"]
    if change == "as":
        tree["kind"] = "directions"
        change = random.one_of(("scaled", "sign", "zero", "rolled", "special"))
    if change == "scaled":
        factor = random.factor()
        one["direction"] = [c * factor for c in row]
    elif change == "sign":
        one["direction"] = [-c for c in row]
    elif change == "zero":
        one["direction"] = [0.0] * len(row)
    elif change == "rolled":
        one["direction"] = row[1:] + row[:1]
    elif change == "special":
        row[int(random.rng.integers(len(row)))] = random.one_of(SPECIALS)
    elif change == "swapped":
        tree["bounds"] = [bounds[k] for k in random.rng.permutation(len(bounds))]
    else:
        tree["bounds"] = bounds[:-1] if random.chance(0.5) else [*bounds, one]


def _form_moved(random: Random, tree: Tree) -> None:
    """Which multipliers are per channel, or phase, for which sizes, and those all bounds share."""
    name = random.one_of(("switch", "every_size", "shared", "phases"))
    if name == "shared" and tree.get("shared") and random.chance(0.7):
        layer = random.one_of(tree["shared"])
        layer[int(random.rng.integers(len(layer)))] *= random.factor()
    else:
        tree[name] = random.one_of((0, 1, 2, 3, 4, 16, 128, [], [[1.0]], [[1.0, 1.0]], *SPECIALS))
    if random.chance(0.3):
        _lip_lowered(random, tree)


def _any_leaf(random: Random, tree: Tree) -> None:
    """Any value of the tree, whatever it is, by a wrong one; or a field gone or added."""
    place: Any = tree
    for _ in range(6):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = random.one_of(keys)
        if isinstance(place[key], list | dict) and random.chance(0.8):
            place = place[key]
            continue
        if isinstance(place, dict) and random.chance(0.1):
            place.pop(key)
        elif isinstance(place, dict) and random.chance(0.1):
            place["more"] = 1.0
        else:
            place[key] = random.one_of(SPECIALS)
        return


def _text_damaged(random: Random, tree: Tree) -> str:
    """What no tree says: keys twice, NaN, depth, cuts, a wrong checksum."""
    whole = json.dumps({**tree, "checksum": checksum(tree)})
    lip = json.dumps(tree.get("lip", 1.0))
    return str(
        random.one_of(
            (
                '{"lip": 1e-9, ' + whole[1:],
                '{"bounds": [], ' + whole[1:],
                '{"digest": "0", ' + whole[1:],
                whole[:-1] + f', "lip": {lip}}}',
                whole.replace(lip, "NaN", 1),
                whole.replace(lip, "-Infinity", 1),
                whole.replace(lip, "1e999", 1),
                whole.replace(lip, "1" + "0" * 5000, 1),
                whole[: int(random.rng.integers(len(whole)))],
                json.dumps({**tree, "checksum": "0" * 64}),
                json.dumps({**tree, "checksum": random.one_of(SPECIALS)}),
                "[" * int(random.rng.integers(1, 20_000)),
                whole.replace(lip, "[" * 900 + "]" * 900, 1),
                json.dumps(random.one_of(SPECIALS)),
            )
        )
    )


DOCUMENT_EDITS: Mapping[str, DocumentEdit] = {
    "bound lowered": _lip_lowered,
    "all bounds lowered": _all_lowered,
    "bound of another type": _lip_special,
    "multiplier": _multiplier_moved,
    "proof of another": _multipliers_exchanged,
    "figures beside": _beside_moved,
    "notes": _noted_moved,
    "digest": _belongs_elsewhere,
    "norm": _norm_exchanged,
    "kind": _kind_relabelled,
    "units and scale": _units_moved,
    "input shape": _shape_moved,
    "slopes": _slopes_moved,
    "directions": _directions_moved,
    "form": _form_moved,
    "any field": _any_leaf,
    "text": _text_damaged,
}
