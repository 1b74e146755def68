"""A network with blocks, brought under a bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from admm_lip import project, verify
from admm_lip.networks.layers import Shape


def check_projected(make: Callable[[], nn.Module], bound: float, shape: Shape | None) -> None:
    """With larger weights it uses its bound up, and what is within the bound stays as it is."""
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    found = project(model, bound, input_shape=shape)
    verify(found.certificate, found.model)
    assert 0.99 * bound < found.certificate.lip <= bound
    assert project(found.model, bound, input_shape=shape).distance == 0.0
