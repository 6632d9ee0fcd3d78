"""The house: imports go one way, planning needs no heavy library, and every library has its place."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
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
    "mlflow": ("study/tracking/experiment.py", "study/tracking/mlflow_runs.py", "analysis/"),
    "torch": ("trainables/", "study/benchmark/"),
    "scipy": ("trainables/", "analysis/"),
    "pandas": ("analysis/", "study/tracking/stored_runs.py"),
    "matplotlib": ("analysis/",),
    "rich": ("study/",),
}
"""Library -> the files, or folders, that may import it."""

LATE: dict[str, str] = {
    "analysis.command": "pandas and matplotlib are not for --help",
    "analysis.drawing.files": "matplotlib is not for tables",
    "analysis.report": "pandas and matplotlib are not for --help",
    "study.benchmark.__main__": "torch is not for --help and the printed table",
    "study.benchmark.sweep": "ray, once its environment has been set",
    "study.outcome": "pandas, once a study has ended well",
    "study.run": "torch, once --fastest has something to measure",
    "study.scheduling.placement": "torch, for the memory of jobs on GPUs",
    "study.scheduling.session": "torch, on a node that is asked for its GPUs",
    "study.sweep": "ray, once its environment has been set; rich, once there is something to show",
    "study.tracking.cell_runs": "pandas and matplotlib, once there are results to average",
    "trainables.data.__main__": "torchvision, where something is downloaded",
    "trainables.storage": "the library of a file system, where an object store is used",
}
"""Module -> why its functions import modules of the project. All others import at their top, where a reader looks."""

MOST_FILES = 15
CROWDED: dict[str, str] = {
    "analysis/figures": "one file for each figure or table",
}
"""Folder -> why it may have more than MOST_FILES modules."""

TWINS: dict[frozenset[str], str] = {
    frozenset({"store", "storage"}): "results by key, and the file systems below them",
    frozenset({"training", "train"}): "the wing that trains epochs, and the jobs that consist of such epochs",
    frozenset({"scheduling", "schedule"}): "the wing that orders jobs, and the learning rate by epoch",
    frozenset({"host", "hosts"}): "the wing for the machine of a process, and the nodes that trials run on",
    frozenset({"stats", "states"}): "statistics, and what a job is doing",
    frozenset({"labels"}): "how MLflow's runs are called, and how figures call what they show",
}
"""Names of modules that differ by no more than an ending -> why they may."""
NAMED_AFTER_OTHERS = ("analysis/figures/", "study/benchmark/", "search_spaces/")
"""Folders whose files are named after what they draw, measure or ask about."""
ENDINGS = re.compile(r"(ing|ed|es|er|e|s|age)$")

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
    "trainables.host.clock",
    "trainables.host.places",
    "trainables.host.redaction",
    "trainables.training.engines",
    "trainables.training.schedule",
    "trainables.training.way",
    "trainables.schema",
    "trainables.seeding",
    "trainables.storage.store",
    "study.benchmark.gpu.command",
    "study.estimate",
    "study.fastest",
    "study.tracking.cell_runs",
    "study.tracking.experiment",
    "study.tracking.labels",
    "study.tracking.destination",
    "study.plan",
    "study.run",
    "study.scheduling.simulation",
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


def imported_late(path: Path) -> set[str]:
    """Return the modules of the project that only functions import."""
    functions = (node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    statements = (node for function in functions for node in ast.walk(function) if isinstance(node, ast.stmt))
    inside = {name for statement in statements for name in names(statement)}
    return (inside & MODULES.keys()) - imported_on_import(path)


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in this order, the first one again at the end; empty if there are none."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for target in sorted(arrows[name]):
                if found := visit(target, (*trail, name)):
                    return found
            done.add(name)
        return []

    return next((found for name in arrows if (found := visit(name, ()))), [])


def test_no_module_imports_itself_through_others() -> None:
    arrows = {
        name: ((imported_on_import(path) & MODULES.keys()) | imported_late(path)) - {name}
        for name, path in MODULES.items()
    }
    found = cycle(arrows)
    assert not found, f"a circle of imports: {' -> '.join(found)}; move what they share to a module of its own"


def test_functions_import_modules_of_the_project_only_for_a_reason() -> None:
    late = {name: found for name, path in MODULES.items() if (found := imported_late(path))}
    unexplained = {name: sorted(found) for name, found in late.items() if name not in LATE}
    assert not unexplained, "import these at the top of the module, or name the reason in LATE of this file"
    assert not LATE.keys() - late.keys(), "these import nothing late any more: take them out of LATE"


@pytest.mark.parametrize("path", TREES, ids=IDS)
def test_only_engines_know_an_engine_by_name(path: Path) -> None:
    folder = "trainables.training.engines"
    if module_name(path) != folder and not module_name(path).startswith(f"{folder}."):
        named = {name for name in imported_anywhere(path) if name.startswith(f"{folder}.")}
        assert not named, f"{place(path)} imports {min(named)}: ask the engine that a way selects, see {folder}"


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


def test_analysis_loads_neither_torch_nor_ray() -> None:
    loaded = loaded_by(name for name in MODULES if top(name) == "analysis")
    guilty = {name for name, libraries in loaded.items() if {"torch", "ray"} & set(libraries)}
    assert not guilty, f"{min(guilty)} loads torch or ray: results are read on machines that have neither"


def test_a_gpu_is_measured_without_the_libraries_of_studies() -> None:
    todo, seen = [name for name in MODULES if name.startswith("study.benchmark.gpu")], set()
    while todo:
        if (name := todo.pop()) in MODULES and name not in seen:
            seen.add(name)
            found = imported_on_import(MODULES[name])
            assert not {top(each) for each in found} & {"ray", "mlflow", "rich", "matplotlib", "safetensors"}, name
            todo += found
    assert "trainables.training.loop" in seen


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


def test_a_folder_can_be_taken_in_at_a_glance() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in TREES if path.stem != "__init__")
    crowded = {folder for folder, count in counts.items() if count > MOST_FILES}
    assert crowded == CROWDED.keys(), "give what belongs together a folder, or keep CROWDED true"


def stem(name: str) -> str:
    """Return a module's name without the ending that makes it a plural, a participle or an actor."""
    return ENDINGS.sub("", name) if len(name) > 4 else name.removesuffix("s")


