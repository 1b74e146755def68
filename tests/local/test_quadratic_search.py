"""Quadratic bounds whose slopes and curvatures are searched for, and the check of their witness."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_nets import check_apart, inside, network
from torch import Tensor, nn

from admm_lip import CertificateError
from admm_lip.local import LocalCertificate, LocalConfig, certify_local, verify_local
from admm_lip.local.met_values import least_met
from admm_lip.local.metric_search import _given_up, refined
from admm_lip.local.quadratic_proof import OpenPass, Witness
from admm_lip.local.quadratic_search import searched
from admm_lip.local.seen import Seen
from admm_lip.local.tasks import Prepared, Task, functionals_for
from admm_lip.networks.chain import read_network

STATED = ("slopes", "curvatures", "metric")
BENT = ("relu", "leaky", "steep_leaky", "max_min")
OTHERS = ("clipped", "hardtanh", "tanh", "sigmoid", "gelu_tanh", "steep_elu", "falling_softplus")


def open_pass(
    model: nn.Module, x: Tensor, radius: Tensor, config: LocalConfig
) -> tuple[OpenPass, Tensor]:
    """The pass of all samples, and the differences of their first output to all others."""
    prepared = Prepared(read_network(model, x.shape[1:]), config, None)
    y = torch.zeros(len(x), dtype=torch.int64)
    classes = prepared.curved.layers[-1].operator.size_out
    functionals, items = functionals_for(y, len(x), classes)
    task = Task(prepared, x.flatten(1), y, functionals, items, None)
    passing = Seen.of(task, radius).open_pass(torch.ones(len(x), dtype=torch.bool))
    assert passing is not None
    return passing, functionals[:, :, 0]


def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    return model, torch.rand(6, 1, 8, 8).double()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(BENT + OTHERS),
    box=st.sampled_from([None, (-1.0, 1.0)]),
    norm=st.sampled_from(["l2", "linf"]),
)
def test_any_slopes_and_curvatures_prove_no_more_than_the_truth(
    seed: int, activation: str, box: tuple[float, float] | None, norm: str
) -> None:
    """The least value on a fine grid of the ball is the truth but for the grid."""
    random = torch.Generator().manual_seed(seed)
    model = network(activation, (2, 6, 4, 2), seed=seed % 97)
    x = (2.0 * torch.rand(3, 2, generator=random) - 1.0).double()
    radius = 10.0 ** (-1.5 * torch.rand(3, generator=random).double())
    passing, rows = open_pass(model, x, radius, LocalConfig(box=box, norm=norm))
    items = torch.tensor([[False, True]] * 3)
    neurons = sum(passing.own.widths)
    tuned, found, _ = searched(passing, rows, items, 8)
    further, higher = refined(passing, rows, tuned, 4, torch.inf)
    slopes = torch.rand(3, neurons, generator=random) * 2.0 - 0.5
    curvatures = torch.rand(3, neurons, generator=random) * 10.0 ** (
        4.0 * torch.rand(3, 1, generator=random) - 3.0
    )
    line = torch.linspace(-1.0, 1.0, 81).double()
    grid = torch.cartesian_prod(line, line)
    grid = grid if norm == "linf" else grid[grid.norm(dim=1) <= 1.0]
    cloud = x + grid[:, None] * radius[:, None]
    cloud = cloud if box is None else cloud.clamp(*box)
    out = model(cloud.flatten(0, 1)).detach().view(-1, 3, 2)
    least = (out[..., 0] - out[..., 1]).amin(dim=0)
    metric = 10.0 ** (4.0 * torch.rand(3, neurons, generator=random) - 2.0)
    forged = passing.proven(rows, Witness(items, slopes, curvatures, metric), torch.inf)
    for lower in (found, higher, forged):
        assert bool((lower <= least + 1e-12).all())
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(higher).all())
    assert len(tuned.slopes) == len(further.metric) == 3


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", [*BENT, "clipped", "tanh"])
def test_dearer_levels_lose_nothing_and_samples_agree(activation: str, norm: str) -> None:
    model = network(activation, (4, 16, 16, 3), seed=7)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)).double().clamp(-1.0, 1.0)
    y = model(x).argmax(dim=1)
    radius = torch.logspace(-1.0, 0.0, len(x), dtype=torch.float64)
    levels = ("norms", "quadratic", "tuned", "closed", "optimised")
    config = LocalConfig(box=(-1.0, 1.0), norm=norm, metric_steps=10)
    found = [
        certify_local(model, x, radius, y, config=dataclasses.replace(config, level=level))
        for level in levels
    ]
    for cheap, dear in itertools.pairwise(found):
        assert bool((dear.margin >= cheap.margin).all())
        assert bool((dear.robust >= cheap.robust).all())
    tuned = found[2]
    assert tuned.tuned is not None
    assert bool((tuned.margin > found[1].margin + 1e-3).any())
    verify_local(tuned, model)
    scale = 1.0 if norm == "l2" else 2.0
    for cloud in inside(x, radius * scale, 60):
        if norm == "linf":
            cloud = torch.minimum(torch.maximum(cloud, x - radius[:, None]), x + radius[:, None])
        logits = model(cloud.clamp(-1.0, 1.0)).detach()
        margin = logits.gather(1, y[:, None]) - logits
        assert bool((margin >= tuned.margin - 1e-11).all())


def test_a_search_goes_on_from_where_another_found_its_best() -> None:
    """Its first bound is that best one; what has no state begins anew."""
    model = network("relu", (4, 16, 16, 3), seed=7)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).double()
    passing, rows = open_pass(model, x, torch.full((6,), 0.9).double(), LocalConfig())
    asked = torch.tensor([[False, True, True]] * 6)
    _, short, _ = searched(passing, rows, asked, 1)
    _, found, state = searched(passing, rows, asked, 20)
    left = found <= 0.0  # what is proven leaves the search at once
    assert bool((found > short)[left].any())
    start = torch.full((6, 3, state.shape[1]), torch.nan, dtype=torch.float64)
    start[asked] = state
    start[0, 1] = torch.nan
    _, again, _ = searched(passing, rows, asked, 1, start)
    torch.testing.assert_close(again[1:], found[1:])
    torch.testing.assert_close(again[0], short[0])
    _, further, _ = searched(passing, rows, asked, 10, start)
    assert bool((further >= again - 1e-12).all())
    assert bool((further > again + 1e-6)[left].any())


def test_a_sample_without_a_ball_is_left_out() -> None:
    """Its functionals are not taken for those of another sample."""
    model = network("relu", (4, 16, 16, 3), seed=7)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()
    passing, rows = open_pass(model, x, torch.tensor([0.0, 0.3, 0.0]).double(), LocalConfig())
    asked = torch.tensor([[False, True, True]] * 3)
    witness, found, _ = searched(passing, rows, asked, 2)
    assert witness.items.tolist() == [[False] * 3, [False, True, True], [False] * 3]
    assert len(found) == len(witness.slopes) == 2
    closed = passing.closed(rows, asked)
    assert torch.isfinite(closed).tolist() == witness.items.tolist()
    asked[1] = False
    assert bool(torch.isneginf(passing.closed(rows, asked)).all())


def test_convolutions_are_searched_and_checked() -> None:
    model, x = images()
    y = model(x).argmax(dim=1)
    levels = ("quadratic", "tuned")
    configs = [LocalConfig(level, box=(0.0, 1.0), metric_steps=10) for level in levels]
    plain, tuned = (certify_local(model, x, 0.8, y, config=config) for config in configs)
    assert tuned.tuned is not None
    assert bool((tuned.margin >= plain.margin).all())
    assert bool((tuned.margin > plain.margin + 1e-3).any())
    verify_local(tuned, model)


@pytest.mark.parametrize("of_images", [False, True])
def test_growth_in_any_metric_is_above_the_curvature_behind_it(of_images: bool) -> None:
    """``diag(M) >= C W' D W C``, and closely so; a metric counts up to a factor."""
    model, x = images()
    if not of_images:
        model, x = network("leaky", (4, 8, 6, 3), seed=5), torch.rand(6, 4).double()
    radius = torch.logspace(-1.5, 0.0, len(x), dtype=torch.float64)
    passing = open_pass(model, x, radius, LocalConfig())[0].own
    random = torch.Generator().manual_seed(1)
    metric = (
        10.0 ** (2.0 * torch.rand(len(x), sum(passing.widths), generator=random) - 1.0).double()
    )
    for k, width in enumerate(passing.widths):
        d = torch.rand(len(x), 1, width, generator=random).double()
        layer, columns = passing.behind(k)
        found = passing.own_growth(metric)(k, d, d)
        torch.testing.assert_close(passing.own_growth(8.0 * metric)(k, d, d), found)
        weight = layer.operator.dense() * (1.0 if columns is None else columns[:, None])
        curved = weight.mT @ (d[:, 0, :, None] * weight)
        least = torch.linalg.eigvalsh(
            torch.diag_embed(found[:, 0].expand(len(x), weight.shape[-1])) - curved
        )[:, 0]
        size = torch.linalg.matrix_norm(curved, 2)
        assert bool((least >= -1e-12 * size).all())
        assert bool((least <= 1e-2 * size).all())


