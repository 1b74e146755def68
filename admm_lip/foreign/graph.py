"""A computation graph as a file states it, and the walk that reads it as layers.

Formats differ in how they name operators and parameters; each brings a table of
:class:`Operator`.  The walk is the same for all: nodes in order, each working on a value
of the ones before, or joining several.  Nodes that do not lead to the output are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import NetworkError, UnsupportedModule
from ..networks.layers import Shape
from ..networks.network import Network
from ..networks.refusals import refuse_without_bound
from .network_builder import Layers, Position
from .node_parameters import Call, ChainValue

Constant = npt.NDArray[Any]
# A shape that a file computes holds this where the batch stands.
BATCH = -1
MAX_NODES = 10_000


class Ref(NamedTuple):
    """A parameter that is a value of the graph, by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Node:
    """One node: its operator, its name, its parameters by name, the names of its outputs.

    A parameter is a :class:`Ref`, a plain constant, or a list that may hold either.
    """

    op: str
    name: str
    parameters: Mapping[str, Any]
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """How an error names it."""
        return node_label(self.name, self.outputs, self.op)

    def refs(self) -> Iterator[str]:
        """Names of the values it uses, once for every use."""
        for value in self.parameters.values():
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(value, Ref):
                    yield value.name
                    break
                if isinstance(item, Ref):
                    yield item.name


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with one input and one output.

    Attributes:
        nodes: in an order in which they can be evaluated.
        constants: arrays by name.
        input: name of the input.
        shape: its shape without the batch.
        batch: size of the batch, where the file fixes it.
        output: name of the output.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    input: str
    shape: Shape
    batch: int | None
    output: str


def node_label(name: str, outputs: Iterable[str], op: str) -> str:
    """How an error names a node: by its name, else its outputs."""
    return f"node {name or ', '.join(outputs):.100} ({op:.60})"


def input_shape(
    name: str, dims: Sequence[int | None], given: Shape | None
) -> tuple[int | None, Shape]:
    """The batch (``None``: open) and the shape of one input.

    Args:
        name: the input's name, for messages.
        dims: what the file says, batch first, ``None`` where it leaves a size open.
        given: the shape without the batch that the user named, if any.
    """
    if len(dims) < 2:
        raise UnsupportedModule(
            f"input {name!r}: expected a batch axis and at least one more, got {[*dims]}; no "
            "input_shape helps: export the network again on a batch of inputs, (N, features)"
        )
    if given is None and None in dims[1:]:
        raise NetworkError(
            f"input {name!r}: its shape {[*dims]} is open beyond the batch; give input_shape"
        )
    sizes = dims[1:] if given is None else given
    shape = tuple(n for n in sizes if n is not None and n > 0)
    open_or_same = all(d in (None, n) for d, n in zip(dims[1:], shape, strict=False))
    if len(shape) != len(dims) - 1 or len(shape) != len(sizes) or not open_or_same:
        raise NetworkError(
            f"input_shape: the input {name!r} has the shape {[*dims]} (batch first), which does "
            f"not fit {tuple(sizes)}"
        )
    return dims[0], shape


