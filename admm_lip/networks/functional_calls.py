"""Calls in a recorded ``forward`` that equal a module: ``torch.relu(x)``, ``x.flatten(1)``, ..."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import NetworkError, UnsupportedModule
from .activation_row import Spelling
from .activations import ACTIVATIONS
from .affine_torch import Elementwise
from .constants import CONSTANT, constant_array, is_constant, works_in_place
from .elementwise import arithmetic
from .promises import PromisedFunction, promise_of
from .refusals import refuse_without_bound
from .scalar_math_torch import FORMULAS


@dataclass(frozen=True)
class Function:
    """A function call that equals a module: its parameters in order, and defaults of its own."""

    module: Callable[..., nn.Module]
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
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_FLATTEN = Function(nn.Flatten, ("start_dim", "end_dim"), {"start_dim": 0})


def _function_of(name: str) -> Callable[..., Any] | str:
    """What ``"torch.relu"``, ``"F.relu"`` and the method ``".relu"`` are to a tracer."""
    place, _, name = name.rpartition(".")
    return getattr({"torch": torch, "F": F}[place], name) if place else name


def _row_function(kind: str, spelling: Spelling) -> Function:
    if not spelling.module:
        return Function(FORMULAS[kind], (), dict(spelling.fixed))
    open_ = [key for key in ACTIVATIONS[kind].defaults if key not in spelling.fixed]
    return Function(getattr(nn, spelling.module), (*open_, "inplace"))


_ACTIVATIONS = {
    _function_of(name): _row_function(kind, spelling)
    for kind, row in ACTIVATIONS.items()
    for spelling in row.spellings
    for name in spelling.calls
}


def _softmax(cls: type[nn.Module]) -> Function:
    """``F.softmax`` has a parameter more, which says nothing."""

    def module(dim: int, _stacklevel: int = 3, dtype: None = None) -> nn.Module:
        if dtype is not None:
            raise UnsupportedModule(f"softmax with dtype={dtype}: only that of its input is read")
        return cls(dim)

    return Function(module, ("dim", "_stacklevel", "dtype"))


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    """``torch.clamp`` between two numbers."""
    if min is None or max is None:
        raise UnsupportedModule("a clamp by one limit is no single layer; torch.export reads it")
    if not min < max:
        raise UnsupportedModule(f"clamp: expected min < max, got {min} and {max}")
    return nn.Hardtanh(min, max)


_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")

# Calls that are read as modules; strings are methods of a tensor.
FUNCTIONS: dict[Callable[..., Any] | str, Function] = {
    **_ACTIVATIONS,
    **dict.fromkeys(_CLAMPS, Function(_clamp, ("min", "max"))),
    F.avg_pool2d: Function(nn.AvgPool2d, _POOL),
    F.max_pool2d: Function(nn.MaxPool2d, _MAX_POOL),
    torch.max_pool2d: Function(nn.MaxPool2d, _MAX_POOL),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax"), _softmax(nn.Softmax)),
    **dict.fromkeys((torch.log_softmax, F.log_softmax, "log_softmax"), _softmax(nn.LogSoftmax)),
    torch.flatten: _FLATTEN,
    "flatten": _FLATTEN,
}
# Calls with weights, as layers of those: the module, and the order of what follows the input.
WEIGHTED: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    F.linear: (nn.Linear, ("weight", "bias")),
    F.conv2d: (nn.Conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    F.conv_transpose2d: (
        nn.ConvTranspose2d,
        ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}
# Key under which a node keeps the module that it stands for.
LAYER = "layer"
# Calls of elementwise arithmetic between a value and a constant, and what they do.
ARITHMETIC: dict[Callable[..., Any] | str, str] = {
    call: operation
    for operation, calls in {
        "add": (operator.add, operator.iadd, torch.add, "add", "add_"),
        "sub": (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_"),
        "mul": (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"),
        "div": (operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_"),
        "neg": (operator.neg, torch.neg, torch.negative, "neg", "neg_"),
        "rsub": (torch.rsub,),
    }.items()
    for call in calls
}
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_DROPOUT_PARAMETERS = ("p", "training", "inplace")
_VIEWS = ("view", "reshape")


class Reshape(nn.Module):
    """What ``x.view(x.size(0), n)`` does: flatten, with ``size`` the asserted length or None."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return x.flatten(1)


class Add(nn.Module):
    """What ``x + y`` does."""

    def forward(self, *values: Tensor) -> Tensor:
        """The sum."""
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total


class Concatenate(nn.Module):
    """What ``torch.cat([x, y], dim=1)`` does."""

    def forward(self, *values: Tensor) -> Tensor:
        """The values one after the other along their first axis, batch apart."""
        return torch.cat(values, dim=1)


