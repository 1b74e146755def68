"""A network as data: what each layer is, its arrays, and the chain of matrices that follows.

    x_0 = x,    x_{k+1} = phi_k(W_k x_k + b_k)  (k < l),    f(x) = W_l x_l + b_l

:class:`Network` is neutral ground between torch modules (``chain.py``), files and the check of a
certificate (``verify.py``): NumPy and SciPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import NetworkError, UnsupportedModule
from .activations import (
    ACTIVATIONS,
    Options,
    SlopeRange,
    check_activation,
    check_arrays,
)
from .digest import FORMAT, digest_of
from .layers import AFFINE, KINDS, AffineMap, Array, Shape, check_options, check_size
from .sorting import (
    HALF_ABS,
    PAIRED,
    SORTS,
    RotationBack,
    after_rotation_back,
    check_even,
    half_abs_slopes,
    rotated,
    rotation_back,
)

_UNIT_ROUNDOFF = 2.0**-53
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: its kind, its qualified name (the prefix of its arrays) and its options.

    Kinds: ``linear``, ``conv2d``, ``avg_pool2d``, ``flatten``, ``identity``, the activations of
    :data:`admm_lip.networks.activations.ACTIVATIONS`, and ``group_sort2``, ``max_min`` and
    ``half_abs``.

    Raises:
        UnsupportedModule: for an unknown kind, or options the kind does not take.
    """

    kind: str
    name: str
    options: Options

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, *PAIRED):
            raise UnsupportedModule(
                f"{self.name}: layer kind {self.kind!r} is not supported; "
                f"supported: {', '.join((*KINDS, *PAIRED))}"
            )
        if self.kind in PAIRED and self.options:
            raise UnsupportedModule(
                f"{self.name}: {self.kind} takes no options, got {sorted(self.options)}"
            )
        if self.kind not in PAIRED:
            check = check_activation if self.kind in ACTIVATIONS else check_options
            check(self.kind, self.name, self.options)


class Slopes(NamedTuple):
    """Slope range of one hidden layer, per neuron: float64 arrays of shape ``(n,)``."""

    alpha: Array
    beta: Array


