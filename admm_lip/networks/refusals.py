"""Layers of which no bound can be had, by their names in torch, ATen and ONNX, and why."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UnsupportedModule

_NORMALISES = (
    "divides every input by its own spread, so that its slope has no bound but |weight| / "
    "sqrt(eps); batch normalisation in evaluation is affine and can be certified"
)
_ATTENDS = (
    "attention multiplies values by each other and has no Lipschitz constant on all inputs "
    "(H. Kim et al., ICML 2021)"
)
_RECURS = (
    "a recurrent cell multiplies values by each other, once for every step of its input; a plain "
    "recurrence of fixed length can be written out in the forward"
)
_LOOKS_UP = "takes whole numbers, between which there is no slope; certify what follows it"

_REASONS: dict[str, tuple[str, ...]] = {
    _NORMALISES: (
        *("LayerNorm", "GroupNorm", "RMSNorm", "LocalResponseNorm"),
        *("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
        *("layer_norm", "native_layer_norm", "group_norm", "rms_norm", "instance_norm"),
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization"),
        *("RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "LRN"),
    ),
    _ATTENDS: (
        *("MultiheadAttention", "Transformer", "TransformerEncoder", "TransformerEncoderLayer"),
        *("TransformerDecoder", "TransformerDecoderLayer", "scaled_dot_product_attention"),
        *("Attention", "MultiHeadAttention"),
    ),
    _RECURS: (
        *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"),
    ),
    _LOOKS_UP: ("Embedding", "EmbeddingBag", "embedding", "embedding_bag"),
}
# In training mode, which is read as it is: the function is the one that is called.
BY_BATCH = (
    "normalises by the batch that it is given, which is no function of one input; call "
    "model.eval() first, and use track_running_stats=True"
)
RANDOM = (
    "is in training mode, where it is random; call model.eval() first, and write a call as "
    "F.dropout(x, p, training=self.training)"
)

_BY_NAME = {name: reason for reason, names in _REASONS.items() for name in names}


class NoBound(UnsupportedModule):
    """No reading of any kind helps."""


def refuse_without_bound(label: str, names: Iterable[str]) -> None:
    """Raise, with the reason, where a layer goes by a name of the table.

    Raises:
        NoBound: starting with ``label``.

    Example:
        >>> refuse_without_bound("node n1 (aten.gru.input)", ["aten", "gru", "input"])
        Traceback (most recent call last):
        ...
        admm_lip.networks.refusals.NoBound: node n1 (aten.gru.input): a recurrent cell multiplies \
values by each other, once for every step of its input; a plain recurrence of fixed length can be \
written out in the forward
    """
    for name in names:
        if name in _BY_NAME:
            raise NoBound(f"{label}: {_BY_NAME[name]}")
