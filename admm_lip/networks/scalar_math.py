"""The functions that activations are made of, for NumPy's arrays.

An activation's formula is stated once (``activation_table.py``), as a function of such a namespace
and a value.  ``scalar_math_torch.py`` is the same for tensors, ``written_out.py`` for what an
exporter wrote down node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Math:
    """What a formula may use beside ``+ - * /`` and whole powers.

    Attributes:
        softplus: ``log(1 + exp(x))``.
        clip: ``min(max(x, low), high)`` of ``x, low, high``; ends may be arrays.
        pieces: of ``x, at, left, right``: ``left`` where ``x <= at``, else ``right``.
    """

    exp: Callable[[Any], Any]
    expm1: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    erfc: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    abs: Callable[[Any], Any]
    sigmoid: Callable[[Any], Any]
    softplus: Callable[[Any], Any]
    clip: Callable[[Any, Any, Any], Any]
    pieces: Callable[[Any, Any, Any, Any], Any]


NUMPY = Math(
    exp=np.exp,
    expm1=np.expm1,
    tanh=np.tanh,
    erfc=special.erfc,
    sin=np.sin,
    cos=np.cos,
    abs=np.abs,
    sigmoid=special.expit,
    softplus=lambda x: np.logaddexp(x, 0.0),
    clip=lambda x, low, high: np.minimum(np.maximum(x, low), high),
    pieces=lambda x, at, left, right: np.where(x <= at, left, right),
)
