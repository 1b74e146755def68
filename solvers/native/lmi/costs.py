"""What each form of the solve costs, in multiply-adds, and which one a problem gets.

Let D be the order of the inequality, N the number of hidden neurons, and

    S = sum n_k n_{k+1},  B = sum n_k^2   (inputs and hidden layers),
    C = sum n_k n_{k+1} (n_k + n_{k+1}) / 2   (outputs too).

* An iteration of the dense form is ``6 D (S + B) + N^3 / 3`` (counted in the matrix products of
  seven networks, to 10 %), and 15 of them are the rule.  It holds some 12 matrices of order D.
* A pass over the layers, which gives a closed form or a bound, is ``5/3 C``; the descent's, with
  its derivative, ``2 C``.
* The primal-dual iteration without the N x N matrix takes more steps the deeper the network, 12 of
  8 layers and 27 of 64.  Measured on 20 networks of 5 to 64 layers and 16 to 200 neurons a layer,
  it lasts as long as ``185 C`` a layer of the dense form and :data:`_PAIR_OVERHEAD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ...problem import CertifyProblem
from .progress import Progress

# Work of the descent: 40 evaluations of 50 layers of 1,000 neurons, minutes.
DESCENT_WORK = 4e12
# Work of the iteration without the N x N matrix, a quarter of an hour.
PAIR_WORK = 1e13
# The dense form ends with a proven gap, so it may cost somewhat more than the descent.
DENSE_WORK = 2.0 * DESCENT_WORK
# More neurons than this do not fit into memory: 12 matrices of order 6,000 are 3.5 GB.
DENSE_LIMIT = 5000

_ITERATIONS = 15
_PAIR_COST, _PAIR_OVERHEAD = 185.0, 2e9
# How much longer than estimated the dense form may take and still has to end in time.
_SAFETY = 1.5
# A pass over fewer multiply-adds than this is all overhead and says nothing of the speed.
_LEAST_PASS = 1e7


@dataclass(frozen=True)
class Costs:
    """The work of one problem in each form (module's docstring)."""

    neurons: int
    depth: int
    dense: float
    layer: float

    @staticmethod
    def of(problem: CertifyProblem) -> Costs:
        """Read off the widths."""
        blocks = problem.widths[:-1]
        order, neurons = sum(blocks), sum(blocks[1:])
        squares = sum(n * n for n in blocks) + sum(a * b for a, b in pairwise(blocks))
        one = order * squares
        dense = _ITERATIONS * (6.0 * one + neurons**3 / 3.0)
        layer = sum(n * m * (n + m) / 2.0 for n, m in pairwise(problem.widths))
        return Costs(neurons, len(problem.widths) - 1, dense, layer)

    @property
    def one_pass(self) -> float:
        """A closed form, or the bound of a multiplier."""
        return 5.0 / 3.0 * self.layer

    @property
    def pairs(self) -> float:
        """The primal-dual iteration with iterative solves."""
        return _PAIR_COST * self.depth * self.layer + _PAIR_OVERHEAD

    def pairs_affordable(self) -> bool:
        """Whether that iteration is worth its work."""
        return self.pairs <= PAIR_WORK

    def evaluations(self) -> int:
        """How many evaluations the descent may cost: the same work for every network."""
        return 1 + int(DESCENT_WORK / (2.0 * self.layer))

    def dense_is_best(self, run: Progress, pairs: bool) -> bool:
        """Whether the dense form should be tried: it fits, and nothing as good is cheaper.

        Args:
            run: against its time limit the work is turned into seconds by the passes it has timed.
            pairs: whether the iteration without the N x N matrix is possible.
        """
        best = self.dense <= (self.pairs if pairs else DENSE_WORK)
        seconds = run.seconds_of("passes") * self.dense / max(self.one_pass, _LEAST_PASS)
        return best and self.neurons <= DENSE_LIMIT and _SAFETY * seconds < run.seconds_left
