"""Pictures shifted and mirrored: a batch is drawn anew, by its number and its epoch alone.

So a run that was stopped goes on with the very pictures it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batches, TensorBatches
from .config import TrainConfig
from .reading import Batch

# More than the batches of an epoch.
_PER_EPOCH = 1_000_003


@dataclass(frozen=True, eq=False)
class MovedBatches(TensorBatches):
    """Batches of pictures in memory, moved.

    Attributes:
        shift: pixels, along both axes, at most.
        mirror: whether every other one is seen from behind.
    """

    shift: int
    mirror: bool

    def epoch(self, seed: int, start: int) -> Iterator[Batch]:
        """Those of the tensors, moved."""
        generator = torch.Generator()
        for number, (inputs, targets) in enumerate(super().epoch(seed, start), start):
            generator.manual_seed((seed * _PER_EPOCH + number) % 2**63)
            yield moved(inputs, self.shift, self.mirror, generator), targets


def moved(x: Tensor, shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Pictures ``(n, channels, rows, columns)``, each shifted and mirrored by draws of its own.

    Example:
        >>> x = torch.ones(1, 1, 2, 2)
        >>> [float(moved(x, 2, False, torch.Generator().manual_seed(k)).sum()) for k in range(4)]
        [0.0, 0.0, 2.0, 1.0]
    """
    samples, channels, height, width = x.shape
    steps = torch.randint(2 * shift + 1, (2, samples), generator=generator)
    rows, columns = (
        first[:, None] + torch.arange(side)
        for first, side in zip(steps, (height, width), strict=True)
    )
    if mirror:
        behind = torch.randint(2, (samples, 1), generator=generator) == 1
        columns = torch.where(behind, columns.flip(1), columns)
    rows, columns = rows.to(x.device), columns.to(x.device)
    sample = torch.arange(samples, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    padded = F.pad(x, (shift,) * 4)
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def moved_as(config: TrainConfig, batches: Batches) -> Batches:
    """The batches as the settings have them moved.

    Raises:
        ValueError: for what are no pictures in memory.
    """
    if not config.shift and not config.mirror:
        return batches
    shape = batches.inputs.shape[1:] if isinstance(batches, TensorBatches) else None
    if not isinstance(batches, TensorBatches) or shape is None or len(shape) != 3:
        what = "a DataLoader or Dataset" if shape is None else f"inputs of shape {tuple(shape)}"
        raise ValueError(
            f"shift, mirror: go with pictures (channels, rows, columns) in memory, got {what}; "
            "move them in your own Dataset, or reshape them"
        )
    held = {field.name: getattr(batches, field.name) for field in fields(TensorBatches)}
    return MovedBatches(**held, shift=config.shift, mirror=config.mirror)
