"""Networks whose layers, rows, inputs and radii are scaled far up and down.

Scaling the neurons of a ReLU network by powers of two, and the next layer's columns back, leaves
its function as it is, exactly.  So an ordinary network tells the truth about its scaled twins, in
which squares, products and sums overflow and vanish: no ball of a twin may be certified on which
the ordinary network has another class.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm_lip import certified_radii, certify, verify
from admm_lip.errors import CertificateError
from admm_lip.evaluation.attacks import AttackConfig, pgd, rays
from admm_lip.evaluation.falsify import FACTORS, distance_between, nearest_attacks
from admm_lip.local import LocalConfig, certify_local, local_radii, verify_local
from admm_lip.rounding import lengths, proven_norms, upper_product

WIDTHS = (3, 6, 6, 3)


def ordinary(seed: int = 1, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def points(count: int = 6, seed: int = 2) -> Tensor:
    return torch.randn(count, WIDTHS[0], generator=torch.Generator().manual_seed(seed)).double()


@dataclass(frozen=True)
class Scales:
    """Exponents of two: of the inputs, of each layer's rows, and how far rows stand apart."""

    inputs: int
    layers: tuple[int, int, int]
    apart: int = 0

    def twin(self, model: nn.Sequential) -> nn.Sequential:
        """The network of ``2^inputs x`` whose layers' outputs are scaled by ``2^layers``."""
        scaled = [nn.Linear(m.in_features, m.out_features).double() for m in model[::2]]
        before = torch.full((WIDTHS[0],), float(self.inputs))
        for k, (old, new) in enumerate(zip(model[::2], scaled, strict=True)):
            spread = self.apart if k + 1 < len(scaled) else 0
            rows = self.layers[k] + spread * torch.linspace(-1.0, 1.0, len(old.weight)).round()
            new.weight.data = _scaled(old.weight, rows[:, None] - before)
            new.bias.data = _scaled(old.bias, rows)
            before = rows
        parts = [scaled[0], *(p for new in scaled[1:] for p in (type(model[1])(), new))]
        return nn.Sequential(*parts).requires_grad_(False)


def _scaled(values: Tensor, exponents: Tensor | int) -> Tensor:
    """``values 2^exponents``, in two factors, as 2^1100 alone is not a number."""
    exponents = torch.as_tensor(exponents, dtype=torch.float64)
    half = (exponents / 2).floor()
    return values * torch.exp2(half) * torch.exp2(exponents - half)


@lru_cache
def distances(norm: str) -> Tensor:
    """From ``points()`` to the nearest other class, found on the ordinary network."""
    model, x = ordinary(), points()
    radii = torch.full((len(x),), 0.05, dtype=torch.float64)
    config = AttackConfig(steps=30, restarts=3, norm=norm)  # type: ignore[arg-type]
    return nearest_attacks(model, x, model(x).argmax(1), radii, (1, *FACTORS, 60.0, 200.0), config)


exponents = st.integers(-500, 500)
patterns = st.builds(
    Scales,
    st.integers(-900, 900),
    st.tuples(exponents, exponents, exponents),
    st.sampled_from([0, 0, 100, 250, 400]),
)
# Those that the first version certified falsely are among them.
HARD = [
    Scales(0, (333, -233, 0)),
    Scales(0, (333, 333 - 565, 0), 60),
    Scales(-600, (0, 0, 0)),
    Scales(900, (300, -300, 500)),
    Scales(-900, (-450, 150, 500), 150),
    Scales(0, (-540, -540, 0)),
    Scales(-122, (500, 0, 0), 400),
]


def is_finite(scales: Scales) -> bool:
    """Whether the twin has weights at all."""
    return all(bool(torch.isfinite(p).all()) for p in scales.twin(ordinary()).parameters())


def check_nothing_false(scales: Scales, norm: str = "l2") -> None:
    """Slightly beyond the nearest attack nothing may be certified, by any of the engines."""
    model, x = ordinary(), points()
    twin, y, far = scales.twin(model), model(x).argmax(1), distances(norm)
    assert bool(torch.isfinite(far).all())
    radii, scaled = _scaled(far * 1.05, scales.inputs), _scaled(x, scales.inputs)
    config = LocalConfig(norm=norm)
    try:
        found = certify_local(twin, scaled, radii, y, config=config)
        reached = local_radii(twin, scaled, y, config=config)
    except CertificateError as error:
        assert "rescale" in str(error)  # a refusal says what to do
        return
    assert not bool(found.robust.any())
    assert bool((reached.radius <= radii).all())
    verify_local(reached, twin)
    if norm == "l2":
        for row, eps in enumerate(radii.tolist()):
            one = slice(row, row + 1)
            report = certify_local(twin, scaled[one], eps, y[one], config=LocalConfig("masked"))
            assert not bool(report.robust.any())
            verify_local(report, twin)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scales", HARD)
def test_no_false_ball_at_scales_that_square_badly(scales: Scales, norm: str) -> None:
    assert is_finite(scales)
    check_nothing_false(scales, norm)


@given(scales=patterns)
@settings(max_examples=5)
def test_no_false_ball_at_any_scale(scales: Scales) -> None:
    assume(is_finite(scales))
    check_nothing_false(scales)


@pytest.mark.slow
@given(scales=patterns, norm=st.sampled_from(["l2", "linf"]))
@settings(max_examples=1500)
def test_no_false_ball_at_many_scales(scales: Scales, norm: str) -> None:
    assume(is_finite(scales))
    check_nothing_false(scales, norm)


