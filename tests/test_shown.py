"""Results as people look at them: one statement, and every form of it."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import admm_lip
from admm_lip import (
    Certificate,
    CertifiedRadii,
    Comparison,
    TrainConfig,
    TrainResult,
    Units,
    certify,
    certify_local,
    cli,
    falsify,
    predict,
    project,
    train,
)
from admm_lip.data import load_data
from admm_lip.evaluation.evaluate import evaluate
from admm_lip.extras import MissingExtra
from admm_lip.networks.chain import read_network
from admm_lip.networks.storage import save_network
from admm_lip.plots import Sheet
from admm_lip.predictions import Predictions
from admm_lip.research.comparators.nominal import Nominal
from admm_lip.shown import Shown, lines, printable, record_of
from admm_lip.training.projected import Projection

HOSTILE = "<script>alert(1)</script>\x1b[31m\n&" + "w" * 2000


def tables(rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(dim=1) > 1.5).long()


def net(outputs: int = 2) -> nn.Sequential:
    hidden = nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh()
    return nn.Sequential(*hidden, nn.Linear(4, outputs))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """One of every result that is handed to a user."""
    torch.manual_seed(0)
    x, y = tables()
    model = net()
    bounded = train(model, (x, y), TrainConfig(bound=1.0, epochs=2), progress=False)
    free = train(model, (x, y), TrainConfig(epochs=2), method=Nominal(), progress=False)
    whole = certify(bounded.model)
    moved = project(bounded.model, bound=0.5, finetune=(x, y), epochs=1, progress=False)
    assert moved.after is not None
    radii = admm_lip.certified_radii(bounded.model, x, y, certificate=whole)
    folder = tmp_path_factory.mktemp("run")
    table = "\n".join(["a,b", *(f"{i},{3 * i}" for i in range(40))])
    (folder / "t.csv").write_text(table)
    words = ["train", "--data", f"csv:{folder}/t.csv", "--epochs", "1", "--quiet"]
    assert cli.main([*words, "--run-dir", f"{folder}/run"]) == 0
    data = load_data("toy2d")
    flat = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    return {
        "global": whole,
        "pairwise": certify(bounded.model, kind="pairwise", progress=False),
        "per output, in units": certify(
            net(2), kind="per_output", units=Units(output_names=("fee", "tax")), progress=False
        ),
        "linf": certify(model, norm="linf"),
        "local": certify_local(bounded.model, x, 0.05, y, progress=False),
        "local, without labels": certify_local(bounded.model, x, 0.05, progress=False),
        "local, of nothing": certify_local(bounded.model, x[:0], 0.05, y[:0], progress=False),
        "trained": bounded,
        "trained, nothing enforced": free,
        "projected": moved,
        "evaluated": evaluate(flat, data, certify(flat)),
        "falsified": falsify(bounded.model, radii, x, y, certificate=whole),
        "predicted": predict(folder / "run", {"a": [1.0, 2.0]}),
        "judged": moved.after,
        "radii": CertifiedRadii(radii, whole),
        "compared": Comparison(
            [
                {"mode": "penalty", "value": 0.1, "seed": 0, "lip": 2.0, "rmse": 0.3},
                {"mode": "bound", "value": 2.0, "seed": 0, "lip": 1.9, "rmse": 0.2},
            ]
        ),
    }


NAMES = (
    "global",
    "pairwise",
    "per output, in units",
    "linf",
    "local",
    "local, without labels",
    "local, of nothing",
    "trained",
    "trained, nothing enforced",
    "projected",
    "evaluated",
    "falsified",
    "predicted",
    "judged",
    "radii",
    "compared",
)


@pytest.fixture(params=NAMES)
def found(request: pytest.FixtureRequest, results: dict[str, Shown]) -> Shown:
    assert results.keys() == set(NAMES)
    return results[request.param]


def test_a_result_is_one_short_line(found: Shown) -> None:
    said = repr(found)
    assert said.isprintable() and len(said) < 200
    assert said.startswith(f"<{found.title()}: ") and said.endswith(">")


def test_every_fact_stands_in_every_form(found: Shown) -> None:
    facts = found.facts()
    assert len({fact.name for fact in facts}) == len(facts) > 0
    summary, page = found.summary(), found._repr_html_()
    for fact in facts:
        assert lines([fact])[0] in summary.splitlines()
        assert f">{html.escape(fact.label)}</th>" in page
        assert html.escape(fact.said) in page
    json.dumps(record_of(facts))


def test_what_no_check_proves_stands_apart(found: Shown) -> None:
    above, _, below = found.summary().partition("not proven, noted by its maker:\n")
    for fact in found.facts():
        (line,) = lines([fact])
        assert (line in below) == fact.noted and (line in above) != fact.noted


def test_a_result_draws_itself_or_says_why_not(found: Shown, results: dict[str, Shown]) -> None:
    if found in (results["judged"], results["predicted"]):
        with pytest.raises(ValueError, match=r"^plot: .* has nothing to draw$"):
            found.plot()
        return
    sheet = found.plot()
    assert isinstance(sheet, Sheet) and all(axes.has_data() for axes in sheet.axes)
    assert sheet._repr_png_().startswith(b"\x89PNG")


def test_a_result_is_a_data_frame(found: Shown) -> None:
    frame = found.to_frame()
    assert list(frame.columns) == list(dict.fromkeys(k for row in found.table() for k in row))
    assert frame.to_dict("records") == list(found.table())


def test_rows_are_layers_functionals_samples_and_rounds(results: dict[str, Shown]) -> None:
    frames = {name: result.to_frame() for name, result in results.items()}
    assert frames["global"]["activation"].tolist() == ["relu", "tanh"]
    assert frames["linf"]["multipliers"].tolist() == [6, 4]
    assert frames["pairwise"]["functional"].tolist() == ["f_0 - f_1"]
    assert frames["per output, in units"]["functional"].tolist() == ["fee", "tax"]
    assert len(frames["local"]) == len(frames["local, without labels"]) == 40
    assert frames["local"]["robust"].mean() == results["local"].facts()[2].value
    assert len(frames["trained"]) == len(results["trained"].history)
    assert frames["predicted"].columns.tolist() == ["b", "slope_bound"]


def test_the_numbers_are_those_of_the_certificate(results: dict[str, Shown]) -> None:
    certificate = results["global"]
    assert isinstance(certificate, Certificate)
    said = record_of(certificate.facts())
    assert said["lip"] == certificate.lip
    assert said["gap"] == (certificate.lip - certificate.lower_lip) / certificate.lip
    assert f"lip {certificate.lip:.6g}" in repr(certificate)
    moved = results["projected"]
    assert isinstance(moved, Projection) and moved.after is not None
    beside = record_of(moved.facts())
    assert beside["lip"] == moved.certificate.lip
    assert beside["certified_after"] == moved.after.certified and "certified_before" not in beside


def test_nothing_is_computed_to_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainResult(net(), (), None, TrainConfig(), "finished", 1.0, 3)
    monkeypatch.setattr("admm_lip.training.train_result.certify_global", None)
    assert "lip" not in repr(result) and "steps" in result.summary()
    with pytest.raises(ValueError, match="plot: expected a history"):
        result.plot()


class Reader(html.parser.HTMLParser):
    """The elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def hostile() -> Iterator[Shown]:
    """Results with names out of a file that wants to be more than a name."""
    units = Units(input_names=("a", HOSTILE, "c"), output_names=(HOSTILE, "d"))
    yield certify(net(), units=units)
    yield certify(net(), kind="per_output", units=units, progress=False)
    values = torch.zeros(1, 1).numpy()
    yield Predictions(values, (HOSTILE,), (), None, 1.0, HOSTILE, "l2", (HOSTILE,))
    certificate = certify(net())
    yield dataclasses.replace(certificate, solver=HOSTILE, solver_version=HOSTILE)


