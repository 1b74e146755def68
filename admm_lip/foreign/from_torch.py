"""A torch module read by its layers, or where that fails as ``torch.export`` records it."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

from ..errors import NetworkError, UnsupportedModule
from ..networks.layers import Shape
from ..networks.network import Network
from ..networks.refusals import NoBound
from .pt2 import read_exported

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


# While torch.fx records one module, it stands between every call of every module of the process.
_ONE_AT_A_TIME = threading.RLock()


def read_module(module: nn.Module, input_shape: Shape | None = None) -> Network:
    """Read a module: its layers by ``torch.fx``, else its operators by ``torch.export``.

    Either way it is run on random inputs, and refused where it computes something else than what
    was read.

    Args:
        module: read in the mode that it is in, and left as it is; what is random or normalises by
            its batch there (dropout, batch normalisation) is refused until ``model.eval()``.
        input_shape: shape of one input without the batch; needed in front of convolutions, and
            where only ``torch.export`` can read a module that has no ``nn.Linear``.

    Raises:
        UnsupportedModule: with the reasons of both readers.

    Example:
        >>> import torch
        >>> class Halves(torch.nn.Module):
        ...     def forward(self, x):
        ...         left, right = x.chunk(2, dim=1)
        ...         return torch.relu(left) - right
        >>> [spec.kind for spec in read_module(Halves(), (4,)).layers]
        ['take', 'take', 'relu', 'elementwise', 'add']
    """
    with _ONE_AT_A_TIME:
        return _read(module, input_shape)


def _read(module: nn.Module, input_shape: Shape | None) -> Network:
    from ..networks.chain import check_recorded, readable, recorded
    from ..networks.module_state import untouched

    module = readable(module)
    with untouched(module):
        try:
            found = recorded(module, input_shape)
        except NoBound:
            raise
        except NetworkError as error:
            reason = error
        else:
            return check_recorded(module, *found)
    # What recording has changed is put back, and refused, before it is recorded again.
    with untouched(module):
        return _read_exported(module, input_shape, reason)


def _read_exported(module: nn.Module, input_shape: Shape | None, reason: NetworkError) -> Network:
    """What ``torch.export`` records; ``reason`` is why the layers could not be read."""
    from ..networks.live_check import check_whole

    shape = input_shape or _features(module)
    if shape is None:
        raise type(reason)(
            f"{reason}; give input_shape, so that torch.export can be tried as well"
        ) from reason
    try:
        network = read_exported(_program(module, shape), shape)
    except NoBound:
        raise
    except NetworkError as second:
        raise type(reason)(f"{reason}; nor by torch.export ({second})") from reason
    check_whole(module, network)
    return network


def _features(module: nn.Module) -> Shape | None:
    """What the first linear layer takes."""
    from torch import nn

    first = next((part for part in module.modules() if isinstance(part, nn.Linear)), None)
    return None if first is None else (first.in_features,)


def _program(module: nn.Module, shape: Shape) -> ExportedProgram:
    """The program of a module, for any batch.

    Raises:
        UnsupportedModule: with the first line of what ``torch.export`` says.
    """
    import torch

    from ..networks.live_check import place_of

    dtype, device = place_of(module)
    example = torch.zeros(2, *shape, dtype=dtype, device=device)
    try:
        # What fails is said once, by the error.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            # A batch that the code may not ask for its size.
            batch = ({0: torch.export.Dim("batch")},)
            return torch.export.export(module, (example,), dynamic_shapes=batch)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no text"]
        raise UnsupportedModule(f"{type(error).__name__}: {lines[0]:.300}") from error
