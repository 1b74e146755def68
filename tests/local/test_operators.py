"""One suite for every operator: a kind of layer supplies cases and inherits the rest.

The oracle is the layer's matrix as ``networks.layers.AFFINE`` builds it, of NumPy and SciPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip.errors import UnsupportedModule
from admm_lip.local import proven_norms
from admm_lip.local.linear_operator import Operator, Stored
from admm_lip.local.operators import OPERATORS, ScaledInputs, operator_of
from admm_lip.local.power_iteration import masked_norms, vector_shape
from admm_lip.local.proven_norms import scaled_norms
from admm_lip.local.torus_norm import torus_norm
from admm_lip.networks.affine_torch import Elementwise, Sum, Take
from admm_lip.networks.chain import reader_of
from admm_lip.networks.layers import AFFINE

Shape = tuple[int, ...]


class Case(NamedTuple):
    """A module of one kind, and the shape of one input."""

    module: nn.Module
    shape: Shape


def read(case: Case, form: str) -> Operator:
    """The operator of the module as it trains, or of its stored arrays."""
    module, shape = case
    reader = reader_of("layer", module)
    options, layer = reader.options(module), module
    if form == "stored":
        arrays = {k: v.detach().clone() for k, v in held(module) if k != "error"}
        layer = Stored(**arrays)  # type: ignore[assignment]
    return operator_of(reader.kind, "layer", layer, options, shape)


def oracle(case: Case) -> Tensor:
    """The matrix, float64."""
    module, shape = case
    reader = reader_of("layer", module)
    arrays = {f"layer.{k}": v.detach().double().numpy() for k, v in held(module)}
    matrix = AFFINE[reader.kind].build("layer", reader.options(module), arrays, shape).matrix
    return torch.from_numpy(np.asarray(getattr(matrix, "toarray", lambda: matrix)()))


def held(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Its parameters and buffers."""
    return [*module.named_parameters(), *module.named_buffers()]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masks_of(op: Operator, count: int = 4, marks: bool = True) -> tuple[Tensor, Tensor]:
    """Marks, or scales, of rows and of columns, many of them 0."""
    g = torch.Generator().manual_seed(5)
    rows, columns = (
        (torch.rand(count, n, generator=g) < 0.7).double()
        * (1.0 if marks else torch.rand(count, n, generator=g).double())
        for n in (op.size_out, op.size_in)
    )
    return rows, columns


