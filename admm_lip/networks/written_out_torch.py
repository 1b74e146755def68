"""Steps of a recorded ``forward`` that are one activation written out, replaced by its module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .constants import constant_array, is_constant, works_in_place
from .expressions import NotWritten
from .functional_calls import ARITHMETIC, LAYER
from .scalar_math_torch import FORMULAS
from .written_out import Found, Scalar, factors, found_in

# Per call: its function, beside arithmetic.
_CALLS: Mapping[Callable[..., Any] | str, str] = {
    **ARITHMETIC,
    **{
        call: name
        for name in ("exp", "log", "erf", "tanh", "abs", "sigmoid", "reciprocal", "square", "relu")
        for call in (getattr(torch, name), name)
    },
    torch.special.erf: "erf",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    F.relu: "relu",
    F.relu6: "relu6",
    F.softplus: "softplus",
    operator.pow: "pow",
    torch.pow: "pow",
    "pow": "pow",
}
# Modules that may be a part of an activation written out.
WRITTEN_OUT: Mapping[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Softplus: "softplus",
}
# What is read as a layer of its own where it stands alone.
_NATIVE = frozenset(
    (
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "neg",
        "tanh",
        "sigmoid",
        "relu",
        "relu6",
        "softplus",
        "abs",
    )
)


def gather(graph: fx.Graph, root: nn.Module, dtype: torch.dtype) -> None:
    """Replace every activation that is written out in ``graph``, in place.

    Args:
        graph: recorded of ``root``, its constants computed (``constants.fold_constants``).
        root: the module.
        dtype: that it computes in.
    """
    nodes = {node.name: node for node in graph.nodes}
    inner = {node.name: _scalar(node, root, dtype) for node in graph.nodes}
    for match in found_in([step for step in inner.values() if step is not None], _NATIVE):
        _replace(graph, nodes, match)
    for node in reversed(graph.nodes):
        step = inner.get(node.name)
        if step is not None and step.function is not None and not node.users:
            graph.erase_node(node)


def _replace(graph: fx.Graph, nodes: Mapping[str, fx.Node], match: Found) -> None:
    last, value = nodes[match.name], nodes[match.root]
    with graph.inserting_before(last):
        for operation, number in factors(match.before):
            value = graph.call_function(_OPERATIONS[operation], (value, number))
        value = graph.call_function(_written_out, (value,))
        value.meta[LAYER] = FORMULAS[match.kind](**match.options)
        for operation, number in factors(match.after):
            value = graph.call_function(_OPERATIONS[operation], (value, number))
    last.replace_all_uses_with(value)


def _written_out(x: Any) -> Any:
    """Stands for the module that is kept with the node."""
    raise NotImplementedError


_OPERATIONS = {"mul": operator.mul, "div": operator.truediv}


def _scalar(node: fx.Node, root: nn.Module, dtype: torch.dtype) -> Scalar | None:
    """A node as a step; ``None`` for what is no value."""
    if node.op == "output" or is_constant(node):
        return None
    other = Scalar(node.name, None, tuple(n.name for n in node.all_input_nodes))
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        name = WRITTEN_OUT.get(type(module))
        plain = not getattr(module, "inplace", False)
        if type(module) is nn.Softplus:
            plain = (module.beta, module.threshold) == (1.0, 20.0)
        if name is None or not plain or module._forward_hooks:
            return other
    elif node.op in ("call_function", "call_method") and node.target in _CALLS:
        name = _CALLS[node.target]
    else:
        return other
    keywords = {k: v for k, v in node.kwargs.items() if not (k == "inplace" and v is False)}
    if keywords or works_in_place(node):
        return other
    try:
        operands = [_operand(node, value, dtype) for value in node.args]
    except NotWritten:
        return other
    return Scalar(node.name, name, tuple(operands))


def _operand(node: fx.Node, value: Any, dtype: torch.dtype) -> str | Fraction:
    if isinstance(value, fx.Node) and not is_constant(value):
        return value.name
    held = value.meta.get("constant") if isinstance(value, fx.Node) else value
    if isinstance(held, int) and not isinstance(held, bool):
        return Fraction(held)
    if isinstance(held, torch.Tensor) and held.numel() != 1:
        raise NotWritten
    if not isinstance(held, float | torch.Tensor):
        raise NotWritten
    return Fraction(float(constant_array(node.name, value, dtype).reshape(())))
