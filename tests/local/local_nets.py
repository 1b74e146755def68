"""Networks and samples that the tests of local bounds share."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from admm_lip.local import LocalCertificate
from admm_lip.networks.chain import read_network
from admm_lip.networks.clipped import ClippedReLU
from admm_lip.networks.sorting_torch import GroupSort2, MaxMin
from admm_lip.networks.storage import save_network

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "steep_leaky": lambda: nn.LeakyReLU(-1.5),
    "elu": nn.ELU,
    "steep_elu": lambda: nn.ELU(2.5),
    "negative_elu": lambda: nn.ELU(-0.7),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(3.0),
    "falling_softplus": lambda: nn.Softplus(-0.5),
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.8),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "max_min": MaxMin,
    "group_sort": GroupSort2,
}
# Those whose neurons differ, from their number.
OF_WIDTH: dict[str, Callable[[int], nn.Module]] = {"clipped": lambda n: ClippedReLU((n,), 0.7)}


def network(
    activation: str, widths: tuple[int, ...] = (4, 8, 6, 3), seed: int = 0, scale: float = 1.5
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        own = OF_WIDTH.get(activation)
        layers += [nn.Linear(n_in, n_out), own(n_out) if own else ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1]).double()
    for p in model.parameters():
        p.data *= scale
    return model


def check_apart(model: nn.Module, found: LocalCertificate, folder: Path, means: str) -> None:
    """Check a certificate in a process that never loads the search of its witnesses."""
    save_network(read_network(model, found.input_shape), folder)
    found.save(folder / "local.safetensors")
    code = (
        "import sys\n"
        "from admm_lip.local import verify_local\n"
        "from admm_lip.networks.storage import load_network\n"
        "verify_local('local.safetensors', load_network('.'))\n"
        f"assert 'admm_lip.local.{means}_proof' in sys.modules\n"
        f"assert 'admm_lip.local.{means}_search' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def inside(x: Tensor, radius: Tensor, count: int, seed: int = 0) -> Tensor:
    """Points of the balls around the rows of x, ``(count, batch, n)``, half of them on the rim."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(count, *x.shape, generator=generator, dtype=torch.float64)
    way = way / way.norm(dim=-1, keepdim=True)
    length = torch.rand(count, len(x), generator=generator, dtype=torch.float64)
    length[::2] = 1.0
    return x + way * (length * radius)[..., None]
