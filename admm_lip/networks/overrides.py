"""What stands between a module's layers and what torch runs: wrappers, hooks, replaced methods.

Wrappers that compute the same are taken off; everything else is refused by name, since what a
reader sees of the layers would not be the function that is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..errors import UnsupportedModule

# From a module to its methods on the way from a call to ``forward``; each is nn.Module's own.
CALL_PATH = ("__call__", "_wrapped_call_impl", "_call_impl", "_slow_forward")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` returned it; told without loading the compiler."""
    return (type(module).__module__, type(module).__name__) == (
        "torch._dynamo.eval_frame",
        "OptimizedModule",
    )


def _is_parallel(module: nn.Module) -> bool:
    return type(module) in (nn.DataParallel, nn.parallel.DistributedDataParallel)


# How a wrapper is known, where it keeps the module that it wraps, and what made it.
_WRAPPERS: tuple[tuple[Callable[[nn.Module], bool], str, str], ...] = (
    (_is_compiled, "_orig_mod", "torch.compile"),
    (_is_parallel, "module", "a parallel wrapper"),
)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Raises:
        UnsupportedModule: for a wrapper with hooks or methods of its own.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        key = next((held for known, held, _ in _WRAPPERS if known(module)), None)
        if key is None:
            return module
        _refuse(type(module).__name__, module)
        module = module.get_submodule(key)


def refuse_overrides(root: nn.Module) -> None:
    """Refuse, by name, whatever makes a module compute something else than its class says.

    Raises:
        UnsupportedModule: for hooks (of one module, or global), methods replaced on an instance,
            classes with their own way of being called, scripted modules, and wrappers inside.
    """
    if any(getattr(torch_module, name, None) for name in _GLOBAL_HOOKS):
        raise UnsupportedModule(
            "torch.nn.modules.module has global forward hooks, which may change what every module "
            "computes; remove them (handle.remove()) first"
        )
    for name, child in root.named_modules():
        label = name or type(root).__name__
        for known, _, what in _WRAPPERS:
            if known(child):
                raise UnsupportedModule(
                    f"{label}: is wrapped by {what} inside the network; wrap the whole network, or "
                    "give the module itself"
                )
        _refuse(label, child)


def _refuse(label: str, module: nn.Module) -> None:
    for problem in _problems(module):
        raise UnsupportedModule(f"{label} ({type(module).__name__}): {problem}")


def _problems(module: nn.Module) -> Iterator[str]:
    held = vars(module)
    if isinstance(module, torch.jit.ScriptModule):
        yield "is compiled by torch.jit; certify the module it was made from, or export it as ONNX"
    if any(held.get(hooks) for hooks in _HOOKS):
        yield (
            "has forward hooks, which may change what it computes; remove them "
            "(torch.nn.utils.remove_weight_norm and the like) first"
        )
    if held.get("_compiled_call_impl") is not None:
        yield "is compiled in place by .compile(); certify copy.deepcopy(model), which is not"
    for name in sorted(set(_replaced(module, held))):
        yield f"its {name} is replaced on the instance; put it into the class, or delete it"
    for name in () if _is_compiled(module) else CALL_PATH:
        owner, method = _found(type(module), name)
        generated = getattr(method, "__module__", None) == "torch.fx.graph_module"
        if owner is not nn.Module and not generated:
            yield f"its class has its own {name}; put what it does into forward"
    if _found(type(module), "__getattribute__")[0] is not object:
        yield "its class has its own __getattribute__, which may hide what it computes"


def _replaced(module: nn.Module, held: Mapping[str, Any]) -> Iterator[str]:
    """Names of the class's methods for which the instance holds something else."""
    # Nearly all that an instance holds is no name of its class.
    for name in set().union(*(held.keys() & vars(base).keys() for base in type(module).__mro__)):
        value = held[name]
        if not inspect.isroutine(_found(type(module), name)[1]):
            continue
        # What torch.compile sets itself.
        home = getattr(value, "__globals__", {}).get("__name__", "")
        if not (_is_compiled(module) and home.startswith("torch._dynamo.")):
            yield name


def _found(cls: type, name: str) -> tuple[type | None, Any]:
    """The class that defines an attribute, and the attribute; ``None`` twice where none does."""
    pairs = ((base, vars(base)[name]) for base in cls.__mro__ if name in vars(base))
    return next(pairs, (None, None))
