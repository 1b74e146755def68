"""A fingerprint of the function that a network computes: one for each, and none for two.

What is hashed is what each layer does to what it sees: kinds, options, float64 values, and the
shape where a layer goes by it.  Names, and layers that change nothing, are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .activations import ACTIVATIONS, array_keys
from .layers import AFFINE, RESHAPES, Shape
from .sorting import PAIRED

if TYPE_CHECKING:
    from .network import LayerSpec

FORMAT = 1


def digest_of(layers: Iterable[LayerSpec], arrays: Mapping[str, Any], input_shape: Shape) -> str:
    """Hexadecimal SHA-256 of the function."""
    layers = tuple(layers)
    sha = hashlib.sha256()
    # Where no layer sees rows and columns, (1, 28, 28) and (784,) are the same function.
    shape = input_shape if _sees_shape(layers) else None
    sha.update(_canonical({"format": FORMAT, "input": shape}))
    for spec, flattened in zip(layers, _flattened(layers, input_shape), strict=True):
        if spec.kind in RESHAPES:
            continue
        about = {"kind": spec.kind, "options": _essential(spec)}
        # Neighbouring channels of an image are other pairs than neighbouring pixels.
        sha.update(_canonical({**about, "flat": True} if flattened else about))
        for key in array_keys(spec.kind):
            array = arrays.get(f"{spec.name}.{key}")
            if array is not None:
                sha.update(_canonical({"array": key, "shape": array.shape}))
                # "+ 0.0" makes minus zero zero.
                values = np.asarray(array, dtype="<f8") + 0.0
                sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def _sees_shape(layers: Iterable[LayerSpec]) -> bool:
    """Whether a layer works on channels, rows or columns, not on a flat vector."""
    flat = False
    for spec in layers:
        if spec.kind in AFFINE and AFFINE[spec.kind].spatial:
            return True
        if spec.kind in PAIRED and not flat:
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
        elif spec.kind in AFFINE:
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
