"""Networks of two layers, and what makes one run as another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Base(nn.Module):
    """Two layers; ``forward`` computes them and whatever a subclass adds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("kept", torch.ones(6))
        self.calls, self.log = 0, [0]

    def honest(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def forwarding(body: Callable[[Any, Tensor], Any], **others: Any) -> nn.Module:
    """An instance of a fresh class with this ``forward``."""
    made: nn.Module = type("Model", (Base,), {"forward": body, **others})()
    return made


def knows_the_tracer(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) else 1.001 * y


def replaced(model: Any, name: str, attribute: str) -> nn.Module:
    part = model.get_submodule(name)
    part.__dict__[attribute] = lambda *a, **k: 100 * getattr(type(part), attribute)(part, *a, **k)
    return model


def hooked(register: str, **options: Any) -> nn.Module:
    model = plain()
    getattr(model[0], register)(lambda *a, **k: None, **options)
    return model
