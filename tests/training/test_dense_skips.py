"""Dense networks with skips in somebody's own words: what they are says how they are trained."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from projected_nets import check_projected
from resumed_runs import check_goes_on
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, TrainConfig, project, train, verify
from admm_lip.certificates.torus.product import certify_product
from admm_lip.errors import UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.networks.residual import ResidualBlock, SkipLinear
from admm_lip.networks.tied import TiedBlock
from admm_lip.training.finetune import FinetuneConfig
from admm_lip.training.kernel_layers import has_kernels, kernel_layers

QUICK = TrainConfig(bound=1.0, epochs=2, batch_size=32, loss="margin", eps=0.1, start="scratch")


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.into, self.back = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.tied, self.added, self.last = nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.back(torch.relu(self.into(x)))
        x = x - nn.functional.linear(torch.tanh(self.tied(x)), self.tied.weight.t())
        return self.last(torch.relu(self.added(x) + x))


class Exported(ByHand):
    """What torch.fx cannot record: its forward asks for a shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("x: expected four columns")
        return super().forward(x)


def of_the_zoo(own: ByHand) -> nn.Sequential:
    """The same layers by the blocks of this package, the same numbers in them."""
    block, tied, added = ResidualBlock(6, 5), TiedBlock(6, 3, nn.Tanh()), SkipLinear(6)
    block.into, block.back, tied.linear, added.linear = own.into, own.back, own.tied, own.added
    parts = (own.first, nn.ReLU(), block, tied, added, nn.ReLU(), own.last)
    return copy.deepcopy(nn.Sequential(*parts))


def data(rows: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] + x[:, 1] > 0).long()


@pytest.mark.parametrize("own", [ByHand, Exported])
def test_a_run_is_that_of_the_blocks(own: type[ByHand]) -> None:
    results = [train(net, data(), QUICK, progress=False) for net in (own(), of_the_zoo(own()))]
    assert isinstance(results[0].model, own)
    for result in results:
        verify(result.certificate, result.model)
        assert 0.9 < result.certificate.lip <= 1.0
    first, second = (
        [p for layer in kernel_layers(r.model, None)[0].values() for p in layer.parameters()]
        for r in results
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    net = results[0].model.double()
    for x in torch.randn(8, 1, 4, dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(net, x)[0, :, 0]
        assert float(torch.linalg.matrix_norm(slope, 2)) <= results[0].certificate.lip


def test_a_projection_meets_its_bound_and_goes_on_with_data() -> None:
    bound = certify_product(network_of(ByHand())).lip
    check_projected(ByHand, bound, None)
    config = FinetuneConfig(eps=0.05)
    tuned = project(ByHand(), 0.5 * bound, finetune=data(), config=config, progress=False)
    verify(tuned.certificate, tuned.model)
    assert tuned.certificate.lip <= 0.5 * bound


def test_a_hand_written_loop_keeps_the_bound() -> None:
    net, (x, y) = ByHand(), data()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    constraint = Constraint(net, Lipschitz(bound=2.0)).attach(optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    with constraint.shipped() as inside:
        assert certify_product(network_of(inside)).lip <= 2.0 * (1.0 + 1e-7)
    net, certificate = constraint.finish()
    verify(certificate, net)
    assert certificate.lip <= 2.0


def test_a_run_goes_on_from_its_folder_to_equal_bits(tmp_path: Path) -> None:
    check_goes_on(ByHand, data(), QUICK, tmp_path)


def test_what_a_block_subtracts_is_added_by_the_negative_weight() -> None:
    class Taken(ByHand):
        def __init__(self) -> None:
            super().__init__()
            del self.tied, self.added

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(x - self.back(torch.relu(self.into(x))))

    class Given(Taken):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(x + self.back(torch.relu(self.into(x))))

    taken, given = Taken(), Given()
    given.back.requires_grad_(False).weight.neg_()
    given.back.bias.neg_()
    given.back.requires_grad_(True)
    for start in ("model", "scratch"):
        config = dataclasses.replace(QUICK, start=start, lr=1e-3)
        first, second = (train(net, data(), config, progress=False) for net in (taken, given))
        verify(first.certificate, first.model)
        assert (0.0 if start == "model" else 0.8) < first.certificate.lip <= 1.0
        if start == "model":
            torch.testing.assert_close(first.model.back.weight, -second.model.back.weight)
            assert first.certificate.lip == pytest.approx(second.certificate.lip, rel=1e-5)
    found = project(taken, 0.3)
    verify(found.certificate, found.model)
    assert 0.99 * 0.3 < found.certificate.lip <= 0.3


def test_a_linear_layer_that_is_subtracted_is_refused_by_name() -> None:
    class Taken(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(x - self.added(x))

    with pytest.raises(UnsupportedModule, match=r"is subtracted; .* other sign"):
        Constraint(Taken(), Lipschitz(1.0))


def test_what_the_graph_is_decides() -> None:
    """A module that holds a block and does not use it is a chain."""

    class Unused(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    assert has_kernels(ByHand())
    assert not has_kernels(Unused())
    result = train(Unused(), data(), QUICK, progress=False)
    verify(result.certificate, result.model)
    assert result.certificate.lip <= 1.0


def test_other_sums_are_refused_by_name() -> None:
    class Sum(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + torch.relu(self.added(x)))

    with pytest.raises(UnsupportedModule, match=r"relu: .* others only certified|add: takes"):
        Constraint(Sum(), Lipschitz(1.0))
