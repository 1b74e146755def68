"""A network as data: what each layer is and whose outputs it takes, its arrays, and what follows.

A network is a graph: every layer takes the output of the layer before it, unless it names others.
Its chain of matrices (``lowering.py``) is

    x_0 = x,    x_{k+1} = phi_k(W_k x_k + b_k)  (k < l),    f(x) = W_l x_l + b_l

:class:`Network` is neutral ground between torch modules (``chain.py``), files and the check of a
certificate (``verify.py``): NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NetworkError
from .activations import ACTIVATIONS, check_arrays, is_known
from .digest import FORMAT, digest_of
from .joins import JOINS
from .layer_spec import INPUT as INPUT
from .layer_spec import LayerSpec as LayerSpec
from .layer_spec import SideBySide as SideBySide
from .layer_spec import Slopes as Slopes
from .layer_spec import sources_of
from .layers import AFFINE, Shape
from .lowering import Chain as Chain
from .lowering import lowered
from .lowering import merged as merged
from .sorting import PAIRED, check_even
from .vector_functions import VECTOR_FUNCTIONS

_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class Network:
    """A network as plain data.

    Args:
        layers: in the order of evaluation.
        arrays: ``"<layer name>.weight"`` and ``".bias"``: float16, float32 or float64.
        input_shape: shape of one input, without the batch; ``None`` is read off the first
            ``linear`` layer.

    Raises:
        NetworkError: for arrays that are not finite or shapes that do not chain.

    Example:
        >>> import numpy as np
        >>> layers = (LayerSpec("linear", "in", {}), LayerSpec("relu", "act", {}),
        ...           LayerSpec("linear", "out", {}))
        >>> net = Network(layers, {"in.weight": np.ones((3, 2)), "out.weight": np.ones((1, 3))})
        >>> net.chain().widths
        (2, 3, 1)
    """

    layers: tuple[LayerSpec, ...]
    arrays: Mapping[str, Any]
    input_shape: Shape | None = None

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if array.dtype not in _FLOATS:
                raise NetworkError(f"{name}: expected floating-point numbers, got {array.dtype}")
            if not np.isfinite(array).all():
                raise NetworkError(
                    f"{name}: holds a value that is NaN or infinite; a bound needs finite weights"
                )
        names = [spec.name for spec in self.layers]
        if len({INPUT, *names}) <= len(names):
            raise NetworkError(f"layers: expected distinct names other than {INPUT!r}, got {names}")
        self.sources()
        shape = _first_shape(self.layers, self.arrays, self.input_shape)
        object.__setattr__(self, "input_shape", shape)

    @property
    def size_in(self) -> int:
        """Number of input features."""
        return math.prod(self.input_shape or ())

    @property
    def is_path(self) -> bool:
        """Whether every layer takes the output of the one before it, and of no other."""
        before = [INPUT, *(spec.name for spec in self.layers[:-1])]
        found = self.sources().values()
        return all(given == (name,) for given, name in zip(found, before, strict=True))

    @property
    def is_known(self) -> bool:
        """Whether its values are: no activation is known by its slopes alone."""
        return all(is_known(spec.kind) for spec in self.layers)

    @property
    def output(self) -> str:
        """Name of the layer whose output the network gives: the last one."""
        return self.layers[-1].name if self.layers else INPUT

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Of every layer, the layers whose outputs it takes; ``"input"`` is the network's input."""
        return sources_of(self.layers)

    def chain(self) -> Chain:
        """The network as float64 matrices and per-neuron slope ranges."""
        return lowered(self.layers, self.arrays, self.shapes())

    def shapes(self) -> dict[str, Shape]:
        """Shape of the input and of every layer's output, by name, without the batch.

        Raises:
            NetworkError: by the layer's name, where shapes do not fit each other.
        """
        shapes = {INPUT: self.input_shape or ()}
        sources = self.sources()
        for spec in self.layers:
            given = [shapes[name] for name in sources[spec.name]]
            shapes[spec.name] = self._shape(spec, given)
        return shapes

    def _shape(self, spec: LayerSpec, given: list[Shape]) -> Shape:
        if spec.kind in AFFINE:
            return AFFINE[spec.kind].shape(spec.name, spec.options, self.arrays, given[0])
        if spec.kind in JOINS:
            return JOINS[spec.kind].shape(spec.name, given)
        if spec.kind in ACTIVATIONS:
            check_arrays(spec.kind, spec.name, self.arrays, given[0])
        elif spec.kind in VECTOR_FUNCTIONS:
            return VECTOR_FUNCTIONS[spec.kind].shape(spec.name, spec.options, given[0])
        elif spec.kind in PAIRED:
            check_even(spec.name, spec.kind, given[0])
        else:
            return reshaped(spec, given[0])
        return given[0]

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the function: kinds, options and float64 values, not the names."""
        return digest_of(self.layers, self.output, self.input_shape, self.arrays, self.shapes)

    def to_json(self) -> dict[str, Any]:
        """The layers and the input shape, ready for ``json.dump``; the arrays go beside it."""
        layers = [_spec_to_json(spec) for spec in self.layers]
        shape = list(self.input_shape or ())
        return {"format": FORMAT, "input_shape": shape, "layers": layers}

    @staticmethod
    def from_json(data: Any, arrays: Mapping[str, Any]) -> Network:
        """The inverse of :meth:`to_json`; nothing in ``data`` is trusted.

        Raises:
            NetworkError: naming the field that is missing or of the wrong type.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise NetworkError(
                f"architecture: expected a JSON object with format {FORMAT}, "
                f"got {data.get('format') if isinstance(data, dict) else type(data).__name__!r}"
            )
        shape = data.get("input_shape")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise NetworkError(f"architecture: input_shape: expected sizes > 0, got {shape!r}")
        layers = data.get("layers")
        if not isinstance(layers, list):
            raise NetworkError(f"architecture: layers: expected a list, got {layers!r}")
        specs = tuple(_spec_from_json(k, entry) for k, entry in enumerate(layers))
        return Network(specs, arrays, tuple(shape))