def test_the_metric_of_ones_is_the_pass_by_shared_norms_or_better() -> None:
    model, x = images()
    passing, rows = open_pass(model, x, torch.full((6,), 0.8).double(), LocalConfig())
    items = torch.tensor([[False, True, False]] * 6)
    witness = searched(passing, rows, items, 10).witness
    own, functionals = passing.at(items), rows[items][:, None]
    choose = witness.choice(own)
    shared, _ = own.bound(functionals, choose, own.shared_growth)
    alone, _ = own.bound(functionals, choose, own.own_growth(witness.metric.double()))
    assert bool((alone >= shared - 1e-6).all())
    assert bool((witness.metric == 1.0).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_values_are_met_inside_the_ball(norm: str, box: tuple[float, float] | None) -> None:
    """Of a linear functional the least one; where one below 0 is met no metric is searched for."""
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    flat[0].bias.data += 10.0
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).double()
    passing, rows = open_pass(
        flat, x, torch.full((5,), 0.1, dtype=torch.float64), LocalConfig(box=box, norm=norm)
    )
    items = torch.tensor([[False, True]] * 5)
    met = least_met(passing.at(items), rows[items][:, None])
    row = (flat[2].weight[0] - flat[2].weight[1]) @ flat[0].weight
    logits = flat(x)
    value = (logits[:, 0] - logits[:, 1]).detach()
    if norm == "linf":
        moved = x - 0.1 * row.sign()
        gain = ((moved if box is None else moved.clamp(*box)) - x) @ row
        torch.testing.assert_close(met, value + gain.detach())
    elif box is None:
        torch.testing.assert_close(met, value - 0.1 * row.norm().detach())
    else:
        assert bool(((met >= value - 0.1 * row.norm() - 1e-12) & (met < value)).all())


