"""Specifications: proven or refuted where linear programs over activation patterns know better."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from admm_lip import cli, strict_json
from admm_lip.errors import SpecificationError
from admm_lip.foreign.vnnlib import HalfSpace, Specification, UnsafeCase
from admm_lip.local import check_specification, output_ranges
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network

SHARED = os.environ.get("ADMM_LIP_SHARED")
BOX = ((Fraction(-1, 3), Fraction(1, 2)), (Fraction(2, 3), Fraction(3, 4)))


def controller(seed: int, hidden: tuple[int, ...] = (5,), outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    widths = (2, *hidden, outputs)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double()
    for p in model.parameters():
        p.data *= 2.0
    return model


def case(rows: list[list[int]], bounds: list[Fraction]) -> UnsafeCase:
    spaces = zip(rows, bounds, strict=True)
    given = [HalfSpace({j: Fraction(c) for j, c in enumerate(r) if c}, b) for r, b in spaces]
    return UnsafeCase(*BOX, tuple(given))


def least_excess(model: nn.Sequential, rows: list[list[int]]) -> float:
    """``min max_m rows_m f(x)`` over the box: a linear program for each activation pattern."""
    linear = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model[::2]]
    best = np.inf
    for signs in itertools.product((0.0, 1.0), repeat=sum(len(b) for _, b in linear[:-1])):
        a, c, place, cuts = np.eye(2), np.zeros(2), 0, []
        for weight, bias in linear[:-1]:
            a, c = weight @ a, weight @ c + bias
            on = np.array(signs[place : place + len(c)])
            place += len(c)
            cuts += [(-s * a[i], s * c[i]) for i, s in enumerate(2.0 * on - 1.0)]
            a, c = on[:, None] * a, on * c
        a, c = (
            np.array(rows) @ linear[-1][0] @ a,
            np.array(rows) @ (linear[-1][0] @ c + linear[-1][1]),
        )
        upper = [[*row, 0.0] for row, _ in cuts] + [[*row, -1.0] for row in a]
        right = [end for _, end in cuts] + list(-c)
        ends = [(float(low), float(high)) for low, high in zip(*BOX, strict=True)]
        found = linprog([0.0, 0.0, 1.0], upper, right, bounds=[*ends, (None, None)])
        best = min(best, found.fun if found.success else np.inf)
    return float(best)


def exactly(model: nn.Sequential, x: tuple[float, ...]) -> list[Fraction]:
    """The outputs in rational arithmetic."""
    values = [Fraction(v) for v in x]
    for k, layer in enumerate(model[::2]):
        assert isinstance(layer, nn.Linear)
        values = [max(v, Fraction(0)) for v in values] if k else values
        pairs = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        values = [
            sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
            for row, b in pairs
        ]
    return values


@pytest.mark.parametrize("rows", [[[1, 0, 0]], [[1, -1, 0], [1, 0, -1]], [[-2, 1, 3], [0, 0, 1]]])
@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_are_those_of_exact_means(seed: int, rows: list[list[int]]) -> None:
    model = controller(seed)
    least = Fraction(least_excess(model, rows))
    for gap, verdict in ((Fraction(-1, 500), "holds"), (Fraction(1, 500), "violated")):
        unsafe = case(rows, [least + gap] * len(rows))
        found = check_specification(model, Specification(2, 3, (unsafe,)), seconds=1e9)
        assert found.verdict == verdict
        if found.witness is not None:
            assert all(
                a <= Fraction(x) <= b for a, x, b in zip(BOX[0], found.witness, BOX[1], strict=True)
            )
            outputs = exactly(model, found.witness)
            for space in unsafe.constraints:
                assert sum(c * outputs[j] for j, c in space.coefficients.items()) <= space.bound


def test_deeper_controllers_and_several_cases() -> None:
    model, rows = controller(3, (3, 3)), [[[1, 0, 0]], [[0, -1, 0]], [[1, 1, 1]]]
    least = [Fraction(least_excess(model, one)) for one in rows]
    safe = [case(one, [end - Fraction(1, 200)]) for one, end in zip(rows, least, strict=True)]
    assert (
        check_specification(model, Specification(2, 3, tuple(safe)), seconds=1e9).verdict == "holds"
    )
    unsafe = case(rows[1], [least[1] + Fraction(1, 200)])
    found = check_specification(model, Specification(2, 3, (safe[0], safe[2], unsafe)), seconds=1e9)
    assert found.verdict == "violated"
    assert found.outputs is not None and found.outputs[1] >= -float(unsafe.constraints[0].bound)


def test_what_is_not_decided_in_time_is_unknown() -> None:
    model, rows = controller(4, (3, 3)), [[-1, 1, 0], [0, 1, -1]]
    least = Fraction(least_excess(model, rows))
    tight = Specification(2, 3, (case(rows, [least - Fraction(1, 1000)] * 2),))
    found = check_specification(model, tight, boxes=20)
    assert (found.verdict, found.witness) == ("unknown", None)
    assert found.boxes <= 20
    assert check_specification(model, tight, seconds=0.0).boxes == 1
    assert check_specification(model, tight, seconds=1e9).verdict == "holds"


def test_bounds_of_outputs_hold_and_are_met() -> None:
    model = controller(1, (6, 6))
    low, high = torch.tensor([[-0.3, 0.5], [0.1, 0.1]]), torch.tensor([[0.7, 0.75], [0.1, 0.1]])
    least, most = output_ranges(model, low, high)
    share = torch.rand(4000, 1, 2, generator=torch.Generator().manual_seed(0))
    y = model((low + share * (high - low)).double())
    assert bool(((y >= least) & (y <= most)).all())
    assert bool((most[1] - least[1] < 1e-12).all())
    for a, b, message in (
        (low, high[:1], "high: expected the shape of low"),
        (high, low, "none above its upper one"),
        (low * torch.nan, high, "expected finite ends"),
    ):
        with pytest.raises(ValueError, match=message):
            output_ranges(model, a, b)


@pytest.mark.parametrize(
    ("outputs", "row", "message"),
    [
        (2, [1, 0], "expected the network's 3 outputs, got 2"),
        (3, [2**60 + 1, 0, 1], "coefficients of more digits than float64 holds"),
    ],
)
def test_what_does_not_fit_is_refused(outputs: int, row: list[int], message: str) -> None:
    spec = Specification(2, outputs, (case([row], [Fraction(0)]),))
    with pytest.raises(SpecificationError, match=message):
        check_specification(controller(0), spec)
    many = Specification(2, 3, (case([[1, 0, 0]] * 5000, [Fraction(0)] * 5000),))
    with pytest.raises(SpecificationError, match="5000 constraints on one box, above the limit"):
        check_specification(controller(0), many)
    with pytest.raises(SpecificationError, match="a number beyond float64"):
        check_specification(
            controller(0), Specification(2, 3, (case([[1, 0, 0]], [Fraction(10) ** 400]),))
        )


def test_an_end_that_is_no_float64_is_covered() -> None:
    """X_0 = 1/3 and Y = 3 X_0: never above 1, nor below, whatever float64 makes of it."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(3.0)
    third = (Fraction(1, 3),)

    def verdict(sign: int, bound: Fraction) -> str:
        space = HalfSpace({0: Fraction(sign)}, bound)
        return check_specification(
            model, Specification(1, 1, (UnsafeCase(third, third, (space,)),))
        ).verdict

    for sign in (1, -1):
        assert verdict(sign, sign * Fraction(1) + Fraction(1, 10**9)) == "violated"
        assert verdict(sign, sign * Fraction(1) - Fraction(1, 10**9)) == "holds"
        assert verdict(sign, sign * Fraction(1)) == "unknown"  # a tie, which no rounding decides


