"""The study of local bounds in its quick mode, and how it decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from admm_lip.local import LocalCertificate, certify_local
from benchmarks import local_training, study
from benchmarks.local_training_tables import by_sdp, costs, draw, other_scale, tabulate, verdicts


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[study.Row]:
    settings = study.read_settings("local_training", quick=True)
    folder = tmp_path_factory.mktemp("cells")
    return study.run_study(local_training.STUDY, settings, data_dir=None, jobs=1, folder=folder)


def test_the_quick_mode_runs_tabulates_and_draws(rows: list[study.Row], tmp_path: Path) -> None:
    assert [row.get("where") for row in rows if "error" in row] == []
    settings = study.read_settings("local_training", quick=True)
    for table in (tabulate(rows), verdicts(rows), costs(rows), by_sdp(rows), other_scale(settings)):
        lines = table.splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1
    (picture,) = draw(rows, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_shares_are_in_the_order_that_soundness_demands(rows: list[study.Row]) -> None:
    trained = [row for row in rows if row["kind"] == "network"]
    assert len(trained) == 17
    for row in trained:
        chain = ("certified_global", "certified_local", "pgd", "clean")
        values = [row[key] for key in chain]
        assert values == sorted(values)


def test_a_false_certificate_ends_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(*arguments: object, **keywords: object) -> LocalCertificate:
        report = certify_local(*arguments, **keywords)  # type: ignore[arg-type]
        report.margin.fill_(1.0)  # behind the record's own checks
        report.center.fill_(1.0)
        return report

    monkeypatch.setattr(local_training, "certify_local", lying)
    settings = study.read_settings("local_training", quick=True)
    cell = {**local_training.cells(settings)[0], "eps": 3.0}
    with pytest.raises(SystemExit, match="a certificate is wrong, nothing is recorded"):
        local_training.run_cell(cell, None)


def made(bound: str, certified: float, seed: int, width: float = 0.25) -> study.Row:
    return {
        **{"kind": "network", "data": "d", "net": "n", "activation": "relu", "surrogate": "bcp"},
        **{"width": width, "seed": seed, "bound": bound, "clean": 90.0, "pgd": 50.0},
        **{"eps": 1.0, "train_eps": 1.1},
        **{"certified_local": certified, "certified_global": certified, "plain": 1.0},
        "certified_local": certified,
    }


@pytest.mark.parametrize(
    ("gains", "said"),
    [((2.0, 1.0, 3.0), "yes"), ((-2.0, -1.0, -3.0), "no"), ((2.0, 0.0, 3.0), "not stable")],
)
def test_a_direction_is_claimed_only_where_the_sign_is_stable(
    gains: tuple[float, ...], said: str
) -> None:
    pairs = [made("local", 20.0 + gain, seed) for seed, gain in enumerate(gains)]
    pairs += [made("global", 20.0, seed) for seed in range(3)]
    line = next(li for li in verdicts(pairs).splitlines() if "both by the local bound" in li)
    assert line.split("|")[-2].strip() == said
    wider = [made("local", 20.0 - gains[0], 0, 0.5), made("global", 20.0, 0, 0.5)]
    line = next(
        li for li in verdicts(pairs + wider).splitlines() if "both by the local bound" in li
    )
    assert line.split("|")[-2].strip() == "not stable"
