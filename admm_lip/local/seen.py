"""What lines see of a network on the balls of a batch: ranges, slopes, margins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backward_lines import BackwardLines, center_values
from .curved_layers import CurvedNet
from .curves import Range
from .forward_bounds import Arithmetic, Forward, by_rows, forward
from .input_region import Region
from .quadratic_proof import OpenPass, open_pass
from .tasks import Task


@dataclass(frozen=True, eq=False)
class Seen:
    """The way by lines: what is known of all hidden layers on a batch's balls.

    Attributes:
        lines: the lines, and the balls; those that are the whole space are bounded at their
            samples alone, as nothing but a bound for all inputs holds there.
        forward: the pass forward.
        everywhere: which balls are the whole space, ``(batch, 1)``.
    """

    lines: BackwardLines
    forward: Forward
    everywhere: Tensor

    @staticmethod
    def of(task: Task, radii: Tensor, *, ranges: bool = True) -> Seen:
        """Of a batch at the given radii; without ranges intervals on the uncut balls have to do."""
        everywhere = torch.isposinf(radii)
        radii = torch.where(everywhere, 0.0, radii)
        net, box = task.prepared.curved, task.config.box if ranges else None
        seen = Seen.on(net, Region(net.ball, task.points, radii, box), ranges=ranges)
        return replace(seen, everywhere=everywhere[:, None])

    @staticmethod
    def on(net: CurvedNet, region: Region, *, ranges: bool = True) -> Seen:
        """The same on a region of finite balls."""
        lines = BackwardLines(net.layers, region)
        norms = by_rows(net.layers, (net.ball.rows, net.ball.reach))
        by_lines = lines.range if ranges else None
        arithmetic = Arithmetic(rounding=True)
        found = forward(net.layers, region.points, lines.ball, norms, arithmetic, by_lines)
        return Seen(lines, found, torch.zeros(len(region), 1, dtype=torch.bool))

    def slopes(self, centred: bool) -> list[Range]:
        """Of every hidden layer, from the sample to its ball or between any points of it."""
        curves = [layer.response.curve for layer in self.forward.layers]
        return [c.anchored if centred else c.slopes for c in curves if c is not None]

    def center(self, rows: Tensor, doubt: float = 1.0) -> Tensor:
        """Lower bounds of functionals at the samples."""
        return center_values(self.lines.layers[-1], self.forward, rows, doubt)

    def margin(self, rows: Tensor) -> Tensor:
        """Lower bounds of functionals on the balls."""
        return self.lines.functionals(self.forward, rows)

    def open_pass(self, samples: Tensor) -> OpenPass | None:
        """Quadratic bounds of some samples, ``(batch,)``, boolean; ``None`` if there are none."""
        return open_pass(self.lines, self.forward.layers, samples)
