"""Entries of weights that stay as they are, bit for bit: frozen layers, pruned and masked entries.

Torch says it in two ways, and both are read: a weight with ``requires_grad=False`` stays as a
whole, and entries that ``torch.nn.utils.prune`` has masked stay 0.  A mask of a tensor, ``True``
where it stays, says the rest: its entries stay at whatever they are.

A layer whose held entries are all 0 may be scaled as ever: zeros stay zeros, and scaling a neuron's
incoming weights by c and its outgoing ones by 1/c keeps them.  A layer with others is *rigid*: it
cannot be scaled, so whatever scales a network scales the other entries only
(:meth:`Held.scaled`), and T has to move, since no gauge does it (``multiplier_step.averaged``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from ..solvers import Structure
from .admm_state import Matrices

Masks = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Held:
    """What stays of the weights of a network.

    Attributes:
        masks: by layer, ``True`` where an entry stays, ``None`` where none does; empty where no
            layer has any.
        rigid: by layer, whether an entry stays that is not 0.
    """

    masks: tuple[Tensor | None, ...] = ()
    rigid: tuple[bool, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.masks)

    def whole(self, layer: int) -> bool:
        """Whether nothing of a layer moves."""
        mask = self.masks[layer] if self.masks else None
        return mask is not None and bool(mask.all())

    def moving(self, layers: int) -> int:
        """How many of so many layers move."""
        return sum(not self.whole(k) for k in range(layers))

    def pliant(self, layers: int) -> int | None:
        """The first of so many layers that can be scaled; ``None`` where none can."""
        return next((k for k in range(layers) if not self.is_rigid(k)), None)

    def is_rigid(self, layer: int) -> bool:
        """Whether a layer cannot be scaled."""
        return bool(self.rigid) and self.rigid[layer]

    def cpu(self) -> Held:
        """The same with masks on the CPU."""
        return replace(self, masks=tuple(None if m is None else m.cpu() for m in self.masks))

    def kept(self, own: Matrices, moved: Matrices) -> Matrices:
        """``moved``, with what stays as it is in ``own``."""
        if not self.masks:
            return moved
        rows = zip(self.masks, own, moved, strict=True)
        return tuple(m if mask is None else torch.where(mask, w, m) for mask, w, m in rows)

    def scaled(self, weights: Matrices, factor: float) -> Matrices:
        """``factor`` times the weights, with what stays as it is."""
        return self.kept(weights, tuple(factor * w for w in weights))

    def factors(self, factor: float, layers: int) -> tuple[float, ...]:
        """What :meth:`scaled` multiplies each of so many layers by."""
        return tuple(1.0 if self.is_rigid(k) else factor for k in range(layers))

    def structure(self, own: tuple[Structure, ...]) -> tuple[Structure, ...]:
        """The structure of a projection with ``own`` metric that leaves alone what stays."""
        if not self.masks:
            return own
        rows = zip(own or (Structure(),) * len(self.masks), self.masks, strict=True)
        return tuple(replace(structure, held=mask) for structure, mask in rows)


NOTHING = Held()


def held_of(model: nn.Module, weights: Sequence[Tensor], given: Masks | None = None) -> Held:
    """What stays of ``weights``: what is frozen, and what the masks given say.

    Args:
        model: that the weights are of.
        weights: of the layers that a bound moves.
        given: boolean masks, ``True`` where an entry stays, by the names of the parameters.

    Raises:
        ValueError: for a mask that is none of these weights', or where nothing is left to move.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    own = {names[id(p)]: p for p in weights}
    masks = {name: _read(name, mask, own) for name, mask in (given or {}).items()}
    masks |= {name: torch.ones_like(p, dtype=torch.bool) for name, p in own.items() if _fixed(p)}
    found = tuple(_or_none(masks.get(name)) for name in own)
    if all(mask is not None and bool(mask.all()) for mask in found):
        raise ValueError(
            "model: every weight is frozen or held, so that nothing can move under a bound; thaw a "
            "layer (layer.requires_grad_(True)), or certify the network as it is"
        )
    if all(mask is None for mask in found):
        return NOTHING
    pairs = zip(found, weights, strict=True)
    rigid = tuple(m is not None and bool((p.detach()[m] != 0).any()) for m, p in pairs)
    return Held(found, rigid)


def held_still(parameters: Sequence[nn.Parameter], held: Held) -> list[RemovableHandle]:
    """Let no gradient reach entries that stay, so that clipping and line searches know nothing."""
    rows = zip(parameters, held.masks, strict=True) if held else ()
    return [
        p.register_hook(partial(torch.masked_fill, mask=mask, value=0.0))  # type: ignore[no-untyped-call]
        for p, mask in rows
        if mask is not None and p.requires_grad
    ]


def _fixed(parameter: Tensor) -> bool:
    return not parameter.requires_grad


def _or_none(mask: Tensor | None) -> Tensor | None:
    return mask if mask is not None and bool(mask.any()) else None


def _read(name: str, given: Any, own: Mapping[str, Tensor]) -> Tensor:
    """A mask as a tensor on its weight's device."""
    if name not in own:
        raise ValueError(
            f"held: expected masks of weights that the bound moves ({', '.join(own)}), got one of "
            f"{name!r}; a bias is frozen whole, by requires_grad_(False)"
        )
    mask, shape = torch.as_tensor(given), tuple(own[name].shape)
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"held: expected a boolean mask of shape {shape} for {name}, True where an entry "
            f"stays, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask.to(own[name].device)


def _pruned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Tensors that ``torch.nn.utils.prune`` masks: name, module, and name in the module."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield f"{path}.{hook._tensor_name}".lstrip("."), module, hook._tensor_name


def unpruned(model: nn.Module) -> dict[str, Tensor]:
    """Make pruning permanent (``prune.remove``); the masks of what it holds at 0, by name.

    The parameter stays the same object, so that an optimizer that moves it goes on doing so.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> _ = prune.custom_from_mask(layer, "weight", torch.tensor([[1.0, 0.0]]))
        >>> unpruned(layer), prune.is_pruned(layer)
        ({'weight': tensor([[False,  True]])}, False)
    """
    found: dict[str, Tensor] = {}
    for name, module, own in list(_pruned(model)):
        found[name] = getattr(module, f"{own}_mask") == 0
        prune.remove(module, own)  # type: ignore[no-untyped-call]
    return found


def plain_copy(model: nn.Module, held: Masks | None) -> tuple[nn.Module, dict[str, Any]]:
    """A copy without pruning hooks, and the masks given with those of its pruning."""
    with torch.no_grad():  # outside of any graph: only then can a masked tensor be copied
        for _, module, own in _pruned(model):
            mask, full = getattr(module, f"{own}_mask"), getattr(module, f"{own}_orig")
            setattr(module, own, cast(Tensor, mask * full))
    copied = copy.deepcopy(model)
    return copied, joined(held, unpruned(copied))


def joined(first: Masks | None, second: Masks) -> dict[str, Any]:
    """Masks of two sources: what either of them holds.

    Raises:
        ValueError: for two masks of one weight that have not the same shape.
    """
    found = dict(first or {})
    for name, mask in second.items():
        found[name] = mask if name not in found else torch.as_tensor(found[name]) | mask
    return found
