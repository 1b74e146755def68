"""Certificates that a network is Lipschitz and monotone: the maker and the check.

Monotone in an input means: ``s = d f_o / d x_j`` (times the sign asked for) is nowhere negative.
With any c > 0 the Lipschitz constant of ``f_o - c x_j`` along ``x_j`` is the supremum of
``|s - c|``, so that a constant of at most c proves ``0 <= s <= 2 c``
(:func:`~.claim_matrices.off_centre`).  LipSDP's diagonal multipliers bound it as they bound every
constant.  A larger c asks less of the upper end and more of the arithmetic; the product of norms
along the column is at least s, so with it, or more, only the sign is decided.  A slope that is 0
somewhere, like that of a ReLU, leaves nothing for rounding and is not proven; one that is 0
everywhere is, by the exact zeros of the weights.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import CertificateError
from ..foreign.open import network_of
from ..lipschitz import Monotone
from ..networks.layers import Array, Shape
from ..networks.network import Chain, Network
from ..solvers.config import SolverConfig
from ..solvers.deadline import Deadline
from ..units import Units
from .certificate import Certificate, MonotoneCertificate
from .certifier import Order, certify_global
from .chain_bound import Proven, Task, constant, prove
from .claim_matrices import Matrices, off_centre
from .column_proof import ColumnProof
from .last_layer import split
from .norm_product import norm_product, spectral_norm
from .proof import is_constant, unproven
from .verify import certified_network, check

# Relative gap in L^2 of a column's proof, where the caller names no other.
_TOL = 1e-7
# Centres that are tried, times the product of norms.
_CENTRES = (2.0, 16.0, 0.25)


def certify_monotone(
    model: nn.Module | Network,
    input_shape: Shape | None = None,
    *,
    monotone: Monotone | None = None,
    norm: str = "l2",
    units: Units | None = None,
    solver: str | SolverConfig = "auto",
    **options: Any,
) -> MonotoneCertificate:
    """What :func:`admm_lip.certify` does for ``kind="monotone"``; arguments are as there.

    Raises:
        CertificateError: naming the column, where no multiplier proves it.
    """
    if not isinstance(monotone, Monotone):
        raise CertificateError(f"monotone: expected admm_lip.Monotone, got {monotone!r:.80}")
    network = network_of(model, input_shape)
    chain = _chain(network)
    names = ((), ()) if units is None else (units.input_names, units.output_names)
    try:
        signs = monotone.signs(chain.widths[0], names[0])
        output = monotone.output_of(chain.widths[-1], names[1])
    except ValueError as error:
        raise CertificateError(str(error)) from None
    config = Order(norm, units, solver).config(_TOL)
    proofs = tuple(_proof(chain, column, output, sign, config) for column, sign in signs.items())
    bound = certify_global(model, input_shape, norm=norm, units=units, solver=solver, **options)
    kept = {f.name: getattr(bound, f.name) for f in fields(Certificate) if f.name != "kind"}
    return MonotoneCertificate(**kept, columns=proofs)


def check_monotone(
    certificate: MonotoneCertificate, model: nn.Module | Network | str | Path
) -> None:
    """What :func:`admm_lip.verify` does for the kind: the bound, then every column.

    Raises:
        CertificateError: naming what is not proven.
    """
    check(certificate, model)
    chain = _chain(certified_network(certificate, model))
    for k, proof in enumerate(certificate.columns):
        for name, size in (("column", chain.widths[0]), ("output", chain.widths[-1])):
            if not getattr(proof, name) < size:
                raise CertificateError(
                    f"columns[{k}].{name}: expected a number from 0 to {size - 1}, got "
                    f"{getattr(proof, name)}"
                )
        claim = _claim(chain, proof.column, proof.output, proof.sign, proof.centre)
        reason = unproven(claim, [np.array(t) for t in proof.multiplier], proof.centre)
        if reason is not None:
            way = "falls" if proof.sign == 1 else "rises"
            raise CertificateError(
                f"columns[{k}]: that output {proof.output} never {way} in input {proof.column} is "
                f"not proven: {reason}"
            )


def _chain(network: Network) -> Chain:
    inner, last = split(network)
    if last is not None:
        raise CertificateError(
            "monotone: speaks of outputs of affine layers and activations, got "
            f"{type(last).__name__} as the last layer; leave it out of the model"
        )
    return inner.chain()


def _claim(chain: Chain, column: int, output: int, sign: int, centre: float) -> Matrices:
    direction: Array = np.zeros(chain.widths[-1])
    direction[output] = sign
    return off_centre(Matrices.of(chain), direction, column, centre)


def _proof(chain: Chain, column: int, output: int, sign: int, config: SolverConfig) -> ColumnProof:
    """The first centre's proof that holds."""
    plain = _claim(chain, column, output, sign, 0.0)
    if is_constant(plain):
        return ColumnProof(column, output, sign, 0.0, constant(plain).multiplier)
    steepest, least = norm_product(plain, [spectral_norm(w) for w in plain.weights]), -np.inf
    for share in _CENTRES:
        centre = share * steepest
        claim = _claim(chain, column, output, sign, centre)
        proven = _bounded(claim, config)
        least = max(least, centre - proven.candidate.lip)
        multiplier = proven.candidate.multiplier
        if proven.candidate.lip <= centre and unproven(claim, multiplier, centre) is None:
            return ColumnProof(column, output, sign, centre, proven.multiplier)
    word = "increasing" if sign == 1 else "decreasing"
    raise CertificateError(
        f"monotone: that output {output} is {word} in input {column} could not be proven, only "
        f"that its slope {'falls' if sign == 1 else 'rises'} no further than to "
        f"{sign * least:.6g}; train under All(Lipschitz(...), Monotone(...))"
    )


def _bounded(claim: Matrices, config: SolverConfig) -> Proven:
    norms = [spectral_norm(w) for w in claim.weights]
    names = [f"column's layer {k}" for k in range(len(norms))]
    return prove(Task(claim, claim, norms, names), config, Deadline(config.time_limit))