def test_a_metric_proves_what_shared_norms_leave_open() -> None:
    model, x = images()
    y = model(x).argmax(dim=1)
    radius = torch.linspace(0.3, 1.2, 6).double()
    shared, own = (
        certify_local(
            model, x, radius, y, config=LocalConfig("tuned", box=(0.0, 1.0), metric_steps=n)
        )
        for n in (0, 50)
    )
    assert bool((own.margin >= shared.margin).all())
    assert bool((own.margin > shared.margin + 1e-3).any())
    verify_local(own, model)


def test_what_will_not_be_proven_is_given_up() -> None:
    looks = [torch.tensor(values) for values in ([-1.0, -1.0, -9.0], [-0.6, -1.1, -8.9])]
    assert _given_up(looks, 10.0).tolist() == [False] * 3
    assert _given_up([*looks, looks[1], looks[1], looks[1]], 10.0).tolist() == [False, True, True]
    assert _given_up(looks, 0.0).tolist() == [True] * 3


def test_nothing_is_searched_where_nothing_is_open() -> None:
    model, x = images()
    y = model(x).argmax(dim=1)
    assert certify_local(model, x, 1e-6, y, config=LocalConfig("tuned")).tuned is None
    assert certify_local(model, x, 0.8, y, config=LocalConfig("tuned", steps=0)).tuned is None
    for name in ("steps", "metric_steps"):
        with pytest.raises(ValueError, match=f"{name}: expected a number >= 0, got -1"):
            LocalConfig(**{name: -1})


