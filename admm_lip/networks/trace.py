"""The order of evaluation of a torch module: a pure chain of leaf modules, or an error by name.

``torch.fx`` records what the module's ``forward`` does; the record is walked back from the output.
What came back is the whole function, because every value on the way must have exactly one user
(its shape may be asked for): a skip, a branch, a module called twice or an in-place change beside
the chain shows as a second user, or as a step that combines two values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModule
from .clipped import ClippedReLU, PairClip
from .sorting_torch import HalfAbs, MaxMin


class Step(NamedTuple):
    """One leaf of the chain: its qualified name and the module that computes it."""

    name: str
    module: nn.Module


@dataclass(frozen=True)
class Function:
    """A function call that equals a module: its parameters in order, and defaults of its own."""

    module: type[nn.Module]
    parameters: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


_POOL = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_RELU = Function(nn.ReLU, ("inplace",))
_FLATTEN = Function(nn.Flatten, ("start_dim", "end_dim"), {"start_dim": 0})

# Calls that are read as modules; strings are methods of a tensor.
FUNCTIONS: dict[Callable[..., Any] | str, Function] = {
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu: _RELU,
    "relu": _RELU,
    "relu_": _RELU,
    F.leaky_relu: Function(nn.LeakyReLU, ("negative_slope", "inplace")),
    F.elu: Function(nn.ELU, ("alpha", "inplace")),
    F.relu6: Function(nn.ReLU6, ("inplace",)),
    F.hardtanh: Function(nn.Hardtanh, ("min_val", "max_val", "inplace")),
    torch.tanh: Function(nn.Tanh),
    F.tanh: Function(nn.Tanh),
    "tanh": Function(nn.Tanh),
    torch.sigmoid: Function(nn.Sigmoid),
    F.sigmoid: Function(nn.Sigmoid),
    "sigmoid": Function(nn.Sigmoid),
    F.softplus: Function(nn.Softplus, ("beta", "threshold")),
    F.gelu: Function(nn.GELU, ("approximate",)),
    F.silu: Function(nn.SiLU, ("inplace",)),
    F.avg_pool2d: Function(nn.AvgPool2d, _POOL),
    torch.flatten: _FLATTEN,
    "flatten": _FLATTEN,
}
_DROPOUT_PARAMETERS = ("p", "training", "inplace")
_VIEWS = ("view", "reshape")
# Leaves of this package.
_OWN = (MaxMin, HalfAbs, ClippedReLU, PairClip)


def is_torchlip_sort(module: nn.Module) -> bool:
    """Whether a module is deel-torchlip's ``GroupSort2``; the package need not be installed."""
    cls = type(module)
    return cls.__name__ == "GroupSort2" and cls.__module__.startswith("deel.torchlip.")


class Reshape(nn.Module):
    """What ``x.view(x.size(0), n)`` does: flatten, with ``size`` the asserted length or None."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size


class _Tracer(fx.Tracer):
    """Stops at torch's own layers, classes derived from them, and parametrized modules."""

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

    Raises:
        UnsupportedModule: by qualified name, for anything that is not a pure chain.
    """
    _refuse_hooks(module)
    tracer = _Tracer()
    if tracer.is_leaf_module(module, ""):
        return [Step(type(module).__name__.lower(), module)]
    try:
        graph = tracer.trace(module)
    except Exception as error:
        raise UnsupportedModule(
            f"{type(module).__name__}: its forward cannot be read as a chain of layers "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}); "
            "write it as nn.Sequential, without control flow on tensors"
        ) from error
    chain = [_step(module, node) for node in _path(graph)]
    _refuse_sharing(chain)
    # An activation module may be used twice; the second use goes by another name.
    names = [s.name for s in chain]
    return [
        s if s.name not in names[:k] else Step(f"{s.name}:{names[:k].count(s.name)}", s.module)
        for k, s in enumerate(chain)
    ]


def _path(graph: fx.Graph) -> list[fx.Node]:
    """The nodes from the input to the output, each checked to be the only use of the one before."""
    node = _only_input(next(n for n in graph.nodes if n.op == "output"))
    path = []
    while node.op != "placeholder":
        path.append(node)
        node = _only_input(node)
    for value in [*path, node]:
        users = [user for user in value.users if not _asks_shape(user)]
        if len(users) > 1:
            names = ", ".join(_label(user) for user in users)
            raise UnsupportedModule(
                f"{_label(value)}: its output is used more than once (by {names}); skip "
                "connections and branches are not supported, only chains of layers"
            )
    return path[::-1]


def _only_input(node: fx.Node) -> fx.Node:
    """The one value that ``node`` works on, apart from sizes."""
    values = [n for n in node.all_input_nodes if not _is_size(n)]
    if len(values) != 1 or values[0].op == "get_attr":
        what = f"combines {len(values)} values" if values else "does not use the input"
        raise UnsupportedModule(
            f"{_label(node)}: {what}; skip connections, branches, several inputs or outputs and "
            "bare parameters are not supported, only chains of layers"
        )
    return values[0]


def _asks_shape(node: fx.Node) -> bool:
    asks = node.op == "call_method" and node.target == "size"
    return asks or (node.target is getattr and node.args[1:] == ("shape",))


def _is_size(node: fx.Node) -> bool:
    """``x.size(0)``, ``x.shape`` or ``x.shape[0]``."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return _asks_shape(node.args[0])
    return _asks_shape(node)


