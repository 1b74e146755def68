"""Skip connections that are trained, read as they were written.

* **Tied blocks** ``x - K' phi(K x + b)``: a layer of K, an activation, a layer of ``-K'`` and a
  sum.  ``networks/tied.py`` says why they are kept in a ball ``||K||^2 <= 2`` of their own, as
  layers that take no share of the bound.
* **Residual blocks** ``x + G2 phi(G1 x + b) + c``: two layers, which take no share either, but
  may grow inputs by a gain that is settled beforehand (``residual_ball.py``).
* **Residual blocks with a shortcut** ``S x + G2 phi(G1 x + b) + c``, S a layer: three layers that
  share in the bound (``shortcut_ball.py``).
* **Linear ones** ``x + K x + b``: a layer and a sum, one layer of the weight ``I + K`` as the bound
  sees them (``skip_ball.py``).
* **Others** ``a x + c (G2 phi(G1 x + b) + d)``, of sorted pairs or with factors: two layers of norm
  1 at most, which take no share, so that the block grows nothing by more than ``|a| + |c|``: an
  average of x and the branch by nothing at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UnsupportedModule
from ..networks.activations import ACTIVATIONS
from ..networks.convolution import untransposed
from ..networks.layer_spec import INPUT, LayerSpec, neuron_slopes, scalar_parts
from ..networks.network import Network
from .padding import LINEAR, Rows, is_factor

ALONE, TIED, UNTIED, SHORTCUT, ADDED = "", "tied", "untied", "shortcut", "added"
BRANCH = "branch"


class Piece(NamedTuple):
    """A layer of a path, or a skip connection by the layers that hold its weights.

    Attributes:
        specs: of the layers, of a block first those of its branch.
        form: ``ALONE``, or which skip connection it is of.
        rows: of the network that it takes up.
        end: the name of the last of them.
        factors: a and c of a block, by which x and the branch count.
        between: the activation of a block.
    """

    specs: tuple[LayerSpec, ...]
    form: str
    rows: int
    end: str
    factors: tuple[float, float] = (1.0, 1.0)
    between: LayerSpec | None = None


def pieces_of(network: Network, rows: Rows) -> list[Piece]:
    """The layers of a network, every skip as one, each taking the output of the one before.

    Args:
        network: that holds the arrays.
        rows: its layers.

    Raises:
        UnsupportedModule: by name, for other skip connections, and for a block that needs an
            activation of slopes in [0, 1] and has another.
    """
    found: list[Piece] = []
    layers, sources = _without_identities(rows)
    layers, sources, factors = _without_factors(network, layers, sources)
    output = INPUT
    while layers:
        first = layers[0]
        if sources[first.name] != (output,):
            raise UnsupportedModule(
                f"{first.name}: takes the output of {' and '.join(sources[first.name])}; of skip "
                "connections or branches, tied blocks x - K' phi(K x + b) "
                "(admm_lip.networks.tied), residual blocks a x + c (G2 phi(G1 x + b) + d) and "
                "linear layers x + K x + b (admm_lip.networks.residual), and blocks with a layer S "
                "as their shortcut, S x + G2 phi(G1 x + b) + d, are trained and projected, others "
                "only certified"
            )
        block = _block(layers, sources, output)
        if block is not None:
            own = factors.get(block.end.name, {})
            past = output if block.past is None else block.past.name
            a, c = (own.get(name, 1.0) for name in (past, block.back.name))
            found.append(_piece(network, block, rows, (a, c)))
        elif _is_added(layers[:2], sources, output) and layers[1].name not in factors:
            _refuse_minus((first,), rows)
            found.append(Piece((first,), ADDED, 2, layers[1].name))
        else:
            found.append(Piece((first,), ALONE, 1, first.name))
        output, layers = found[-1].end, layers[found[-1].rows :]
    return found


def _without_identities(rows: Rows) -> tuple[list[LayerSpec], dict[str, tuple[str, ...]]]:
    """The layers that change something, and the values that each of them takes."""
    alike, sources = dict[str, str](), dict[str, tuple[str, ...]]()
    for spec in rows.layers:
        sources[spec.name] = tuple(alike.get(name, name) for name in rows.sources[spec.name])
        if spec.kind == "identity":
            (alike[spec.name],) = sources[spec.name]
    return [spec for spec in rows.layers if spec.kind != "identity"], sources


def _without_factors(
    network: Network, layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]]
) -> tuple[list[LayerSpec], dict[str, tuple[str, ...]], dict[str, dict[str, float]]]:
    """Layers and sources without what multiplies a value of one sum, and the factors by both."""
    scales = {
        spec.name: float(np.asarray(network.arrays[f"{spec.name}.weight"]))
        for spec in layers
        if is_factor(network, spec)
    }
    users = Counter(name for given in sources.values() for name in given)
    found, factors = dict(sources), dict[str, dict[str, float]]()
    for spec in layers if scales else ():
        given = sources[spec.name]
        own = {name: scales[name] for name in given if name in scales and users[name] == 1}
        if spec.kind == "add" and own:
            found[spec.name] = tuple(sources[n][0] if n in own else n for n in given)
            factors[spec.name] = {sources[name][0]: scale for name, scale in own.items()}
            for name in own:
                del scales[name], found[name]
    return [spec for spec in layers if spec.name in found], found, factors


class _Block(NamedTuple):
    """The layers of ``S x + G2 phi(G1 x)``; of S ``None`` where it is I."""

    into: LayerSpec
    between: LayerSpec
    back: LayerSpec
    past: LayerSpec | None
    end: LayerSpec


def _piece(network: Network, block: _Block, rows: Rows, factors: tuple[float, float]) -> Piece:
    """A block as one piece."""
    into, between, back, past, end = block
    tied = past is None and _are_tied(into, back, network, rows)
    scaled = factors != (1.0, 1.0)
    if past is None and (scaled or not (tied or _rises(between, network))):
        return Piece((into, back), BRANCH, 4, end.name, factors, between)
    _check_slopes(between, network, "tied" if tied else "residual")
    if past is not None:
        _refuse_minus((back, past), rows)
        if scaled:
            raise UnsupportedModule(
                f"{end.name}: a sum with factors whose shortcut is the layer {past.name}; multiply "
                "the weights instead, or scale a shortcut that is x itself"
            )
        return Piece((into, back, past), SHORTCUT, 5, end.name)
    return Piece((into,) if tied else (into, back), TIED if tied else UNTIED, 4, end.name)


def _is_added(
    layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]], given: str
) -> bool:
    """Whether layers that begin with the value ``given`` are one and its sum with that value."""
    if len(layers) < 2 or layers[0].kind not in LINEAR or layers[1].kind != "add":
        return False
    return sorted(sources[layers[1].name]) == sorted((given, layers[0].name))


def _block(
    layers: Sequence[LayerSpec], sources: Mapping[str, tuple[str, ...]], given: str
) -> _Block | None:
    """The block that layers begin with, in any order, which take the value ``given``."""
    place = next((k for k, spec in enumerate(layers[:5]) if spec.kind == "add"), 0)
    rows, end = {spec.name: spec for spec in layers[:place]}, layers[place]
    joined = sources[end.name]
    for back, past in zip(joined, reversed(joined), strict=True) if len(joined) == 2 else ():
        path = [back]
        while len(path) < 4 and len(sources.get(path[-1], ())) == 1:
            path += sources[path[-1]]
        branch = [rows[name] for name in reversed(path[:3]) if name in rows]
        own = [rows[past]] if past in rows else []
        kinds = {spec.kind for spec in (*branch[::2], *own)}
        if path[3:] != [given] or len(branch) < 3 or len(branch) + len(own) != place:
            continue
        if len(kinds) == 1 and kinds.issubset(LINEAR):
            beside = own[0] if own else None
            if (sources[past] if own else (past,)) == (given,):
                return _Block(branch[0], branch[1], branch[2], beside, end)
    return None


def _are_tied(into: LayerSpec, back: LayerSpec, network: Network, rows: Rows) -> bool:
    """Whether one layer is minus the adjoint of the other, but for biases."""
    first, second = (
        rows.sign(spec) * np.asarray(network.arrays[f"{spec.name}.weight"]) for spec in (into, back)
    )
    if into.kind == "linear":
        return np.array_equal(second, -first.T)
    given, wanted = (
        {**spec.options, "padding": rows.padding(spec), "around": rows.wraps(spec)}
        for spec in (into, back)
    )
    try:
        kernel, options = untransposed(first, given, {})
    except ValueError:  # strides
        return False
    return np.array_equal(second, -kernel) and options == wanted


def _refuse_minus(specs: Sequence[LayerSpec], rows: Rows) -> None:
    for spec in specs:
        if spec.name in rows.minus:
            raise UnsupportedModule(
                f"{spec.name}: is subtracted; of such a sum only x - G2 phi(G1 x + b) is trained, "
                "so add the layer, with a weight of the other sign"
            )


def _check_slopes(spec: LayerSpec, network: Network, form: str) -> None:
    said = f"{spec.name} ({spec.kind}): a {form} block needs an activation of slopes in [0, 1]"
    if spec.kind not in ACTIVATIONS:
        raise UnsupportedModule(f"{said}; use nn.ReLU")
    if not _rises(spec, network):
        low, high = _slopes(spec, network)
        raise UnsupportedModule(f"{said}, and this one has [{low:.6g}, {high:.6g}]; use nn.ReLU")


def _rises(spec: LayerSpec, network: Network) -> bool:
    """Whether an activation has slopes in [0, 1]."""
    if spec.kind not in ACTIVATIONS:
        return False
    low, high = _slopes(spec, network)
    return low >= 0.0 and high <= 1.0


def _slopes(spec: LayerSpec, network: Network) -> tuple[float, float]:
    """The least and the greatest slope of an activation."""
    shape = network.shapes()[spec.name]
    low, high = neuron_slopes(scalar_parts(spec, network.arrays, shape))
    return float(low.min()), float(high.max())
