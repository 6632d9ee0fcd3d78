"""The house: imports go one way, planning needs no heavy library, and every library has its place."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from checkout import ROOT

ALLOWED: dict[str, set[str]] = {
    "search_spaces": {"trainables"},  # only what is light, see TORCH_FREE
    "trainables": set(),
    "analysis": {"trainables"},
    "study": {"search_spaces", "trainables", "analysis"},
}
"""Package -> the other packages of the project that it may import."""

PLACES: dict[str, tuple[str, ...]] = {
    "ray": ("trainables/tune.py", "study/"),
    "mlflow": ("study/tracking/mlflow_runs.py", "analysis/"),
    "torch": ("trainables/", "study/benchmark/"),
    "scipy": ("trainables/", "analysis/"),
    "pandas": ("analysis/",),
    "matplotlib": ("analysis/",),
    "rich": ("study/",),
}
"""Library -> the files, or folders, that may import it."""

TORCH_FREE = (
    "search_spaces",
    "trainables",
    "trainables.checks",
    "trainables.config",
    "trainables.data",
    "trainables.storage.documents",
    "trainables.errors",
    "trainables.graph",
    "trainables.knobs",
    "trainables.methods",
    "trainables.models",
    "trainables.host.places",
    "trainables.host.redaction",
    "trainables.training.schedule",
    "trainables.schema",
    "trainables.seeding",
    "trainables.storage.store",
    "study.estimate",
    "study.fastest",
    "study.tracking.labels",
    "study.tracking.destination",
    "study.plan",
    "study.run",
    "study.tracking.mlflow_runs",
    "study.tracking.delivery",
)
"""Modules that a plan is made with; importing them must cost next to nothing."""

HEAVY = {"torch", "ray", "mlflow", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "safetensors"}


NEEDS_A_USER = {"home", "expanduser", "getuser", "getpwuid"}
"""Attributes that raise where the machine does not know the user; ``os.path.expanduser`` does not."""


def files() -> list[Path]:
    return sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


MODULES = {module_name(path): path for path in files()}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()}
IDS = [place(path) for path in TREES]


def names(statement: ast.stmt) -> Iterator[str]:
    """Yield what an import statement loads, as `package.module` where the project has such a module."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        assert statement.module, "import by the full name, which can be searched for"
        assert not statement.level, "import by the full name, which can be searched for"
        for alias in statement.names:
            full = f"{statement.module}.{alias.name}"
            yield full if full in MODULES else statement.module


def imported_anywhere(path: Path) -> set[str]:
    return {name for node in ast.walk(TREES[path]) if isinstance(node, ast.stmt) for name in names(node)}


def imported_on_import(path: Path) -> set[str]:
    """Return what is loaded when the module is: not what its functions import, nor what only type checkers see."""

    def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
                yield from statements(statement.orelse)
                continue
            yield statement
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(statement, field, ()))

    return {name for statement in statements(TREES[path].body) for name in names(statement)}


def top(name: str) -> str:
    return name.partition(".")[0]


# --- arrows ---------------------------------------------------------------------------------------------------------
def test_the_packages_are_the_ones_of_the_drawing() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(ALLOWED), "say in ALLOWED of this file what the new package may import"


@pytest.mark.parametrize("path", TREES, ids=IDS)
def test_imports_between_packages_follow_the_arrows(path: Path) -> None:
    package = top(module_name(path))
    foreign = {name for name in imported_anywhere(path) if top(name) in ALLOWED and top(name) != package}
    wrong = sorted(name for name in foreign if top(name) not in ALLOWED[package])
    assert not wrong, (
        f"{place(path)} imports {', '.join(wrong)}, but {package} may import only "
        f"{', '.join(sorted(ALLOWED[package])) or 'itself'}: move what both need to where the arrows lead"
    )


@pytest.mark.parametrize("path", TREES, ids=IDS)
def test_libraries_are_imported_in_their_places(path: Path) -> None:
    for library in {top(name) for name in imported_anywhere(path)} & PLACES.keys():
        assert place(path).startswith(PLACES[library]), (
            f"{place(path)} imports {library}, which belongs into {', '.join(PLACES[library])} only: "
            f"call what is there, or extend PLACES of this file if {library} has found another place for good"
        )


