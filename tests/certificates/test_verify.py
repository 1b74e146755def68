"""The proof through rounding: exact arithmetic as its oracle, and nothing edited passes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from admm_lip import Certificate, CertificateError, certify, verify
from admm_lip.certificates.document import LayerSlopes
from admm_lip.certificates.proof import is_constant, scaled_lmi, unproven
from admm_lip.networks.chain import read_network
from admm_lip.networks.network import Chain, LayerSpec, Network, Slopes
from admm_lip.networks.storage import save_network
from admm_lip.units import Units

Array = np.ndarray[Any, Any]


def chain_of(
    weights: Sequence[Array], alpha: float = 0.0, beta: float = 1.0, error: float = 0.0
) -> Chain:
    hidden = [len(w) for w in weights[:-1]]
    return Chain(
        weights=tuple(weights),
        biases=tuple(np.zeros(len(w)) for w in weights),
        slopes=tuple(Slopes(np.full(n, alpha), np.full(n, beta)) for n in hidden),
        errors=(error,) * len(weights),
        bias_errors=(0.0,) * len(weights),
        names=(("w",),) * len(weights),
        activations=tuple(LayerSpec("relu", f"act{k}", {}) for k in range(len(hidden))),
    )


def holds_exactly(chain: Chain, multiplier: Sequence[Array], lip: float) -> bool:
    """Whether the LMI is positive semidefinite, in rational arithmetic, neuron by neuron."""
    place = [0, *np.cumsum(chain.widths).tolist()]
    order = place[-1]
    m = [[Fraction(0)] * order for _ in range(order)]
    for i in range(place[1]):
        m[i][i] = Fraction(lip) ** 2

    def add(u: dict[int, Fraction], v: dict[int, Fraction], t: Fraction) -> None:
        for i, a in u.items():
            for j, b in v.items():
                m[i][j] += t * a * b
                m[j][i] += t * a * b

    for k, (slopes, t) in enumerate(zip(chain.slopes, multiplier, strict=True)):
        for i in range(len(t)):
            row = {place[k] + j: Fraction(float(w)) for j, w in enumerate(chain.weights[k][i])}
            u, v = ({j: -Fraction(float(s[i])) * w for j, w in row.items()} for s in slopes)
            u[place[k + 1] + i] = v[place[k + 1] + i] = Fraction(1)
            add(u, v, Fraction(float(t[i])))
    for i, row in enumerate(chain.weights[-1]):
        m[place[-2] + i][place[-2] + i] = Fraction(1)
        for j, w in enumerate(row):
            m[place[-2] + i][place[-3] + j] -= Fraction(float(w))
            m[place[-3] + j][place[-2] + i] -= Fraction(float(w))
    return is_semidefinite(m)


def is_semidefinite(m: list[list[Fraction]]) -> bool:
    """Exact symmetric elimination; a zero pivot needs a zero row."""
    order = len(m)
    for k in range(order):
        if m[k][k] < 0 or (m[k][k] == 0 and any(m[k][j] != 0 for j in range(k, order))):
            return False
        for i in range(k + 1, order):
            if m[i][k] != 0:
                factor = m[i][k] / m[k][k]
                for j in range(k, order):
                    m[i][j] -= factor * m[k][j]
    return True


def least_lip(chain: Chain, multiplier: Sequence[Array]) -> float:
    """The least L the multiplier proves by eigenvalues of the naive dense matrix."""
    low, high = 1e-12, 1e12
    for _ in range(120):
        middle = float(np.sqrt(low * high))
        lmi = scaled_lmi(chain, multiplier, middle)
        sizes = np.cumsum([0, *chain.widths])
        dense = np.zeros((sizes[-1], sizes[-1]))
        for k, d in enumerate(lmi.diagonal):
            block = slice(sizes[k], sizes[k + 1])
            dense[block, block] = np.diag(d) if d.ndim == 1 else d
        for k, c in enumerate(lmi.lower):
            dense[sizes[k + 1] : sizes[k + 2], sizes[k] : sizes[k + 1]] = c
        good = np.linalg.eigvalsh(dense)[0] >= 0.0
        low, high = (low, middle) if good else (middle, high)
    return high


ranges = st.sampled_from([(0.0, 1.0), (0.1, 1.0), (-0.2, 1.1), (-2.0, 1.0), (0.0, 0.25)])


@given(
    seed=st.integers(0, 10_000),
    slopes=ranges,
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    depth=st.integers(0, 2),
    excess=st.sampled_from([-1e-6, -1e-9, -1e-12, -1e-15, 0.0, 1e-15, 1e-12, 1e-8, 1e-3]),
)
def test_what_is_proven_holds_in_rational_arithmetic(
    seed: int, slopes: tuple[float, float], scale: float, depth: int, excess: float
) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 4, depth + 2)]
    weights = [scale * rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
    chain = chain_of(weights, *slopes)
    gain = float(np.prod([np.linalg.norm(w, 2) for w in weights[1:]])) ** 2
    multiplier = []
    for k in range(depth):
        tail = float(np.prod([np.linalg.norm(w, 2) for w in weights[k + 1 :]])) ** 2
        spread = np.exp(0.3 * rng.standard_normal(sizes[k + 1]))
        multiplier.append((1.0 + tail) * 3.0 ** (depth - k) * spread / max(1.0, slopes[1] ** 2))
    assert gain > 0.0
    lip = least_lip(chain, multiplier) * (1.0 + excess)
    reason = unproven(chain, multiplier, lip)
    exact = holds_exactly(chain, multiplier, lip) if lip < 1e11 else None
    assert reason is not None or exact
    if excess >= 1e-8 and exact and lip < 1e11 and depth < 2:
        assert reason is None


def test_the_oracle_itself_tells_the_boundary() -> None:
    hat = chain_of([np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])])
    one = [np.ones(2)]
    assert holds_exactly(hat, one, 1.0)
    assert not holds_exactly(hat, one, float(np.nextafter(1.0, 0.0)))
    assert unproven(hat, one, 1.0) is not None  # true, but not provable in floating point
    assert unproven(hat, [np.full(2, 1.0 + 1e-12)], 1.0 + 2e-12) is None


def test_the_stored_error_of_a_merged_layer_counts() -> None:
    exact, merged = chain_of([np.eye(3)]), chain_of([np.eye(3)], error=1e-3)
    assert unproven(exact, [], 1.0 + 1e-9) is None
    assert unproven(merged, [], 1.0 + 1e-9) is not None
    assert unproven(merged, [], 1.0 + 2e-3) is None


def test_a_constant_network_is_proven_by_its_zeros() -> None:
    rng = np.random.default_rng(0)
    dead = np.diag([1.0, 0.0]) @ rng.standard_normal((2, 2))
    chain = chain_of([dead, np.array([[0.0, 3.0]])])
    assert is_constant(chain)
    assert unproven(chain, [np.ones(2)], 0.0) is None
    alive = chain_of([dead, np.array([[1e-300, 3.0]])])
    assert unproven(alive, [np.ones(2)], 0.0) == "lip is 0, but the network is not constant"
    assert not is_constant(dataclasses.replace(chain, errors=(1e-300, 0.0)))


@pytest.mark.parametrize(
    ("multiplier", "lip", "reason"),
    [
        ([np.ones(2)], np.nan, "lip is nan; a proof needs a number from"),
        ([np.ones(2)], 1e300, r"lip is 1e\+300"),
        ([], 2.0, "1 hidden layers, but 0 multipliers"),
        ([np.ones(3)], 2.0, r"multiplier\[0\] has shape \(3,\), not \(2,\)"),
        ([np.array([1.0, 0.0])], 2.0, r"multiplier\[0\] has an entry outside"),
        ([np.array([1.0, np.nan])], 2.0, r"multiplier\[0\] has an entry outside"),
        ([np.array([1.0, -1.0])], 2.0, r"multiplier\[0\] has an entry outside"),
        ([np.ones(2)], 0.99, "the matrix inequality does not hold through rounding"),
    ],
)
def test_the_reason_is_told(multiplier: list[Array], lip: float, reason: str) -> None:
    hat = chain_of([np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])])
    with pytest.raises(AssertionError, match=reason):
        assert unproven(hat, multiplier, lip) is None, unproven(hat, multiplier, lip)


def fresh_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


@functools.cache
def proof() -> Certificate:
    return certify(fresh_model())


def certified_model() -> tuple[nn.Sequential, Certificate]:
    return fresh_model(), proof()


@pytest.fixture
def case() -> tuple[nn.Sequential, Certificate]:
    return certified_model()


def edited(certificate: Certificate, k: int, i: int, factor: float) -> tuple[Any, ...]:
    rows = [list(t) for t in certificate.multiplier]
    rows[k][i] *= factor
    return tuple(tuple(t) for t in rows)


def test_a_certificate_verifies_as_object_and_file(
    case: tuple[nn.Sequential, Certificate], tmp_path: Path
) -> None:
    model, certificate = case
    verify(certificate, model)
    verify(certificate, model.double())
    model.float()
    verify(certificate, read_network(model))
    verify(dataclasses.replace(certificate, lip=2.0 * certificate.lip), model)
    certificate.save(tmp_path / "certificate.json")
    save_network(read_network(model), tmp_path)
    verify(tmp_path / "certificate.json", tmp_path)


@given(
    layer=st.integers(0, 1),
    neuron=st.integers(0, 5),
    log_factor=st.floats(-3.0, 3.0).filter(lambda v: abs(v) > 1e-2),
)
def test_an_edited_multiplier_is_rejected(layer: int, neuron: int, log_factor: float) -> None:
    model, certificate = certified_model()
    moved = edited(certificate, layer, neuron, float(np.exp(log_factor)))
    with pytest.raises(CertificateError, match=r"lip: .* is not proven"):
        verify(dataclasses.replace(certificate, multiplier=moved), model)


@pytest.mark.parametrize("less", [1e-6, 1e-4, 0.1])
def test_a_lowered_bound_is_rejected(case: tuple[nn.Sequential, Certificate], less: float) -> None:
    model, certificate = case
    lowered = dataclasses.replace(certificate, lip=certificate.lip * (1.0 - less))
    with pytest.raises(CertificateError, match=r"is not proven: the matrix inequality"):
        verify(lowered, model)
    with pytest.raises(CertificateError, match="lip is 0, but the network is not constant"):
        verify(dataclasses.replace(certificate, lip=0.0), model)


@given(st.integers(0, 2), st.integers(0, 17))
def test_a_changed_parameter_is_rejected(layer: int, entry: int) -> None:
    model, certificate = certified_model()
    weight = model[2 * layer].weight.data.view(-1)
    weight[entry] = torch.nextafter(weight[entry], torch.tensor(10.0))
    with pytest.raises(CertificateError, match="digest: the certificate is of another network"):
        verify(certificate, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "linf"}, r"multiplier: expected 3 layers of it \(one per hidden layer, for norm"),
        ({"norm": "l1"}, "norm: expected one of l2, linf, got 'l1'"),
        ({"kind": "local"}, "kind: expected one of global, got 'local'"),
        (
            {"kind": "pairwise"},
            "kind: expected one of global, got 'pairwise'",
        ),
        (
            {"units": Units(input_scale=(2.0,) * 4)},
            r"units.input_scale: expected 5 entries, one per input of the network, got 4",
        ),
        (
            {"units": Units(output_scale=(2.0,) * 4)},
            r"units.output_scale: expected 3 entries, one per output of the network, got 4",
        ),
        (
            {"units": Units(input_scale=(1.0,) * 4 + (0.9,))},
            "lip: .* is not proven: the matrix inequality",
        ),
        (
            {"units": Units(output_scale=1.001)},
            "lip: .* is not proven: the matrix inequality",
        ),
        ({"digest": "0" * 64}, "digest: the certificate is of another network"),
        (
            {"slopes": (LayerSlopes("relu", 0.0, 0.5), LayerSlopes("tanh", 0.0, 1.0))},
            r"slopes\[0\]: expected relu with \[0.0, 1.0\], got relu with \[0.0, 0.5\]",
        ),
        (
            {"slopes": (LayerSlopes("relu", 0.0, 1.0), LayerSlopes("relu", 0.0, 1.0))},
            r"slopes\[1\]: expected tanh",
        ),
        ({"slopes": ()}, "slopes: expected 2 hidden layers, got 0"),
        ({"multiplier": ()}, r"multiplier: expected 2 layers of it .*, got 0"),
        ({"multiplier": ((1.0,) * 8, (0.0,) * 6)}, r"multiplier\[1\] has an entry outside"),
    ],
)
def test_what_does_not_belong_is_rejected(
    case: tuple[nn.Sequential, Certificate], changes: dict[str, Any], message: str
) -> None:
    model, certificate = case
    with pytest.raises(CertificateError, match=message):
        verify(dataclasses.replace(certificate, **changes), model)


def test_another_activation_is_rejected(case: tuple[nn.Sequential, Certificate]) -> None:
    model, certificate = case
    other = nn.Sequential(model[0], nn.ReLU(), model[2], nn.ReLU(), model[4])
    with pytest.raises(CertificateError, match="digest"):
        verify(certificate, other)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, a Network, an est"):
        verify(certificate, 3)  # type: ignore[arg-type]


def test_a_folder_is_verified_without_torch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 2))
    certify(model, (1, 4, 4)).save(tmp_path / "certificate.json")
    save_network(read_network(model, (1, 4, 4)), tmp_path)
    code = (
        "import sys; from admm_lip import verify; "
        f"verify({str(tmp_path / 'certificate.json')!r}, {str(tmp_path)!r}); "
        "assert 'torch' not in sys.modules; print('proven')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "proven\n"


def test_public_functions_survive_the_import_of_their_modules() -> None:
    code = (
        "import admm_lip.certificates.verify, admm_lip.training.project, admm_lip.training.train; "
        "import admm_lip; from admm_lip import verify, project, train; "
        "print(*(callable(f) for f in (verify, admm_lip.project, admm_lip.train)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"


def test_a_wide_network_leaves_room_for_its_rounding_margin() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((80, 120)) / 10.0, rng.standard_normal((10, 80)) / 10.0]
    network = Network(
        tuple(LayerSpec(k, n, {}) for k, n in (("linear", "a"), ("relu", "b"), ("linear", "c"))),
        {"a.weight": weights[0], "c.weight": weights[1]},
    )
    chain = network.chain()
    tail = float(np.linalg.norm(weights[1], 2)) ** 2
    t = [np.full(80, tail * (1.0 + 1e-6))]
    least = least_lip(chain, t)
    assert least < 1.01 * float(np.prod([np.linalg.norm(w, 2) for w in weights]))
    assert unproven(chain, t, least * (1.0 + 1e-6)) is None
    assert unproven(chain, t, least * (1.0 - 1e-9)) is not None