@dataclass(frozen=True, eq=False)
class Chain:
    """The affine maps and activations of a network, neighbouring affine maps merged.

    Every activation acts per neuron; sorting pairs becomes ``half_abs`` between two rotations that
    the affine maps take in (``sorting.py``).

    Attributes:
        weights: ``(W_0, ..., W_l)``, float64, dense.
        biases: ``(b_0, ..., b_l)``, float64.
        slopes: one :class:`Slopes` per hidden layer (``l`` of them).
        errors: ``errors[k]`` bounds the Frobenius norm of the rounding error of ``W_k``; 0 where
            it is exactly the stored weights.
        bias_errors: ``bias_errors[k]`` bounds the rounding error of every entry of ``b_k``.
        names: per affine map, the names of the layers merged into it (none: the identity).
        activations: per hidden layer, the spec of its activation.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    slopes: tuple[Slopes, ...]
    errors: tuple[float, ...]
    bias_errors: tuple[float, ...]
    names: tuple[tuple[str, ...], ...]
    activations: tuple[LayerSpec, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, n_1, ..., n_l, n_{l+1})``."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))


@dataclass(frozen=True, eq=False)
class Network:
    """A chain network as plain data.

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
        if len(set(names)) < len(names):
            raise NetworkError(f"layers: expected distinct names, got {names}")
        shape = _first_shape(self.layers, self.arrays, self.input_shape)
        object.__setattr__(self, "input_shape", shape)

    @property
    def size_in(self) -> int:
        """Number of input features."""
        return math.prod(self.input_shape or ())

    def chain(self) -> Chain:
        """The network as float64 matrices and per-neuron slope ranges."""
        parts = _Parts(self.size_in)
        for spec, shape in zip(self.layers, self.shapes(), strict=False):
            if spec.kind in AFFINE:
                build = AFFINE[spec.kind].build
                parts.affine(spec.name, build(spec.name, spec.options, self.arrays, shape))
            elif spec.kind in ACTIVATIONS:
                parts.activation(spec)
            elif spec.kind in PAIRED:
                parts.paired(spec, shape)
        return parts.chain()

    def shapes(self) -> tuple[Shape, ...]:
        """Shape of what goes into each layer, and last of what the network gives; no batch.

        Raises:
            NetworkError: by the layer's name, where shapes do not chain.
        """
        shapes = [self.input_shape or ()]
        for spec in self.layers:
            shape = shapes[-1]
            if spec.kind in AFFINE:
                shape = AFFINE[spec.kind].shape(spec.name, spec.options, self.arrays, shape)
            elif spec.kind in ACTIVATIONS:
                check_arrays(spec.kind, spec.name, self.arrays, shape)
            elif spec.kind in PAIRED:
                check_even(spec.name, spec.kind, shape)
            else:
                shape = _reshaped(spec, shape)
            shapes.append(shape)
        return tuple(shapes)

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the function: kinds, options and float64 values, not the names."""
        return digest_of(self.layers, self.arrays, self.input_shape or ())

    def to_json(self) -> dict[str, Any]:
        """The layers and the input shape, ready for ``json.dump``; the arrays go beside it."""
        layers = [{"kind": s.kind, "name": s.name, "options": dict(s.options)} for s in self.layers]
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


class _Parts:
    """The chain while it is being built: the closed maps, and the open one (None: identity)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.open: AffineMap | None = None
        self.open_names: list[str] = []
        self.maps: list[AffineMap] = []
        self.names: list[tuple[str, ...]] = []
        self.specs: list[LayerSpec] = []
        self.slopes: list[Slopes] = []

    def affine(self, name: str, step: AffineMap) -> None:
        self.open = step if self.open is None else merged(step, self.open)
        self.open_names.append(name)
        self.size = step.bias.shape[0]

    def activation(self, spec: LayerSpec) -> None:
        slopes: SlopeRange = ACTIVATIONS[spec.kind].slopes(spec.options)
        if slopes.alpha == slopes.beta == 1.0:
            return  # the identity (LeakyReLU of slope 1)
        self.close()
        self.specs.append(spec)
        self.slopes.append(Slopes(*(np.full(self.size, value) for value in slopes)))

    def paired(self, spec: LayerSpec, shape: Shape) -> None:
        sort = SORTS.get(spec.kind)
        if sort is not None:
            size = math.prod(shape)
            check_size(spec.name, size, size)
            plain = AffineMap(np.eye(size), np.zeros(size), 0.0, shape)
            self.open = rotated(replace(self.open or plain, shape=shape))
        self.close()
        self.specs.append(LayerSpec(HALF_ABS, spec.name, {}))
        self.slopes.append(Slopes(*half_abs_slopes(self.size)))
        if sort is not None:
            self.open = rotation_back(sort, shape)

    def close(self) -> None:
        if self.open is None:
            check_size("an identity between two activations", self.size, self.size)
            self.open = AffineMap(np.eye(self.size), np.zeros(self.size), 0.0, (self.size,))
        check_size(" with ".join(self.open_names), *self.open.matrix.shape)
        self.maps.append(self.open)
        self.names.append(tuple(self.open_names))
        self.open, self.open_names = None, []

    def chain(self) -> Chain:
        self.close()
        weights = tuple(_dense(m.matrix) for m in self.maps)
        return Chain(
            weights=weights,
            biases=tuple(m.bias for m in self.maps),
            slopes=tuple(self.slopes),
            errors=tuple(m.error for m in self.maps),
            bias_errors=tuple(m.bias_error for m in self.maps),
            names=tuple(self.names),
            activations=tuple(self.specs),
        )


