"""Local certificates: sampled slopes and margins, exact constants, the check, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from local_nets import ACTIVATIONS, inside, network
from torch import Tensor, nn

from admm_lip import CertificateError, certify
from admm_lip.local import LocalCertificate, LocalConfig, certify_local, verify_local
from admm_lip.local.seen import Seen
from admm_lip.local.tasks import Prepared, Task, functionals_for
from admm_lip.networks.chain import read_network
from admm_lip.rounding import proven_norms

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
BEST = LocalConfig(level="optimised")


def samples(count: int = 12, width: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """``(batch, outputs, inputs)``."""
    x = x.clone().requires_grad_(True)
    out = model(x)
    rows = [torch.autograd.grad(o.sum(), x, retain_graph=True)[0] for o in out.T]
    return torch.stack(rows, dim=1)


@every_activation
@pytest.mark.parametrize("box", [None, (-2.5, 2.5)])
def test_pre_activations_and_margins_stay_within_their_bounds(
    activation: str, box: tuple[float, float] | None
) -> None:
    model = network(activation, (4, 8, 6, 6, 3))
    x = samples().clamp(-2.5, 2.5)
    radius = torch.logspace(-3, 0.5, len(x), dtype=torch.float64)
    prepared = Prepared(read_network(model), LocalConfig(box=box), None)
    seen = Seen.of(Task(prepared, x, None, *functionals_for(None, len(x), 3), None), radius)
    rows = torch.eye(3).double()[:, None] - torch.eye(3).double()
    rows = rows.reshape(-1, 3).expand(len(x), -1, -1)
    lower = seen.margin(rows)
    for cloud in inside(x, radius, 60):
        if box is not None:
            cloud = cloud.clamp(*box)  # moves towards x, which is inside
        value = cloud
        for layer, bounds in zip(prepared.curved.layers, seen.forward.layers, strict=False):
            value = layer.affine(value)
            noise = 1e-12 * (1.0 + value.abs())
            assert bool((value >= bounds.interval.low - noise).all())
            assert bool((value <= bounds.interval.high + noise).all())
            half = value.shape[1] // 2
            value = (
                torch.cat([value[:, :half], value[:, half:].abs()], dim=1)
                if layer.activation.spec.kind == "half_abs"
                else ACTIVATIONS[activation]()(value)
            )
        logits = model(cloud).detach()
        found = (rows @ logits[:, :, None])[..., 0]
        assert bool((found >= lower - 1e-11 * (1.0 + logits.abs().amax())).all())


@every_activation
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_local_bounds_are_above_every_sampled_slope_and_below_the_global(
    activation: str, scale: float
) -> None:
    model = network(activation, seed=2, scale=scale)
    x, whole = samples(), certify(model)
    radius = torch.logspace(-3, 1, len(x), dtype=torch.float64)
    found = certify_local(model, x, radius, certificate=whole, config=BEST)
    assert bool((found.lip <= whole.lip).all())
    clouds = inside(x, radius, 80)
    for a, b in itertools.pairwise(clouds):
        rise = (model(a) - model(b)).detach().norm(dim=1)
        assert bool((rise <= found.lip[:, 0] * (a - b).norm(dim=1) + 1e-12).all())
    for cloud in clouds[:20]:
        jacobian = jacobians(model, cloud)
        norms = torch.linalg.matrix_norm(jacobian, 2)
        # On the rim the Jacobian is a limit of slopes inside.
        assert bool((norms <= found.lip[:, 0] * (1.0 + 1e-9))[radius > 0].all())
    verify_local(found, model, whole)


@every_activation
def test_bounds_of_margins_hold_from_the_input_to_its_ball(activation: str) -> None:
    model = network(activation, seed=4)
    x = samples()
    y = model(x).argmax(1)
    radius = torch.logspace(-3, 0.7, len(x), dtype=torch.float64)
    found = certify_local(model, x, radius, y, config=BEST)
    at_x = model(x).detach()
    for cloud in inside(x, radius, 80):
        logits = model(cloud).detach()
        gap = logits.gather(1, y[:, None]) - logits
        rise = (gap - at_x.gather(1, y[:, None]) + at_x).abs()
        step = (cloud - x).norm(dim=1, keepdim=True)
        asked = torch.isfinite(found.lip)
        assert bool((rise <= found.lip * step + 1e-12)[asked].all())
        assert bool((gap >= found.margin - 1e-11).all())
        assert bool((gap > 0)[found.robust].sum(1).eq(2).all())
    assert bool(asked.sum(1).eq(2).all())
    verify_local(found, model)


def test_each_level_betters_the_one_before_it() -> None:
    model = network("relu", (6, 24, 16, 4), seed=3)
    x = samples(10, 6)
    y = model(x).argmax(1)
    lips = [
        certify_local(model, x, 0.4, y, config=LocalConfig(level=level)).lip
        for level in ("norms", "closed", "optimised")
    ]
    finite = torch.isfinite(lips[0])
    assert bool((lips[1] <= lips[0])[finite].all())
    assert bool((lips[2] <= lips[1])[finite].all())
    assert float((lips[1] / lips[0])[finite].mean()) < 0.9


def test_the_optimised_bound_is_lipsdp_when_nothing_is_fixed() -> None:
    """On a huge ball every ReLU is open, and the reduced problem is the global one."""
    model = network("relu", (3, 6, 5, 2), seed=6)
    whole = certify(model)
    found = certify_local(model, samples(2, 3), 1e4, config=BEST)
    assert found.lip[:, 0].tolist() == pytest.approx([whole.lip] * 2, rel=0.02)
    assert bool((found.lip[:, 0] >= whole.lip * (1.0 - 1e-6)).all())


@pytest.mark.parametrize("seed", range(4))
def test_against_the_exact_local_constant_of_a_line(seed: int) -> None:
    """On a line the constant is the steepest of finitely many pieces, found by dense sampling."""
    model = network("relu", (1, 6, 5, 2), seed=seed, scale=2.0)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    for radius in (1e-3, 0.05, 0.4):
        found = certify_local(model, x, radius, config=BEST)
        grid = x + radius * torch.linspace(-1.0, 1.0, 801, dtype=torch.float64)
        out = model(grid.reshape(-1, 1)).detach().view(len(x), -1, 2)
        pieces = (out[:, 1:] - out[:, :-1]).norm(dim=2) / (grid[:, 1:] - grid[:, :-1])
        exact = pieces.amax(1)
        assert bool((found.lip[:, 0] >= exact * (1.0 - 1e-8)).all())
        if radius == 1e-3:  # nothing changes its side here: the bound is exact
            still = (pieces.amax(1) - pieces.amin(1)) < 1e-6 * (1.0 + exact)
            assert int(still.sum()) >= 5
            assert bool((found.lip[:, 0] <= exact * (1.0 + 1e-6) + 1e-6)[still].all())


def test_an_affine_map_needs_no_multiplier() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    norm = float(torch.linalg.matrix_norm(model[0].weight.detach(), 2))
    found = certify_local(model, samples(3, 3), 1.0, config=BEST)
    assert found.lip[:, 0].tolist() == pytest.approx([norm] * 3, rel=1e-5)
    verify_local(found, model)


def test_a_constant_ball_has_bound_zero_or_nearly() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].bias.data.fill_(-100.0)
    found = certify_local(model, torch.zeros(1, 2), 1.0)
    assert float(found.lip[0, 0]) < 1e-80
    verify_local(found, model)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scales_of_the_weights_do_not_matter(scale: float) -> None:
    model = network("leaky", seed=5)
    x = samples()
    before = certify_local(model, x, 0.3, config=BEST)
    for layer, factor in zip((0, 2, 4), (scale, 1.0, 1.0), strict=True):
        model[layer].weight.data *= factor
    model[2].bias.data *= scale
    model[4].bias.data *= scale
    model[0].bias.data *= scale
    after = certify_local(model, x, 0.3, config=BEST)
    assert (after.lip / before.lip)[:, 0].tolist() == pytest.approx([scale] * len(x), rel=1e-3)


def test_known_multipliers_serve_as_a_level_and_never_hurt() -> None:
    model = network("relu", (5, 20, 12, 3), seed=8)
    x = samples(8, 5)
    y = model(x).argmax(1)
    pairs = certify(model, kind="pairwise", progress=False)
    config = LocalConfig(level="implied")
    plain = certify_local(model, x, 50.0, y, config=LocalConfig(level="closed"))
    helped = certify_local(model, x, 50.0, y, certificate=pairs, config=config)
    finite = torch.isfinite(plain.lip)
    assert bool((helped.lip <= plain.lip * (1.0 + 1e-12))[finite].all())
    lips = torch.from_numpy(pairs.pair_lips())[y]
    assert bool((helped.lip <= lips)[finite].all())
    names = set(itertools.chain(*helped.levels))
    assert names & {"implied", "global"}
    verify_local(helped, model, pairs)
    if "global" in names:
        with pytest.raises(CertificateError, match="certificate: some bounds are those of a cert"):
            verify_local(helped, model)


def test_the_box_only_helps() -> None:
    model = network("relu", (6, 20, 12, 3), seed=9)
    x = samples(12, 6).clamp(-1.0, 1.0)
    y = model(x).argmax(1)
    # A search ends where a class is proven, wherever above 0 that is.
    configs = LocalConfig(steps=0), LocalConfig(box=(-1.0, 1.0), steps=0)
    free, boxed = (certify_local(model, x, 0.5, y, config=config) for config in configs)
    assert bool((boxed.margin >= free.margin - 1e-9).all())
    assert bool((boxed.margin > free.margin + 1e-3).any())
    verify_local(boxed, model)


def test_no_seconds_means_the_cheapest_level() -> None:
    model = network("relu", (5, 20, 12, 3), seed=8)
    x = samples(8, 5)
    config = LocalConfig(level="optimised", seconds=0.0)
    found = certify_local(model, x, 0.5, config=config)
    assert set(itertools.chain(*found.levels)) == {"norms"}
    ample = certify_local(model, x, 0.5, config=dataclasses.replace(config, seconds=1e3))
    assert "optimised" in set(itertools.chain(*ample.levels))


def test_an_empty_batch_is_certified() -> None:
    model = network("relu")
    assert certify_local(model, torch.zeros(0, 4), 1.0).lip.shape == (0, 1)


def test_proven_norms_are_upper_bounds_and_tight() -> None:
    torch.manual_seed(0)
    for scale in (1e-100, 1.0, 1e100):
        matrices = scale * torch.randn(20, 7, 5, dtype=torch.float64)
        exact = torch.linalg.matrix_norm(matrices, 2)
        ratio = proven_norms(matrices) / exact
        assert 1.0 <= float(ratio.min()) <= float(ratio.max()) < 1.0 + 1e-5


@pytest.fixture(scope="module")
def case() -> tuple[nn.Sequential, LocalCertificate]:
    model = network("gelu", seed=11)
    x = samples()
    return model, certify_local(model, x, 0.1, model(x).argmax(1), config=BEST)


def test_a_saved_certificate_reads_back_and_verifies(
    case: tuple[nn.Sequential, LocalCertificate], tmp_path: Path
) -> None:
    model, found = case
    found.save(tmp_path / "local.safetensors")
    again = LocalCertificate.load(tmp_path / "local.safetensors")
    for field in dataclasses.fields(LocalCertificate):
        one, other = getattr(found, field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    verify_local(tmp_path / "local.safetensors", model)
    assert [p.name for p in tmp_path.iterdir()] == ["local.safetensors"]


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("lip", lambda t: t * 0.9, "lip: the claim for input 0, functional"),
        ("roots", lambda t: t * 0.5, "lip: the claim for input 0, functional"),
        ("roots", lambda t: torch.zeros_like(t), "lip: the claim for input 0, functional"),
        ("roots", lambda t: t * math.nan, "roots: expected finite numbers >= 0, got nan"),
        ("radius", lambda t: t * 1.5, "the claim for input 0, functional"),
        ("radius", lambda t: -t, "radius: expected numbers >= 0, got -0.1"),
        ("center", lambda t: t + 1.0, "center: the claim for input 0"),
        ("margin", lambda t: t.abs() + 9.0, "margin: the claim for input 0"),
        ("x", lambda t: t + 0.5, "the claim for input"),
        ("x", lambda t: t * math.nan, "x: expected finite numbers, got nan"),
        ("x", lambda t: t[:, :2], "x: expected 4 per feature, got 2"),
        ("labels", lambda t: t + 7, "labels: expected classes from 0 to 2"),
        ("lip", lambda t: t[:, :2], "level: expected 2 per functional, got 3"),
        ("lip", lambda t: torch.full_like(t, -math.inf), "lip: expected numbers >= 0, got -inf"),
        ("lip", lambda t: t.clone().fill_(math.nan), "lip: expected numbers >= 0, got nan"),
        ("center", lambda t: torch.where(t < 0.0, 0.5 * t, t), "center: the claim for input"),
        ("margin", lambda t: torch.where(t < 0.0, 0.5 * t, t), "margin: the claim for input"),
    ],
)
def test_an_edited_certificate_is_refused(
    case: tuple[nn.Sequential, LocalCertificate], field: str, change: Any, message: str
) -> None:
    model, found = case
    with pytest.raises(CertificateError, match=message):
        verify_local(dataclasses.replace(found, **{field: change(getattr(found, field))}), model)


def test_another_network_is_refused(case: tuple[nn.Sequential, LocalCertificate]) -> None:
    with pytest.raises(CertificateError, match="digest: the certificate is of another net"):
        verify_local(case[1], network("gelu", seed=12))


def test_damaged_files_are_named(
    case: tuple[nn.Sequential, LocalCertificate], tmp_path: Path
) -> None:
    path = tmp_path / "local.safetensors"
    case[1].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CertificateError, match=r"local.safetensors: truncated or damaged"):
        LocalCertificate.load(path)
    path.write_bytes(whole.replace(b'\\"format\\": 3', b'\\"format\\": 7'))
    with pytest.raises(CertificateError, match="format: expected 3, got 7"):
        LocalCertificate.load(path)
    with pytest.raises(CertificateError, match="expected a local certificate's file, found none"):
        LocalCertificate.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("x", "radius", "message"),
    [
        (torch.zeros(3, 4), -1.0, "radius: expected finite numbers >= 0, got -1.0"),
        (torch.zeros(3, 4), math.nan, "radius: expected finite numbers >= 0, got nan"),
        (torch.zeros(3, 4), math.inf, "radius: expected finite numbers >= 0, got inf"),
        (torch.zeros(3, 4), torch.ones(2), r"radius: expected one number or one per input, \(3,\)"),
        (torch.zeros(3, 5), 1.0, r"x: expected real numbers of shape \(batch, 4\)"),
        (torch.tensor([[0.0, 0, math.nan, 0]]), 1.0, "x: expected finite inputs, got .* row 0"),
        (["a"], 1.0, "x: expected numbers, got words"),
    ],
)
def test_bad_input_is_named(x: Any, radius: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        certify_local(network("relu"), x, radius)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "best"}, "level: expected one of product, masked, norms, .*, got 'best'"),
        ({"seconds": -1.0}, "seconds: expected a finite number >= 0, got -1.0"),
        ({"box": (1.0, 0.0)}, "box: expected two finite ends, the lower first"),
        ({"rounds": 0}, "rounds: expected at least 1"),
        ({"tol": 1.0}, r"tol: expected a number in \(0, 1\)"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalConfig(**settings)


def test_inputs_outside_the_box_and_foreign_certificates_are_named() -> None:
    model = network("relu")
    with pytest.raises(ValueError, match=r"x: expected inputs inside the box \[0, 1\]"):
        certify_local(model, 2.0 * torch.ones(1, 4), 1.0, config=LocalConfig(box=(0.0, 1.0)))
    scaled = certify(model, input_scale=2.0)
    with pytest.raises(CertificateError, match="norm / units: expected a certificate of l2"):
        certify_local(model, torch.ones(1, 4), 1.0, certificate=scaled)
    with pytest.raises(CertificateError, match="robust: certified without labels"):
        certify_local(model, torch.ones(1, 4), 1.0).robust
