"""Networks that somebody else wrote: ONNX, ``torch.export``, safetensors; read, never run.

Importing this loads neither torch nor onnx; reading ONNX needs the extra ``admm-lip[onnx]``.
"""

from .onnx_model import read_onnx
from .open import open_network
from .pt2 import read_exported, read_pt2
from .vnnlib import Specification, read_vnnlib

__all__ = [
    "Specification",
    "open_network",
    "read_exported",
    "read_onnx",
    "read_pt2",
    "read_vnnlib",
]
