"""The order of evaluation of a torch module: a pure chain of leaf modules, or an error by name.

``torch.fx`` records what the module's ``forward`` does; the record is walked back from the output.
What came back is the whole function, because every value on the way must have exactly one user
(its shape may be asked for): a skip, a branch, a module called twice or an in-place change beside
the chain shows as a second user, as a step that combines two values, or as one beside the path.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrize

from ..errors import UnsupportedModule
from .clipped import ClippedReLU, PairClip
from .functional_calls import asks_shape, is_size, label_of, module_of
from .overrides import refuse_overrides, unwrapped
from .sorting_torch import HalfAbs, MaxMin


class Step(NamedTuple):
    """One leaf of the chain: its qualified name and the module that computes it."""

    name: str
    module: nn.Module


# Leaves of this package.
_OWN = (MaxMin, HalfAbs, ClippedReLU, PairClip)


def is_torchlip_sort(module: nn.Module) -> bool:
    """Whether a module is deel-torchlip's ``GroupSort2``; the package need not be installed."""
    cls = type(module)
    return cls.__name__ == "GroupSort2" and cls.__module__.startswith("deel.torchlip.")


class _Tracer(fx.Tracer):
    """Stops at torch's own layers, classes derived from them, and parametrized modules."""

    # A buffer is recorded where it is used, as a parameter is, not handed to the user's code.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if parametrize.is_parametrized(m) or isinstance(m, _OWN):
            return True
        if is_torchlip_sort(m):
            return True
        # The last two of the method resolution order are nn.Module and object.
        torch_owned = any(c.__module__.startswith("torch.nn") for c in type(m).__mro__[:-2])
        return torch_owned and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def steps(module: nn.Module) -> list[Step]:
    """The leaves of ``module`` in the order in which its ``forward`` applies them.

    They are those of the mode that it is in; ``module_state.evaluating`` puts it into evaluation.

    Raises:
        UnsupportedModule: by qualified name, for anything that is not a pure chain, and for what
            makes a module compute something else than its classes say (``overrides.py``).
    """
    module = unwrapped(module)
    refuse_overrides(module)
    tracer = _Tracer()
    if tracer.is_leaf_module(module, ""):
        return [Step(type(module).__name__.lower(), module)]
    graph = _traced(tracer, module)
    chain = [_step(module, node) for node in _path(graph)]
    _refuse_sharing(chain)
    # An activation module may be used twice; the second use goes by another name.
    names = [s.name for s in chain]
    return [
        s if s.name not in names[:k] else Step(f"{s.name}:{names[:k].count(s.name)}", s.module)
        for k, s in enumerate(chain)
    ]


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


def _path(graph: fx.Graph) -> list[fx.Node]:
    """The nodes from the input to the output, each checked to be the only use of the one before."""
    output = next(n for n in graph.nodes if n.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise UnsupportedModule(
            f"{label_of(output)}: expected one tensor, got {type(output.args[0]).__name__}; a "
            "network that gives several values, or one value several times, is not supported"
        )
    node = _only_input(output)
    path = []
    while node.op != "placeholder":
        path.append(node)
        node = _only_input(node)
    for value in [*path, node]:
        users = [user for user in value.users if not asks_shape(user)]
        if len(users) > 1:
            names = ", ".join(label_of(user) for user in users)
            raise UnsupportedModule(
                f"{label_of(value)}: its output is used more than once (by {names}); skip "
                "connections and branches are not supported, only chains of layers"
            )
    _refuse_beside(graph, path)
    return path[::-1]


def _refuse_beside(graph: fx.Graph, path: list[fx.Node]) -> None:
    """A value that leads nowhere was computed for what else it does, or for nothing."""
    for node in graph.nodes:
        if node not in path and node.op not in ("placeholder", "output") and not is_size(node):
            raise UnsupportedModule(
                f"{label_of(node)}: is used beside the chain of layers, and may change a weight "
                "or what comes after; take it out of the forward"
            )


def _only_input(node: fx.Node) -> fx.Node:
    """The one value that ``node`` works on, apart from sizes."""
    values: list[fx.Node] = []
    # all_input_nodes has a value once that is used twice.
    fx.map_arg((node.args, node.kwargs), values.append)
    values = [n for n in values if not is_size(n)]
    if len(values) != 1 or values[0].op == "get_attr":
        what = f"combines {len(values)} values" if values else "does not use the input"
        raise UnsupportedModule(
            f"{label_of(node)}: {what}; skip connections, branches, several inputs or outputs and "
            "bare parameters are not supported, only chains of layers"
        )
    return values[0]


def _step(root: nn.Module, node: fx.Node) -> Step:
    if node.op == "call_module":
        return Step(str(node.target), root.get_submodule(str(node.target)))
    return Step(node.name, module_of(node))


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
