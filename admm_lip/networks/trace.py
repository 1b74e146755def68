"""The order of evaluation of a torch module: leaf modules and whose outputs they take.

A plain ``nn.Sequential`` runs its parts in their order.  Of any other module ``torch.fx`` records
what its ``forward`` does, and the record is walked back from the output.
What came back is the whole function, because nothing else is recorded: a step that leads nowhere
(an in-place change beside the layers) is refused, and so is one that changes a value in place that
another step uses as well.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrize

from ..errors import UnsupportedModule
from .affine_torch import Elementwise, Shaped, Sum, Take
from .clipped import ClippedReLU, PairClip
from .constants import fold_constants, is_constant, works_in_place
from .functional_calls import (
    gives_its_input,
    is_join,
    is_size,
    label_of,
    module_of,
)
from .layer_spec import INPUT
from .overrides import refuse_overrides, unwrapped
from .promises import promise_of, promised_functions
from .scalar_math_torch import Formula
from .sorting_torch import HalfAbs, MaxMin
from .written_out_torch import WRITTEN_OUT, gather


class Step(NamedTuple):
    """One leaf: its qualified name, the module that computes it, and whose outputs it takes.

    No ``inputs`` are the leaf before it; ``"input"`` is the network's input.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...] = ()


# Leaves of this package.
_OWN = (MaxMin, HalfAbs, ClippedReLU, PairClip, Elementwise, Take, Sum, Shaped, Formula)
# What makes a Sequential run its parts in their order.
_SEQUENTIAL = {key: vars(nn.Sequential)[key] for key in ("forward", "__iter__")}


def is_torchlip_sort(module: nn.Module) -> bool:
    """Whether a module is deel-torchlip's ``GroupSort2``; the package need not be installed."""
    cls = type(module)
    return cls.__name__ == "GroupSort2" and cls.__module__.startswith("deel.torchlip.")


def is_leaf(module: nn.Module) -> bool:
    """Torch's own layers, classes derived from them, and parametrized modules."""
    if parametrize.is_parametrized(module) or isinstance(module, _OWN):
        return True
    if is_torchlip_sort(module) or promise_of(type(module)) is not None:
        return True
    # The last two of the method resolution order are nn.Module and object.
    torch_owned = any(c.__module__.startswith("torch.nn") for c in type(module).__mro__[:-2])
    return torch_owned and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


class _Tracer(fx.Tracer):
    """Stops at leaves."""

    # A buffer is recorded where it is used, as a parameter is, not handed to the user's code.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


def steps(module: nn.Module) -> list[Step]:
    """The leaves of ``module`` in the order in which its ``forward`` applies them.

    They are those of the mode that it is in.  What calls of the module do beside its ``forward``
    has been looked at (``overrides.py``).

    Raises:
        UnsupportedModule: by qualified name, for what is no supported layer.
    """
    if is_leaf(module):
        return [Step(type(module).__name__.lower(), module)]
    listed = _listed(module)
    if listed is not None:
        _refuse_sharing(listed)
        names = _distinct([step.name for step in listed])
        return [step._replace(name=name) for step, name in zip(listed, names, strict=True)]
    graph = _traced(_Tracer(autowrap_functions=promised_functions()), module)
    fold_constants(graph, module)
    dtype = dtype_of(module)
    gather(graph, module, dtype)
    nodes = _values(graph)
    found = [_step(module, node, dtype) for node in nodes]
    _refuse_sharing(found)
    for node, step in zip(nodes, found, strict=True):
        if works_in_place(node, step.module):
            _refuse_overwriting(node, dict(zip(nodes, found, strict=True)))
    return _named(nodes, found)


def path_of(module: nn.Module) -> list[Step]:
    """The same of a module in which every layer takes the output of the one before it.

    Raises:
        UnsupportedModule: also for a skip connection or a branch, by the layer's name.
    """
    module = unwrapped(module)
    refuse_overrides(module)
    found = steps(module)
    for step in found:
        if step.inputs:
            raise UnsupportedModule(
                f"{step.name}: takes the output of {' and '.join(step.inputs)}; skip connections "
                "and branches can be certified, but here only chains of layers are supported"
            )
    return found


def _named(nodes: list[fx.Node], found: list[Step]) -> list[Step]:
    """The steps under distinct names, each with those whose outputs it takes."""
    names: dict[fx.Node, str] = {}
    named: list[Step] = []
    distinct = _distinct([step.name for step in found])
    for node, step, name in zip(nodes, found, distinct, strict=True):
        given = tuple(names.get(value, INPUT) for value in _inputs(node))
        before = (named[-1].name if named else INPUT,)
        named.append(Step(name, step.module, () if given == before else given))
        names[node] = name
    return named


def _distinct(names: list[str]) -> list[str]:
    """An activation module may be used twice; the second use goes by another name."""
    used = Counter[str]()
    found = []
    for name in names:
        found.append(f"{name}:{used[name]}" if used[name] else name)
        used[name] += 1
    return found


