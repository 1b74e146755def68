"""A ``forward`` that runs another network than it looks: refused by name, or read as what runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from deceiving_modules import forwarding, knows_the_tracer, plain
from torch import Tensor, fx

from admm_lip import certify, verify
from admm_lip.errors import CertificateError, UnsupportedModule
from admm_lip.foreign.open import network_of
from admm_lip.local import LocalConfig, certify_local
from admm_lip.networks.forward import forward

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
    "knows when it is traced": (knows_the_tracer, r"Model: running it gives something else"),
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


def test_every_door_runs_the_module() -> None:
    model = forwarding(knows_the_tracer)
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
