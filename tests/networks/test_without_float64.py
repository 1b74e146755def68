"""On a device that has no float64 (Apple's MPS): what is proven is computed on the CPU.

No such device is at hand, so tensors are told apart by hand: what a module on it holds, and what
is made of it, is there until ``cpu()`` or ``to("cpu")`` brings it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from admm_lip import LocalConfig, certified_radii, certify, certify_local, project, verify

NUMPY = (Tensor.numpy, Tensor.__array__)


class WithoutFloat64(TorchFunctionMode):
    """Within it, the tensors given and what is computed from them are on such a device."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self._there = WeakTensorKeyDictionary(dict.fromkeys(tensors, True))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        there = any(x in self._there for x in _tensors([*args, *kwargs.values()]))
        if there and func in NUMPY:
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        found = func(*args, **kwargs)
        if not there:
            return found
        if any(x.dtype == torch.float64 for x in _tensors([found])):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in map(str, args)):
            return found.clone()
        for x in _tensors([found]):
            self._there[x] = True
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


MODELS = {
    "perceptron": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "convolution": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        (1, 4, 4),
    ),
}
DONE: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "certify": lambda net, x, y: certify(net, x.shape[1:]),
    "certify, torus": lambda net, x, y: certify(net, x.shape[1:], structure="torus"),
    "pairs": lambda net, x, y: certify(net, x.shape[1:], kind="pairwise", progress=False),
    "verify": lambda net, x, y: verify(certify(net, x.shape[1:]), net),
    "radii": lambda net, x, y: certified_radii(net, x, y, certificate=certify(net, x.shape[1:])),
    "local radii": lambda net, x, y: certified_radii(net, x, y, kind="local"),
    "balls": lambda net, x, y: certify_local(net, x, 0.1, y, config=LocalConfig("closed")),
    "project": lambda net, x, y: project(net, 0.1, input_shape=x.shape[1:]),
}


def test_the_device_has_no_float64_and_no_numpy() -> None:
    x = torch.ones(2)
    with WithoutFloat64(x):
        for made in (x.double, lambda: x.to("cpu", torch.float64), lambda: (2 * x).numpy()):
            with pytest.raises(TypeError, match=r"MPS|mps"):
                made()
        assert (2 * x).cpu().double().numpy().sum() == 4.0


@pytest.mark.parametrize(
    ("work", "model"),
    [pair for pair in product(DONE, MODELS) if pair != ("certify, torus", "perceptron")],
)
def test_what_is_proven_there_is_proven_here(work: str, model: str) -> None:
    net, shape = MODELS[model]
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    with WithoutFloat64(*net.parameters(), x, y):
        DONE[work](net, x, y)