def test_names_of_modules_are_no_twins() -> None:
    twins: dict[str, list[Path]] = defaultdict(list)
    for path in TREES:
        if not place(path).startswith(NAMED_AFTER_OTHERS) and path.stem != "__main__":
            own = path.parent if path.stem == "__init__" else path.with_suffix("")
            twins[stem(own.name)].append(own.relative_to(ROOT))
    alike = {frozenset(each.name for each in found) for found in twins.values() if len(found) > 1}
    assert not alike - TWINS.keys(), "these sound alike: rename all but one, or say in TWINS of this file why they may"
    assert not TWINS.keys() - alike, "these are no twins any more: take them out of TWINS"


def test_the_rules_of_this_file_find_what_they_look_for() -> None:
    # A rule that never fires may simply be blind.
    assert "ray" in {top(name) for name in imported_anywhere(ROOT / "trainables" / "tune.py")}
    assert "mlflow" in {top(name) for name in imported_anywhere(ROOT / "study" / "tracking" / "mlflow_runs.py")}
    assert "mlflow" not in {top(name) for name in imported_on_import(ROOT / "study" / "tracking" / "mlflow_runs.py")}
    assert "trainables.schema" in imported_on_import(ROOT / "study" / "forecast.py")  # from trainables import schema
    assert "study.progress" in imported_late(ROOT / "study" / "sweep.py")
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert stem("runs") == stem("run")
    assert stem("published") == stem("publishing") == stem("publish")
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