@pytest.fixture(scope="module")
def proven() -> tuple[nn.Module, LocalCertificate]:
    model = network("relu", (4, 16, 16, 3), seed=7)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)).double().clamp(-1.0, 1.0)
    y = model(x).argmax(dim=1)
    config = LocalConfig("tuned", box=(-1.0, 1.0), norm="linf", metric_steps=20)
    found = certify_local(model, x, torch.logspace(-1.0, 0.0, 20), y, config=config)
    assert found.tuned is not None
    assert bool((found.tuned & (found.margin > 0.0)).any())
    return model, found


def test_a_witness_is_checked_where_no_search_was_ever_loaded(
    proven: tuple[nn.Module, LocalCertificate], tmp_path: Path
) -> None:
    model, found = proven
    check_apart(model, found, tmp_path, "quadratic")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("slopes", lambda t: 1.0 - t),
        ("slopes", lambda t: torch.zeros_like(t)),
        ("slopes", lambda t: t.flip(0)),
        ("curvatures", lambda t: torch.zeros_like(t)),
        ("curvatures", lambda t: t * 100.0),
        ("metric", torch.ones_like),
        ("metric", torch.reciprocal),
        ("metric", lambda t: 10.0 ** torch.linspace(-30.0, 30.0, t.shape[1]).expand_as(t)),
        ("margin", lambda t: t + 1e-3),
        ("tuned", lambda t: t.flip(0)),
    ],
)
def test_a_changed_witness_proves_less(
    name: str, change: object, proven: tuple[nn.Module, LocalCertificate]
) -> None:
    model, found = proven
    assert callable(change)
    changed = dataclasses.replace(found, **{name: change(getattr(found, name))})
    with pytest.raises(CertificateError, match="margin: the claim for input"):
        verify_local(changed, model)


@pytest.mark.parametrize("activation", ["clipped", "tanh"])
def test_a_witness_of_other_activations_is_proven_or_refused(activation: str) -> None:
    model = network(activation, (4, 16, 16, 3), seed=7)
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)).double()
    y, config = model(x).argmax(dim=1), LocalConfig("tuned", metric_steps=20)
    found = certify_local(model, x, torch.logspace(-1.0, 0.0, 12), y, config=config)
    assert found.tuned is not None
    verify_local(found, model)
    for name, change in {
        "slopes": lambda t: t.flip(0),
        "curvatures": lambda t: 0.5 * t,
        "metric": lambda t: t.flip(1),
        "margin": lambda t: t + 1e-3,
    }.items():
        forged = dataclasses.replace(found, **{name: change(getattr(found, name))})
        with pytest.raises(CertificateError, match="margin: the claim for input"):
            verify_local(forged, model)
    with pytest.raises(CertificateError, match="curvatures: expected finite numbers >= 0"):
        dataclasses.replace(found, curvatures=-found.curvatures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slopes": None}, "expected all of them or none of them"),
        ({"curvatures": lambda t: -t - 1.0}, "curvatures: expected finite numbers >= 0"),
        ({"curvatures": lambda t: t * torch.inf}, "curvatures: expected finite numbers >= 0"),
        ({"metric": torch.zeros_like}, "metric: expected finite numbers from 1.17"),
        ({"metric": lambda t: -t}, "metric: expected finite numbers from 1.17"),
        ({"metric": lambda t: t * torch.inf}, "metric: expected finite numbers from 1.17"),
        ({"metric": lambda t: t * torch.nan}, "metric: expected finite numbers from 1.17"),
        ({"metric": None}, "expected all of them or none of them"),
        ({"metric": lambda t: t[:, 1:]}, "metric: expected 32 per neuron, got 31"),
        ({"slopes": lambda t: t * torch.nan}, "slopes: expected finite numbers, got nan"),
        ({"slopes": lambda t: t.double()}, "slopes: expected a tensor"),
        ({"slopes": lambda t: t[:, 1:]}, "expected 32 per neuron, got 31"),
        (
            dict.fromkeys(("slopes", "curvatures", "metric"), lambda t: t[1:]),
            "slopes: expected a row",
        ),
        ({"tuned": lambda t: t[:, 1:]}, "tuned: expected 3 per functional, got 2"),
    ],
)
def test_a_witness_that_does_not_fit_is_refused(
    changes: dict[str, object], message: str, proven: tuple[nn.Module, LocalCertificate]
) -> None:
    _, found = proven
    made = {k: v(getattr(found, k)) if callable(v) else v for k, v in changes.items()}
    with pytest.raises(CertificateError, match=message):
        dataclasses.replace(found, **made)
