"""What the documentation shows is run: doctests of the package, code of the README and the site."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from snippets import agrees, run_page

from admm_lip import cli
from admm_lip.commands.arguments import parse
from admm_lip.networks.promises import PROMISES
from admm_lip.solvers import registry

ROOT = Path(__file__).resolve().parents[1]
# The changelog apart, which speaks of earlier versions too.
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs/api").glob("*.md"),
]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(WRITTEN)}
README = PAGES["README.md"]
OPTIONAL = ("mosek", "onnx", "onnxruntime", "pandas")


def modules_with_examples() -> list[str]:
    homes = [("admm_lip", path) for path in (ROOT / "admm_lip").rglob("*.py")]
    homes += [("admm_lip.solvers", path) for path in (ROOT / "solvers").rglob("*.py")]
    found = []
    for top, path in homes:
        if ">>> " in path.read_text(encoding="utf-8"):
            base = ROOT / ("solvers" if top.endswith("solvers") else "admm_lip")
            parts = path.relative_to(base).with_suffix("").parts
            found.append(".".join([top, *(part for part in parts if part != "__init__")]))
    return sorted(found)


def imported(name: str) -> ModuleType:
    """The module, or a skip where it needs an extra that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(name)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


WITH_CODE = [
    name for name, text in PAGES.items() if re.search(r"^```(python|console)$", text, re.MULTILINE)
]


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", {})  # what a page registers stays in it
    for promised in list(PROMISES):
        monkeypatch.delitem(PROMISES, promised)
    for found in run_page(PAGES[name], name):
        assert agrees(found.shown, found.printed), f"{found.code}\nprints now\n\n{found.printed}"


def test_outputs_agree_by_words_and_by_numbers_up_to_rounding() -> None:
    assert agrees("L = 1.0001 in 12.2 s", "L = 0.9999 in 3 s\n")
    assert agrees("1,250 rows\n\nruns/a-20260101-000000/", "1,249 rows\n\nruns/a-20261231-235959/")
    assert agrees("version 0.1.0", "version 0.2.0")
    for printed in ("L = 1.2 in 12.2 s", "K = 1.0001 in 12.2 s", "L = 1.0001", "L = nan in 12.2 s"):
        assert not agrees("L = 1.0001 in 12.2 s", printed)


def test_a_page_knows_its_blocks(tmp_path: Path) -> None:
    text = "```python\nx = 2\nprint(x)\n```\n\n```text\n3\n```\n"
    (found,) = run_page(text, "page")
    assert (found.shown, found.printed, text[slice(*found.span)]) == ("3\n", "2\n", "3\n")
    marked = f"<!-- not run: needs a GPU -->\n{text}"
    assert list(run_page(marked, "page")) == []
    with pytest.raises(SyntaxError):
        list(run_page(marked.replace("x = 2", "x ="), "page"))