def masked(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows[:, :, None] * matrix * columns[:, None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cls = metafunc.cls
    if cls is not None and "case" in metafunc.fixturenames:
        torch.manual_seed(0)
        metafunc.parametrize("case", cls.cases.values(), ids=cls.cases.keys())


@pytest.mark.parametrize("form", ["live", "stored"])
class Operators:
    """What every operator is held to."""

    cases: ClassVar[Mapping[str, Case]]
    rough: ClassVar[float] = 1.5  # a bound without a factor over the norm, at most

    def test_products_are_those_of_the_matrix(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case)
        x, u = draw(3, *op.shape_in), draw(3, *op.shape_out, seed=1)
        with torch.no_grad():
            for entries in (lambda w: w, torch.abs, torch.square):
                own = entries(matrix)
                product, back = op.product(x, entries), op.transposed(u, entries)
                assert product.shape == u.shape
                assert back.shape == x.shape
                torch.testing.assert_close(product.flatten(1), x.flatten(1) @ own.T)
                torch.testing.assert_close(back.flatten(1), u.flatten(1) @ own)
            assert torch.equal(op.forward(x), op.product(x, lambda w: w))
            torch.testing.assert_close(op.adjoint(u).flatten(1), u.flatten(1) @ matrix)
            torch.testing.assert_close(op.absolute(x).flatten(1), x.flatten(1) @ matrix.abs().T)
            squares = op.squared(x).flatten(1)
            torch.testing.assert_close(squares, x.flatten(1) @ matrix.square().T)
            torch.testing.assert_close(op.dense(), matrix)

    def test_the_adjoint_identity(self, case: Case, form: str) -> None:
        op = read(case, form)
        x, u = draw(3, *op.shape_in), draw(3, *op.shape_out, seed=1)
        with torch.no_grad():
            left, right = (op.forward(x) * u).sum(), (x * op.adjoint(u)).sum()
        assert float(left) == pytest.approx(float(right), rel=1e-12, abs=1e-12)

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_the_bias_is_that_of_the_layer(self, case: Case, form: str) -> None:
        op, x = read(case, form), draw(2, *case.shape)
        with torch.no_grad():
            found = op.forward(x) if op.bias is None else op.forward(x) + op.bias
            torch.testing.assert_close(found, case.module(x))

    def test_norms_of_rows(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case)
        mask = (draw(3, op.size_in) > 0.0).double()
        with torch.no_grad():
            rough = op.row_norms().expand(op.shape_out).flatten()
            assert bool((rough >= matrix.norm(dim=1) * (1 - 1e-12)).all())
            for columns in (None, mask):
                shaped = None if columns is None else columns.view(-1, *op.shape_in)
                found = op.row_lengths(shaped).flatten(1)
                exact = (
                    matrix.norm(dim=1)[None]
                    if columns is None
                    else ((matrix * columns[:, None]).norm(dim=2))
                )
                assert bool((found >= exact).all())
                torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
            columns = op.column_lengths().flatten()
            torch.testing.assert_close(columns, matrix.norm(dim=0))

    def test_terms_count_the_products_of_an_entry(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case) != 0.0
        assert op.terms >= int(matrix.sum(dim=1).max())
        assert op.terms_back >= int(matrix.sum(dim=0).max())

    def test_channels_last_float32_and_no_samples(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case).float()
        x, u = draw(3, *op.shape_in).float(), draw(3, *op.shape_out, seed=1).float()
        x, u = (v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for v in (x, u))
        double = list(case.module.parameters())
        for parameter in double:
            parameter.data = parameter.data.float()
        op = read(case, form)
        try:
            with torch.no_grad():
                found, back = op.forward(x), op.adjoint(u)
                assert found.dtype == back.dtype == torch.float32
                own = x.flatten(1) @ matrix.T
                torch.testing.assert_close(found.flatten(1), own, rtol=1e-4, atol=1e-5)
                own = u.flatten(1) @ matrix
                torch.testing.assert_close(back.flatten(1), own, rtol=1e-4, atol=1e-5)
                assert op.forward(x[:0]).shape == (0, *op.shape_out)
                assert op.adjoint(u[:0]).shape == (0, *op.shape_in)
        finally:
            for parameter in double:
                parameter.data = parameter.data.double()

    def test_gradients_are_those_of_differences(self, case: Case, form: str) -> None:
        op = read(case, "live")
        x = draw(2, *op.shape_in).requires_grad_(True)
        learned = [x, *case.module.parameters()][:2]
        u = draw(2, *op.shape_out, seed=1)
        found = torch.autograd.grad((op.trained(x) * u).sum(), learned)
        for one, gradient in zip(learned, found, strict=True):
            way = draw(*one.shape, seed=2)
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    one.add_(way, alpha=sign * 1e-4)
                    ends.append(float((op.forward(x) * u).sum()))
                    one.sub_(way, alpha=sign * 1e-4)
            slope = (ends[0] - ends[1]) / 2e-4
            assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)

    def test_proven_norms_are_never_below_the_singular_value(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case)
        with torch.no_grad():
            rows, columns = masks_of(op, 6, marks=False)
            norms = scaled_norms(op)
            whole = float(torch.linalg.matrix_norm(matrix, 2))
            assert whole * (1 - 1e-13) <= norms.whole <= whole * (1 + 1e-5)
            one = torch.ones_like(rows), torch.ones_like(columns)
            for r, c in ((rows, columns), (rows, None), (None, columns)):
                dense = masked(matrix, one[0] if r is None else r, one[1] if c is None else c)
                exact = torch.linalg.matrix_norm(dense, 2)
                found = norms.scaled(r, c)
                assert bool((found >= exact * (1 - 1e-13)).all())
                torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-12)

    def test_without_a_factor_there_is_still_a_bound(
        self, case: Case, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(proven_norms, "_WORK", 1.0)
        op, matrix = read(case, form), oracle(case)
        exact = float(torch.linalg.matrix_norm(matrix, 2))
        with torch.no_grad():
            assert exact * (1 - 1e-13) <= scaled_norms(op).whole <= self.rough * exact

    def test_power_iteration_finds_the_norm_from_below(self, case: Case, form: str) -> None:
        op, matrix = read(case, form), oracle(case)
        start = draw(4, *vector_shape(op), seed=1)
        for marks in (True, False):
            rows, columns = masks_of(op, marks=marks)
            exact = torch.linalg.matrix_norm(masked(matrix, rows, columns), 2)
            few, _ = masked_norms(op, rows, columns, start, 2, marks=marks)
            many, vectors = masked_norms(op, rows, columns, start, 400, marks=marks)
            assert bool((few <= exact * (1 + 1e-12)).all())
            torch.testing.assert_close(many.detach(), exact, rtol=3e-3, atol=1e-9)
            again, _ = masked_norms(op, rows, columns, vectors, 1, marks=marks)
            torch.testing.assert_close(again.detach(), exact, rtol=3e-3, atol=1e-9)

    def test_in_other_units(self, case: Case, form: str) -> None:
        op, matrix = read(case, "stored"), oracle(case)
        scale = torch.rand(op.size_in, generator=torch.Generator().manual_seed(0)).double() + 0.1
        scaled, dense = ScaledInputs(op, 1.0 / scale), matrix / scale
        x, u = draw(3, *op.shape_in), draw(3, *op.shape_out, seed=1)
        with torch.no_grad():
            torch.testing.assert_close(scaled.forward(x).flatten(1), x.flatten(1) @ dense.T)
            torch.testing.assert_close(scaled.adjoint(u).flatten(1), u.flatten(1) @ dense)
            torch.testing.assert_close(scaled.dense(), dense)
            torch.testing.assert_close(scaled.row_lengths().flatten(), dense.norm(dim=1))
            torch.testing.assert_close(scaled.column_lengths().flatten(), dense.norm(dim=0))
            exact = float(torch.linalg.matrix_norm(dense, 2))
            assert exact <= scaled_norms(scaled).whole <= exact * (1 + 1e-5)


def _conv(*sizes: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, **options).double()  # type: ignore[arg-type]


class TestDense(Operators):
    cases: ClassVar = {
        "wide": Case(nn.Linear(7, 5).double(), (7,)),
        "tall": Case(nn.Linear(3, 9, bias=False).double(), (3,)),
        "large": Case(nn.Linear(300, 150).double(), (300,)),
    }


class TestConvolution(Operators):
    cases: ClassVar = {
        "plain": Case(_conv(2, 3, 3, padding=1), (2, 5, 6)),
        "strided": Case(_conv(3, 2, 4, stride=2, padding=1), (3, 7, 8)),
        "sparse": Case(_conv(2, 4, 2, stride=3), (2, 8, 7)),
        "point": Case(_conv(2, 4, 1, stride=2), (2, 5, 5)),
        "dilated": Case(_conv(2, 2, 3, dilation=2, padding=2), (2, 6, 6)),
        "grouped": Case(_conv(4, 4, 3, groups=2), (4, 5, 5)),
        "uneven": Case(_conv(2, 2, (3, 2), stride=(2, 1)), (2, 6, 5)),  # type: ignore[arg-type]
        "same": Case(_conv(2, 2, 3, padding="same", bias=False), (2, 4, 4)),
        "one-sided": Case(_conv(2, 3, 2, padding="same"), (2, 4, 5)),
        "one-sided, dilated": Case(_conv(1, 2, 2, padding="same", dilation=3), (1, 6, 6)),
        "one channel": Case(_conv(1, 3, 3), (1, 5, 5)),
    }

    def test_on_a_large_image_the_torus_is_hardly_above_the_norm(self, form: str) -> None:
        for stride, kernel in ((1, 3), (2, 4)):
            case = Case(_conv(3, 4, kernel, stride=stride, padding=1), (3, 32, 32))
            op = read(case, form)
            exact = scaled_norms(op).whole
            assert exact * (1 - 1e-6) <= torus_norm(op) <= 1.02 * exact  # type: ignore[arg-type]


class TestAveragePool(Operators):
    rough = 3.0
    cases: ClassVar = {
        "plain": Case(nn.AvgPool2d(2), (2, 6, 5)),
        "uncounted": Case(nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 5, 5)),
        "counted": Case(nn.AvgPool2d(3, 2, 1), (2, 5, 5)),
        "divided": Case(nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
        "overlapping": Case(nn.AvgPool2d((3, 2), (1, 3)), (1, 7, 6)),
    }


class TestElementwise(Operators):
    cases: ClassVar = {
        "factors": Case(Elementwise({"weight": np.array([2.0, -0.5, 0.0])}), (3,)),
        "per channel": Case(
            Elementwise({"weight": np.array([[[2.0]], [[-3.0]]]), "bias": np.ones((2, 1, 1))}),
            (2, 3, 4),
        ),
        "shift": Case(Elementwise({"bias": np.array([1.0, 2.0])}), (2,)),
        "one number": Case(Elementwise({"weight": np.array(3.0)}), (2, 2, 2)),
    }


class TestTake(Operators):
    cases: ClassVar = {
        "permuted": Case(Take(np.array([2, 0, 1])), (3,)),
        "repeated": Case(Take(np.array([[0, 0], [-1, 3]])), (4,)),
        "picture": Case(Take(np.arange(8).reshape(2, 2, 2).transpose(2, 0, 1)), (2, 2, 2)),
    }


class TestSum(Operators):
    rough = 3.0
    cases: ClassVar = {
        "pixels": Case(Sum([1, 2], keep=False), (2, 3, 4)),
        "kept": Case(Sum([0], keep=True), (3, 2, 2)),
    }


def test_every_operator_is_in_the_suite() -> None:
    kinds = {
        reader_of("layer", case.module).kind
        for suite in Operators.__subclasses__()
        for case in suite.cases.values()
    }
    assert kinds == set(OPERATORS)


def test_a_kind_without_an_operator_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedModule, match=r"block: no bounds on balls for layers of kind rnn"
    ):
        operator_of("rnn", "block", Stored(), {}, (3,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_have_no_norm(value: float) -> None:
    for case in (TestDense.cases["wide"], TestConvolution.cases["plain"]):
        weight = case.module.weight.detach().clone()
        weight.view(-1)[0] = value
        options = reader_of("layer", case.module).options(case.module)
        kind = reader_of("layer", case.module).kind
        op = operator_of(kind, "layer", Stored(weight), options, case.shape)
        assert scaled_norms(op).whole == math.inf


@pytest.mark.parametrize("dead", ["rows", "columns", "both"])
def test_nothing_that_moves_has_norm_zero(dead: str) -> None:
    op = read(TestConvolution.cases["plain"], "live")
    rows = torch.full((1, op.size_out), float(dead == "columns")).double()
    columns = torch.full((1, op.size_in), float(dead == "rows")).double()
    norm, _ = masked_norms(op, rows, columns, draw(1, *vector_shape(op)), 3)
    assert norm.tolist() == [0.0]
    assert op.weight is not None
    (gradient,) = torch.autograd.grad(norm.sum(), op.weight)
    assert gradient.abs().max() == 0.0


@pytest.mark.parametrize("case", [TestDense.cases["wide"], TestConvolution.cases["strided"]])
def test_the_gradient_of_a_masked_norm_is_that_of_the_singular_value(case: Case) -> None:
    op = read(case, "live")
    rows, columns = masks_of(op)
    _, vectors = masked_norms(op, rows, columns, draw(4, *vector_shape(op)), 3000)
    norms, _ = masked_norms(op, rows, columns, vectors, 50)
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    assert op.weight is not None
    (found,) = torch.autograd.grad((weights * norms).sum(), op.weight)
    way, ends = draw(*op.weight.shape, seed=3), []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            op.weight.add_(way, alpha=sign * 1e-6)
            dense = masked(oracle(case), rows, columns)
            ends.append(float((weights * torch.linalg.matrix_norm(dense, 2)).sum()))
            op.weight.sub_(way, alpha=sign * 1e-6)
    slope = (ends[0] - ends[1]) / 2e-6
    assert float((found * way).sum()) == pytest.approx(slope, rel=1e-4)
