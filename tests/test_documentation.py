"""What the documentation prints exists: pages, links, commands, options, settings, names and numbers."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
from checkout import ROOT, SUPPORT
from pages import GUIDE, PAGES, README, relative
from pinned_keys import planned

import trainables
from analysis.figures.table import FIGURES
from search_spaces import RECIPES, SPACES, SearchSpace, get_space
from study.plan import override
from trainables.data import DATASETS
from trainables.knobs import SETTINGS, markdown
from trainables.methods import MATCHERS, METHODS

PACKAGES = ("search_spaces", "trainables", "study", "analysis")
LONGEST_README = 200
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
OFFLINE = ("--list", "--help", "--status", "--dry-run")
"""Commands with one of these words train nothing, so they are run, where the data come with a library."""
PLACEHOLDERS = {"NAME", "DIR", "URI"}
"""Names in backticks that stand for what a user chooses."""

each_page = pytest.mark.parametrize("path", PAGES, ids=relative)


# --- links ------------------------------------------------------------------------------------------------------------
def broken_links(path: Path, text: str) -> Iterator[str]:
    for link in pages.links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in pages.anchors(target.read_text(encoding="utf-8")):
            yield f"{link}: no such heading"


@each_page
def test_every_link_leads_somewhere(path: Path) -> None:
    assert list(broken_links(path, TEXTS[path])) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        path = waiting.pop()
        if path not in reached and path in TEXTS:
            reached.add(path)
            waiting += [(path.parent / link.partition("#")[0]).resolve() for link in pages.links(TEXTS[path])]
    assert reached == set(PAGES)


# --- commands ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def understood(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Command -> what its own parser says of it, for every command on a page."""
    found = [command for text in TEXTS.values() for command in [*printed(text), *mentioned(text)]]
    return answers(found, tmp_path_factory.mktemp("commands"))


def printed(text: str) -> list[list[str]]:
    """Return the commands that a reader copies."""
    return pages.commands(pages.blocks(text, "sh"))


def mentioned(text: str) -> list[list[str]]:
    """Return the commands within sentences, which may leave arguments out."""
    return pages.commands(pages.inline_code(text))


