"""The covariance recursion: the Schur complement of the matrix inequality from the input on.

With P the inverse of the storage of a step's input (the identity at the network's input):

* correlation, at frequency f with aliases a:  ``P <- mean_a W(f_a) P(f_a) W(f_a)^H``;
* activation with multipliers T on channels J, D the least slopes (1 elsewhere), G the slope spans:
  ``S = (2 T - T P_JJ T)^{-1}``,  ``H = D P_:J T + E_J G``,  ``P <- D P D + H S H^H``.

At the end ``L^2`` is the largest eigenvalue of P.  The functions take NumPy arrays or torch tensors
alike, batches of frequencies in front.
"""

from __future__ import annotations

from typing import Any


def adjoint(matrix: Any) -> Any:
    """Conjugate transpose of the last two axes."""
    return matrix.conj().swapaxes(-1, -2)


def through_correlation(p: Any, w: Any, aliases: int) -> Any:
    """P after a correlation; ``aliases`` frequencies in a row fold onto one."""
    found = w @ p @ adjoint(w)
    if aliases == 1:
        return found
    return found.reshape(-1, aliases, *found.shape[1:]).mean(1)


def slack(p: Any, rows: Any, t: Any) -> Any:
    """``2 T - T P_JJ T``, which must be positive definite."""
    inner = -t[:, None] * p[:, rows[:, None], rows] * t
    index = range(len(t))
    inner[:, index, index] += 2.0 * t
    return inner


def gain(p: Any, rows: Any, t: Any, least: Any, span: Any) -> Any:
    """``H = D P_:J T + E_J G``; ``least`` has one entry per channel."""
    found = least[:, None] * p[:, :, rows] * t
    found[:, rows, range(len(rows))] += span
    return found


def through_activation(p: Any, h: Any, s: Any, least: Any) -> Any:
    """``D P D + H S H^H``."""
    return least[:, None] * p * least + h @ s @ adjoint(h)
