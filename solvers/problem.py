"""The two semidefinite problems, as frozen and validated data.

Notation (see ``lmi.py`` for the matrix inequality itself): a chain of ``l`` hidden layers

    x_0 = x,    x_{k+1} = phi_k(W_k x_k + b_k)  (k < l),    f(x) = W_l x_l + b_l,

with ``W_k`` of shape ``(n_{k+1}, n_k)`` and every scalar activation of hidden layer ``k`` having
difference quotients in ``[alpha, beta]``.  Biases do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ProblemError

Weights = tuple[Tensor, ...]
Multiplier = tuple[Tensor, ...]


class Slopes(NamedTuple):
    """Slope range of one hidden layer, one entry per neuron: float64 tensors of shape ``(n,)``."""

    alpha: Tensor
    beta: Tensor


def unit_slopes(weights: Sequence[Tensor]) -> tuple[Slopes, ...]:
    """Slopes ``[0, 1]`` for every hidden layer of ``weights`` (ReLU, tanh, ...)."""
    zeros = [w.new_zeros(w.shape[0], dtype=torch.float64) for w in weights[:-1]]
    return tuple(Slopes(z, torch.ones_like(z)) for z in zeros)


@dataclass(frozen=True, eq=False)
class CertifyProblem:
    """Minimise ``L^2`` over the multipliers ``T`` such that the LMI holds; the weights are fixed.

    Args:
        weights: ``(W_0, ..., W_l)``, float64, ``W_k`` of shape ``(n_{k+1}, n_k)``.
        slopes: one :class:`Slopes` per hidden layer (``l`` of them).

    Raises:
        ProblemError: on shapes that do not chain, entries that are not finite, or empty slopes.
    """

    weights: Weights
    slopes: tuple[Slopes, ...]

    def __post_init__(self) -> None:
        check_weights("weights", self.weights)
        check_slopes(self.weights, self.slopes)

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, n_1, ..., n_l, n_{l+1})``."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    def rounded(self, dtype: torch.dtype) -> CertifyProblem:
        """The same in a shorter dtype, to look for multipliers with; nothing is proven of it."""
        slopes = tuple(Slopes(s.alpha.to(dtype), s.beta.to(dtype)) for s in self.slopes)
        return self._with(tuple(w.to(dtype) for w in self.weights), slopes)

    def between(self, first: int, last: int) -> CertifyProblem:
        """The network from layer ``first``, its inputs, to the weights after layer ``last``."""
        return self._with(self.weights[first : last + 1], self.slopes[first:last])

    def _with(self, weights: Weights, slopes: tuple[Slopes, ...]) -> CertifyProblem:
        """Weights and slopes that need no check."""
        found = copy(self)
        object.__setattr__(found, "weights", weights)
        object.__setattr__(found, "slopes", slopes)
        return found


@dataclass(frozen=True, eq=False)
class Structure:
    """What an entry of a layer's matrix is tied to, held at, or weighted by.

    Attributes:
        metric: positive weight of each entry in the distance, shape of ``W_k``; ``None`` is 1.
        held: boolean mask, ``True`` where the entry is held at its anchor's value; ``None`` is
            nothing held.
        ties: integer tensor of the shape of ``W_k``: entries with the same label share one value
            (a convolution's kernel), ``-1`` where the entry is structurally zero; ``None`` is
            every entry free.
    """

    metric: Tensor | None = None
    held: Tensor | None = None
    ties: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """True when the layer is an ordinary dense matrix in the Frobenius norm."""
        return self.metric is None and self.held is None and self.ties is None


@dataclass(frozen=True, eq=False)
class ProjectProblem:
    """Nearest weights that satisfy the LMI for a fixed multiplier.

    With ``bound`` (hard form)::

        min_W  rho/2 sum_k ||W_k - V_k||_F^2        s.t.  M(bound^2, W, T) >= 0

    with ``mu`` (penalised form)::

        min_{W, s}  mu s + rho/2 sum_k ||W_k - V_k||_F^2    s.t.  M(s, W, T) >= 0,   s = L^2

    Args:
        anchor: ``(V_0, ..., V_l)``, float64.
        slopes: one :class:`Slopes` per hidden layer, with ``alpha <= 0``: only then is the set
            convex in ``W``.  A range ``[alpha, beta]`` with ``alpha > 0`` is soundly treated as
            ``[0, beta]`` by the caller.
        multiplier: ``(t_1, ..., t_l)``, positive, ``t_k`` of shape ``(n_k,)``.
        bound: the requested L, or ``None``.
        mu: the weight on ``L^2`` (not on L), or ``None``.
        rho: the weight on the squared distance, which matters only beside ``mu``.
        structure: one :class:`Structure` per weight, or empty for plain matrices.

    Raises:
        ProblemError: naming the field, what was expected and what came.
    """

    anchor: Weights
    slopes: tuple[Slopes, ...]
    multiplier: Multiplier
    bound: float | None = None
    mu: float | None = None
    rho: float = 1.0
    structure: tuple[Structure, ...] = ()

    def __post_init__(self) -> None:
        check_weights("anchor", self.anchor)
        check_slopes(self.anchor, self.slopes)
        check_multiplier(self.anchor, self.multiplier)
        if any(bool((s.alpha > 0).any()) for s in self.slopes):
            raise ProblemError(
                "slopes: the projection needs alpha <= 0 (the set is not convex otherwise); "
                "replace [alpha, beta] by [0, beta], which contains it"
            )
        if (self.bound is None) == (self.mu is None):
            which = "neither" if self.bound is None else "both"
            raise ProblemError(f"bound, mu: give exactly one of them, got {which}")
        for name in ("bound", "mu", "rho"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ProblemError(f"{name}: expected a finite number > 0, got {value!r}")
        if self.structure and len(self.structure) != len(self.anchor):
            raise ProblemError(
                f"structure: expected {len(self.anchor)} entries, one per weight, "
                f"got {len(self.structure)}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, n_1, ..., n_l, n_{l+1})``."""
        return (self.anchor[0].shape[1], *(w.shape[0] for w in self.anchor))


def check_weights(name: str, weights: Weights) -> None:
    """Raise :class:`ProblemError` unless ``weights`` are finite float64 matrices that chain."""
    if not weights:
        raise ProblemError(f"{name}: expected at least one weight matrix, got none")
    for k, w in enumerate(weights):
        if w.dtype != torch.float64 or w.ndim != 2 or 0 in w.shape:
            raise ProblemError(
                f"{name}[{k}]: expected a non-empty float64 matrix, "
                f"got {w.dtype} of shape {tuple(w.shape)}"
            )
        if k and w.shape[1] != weights[k - 1].shape[0]:
            raise ProblemError(
                f"{name}[{k}]: expected {weights[k - 1].shape[0]} columns to follow "
                f"{name}[{k - 1}], got {w.shape[1]}"
            )
        # A finite sum is a proof, at a tenth of the cost of looking at every entry.
        if not (bool(torch.isfinite(w.sum())) or bool(torch.isfinite(w).all())):
            raise ProblemError(f"{name}[{k}]: holds a value that is NaN or infinite")


def check_slopes(weights: Weights, slopes: tuple[Slopes, ...]) -> None:
    """Raise :class:`ProblemError` unless there is a finite range per hidden neuron."""
    if len(slopes) != len(weights) - 1:
        raise ProblemError(f"slopes: expected {len(weights) - 1} layers of them, got {len(slopes)}")
    for k, s in enumerate(slopes):
        n = (weights[k].shape[0],)
        if tuple(s.alpha.shape) != n or tuple(s.beta.shape) != n:
            raise ProblemError(
                f"slopes[{k}]: expected alpha and beta of shape {n}, "
                f"got {tuple(s.alpha.shape)} and {tuple(s.beta.shape)}"
            )
        if not bool((torch.isfinite(s.alpha) & torch.isfinite(s.beta)).all()):
            raise ProblemError(f"slopes[{k}]: holds a value that is NaN or infinite")
        if not bool((s.alpha <= s.beta).all()):
            raise ProblemError(f"slopes[{k}]: expected alpha <= beta for every neuron")


def check_multiplier(weights: Weights, multiplier: Multiplier) -> None:
    """Raise :class:`ProblemError` unless there is one positive finite entry per hidden neuron."""
    if len(multiplier) != len(weights) - 1:
        raise ProblemError(
            f"multiplier: expected {len(weights) - 1} layers of it, got {len(multiplier)}"
        )
    for k, t in enumerate(multiplier):
        n = (weights[k].shape[0],)
        if tuple(t.shape) != n:
            raise ProblemError(f"multiplier[{k}]: expected shape {n}, got {tuple(t.shape)}")
        if not bool((torch.isfinite(t) & (t > 0)).all()):
            raise ProblemError(f"multiplier[{k}]: expected finite entries > 0")