def _is_batch_size(value: Any) -> bool:
    """``x.size(0)`` or ``x.shape[0]``."""
    if not isinstance(value, fx.Node) or not _is_size(value):
        return False
    return value.args[1:] == (0,) and not value.kwargs


def _step(root: nn.Module, node: fx.Node) -> Step:
    if node.op == "call_module":
        return Step(str(node.target), root.get_submodule(str(node.target)))
    if node.op == "call_method" and node.target in _VIEWS:
        return Step(node.name, _view(node))
    key = node.target
    if key is F.dropout:
        return Step(node.name, _dropout(node))
    if key not in FUNCTIONS:
        raise UnsupportedModule(
            f"{_label(node)} is not supported; supported calls: {', '.join(_supported_calls())}"
        )
    function = FUNCTIONS[key]
    options = {**function.defaults, **_options(node, function.parameters)}
    return Step(node.name, function.module(**options))


def _options(node: fx.Node, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The constants a function was called with, by name."""
    extra = node.args[1:]
    given = dict(zip(parameters, extra, strict=False))
    given.update({k: v for k, v in node.kwargs.items() if k != "input"})
    known = len(extra) <= len(parameters) and set(given) <= set(parameters)
    if not known or any(isinstance(v, fx.Node) for v in given.values()):
        raise UnsupportedModule(
            f"{_label(node)}: cannot read its arguments {(*extra, dict(node.kwargs))}; "
            f"expected constants among {parameters}"
        )
    return given


def _dropout(node: fx.Node) -> nn.Module:
    options = {"p": 0.5, "training": True, **_options(node, _DROPOUT_PARAMETERS)}
    return nn.Dropout(options["p"]).train(options["training"])


def _view(node: fx.Node) -> Reshape:
    """``x.view(x.size(0), -1)``, ``x.view(-1, n)`` and the like."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    if len(sizes) == 2 and not node.kwargs:
        batch, size = sizes
        if _is_batch_size(batch) and size == -1:
            return Reshape(None)
        if (_is_batch_size(batch) or batch == -1) and type(size) is int and size > 0:
            return Reshape(size)
    raise UnsupportedModule(
        f"{_label(node)}: only a flatten is supported, x.flatten(1) or x.view(x.size(0), -1)"
    )


def _refuse_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if child._forward_hooks or child._forward_pre_hooks:
            raise UnsupportedModule(
                f"{name or type(child).__name__}: has forward hooks, which may change what it "
                "computes; remove them (torch.nn.utils.remove_weight_norm and the like) first"
            )


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


def _supported_calls() -> list[str]:
    names = {f if isinstance(f, str) else f.__name__ for f in FUNCTIONS}
    return sorted(names | {"dropout", *_VIEWS})


def _label(node: fx.Node) -> str:
    """How an error names a node: a module by its qualified name, a function by its own."""
    labels = {
        "call_module": str(node.target),
        "placeholder": f"the input {node.target}",
        "output": "the output",
        "call_method": f"the method .{node.target}()",
        "get_attr": f"the attribute {node.target}",
    }
    function = getattr(node.target, "__name__", str(node.target))
    return labels.get(node.op, f"the function {function}()")