def _listed(root: nn.Module) -> list[Step] | None:
    """The leaves of a plain ``nn.Sequential``, which says without a record what it runs.

    ``None`` for everything else: another class in it, a ``forward`` that is no longer torch's, or
    neighbours that may be one activation written out.
    """
    try:
        leaves = list(_parts(root))
    except RecursionError:  # it holds itself
        return None
    written = [type(leaf) in WRITTEN_OUT for leaf in leaves]
    if not all(map(is_leaf, leaves)) or any(a and b for a, b in pairwise(written)):
        return None
    names = {id(part): name for name, part in root.named_modules()}
    return [Step(names[id(leaf)], leaf) for leaf in leaves]


def _parts(module: Any) -> Iterator[Any]:
    """The modules that plain ``nn.Sequential``s run, in order; other modules as they are."""
    plain = type(module) is nn.Sequential and type(module._modules) is dict
    if plain and all(vars(nn.Sequential)[key] is own for key, own in _SEQUENTIAL.items()):
        for part in module._modules.values():
            yield from _parts(part)
    else:
        yield module


def _traced(tracer: fx.Tracer, module: nn.Module) -> fx.Graph:
    """What ``forward`` does, recorded; errors of the user's own code keep their first line."""
    try:
        return tracer.trace(module)
    except TraceError as error:
        why: Exception = error
        reason = "it branches on its input, or iterates over it"
    except Exception as error:
        why = error
        lines = str(error).splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no text'}"
    raise UnsupportedModule(
        f"{type(module).__name__}: its forward cannot be read as a chain of layers ({reason}); "
        "write it as nn.Sequential, without control flow on tensors"
    ) from why


def _values(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that lead from the input to the output, in their order."""
    output = next(n for n in graph.nodes if n.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise UnsupportedModule(
            f"{label_of(output)}: expected one tensor, got {type(output.args[0]).__name__}; a "
            "network that gives several values, or one value several times, is not supported"
        )
    needed: set[fx.Node] = set()
    waiting = [output.args[0]]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(filter(is_constant, node.all_input_nodes))
            inner = node.op == "placeholder" or is_constant(node)
            waiting.extend(() if inner else _inputs(node))
    _refuse_inputs([node for node in graph.nodes if node in needed and node.op == "placeholder"])
    leaves = (n for n in graph.nodes if n.op == "placeholder" or is_constant(n))
    layers = needed.difference(leaves)
    found = [n for n in graph.nodes if n in layers]
    if found and found[-1] is not output.args[0]:
        raise UnsupportedModule(f"{label_of(found[-1])}: comes after the value that is given back")
    _refuse_beside(graph, needed)
    return found


def _refuse_beside(graph: fx.Graph, needed: set[fx.Node]) -> None:
    """A value that leads nowhere was computed for what else it does, or for nothing."""
    for node in graph.nodes:
        if node not in needed and node.op not in ("placeholder", "output") and not is_size(node):
            raise UnsupportedModule(
                f"{label_of(node)}: is used beside the layers that lead to the output, and may "
                "change a weight or what comes after; take it out of the forward"
            )


def _refuse_inputs(placeholders: list[fx.Node]) -> None:
    if len(placeholders) > 1:
        raise UnsupportedModule(
            f"{' and '.join(label_of(node) for node in placeholders)}: expected one input from "
            "which the output is computed; concatenate them before the network"
        )


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The values that ``node`` works on, apart from sizes: one, or those that a join takes."""
    values: list[fx.Node] = []
    # all_input_nodes has a value once that is used twice.
    fx.map_arg((node.args, node.kwargs), values.append)
    values = [n for n in values if not (is_size(n) or is_constant(n))]
    if not values or (len(values) > 1 and not is_join(node)):
        what = f"combines {len(values)} values" if values else "does not use the input"
        raise UnsupportedModule(
            f"{label_of(node)}: {what}; values can be added and concatenated, and products of "
            "values, several inputs or outputs are not supported"
        )
    return values


def _refuse_overwriting(node: fx.Node, steps_of: dict[fx.Node, Step]) -> None:
    """An in-place step changes its input, and what that is a view of: nobody else may use it."""
    value = _inputs(node)[0]
    while True:
        users = [user for user in value.users if not is_size(user)]
        if len(users) > 1:
            others = ", ".join(label_of(user) for user in users if user is not node)
            raise UnsupportedModule(
                f"{label_of(node)}: works in place on a value that {others} uses as well; use the "
                "form that is not in place (inplace=False, x + y)"
            )
        if value.op == "placeholder" or not gives_its_input(value, steps_of[value].module):
            return
        value = _inputs(value)[0]


def _step(root: nn.Module, node: fx.Node, dtype: torch.dtype) -> Step:
    if node.op == "call_module":
        return Step(str(node.target), root.get_submodule(str(node.target)))
    return Step(node.name, module_of(node, dtype))


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type that a network computes in: that of its first parameter, else of its first buffer.

    float64 where it has neither.
    """
    held = itertools.chain(module.parameters(), module.buffers())
    return next((t.dtype for t in held if t.is_floating_point()), torch.float64)


def _refuse_sharing(chain: list[Step]) -> None:
    first: dict[int, str] = {}
    for step in chain:
        held = any(True for _ in step.module.parameters())
        if id(step.module) in first and held:
            raise UnsupportedModule(
                f"{step.name}: this module is used more than once (as {first[id(step.module)]}); "
                "shared modules are not supported: give every place its own copy"
            )
        first.setdefault(id(step.module), step.name)
