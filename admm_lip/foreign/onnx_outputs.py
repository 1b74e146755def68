"""Which value of an ONNX file is its network's output, where labels and probabilities are made.

Classifiers are exported with several outputs: a label, and probabilities by class.  Both are read
off one value, the scores before the softmax or the logistic function, which is what has a
Lipschitz constant worth knowing.  Outputs that are not read off the same value are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import OutputsLeftOut, UnsupportedModule
from .onnx_tensors import text

# What makes labels, and dictionaries of probabilities; which input is read.
LABELS: Mapping[str, int] = {
    "ArgMax": 0,
    "ZipMap": 0,
    "ArrayFeatureExtractor": 1,
    "LabelEncoder": 0,
}
# What a label is moved through; numbers are the same after Identity and a cast to floats only.
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze")
_FLOATS = (1, 11)


def output_of(graph: Any) -> tuple[str, list[Any]]:
    """The value that a graph's outputs come from, and the nodes that lead to it.

    A graph with one output that is no label is taken as it is.

    Args:
        graph: the message of an ONNX graph.

    Raises:
        UnsupportedModule: where outputs come from different values, by name.
    """
    outputs = [text(value.name) for value in graph.output]
    makers = {text(name): node for node in graph.node for name in node.output if name}
    paths = {name: [*_back(name, makers)] for name in outputs}
    if len(outputs) == 1 and not any(op in LABELS for _, op in paths[outputs[0]]):
        return outputs[0], list(graph.node)
    values = {name: path[-1][0] if path else name for name, path in paths.items()}
    if len(set(values.values())) != 1:
        raise UnsupportedModule(
            "expected one output, or outputs that are labels and probabilities of the same "
            f"scores, got {_listed(values)}; keep one of them"
        )
    value = values[outputs[0]]
    left_out = [name for name in outputs if name != value]
    warnings.warn(
        f"the outputs {', '.join(left_out)} are labels or probabilities and are left out; what is "
        f"read are the scores that they come from, {value}",
        OutputsLeftOut,
        stacklevel=2,
    )
    return value, _leading_to(value, graph.node)


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r:.60} (of {value!r:.60})" for name, value in values.items()) or "none"


def _back(name: str, makers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """From an output back to its scores: the values that say the same class, and by what."""
    passed, moved = {name}, list[tuple[str, str]]()
    exact = True  # what was moved through keeps numbers as they are
    labelled = probable = False
    while (node := makers.get(name)) is not None:
        op = text(node.op_type)
        kept = op == "Identity" or (op == "Cast" and _integer(node, "to") in _FLOATS)
        if kept or (op in _MOVES and not labelled):
            before, exact = _input(node, 0), exact and kept
        elif op in LABELS and not probable:
            before, exact = _input(node, LABELS[op]), True
            labelled = labelled or op in ("ArgMax", "ZipMap")
        elif exact and not probable and (before := _before_probability(node, makers)):
            probable = True
        else:
            return
        if before in passed:
            return
        passed.add(before)
        name = before
        moved.append((name, op))
        if op not in _MOVES:  # what moves counts where a label or a probability is behind it
            yield from moved
            moved = []


def _before_probability(node: Any, makers: Mapping[str, Any]) -> str:
    """The scores that a node makes probabilities of; empty where it makes none."""
    op = text(node.op_type)
    if op == "Softmax":
        return _input(node, 0) if _integer(node, "axis") in (None, 1, -1) else ""
    if op != "Concat" or len(node.input) != 2:
        return ""
    rest, share = (makers.get(_input(node, k)) for k in (0, 1))
    complement = (
        rest is not None
        and text(rest.op_type) == "Sub"
        and len(rest.input) == 2
        and _input(rest, 1) == _input(node, 1)
    )
    logistic = share is not None and text(share.op_type) == "Sigmoid"
    return _input(share, 0) if complement and logistic else ""


def _integer(node: Any, name: str) -> int | None:
    found: list[int] = [a.i for a in node.attribute if text(a.name) == name]
    return found[-1] if found else None


def _input(node: Any, place: int) -> str:
    return text(node.input[place]) if len(node.input) > place else ""


def _leading_to(value: str, nodes: Sequence[Any]) -> list[Any]:
    """The nodes that a value is made by, in their order."""
    needed, kept = {value}, []
    for node in reversed(nodes):
        if needed.intersection(map(text, node.output)):
            kept.append(node)
            needed.update(map(text, node.input))
    return kept[::-1]
