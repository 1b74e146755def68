"""A fingerprint of the function that a network computes: one for each, and none for two.

What is hashed is what each layer does to what it sees: kinds, options, float64 values, and the
shape where a layer goes by it.  Names, and layers that change nothing, are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .activations import ACTIVATIONS
from .layer_spec import INPUT, LayerSpec, heard, plainly_wired, sources_of
from .layers import AFFINE, RESHAPES, Array, Shape, array_keys
from .sorting import PAIRED

FORMAT = 1


Shapes = Callable[[], Mapping[str, Shape]]


def digest_of(
    layers: Sequence[LayerSpec],
    output: str,
    input_shape: Shape | None,
    arrays: Mapping[str, Array],
    shapes: Shapes,
) -> str:
    """Hexadecimal SHA-256 of the function of a network, given by its fields and its shapes."""
    layers = plainly_wired(heard(layers, output))
    sha = hashlib.sha256()
    for part in _parts(layers, output, input_shape, arrays, shapes):
        sha.update(part)
    return sha.hexdigest()


def _parts(
    layers: Sequence[LayerSpec],
    output: str,
    input_shape: Shape | None,
    arrays: Mapping[str, Array],
    shapes: Shapes,
) -> Iterator[bytes]:
    """What is hashed, in order."""
    path, shape = not any(spec.inputs for spec in layers), input_shape or ()
    *wiring, end = _path_wiring(layers, shapes) if path else _wiring(layers, output, shapes())
    while path and layers and layers[0].kind == "reshape":
        # In front of all layers it only says how the input is to be seen.
        shape = tuple(layers[0].options["shape"])
        layers, wiring = layers[1:], wiring[1:]
    # Where no layer sees rows and columns, (1, 28, 28) and (784,) are the same function.
    seen = shape if not path or _sees_shape(layers) else None
    yield _canonical({"format": FORMAT, "input": seen})
    flattened = _flattened(layers, shape)
    for spec, flat, wires in zip(layers, flattened, wiring, strict=True):
        # A graph says with every value what shape it has.
        if spec.kind in (_SILENT if path else RESHAPES):
            continue
        about = {"kind": spec.kind, "options": _essential(spec), **wires}
        # Neighbouring channels of an image are other pairs than neighbouring pixels.
        yield _canonical({**about, "flat": True} if flat and path else about)
        for key in array_keys(spec.kind):
            array = arrays.get(f"{spec.name}.{key}")
            if array is not None:
                yield _canonical({"array": key, "shape": array.shape})
                # "+ 0.0" makes minus zero zero.
                values = np.asarray(array, dtype="<f8") + 0.0
                yield np.ascontiguousarray(values).tobytes()
    if end:
        yield _canonical(end)


# Layers that leave no trace in a path, and those that go by the shape that they see.
_SILENT = ("flatten", "identity")
_BY_SHAPE = ("elementwise", "take", "sum", "max_pool2d", *PAIRED)


def _path_wiring(layers: Sequence[LayerSpec], shapes: Shapes) -> list[dict[str, Any]]:
    """Of each layer of a path, the shape that it sees, where its options are of axes."""
    if not any(spec.kind == "sum" for spec in layers):
        return [{} for _ in (*layers, None)]
    known, sources = shapes(), sources_of(layers)
    sees = (known[sources[spec.name][0]] for spec in layers)
    about = (
        {"sees": s} if spec.kind == "sum" else {} for spec, s in zip(layers, sees, strict=True)
    )
    return [*about, {}]


def _wiring(
    layers: Sequence[LayerSpec], output: str, shapes: Mapping[str, Shape]
) -> list[dict[str, Any]]:
    """Of each layer of a graph, the places of the layers whose outputs it takes, and their shapes.

    Places count the layers that are hashed, from 1; 0 is the input.  The last entry says which
    layer's output the network gives.
    """
    sources = sources_of(layers)
    place, hashed, found = {INPUT: 0}, 0, []
    for spec in layers:
        given = sources[spec.name]
        found.append({"takes": [[place[name], shapes[name]] for name in given]})
        hashed += spec.kind not in RESHAPES
        place[spec.name] = place[given[0]] if spec.kind in RESHAPES else hashed
    return [*found, {"gives": place[output]}]


def _sees_shape(layers: Iterable[LayerSpec]) -> bool:
    """Whether a layer works on channels, rows or columns, not on a flat vector."""
    flat = False
    for spec in layers:
        if spec.kind in AFFINE and AFFINE[spec.kind].spatial:
            return True
        if spec.kind in _BY_SHAPE and not flat:
            return True
        flat = flat or spec.kind in ("flatten", "linear")
    return False


def _flattened(layers: Iterable[LayerSpec], input_shape: Shape) -> list[bool]:
    """Of each layer, whether it pairs neighbours of what was an image before a flatten."""
    image, flattened, found = len(input_shape) > 1, False, []
    for spec in layers:
        found.append(flattened and spec.kind in PAIRED)
        if spec.kind == "flatten":
            image, flattened = False, flattened or image
        elif spec.kind in ("take", "sum", "reshape"):
            image, flattened = True, False
        elif spec.kind in AFFINE and spec.kind != "elementwise":
            image, flattened = AFFINE[spec.kind].spatial, False
    return found


def _essential(spec: LayerSpec) -> dict[str, Any]:
    """The options without what does not change the function: 1 for 1.0, the count of no padding."""
    options = dict(spec.options)
    if spec.kind in ACTIVATIONS:
        return {k: v if isinstance(v, str) else float(v) + 0.0 for k, v in options.items()}
    if not any(options.get("padding", (1,))):
        options.pop("count_include_pad", None)
    return options


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
