"""The base install does the work, and what needs an extra says which, on one line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import admm_lip
from admm_lip.commands.plot import draw_if_possible
from admm_lip.extras import EXTRAS, MissingExtra, extra
from admm_lip.records import create_run

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Names of the table that the package index writes in another way.
INDEX_NAMES = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn"}
# Only tests need these; they hide with the extras, so that nothing leans on them unseen.
OF_TESTS = ("onnxruntime", "onnxscript", "skl2onnx", "skorch")

# Packages that no finder finds are not installed, for everything in the interpreter.
HIDING = f"""
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {[*EXTRAS, *OF_TESTS]!r}
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

WORK = """
import torch, admm_lip
from admm_lip import *
from admm_lip.data import load_data
assert all(getattr(admm_lip, name) for name in admm_lip.__all__)
data = load_data("digits")
net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.ReLU(), torch.nn.Linear(4, 10))
verify(certify(net), net)
pairs = certify(net, kind="pairwise", progress=False)
assert certified_radii(net, *data.test, certificate=pairs).isfinite().all()
assert project(net, bound=0.5).certificate.lip <= 0.5
result = train(net, data.train, TrainConfig(bound=1.0, epochs=1))
verify(result.certificate, result.model)
again = certify(net, solver=SolverConfig("scs", fallback=("native",)))
assert again.solver == "native", again.solver
"""

# What needs each package of the table; a list is what is typed after ``admm-lip``.
NEEDS: dict[str, str | list[str]] = {
    "cvxpy": 'certify(net, solver=SolverConfig("clarabel", fallback=()))',
    "clarabel": 'certify(net, solver=SolverConfig("clarabel", fallback=()))',
    "scs": 'project(net, bound=1.0, solver=SolverConfig("scs", fallback=()))',
    "mosek": 'certify(net, solver=SolverConfig("mosek", fallback=()))',
    "onnx": ["verify", "net.onnx"],
    "jsonargparse": ["train"],
    "yaml": 'from admm_lip.records import create_run; create_run("new", {})',
    "matplotlib": ["plot", "run"],
    "PIL": 'load_data("images:run")',
    "sklearn": "import admm_lip.sklearn",
    "joblib": "from admm_lip.parallel import workers_of; workers_of(2)",
    "pandas": "result.to_frame()",
    "huggingface_hub": 'from admm_lip.hub import from_hub; from_hub("owner/name")',
}

REFUSALS = f"""
import contextlib, io, json
from admm_lip.cli import main
said = {{}}
for name, need in {NEEDS!r}.items():
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            code = main(need) if isinstance(need, list) else exec(need)
        except Exception as error:
            print(f"{{type(error).__name__}}: {{error}}", file=errors)
    said[name] = errors.getvalue()
print(json.dumps(said))
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDING + code],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said where a package of the table is missing, after the work that needs none."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").touch()
    (folder / "net.onnx").touch()
    found: dict[str, str] = json.loads(run(WORK + REFUSALS, folder))
    return found


def test_the_base_certifies_verifies_projects_and_trains(said: dict[str, str]) -> None:
    assert said.keys() == EXTRAS.keys()


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_package_is_one_line_with_its_extra(module: str, said: dict[str, str]) -> None:
    (line,) = said[module].splitlines()
    assert f'install it with: pip install "admm-lip[{EXTRAS[module][0]}]"' in line
    assert re.search(r"needs \w+, which is not installed|\w+ is not installed", line)


def test_another_missing_module_is_not_taken_for_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught, extra():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)


def test_a_run_does_not_fail_for_want_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "admm_lip.plots", raising=False)
    monkeypatch.delattr(admm_lip, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_if_possible(create_run(tmp_path / "run", {})) == []
    said = capsys.readouterr().out
    assert said.startswith("no plots: drawing plots needs matplotlib, which is not installed")
    assert f"admm-lip plot {tmp_path / 'run'}" in said


# Files whose import of an extra is guarded elsewhere, and the package.
_ESTIMATORS = ("estimator", "classifier", "regressor")
GUARDED = {
    ("solvers/cvxpy_.py", "mosek"),
    *((f"admm_lip/sklearn/{name}.py", "sklearn") for name in _ESTIMATORS),
}


def test_what_an_extra_brings_is_imported_where_its_absence_is_named() -> None:
    paths = [path for home in ("admm_lip", "solvers") for path in (ROOT / home).rglob("*.py")]
    bare = {
        (path.relative_to(ROOT).as_posix(), package)
        for path in paths
        for package in unguarded(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert bare == GUARDED


def test_an_unguarded_import_is_seen() -> None:
    guarded = "with extra():\n  import onnx\nif TYPE_CHECKING:\n  import cvxpy\n"
    code = f"{guarded}def f():\n  import yaml\n"
    assert set(unguarded(ast.parse(code))) == {"yaml"}


def unguarded(tree: ast.AST) -> Iterator[str]:
    """Packages of the table that are imported outside ``with extra()`` and ``TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        guards = node.items if isinstance(node, ast.With) else ()
        if any(ast.unparse(guard) == "extra()" for guard in guards):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        yield from {name.partition(".")[0] for name in names} & EXTRAS.keys()
        yield from unguarded(node)


def test_the_extras_bring_what_the_table_says() -> None:
    offered = PROJECT["optional-dependencies"]
    named = {
        name: {re.match(r"[\w-]+", line)[0] for line in lines} for name, lines in offered.items()
    }
    for module, (name, _) in EXTRAS.items():
        assert INDEX_NAMES.get(module, module) in named[name]
    everything = re.match(r"admm-lip\[(.*)\]", offered["all"][0])
    assert set(everything[1].split(",")) == {name for name, _ in EXTRAS.values()}
    base = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert base == {"torch", "numpy", "scipy", "safetensors", "tqdm", "threadpoolctl"}
