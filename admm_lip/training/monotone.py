r"""Monotone and Lipschitz together: a network under a bound, plus a linear term that outweighs it.

**What is trained.**  ``f(x) = g(x) + A x``: g is any chain that the package trains, and A holds
``sign a`` in the output and the k columns that are named, zeros elsewhere (Kitouni, Nolte and
Williams, Expressive monotonic neural networks, ICLR 2023).

**Which norm.**  Needed is ``|d g_o / d x_j| <= a`` for each named column j, one at a time; any
bound of g on inputs that contains the steps along single columns gives it.  That paper takes l1
inputs; the l2 constant that is trained here bounds each column too, since
``|d g_o / d x_j| <= ||J e_j||_2 <= ||J||_2``.  Columns that are not named need no such bound, so
they are measured on a scale of their own: with ``D = diag(a on named columns, b on others)``,

    J = U D,  ||U||_2 <= 1      (g is a-Lipschitz in inputs divided by ``D / a``).

**What f keeps.**  Let t be the norm of a unit vector v in the named columns.  Then
``||J v|| <= ||D v|| = sqrt(a^2 t^2 + b^2 (1 - t^2))`` and ``||A v|| <= a r t`` with
``r = sqrt(k)``,

    ||(J + A) v|| <= phi(t) = sqrt(b^2 - d t^2) + a r t,   d = b^2 - a^2,

whose greatest value, ``b sqrt(1 + a^2 r^2 / d)``, is the bound L for the larger root of

    b^4 - p b^2 + a^2 L^2 = 0,   p = L^2 - a^2 (k - 1),

which exists as long as ``a (1 + r) <= L``: that is the largest a, then with ``b^2 = a^2 (1 + r)``
and t = 1, and what is taken where no slope is asked for.  All of it in the units that the bound is
asked in.

**What is proven.**  Of the finished f alone, whatever it was made of
(``certificates/monotone.py``): its constant, as a graph with a skip connection, and the sign of
every named slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..lipschitz import All, Lipschitz
from ..networks.chain import read_network
from ..networks.module_state import evaluating
from ..units import Units
from .constrained import check_asked

# What g stays below its share, relatively: rounding of A and of weights, and the proofs' gaps.
MARGIN = 1e-4


class PlusLinear(nn.Module):
    """``core(x) + linear(x)``: a network with a linear term that is not trained.

    Args:
        core: a chain of Linear layers and activations.
        asked: a bound and a :class:`~admm_lip.Monotone`; column names are those of the units that
            the bound is asked in.

    Raises:
        ValueError: for a column or output that the network does not have.
        UnsupportedModule: by name, for a core that cannot be trained under a bound.

    Example:
        >>> import torch
        >>> from admm_lip import All, Constraint, Lipschitz, Monotone, PlusLinear, verify
        >>> layers = torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        >>> asked = All(Lipschitz(2.0), Monotone(increasing=[0], decreasing=[2]))
        >>> net = PlusLinear(torch.nn.Sequential(*layers), asked)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> constraint = Constraint(net, asked).attach(optimizer)
        >>> x = torch.rand(64, 3)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     ((net(x) - x[:, :1] ** 2) ** 2).mean().backward()
        ...     _ = optimizer.step()
        >>> net, certificate = constraint.finish()
        >>> verify(certificate, net)
        >>> certificate.lip <= 2.0, [proof.sign for proof in certificate.columns]
        (True, [1, -1])
    """

    def __init__(self, core: nn.Module, asked: All) -> None:
        super().__init__()
        term = linear_term(core, asked)
        like = next(core.parameters())
        self.core = core
        self.linear = nn.Linear(term.shape[1], term.shape[0], bias=False, device=like.device)
        self.linear.weight.data = term.to(like)
        self.linear.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """g(x) + A x."""
        found: Tensor = self.core(x) + self.linear(x)
        return found


@dataclass(frozen=True)
class Split:
    """What an :class:`All` asks of g, and the linear term, both in the model's numbers."""

    core: Lipschitz
    term: Tensor


def linear_term(core: nn.Module, asked: All) -> Tensor:
    """A, float64 ``(outputs, inputs)``, for this g."""
    with evaluating(core):
        widths = read_network(core).chain().widths
    return split(asked, widths[0], widths[-1]).term


def split(asked: All, inputs: int, outputs: int) -> Split:
    """The bound of g and the linear term of the module's docstring.

    Raises:
        ValueError: for a column or output that there is not.
    """
    if not isinstance(asked, All):
        raise TypeError(f"asked: expected All(Lipschitz, Monotone), got {type(asked).__name__}")
    check_asked(asked.lipschitz)
    units, bound = asked.lipschitz.units or Units(), asked.lipschitz.bound
    assert bound is not None  # All admits no other
    signs = asked.monotone.signs(inputs, units.input_names)
    output = asked.monotone.output_of(outputs, units.output_names)
    share, free = _shares(bound, asked.monotone.slope, len(signs))
    scales, term = list(units.input_scales(inputs)), torch.zeros(outputs, inputs).double()
    for column, sign in signs.items():
        term[output, column] = sign * share * scales[column] / units.output_scales(outputs)[output]
    own = tuple(s if j in signs else s * free / share for j, s in enumerate(scales))
    measured = Units(input_scale=own, output_scale=units.output_scale)
    return Split(Lipschitz(share * (1.0 - MARGIN), units=measured), term)


def _shares(bound: float, slope: float | None, columns: int) -> tuple[float, float]:
    """a and b of the module's docstring."""
    most = bound / (1.0 + math.sqrt(columns))
    share = most if slope is None else slope
    if share > most * (1.0 + 1e-12):
        raise ValueError(
            f"slope: expected at most {most:g} for {columns} columns under a bound of {bound:g}, "
            f"which is bound / (1 + sqrt(columns)), got {share:g}"
        )
    p = bound**2 - share**2 * (columns - 1)
    root = math.sqrt(max(p**2 - 4.0 * share**2 * bound**2, 0.0))
    return share, math.sqrt((p + root) / 2.0)


def core_of(model: nn.Module, asked: Any) -> tuple[nn.Module, Lipschitz]:
    """The chain that a constraint moves, and what is asked of it.

    Raises:
        TypeError, ValueError: for a composite claim on a model without the linear term it needs.
    """
    if not isinstance(asked, All):
        return model, asked
    if not isinstance(model, PlusLinear):
        raise TypeError(
            f"model: Monotone needs a linear term; expected a PlusLinear, got "
            f"{type(model).__name__}; give PlusLinear(model, asked), and train that"
        )
    found = split(asked, model.linear.in_features, model.linear.out_features)
    if not torch.equal(model.linear.weight, found.term.to(model.linear.weight)):
        raise ValueError("model: its linear term is of another claim; make PlusLinear(core, asked)")
    return model.core, found.core
