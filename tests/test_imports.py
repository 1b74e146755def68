"""Who may import whom, read from the source and from what an import really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "admm_lip"
SOLVERS = ROOT / "solvers"
STANDARD = set(sys.stdlib_module_names) | {"__future__"}


def imported(path: Path, at_import_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports, relative ones resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in _statements(tree, at_import_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _resolved(path, node)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def _statements(tree: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    """All nodes, or those outside functions and ``if TYPE_CHECKING``, which run at import."""
    for node in ast.iter_child_nodes(tree):
        yield node
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (at_import_only and deferred):
            yield from _statements(node, at_import_only)


def _resolved(path: Path, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    under_solvers = path.is_relative_to(SOLVERS)
    inside = path.relative_to(SOLVERS if under_solvers else ROOT).parent.parts
    package = ["admm_lip", "solvers", *inside] if under_solvers else list(inside)
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - {""}


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no source under {folder}"
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("import os.path\nfrom json import loads\ndef f():\n    import cvxpy as cp\n")
    assert imported(source) >= {"os.path", "json", "cvxpy"}
    assert "cvxpy" not in imported(source, at_import_only=True)
    inner = SOLVERS / "native" / "backend.py"
    assert {
        "admm_lip.solvers.config",
        "admm_lip.solvers.native.interior.interior_point",
    } <= imported(inner)


@pytest.mark.parametrize("path", files(SOLVERS), ids=relative)
def test_solvers_know_matrices_only(path: Path) -> None:
    names = imported(path)
    allowed = STANDARD | {"torch", "numpy", "scipy", "threadpoolctl", "admm_lip"}
    extras = {"cvxpy_.py": {"cvxpy", "mosek"}}
    assert roots(names) <= allowed | extras.get(path.name, set())
    own = {name for name in names if name.startswith("admm_lip")}
    own = {name for name in own if not name.startswith("admm_lip.extras")}
    assert all(name.startswith("admm_lip.solvers") for name in own), own


@pytest.mark.parametrize("path", files(PACKAGE), ids=relative)
def test_the_package_imports_neither_tests_nor_benchmarks(path: Path) -> None:
    assert not roots(imported(path)) & {"tests", "benchmarks", "oracles", "cvxpy", "mosek"}


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("cvxpy", "solvers/cvxpy_.py"),
        ("mosek", "solvers/cvxpy_.py"),
        ("onnx", "foreign/onnx_file.py"),
        ("matplotlib", "plots.py"),
    ],
)
def test_an_optional_library_is_imported_in_one_file_and_lazily(module: str, where: str) -> None:
    users = [p for p in (*files(PACKAGE), *files(SOLVERS)) if module in roots(imported(p))]
    assert all(relative(p).endswith(where) for p in users), [relative(p) for p in users]
    if module != "matplotlib":
        assert users
        assert not any(module in roots(imported(p, at_import_only=True)) for p in users)


# Every floor may import those below it, at import or later; what shares a floor keeps apart, or at
# least in one direction.
FLOORS = (
    ("errors", "extras", "float64", "lazy", "progress", "strict_json"),
    ("files", "parallel", "settings", "rounding", "units", "lipschitz"),
    ("data", "solvers", "plots", "result_plots", "shown"),
    ("networks",),
    ("foreign", "records"),
    ("certificates",),
    ("local", "sharing"),
    ("hub",),
    ("training",),
    ("evaluation", "predictions"),
    ("research",),
    ("api",),
    ("sklearn",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FACE = "admm_lip"


def test_no_room_imports_one_above_it() -> None:
    floor_of = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}
    graph = imports_of_files()
    rooms = {room(module) for module in graph} - {FACE}
    assert rooms == floor_of.keys()
    upward = [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others - {FACE}
        if module != FACE and floor_of[room(module)] < floor_of[room(other)]
    ]
    assert not upward, "\n".join(upward)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: others - {FACE} for module, others in imports_of_files().items()}
    try:
        order = tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) > 100


def imports_of_files() -> dict[str, set[str]]:
    """Of every module of the package, those of the package that it imports, deferred ones too."""
    paths = {module_name(path): path for path in (*files(PACKAGE), *files(SOLVERS))}
    found = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {name for node in ast.walk(tree) for name in _named(path, node, paths.keys())}
        found[module] = (named & paths.keys()) - {module}
    return found


def _named(path: Path, node: ast.AST, known: Collection[str]) -> Iterator[str]:
    """The modules that one statement names; of ``from package import module`` the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _resolved(path, node)
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in known else base


def module_name(path: Path) -> str:
    """The dotted name of a file; a package is its ``__init__``."""
    inside = path.is_relative_to(SOLVERS)
    parts = path.relative_to(SOLVERS if inside else ROOT).with_suffix("").parts
    whole = ("admm_lip", "solvers", *parts) if inside else parts
    return ".".join(whole[:-1] if whole[-1] == "__init__" else whole)


def room(module: str) -> str:
    """The part of the package that a module stands in."""
    return module.split(".")[1] if "." in module else module


def test_importing_the_solvers_loads_no_modelling_language() -> None:
    loaded = _loaded_by("import admm_lip.solvers, admm_lip.solvers.registry")
    assert not {"cvxpy", "mosek", "matplotlib", "clarabel", "scs"} & loaded


@pytest.mark.parametrize("module", ["api", "certificates.verify", "networks.network"])
def test_a_proof_is_checked_without_torch_or_a_solver(module: str) -> None:
    if not (PACKAGE / f"{module.replace('.', '/')}.py").exists():
        pytest.fail(f"admm_lip/{module}.py is missing")
    loaded = _loaded_by(f"import admm_lip.{module}")
    assert not {"torch", "cvxpy", "mosek"} & loaded
    assert not any(name.startswith("admm_lip.solvers") for name in loaded)


def _loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
