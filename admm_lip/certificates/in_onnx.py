"""A certificate in the metadata of the ONNX file whose network it is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CertificateError, NetworkError
from ..foreign.onnx_model import read_metadata, write_onnx
from ..foreign.open import network_of
from ..networks.layers import Shape
from ..networks.network import Network
from .certificate import Certificate
from .verify import check_belongs

if TYPE_CHECKING:
    from torch import nn

CERTIFICATE_KEY = "admm_lip.certificate"
_MAX_CERTIFICATE = 256 * 2**20


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """The certificate that an ONNX file carries; ``verify`` it before relying on it.

    Raises:
        CertificateError: for a file that cannot be read, or carries no valid certificate.
    """
    path = Path(path)
    try:
        text = read_metadata(path, CERTIFICATE_KEY)
    except NetworkError as error:
        raise CertificateError(f"{path}: {error}") from None
    if text is None:
        raise CertificateError(
            f"{path}: carries no certificate; certify the network and write it with export_onnx"
        )
    if len(text) > _MAX_CERTIFICATE:
        raise CertificateError(f"{path}: its certificate exceeds {_MAX_CERTIFICATE} characters")
    try:
        return Certificate.from_json(text)
    except CertificateError as error:
        raise CertificateError(f"{path}: its certificate: {error}") from None


def export_onnx(
    model: nn.Module | Network | str | os.PathLike[str],
    path: str | os.PathLike[str],
    certificate: Certificate | None = None,
    *,
    input_shape: Shape | None = None,
) -> None:
    """Write a network as ONNX, with its certificate in the metadata.

    The weights are stored as they are (all in the widest type among them), the batch is left open.
    What was written is read back before the file appears under its name: it is the same network.

    Args:
        model: a chain of supported layers, a :class:`Network`, or the folder of one.
        path: the file to write.
        certificate: of exactly this network.
        input_shape: shape of one input without the batch; needed in front of convolutions.

    Raises:
        UnsupportedModule: by name, for a layer that ONNX cannot state.
        CertificateError: for the certificate of another network.

    Example:
        >>> import tempfile, torch
        >>> from admm_lip import export_onnx, open_network
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(model, f"{folder}/model.onnx")
        ...     [spec.kind for spec in open_network(f"{folder}/model.onnx").layers]
        ['linear', 'tanh']
    """
    source = Path(model) if isinstance(model, str | os.PathLike) else model
    network = network_of(source, input_shape)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected an existing folder, got {path.parent}")
    metadata = {}
    if certificate is not None:
        check_belongs(certificate, network)
        metadata[CERTIFICATE_KEY] = certificate.to_json()
    write_onnx(network, path, metadata)
