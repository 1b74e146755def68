"""The certificate of an image network by its layers' norms, or its modules', nothing solved.

Training that keeps every layer's norm ends in it.
"""

from __future__ import annotations

from ...errors import CertificateError
from ...networks.network import Network
from ...solvers.deadline import Deadline
from ...solvers.threads import one_thread_of_blas
from ..certificate import Certificate
from ..certifier import Order, stated
from ..sampled_slope import sampled_quotient
from .check import slopes_on_torus, torus_product
from .proof import NotProven
from .proven_product import proven_product
from .read import furthest_chain


@one_thread_of_blas()
def certify_product(network: Network, requested: float | None = None) -> Certificate:
    """The proven product of norms; multipliers are per channel as far as a torus holds them.

    Raises:
        NotShiftInvariant: by name, where not even the first activation can stand on a torus.
        CertificateError: where rounding forbids the proof.
    """
    chain = furthest_chain(network)
    try:
        lip, multiplier, method = proven_product(chain)
    except NotProven as reason:
        raise CertificateError(f"the product of norms is not proven: {reason}") from None
    lower = min(sampled_quotient(network, Deadline(None)), lip)
    return Certificate(
        lip=lip,
        multiplier=tuple(tuple(t.tolist()) for t in multiplier),
        method=method,
        requested=requested,
        norm_product=torus_product(chain),
        sampled_lower=lower,
        lower_lip=lower,
        kind="global",
        switch=len(chain.activations),
        **stated(network, slopes_on_torus(chain), Order(), set()),
    )
