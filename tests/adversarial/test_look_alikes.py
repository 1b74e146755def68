"""Networks that look alike are told apart, and honest layers are read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from deceiving_modules import forwarding, hooked, plain, replaced
from torch import nn

from admm_lip import certify, verify
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import read_network
from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU
from admm_lip.networks.forward import forward
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.sorting_torch import GroupSort2, HalfAbs, MaxMin


def _same_name() -> nn.Module:
    doubled = {"forward": lambda self, x: 2.0 * nn.Sequential.forward(self, x)}
    made: nn.Module = type("Sequential", (nn.Sequential,), doubled)(*plain())
    return made


def _flagged(flag: float) -> nn.Module:
    model = forwarding(lambda self, x: self.honest(x) * self.kept[0])
    model.kept.fill_(flag)  # type: ignore[operator, union-attr]
    return model


def _aliased() -> nn.Module:
    model = plain()
    model[0] = nn.Linear(4, 4)
    model[2] = nn.Linear(4, 4)
    model[2].weight = model[0].weight
    return model


def _inner() -> nn.Module:
    return nn.Sequential(*plain()[:2], nn.Sequential(nn.Flatten(), plain()[2]))


# Networks of the same parts or classes, and what each is: its factor on the bound of the first, or
# why it is refused.
LOOK_ALIKES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], float | str]] = {
    "a class of the same name": (plain, _same_name, 2.0),
    "a flag in a buffer": (lambda: _flagged(1.0), lambda: _flagged(3.0), 3.0),
    "one more container": (plain, _inner, 1.0),
    "an aliased weight": (lambda: copy.deepcopy(_aliased()), _aliased, 1.0),
    "forward of the instance": (plain, lambda: replaced(plain(), "1", "forward"), "is replaced"),
    "forward of the root": (plain, lambda: replaced(plain(), "", "forward"), "is replaced"),
    "a hook": (plain, lambda: hooked("register_forward_hook"), "has forward hooks"),
    "a mode": (
        lambda: nn.Sequential(*plain(), nn.Dropout()).eval(),
        lambda: nn.Sequential(*plain(), nn.Dropout()).train(),
        "Dropout",
    ),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_network_that_looks_like_its_neighbours_is_read_by_itself(name: str) -> None:
    make, make_other, is_ = LOOK_ALIKES[name]
    torch.manual_seed(1)
    model = make()
    torch.manual_seed(1)
    other = make_other()
    if isinstance(is_, str):
        with pytest.raises(UnsupportedModule, match=rf"model\[1\].*{is_}"):
            certify([model, other, model])
        return
    first, second, third = certify([model, other, model])
    verify(second, other)
    assert second.lip == pytest.approx(is_ * first.lip, rel=1e-5)
    assert first.digest == third.digest == certify(model).digest
    assert (second.digest == first.digest) == (is_ == 1.0)


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(6, 3), (6,)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), groups=2), (4, 6, 7)),
    (lambda: nn.Conv2d(2, 3, 2, dilation=2, padding="same"), (2, 5, 4)),
    (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 5, 6)),
    (lambda: nn.AvgPool2d(2, divisor_override=3), (2, 5, 6)),
    (nn.ReLU, (6,)),
    (lambda: nn.LeakyReLU(1.1), (6,)),
    (lambda: nn.ELU(0.7), (6,)),
    (nn.Tanh, (6,)),
    (nn.Sigmoid, (6,)),
    (lambda: nn.Softplus(2.5, 21.0), (6,)),
    (lambda: nn.Hardtanh(-0.3, 0.7), (6,)),
    (nn.GELU, (6,)),
    (lambda: nn.GELU("tanh"), (6,)),
    (nn.SiLU, (6,)),
    (MaxMin, (4, 2, 3)),
    (GroupSort2, (6,)),
    (HalfAbs, (6, 2, 1)),
    (lambda: ClippedReLU((4, 2, 3), 0.4), (4, 2, 3)),
    (lambda: ClippedMaxMin((6,), 0.4), (6,)),
    (nn.Flatten, (2, 3, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_honest_layers_pass_and_their_rows_compute_what_torch_does(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(make(), nn.Flatten()).to(dtype)
    network = read_network(model, shape)
    if dtype == torch.float64:
        x = 2.0 * torch.randn(7, *shape, dtype=dtype)
        expected = model(x).detach().numpy()
        torch.testing.assert_close(
            torch.from_numpy(forward(network, x.numpy())), torch.from_numpy(expected)
        )


@pytest.mark.parametrize("kind", ["conv2d", "avg_pool2d"])
def test_padding_that_torch_has_no_layer_for_is_not_built(kind: str) -> None:
    options = {"stride": [2, 2], "padding": [0, 1, 0, 1]}
    if kind == "conv2d":
        options |= {"dilation": [1, 1], "groups": 1}
    else:
        options |= {"kernel_size": [2, 2], "count_include_pad": True, "divisor_override": None}
    weight = {"p.weight": torch.ones(1, 1, 2, 2).numpy()} if kind == "conv2d" else {}
    network = Network((LayerSpec(kind, "p", options),), weight, (1, 5, 5))
    assert forward(network, torch.ones(1, 1, 5, 5).numpy()).shape == (1, 1, 3, 3)
    with pytest.raises(UnsupportedModule, match="pads 0 above and 1 below"):
        build_module(network)
