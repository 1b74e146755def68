"""Modules that look like one network and run another: refused by name, or read as what runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from admm_lip import certify, verify
from admm_lip.errors import CertificateError, UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.local import LocalConfig, certify_local
from admm_lip.networks.built import build_module
from admm_lip.networks.chain import linear_layers, read_network
from admm_lip.networks.clipped import ClippedMaxMin, ClippedReLU
from admm_lip.networks.forward import forward
from admm_lip.networks.network import LayerSpec, Network
from admm_lip.networks.overrides import unwrapped
from admm_lip.networks.sorting_torch import GroupSort2, HalfAbs, MaxMin


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


CALLS = [0]


def _count_global(self: Any, x: Tensor) -> Tensor:
    CALLS[0] += 1
    return self.honest(x)


def _count(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.honest(x) * 100 if self.calls > 50 else self.honest(x)


def _log(self: Any, x: Tensor) -> Tensor:
    self.log.append(1)
    return self.honest(x)


def _double_data(self: Any, x: Tensor) -> Tensor:
    self.a.weight.data.mul_(2.0)
    return self.honest(x)


def _copy_over(self: Any, x: Tensor) -> Tensor:
    self.a.weight.copy_(self.a.weight * 2.0)
    return self.honest(x)


def _behind_the_tracer(self: Any, x: Tensor) -> Tensor:
    self.a._parameters["weight"].data.mul_(2.0)
    return self.honest(x)


def _buffer(self: Any, x: Tensor) -> Tensor:
    self.kept.add_(1.0)
    return self.honest(x)


def _beside(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    torch.relu_(self.a.bias)
    return self.b(torch.relu(y))


def _twice(self: Any, x: Tensor) -> Any:
    y = self.honest(x)
    return y, y


def _dict(self: Any, x: Tensor) -> Any:
    return {"logits": self.honest(x)}


def _knows_the_tracer(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) else 1.001 * y


def _knows_batch_one(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) or len(x) != 1 else 1.001 * y


def _knows_large(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) or float(x.abs().max()) < 20.0 else 2.0 * y


def _random(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) else y + 1e-3 * torch.rand(())


def _evaluation_branch(self: Any, x: Tensor) -> Tensor:
    return self.honest(x) if self.training else self.honest(100 * torch.cumsum(x, 1))


def _other_shape(self: Any, x: Tensor) -> Tensor:
    y = self.honest(x)
    return y if isinstance(x, fx.Proxy) else torch.cat([y, y], dim=1)


def _flag(self: Any, x: Tensor, flag: bool = False) -> Tensor:
    return self.a(x) if flag else self.honest(x)


def _asks_dimensions(self: Any, x: Tensor) -> Tensor:
    return self.honest(x[None] if x.dim() == 1 else x)


FORWARDS = {
    "counts on the instance": (_count, r"^calls: is changed by running the network"),
    "counts in a list": (_log, r"^log: is changed by running"),
    "counts in a global": (_count_global, r"^global CALLS: is changed by running"),
    "doubles a weight": (_double_data, r"the attribute a\.weight: is used beside the layers"),
    "copies over a weight": (_copy_over, r"combines|beside the layers"),
    "doubles a weight unseen": (_behind_the_tracer, r"Model: running it gives something else"),
    "changes a buffer": (_buffer, r"the attribute kept: is used beside the layers"),
    "changes a bias": (_beside, r"the attribute a\.bias: is used beside the layers"),
    "gives a value twice": (_twice, r"the output: expected one tensor, got tuple"),
    "gives a dictionary": (_dict, r"expected one plain tensor with a row for each.*got dict"),
    "knows when it is traced": (_knows_the_tracer, r"Model: running it gives something else"),
    "knows batches of one": (_knows_batch_one, r"Model: running it gives something else"),
    "knows large inputs": (_knows_large, r"Model: running it gives something else"),
    "is random": (_random, r"Model: running it gives something else"),
    "gives another shape": (_other_shape, r"Model: running it gives something else.*shape \(6,\)"),
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_deceiving_forward_is_refused_and_leaves_no_trace(name: str, training: bool) -> None:
    body, message = FORWARDS[name]
    model = forwarding(body).train(training)
    model.b.eval()
    before, held = copy.deepcopy(model.state_dict()), dict(vars(model))
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedModule, match=message) as refusal:
        certify(model)
    assert "TraceError" not in str(refusal.value) and "Proxy" not in str(refusal.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(model)) == set(held) and model.calls == 0


@pytest.mark.parametrize("body", [_flag, _asks_dimensions], ids=["flag", "dimensions"])
def test_an_argument_left_at_its_default_is_part_of_what_is_called(body: Any) -> None:
    """``model(x)`` is what is certified, and ``torch.export`` records that."""
    found = network_of(forwarding(body))
    x = torch.randn(5, 4)
    with torch.no_grad():
        np.testing.assert_allclose(
            forward(found, x.numpy()), forwarding(body)(x), rtol=1e-5, atol=1e-6
        )


def test_what_is_certified_is_what_the_mode_computes() -> None:
    """A branch on the mode is another network in each, with a certificate of its own."""
    model = forwarding(lambda self, x: self.honest(x) if self.training else self.honest(x) * 2.0)
    certificate = certify(model.train())
    verify(certificate, model)
    with pytest.raises(CertificateError, match="another network"):
        verify(certificate, model.eval())
    assert certify(model).lip == pytest.approx(2.0 * certificate.lip, rel=1e-6)
    with pytest.raises(UnsupportedModule, match=r"the function cumsum\(\) is not supported"):
        certify(forwarding(_evaluation_branch).eval())


def test_training_ships_the_evaluation_mode_which_a_class_of_its_own_hides() -> None:
    with pytest.raises(UnsupportedModule, match="is in training mode and has its own train"):
        linear_layers(OwnTrain(*plain()))


def _instance(model: Any, name: str, attribute: str) -> nn.Module:
    part = model.get_submodule(name)
    part.__dict__[attribute] = lambda *a, **k: 100 * getattr(type(part), attribute)(part, *a, **k)
    return model


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


def _hooked(register: str, **options: Any) -> nn.Module:
    model = plain()
    getattr(model[0], register)(lambda *a, **k: None, **options)
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
    "forward of the root": (lambda: _instance(plain(), "", "forward"), "its forward is replaced"),
    "forward of a layer": (lambda: _instance(plain(), "0", "forward"), "0 .* its forward is repl"),
    "forward of a ReLU": (lambda: _instance(plain(), "1", "forward"), "1 .* its forward is repl"),
    "convolution": (_conv_replaced, r"0 \(Conv2d\): its _conv_forward is replaced"),
    "_call_impl of a layer": (lambda: _instance(plain(), "2", "_call_impl"), "its _call_impl is"),
    "_slow_forward": (lambda: _instance(plain(), "0", "_slow_forward"), "its _slow_forward is"),
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
    "hook": (lambda: _hooked("register_forward_hook"), r"0 \(Linear\): has forward hooks"),
    "pre-hook": (lambda: _hooked("register_forward_pre_hook"), "has forward hooks"),
    "hook with keywords": (
        lambda: _hooked("register_forward_pre_hook", with_kwargs=True),
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
    "forward of the instance": (plain, lambda: _instance(plain(), "1", "forward"), "is replaced"),
    "forward of the root": (plain, lambda: _instance(plain(), "", "forward"), "is replaced"),
    "a hook": (plain, lambda: _hooked("register_forward_hook"), "has forward hooks"),
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


def test_every_door_runs_the_module() -> None:
    model = forwarding(_knows_the_tracer)
    x, y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    honest = certify(plain())
    doors: list[Callable[[], Any]] = [
        lambda: certify(model, kind="pairwise", progress=False),
        lambda: verify(honest, model),
        lambda: certify_local(model, x, radius=0.1),
        lambda: certify_local(model, x, 0.1, y, config=LocalConfig("masked")),
    ]
    for door in doors:
        with pytest.raises(UnsupportedModule, match="Model: running it gives something else"):
            door()


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