def answers(commands: list[list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    given, answered = folder / "commands.json", folder / "answers.json"
    given.write_text(json.dumps(commands), encoding="utf-8")
    run_python(str(SUPPORT / "parse_commands.py"), str(given), str(answered), folder=folder)
    found = json.loads(answered.read_text(encoding="utf-8"))
    return {" ".join(command): answer for command, answer in zip(commands, found, strict=True)}


def run_python(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def wrong_settings(given: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the space and the settings of a command."""
    try:
        if given.get("space") in SPACES:
            override(get_space(given["space"]), given.get("set") or [])
        elif given.get("space"):
            get_space(given["space"])
    except ValueError as error:
        yield str(error)


@each_page
def test_every_command_is_understood(path: Path, understood: dict[str, dict[str, Any]]) -> None:
    for command in map(" ".join, [*printed(TEXTS[path]), *mentioned(TEXTS[path])]):
        error = understood[command]["error"]
        is_part = command.split() in mentioned(TEXTS[path]) and "arguments are required" in error
        assert is_part or not error, f"{command}: {error}"
        assert list(wrong_settings(understood[command]["given"])) == [], command


def offline_commands() -> list[list[str]]:
    found = [command for text in TEXTS.values() for command in printed(text) if set(command) & set(OFFLINE)]
    local = [command for command in found if not any("://" in word or word == "--data-dir" for word in command)]
    return [json.loads(text) for text in sorted({json.dumps(command) for command in local})]


@pytest.mark.parametrize("command", offline_commands(), ids=" ".join)
def test_commands_that_start_nothing_run(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()  # as a study leaves it
    assert run_python("-m", *command, folder=tmp_path)


def test_the_readme_shows_how_to_look_before_anything_starts() -> None:
    assert {word for command in offline_commands() for word in command} >= {"--list", "--status", "--dry-run"}


# --- names in backticks -----------------------------------------------------------------------------------------------
def unknown_names(path: Path, text: str, options: set[str]) -> Iterator[str]:
    """Yield each name in backticks that the project does not have."""
    fields = {*SETTINGS, "recipe"}
    for code in pages.inline_code(text):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)}|tests|docs|\.ci)/[\w./{{}},-]*", code):
            if not all((ROOT / each).exists() for each in _expanded(code)):
                yield code
        elif re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+", code):
            if not _is_defined(code):
                yield code
        elif re.fullmatch(r"[A-Z][A-Z_]+", code):
            if path != GUIDE and code not in PLACEHOLDERS and not _is_constant(code):
                yield code
        elif match := re.match(r"([a-z_]+)=[\w.]+$", code):
            if match[1] not in fields:
                yield code
        elif path != GUIDE and (match := re.match(r"(--[a-z-]+)", code)) and match[1] not in options:
            yield code


def _expanded(code: str) -> list[str]:
    """Return the paths that ``a/{b,c}`` stands for."""
    before, brace, rest = code.partition("{")
    inside, _, after = rest.partition("}")
    return [before + each + after for each in inside.split(",")] if brace else [code]


def _is_defined(name: str) -> bool:
    module, names = name, list[str]()
    while module:
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            found = None
        if found is None or not Path(found.__file__).is_relative_to(ROOT):  # another version may be installed
            module, _, last = module.rpartition(".")
            names.insert(0, last)
            continue
        for each in names:
            if not hasattr(found, each):
                return False
            found = getattr(found, each)
        return True
    return False


def _is_constant(name: str) -> bool:
    sources = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return any(
        re.search(rf"^(?:class )?{name}\b|\"{name}\"", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for file in sources
    )


@each_page
def test_every_name_in_backticks_exists(path: Path, understood: dict[str, dict[str, Any]]) -> None:
    options = {option for answer in understood.values() for option in answer["options"]}
    assert list(unknown_names(path, TEXTS[path], options)) == []


@each_page
def test_examples_import_what_there_is(path: Path) -> None:
    for code in pages.blocks(TEXTS[path], "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
                assert all(_is_defined(f"{node.module}.{alias.name}") for alias in node.names), ast.unparse(node)


def test_the_example_of_masks_and_permutations_runs(tmp_path: Path) -> None:
    (example,) = (code for code in pages.blocks(TEXTS[ROOT / "docs" / "library.md"], "python") if "build_model" in code)
    assert run_python("-c", example, folder=tmp_path).strip().startswith("0.9")


@pytest.mark.slow
def test_the_example_of_a_tuner_runs(tmp_path: Path) -> None:
    (example,) = (code for code in pages.blocks(TEXTS[ROOT / "docs" / "library.md"], "python") if "Tuner" in code)
    setting = '"rewind_epoch": 10'
    assert setting in example
    shorter = example.replace(setting, f'{setting}, "epochs": 12, "imp_epochs": 1, "prune_fraction": 0.5')
    shown = run_python("-c", shorter, folder=tmp_path)
    assert len(re.findall(r"^[01] .* 0\.95", shown, flags=re.MULTILINE)) == 2, shown


# --- tables -----------------------------------------------------------------------------------------------------------
def first_cells(text: str) -> set[str]:
    return set(re.findall(r"^\| `([\w]+)`", text, flags=re.MULTILINE))


def test_the_readme_has_every_space_with_its_cost() -> None:
    rows = ["| space | question | jobs | epochs |", "|---|---|--:|--:|"]
    for space in SPACES.values():
        plan = planned(space)
        rows.append(f"| `{space.name}` | {space.question} | {len(plan.jobs):,} | {plan.epochs:,} |")
    printed = TEXTS[README].partition("<!-- spaces -->\n")[2].partition("\n\n")[0]
    assert printed.splitlines() == rows


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("[!_]*.py")), ids=relative)
def test_the_file_of_a_space_says_what_it_costs(path: Path) -> None:
    module = importlib.import_module(f"search_spaces.{path.stem}")
    for name, space in vars(module).items():
        if isinstance(space, SearchSpace) and f"\n{name} = " in path.read_text(encoding="utf-8"):
            plan = planned(space)
            numbers = set(re.findall(r"[\d,]*\d", module.__doc__ or ""))
            assert {f"{len(plan.jobs):,}", f"{plan.epochs:,}"} <= numbers, space.name


def test_the_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= LONGEST_README


def test_the_table_of_knobs_is_the_one_that_the_code_prints() -> None:
    assert TEXTS[ROOT / "docs" / "knobs.md"].partition("<!-- knobs -->\n")[2] == f"{markdown()}\n"


def test_pages_name_every_row_of_the_registries() -> None:
    docs = {path.stem: text for path, text in TEXTS.items() if path.parent.name == "docs"}
    assert first_cells(docs["method"].partition("## Sparsity")[0]) == METHODS.keys()
    assert first_cells(docs["report"]) == {"accuracy", *FIGURES}
    for page, names in (("method", MATCHERS), ("data", DATASETS), ("running", RECIPES), ("library", trainables.PUBLIC)):
        assert {name for name in names if f"`{name}`" not in docs[page]} == set(), page


# --- these tests can fail ---------------------------------------------------------------------------------------------
def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One heading\n", encoding="utf-8")
    text = "[a](nowhere.md) [b](page.md#one-heading) [c](page.md#other) ![d](none.png) [e](https://example.org)"
    assert [line.partition(":")[0] for line in broken_links(page, text)] == ["nowhere.md", "page.md#other", "none.png"]
    wrong = ["study/nothing.py", "trainables.nothing", "study.run.nothing", "NOTHING_LIKE_IT", "nothing=1", "--nothing"]
    right = ["study/run.py", "trainables/{jobs,models}", "study.run.main", "METHODS", "width=2", "--known", "text"]
    named = " ".join(f"`{code}`" for code in [*right, *wrong])
    assert list(unknown_names(page, named, {"--known"})) == wrong


def test_a_command_that_its_parser_refuses_is_found(tmp_path: Path) -> None:
    text = """```sh
python -m study.run --space NAME \\
  --nothing 1 && python -m study.nothing   # a comment
ray exec "python -m study.run --set nothing=1 --space digits_quickstart 2>&1 | tee log"
```
`python -m analysis.report --space NAME`"""
    commands = [*printed(text), *mentioned(text)]
    refused, missing, unknown, right = answers(commands, tmp_path).values()
    assert "--nothing" in refused["error"]
    assert "study.nothing" in missing["error"]
    assert unknown["error"] == right["error"] == ""
    assert "nothing" in next(wrong_settings(unknown["given"]))
    assert list(wrong_settings(right["given"])) == []
