"""What all linear functionals of a network share: everything but the last row.

Neuron by neuron that is the chain of matrices.  Of an image network taken frequency by frequency it
is what stands behind the torus: a chain whose first matrix holds the covariance that multipliers
per channel prove for what comes before (``torus``).  The multipliers are those of all outputs
together; every functional has its own behind them.  NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CertificateError
from ..networks.layers import Array
from ..networks.network import Chain, Network
from ..units import Units
from .claim_matrices import Matrices, measured
from .document import LayerSlopes, chain_slopes
from .norm_product import Norm, norm_product, spectral_norm
from .torus.check import front_product, head_matrices, slopes_on_torus
from .torus.proof import NotProven, gathered
from .torus.steps import TorusChain


@dataclass(frozen=True, eq=False)
class FunctionalBase:
    """A network but for its last row.

    Attributes:
        seen: the matrices that proofs are about; the last one gives the outputs.
        plain: those whose norms a bound is compared with: the weights themselves.
        front: the product of norms of what stands in front of ``plain``.
        slopes: of all hidden layers, as a certificate states them.
        chain: of ``plain``, which says what is constant.
    """

    seen: Matrices
    plain: Matrices
    front: float
    slopes: tuple[LayerSlopes, ...]
    chain: Chain

    def norms(self) -> list[Norm]:
        """Of all plain matrices but the last."""
        return [spectral_norm(w) for w in self.plain.weights[:-1]]

    def product(self, own: Matrices, norms: Sequence[Norm]) -> float:
        """The product of norms of one functional, whose plain matrices are ``own``."""
        return self.front * norm_product(own, [*norms, spectral_norm(own.weights[-1])])


def neuron_by_neuron(network: Network, norm: str, units: Units | None) -> FunctionalBase:
    """The chain of the network, its inputs measured in a norm and in units."""
    chain = network.chain()
    matrices = measured(chain, norm, units and units.of_inputs())
    return FunctionalBase(matrices, matrices, 1.0, chain_slopes(chain), chain)


def behind_torus(chain: TorusChain, shared: Sequence[Array]) -> FunctionalBase:
    """What stands behind the torus, under multipliers per channel.

    Raises:
        CertificateError: where they prove nothing, or nothing stands there.
    """
    if chain.head is None:
        raise CertificateError("shared: no matrix stands behind the activations on the torus")
    if len(shared) != len(chain.activations):
        raise CertificateError(
            f"shared: expected {len(chain.activations)} multipliers, got {len(shared)}"
        )
    plain = head_matrices(chain.head)
    try:
        seen = gathered(chain, shared, plain)
    except NotProven as error:
        raise CertificateError(f"shared: {error}") from None
    slopes, front = slopes_on_torus(chain), front_product(chain)
    return FunctionalBase(seen, plain, front, slopes, chain.head.chain())