@pytest.mark.parametrize("number", range(4))
def test_names_of_a_file_stay_names(number: int) -> None:
    found = next(itertools.islice(hostile(), number, None))
    assert repr(found).isprintable() and len(repr(found)) < 2000
    summary = found.summary()
    assert all(line.isprintable() for line in summary.splitlines())
    assert len(summary.splitlines()) <= len(found.facts()) + 2
    reader = Reader()
    reader.feed(found._repr_html_())
    assert reader.seen == {"table", "caption", "tbody", "tr", "th", "td"}
    if not isinstance(found, Predictions):
        found.plot()  # no mathematics is read into a name, and none is too long to draw


def test_what_is_printable_stays_as_it_is() -> None:
    assert printable("Größe [m²] µ") == "Größe [m²] µ"


@pytest.mark.parametrize(("module", "form"), [("matplotlib", "plot"), ("pandas", "to_frame")])
def test_a_missing_package_is_one_line(
    module: str, form: str, results: dict[str, Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plots", "result_plots"):
        monkeypatch.delitem(sys.modules, f"admm_lip.{name}", raising=False)
        monkeypatch.delattr(admm_lip, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("global", "pairwise", "trained", "local"):
        with pytest.raises(MissingExtra, match=rf"needs {module}, .*: pip install"):
            getattr(results[name], form)()


def test_commands_print_the_same_statement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = net()
    save_network(read_network(model), tmp_path)
    assert cli.main(["certify", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    stated = Certificate.load(tmp_path / "certificate.json").facts()
    assert [line for line in said if line in lines(stated)] == lines(stated)


def test_radii_say_how_many_rows_are_certified_and_how_far() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.eye(2)
    x = torch.tensor([[3.0, 1.0], [1.0, 1.0], [5.0, 1.0]])
    made = certify(model)
    radii = admm_lip.certified_radii(model, x, torch.zeros(3).long(), certificate=made)
    facts = {fact.name: fact.value for fact in CertifiedRadii(radii, made).facts()}
    assert facts["rows"] == 3 and facts["certified"] == pytest.approx(2 / 3)
    assert facts["median_radius"] == pytest.approx(2.0**0.5)
    assert facts["largest"] == pytest.approx(4.0 / 2.0**0.5)
    assert CertifiedRadii(radii[:0], made).facts()[0].value == 0
    raw = certify(model, units=Units(input_scale=2.0))
    assert "raw l2" in CertifiedRadii(radii, raw).summary()


def test_a_comparison_names_the_best_run_of_either_mode() -> None:
    def run(mode: str, value: float, lip: float, certified: float) -> dict[str, Any]:
        accuracies = {"clean_accuracy": 1.0 - certified, "certified_at_report": certified}
        return {"mode": mode, "value": value, "seed": 0, "lip": lip, **accuracies}

    rows = [run("penalty", 0.1, 3.0, 0.5), run("penalty", 1.0, 2.0, 0.8), run("bound", 2, 1.9, 0.7)]
    penalty, bound = Comparison(rows).facts()
    assert (penalty.value, bound.value) == (2.0, 1.9)
    assert "asked for 1, seed 0; 2 runs" in penalty.said
    with pytest.raises(ValueError, match="plot: expected runs"):
        Comparison([]).plot()
