"""Plain training: the yardstick of every other method."""

from __future__ import annotations

from dataclasses import dataclass

from ...training.method import Method


@dataclass(frozen=True)
class Nominal(Method):
    """Minimise the loss, nothing else."""