def merged(second: AffineMap, first: AffineMap) -> AffineMap:
    """``second`` after ``first``, with a bound on the error of the product.

    With ``A`` of n columns, ``fl(A B) = A B + E`` where ``|E| <= gamma_n |A| |B|`` in any order of
    summation and ``gamma_n = n u / (1 - n u)``; the maps' own errors a, b add
    ``a ||B|| + ||A|| b + a b``.  The factor 1.01 covers the rounding of this bound itself, and the
    last term underflow.  The bias ``A b_1 + b_2`` is bounded in the same way, entry by entry
    through ``|(A b)_i| <= ||A|| ||b||``.
    """
    if isinstance(first, RotationBack):
        return after_rotation_back(second, first)
    inner = second.matrix.shape[1]
    product = second.matrix @ first.matrix
    gamma = inner * _UNIT_ROUNDOFF / (1.0 - inner * _UNIT_ROUNDOFF)
    left, right = _frobenius(second.matrix), _frobenius(first.matrix)
    error = gamma * left * right + second.error * (right + first.error) + left * first.error
    tiny = math.sqrt(product.shape[0] * product.shape[1]) * inner * 2.0**-1022
    bias = second.matrix @ first.bias + second.bias
    length, off = _frobenius(first.bias), math.sqrt(inner) * first.bias_error
    size = left * length + float(np.abs(second.bias).max())
    bias_error = 2.0 * gamma * size + second.bias_error + second.error * (length + off) + left * off
    if not (np.isfinite(bias).all() and math.isfinite(error) and math.isfinite(bias_error)):
        raise NetworkError("merging neighbouring affine layers overflows; rescale their weights")
    return AffineMap(product, bias, 1.01 * error + tiny, second.shape, 1.01 * bias_error + tiny)


def _first_shape(
    layers: Iterable[LayerSpec], arrays: Mapping[str, Any], given: Shape | None
) -> Shape:
    """``given``, or the length of the vector that the first affine layer takes."""
    if given is not None:
        if not given or any(n < 1 for n in given):
            raise NetworkError(f"input_shape: expected sizes > 0 without the batch, got {given}")
        return tuple(int(n) for n in given)
    first = next((spec for spec in layers if spec.kind in AFFINE), None)
    if first is not None and first.kind == "linear":
        weight = arrays.get(f"{first.name}.weight")
        if weight is None or weight.ndim != 2:
            raise NetworkError(f"{first.name}: expected a matrix {first.name}.weight")
        return (int(weight.shape[1]),)
    what = f"{first.name} ({first.kind})" if first else "a network without affine layers"
    raise NetworkError(
        f"input_shape: {what} does not determine it; give input_shape=(channels, height, width)"
    )


def _reshaped(spec: LayerSpec, shape: Shape) -> Shape:
    if spec.kind == "identity":
        return shape
    size = math.prod(shape)
    if spec.options["size"] not in (None, size):
        raise NetworkError(
            f"{spec.name}: flattens to {spec.options['size']} features, but its input of shape "
            f"{shape} has {size}"
        )
    return (size,)


def _spec_from_json(k: int, entry: Any) -> LayerSpec:
    if not isinstance(entry, dict) or set(entry) != {"kind", "name", "options"}:
        raise NetworkError(f"architecture: layers[{k}]: expected kind, name and options")
    kind, name, options = entry["kind"], entry["name"], entry["options"]
    if not (isinstance(kind, str) and isinstance(name, str) and isinstance(options, dict)):
        raise NetworkError(f"architecture: layers[{k}]: expected two strings and an object")
    return LayerSpec(kind, name, options)


def _frobenius(matrix: Any) -> float:
    """Frobenius norm, rounded up."""
    data = (matrix if isinstance(matrix, np.ndarray) else matrix.data).ravel()
    largest = float(np.abs(data).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    return largest * float(np.linalg.norm(data / largest)) * (1.0 + 1e-9)


def _dense(matrix: Any) -> Array:
    return np.asarray(matrix if isinstance(matrix, np.ndarray) else matrix.toarray())
