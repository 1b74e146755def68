"""Recipes: settings by name, each certified at the radius that its first line says."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from admm_lip import cli
from admm_lip.commands import finish, recipes
from admm_lip.commands.arguments import UsageError
from admm_lip.commands.recipe_files import RECIPES, recipe_lines, recipe_table
from admm_lip.commands.run_options import check_device
from admm_lip.commands.train import parser
from admm_lip.networks.affine_torch import Elementwise
from admm_lip.networks.storage import load_network
from admm_lip.records import read_json, read_yaml
from admm_lip.research.comparators import METHODS

PAGE = Path(__file__).parents[2] / "docs/command_line.md"
_EVALUATED = ["--evaluate.samples", "10", "--evaluate.steps", "1", "--evaluate.restarts", "1"]
QUICK = ["--data", "digits", "--epochs", "1", *_EVALUATED]


@pytest.fixture(autouse=True)
def in_an_empty_folder_without_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finish, "draw_if_possible", lambda folder: None)


@pytest.fixture(params=sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def radius_said(recipe: Path) -> float:
    """The radius in the first line."""
    said = recipe_lines()[recipe.stem].partition("certified at l2 radius ")[2]
    return float(Fraction(said.partition(",")[0].removesuffix(".")))


def options_of(recipe: Path) -> Any:
    return parser().parse_args(["--config", str(recipe)])


def test_a_recipe_is_accepted_and_certifies_at_the_radius_that_it_says(recipe: Path) -> None:
    options = options_of(recipe)
    local = options.method == "local"
    radius = options.eps if local else options.evaluate.report_radius
    assert radius == pytest.approx(radius_said(recipe), rel=1e-12)
    if local:
        method = METHODS["local"](**options.method_settings)
        assert method.eps >= radius
        assert method.schedule(0.0) == (0.0, 1.0)
        assert method.schedule(0.5) == (method.eps, 0.0)  # the ramps of the paper end halfway
        assert options.convnet.name in recipe.stem.upper()
    else:
        assert (options.method, options.bound, options.loss) == ("admm", 1.0, "margin")
        network = options.model if options.model.hidden else options.convnet
        assert network.activation == "max_min"


def test_a_recipe_for_an_accelerator_says_that_it_was_not_tried(recipe: Path) -> None:
    made_for = options_of(recipe).device
    assert made_for == ("cuda" if recipe.stem.endswith("_gpu") else "cpu")
    assert ("not tried" in recipe.read_text()) == (made_for == "cuda")


def test_the_page_of_the_command_line_lists_the_recipes() -> None:
    assert recipe_table() in PAGE.read_text()
    assert recipe_table() in parser().format_help()


def test_a_recipe_reports_at_its_own_radius() -> None:
    convnet = ["--convnet.width", "0.125", "--shift", "0", "--mirror", "false"]
    words = ["--recipe", "cifar10_36_255", *convnet, *QUICK, "--quiet"]
    assert cli.main(["train", "--run-dir", "run", *words]) == 0
    summary = read_json(Path("run/summary.json"))
    assert summary["evaluation"]["report_radius"] == 36 / 255
    assert summary["bounds"]["lip"] <= 1.0
    assert cli.main(["verify", "run"]) == 0  # the layer that takes the mean away included
    assert load_network("run").layers[0].kind == "elementwise"


def test_the_mean_picture_is_taken_away_under_a_bound_unless_told_otherwise() -> None:
    def first(*words: str) -> torch.nn.Module:
        options = parser().parse_args([*QUICK, "--convnet.name", "2C2F", *words])
        job = recipes.prepare(options.as_dict())
        assert isinstance(job.model, torch.nn.Sequential)
        x = job.data.train[0]
        if isinstance(job.model[0], Elementwise):
            assert job.model[0](x).mean(dim=0).abs().max() < 1e-6
        return job.model[0]

    assert isinstance(first(), Elementwise)
    assert not isinstance(first("--centre", "false"), Elementwise)
    assert not isinstance(first("--method", "nominal"), Elementwise)


def test_a_device_that_is_not_here_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.main(["train", "--run-dir", "run", "--device", "cuda", *QUICK]) == 2
    assert "device: expected one of cpu on this machine, got 'cuda'" in capsys.readouterr().err
    assert not Path("run").exists()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [check_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(UsageError, match="cpu, cuda, cuda:0, cuda:1 on this machine, got 'meta'"):
        check_device("meta")


def test_a_network_is_put_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "check_device", lambda name: name)
    for net in (["--convnet.name", "2C2F"], []):
        options = parser().parse_args([*QUICK, *net, "--device", "meta"])
        job = recipes.prepare(options.as_dict())
        assert {p.device.type for p in job.model.parameters()} == {"meta"}
        assert job.settings["device"] == "meta"


def test_a_run_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["train", "--run-dir", "run", *QUICK, "--quiet"]) == 0
    kept = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(kept.replace("\ndevice: cpu\n", "\ndevice: cuda:7\n"))
    assert cli.main(["train", "--resume", "run", "--epochs", "2"]) == 2
    assert "got 'cuda:7'" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run", "--epochs", "2", "--device", "cpu"]) == 2
    assert "is a run with device 'cuda:7', not 'cpu'" in capsys.readouterr().err
    Path("run/config.yaml").write_text(
        kept.replace("\ndevice: cpu\n", "\n")
    )  # of an earlier version
    assert cli.main(["train", "--resume", "run", "--epochs", "2", "--quiet"]) == 0
    assert read_yaml(Path("run/config.yaml"))["device"] == "cpu"