@pytest.mark.parametrize(
    "scales",
    [Scales(0, (333, -233, 0)), Scales(300, (0, 0, 0)), Scales(-400, (-200, 250, 0))],
)
def test_scales_cost_nothing(scales: Scales) -> None:
    model, x = ordinary(), points()
    y, twin = model(x).argmax(1), scales.twin(model)
    plain = local_radii(model, x, y).radius
    reached = local_radii(twin, _scaled(x, scales.inputs), y).radius
    torch.testing.assert_close(_scaled(reached, -scales.inputs), plain, rtol=0.05, atol=0.0)
    assert bool((plain > 0.0).all())


@pytest.mark.parametrize("scales", HARD)
def test_slope_bounds_hold(scales: Scales) -> None:
    model, x = ordinary(), points()
    twin, scaled = scales.twin(model), _scaled(x, scales.inputs)
    radii = _scaled(torch.full((len(x),), 0.1, dtype=torch.float64), scales.inputs)
    bound = certify_local(twin, scaled, radii).lip[:, 0]
    slopes = torch.autograd.functional.jacobian(lambda z: model(z).sum(0), x).transpose(0, 1)
    steepest = torch.linalg.matrix_norm(slopes, 2)
    steepest = _scaled(steepest, scales.layers[2] - scales.inputs)
    assert bool((bound >= steepest * (1.0 - 1e-12)).all())


def test_a_layer_of_tiny_weights_between_large_ones() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    ).double()
    with torch.no_grad():
        for k, weight, bias in ((0, 1e100, 1e100), (2, 1e-170, 1e-70), (4, 1e70, 1.0)):
            model[k].weight.mul_(weight)
            model[k].bias.mul_(bias)
        x = torch.randn(6, 3).double()
        y = model(x).argmax(1)
        found = certify_local(model, x, radius=3.0, y=y)
        verify(found, model)
        moves = nn.functional.normalize(torch.randn(5000, 3).double()) * 2.99
        changed = torch.stack([(model(p + moves).argmax(1) != model(p).argmax()).any() for p in x])
    assert int(changed.sum()) >= 4
    assert not bool((found.robust & changed).any())


def test_one_neuron_a_layer() -> None:
    model = nn.Sequential(
        *(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    ).double()
    values = (([[1e100]], [0.0]), ([[1e-170]], [-1e-71]), ([[1e70], [0.0]], [-0.5, 0.0]))
    for layer, (weight, bias) in zip(model[::2], values, strict=True):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    x, y = torch.ones(1, 1).double(), torch.tensor([0])
    assert model(x).argmax(1).item() == 0
    assert model(x - 2.0).argmax(1).item() == 1
    masked = LocalConfig("masked")
    assert not bool(certify_local(model, x, 3.0, y, config=masked).robust.any())
    # The class changes at x = .6; all of the way there is certified, and no more.
    assert bool(certify_local(model, x, 0.3999, y, config=masked).robust.all())
    assert not bool(certify_local(model, x, 0.4001, y, config=masked).robust.any())


magnitudes = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(values=st.lists(magnitudes, min_size=1, max_size=5))
@settings(max_examples=200)
def test_lengths_are_upper_bounds(values: list[float]) -> None:
    length = lengths(torch.tensor([values], dtype=torch.float64)).item()
    square = sum(Fraction(v) ** 2 for v in values)
    if math.isfinite(length):
        assert square <= Fraction(length) ** 2 <= square * Fraction(1.0001) + Fraction(2.0**-990)
    else:
        assert square > Fraction(2.0**1000) ** 2


@given(factors=st.lists(magnitudes.map(abs), min_size=2, max_size=5))
@settings(max_examples=200)
def test_products_are_upper_bounds(factors: list[float]) -> None:
    first, *rest = (torch.tensor(f, dtype=torch.float64) for f in factors)
    product = upper_product(first, *rest).item()
    exact = math.prod(map(Fraction, factors))
    assert not math.isfinite(product) or Fraction(product) >= exact


@pytest.mark.parametrize("exponent", [-1060, -700, -300, 0, 300, 700, 1000])
def test_norms_scale_with_the_matrix(exponent: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(4, 5, dtype=torch.float64)
    scaled = _scaled(matrix, exponent)
    norm = _scaled(torch.linalg.matrix_norm(matrix, 2), exponent)
    found = proven_norms(scaled[None])[0]
    assert norm <= found <= norm * (1.0 + 1e-5) + 2.0**-999


def test_norms_of_what_is_not_finite_are_infinite() -> None:
    matrix = torch.tensor([[[1.0, math.inf], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]).double()
    first, second = proven_norms(matrix).tolist()
    assert first == math.inf
    assert second == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-290, 1e-160, 1.0, 1e160, 1e290])
def test_attacks_keep_their_ball_and_distances_at_every_scale(size: float) -> None:
    model, x = nn.Linear(4, 3, bias=False).double(), torch.zeros(5, 4).double()
    y, radius = torch.arange(5) % 3, torch.full((5,), size, dtype=torch.float64)
    for attack in (pgd, rays):
        moved = attack(model, x, y, radius, AttackConfig(steps=5, restarts=4))
        away = distance_between(moved, x, "l2")
        assert bool((away <= size * (1.0 + 1e-9)).all())
        assert float(away.max()) > 0.9 * size


@pytest.mark.parametrize("exponent", [-500, -30, 30, 400])
def test_radii_for_all_inputs_follow_the_inputs(exponent: int) -> None:
    model, x = ordinary(), points()
    y = model(x).argmax(1)
    plain = certified_radii(model, x, y, certificate=certify(model))
    twin, scaled = Scales(exponent, (0, 0, 0)).twin(model), _scaled(x, exponent)
    try:
        proof = certify(twin)
    except CertificateError:
        assert abs(exponent) > 100
        return
    radii = certified_radii(twin, scaled, y, certificate=proof)
    torch.testing.assert_close(_scaled(radii, -exponent), plain, rtol=1e-4, atol=0.0)
