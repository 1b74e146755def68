"""Nodes of a file that are one activation written out, replaced by that activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UnsupportedModule
from ..networks.network import Network
from ..networks.written_out import Found, Scalar, factors, found_in
from .graph import MAX_NODES, Fold, Graph, Node, Operator, Ref, number_type, read_graph
from .network_builder import Layers
from .node_parameters import Call

# No format has an operator of this name.
WRITTEN_OUT = "an activation written out"
# Per operator: its function and its operands, by parameter or as they stand.
Names = Mapping[str, tuple[str, tuple[str | float, ...]]]

_TWO = ("self", "other")
ATEN: Names = {
    **{f"aten.{op}.Tensor": (op, _TWO) for op in ("add", "sub", "mul", "div", "rsub")},
    **{f"aten.{op}.Scalar": (op, _TWO) for op in ("rsub",)},
    "aten.pow.Tensor_Scalar": ("pow", ("self", "exponent")),
    **{
        f"aten.{op}.default": (op, ("self",))
        for op in (
            *("neg", "reciprocal", "square", "exp", "log", "erf", "tanh", "abs", "sigmoid"),
            *("relu", "relu6"),
        )
    },
    "aten.clone.default": ("same", ("self",)),
    "aten.softplus.default": ("softplus", ("self",)),
    "aten.clamp.default": ("clip", ("self", "min", "max")),
    "aten.hardtanh.default": ("clip", ("self", "min_val", "max_val")),
    "aten.hardsigmoid.default": ("hardsigmoid", ("self", 1.0 / 6.0, 0.5)),
}
ONNX: Names = {
    **{op: (op.lower(), ("A", "B")) for op in ("Add", "Sub", "Mul", "Div")},
    "Pow": ("pow", ("X", "Y")),
    "Neg": ("neg", ("X",)),
    "Reciprocal": ("reciprocal", ("X",)),
    "Identity": ("same", ("input",)),
    "Exp": ("exp", ("X",)),
    "Log": ("log", ("X",)),
    "Erf": ("erf", ("X",)),
    "Tanh": ("tanh", ("X",)),
    "Abs": ("abs", ("X",)),
    "Sigmoid": ("sigmoid", ("X",)),
    "Softplus": ("softplus", ("X",)),
    "Relu": ("relu", ("X",)),
    "Clip": ("clip", ("input", "min", "max")),
    "HardSigmoid": ("hardsigmoid", ("X", "alpha", "beta")),
    "Greater": ("greater", ("A", "B")),
    "Where": ("where", ("condition", "X", "Y")),
}
# Names of the inputs of what no layer is, in order.
ONNX_INPUTS: Mapping[str, tuple[str, ...]] = {
    "Pow": ("X", "Y"),
    "Greater": ("A", "B"),
    "Where": ("condition", "X", "Y"),
    **dict.fromkeys(("Reciprocal", "Exp", "Log", "Erf"), ("X",)),
}


def _apply(layers: Layers, call: Call) -> None:
    for operation, number in factors(call["before"]):
        layers.arithmetic(call, operation, np.array(number))
    layers.activation(call, call["kind"], call["options"])
    for operation, number in factors(call["after"]):
        layers.arithmetic(call, operation, np.array(number))


_OPERATOR = Operator(("x",), _apply, dict.fromkeys(("kind", "options", "before", "after")))


def read(
    graph: Graph, operators: Mapping[str, Operator], folds: Mapping[str, Fold], names: Names
) -> Network:
    """The network that ``graph`` computes; see :func:`~admm_lip.foreign.graph.read_graph`.

    Args:
        graph: as a file states it.
        operators: rows of the format's table.
        folds: likewise.
        names: what its operators are among the functions of expressions.
    """
    if any(node.op == WRITTEN_OUT for node in graph.nodes):
        raise UnsupportedModule(f"{WRITTEN_OUT!r} is no operator of a file")
    whole = _gathered(graph, names, operators)
    return read_graph(whole, {**operators, WRITTEN_OUT: _OPERATOR}, folds)


def _gathered(graph: Graph, names: Names, supported: Iterable[str]) -> Graph:
    """The graph with every activation that is written out as one node."""
    taken = [graph.input, *graph.constants, *(o for node in graph.nodes for o in node.outputs if o)]
    if len(set(taken)) < len(taken) or len(graph.nodes) > MAX_NODES:
        return graph  # damaged: the walk says where
    known = frozenset(supported)
    native = frozenset(function for op, (function, _) in names.items() if op in known)
    constants = _Constants(graph)
    steps = [_scalar(node, names, constants) for node in graph.nodes if node.outputs]
    found = {match.name: match for match in found_in(steps, native)}
    if not found:
        return graph
    nodes = [_node(node, found) for node in graph.nodes]
    scalars = {step.name for step in steps if step.function is not None}
    return replace(graph, nodes=tuple(_used(nodes, graph.output, scalars)))


class _Constants:
    """The numbers that every entry of a value is computed with."""

    def __init__(self, graph: Graph) -> None:
        self.held = graph.constants
        self.type = number_type(graph.constants.values())

    def operand(self, value: Any) -> str | Fraction | None:
        """A name, or a number; ``None`` for anything else."""
        if isinstance(value, Ref):
            if value.name not in self.held:
                return value.name
            array = self.held[value.name]
            plain = array.size == 1 and np.issubdtype(array.dtype, np.number)
            value = array.item() if plain else None
        elif isinstance(value, float):
            value = float(self.type(value))  # as it is computed with
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return Fraction(value) if np.isfinite(value) else None


def _node(node: Node, found: Mapping[str, Found]) -> Node:
    match = found.get(node.outputs[0]) if node.outputs else None
    if match is None:
        return node
    parameters = {
        "x": Ref(match.root),
        "kind": match.kind,
        "options": match.options,
        "before": match.before,
        "after": match.after,
    }
    return Node(WRITTEN_OUT, node.name, parameters, node.outputs[:1])


def _used(nodes: Sequence[Node], output: str, scalars: set[str]) -> list[Node]:
    """Without the steps that only what was replaced made use of."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if node.outputs and node.outputs[0] in scalars and node.outputs[0] not in needed:
            continue
        kept.append(node)
        needed.update(node.refs())
    return kept[::-1]


def _scalar(node: Node, names: Names, constants: _Constants) -> Scalar:
    function, keys = names.get(node.op, (None, ()))
    other = Scalar(node.outputs[0], None, tuple(node.refs()))
    if function is None or any(node.outputs[1:]):
        return other
    given = {key: value for key, value in node.parameters.items() if value is not None}
    operands = [constants.operand(given.get(k) if isinstance(k, str) else k) for k in keys]
    beside = {key for key in {*given} - {*keys} if _PLAIN.get(key, given[key]) != given[key]}
    unread = {*given} - {*keys} - {*_PLAIN}
    if beside or unread or any(operand is None for operand in operands):
        return other
    return Scalar(node.outputs[0], function, tuple(v for v in operands if v is not None))


# Other parameters, and the values of them that change nothing.
_PLAIN: Mapping[str, Any] = {"alpha": 1, "beta": 1, "threshold": 20}
