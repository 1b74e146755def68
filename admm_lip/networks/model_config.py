"""Which network: the settings of perceptrons and of named convolutional networks.

No torch is imported here, so that the command line can name every setting at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

# The names of ``models.ACTIVATIONS`` and ``convnets.ACTIVATIONS``.
PERCEPTRON_ACTIVATIONS = (
    *("relu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus", "hardtanh", "gelu", "silu"),
    *("max_min", "group_sort2"),
)
CONVNET_ACTIVATIONS = ("relu", "clipped_relu", "max_min", "clipped_max_min")
PAIRED = ("max_min", "group_sort2")


@dataclass(frozen=True)
class ModelConfig:
    """A multilayer perceptron, but for its input and output widths, which the data give.

    Args:
        hidden: widths of the hidden layers; empty is a single affine map.
        activation: ``relu``, ``leaky_relu``, ``elu``, ``tanh``, ``sigmoid``, ``softplus``,
            ``hardtanh``, ``gelu``, ``silu``, or ``max_min`` or ``group_sort2``, which sort
            neighbouring pairs and need even widths.
        init: ``orthogonal`` (every layer with singular values 1 and zero bias: the start that
            suits training under a bound) or ``torch`` (torch's own).

    Raises:
        ValueError: naming the field that cannot be built.
    """

    hidden: tuple[int, ...] = (32, 32)
    activation: str = "relu"
    init: Literal["orthogonal", "torch"] = "orthogonal"

    def __post_init__(self) -> None:
        # YAML and JSON hand over lists; the frozen config keeps a tuple.
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if any(not isinstance(n, int) or n < 1 for n in self.hidden):
            raise ValueError(f"hidden: expected widths of at least 1, got {list(self.hidden)}")
        if self.activation not in PERCEPTRON_ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(PERCEPTRON_ACTIVATIONS)}, "
                f"got {self.activation!r}"
            )
        odd = [n for n in self.hidden if n % 2]
        if self.activation in PAIRED and odd:
            raise ValueError(
                f"hidden: {self.activation} sorts pairs and needs even widths, got {odd[0]}"
            )
        if self.init not in ("orthogonal", "torch"):
            raise ValueError(f"init: expected 'orthogonal' or 'torch', got {self.init!r}")


class Conv(NamedTuple):
    """One convolution: channels at width 1, kernel, stride and zero padding."""

    channels: int
    kernel: int
    stride: int
    padding: int = 1


@dataclass(frozen=True)
class Plan:
    """One row of the table: convolutions, widths of the hidden linear layers, where it is from.

    Attributes:
        blocks: behind every convolution and its activation, ``T`` for a tied residual block
            (``tied.py``), ``R`` for one of two kernels, ``L`` for a linear residual layer
            (``residual.py``).
        pairs: whether convolutions, and linear layers, come in pairs with an activation between
            them and none behind, which suits training in modules (``AdmmConfig.balls``).
    """

    convolutions: tuple[Conv, ...]
    hidden: tuple[int, ...]
    source: str
    blocks: str = ""
    pairs: bool = False


_SMALL = (Conv(16, 4, 2), Conv(32, 4, 2))
_THREE = (Conv(32, 4, 2), Conv(64, 4, 2), Conv(128, 4, 2))
_HUANG = "Y. Huang, H. Zhang, Y. Shi, J. Z. Kolter, A. Anandkumar, NeurIPS 2021"
CONVNETS: dict[str, Plan] = {
    "2C2F": Plan(_SMALL, (100,), "small, for first tries"),
    "4C3F": Plan(
        (Conv(32, 3, 1), Conv(32, 4, 2), Conv(64, 3, 1), Conv(64, 4, 2)), (512, 512), _HUANG
    ),
    "6C2F": Plan(
        (
            *(Conv(32, 3, 1), Conv(32, 3, 1), Conv(32, 4, 2)),
            *(Conv(64, 3, 1), Conv(64, 3, 1), Conv(64, 4, 2)),
        ),
        (512,),
        _HUANG,
    ),
    "8C2F": Plan(
        (
            *(Conv(64, 3, 1), Conv(64, 3, 1), Conv(64, 4, 2, 0)),
            *(Conv(128, 3, 1), Conv(128, 3, 1), Conv(128, 4, 2, 0)),
            *(Conv(256, 3, 1), Conv(256, 4, 2, 0)),
        ),
        (256,),
        _HUANG,
    ),
    "2C4T2F": Plan(_SMALL, (100,), "2C2F with tied residual blocks", blocks="TT"),
    "2C4R2F": Plan(_SMALL, (100,), "2C2F with residual blocks", blocks="RR"),
    "2C4M2F": Plan(_SMALL, (100,), "2C2F with averaged MaxMin blocks", blocks="MM"),
    "2C4L2F": Plan(_SMALL, (100,), "2C2F with linear residual layers", blocks="LL"),
    "2C2F-pairs": Plan(_SMALL, (100,), "2C2F without an activation between its pairs", pairs=True),
    "3C2F": Plan(_THREE, (256,), "for colour pictures of 32 x 32"),
    "3C6T2F": Plan(_THREE, (256,), "3C2F with tied residual blocks", blocks="TT"),
    "3C6M2F": Plan(_THREE, (256,), "3C2F with averaged MaxMin blocks", blocks="MM"),
}


@dataclass(frozen=True)
class ConvnetConfig:
    """Which convolutional network; input shape and classes come from the data.

    Args:
        name: ``2C2F``, ``3C2F``, ``4C3F``, ``6C2F`` or ``8C2F``, or with tied residual blocks
            ``2C4T2F`` or ``3C6T2F``, with those of two kernels ``2C4R2F``, with averaged MaxMin
            blocks ``2C4M2F`` or ``3C6M2F``, with linear residual layers ``2C4L2F``, or in pairs
            ``2C2F-pairs``; empty is a perceptron.
        width: factor on all channels and hidden widths, rounded to even numbers.
        activation: ``relu``, ``clipped_relu``, ``max_min`` or ``clipped_max_min``.

    Raises:
        ValueError: naming the field.
    """

    name: str = ""
    width: float = 1.0
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.name and self.name not in CONVNETS:
            raise ValueError(
                f"convnet.name: expected one of {', '.join(CONVNETS)}, got {self.name!r}"
            )
        if not 0.0 < self.width < math.inf:
            raise ValueError(f"convnet.width: expected a finite number > 0, got {self.width!r}")
        if self.activation not in CONVNET_ACTIVATIONS:
            raise ValueError(
                f"convnet.activation: expected one of {', '.join(CONVNET_ACTIVATIONS)}, "
                f"got {self.activation!r}"
            )
