"""Networks of convolutions trained at a price: ``mu L^2`` beside the loss."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from kernel_nets import IMAGE, data, small
from torch import nn

from admm_lip import Constraint, Lipschitz, TrainConfig, train, verify
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.training.lipschitz_step import lipschitz_step, next_lip_sq


def test_the_bound_moves_by_the_derivative_of_what_is_minimised() -> None:
    """At its step's fixed point ``mu s + rho/2 sum of squared distances`` is stationary."""
    constraint = Constraint(small(), Lipschitz(mu=0.3), input_shape=IMAGE)
    generator = torch.Generator().manual_seed(5)
    anchor = tuple(
        w + 0.3 * torch.randn(w.shape, generator=generator, dtype=w.dtype)
        for w in constraint.state.consensus
    )
    terms = dataclasses.replace(
        constraint.terms,
        config=dataclasses.replace(constraint.terms.config, projection_tol=1e-9),
    )

    def value(log_s: float) -> tuple[float, float]:
        state = dataclasses.replace(constraint.state, target_sq=math.exp(log_s), warm=None)
        found = lipschitz_step(anchor, state, terms)
        moved = math.log(next_lip_sq(anchor, found, state, terms))
        return found.objective, moved - log_s

    low, high = -6.0, 6.0
    for _ in range(40):  # where the step vanishes
        middle = 0.5 * (low + high)
        low, high = (middle, high) if value(middle)[1] > 0.0 else (low, middle)
    here, aside = value(low)[0], 1e-2
    assert low > -5.0
    assert value(low - aside)[0] > here
    assert value(low + aside)[0] > here


def test_of_one_pixel_it_is_that_of_matrices() -> None:
    def net(kernels: bool) -> nn.Sequential:
        torch.manual_seed(3)
        first = nn.Conv2d(6, 8, 1) if kernels else nn.Linear(6, 8)
        more = (nn.Flatten(),) if kernels else ()
        return nn.Sequential(first, MaxMin(), *more, nn.Linear(8, 2))

    x = torch.randn(512, 6, generator=torch.Generator().manual_seed(6))
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    config = TrainConfig(mu=2e-3, epochs=25, batch_size=32, centre=False, round_steps=4)
    images = train(net(True), (x[:, :, None, None], y), config, progress=False)
    rows = train(net(False), (x, y), config, progress=False)
    verify(images.certificate, images.model)
    assert images.certificate.lip == pytest.approx(rows.certificate.lip, rel=0.1)


def test_a_higher_price_buys_a_smaller_constant() -> None:
    found = [
        train(
            small(),
            data(),
            TrainConfig(mu=mu, epochs=10, batch_size=32, start="scratch"),
            progress=False,
        ).certificate.lip
        for mu in (1e-2, 1e-3)
    ]
    assert found[1] > 1.3 * found[0]