def shell_blocks(text: str) -> list[str]:
    """What the blocks for a shell hold."""
    return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every ``admm-lip`` command in a text, program left out."""
    names = "|".join(cli._COMMANDS)
    found = re.findall(rf"(?:^|[\s/`])admm-lip ((?:{names})\b[^`\n&]*)", text)
    return [shlex.split(line) for line in found]


def every_command() -> list[list[str]]:
    """Those of all pages, each once."""
    found = {tuple(words): words for text in PAGES.values() for words in commands(text)}
    return list(found.values())


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_shown_is_one(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"admm_lip.commands.{words[0]}")
    monkeypatch.chdir(tmp_path)
    if "--config" in words:
        settings = tmp_path / words[words.index("--config") + 1]
        settings.parent.mkdir(parents=True)
        settings.write_text("bound: 1.0\n")
    parse(module.parser(), words[1:])


@pytest.mark.parametrize("code", sorted({c for text in PAGES.values() for c in shell_blocks(text)}))
def test_the_shell_reads_every_shell_block(code: str) -> None:
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_the_list_of_commands_is_the_one_that_is_printed() -> None:
    listed = cli._overview().partition("commands:\n")[2].partition("\n\n")[0]
    assert listed in PAGES["docs/command_line.md"]


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 200


@pytest.mark.parametrize("name", PAGES)
def test_a_link_to_a_file_of_this_project_leads_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#:\s]+)[^)\s]*\)", PAGES[name]):
        if "auto_gallery/" in target:
            script = target.partition("auto_gallery/")[2].partition(".")[0]
            where = ROOT / "docs/gallery" / ("README.rst" if script == "index" else f"{script}.py")
        else:
            where = here / target
        assert where.exists(), target


def rows_of(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """Rows of a record that hold these values."""
    record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return [r for r in record["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def figures() -> list[str]:
    """What the README's table says of results, from the records that it names."""
    norms, pairs = (
        mean(rows_of("certificates", network="plain", level=level), "certified_0.1")
        for level in ("norm product", "pairwise LipSDP")
    )
    best = {"mnist_mlp": "semidefinite"}
    names = ("mnist_mlp", "mnist_convsmall", "cifar10_cnn_a", "cifar10_convsmall")
    local = [
        row
        for name in names
        for row in rows_of("local_table", network=name, level=best.get(name, "tuned"))
    ]
    wide, widest, same, torchlip, sandwich = (
        rows_of("images_wide", eps=1.58, contender=name)
        for name in (
            "ADMM, MaxMin, 256-256-256, 40 epochs",
            "ADMM, MaxMin, 512-512-512, 100 epochs",
            "ADMM, MaxMin",
            "torchlip, step size 0.01",
            "Sandwich",
        )
    )
    trained = {"data": "mnist", "contender": "ADMM, MaxMin", "eps": 0.5}
    admm, cost = rows_of("images", **trained), rows_of("images_cost", **trained)
    (moved,) = rows_of("image_training", data="cifar10", moved=True)
    few = {"data": "mnist", "samples": 1000}
    warm = rows_of("finetune", **few, subject="pgd", variant="all")
    cold = rows_of("finetune", **few, variant="scratch")
    (large,) = rows_of("image_bounds", network="random 3-32-64s2-64-128s2-pool-10")
    solves = rows_of("solver_times", case="784-256-256-10", threads=1, kind="certify")
    balls, forged = rows_of("attacked_balls"), rows_of("forgeries")
    assert sum(row["false"] for row in forged) == 0
    return [
        f"{norms:.1f} % of the test set certified by norms, {pairs:.1f} % by pairs",
        *(
            f"| **{row['certified']}** | {row['attack_leaves']} | {row['cpu_seconds_each']:.2f} | "
            f"{row['published_sdp_crown']:.1f} ({row['published_seconds']:g} s"
            for row in local
        ),
        f"{mean(wide, 'clean'):.1f} % right, {mean(wide, 'certified'):.1f} % certified, by "
        f"256-256-256 in {mean(wide, 'cpu_seconds'):.0f} s; {mean(widest, 'certified'):.1f} by "
        f"512-512-512 in {mean(widest, 'cpu_seconds') / 60:.0f} minutes (one seed); by 256-256 "
        f"{mean(same, 'certified'):.1f} in {mean(same, 'cpu_seconds'):.0f} s (torchlip, one seed: "
        f"{mean(torchlip, 'certified'):.1f} in {mean(torchlip, 'cpu_seconds'):.0f} s; Sandwich: "
        f"{mean(sandwich, 'certified'):.1f} in {mean(sandwich, 'cpu_seconds'):.0f} s;",
        f"{mean(admm, 'clean'):.1f} % right, {mean(admm, 'certified'):.1f} % certified, in "
        f"{mean(cost, 'ratio'):.1f} times",
        f"{moved['clean']:.1f} % right, {moved['certified']:.1f} % certified in "
        f"{moved['cpu_seconds'] / 60.0:.0f} minutes",
        f"{mean(warm, 'clean'):.1f} % right, {mean(warm, 'certified'):.1f} % certified; from "
        f"scratch {mean(cold, 'clean'):.1f} and {mean(cold, 'certified'):.1f}",
        f"{large['neurons']:,} neurons of convolutions within "
        f"{100 * (1 - large['lower_lip'] / large['lip']):.1f} % of the best multipliers in "
        f"{large['cpu_seconds']:.0f} s; the product of norms is "
        f"{large['norm_product'] / large['lip']:.1f} times",
        f"1e-6: {mean(solves, 'seconds'):.1f} s on one thread",
        f"none of {sum(row.get('balls', 0) for row in balls):,} certified balls",
        f"of {sum(row['forgeries'] for row in forged):,} forged certificates",
    ]


