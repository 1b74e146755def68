"""What a certificate for all inputs says of the functionals of a local one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..certificates.certificate import AnyCertificate
from ..errors import CertificateError

Multiplier = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class GlobalBounds:
    """Bounds and multipliers for all inputs.

    Attributes:
        whole: the bound of all outputs together, ``inf`` where there is none.
        pairs: bounds of ``f_i - f_j``, ``(n_out, n_out)``; of one output its own, ``(1, 1)``.
        global_multiplier: the multiplier of ``whole``, or ``None``.
        pair_multipliers: per hidden layer ``(n_out, n_out, n)``, or ``None``.
    """

    whole: float
    pairs: Tensor
    global_multiplier: Multiplier | None
    pair_multipliers: Multiplier | None

    def lips(self, labels: Tensor | None, count: int) -> Tensor:
        """Bounds of each sample's functionals, ``(count, m)``."""
        if labels is None:
            return torch.full((count, 1), self.whole, dtype=torch.float64)
        return self.pairs.expand(count, -1) if len(self.pairs) == 1 else self.pairs[labels]

    def multipliers(self, labels: Tensor | None, count: int) -> Multiplier | None:
        """Multipliers of each sample's functionals, per hidden layer ``(count, m, n)``."""
        if labels is not None and self.pair_multipliers is not None and len(self.pairs) > 1:
            return tuple(t[labels] for t in self.pair_multipliers)
        if self.global_multiplier is None:
            return None
        m = 1 if labels is None else len(self.pairs)
        return tuple(t.expand(count, m, -1) for t in self.global_multiplier)


def global_bounds(certificate: AnyCertificate, outputs: int) -> GlobalBounds:
    """Read a certificate of kind global, pairwise or per_output.

    Raises:
        CertificateError: for a kind that says nothing of differences of outputs.
    """
    read = _READ.get(certificate.kind)
    if read is None:
        raise CertificateError(
            f"kind: expected one of {', '.join(_READ)}, got {certificate.kind}; certify anew"
        )
    return read(certificate, outputs)


def _of_global(certificate: Any, outputs: int) -> GlobalBounds:
    factor = math.sqrt(2.0) * (1.0 + 1e-15) if outputs > 1 else 1.0
    pairs = torch.full((outputs, outputs), certificate.lip * factor, dtype=torch.float64)
    # Multipliers per channel are none of neurons.
    own = None
    if not certificate.switch:
        own = _tensors(_hidden(certificate, certificate.multiplier))
    return GlobalBounds(certificate.lip, pairs, own, None)


def _of_pairs(certificate: Any, outputs: int) -> GlobalBounds:
    pairs = torch.from_numpy(certificate.pair_lips())
    if certificate.switch:
        return GlobalBounds(math.inf, pairs, None, None)
    given = [_hidden(certificate, b.multiplier) for b in certificate.bounds]
    upper = np.triu_indices(outputs, 1)
    tables = []
    for k in range(len(given[0])):
        rows = torch.tensor([t[k] for t in given], dtype=torch.float64)
        table = torch.ones(outputs, outputs, rows.shape[1], dtype=torch.float64)
        table[upper] = rows
        table[upper[::-1]] = rows
        tables.append(table)
    return GlobalBounds(math.inf, pairs, None, tuple(tables))


def _of_outputs(certificate: Any, outputs: int) -> GlobalBounds:
    lips = torch.from_numpy(certificate.lips)
    pairs = (lips[:, None] + lips) * (1.0 + 1e-15) if outputs > 1 else lips[:, None]
    return GlobalBounds(math.inf, pairs, None, None)


def _hidden(certificate: Any, multiplier: Sequence[Any]) -> Sequence[Any]:
    """The multiplier of the hidden layers: for linf without that of the inputs."""
    return multiplier[1:] if certificate.norm == "linf" else multiplier


def _tensors(multiplier: Sequence[Any]) -> Multiplier:
    return tuple(torch.tensor(t, dtype=torch.float64) for t in multiplier)


_READ: Mapping[str, Callable[[Any, int], GlobalBounds]] = {
    "global": _of_global,
    "pairwise": _of_pairs,
    "per_output": _of_outputs,
}