@dataclass(frozen=True)
class Operator:
    """One row of a format's table.

    Attributes:
        inputs: names of the parameters that may be values, in the format's order; the first is
            the data.
        apply: adds the operator to the layers; gives the places of its outputs where it has
            several.
        defaults: parameters that may be missing, and what they are then.
        either: whether the data may also be the second input.
        view: whether what it gives may share memory with its data.
        join: adds the operator where several inputs are values.
    """

    inputs: tuple[str, ...]
    apply: Callable[[Layers, Call], list[Position] | None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    either: bool = False
    view: bool = False
    join: Callable[[Layers, Call, list[Position]], None] | None = None


@dataclass(frozen=True)
class Fold:
    """An operator on constants, evaluated while reading; ``of_shape``: it asks for a shape only."""

    inputs: tuple[str, ...]
    evaluate: Callable[[Call], Constant]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    of_shape: bool = False


def read_graph(
    graph: Graph, operators: Mapping[str, Operator], folds: Mapping[str, Fold]
) -> Network:
    """The network that ``graph`` computes.

    Raises:
        UnsupportedModule: by the node's name, for an operator or setting that is not in the
            tables, or values combined in another way than by a sum or end to end.
        NetworkError: for a graph that is damaged.
    """
    if len(graph.nodes) > MAX_NODES:
        raise UnsupportedModule(f"{len(graph.nodes)} nodes; at most {MAX_NODES} are read")
    walk = _Walk(graph, operators, folds)
    for node in graph.nodes:
        walk.step(node)
    if graph.output not in walk.values or graph.output == graph.input:
        raise UnsupportedModule(
            f"the output {graph.output!r} is the input itself, does not depend on it, or is made "
            "by no node"
        )
    walk.layers.go_to(walk.values[graph.output])
    return walk.layers.network()


class _Walk:
    """What is known up to a node: constants, and the values that depend on the input."""

    def __init__(
        self, graph: Graph, operators: Mapping[str, Operator], folds: Mapping[str, Fold]
    ) -> None:
        if graph.input in graph.constants:
            raise NetworkError(
                f"{graph.input!r} names the input and a constant; the file is damaged"
            )
        self.operators, self.folds = operators, folds
        self.batch = graph.batch
        self.constants = dict(graph.constants)
        self.uses = Counter([graph.output, *(n for node in graph.nodes for n in node.refs())])
        self.makers = {name: node for node in graph.nodes for name in node.outputs}
        self.number = number_type(graph.constants.values())
        self.layers = Layers(graph.shape)
        self.values = {graph.input: self.layers.position()}
        self.names = {graph.input, *graph.constants}

    def step(self, node: Node) -> None:
        uses = list(node.refs())
        for name in uses:
            if name not in self.constants and name not in self.values:
                raise NetworkError(
                    f"{node.label}: its input {name!r} is made by no node before it; the file is "
                    "damaged, or uses a second output, which is not supported"
                )
        # Outputs beside the first may be left unnamed; they are not read.
        made = [name for name in node.outputs[1:] if name] + [*node.outputs[:1]]
        repeated = len(set(made)) < len(made) or self.names.intersection(made)
        if not node.outputs or not node.outputs[0] or repeated:
            raise NetworkError(f"{node.label}: expected an output of a new name")
        self.names.update(made)
        values = [name for name in uses if name in self.values]
        fold = self.folds.get(node.op)
        if fold is not None and (fold.of_shape or not values):
            call = self._call(node, fold.defaults, fold.inputs)
            self.constants[node.outputs[0]] = fold.evaluate(call)
        else:
            self._extend(node, values)

    def _extend(self, node: Node, values: list[str]) -> None:
        operator = self.operators.get(node.op)
        if operator is None:
            refuse_without_bound(node.label, node.op.split("."))
            known = ", ".join(sorted(op for op in self.operators if " " not in op))
            raise UnsupportedModule(f"{node.label} is not supported; supported: {known}")
        if not values:
            raise UnsupportedModule(
                f"{node.label}: does not depend on the input; fold constants before exporting, and "
                "call model.eval() if it counts batches for a normalisation"
            )
        call = self._call(node, operator.defaults, operator.inputs)
        if _works_in_place(node.op):
            self._refuse_overwriting(node, next(node.refs()))
        if len(values) > 1:
            self._join(node, operator, call, values)
        else:
            self._apply(node, operator, call, values[0])
        self.values.setdefault(node.outputs[0], self.layers.position())

    def _apply(self, node: Node, operator: Operator, call: Call, value: str) -> None:
        allowed = operator.inputs[: 2 if operator.either else 1]
        if not any(node.parameters.get(key) == Ref(value) for key in allowed):
            raise UnsupportedModule(
                f"{node.label}: expected the network's value as its input {allowed[0]}, "
                "and constants elsewhere"
            )
        self.layers.go_to(self.values[value])
        several = operator.apply(self.layers, call)
        if several is not None:
            self.values.update(zip(node.outputs, several, strict=False))

    def _refuse_overwriting(self, node: Node, value: str) -> None:
        """An in-place step changes its data, and what that may be a view of: nobody may use it."""
        while True:
            if self.uses[value] > 1 or value not in self.values:
                raise UnsupportedModule(
                    f"{node.label}: works in place on what {value!r} may share its memory with, "
                    "which is used elsewhere as well; use the form that is not in place"
                )
            maker = self.makers.get(value)
            row = None if maker is None else self.operators.get(maker.op)
            if maker is None or row is None or not row.view:
                return
            value = next(name for name in maker.refs() if name in self.values)

    def _join(self, node: Node, operator: Operator, call: Call, values: list[str]) -> None:
        if operator.join is None:
            raise UnsupportedModule(
                f"{node.label}: combines {' and '.join(values)}; values can be added, or put one "
                "after the other, but a product of values has no Lipschitz constant"
            )
        if len(values) != sum(1 for _ in node.refs()):
            raise UnsupportedModule(f"{node.label}: joins values with constants")
        operator.join(self.layers, call, [self.values[name] for name in values])

    def _call(self, node: Node, defaults: Mapping[str, Any], inputs: tuple[str, ...]) -> Call:
        known = {*inputs, *defaults}
        unknown = set(node.parameters) - known
        missing = set(inputs) - set(defaults) - set(node.parameters)
        if unknown or missing:
            what = f"has the unknown {sorted(unknown)}" if unknown else f"lacks {sorted(missing)}"
            raise UnsupportedModule(f"{node.label}: {what}; it takes {sorted(known)}")
        given = {key: self._resolved(value) for key, value in node.parameters.items()}
        parameters = {**defaults, **given}
        return Call(
            node.label,
            node.name or node.outputs[0],
            parameters,
            self.batch,
            self.number,
            len(node.outputs),
        )

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, Ref):
            place = self.values.get(value.name)
            return self.constants[value.name] if place is None else ChainValue(place.shape)
        if isinstance(value, list | tuple):
            return [self._resolved(item) for item in value]
        return value


def _works_in_place(op: str) -> bool:
    """Whether ATen's operator overwrites its data: ``aten.relu_.default``."""
    return op.startswith("aten.") and op.split(".")[1].endswith("_")


def number_type(constants: Iterable[Constant]) -> Any:
    """The type that a plain number has in the computation: float32 beside floats no wider."""
    floats = [c.dtype for c in constants if np.issubdtype(c.dtype, np.floating)]
    narrow = floats and all(dtype.itemsize <= 4 for dtype in floats)
    return np.float32 if narrow else np.float64