def _is_value(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and not is_constant(argument) and not is_size(argument)


def is_join(node: fx.Node) -> bool:
    """Whether a call adds values or puts them one after the other."""
    adds = ARITHMETIC.get(node.target) == "add"
    return node.target in _CONCATENATIONS or (adds and all(map(_is_value, node.args)))


def _arithmetic(node: fx.Node, dtype: torch.dtype) -> nn.Module:
    """A value with a constant: ``x - mean``, ``x / self.std``, ``2 * x``, ``1 - x``, ``-x``."""
    operation, arguments = ARITHMETIC[node.target], list(node.args)
    wanted = 1 if operation == "neg" else 2
    if len(arguments) != wanted or node.kwargs:
        raise UnsupportedModule(
            f"{label_of(node)}: cannot read its arguments; expected {wanted}, a value and a "
            "constant, and no keywords"
        )
    if operation == "rsub":
        operation, arguments = "sub", arguments[::-1]
    constants = [argument for argument in arguments if not _is_value(argument)]
    if any(isinstance(c, fx.Node) and not is_constant(c) for c in constants):
        raise UnsupportedModule(f"{label_of(node)}: computes with the size of its input")
    given = constant_array(label_of(node), constants[0], dtype) if constants else None
    first = wanted == 2 and not _is_value(arguments[0])
    try:
        return Elementwise(arithmetic(operation, given, first).arrays)
    except NetworkError as reason:
        raise type(reason)(f"{label_of(node)}: {reason}") from None


def _joined(node: fx.Node) -> nn.Module:
    if node.target not in _CONCATENATIONS:
        if len(node.args) == 2 and not node.kwargs:
            return Add()
        raise UnsupportedModule(
            f"{label_of(node)}: cannot read its arguments; expected x + y, two values of one shape"
        )
    values = node.args[0] if node.args else None
    given = {**dict(zip(("dim",), node.args[1:], strict=False)), **node.kwargs}
    listed = isinstance(values, list | tuple) and len(values) > 1
    if not listed or set(given) - {"dim", "axis"} or list(given.values()) not in ([1], [-1]):
        raise UnsupportedModule(
            f"{label_of(node)}: expected two values or more and dim=1, torch.cat([x, y], dim=1)"
        )
    return Concatenate()


def _weighted(node: fx.Node) -> nn.Module:
    """A linear layer that is called with its weight: ``F.linear(x, self.weight.t())``."""
    cls, parameters = WEIGHTED[node.target]  # type: ignore[index]
    named = {key: value for key, value in node.kwargs.items() if key != "input"}
    given: dict[str, Any] = {**dict(zip(parameters, node.args[1:], strict=False)), **named}
    given = {k: v.meta[CONSTANT] if is_constant(v) else v for k, v in given.items()}
    weight, bias = given.pop("weight", None), given.pop("bias", None)
    settled = not any(isinstance(value, fx.Node) for value in given.values())
    if not isinstance(weight, Tensor) or not set(given) <= set(parameters) or not settled:
        raise UnsupportedModule(
            f"{label_of(node)}: cannot read its arguments; expected a weight that no input leads to"
        )
    first, second = weight.shape[:2]
    groups = given.get("groups", 1)
    sizes = (first, second * groups) if cls is nn.ConvTranspose2d else (second * groups, first)
    kernel = () if cls is nn.Linear else (tuple(weight.shape[2:]),)
    layer = cls(*sizes, *kernel, bias=False, device="meta", **given)
    held = {"weight": weight, "bias": bias}
    for key, value in held.items():
        own = nn.Parameter(value.detach(), requires_grad=False) if value is not None else None
        layer.register_parameter(key, own)
    return layer


def gives_its_input(node: fx.Node, module: nn.Module) -> bool:
    """Whether a step may return its input itself, or a view of it."""
    views = (nn.Flatten, Reshape, nn.Identity, nn.modules.dropout._DropoutNd)
    return isinstance(module, views) or works_in_place(node, module)


def module_of(node: fx.Node, dtype: torch.dtype) -> nn.Module:
    """The module that a function call or a method call equals, in a network of type ``dtype``.

    Raises:
        UnsupportedModule: naming the call, where it equals none.
    """
    if LAYER in node.meta:
        found: nn.Module = node.meta[LAYER]
        return found
    if node.op == "call_method" and node.target in _VIEWS:
        return _view(node)
    if is_join(node):
        return _joined(node)
    key = node.target
    if key in ARITHMETIC:
        return _arithmetic(node, dtype)
    if key in WEIGHTED:
        return _weighted(node)
    if key is F.dropout:
        return _dropout(node)
    if not isinstance(key, str) and promise_of(key) is not None:
        _options(node, ())
        return PromisedFunction(key)
    if key not in FUNCTIONS:
        refuse_without_bound(label_of(node), [getattr(key, "__name__", str(key))])
        raise UnsupportedModule(
            f"{label_of(node)} is not supported; supported calls: {', '.join(_supported_calls())}"
        )
    function = FUNCTIONS[key]
    return function.module(**{**function.defaults, **_options(node, function.parameters)})


def is_size(node: fx.Node) -> bool:
    """``x.size(0)``, ``x.shape`` or ``x.shape[0]``."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return asks_shape(node.args[0])
    return asks_shape(node)


def asks_shape(node: fx.Node) -> bool:
    """``x.size(...)`` or ``x.shape``."""
    asks = node.op == "call_method" and node.target == "size"
    return asks or (node.target is getattr and node.args[1:] == ("shape",))


def _is_batch_size(value: Any) -> bool:
    """``x.size(0)`` or ``x.shape[0]``."""
    if not isinstance(value, fx.Node) or not is_size(value):
        return False
    return value.args[1:] == (0,) and not value.kwargs


def _options(node: fx.Node, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The constants a function was called with, by name."""
    extra = node.args[1:]
    given = dict(zip(parameters, extra, strict=False))
    given.update({k: v for k, v in node.kwargs.items() if k != "input"})
    known = len(extra) <= len(parameters) and set(given) <= set(parameters)
    if not known or any(isinstance(v, fx.Node) for v in given.values()):
        raise UnsupportedModule(
            f"{label_of(node)}: cannot read its arguments {(*extra, dict(node.kwargs))}; "
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
        f"{label_of(node)}: only a flatten is supported, x.flatten(1) or x.view(x.size(0), -1)"
    )


def _supported_calls() -> list[str]:
    calls = (*FUNCTIONS, *ARITHMETIC, *WEIGHTED, *_CONCATENATIONS)
    names = {f if isinstance(f, str) else f.__name__ for f in calls}
    return sorted(names | {"dropout", *_VIEWS})


def label_of(node: fx.Node) -> str:
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
