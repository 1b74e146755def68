"""Factors of many narrow matrices: what torch says, whichever library finds it."""

from __future__ import annotations

import pytest
import torch

from admm_lip.solvers.native.large.markov import band_between, markov
from admm_lip.solvers.native.lmi import narrow
from admm_lip.solvers.native.lmi.block_cholesky import Band, block_slices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 40), (3, 64, 64), (2, 2, 20, 20), (1, 160, 160)])
def test_factors_solve_and_invert(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5
    matrices = roots @ roots.mT + torch.eye(shape[-1], dtype=dtype)
    near = {"rtol": 0.0, "atol": 1e3 * torch.finfo(dtype).eps}
    lower, definite = narrow.factors(matrices)
    assert definite.shape == shape[:-2] and bool(definite.all()) and narrow.are_definite(matrices)
    torch.testing.assert_close(lower, lower.tril(), rtol=0.0, atol=0.0)
    torch.testing.assert_close(lower @ lower.mT, matrices, **near)
    right = torch.randn(*shape[:-2], 5, shape[-1], generator=generator, dtype=dtype)
    kept = right.clone()
    torch.testing.assert_close(narrow.right_solved(lower, right) @ lower.mT, right, **near)
    eye = torch.eye(shape[-1], dtype=dtype).expand(shape)
    torch.testing.assert_close(narrow.inverses(lower) @ lower, eye, **near)
    torch.testing.assert_close(right, kept, rtol=0.0, atol=0.0)  # what was given stays


@pytest.mark.parametrize("size", [20, 64])
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -1.0, 0.0])
def test_what_is_not_definite_is_named(size: int, fault: float) -> None:
    matrices = torch.eye(size).double().repeat(3, 1, 1)
    matrices[1, 7, 7] = fault
    assert narrow.factors(matrices)[1].tolist() == [True, False, True]
    assert not narrow.are_definite(matrices)


@pytest.mark.parametrize("layers", [2, 5])
def test_bands_of_equal_blocks_are_multiplied_as_written_out(layers: int) -> None:
    n, generator = 4, torch.Generator().manual_seed(layers)
    at = block_slices([n] * layers)

    def band() -> Band:
        roots = torch.randn(n * layers, 2 * n * layers, generator=generator, dtype=torch.float64)
        dense = roots @ roots.T
        lower = [dense[at[k + 1], at[k]] for k in range(layers - 1)]
        return Band(torch.stack([dense[s, s] for s in at]), torch.stack(lower))

    def one_by_one(whole: Band) -> Band:
        return Band(list(whole.diagonal), list(whole.lower))

    z, middle, p = band(), band(), band()
    chains = markov(z), markov(p)
    lists = markov(one_by_one(z)), markov(one_by_one(p))
    assert None not in chains and None not in lists
    found = band_between(chains[0], middle, chains[1])  # type: ignore[arg-type]
    other = band_between(lists[0], one_by_one(middle), lists[1])  # type: ignore[arg-type]
    for part, parts in zip(found, other, strict=True):
        torch.testing.assert_close(part, torch.stack(list(parts)))
