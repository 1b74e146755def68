"""Networks, and what of them stays."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from admm_lip import Lipschitz, TrainConfig

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, -1, 0])
Y = (X[:, 0] > 2.0).long() + (X[:, 1] > 0.0).long()
SHORT = TrainConfig(epochs=10, batch_size=16)
LAYERS = (0, 2, 4)


def net(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3)
    )


def small(activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))


def some(weight: Tensor, share: float = 0.15) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < share


Masks = dict[str, Tensor]


def frozen(model: nn.Sequential, *layers: int) -> Masks:
    for k in layers:
        model[k].requires_grad_(False)
    return {}


def sparse(model: nn.Sequential) -> Masks:
    masks = {f"{k}.weight": some(model[k].weight, 0.5) for k in LAYERS}
    for k in LAYERS:
        model[k].weight.data[masks[f"{k}.weight"]] = 0.0
    return masks


def pruned(model: nn.Sequential) -> Masks:
    for k in LAYERS:
        prune.l1_unstructured(model[k], "weight", amount=0.5)
    return {}


def entries(model: nn.Sequential) -> Masks:
    return {"0.weight": some(model[0].weight), "4.weight": some(model[4].weight)}


def values(model: nn.Module, masks: Masks) -> Masks:
    """What has to stay, by name."""
    held = {name: p.detach()[masks[name]] for name, p in model.named_parameters() if name in masks}
    held |= {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    for name, mask in model.named_buffers():
        if name.endswith("_mask"):
            held[name.removesuffix("_mask")] = torch.zeros(int((mask == 0).sum()))
            masks[name.removesuffix("_mask")] = mask == 0
    return copy.deepcopy(held)


def assert_kept(model: nn.Module, masks: Masks, held: Masks) -> None:
    state = model.state_dict()
    for name, value in held.items():
        found = state[name][masks[name]] if name in masks else state[name]
        assert torch.equal(found, value), name
    assert held


BOUND, PRICE = Lipschitz(1.5), Lipschitz(mu=1e-2)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
