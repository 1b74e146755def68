"""Certificates of monotone networks that say more than is true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import All, CertificateError, Lipschitz, Monotone, PlusLinear, certify, verify
from admm_lip.certificates.certificate import MonotoneCertificate
from admm_lip.certificates.column_proof import ColumnProof


def network(share: float = 1.0) -> PlusLinear:
    """With a core close to what its linear term outweighs; ``share`` of that term."""
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        core[2].weight *= 1.5 / certify(core).lip
    model = PlusLinear(core, All(Lipschitz(4.0), Monotone(increasing=[0], slope=1.6)))
    model.linear.weight.data *= share
    return model


MODEL = network()
MADE = certify(MODEL, kind="monotone", monotone=Monotone(increasing=[0]))
(PROOF,) = MADE.columns


def claimed(**changes: Any) -> MonotoneCertificate:
    return replace(MADE, columns=(replace(PROOF, **changes),))


def test_the_honest_one_is_proven() -> None:
    verify(MADE, MODEL)
    verify(MonotoneCertificate.from_json(MADE.to_json()), MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": 1}, "never falls in input 1 is not proven"),
        ({"column": 3}, r"columns\[0\].column: expected a number from 0 to 2, got 3"),
        ({"output": 1}, r"columns\[0\].output: expected a number from 0 to 0, got 1"),
        ({"sign": -1}, "never rises in input 0 is not proven"),
        ({"centre": 0.0}, "the network is not constant"),
        ({"centre": 0.5}, "is not proven"),
        ({"centre": 1e-200}, "a proof needs a number from"),
        ({"multiplier": ()}, "1 hidden layers, but 0 multipliers"),
        ({"multiplier": ((1.0,) * 8,)}, "is not proven"),
        ({"multiplier": ((0.0,) * 8,)}, "has an entry outside"),
    ],
)
def test_a_forged_column_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        verify(claimed(**changes), MODEL)


def test_a_bound_that_is_too_low_is_refused() -> None:
    low = replace(MADE, lip=0.9 * MADE.lip, lower_lip=0.0, sampled_lower=0.0)
    with pytest.raises(CertificateError, match=r"lip: .* is not proven"):
        verify(low, MODEL)


def test_a_linear_term_that_the_core_outweighs_is_refused() -> None:
    weak = network(share=0.05)
    x = torch.randn(4000, 3, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(weak(x).sum(), x)
    assert slopes[:, 0].min() < 0.0
    with pytest.raises(CertificateError, match="another network"):
        verify(MADE, weak)
    with pytest.raises(CertificateError, match="is not proven"):
        verify(
            MonotoneCertificate(
                **vars(certify(weak)) | {"kind": "monotone", "columns": MADE.columns}
            ),
            weak,
        )
    with pytest.raises(CertificateError, match="could not be proven"):
        certify(weak, kind="monotone", monotone=Monotone(increasing=[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": -1}, "column: expected a whole number >= 0, got -1"),
        ({"output": True}, "output: expected a whole number"),
        ({"sign": 2}, "sign: expected 1 or -1, got 2"),
        ({"centre": float("nan")}, "centre: expected a finite number"),
        ({"multiplier": ((-1.0,),)}, "multiplier"),
    ],
)
def test_fields_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        replace(PROOF, **changes)


def test_no_columns_are_no_monotone_certificate() -> None:
    with pytest.raises(CertificateError, match="columns: expected ColumnProofs"):
        replace(MADE, columns=())
    with pytest.raises(CertificateError, match=r"columns\[0\]: expected the fields"):
        ColumnProof.from_data("columns[0]", {"column": 0})
    with pytest.raises(CertificateError, match="not a certificate of format"):
        certify(MODEL, requested=9.0).from_json(MADE.to_json())
