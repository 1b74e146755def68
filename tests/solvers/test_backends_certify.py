"""Every backend on planted and random certification problems, judged by naive statements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from judging import (
    Judge,
    arrays,
    certify_problem,
)
from oracles import (
    Net,
    hat_net,
    load_npz_net,
    masked_constant,
    mixed_net,
    naive_bound,
    norm_product,
    positive_net,
    random_net,
    sampled_lower_bound,
    signed_net,
    unit_ranges,
)

from admm_lip.solvers import (
    CertifySolution,
    SolveFailed,
    SolverConfig,
    Status,
    solve_certify,
)


def check_certificate(solution: CertifySolution, net: Net, judge: Judge) -> None:
    """The bound follows from T by the naive LMI, and the proven gap is small."""
    t = arrays(solution.multiplier)
    assert all((part >= 0).all() for part in t)
    assert solution.status is Status.OPTIMAL
    assert solution.backend == judge.name
    assert solution.lip == pytest.approx(naive_bound(net.weights, net.ranges, t), rel=1e-7)
    assert solution.claimed_lip == pytest.approx(solution.lip, rel=100 * judge.tolerance.lip)
    assert 0.0 <= solution.lower_lip <= solution.lip
    assert solution.gap <= 10 * judge.tolerance.lip


PLANTED = {
    "the hat": hat_net(),
    "one hidden layer": positive_net((3, 6, 2), 0),
    "positive": positive_net((3, 5, 4, 2), 1),
    "positive, permuted and rotated": signed_net((4, 6, 5, 3), 2),
    "more inputs and outputs than neurons": signed_net((12, 5, 4, 9), 3),
    "deep": signed_net((3, 4, 4, 4, 4, 4, 2), 4),
    "one neuron": positive_net((3, 1, 2), 5),
}


@pytest.mark.parametrize("net", PLANTED.values(), ids=PLANTED.keys())
def test_planted_optimum_is_certified(judge: Judge, net: Net) -> None:
    solution = judge.certify(net)
    check_certificate(solution, net, judge)
    assert net.lip is not None
    assert solution.lip == pytest.approx(net.lip, rel=judge.tolerance.lip)
    assert solution.lip >= net.lip * (1 - 1e-12)
    assert solution.lower_lip <= net.lip * (1 + 1e-12)


RANDOM = {
    "slopes [0, 1]": random_net((3, 6, 5, 2), 10),
    "scaled layers": Net(
        [1e3 * random_net((3, 6, 5, 2), 11).weights[0], *random_net((3, 6, 5, 2), 11).weights[1:]],
        random_net((3, 6, 5, 2), 11).ranges,
    ),
    "slopes [0, 1/4]": random_net((3, 6, 5, 2), 12, (0.0, 0.25)),
    "slopes [-.13, 1.13]": random_net((3, 6, 5, 2), 13, (-0.13, 1.13)),
    "slopes [.2, .9]": random_net((3, 6, 5, 2), 14, (0.2, 0.9)),
    "a range per neuron": mixed_net((3, 6, 5, 2), 15),
}


@pytest.mark.parametrize("net", RANDOM.values(), ids=RANDOM.keys())
def test_random_network_is_certified_to_a_proven_gap(judge: Judge, net: Net) -> None:
    solution = judge.certify(net)
    check_certificate(solution, net, judge)
    # The native dual value is a lower bound on the optimum for everybody.
    native = solve_certify(certify_problem(net), SolverConfig("native", tol=1e-9, fallback=()))
    assert solution.lip >= native.lower_lip * (1 - 1e-9)
    assert solution.lip == pytest.approx(native.lip, rel=10 * judge.tolerance.lip)
    assert solution.lower_lip <= native.lip * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_bound_lies_between_reachable_slopes_and_the_norm_product(judge: Judge, seed: int) -> None:
    net = random_net((3, 4, 4, 2), 20 + seed)
    solution = judge.certify(net)
    biases = [np.zeros(len(w)) for w in net.weights]
    assert solution.lip >= masked_constant(net.weights)
    assert solution.lip >= sampled_lower_bound(net.weights, biases)
    assert solution.lip <= norm_product(net.weights) * (1 + judge.tolerance.lip)


def test_bound_is_invariant_under_permuted_and_rescaled_neurons(judge: Judge) -> None:
    net = random_net((3, 6, 5, 2), 30)
    rng = np.random.default_rng(0)
    order, gauge = rng.permutation(6), rng.uniform(0.5, 2.0, 6)
    first, second, third = net.weights
    moved = [(gauge[:, None] * first)[order], (second / gauge)[:, order], third]
    twin = Net(moved, net.ranges)
    expected = judge.certify(net).lip
    assert judge.certify(twin).lip == pytest.approx(expected, rel=10 * judge.tolerance.lip)


def test_dead_and_unheard_neurons_change_nothing(judge: Judge) -> None:
    net = random_net((3, 4, 4, 2), 31)
    first = np.vstack([net.weights[0], np.zeros((1, 3)), np.ones((1, 3))])
    second = np.hstack([net.weights[1], np.ones((4, 1)), np.zeros((4, 1))])
    wider = [first, second, net.weights[2]]
    padded = judge.certify(Net(wider, unit_ranges(wider))).lip
    assert padded == pytest.approx(judge.certify(net).lip, rel=10 * judge.tolerance.lip)


def test_a_single_affine_map_has_its_norm_for_a_bound(judge: Judge) -> None:
    for shape in ((3, 2), (2, 5), (1, 1)):
        net = random_net(shape, 32)
        solution = judge.certify(net)
        assert solution.multiplier == ()
        assert solution.lip == pytest.approx(norm_product(net.weights), rel=1e-12)
        assert solution.lower_lip == pytest.approx(solution.lip, rel=judge.tolerance.lip)


STORED = {
    "iris_4x6x6x3_ReLU": (11.634355134, 11.635340096),
    "abalone_9x16x16x1_ReLU": (11.121602332, 11.225477581),
    "wine_11x12x12x1_ReLU": (1.743369997, 1.846912715),
}


@pytest.mark.parametrize("name", STORED)
def test_trained_networks_of_known_constant(judge: Judge, name: str, shared_data: Path) -> None:
    exact, lipsdp = STORED[name]
    weights, biases = load_npz_net(shared_data / "networks" / f"{name}.npz")
    solution = judge.certify(Net(weights, unit_ranges(weights)))
    assert sampled_lower_bound(weights, biases) <= exact <= solution.lip
    assert solution.lip == pytest.approx(lipsdp, rel=1e-5)


def test_a_time_limit_ends_in_a_sound_bound_or_an_error(judge: Judge) -> None:
    net = signed_net((6, 10, 10, 4), 48)
    assert net.lip is not None
    config = judge.config(time_limit=1e-6)
    try:
        solution = solve_certify(certify_problem(net), config)
    except SolveFailed as error:
        assert f"{judge.name}: " in str(error)
    else:
        assert solution.status is Status.LIMIT
        assert solution.lip >= net.lip
