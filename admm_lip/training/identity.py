"""What makes two runs the same run: settings, architecture, data, loss and method, each as text.

The text of a value is the same in another process exactly when its content is: never an address.
A function is its bytecode with the values it holds, a module its classes and tensors, a tensor its
shape, dtype and SHA-256.  What differs can so be named.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batches, TensorBatches

Identity = dict[str, str]
_Known = frozenset[int]

# Changing one of these is no other run: how long it is, and how often it is saved.
FREE = ("epochs", "checkpoint_seconds")
# Code of these is known by its name.
_LIBRARIES = {"torch", "numpy", "builtins", "math", "admm_lip"}
_DIGITS = 16
# How deep values in values are looked at; below, their class has to do.
_DEPTH = 12


def identity_of(
    config: Any, model: nn.Module, batches: Batches, loss: Any, method: Any
) -> Identity:
    """Name to text of everything that must agree for a run to be continued.

    Args:
        config: a dataclass of settings; those in ``FREE`` are left out.
        model: as it is trained.
        batches: the data.
        loss: a name or a callable.
        method: a dataclass, or ``None``.
    """
    settings = {
        f"setting {name}": text for name, text in fields_of(config).items() if name not in FREE
    }
    return {
        **settings,
        "method": describe(method),
        "loss": describe(loss),
        **data_identity(batches),
        **architecture(model),
    }


def difference(mine: Identity, theirs: Mapping[str, Any]) -> str | None:
    """The first thing that differs, in words; ``None`` where nothing does."""
    for name in dict.fromkeys((*mine, *theirs)):
        now, then = mine.get(name, "nothing"), theirs.get(name, "nothing")
        if now != then:
            return f"another {name} (it has {then}, this one {now})"
    return None


def architecture(model: nn.Module) -> Identity:
    """Every module's class, plain attributes and tensors' shapes, by its name."""
    return {
        f"architecture of {name or 'the model'}": _layer(module, frozenset())
        for name, module in model.named_modules()
    }


def data_identity(batches: Batches) -> Identity:
    """Shape, dtype and content of data in memory; of a loader its lengths and first batch.

    The content of a batch that is another one whenever it is drawn, under the same seed, cannot
    tell data apart and is left out.
    """
    if isinstance(batches, TensorBatches):
        return {
            "data (inputs)": describe(batches.inputs),
            "data (targets)": describe(batches.targets),
        }
    first, again = (list(islice(batches.epoch(0, 0), 1)) for _ in range(2))
    found = {"data (batches per epoch)": str(len(batches))}
    for name, one, two in zip(("inputs", "targets"), *first, *again, strict=True):
        same = describe(one) == describe(two)
        found[f"data (first {name})"] = describe(one) if same else _form(one)
    return found


def describe(value: Any) -> str:
    """The text of a value: equal for equal contents, in any process.

    Example:
        >>> import torch
        >>> def scaled(factor):
        ...     return lambda outputs, targets: factor * (outputs - targets).square().mean()
        >>> describe(scaled(2.0)) == describe(scaled(2.0))
        True
        >>> describe(scaled(2.0)) == describe(scaled(3.0))
        False
    """
    return _text(value, frozenset())


def fingerprint(value: Any) -> str:
    """:func:`describe` in 16 digits."""
    return _digest(describe(value))


def _text(value: Any, known: _Known) -> str:
    if id(value) in known:
        return "itself"
    if len(known) > _DEPTH:
        return _name(type(value))
    inside = known | {id(value)}
    for kind, text in _TEXTS:
        if isinstance(value, kind):
            return text(value, inside)
    return _object(value, inside)


def _digest(*parts: Any) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes | memoryview) else str(part).encode()
        hashed.update(f"{len(content)}:".encode())
        hashed.update(content)
    return hashed.hexdigest()[:_DIGITS]


def _form(value: Tensor) -> str:
    return f"{list(value.shape)} {value.dtype}"


def _tensor(value: Tensor, known: _Known) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return f"{_form(value)} {_digest(flat.view(torch.uint8).numpy().data)}"


def _array(value: np.ndarray[Any, Any], known: _Known) -> str:
    if value.dtype.hasobject:
        return _sequence(value.tolist(), known)
    content = np.ascontiguousarray(value).tobytes()
    return f"{list(value.shape)} {value.dtype} {_digest(content)}"


def _mapping(value: Mapping[Any, Any], known: _Known) -> str:
    rows = (f"{_text(k, known)}: {_text(v, known)}" for k, v in value.items())
    return "{" + ", ".join(rows) + "}"


def _sequence(value: Any, known: _Known) -> str:
    return "[" + ", ".join(_text(item, known) for item in value) + "]"


def _set(value: Any, known: _Known) -> str:
    return "{" + ", ".join(sorted(_text(item, known) for item in value)) + "}"


def _name(value: Any, known: _Known = frozenset()) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _known_by_name(value: Any) -> bool:
    return (value.__module__ or "builtins").partition(".")[0] in _LIBRARIES


def _code(value: types.CodeType, known: _Known) -> str:
    """Bytecode, constants (code in them too) and names; no line numbers, no file."""
    constants = _sequence(value.co_consts, known)
    return _digest(value.co_code, constants, value.co_names, value.co_varnames, value.co_freevars)


def _function(value: types.FunctionType, known: _Known) -> str:
    if _known_by_name(value) and "<" not in value.__qualname__:
        return _name(value)
    held = [_text(value.__code__, known), _text(value.__defaults__, known)]
    held += [_text(value.__kwdefaults__, known)]
    held += [_cell(cell, known) for cell in value.__closure__ or ()]
    held += [_text(given, known) for given in _globals(value)]
    return f"{value.__qualname__} {_digest(*held)}"


def _cell(cell: types.CellType, known: _Known) -> str:
    try:
        return _text(cell.cell_contents, known)
    except ValueError:  # a name that has no value yet
        return "empty"


def _globals(value: types.FunctionType) -> list[Any]:
    """Global constants and functions that it reads; what may change while it runs is left out."""
    lasting = (*_PLAIN, Tensor, types.FunctionType)
    found = (value.__globals__.get(name) for name in _names(value.__code__))
    return [given for given in found if isinstance(given, lasting)]


def _names(code: types.CodeType) -> list[str]:
    """Names that code reads, that of functions inside it too."""
    inner = (held for held in code.co_consts if isinstance(held, types.CodeType))
    return [*code.co_names, *(name for held in inner for name in _names(held))]


def _method(value: types.MethodType, known: _Known) -> str:
    return f"{_text(value.__func__, known)} of {_text(value.__self__, known)}"


def _partial(value: functools.partial[Any], known: _Known) -> str:
    return f"partial {_text([value.func, value.args, value.keywords], known)}"


def _module(value: nn.Module, known: _Known) -> str:
    layers = [(name, _layer(layer, known)) for name, layer in value.named_modules()]
    tensors = [(name, _text(tensor, known)) for name, tensor in _tensors(value).items()]
    return f"{_name(type(value))} {_digest(layers, tensors)}"


def _layer(value: nn.Module, known: _Known) -> str:
    """One module without its children: class, its forward where it is somebody's own, form."""
    own = {name: held for name, held in vars(value).items() if not name.startswith("_")}
    own.pop("training", None)
    forward = "" if _known_by_name(type(value)) else _text(type(value).forward, known)
    tensors = {name: _form(tensor) for name, tensor in _tensors(value, recurse=False).items()}
    parts = (_name(type(value)), forward, _mapping(own, known), _mapping(tensors, known))
    return " ".join(part for part in parts if part not in ("", "{}"))