@pytest.mark.parametrize("path", [path for path in TREES if place(path).startswith("search_spaces/")], ids=place)
def test_search_spaces_are_pure_data(path: Path) -> None:
    foreign = (
        {top(name) for name in imported_anywhere(path)} - sys.stdlib_module_names - {"search_spaces", "trainables"}
    )
    assert not foreign, f"{place(path)} imports {sorted(foreign)}: a search space needs no library"


def test_no_module_imports_itself_through_others() -> None:
    arrows = {
        name: {target for target in imported_on_import(path) if target in MODULES and target != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, (
            f"a cycle of imports: {' -> '.join((*trail[trail.index(name) :], name))}; "
            "move what they share to a module of its own"
        )
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


# --- what planning needs --------------------------------------------------------------------------------------------
def loaded_by(modules: Iterable[str]) -> dict[str, list[str]]:
    """Return which heavy libraries are loaded after each module, imported one after the other by a new process."""
    program = (
        "import importlib, json, sys\nheavy, loaded = set(json.loads(sys.argv[1])), {}\n"
        "for name in json.loads(sys.argv[2]):\n"
        "    importlib.import_module(name)\n    loaded[name] = sorted(heavy & sys.modules.keys())\n"
        "print(json.dumps(loaded))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, json.dumps(sorted(HEAVY)), json.dumps(list(modules))],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "agg"},
        check=True,
        capture_output=True,
        text=True,
    )
    loaded: dict[str, list[str]] = json.loads(answer.stdout)
    return loaded


def test_planning_loads_no_heavy_library() -> None:
    guilty = {name: libraries for name, libraries in loaded_by(TORCH_FREE).items() if libraries}
    assert not guilty, (
        f"{next(iter(guilty))} loads {', '.join(next(iter(guilty.values())))}, itself or through what it imports: "
        "import it inside the function that needs it, or under TYPE_CHECKING"
    )


def test_the_public_trainables_are_loaded_on_first_use() -> None:
    assert loaded_by(["trainables", "trainables.training.schedule"])["trainables.training.schedule"] == []
    source = (ROOT / "trainables" / "__init__.py").read_text(encoding="utf-8")
    assert all(name in source for name in ("LTH", "Dense", "Naive", "Permuted"))


def test_analysis_loads_neither_torch_nor_ray() -> None:
    loaded = loaded_by(name for name in MODULES if top(name) == "analysis")
    guilty = {name for name, libraries in loaded.items() if {"torch", "ray"} & set(libraries)}
    assert not guilty, f"{min(guilty)} loads torch or ray: results are read on machines that have neither"


# --- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", TREES, ids=IDS)
def test_a_file_is_named_after_what_it_is_about(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}, (
        f"{place(path)}: name the file after the one thing that it is about, and let the rest move to where it is used"
    )


@pytest.mark.parametrize("path", TREES, ids=IDS)
def test_nothing_is_imported_by_star(path: Path) -> None:
    stars = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert not stars, f"{place(path)} line {stars[0].lineno}: import by name, so that a reader finds where it is from"


def test_the_rules_of_this_file_find_what_they_look_for() -> None:
    # A rule that never fires may simply be blind.
    assert "ray" in {top(name) for name in imported_anywhere(ROOT / "trainables" / "tune.py")}
    assert "mlflow" in {top(name) for name in imported_anywhere(ROOT / "study" / "tracking" / "mlflow_runs.py")}
    assert "mlflow" not in {top(name) for name in imported_on_import(ROOT / "study" / "tracking" / "mlflow_runs.py")}
    assert "trainables.schema" in imported_on_import(ROOT / "study" / "run.py")  # from trainables import schema
    assert "study.progress" in imported_anywhere(SWEEP) - imported_on_import(SWEEP)
    assert "torch" in loaded_by(["trainables.storage.artifacts"])["trainables.storage.artifacts"]


def test_only_one_file_asks_who_the_user_is() -> None:
    for path, tree in TREES.items():
        if place(path) == "trainables/host/places.py":
            continue
        asked = {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in NEEDS_A_USER and ast.unparse(node.value) != "os.path"
        }
        assert not asked, f"{place(path)} raises for a user without a home: {asked}"
