"""A chain cut at its ``Linear`` layers, for methods that replace them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...networks import trace
from ...networks.chain import linear_layers


@dataclass(frozen=True, eq=False)
class Segments:
    """``between[0], linears[0], between[1], ..., linears[l], between[l + 1]``.

    Each entry of ``between`` is an ``nn.Sequential`` of what stands there: a flatten, an
    activation, nothing.
    """

    linears: tuple[nn.Linear, ...]
    between: tuple[nn.Sequential, ...]


def cut(model: nn.Module) -> Segments:
    """Cut a chain at its layers.

    Raises:
        UnsupportedModule: unless it is a chain Linear, activation, Linear, ..., Linear.
    """
    linears = linear_layers(model)
    groups: list[list[nn.Module]] = [[]]
    for step in trace.path_of(model):
        if isinstance(step.module, nn.Linear):
            groups.append([])
        else:
            groups[-1].append(step.module)
    return Segments(tuple(linears), tuple(nn.Sequential(*group) for group in groups))


def join(between: Iterable[nn.Module], layers: Sequence[nn.Module]) -> nn.Sequential:
    """One flat ``nn.Sequential`` again, with other layers in place of the ``Linear`` ones."""
    first, *rest = between
    modules = [*first.children()]
    for layer, after in zip(layers, rest, strict=True):
        modules += [layer, *after.children()]
    return nn.Sequential(*modules)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A ``Linear`` layer that holds copies of these numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