def text_of(low: list[float], high: list[float], unsafe: str) -> str:
    names = [f"X_{k}" for k in range(len(low))]
    lines = [f"(declare-const {name} Real)" for name in (*names, "Y_0")]
    lines += [
        f"(assert (>= {n} {a}))\n(assert (<= {n} {b}))"
        for n, a, b in zip(names, low, high, strict=True)
    ]
    return "\n".join([*lines, unsafe])


@pytest.mark.skipif(SHARED is None, reason="the published controller is not here")
def test_the_published_controller_on_a_box(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [
        np.loadtxt(f"{SHARED}/controllers/pendulum_W{k}.csv", delimiter=",", ndmin=2)
        for k in range(3)
    ]
    layers: list[nn.Module] = []
    for weight in weights:
        linear = nn.Linear(*weight.shape[::-1], bias=False).double()
        linear.weight.data = torch.from_numpy(weight)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    save_network(read_network(model), tmp_path)
    axes = [torch.linspace(-e, e, 401).double() for e in (0.3, 0.5)]
    most = float(model(torch.cartesian_prod(*axes)).detach().max())
    verdicts: dict[float, str] = {}
    for share in (1.02, 0.98):
        path = tmp_path / f"{share}.vnnlib"
        path.write_text(text_of([-0.3, -0.5], [0.3, 0.5], f"(assert (>= Y_0 {share * most:.9f}))"))
        words = ["certify", str(tmp_path), "--kind", "local", "--vnnlib", str(path), "--json"]
        assert cli.main(words) == 0
        printed = strict_json.loads(capsys.readouterr().out)
        verdicts[share] = printed["verdict"]
        if share < 1.0:
            witness = torch.tensor(printed["witness"], dtype=torch.float64)
            assert float(model(witness).detach()) >= share * most
    assert verdicts == {1.02: "holds", 0.98: "violated"}
    assert cli.main(["certify", str(tmp_path), "--vnnlib", str(path)]) == 2
    assert "vnnlib: goes with --kind local, got global" in capsys.readouterr().err
