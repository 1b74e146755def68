"""One certificate for images of every size: a grid of frequencies and what can be between them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from admm_lip import Certificate, CertificateError, certify, load_certificate, verify
from admm_lip.certificates.torus.every_size import every_size_chain
from admm_lip.certificates.torus.hermitian import largest
from admm_lip.certificates.torus.proof import covariances
from admm_lip.certificates.torus.read import whole_chain
from admm_lip.certificates.torus.reading import NotShiftInvariant
from admm_lip.certificates.torus.steps import TorusChain, half_of
from admm_lip.foreign.from_torch import read_module
from admm_lip.networks.sorting_torch import MaxMin

SHAPE = (1, 9, 9)


def chain_of(kind: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    around = {"padding_mode": "circular"}
    kinds: dict[str, list[nn.Module]] = {
        "plain": [nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 1, 1)],
        "no padding": [nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.ReLU()],
        "circular": [
            *(nn.Conv2d(1, 3, 3, 1, 1, **around), nn.ReLU()),  # type: ignore[arg-type]
            nn.Conv2d(3, 2, (1, 5), 1, (0, 2), **around),  # type: ignore[arg-type]
        ],
        "gelu": [nn.Conv2d(1, 3, 3, 1, 1), nn.GELU(), nn.Conv2d(3, 2, 3, 1, 1)],
        "pairs": [nn.Conv2d(1, 4, 3, 1, 1), MaxMin(), nn.Conv2d(4, 2, 3, 1, 1), nn.Flatten()],
        "two in a row": [nn.ReLU(), nn.Tanh(), nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.ReLU()],
        "dilated": [nn.Conv2d(1, 2, 3, 1, 2, dilation=2), nn.SiLU(), nn.AvgPool2d(3, 1, 1)],
    }
    return nn.Sequential(*kinds[kind]).double().eval()


KINDS = ("plain", "no padding", "circular", "gelu", "pairs", "two in a row", "dilated")


def test_a_polynomial_is_at_most_so_much_larger_between_the_points() -> None:
    """Ehlich and Zeller's bound, and that a kernel of width k has the degree (k - 1) / 2."""
    rng = np.random.default_rng(0)
    for side, degree in ((5, 2), (8, 3), (64, 4)):
        fine = 2.0 * np.pi * np.arange(64 * side) / (64 * side)
        for _ in range(50):
            c = rng.normal(size=(2, degree + 1))
            waves = np.arange(degree + 1)[:, None] * fine
            values = np.abs(c[0] @ np.cos(waves) + c[1] @ np.sin(waves))
            assert values.max() <= values[::64].max() / math.cos(math.pi * degree / side)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [7, 16])
def test_multipliers_that_hold_on_the_grid_hold_everywhere(kind: str, side: int) -> None:
    """On a coarse one, where there is much between its points."""
    network = read_module(chain_of(kind), SHAPE)
    grid, plain = every_size_chain(network, side), whole_chain(network)
    rng = np.random.default_rng(side)
    for _ in range(5):
        t = multiplier_on(grid, rng)
        bound = max(float(largest(p).max()) for _, _, p in covariances(grid, t))
        fine = dataclasses.replace(plain, grid=(7 * 16, 9 * 16))
        found = max(float(largest(p).max()) for _, _, p in covariances(fine, t))
        assert found <= bound * (1.0 + 1e-9)


def multiplier_on(chain: TorusChain, rng: np.random.Generator) -> list[Any]:
    """Multipliers near the edge of what proves anything on a grid, layer by layer."""
    found: list[Any] = []
    for act in chain.activations:
        upto = dataclasses.replace(chain, steps=chain.steps[: list(chain.steps).index(act)])
        top = max(float(largest(p).max()) for _, _, p in covariances(upto, found))
        found.append(rng.uniform(1.0, 1.95, len(act.rows)) / top)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_at_least_the_exact_lower_bound_at_every_size(kind: str) -> None:
    model = chain_of(kind)
    made = certify(model, SHAPE, structure="every_size")
    verify(made, model)
    assert made.every_size >= 3 and made.switch == len(made.slopes)
    assert made.lower_lip <= made.lip <= made.norm_product * (1.0 + 1e-6)
    for shape in ((1, 4, 5), (1, 5, 5)):
        assert certify(model, shape, structure="exact").lower_lip <= made.lip


def test_it_costs_little_over_the_bound_of_one_large_size() -> None:
    model = chain_of("plain")
    made = certify(model, SHAPE, structure="every_size")
    large = dataclasses.replace(whole_chain(read_module(model, SHAPE)), grid=(90, 90))
    t = [np.array(own) for own in made.multiplier]
    at_large = math.sqrt(max(float(largest(p).max()) for _, _, p in covariances(large, t)))
    assert at_large <= made.lip <= 1.005 * at_large


def test_slopes_at_other_sizes_stay_below_it() -> None:
    model = chain_of("gelu", seed=2)
    lip = certify(model, SHAPE, structure="every_size").lip
    for side in (3, 20, 41):
        x = 2.0 * torch.randn(20, 1, side, side, dtype=torch.float64)
        step = 1e-3 * torch.randn_like(x)
        with torch.no_grad():
            rise = (model(x + step) - model(x)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
        assert float(rise.max()) <= lip


@pytest.mark.parametrize(
    "forge",
    [
        lambda c: {"lip": 0.999 * c.lip, "lower_lip": 0.0, "sampled_lower": 0.0},
        lambda c: {"multiplier": tuple(tuple(2.5 * t for t in own) for own in c.multiplier)},
        # A grid so coarse that much can be between its points proves less.
        lambda c: {"every_size": 12},
        lambda c: {"every_size": 2},
        lambda c: {"norm_product": 2.0 * c.norm_product},
    ],
)
def test_what_was_tampered_with_is_refused(forge: Any, tmp_path: Path) -> None:
    model = chain_of("plain")
    made = certify(model, SHAPE, structure="every_size")
    made.save(tmp_path / "certificate.json")
    again = load_certificate(tmp_path / "certificate.json")
    assert again == made
    with pytest.raises(CertificateError):
        verify(dataclasses.replace(made, **forge(made)), model)


@pytest.mark.parametrize("value", [-1, 1 << 20, True, 128.0])
def test_the_grid_is_a_whole_number_that_a_check_can_go_through(value: Any) -> None:
    made = certify(chain_of("plain"), SHAPE, structure="every_size")
    assert isinstance(made, Certificate)
    with pytest.raises(CertificateError, match="every_size: expected a whole number"):
        dataclasses.replace(made, every_size=value)


class Residual(nn.Module):
    """A value that passes an activation by."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.layer(x))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU()], "wants strides of 1"),
        ([nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(162, 2)], "flatten"),
        ([nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), Residual()], "pass a relu by"),
    ],
)
def test_what_depends_on_the_size_is_refused_by_name(layers: list[nn.Module], reason: str) -> None:
    with pytest.raises(NotShiftInvariant, match=reason):
        certify(nn.Sequential(*layers), SHAPE, structure="every_size")


def test_rows_without_a_kernel_need_one_frequency() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 3), 1, (0, 1)), nn.ReLU(), nn.Conv2d(2, 1, 1))
    chain = every_size_chain(read_module(model.double(), (1, 1, 12)))
    assert chain.grid == (1, 128)
    assert len(half_of(chain.grid)[0]) == 65
