"""Monotone networks: what is proven of a slope's sign holds, and what does not hold is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm_lip import (
    CertificateError,
    Monotone,
    MonotoneCertificate,
    Units,
    certified_radii,
    certify,
    load_certificate,
    verify,
)
from admm_lip.certificates.monotone import certify_monotone


class Skip(nn.Module):
    def __init__(self, core: nn.Module, term: torch.Tensor) -> None:
        super().__init__()
        self.core = core
        self.linear = nn.Linear(term.shape[1], term.shape[0], bias=False, dtype=term.dtype)
        self.linear.weight.data = term

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.core(x) + self.linear(x)


def chain(widths: list[int], activation: nn.Module, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, dtype=torch.float64), activation]
    return nn.Sequential(*layers[:-1])


def column_constant(core: nn.Sequential, column: int) -> float:
    """Of the core along one input, by the certificate of a longer chain."""
    feed = nn.Linear(1, core[0].in_features, bias=False, dtype=torch.float64)
    feed.weight.data = torch.eye(core[0].in_features, dtype=torch.float64)[:, column : column + 1]
    return certify(nn.Sequential(feed, *core)).lip


def slopes_of(model: nn.Module, inputs: int, output: int = 0) -> torch.Tensor:
    x = (4.0 * torch.randn(2000, inputs, dtype=torch.float64)).requires_grad_(True)
    return torch.autograd.grad(model(x)[:, output].sum(), x)[0]


def ramp(last: tuple[float, float]) -> nn.Sequential:
    """last[0] relu(x) + last[1] relu(x - 1): slopes 0, last[0] and their sum."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    values = ([[1.0], [1.0]], [0.0, -1.0], [list(last)], [0.0])
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float64)
    return net


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    activation=st.sampled_from([nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.2)]),
    sign=st.sampled_from([1, -1]),
    share=st.floats(1.0001, 3.0),
)
def test_a_linear_term_that_outweighs_the_core_is_proven(
    seed: int, hidden: list[int], activation: nn.Module, sign: int, share: float
) -> None:
    core = chain([3, *hidden, 2], activation, seed)
    term = torch.zeros(2, 3, dtype=torch.float64)
    term[1, 1] = sign * share * column_constant(core, 1)
    model = Skip(core, term)
    way = "increasing" if sign == 1 else "decreasing"
    made = certify(model, kind="monotone", monotone=Monotone(**{way: [1]}, output=1))
    verify(made, model)
    (proof,) = made.columns
    found = sign * slopes_of(model, 3, output=1)[:, 1]
    assert found.min() >= 0.0 and found.max() <= 2.0 * proof.centre
    assert (proof.column, proof.output, proof.sign) == (1, 1, sign)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.5))
def test_what_is_proven_is_true_of_any_network(seed: int, share: float) -> None:
    core = chain([2, 5, 1], nn.ReLU(), seed)
    term = torch.tensor([[share * column_constant(core, 0), 0.0]], dtype=torch.float64)
    model = Skip(core, term)
    try:
        made = certify(model, kind="monotone", monotone=Monotone(increasing=[0]))
    except CertificateError:
        return
    verify(made, model)
    assert slopes_of(model, 2)[:, 0].min() >= 0.0


@pytest.mark.parametrize("last", [(1.0, 0.0), (1.0, 1.0), (0.5, 2.0)])
def test_ramps_that_never_fall(last: tuple[float, float]) -> None:
    model = Skip(ramp(last), torch.tensor([[1e-4]]).double())
    verify(certify(model, kind="monotone", monotone=Monotone(increasing=[0])), model)


@pytest.mark.parametrize("last", [(1.0, -1.25), (-0.01, 1.0), (1.0, 0.0)])
def test_ramps_that_fall_or_stand_somewhere_are_refused(last: tuple[float, float]) -> None:
    with pytest.raises(CertificateError, match="increasing in input 0 could not be proven"):
        certify(ramp(last), kind="monotone", monotone=Monotone(increasing=[0]))


def test_without_hidden_layers_signs_of_weights_decide() -> None:
    model = nn.Linear(3, 1).double()
    model.weight.data = torch.tensor([[0.3, -2.0, 0.0]], dtype=torch.float64)
    asked = Monotone(increasing=[0, 2], decreasing=[1])
    made = certify(model, kind="monotone", monotone=asked)
    verify(made, model)
    assert [proof.centre > 0.0 for proof in made.columns] == [True, False, True]
    with pytest.raises(CertificateError, match="increasing in input 1 could not"):
        certify(model, kind="monotone", monotone=Monotone(increasing=[1]))


def test_it_is_a_global_certificate_too(tmp_path: Path) -> None:
    model = Skip(chain([2, 4, 1], nn.Tanh(), 0), torch.tensor([[5.0, 0.0]]).double())
    units = Units(input_scale=(2.0, 0.5), input_names=("age", "size"))
    asked = Monotone(increasing=["age"])
    made = certify(model, kind="monotone", monotone=asked, units=units, requested=9.0)
    assert made.lip == certify(model, units=units).lip
    assert ", increasing age; not" in repr(made) and "  increasing in " in made.summary()
    made.save(tmp_path / "certificate.json")
    again = load_certificate(tmp_path / "certificate.json")
    assert isinstance(again, MonotoneCertificate) and again == made
    verify(again, model)
    x, y = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([1])
    assert torch.equal(
        certified_radii(model, x, y, certificate=made, units=units),
        certified_radii(model, x, y, certificate=certify(model, units=units), units=units),
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Monotone(increasing=[0]), "output: expected which of the 2 outputs is meant"),
        (Monotone(increasing=[3], output=0), "increasing: expected a number from 0 to 2, got 3"),
        (Monotone(decreasing=["age"], output=0), "decreasing: expected one of none"),
        (Monotone(decreasing=[0], output=2), "output: expected a number from 0 to 1, got 2"),
        (None, "monotone: expected admm_lip.Monotone, got None"),
    ],
)
def test_what_the_network_has_not_is_refused(asked: Monotone | None, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        certify_monotone(chain([3, 4, 2], nn.ReLU(), 0), monotone=asked)


def test_probabilities_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1)).eval()
    with pytest.raises(CertificateError, match="leave it out of the model"):
        certify(model, kind="monotone", monotone=Monotone(increasing=[0], output=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected different columns, got none"),
        ({"increasing": [0], "decreasing": [0]}, "expected different columns, got 0 twice"),
        ({"increasing": "age"}, "increasing: expected numbers or names of columns, got 'age'"),
        ({"increasing": [True]}, "increasing: expected numbers or names"),
        ({"increasing": [0], "output": 1.0}, "output: expected numbers or names"),
        ({"increasing": [0], "slope": 0.0}, "slope: expected"),
    ],
)
def test_claims_that_make_no_sense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Monotone(**arguments)  # type: ignore[arg-type]


def test_a_column_by_number_and_by_name_is_one_column() -> None:
    with pytest.raises(ValueError, match="'age' is column 1, which is given twice"):
        Monotone(increasing=[1], decreasing=["age"]).signs(2, ("size", "age"))