def _first_shape(
    layers: Iterable[LayerSpec], arrays: Mapping[str, Any], given: Shape | None
) -> Shape:
    """``given``, or the length of the vector that the first affine layer takes."""
    if given is not None:
        if not given or any(n < 1 for n in given):
            raise NetworkError(f"input_shape: expected sizes > 0 without the batch, got {given}")
        return tuple(int(n) for n in given)
    # What acts on every number by itself takes what the layer behind it takes.
    affine = (spec for spec in layers if spec.kind in AFFINE and spec.kind != "elementwise")
    first = next(affine, None)
    if first is not None and first.kind == "linear":
        weight = arrays.get(f"{first.name}.weight")
        if weight is None or weight.ndim != 2:
            raise NetworkError(f"{first.name}: expected a matrix {first.name}.weight")
        return (int(weight.shape[1]),)
    what = f"{first.name} ({first.kind})" if first else "a network without affine layers"
    raise NetworkError(
        f"input_shape: {what} does not determine it; give input_shape=(channels, height, width)"
    )


def reshaped(spec: LayerSpec, shape: Shape) -> Shape:
    """The shape behind a layer that does not change the vector."""
    if spec.kind == "identity":
        return shape
    size = math.prod(shape)
    if spec.kind == "reshape":
        target = tuple(spec.options["shape"])
        if math.prod(target) != size:
            raise NetworkError(
                f"{spec.name}: a value of shape {shape} cannot become {target}, batch apart"
            )
        return target
    if spec.options["size"] not in (None, size):
        raise NetworkError(
            f"{spec.name}: flattens to {spec.options['size']} features, but its input of shape "
            f"{shape} has {size}"
        )
    return (size,)


def _spec_to_json(spec: LayerSpec) -> dict[str, Any]:
    """A layer; whose outputs it takes is said where that is not the layer before it."""
    data = {"kind": spec.kind, "name": spec.name, "options": dict(spec.options)}
    return {**data, "inputs": list(spec.inputs)} if spec.inputs else data


def _spec_from_json(k: int, entry: Any) -> LayerSpec:
    wanted = {"kind", "name", "options"}
    if not isinstance(entry, dict) or set(entry) - {"inputs"} != wanted:
        raise NetworkError(
            f"architecture: layers[{k}]: expected kind, name and options, and inputs where they "
            "are not the layer before"
        )
    kind, name, options = entry["kind"], entry["name"], entry["options"]
    if not (isinstance(kind, str) and isinstance(name, str) and isinstance(options, dict)):
        raise NetworkError(f"architecture: layers[{k}]: expected two strings and an object")
    inputs = entry.get("inputs", [])
    if not isinstance(inputs, list) or not all(isinstance(source, str) for source in inputs):
        raise NetworkError(f"architecture: layers[{k}].inputs: expected names, got {inputs!r:.80}")
    return LayerSpec(kind, name, options, tuple(inputs))
