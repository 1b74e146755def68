"""Parts that are replaced, hooked or wrapped: refused by name, or read as what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deceiving_modules import hooked, plain, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from admm_lip import certify
from admm_lip.errors import UnsupportedModule
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.overrides import unwrapped


class OwnCall(nn.Sequential):
    def __call__(self, x: Tensor) -> Any:
        return 100 * super().__call__(x)


class OwnImpl(nn.Sequential):
    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        return 100 * super()._call_impl(*args, **kwargs)


class OwnForward(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return 100 * torch.cumsum(super().forward(x), 1)


class OwnAttributes(nn.Linear):
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class GrowingWeight(nn.Linear):
    """Every look at the weight finds a larger one."""

    looks = 1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        # What initialises a layer has found another weight than the one it keeps.
        nn.init.ones_(self._parameters["weight"])  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            type(self).looks += 1
            return super().__getattr__(name) * float(type(self).looks)
        return super().__getattr__(name)


class OwnTrain(nn.Sequential):
    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        self[0].weight.data.fill_(float(mode))
        return self


class Doubling(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * found if func is F.linear else found


def _subclassed() -> nn.Module:
    model = plain()
    model[0].weight = nn.Parameter(torch.ones(6, 4).as_subclass(Doubling))
    return model


def _conv_replaced() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(1, 1))
    old = model[0]._conv_forward
    model[0]._conv_forward = lambda *a: 100 * old(*a)
    return model


def _compiled_in_place() -> nn.Module:
    model = plain()
    model.compile()
    return model


INSTANCES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward of the root": (lambda: replaced(plain(), "", "forward"), "its forward is replaced"),
    "forward of a layer": (lambda: replaced(plain(), "0", "forward"), "0 .* its forward is repl"),
    "forward of a ReLU": (lambda: replaced(plain(), "1", "forward"), "1 .* its forward is repl"),
    "convolution": (_conv_replaced, r"0 \(Conv2d\): its _conv_forward is replaced"),
    "_call_impl of a layer": (lambda: replaced(plain(), "2", "_call_impl"), "its _call_impl is"),
    "_slow_forward": (lambda: replaced(plain(), "0", "_slow_forward"), "its _slow_forward is"),
    "class with __call__": (lambda: OwnCall(*plain()), "its class has its own __call__"),
    "inner class with __call__": (
        lambda: nn.Sequential(OwnCall(*plain())),
        r"0 \(OwnCall\): its class has its own __call__",
    ),
    "class with _call_impl": (lambda: OwnImpl(*plain()), "its class has its own _call_impl"),
    "container with forward": (lambda: OwnForward(*plain()), r"the function cumsum\(\)"),
    "__getattribute__": (lambda: nn.Sequential(OwnAttributes(2, 2)), "own __getattribute__"),
    "growing weight": (lambda: nn.Sequential(GrowingWeight(2, 2)), "0 .*something else|changed"),
    "weight of a subclass": (_subclassed, r"0\.weight: expected a plain dense tensor, got Doub"),
    "sparse weight": (lambda: _sparse(), r"0\.weight: expected a plain dense tensor"),
    "hook": (lambda: hooked("register_forward_hook"), r"0 \(Linear\): has forward hooks"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), "has forward hooks"),
    "hook with keywords": (
        lambda: hooked("register_forward_pre_hook", with_kwargs=True),
        "has forward hooks",
    ),
    "scripted": (lambda: torch.jit.script(plain()), "is compiled by torch.jit"),
    "compiled in place": (_compiled_in_place, r"is compiled in place by \.compile"),
    "compiled inside": (lambda: nn.Sequential(torch.compile(plain())), "0: is wrapped by torch.co"),
    "parallel inside": (lambda: nn.Sequential(nn.DataParallel(plain())), "0: is wrapped by a par"),
    "weight norm by hooks": (lambda: _weight_norm(), "has forward hooks"),
}


def _sparse() -> nn.Module:
    model = plain()
    model[0].weight = nn.Parameter(torch.ones(6, 4).to_sparse())
    return model


def _weight_norm() -> nn.Module:
    model = plain()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", INSTANCES)
def test_what_changes_the_computation_of_a_part_is_refused_by_name(name: str) -> None:
    make, message = INSTANCES[name]
    model = make()
    with pytest.raises(UnsupportedModule, match=message):
        read_network(model, (1, 2, 2) if name == "convolution" else None)


class Doubled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return 2 * found if func is F.relu else found


@contextmanager
def _patched(owner: Any, name: str) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, lambda x, *a, **k: 2 * old(x, *a, **k))
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextmanager
def _global_hook(register: str) -> Iterator[None]:
    handle = getattr(nn.modules.module, register)(lambda *a: None)
    try:
        yield
    finally:
        handle.remove()


GLOBALLY: dict[str, tuple[Callable[[], Any], str]] = {
    "layer class": (lambda: _patched(nn.Linear, "forward"), r"0 \(Linear\): torch runs something"),
    "activation class": (lambda: _patched(nn.ReLU, "forward"), r"1 \(ReLU\): torch runs someth"),
    "container class": (
        lambda: _patched(nn.Sequential, "forward"),
        r"function mul\(\)|its forward cannot be read",
    ),
    "function": (lambda: _patched(F, "relu"), r"1 \(ReLU\): torch runs something else"),
    "mode": (Doubled, r"1 \(ReLU\): torch runs something else"),
    "hook": (lambda: _global_hook("register_module_forward_hook"), "global forward hooks"),
    "pre-hook": (lambda: _global_hook("register_module_forward_pre_hook"), "global forward hooks"),
}


@pytest.mark.parametrize("name", GLOBALLY)
def test_what_changes_all_modules_is_refused_by_name(name: str) -> None:
    context, message = GLOBALLY[name]
    model = plain()
    with context(), pytest.raises(UnsupportedModule, match=message):
        read_network(model)
    assert read_network(model).size_in == 4


def test_training_ships_the_evaluation_mode_which_a_class_of_its_own_hides() -> None:
    with pytest.raises(UnsupportedModule, match="is in training mode and has its own train"):
        linear_layers(OwnTrain(*plain()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_wrappers_that_compute_the_same_are_taken_off() -> None:
    model = plain()
    digest = read_network(model).digest()
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model),
        nn.DataParallel(torch.compile(model)),
    ):
        assert unwrapped(wrapped) is model
        assert read_network(wrapped).digest() == digest
    hooked = nn.DataParallel(model)
    hooked.register_forward_hook(lambda *a: None)
    with pytest.raises(UnsupportedModule, match=r"DataParallel.*has forward hooks"):
        read_network(hooked)


class Tripled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


TRICKS: list[Callable[[nn.Sequential, int], Any]] = [
    lambda m, k: m[k].register_forward_hook(lambda *a: 3 * a[-1]),
    lambda m, k: setattr(m[k], "forward", lambda x, f=m[k].forward: 3 * f(x)),
    lambda m, k: setattr(m, str(k), Tripled(4, 4)),
    lambda m, k: m[k].__dict__.__setitem__("_call_impl", lambda x, f=m[k]._call_impl: 3 * f(x)),
    lambda m, k: m[k].weight.data.mul_(3.0),  # honest: certified as it is now
    lambda m, k: torch.nn.utils.parametrizations.weight_norm(m[k]).eval(),  # honest as well
]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU, nn.LeakyReLU]),
    st.sampled_from(range(len(TRICKS))),
    st.data(),
)
def test_a_trick_anywhere_is_refused_or_the_bound_holds_for_what_runs(
    depth: int, activation: Any, trick: int, data: Any
) -> None:
    torch.manual_seed(depth)
    # A class of its own forward is read as what it does, not as what it is named after.
    honest = (2, 4, 5)
    model = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(4, 4), activation())))
    TRICKS[trick](model, 2 * data.draw(st.integers(0, depth - 1)))
    try:
        lip = certify(model).lip
    except UnsupportedModule:
        assert trick not in honest
        return
    x = torch.randn(64, 4)
    jacobians = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= lip * (1 + 1e-4)
    assert trick in honest