def _tensors(value: nn.Module, *, recurse: bool = True) -> dict[str, Tensor]:
    return {
        **dict(value.named_parameters(recurse=recurse)),
        **dict(value.named_buffers(recurse=recurse)),
    }


def fields_of(value: Any, known: _Known = frozenset()) -> dict[str, str]:
    """The fields of a dataclass that are compared, those of dataclasses in it by their path."""
    found: dict[str, str] = {}
    for field in (one for one in dataclasses.fields(value) if one.compare):
        held = getattr(value, field.name)
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            inner = fields_of(held, known)
            found |= {f"{field.name}.{name}": text for name, text in inner.items()}
        else:
            found[field.name] = _text(held, known)
    return found


def _object(value: Any, known: _Known) -> str:
    """A class and what an instance of it holds."""
    call = getattr(type(value), "__call__", None)  # noqa: B004  its code, not whether
    own = _text(call, known) if isinstance(call, types.FunctionType) else ""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = "(" + ", ".join(f"{k}={text}" for k, text in fields_of(value, known).items()) + ")"
    else:
        slots = {name: getattr(value, name, None) for name in getattr(value, "__slots__", ())}
        held = _mapping({**slots, **getattr(value, "__dict__", {})}, known)
    return " ".join(
        part for part in (_name(type(value)), own, held) if part not in ("", "{}", "()")
    )


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
# type -> its text; the first row that fits
_TEXTS: tuple[tuple[Any, Callable[[Any, _Known], str]], ...] = (
    (Enum, lambda value, known: f"{_name(type(value))}.{value.name}"),
    (_PLAIN, lambda value, known: repr(value)),
    (np.generic, lambda value, known: repr(value.item())),
    (np.ndarray, _array),
    (Tensor, _tensor),
    (Mapping, _mapping),
    ((list, tuple), _sequence),
    ((set, frozenset), _set),
    (nn.Module, _module),
    (functools.partial, _partial),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (types.CodeType, _code),
    ((type, types.BuiltinFunctionType), _name),
    (types.ModuleType, lambda value, known: value.__name__),
    ((torch.dtype, torch.device, Path), lambda value, known: str(value)),
)
