"""A module run and left as it was found, and a module put into evaluation mode for a while.

Reading runs a module's ``forward``, which is the user's code.  Code that keeps a count, or changes
a weight or a buffer, computes another function at every call: it is put back and refused.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedModule

_OWN = ("torch.", "admm_lip.")
# Equal where they are the same, apart from numbers that NaN and minus zero are among.
_EXACT = frozenset((bool, int, str, bytes, type(None)))
_BY_TEXT = frozenset((float, complex))
# Most of what a module holds are empty ones of these.
_HOLDERS = frozenset((dict, OrderedDict, list, tuple, set))
# Containers are looked into so far and no farther.
_DEPTH, _LENGTH = 4, 4096


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Code that may run ``module``, without gradients; then everything as it was.

    Torch's random state, weights, buffers and attributes are put back.

    Raises:
        UnsupportedModule: by name, where what ran inside changed one of them.
    """
    kept = _Kept(module)
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        changed = kept.put_back()
    if changed:
        raise UnsupportedModule(
            f"{', '.join(changed[:3])}: is changed by running the network, which is another "
            "function at every call; take the change out of its forward"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for all parts of ``module``, as training ships it; then their modes again.

    Raises:
        UnsupportedModule: by name, where a class has its own ``train``, so that only it knows what
            its evaluation mode is.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluating(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    training = [(name, part) for name, part in module.named_modules() if part.training]
    for name, part in training:
        if type(part).train is not nn.Module.train or type(part).eval is not nn.Module.eval:
            raise UnsupportedModule(
                f"{name or type(part).__name__}: is in training mode and has its own train() or "
                "eval(); call model.eval() first"
            )
    for _, part in training:
        part.training = False
    try:
        yield
    finally:
        for _, part in training:
            part.training = True


class _Kept:
    """What a module holds, to be compared and put back."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = list(module.named_modules())
        self.dicts = [(held, dict(held)) for _, m in self.parts for held in _dicts(m)]
        self.tensors = [
            (f"{name}.{key}".lstrip("."), tensor, tensor.detach().clone())
            for name, m in self.parts
            for key, tensor in _tensors(m)
        ]
        self.plain = self._plain()

    def _plain(self) -> dict[tuple[str, str], Any]:
        """Everything else, frozen: attributes, and the globals that a forward names."""
        found: dict[tuple[str, str], Any] = {}
        for name, m in self.parts:
            for key, value in {**_outside(type(m)), **vars(m)}.items():
                if key not in ("training", "_modules") and not key.startswith(_TRACED):
                    found[name, key] = _frozen(value)
            for key, value in m._modules.items():
                found[name, key] = id(value)
        return found

    def put_back(self) -> list[str]:
        """Names of what changed; weights, buffers and attributes hold what they held."""
        now = self._plain()
        keys = [] if now == self.plain else {**self.plain, **now}
        names = [".".join(k).lstrip(".") for k in keys if self.plain.get(k) != now.get(k)]
        for held, before in self.dicts:
            if [*held] != [*before] or any(held[k] is not v for k, v in before.items()):
                held.clear()
                held.update(before)
        for name, tensor, values in self.tensors:
            if not _same(tensor, values):
                names.append(name)
                tensor.data.copy_(values)
        return names


# Attributes under which torch.fx keeps constants that it meets.
_TRACED = "_tensor_constant"


def _dicts(module: nn.Module) -> list[dict[str, Any]]:
    return [vars(module), module._parameters, module._buffers, module._modules]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Plain tensors that a module holds itself, as parameters, buffers or attributes."""
    for held in _dicts(module)[:3]:
        for key, value in held.items():
            plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
            if plain and value.device.type != "meta" and not value.is_quantized:
                yield key, value


def _same(a: Tensor, b: Tensor) -> bool:
    """The same bits, NaN and minus zero included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


def _outside(cls: type) -> Mapping[str, Any]:
    """What a class of the user's holds, and the globals and closures that its forward names."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is not object and not base.__module__.startswith(_OWN):
            found |= {f"{base.__name__}.{k}": v for k, v in vars(base).items() if k[:2] != "__"}
            forward = vars(base).get("forward")
            if inspect.isfunction(forward):
                names = inspect.getclosurevars(forward)
                found |= {f"nonlocal {k}": v for k, v in names.nonlocals.items()}
                found |= {f"global {k}": v for k, v in names.globals.items()}
    return found


def _frozen(value: Any, depth: int = _DEPTH) -> Any:
    """Something that equals itself later exactly where the value did not change."""
    kind = type(value)
    if kind in _EXACT:
        return kind, value
    if kind in _BY_TEXT:
        return kind, repr(value)
    if kind in _HOLDERS and not value:
        return kind, ()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, hash(value.tobytes())
    if isinstance(value, Tensor):
        return id(value)
    if depth and isinstance(value, list | tuple | set | dict) and len(value) <= _LENGTH:
        items = value.items() if isinstance(value, dict) else value
        return kind, tuple(_frozen(item, depth - 1) for item in items)
    return id(value)