@pytest.mark.parametrize("figure", figures())
def test_a_figure_of_the_readme_is_that_of_its_record(figure: str) -> None:
    assert figure in README


def figures_of_cost() -> list[str]:
    """What the page on cost says, from its record."""
    from benchmarks import scaling

    rows = rows_of("scaling")
    clock = sum(r["seconds"] for r in rows) / sum(r["cpu_seconds"] for r in rows)
    (one,), (two,) = (rows_of("scaling", axis="ranks", size=n) for n in (1, 2))
    sent = one["sent_mib"]
    dense, large = (
        {r["size"]: r["cpu_seconds"] for r in rows_of("scaling", form=form, axis="depth")}
        for form in ("dense", "large")
    )
    faster = min(depth for depth in dense if large[depth] < dense[depth])
    last = rows_of("scaling", form="dense", axis="depth")[0]["certify_changes_after"]
    return [
        scaling.tabulate(rows),
        f"the clock ran {clock:.1f} times as long",
        f"second is the faster one from {faster} on",
        f"changes from one to the other behind {last} layers of 32",
        f"4,950 pairs, {4950 / math.comb(40, 2):.1f} times the work of 40 classes",
        f"sends {sent:.1f} MiB for 784-128-128-10",
        f"at 1 GiB/s and 64 ranks {1e3 * 6 * sent / 1024:.0f} ms",
        f"{one['cpu_seconds']:.3f} and {two['cpu_seconds']:.3f} processor seconds of rank 0",
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_figure_of_the_page_on_cost_is_that_of_its_record(number: int) -> None:
    page = PAGES["docs/cost.md"]
    assert figures_of_cost()[number] in (page if number == 0 else page.replace("\n", " "))


@pytest.mark.parametrize(
    ("contender", "shown"),
    [
        ("ADMM, MaxMin", "ADMM, MaxMin (4 steps a round)"),
        ("ADMM, MaxMin, 8 steps a round", "ADMM, MaxMin, 8 steps a round"),
        ("torchlip, MaxMin", "torchlip, MaxMin"),
        ("orthogonium, MaxMin", "orthogonium (AOC), MaxMin"),
        ("ADMM, ReLU, modules", "ADMM, ReLU, modules"),
        ("ADMM, ReLU, a ball per layer", "ADMM, ReLU, a ball per layer"),
    ],
)
def test_convolutions_beside_those_of_others_are_as_recorded(contender: str, shown: str) -> None:
    rows = rows_of("image_peers", contender=contender, data="mnist", validation=False)
    line = next(x for x in PAGES["docs/results.md"].splitlines() if x.startswith(f"| {shown} |"))
    clean, certified = mean(rows, "clean"), mean(rows, "certified")
    assert f"{clean:.1f} / {certified:.1f}" in line
    assert line.endswith(f"| {mean(rows, 'ratio'):.1f} |")


def test_every_benchmark_that_the_site_names_has_its_record() -> None:
    from benchmarks.__main__ import BENCHMARKS

    results = PAGES["docs/results.md"]
    named = {name for name in BENCHMARKS if f"`{name}`" in results}
    assert len(named) > 15
    for name in named:
        assert (ROOT / "benchmarks/results" / f"{name}.json").exists(), name
