"""No false certificate is accepted: forgeries of every kind, by every field, and by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from admm_lip import Certificate, CertificateError, certify, load_certificate, verify
from admm_lip.certificates import verify as checker
from admm_lip.certificates.document import checksum
from admm_lip.errors import NetworkError
from admm_lip.local import LocalCertificate, certify_local, check, local_radii, verify_local
from admm_lip.local.verdicts import kept
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import load_network, save_network
from admm_lip.records import RunFolderError, read_json
from benchmarks import record
from benchmarks.forgeries import case_of, cells
from benchmarks.forging import CONFIRMED, FALSE, RAW, REFUSED, Case, forged, judged, subject
from benchmarks.study import read_settings

CASES = {cell["case"]: case_of(cell) for cell in cells(read_settings("forgeries", quick=False))}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def outcomes(case: Case, seeds: range, folder: Path) -> list[tuple[str, str]]:
    about, path = subject(case), folder / "forgery"
    verdicts = [judged(about, forged(about, seed, path), path) for seed in seeds]
    return [(v.outcome, f"{v.edit}: {v.said}") for v in verdicts]


@every_case
def test_the_true_one_is_accepted_and_confirmed(case: Case, tmp_path: Path) -> None:
    about = subject(case)
    about.certificate.save(tmp_path / "true")
    verdict = judged(about, "none", tmp_path / "true")
    assert (verdict.outcome, verdict.said) == (CONFIRMED, "")


@every_case
def test_no_forgery_is_accepted_unless_it_is_true(case: Case, tmp_path: Path) -> None:
    found = outcomes(case, range(10**6, 10**6 + 12), tmp_path)
    assert [said for outcome, said in found if outcome in (FALSE, RAW)] == []
    assert REFUSED in {outcome for outcome, _ in found}


def test_the_oracle_sees_what_a_check_without_its_proof_lets_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "unproven", lambda *_: None)
    monkeypatch.setattr(check, "_demand", lambda *_: None)
    for name in ("global relu", "pairwise MaxMin", "local line relu", "local gelu box"):
        found = outcomes(CASES[name], range(60), tmp_path)
        assert sum(outcome == FALSE for outcome, _ in found) >= 5, name


def test_the_record_of_ten_thousand() -> None:
    rows = record.load("forgeries")["rows"]
    assert {row["case"] for row in rows} == set(CASES)
    assert sum(row[REFUSED] + row[CONFIRMED] for row in rows) >= 10_000
    assert [(row["case"], row[FALSE], row[RAW]) for row in rows if row[FALSE] or row[RAW]] == []


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def points(count: int = 8, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).double()


class TestLocalRecords:
    @pytest.mark.parametrize("value", [-math.inf, -1.0, math.nan])
    def test_a_bound_below_zero_is_no_bound(self, model: nn.Sequential, value: float) -> None:
        x = points()
        found = certify_local(model, x, 5.0, model(x).argmax(1))
        with pytest.raises(CertificateError, match="lip: expected numbers >= 0, got"):
            dataclasses.replace(found, lip=torch.full_like(found.lip, value))
        found.lip.fill_(value)  # tensors can be changed after the record was made
        assert not bool(found.robust.any())
        with pytest.raises(CertificateError, match="lip: expected numbers >= 0, got"):
            verify_local(found, model)

    @pytest.mark.parametrize("lip", [-math.inf, -1e-300, math.nan, math.inf])
    def test_such_bounds_keep_nothing(self, lip: float) -> None:
        one = torch.ones(1, 1, dtype=torch.float64)
        assert not bool(kept(one, -one, one * lip, one[0]).any())

    def test_a_claim_below_zero_is_proven_too(self, model: nn.Sequential) -> None:
        x = points()
        found = certify_local(model, x, 0.5, model(x).argmin(1))
        verify_local(found, model)
        assert bool((found.center < -0.1).any())
        for name in ("center", "margin"):
            nearer = getattr(found, name) * 0.9
            with pytest.raises(CertificateError, match=f"{name}: the claim for input 0"):
                verify_local(dataclasses.replace(found, **{name: nearer}), model)

    def test_without_labels_no_margin_is_claimed(self, model: nn.Sequential) -> None:
        found = certify_local(model, points(), 0.5)
        with pytest.raises(CertificateError, match="zeros without labels"):
            dataclasses.replace(found, margin=torch.ones_like(found.margin))

    @pytest.mark.parametrize(
        ("box", "message"),
        [
            ((3.0, -3.0), "box: expected two finite ends, the lower first"),
            ((0.0, math.nan), r"box\[1\]: expected a finite number, got nan"),
            ((False, True), r"box\[0\]: expected a finite number, got False"),
            ((-0.1, 0.1), r"x: expected inputs inside the box \(-0.1, 0.1\)"),
        ],
    )
    def test_boxes_are_ordered_and_hold_the_inputs(
        self, model: nn.Sequential, box: Any, message: str
    ) -> None:
        found = certify_local(model, points(), 0.5)
        with pytest.raises(CertificateError, match=message):
            dataclasses.replace(found, box=box)

    def test_a_binary_classifiers_certificate_reads_back(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        binary = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
        x = points(width=3)
        found = certify_local(binary, x, 0.1, (binary(x)[:, 0] > 0.0).long())
        found.save(tmp_path / "local.safetensors")
        verify_local(tmp_path / "local.safetensors", binary)

    def test_margins_that_are_constant_hold_everywhere(self, model: nn.Sequential) -> None:
        with torch.no_grad():
            model[2].weight.zero_()
        x = points()
        y, pairs = model(x).argmax(1), certify(model, kind="pairwise", progress=False)
        found = local_radii(model, x, y, certificate=pairs)
        assert bool((found.radius == math.inf).all())
        assert bool(found.robust.all())
        verify_local(found, model, pairs)
        with pytest.raises(CertificateError, match="certificate: some bounds are those of a"):
            verify_local(found, model)

    def test_what_holds_on_a_ball_is_not_said_of_the_space(self, model: nn.Sequential) -> None:
        x = points()
        found = certify_local(model, x, 1e-3, model(x).argmax(1))
        everywhere = torch.full_like(found.radius, math.inf)
        with pytest.raises(CertificateError, match="margin: the claim for input 0"):
            verify_local(dataclasses.replace(found, radius=everywhere), model)
        nothing = torch.full_like(found.margin, -math.inf)
        with pytest.raises(CertificateError, match="lip: the claim for input 0"):
            verify_local(dataclasses.replace(found, radius=everywhere, margin=nothing), model)

    def test_the_certificate_it_leans_on_is_verified(self, model: nn.Sequential) -> None:
        x, whole = points(), certify(model)
        lower = dataclasses.replace(whole, lip=1e-3, lower_lip=0.0, sampled_lower=0.0)
        found = certify_local(model, x, 50.0, model(x).argmax(1), certificate=lower)
        assert "global" in {name for row in found.levels for name in row}
        with pytest.raises(CertificateError, match=r"lip: 0\.001 is not proven"):
            verify_local(found, model, lower)


class TestFiguresBeside:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm_product": 0.1}, "norm_product: expected .*, got 0.1"),
            ({"lower_lip": 1e3}, "lower_lip: expected at most lip, .*, got 1000.0"),
            ({"sampled_lower": 1e-3, "lower_lip": 1e-4}, "sampled_lower: expected at most lower_l"),
        ],
    )
    def test_what_can_be_computed_or_ordered_is_checked(
        self, model: nn.Sequential, change: dict[str, float], message: str
    ) -> None:
        found = dataclasses.replace(certify(model), **change)
        with pytest.raises(CertificateError, match=message):
            verify(found, model)

    def test_what_is_not_proven_is_named_apart(self, model: nn.Sequential) -> None:
        found = certify(model, requested=2.0)
        claim, _, noted = repr(found).partition("; not proven: ")
        assert f"lip {found.lip:.6g}" in claim
        assert "gap" in noted and "method" in noted
        above, _, below = found.summary().partition("not proven, noted by its maker:")
        for name in ("method", "requested", "lower_lip", "sampled_lower", "gap", "solver"):
            (fact,) = (f for f in found.facts() if f.name == name)
            assert fact.label in below and fact.label not in above
            assert name in found.reported()
        assert "lip" not in found.reported() and "norm_product" not in found.reported()


class TestNumbers:
    def test_whole_numbers_become_floats(self, model: nn.Sequential) -> None:
        found = certify(model)
        raised = edited(found, lip=5 * 10**9)
        assert type(raised.lip) is float
        verify(raised, model)
        assert type(dataclasses.replace(found, requested=3).requested) is float

    @pytest.mark.parametrize(
        "value",
        [10**400, -(10**5000), True, "1", None, [1.0], math.nan],
        ids=lambda v: type(v).__name__,
    )
    def test_what_is_no_number_is_refused(self, model: nn.Sequential, value: Any) -> None:
        with pytest.raises(CertificateError, match="lip: expected a finite number >= 0, got"):
            dataclasses.replace(certify(model), lip=value)

    @pytest.mark.parametrize("shape", [[10**12, 10**12], [5], [True], [4.0], [], [1, 1, 4], 4])
    def test_an_edited_shape_is_a_certificates_fault(self, shape: Any) -> None:
        torch.manual_seed(0)
        conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
        found = certify(conv, (1, 2, 2))
        with pytest.raises(CertificateError, match=r"input_shape|digest"):
            verify(edited(found, input_shape=shape), conv)


def edited(certificate: Certificate, **changes: Any) -> Certificate:
    """As a file, with a checksum of its own."""
    data = {**json.loads(certificate.to_json()), **changes}
    data.pop("checksum")
    return Certificate.from_json(json.dumps({**data, "checksum": checksum(data)}))


class TestFilesThatReadInTwoWays:
    def test_a_certificate(self, model: nn.Sequential, tmp_path: Path) -> None:
        text = certify(model).to_json()
        (tmp_path / "c.json").write_text('{"lip": 0.001, ' + text[1:])
        with pytest.raises(CertificateError, match="the key 'lip' is given twice"):
            load_certificate(tmp_path / "c.json")

    def test_a_local_certificates_headers(self, model: nn.Sequential, tmp_path: Path) -> None:
        path = tmp_path / "local.safetensors"
        certify_local(model, points(), 0.5).save(path)
        whole = path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        header, data = whole[8 : 8 + size].decode(), whole[8 + size :]
        inner = header.replace('{\\"format', '{\\"norm\\": \\"linf\\", \\"format', 1)
        outer = f'{{"x": {json.dumps(json.loads(header)["x"])}, {header[1:]}'
        for text, message in ((inner, "the key 'norm' is given"), (outer, "the key 'x' is given")):
            path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
            with pytest.raises(CertificateError, match=message):
                LocalCertificate.load(path)

    def test_a_networks_files(self, model: nn.Sequential, tmp_path: Path) -> None:
        save_network(read_network(model), tmp_path)
        architecture = tmp_path / "architecture.json"
        whole = architecture.read_text()
        architecture.write_text('{"layers": [], ' + whole.lstrip()[1:])
        with pytest.raises(NetworkError, match="the key 'layers' is given twice"):
            load_network(tmp_path)

    def test_a_record(self, tmp_path: Path) -> None:
        (tmp_path / "summary.json").write_text('{"lip": 1.0, "lip": 2.0}')
        with pytest.raises(RunFolderError, match="the key 'lip' is given twice"):
            read_json(tmp_path / "summary.json")

    @pytest.mark.parametrize(
        "text", ["[" * 10**6, '{"lip": ' + "[" * 900 + "]" * 900 + "}"], ids=("open", "closed")
    )
    def test_depth_is_refused(self, text: str) -> None:
        with pytest.raises(CertificateError, match=r"nested too deep|not a certificate"):
            Certificate.from_json(text)
