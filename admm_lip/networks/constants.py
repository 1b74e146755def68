"""What a recorded ``forward`` computes without its input: buffers, parameters, their arithmetic.

``x / self.std.clamp(min=1e-3)`` is a layer with constants; they are computed as torch computes them
at every call.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..errors import UnsupportedModule

# Key under which a node's value is kept.
CONSTANT = "constant"
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fold_constants(graph: fx.Graph, root: nn.Module) -> None:
    """Compute every node that no input leads to; its value is kept with it."""
    for node in [*graph.nodes]:
        if node.op == "get_attr":
            node.meta[CONSTANT] = _attribute(root, str(node.target))
        elif _hears_constants(node):
            node.meta[CONSTANT] = _computed(node)


def _hears_constants(node: fx.Node) -> bool:
    given = node.all_input_nodes
    called = node.op in ("call_function", "call_method") and not works_in_place(node)
    return called and bool(given) and all(map(is_constant, given))


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, fx.Proxy):
        raise UnsupportedModule(
            f"the attribute {path}: is set while the network runs, which is another function at "
            "every call; take the change out of its forward"
        )
    return value


def _computed(node: fx.Node) -> Any:
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta[CONSTANT])
    try:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        lines = str(error).splitlines()
        raise UnsupportedModule(
            f"{node.name}: computing a constant fails ({type(error).__name__}: "
            f"{lines[0] if lines else 'no text'})"
        ) from error


def is_constant(node: Any) -> bool:
    """Whether a node was computed without the input."""
    return isinstance(node, fx.Node) and CONSTANT in node.meta


def constant_array(label: str, value: Any, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """A number or a tensor as torch computes with it beside values of ``dtype``.

    A number is rounded to float32 by kernels of float32 and of shorter types, and so is a tensor
    without axes.
    """
    value = value.meta[CONSTANT] if isinstance(value, fx.Node) else value
    if isinstance(value, Tensor) and value.ndim and value.dtype.is_floating_point:
        return exact_array(label, value)
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UnsupportedModule(
            f"{label}: expected a constant of floating-point numbers, got {value!r:.60}"
        )
    narrow = torch.finfo(dtype).bits <= 32
    with np.errstate(over="ignore"):
        return np.array(number, dtype=np.float32 if narrow else np.float64)


def works_in_place(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether a step overwrites its first input."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    called = node.op in ("call_function", "call_method") and (
        (name.endswith("_") and not name.endswith("__")) or node.target in _IN_PLACE
    )
    return called or bool(getattr(module, "inplace", False)) or bool(node.kwargs.get("inplace"))


def exact_array(name: str, value: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's numbers, exactly.

    Raises:
        UnsupportedModule: for a tensor that is not plain, dense and of floating-point numbers.
    """
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        raise UnsupportedModule(
            f"{name}: expected a plain dense tensor, got {type(value).__name__} of layout "
            f"{getattr(value, 'layout', None)}, which may compute in its own way"
        )
    if value.dtype not in _FLOATS or value.device.type == "meta":
        raise UnsupportedModule(
            f"{name}: expected float16, bfloat16, float32 or float64 numbers, "
            f"got {value.dtype} on {value.device}"
        )
    # NumPy has no bfloat16; float32 holds its values exactly.
    wide = value.detach().to(torch.float32) if value.dtype == torch.bfloat16 else value.detach()
    return np.array(wide.cpu().numpy(), copy=True)
