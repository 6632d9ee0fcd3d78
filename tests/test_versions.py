"""The versions that were tested satisfy what pyproject.toml asks for, and CI runs what it says."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import subprocess
import tomllib

import pytest
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    *map(Requirement, PROJECT["dependencies"]),
    *(Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts),
]
LINES = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
LOCK = dict(line.split("==") for line in LINES)


def test_a_lock_is_names_and_versions_alone() -> None:
    """It names no path, and no version that only one machine has."""
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert sorted(LOCK) == list(LOCK)
    assert len(LOCK) == len(LINES)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lock_has_a_version_in_every_range(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert name in LOCK, f"constraints.txt does not have {name}"
    assert requirement.specifier.contains(LOCK[name]), f"constraints.txt has {name} {LOCK[name]}"


def needed_here() -> set[str]:
    """Return what the requirements install on this machine, directly or not, and on clusters."""
    waiting, found = [*REQUIREMENTS, Requirement("ray[default]")], set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed
            needs = map(Requirement, importlib.metadata.requires(name) or ())
            if (name, extras) not in found:
                found.add((name, extras))
                waiting += [each for each in needs if _applies(each, extras)]
    return {name for name, _ in found}


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def test_the_lock_has_everything_that_these_need_in_turn() -> None:
    needed = needed_here()
    assert {"torch", "alembic"} <= needed, "the second is needed by what the project needs"
    assert ("botocore" in needed) == _installed("s3fs"), "an extra that is installed needs others, too"
    assert needed <= LOCK.keys(), f"constraints.txt does not have {sorted(needed - LOCK.keys())}"


def test_the_readme_says_which_versions_were_tested() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    oldest = {each.name: str(next(iter(each.specifier)).version) for each in REQUIREMENTS if each.name == "torch"}
    assert f"PyTorch {LOCK['torch']}" in text
    assert re.search(rf"PyTorch {re.escape(oldest['torch'])}\.\d", text)
    assert "-c constraints.txt" in text


def test_ci_finds_the_oldest_versions_in_pyproject() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(r"pins=\$\((sed .*)\)", script)
    pins = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ranges = {each.name: each.specifier for each in REQUIREMENTS}
    assert [pin.partition("==")[0] for pin in pins] == ["torch", "torchvision"]
    for pin in pins:
        name, _, version = pin.partition("==")
        assert f">={version.removesuffix('.*')}" == str(ranges[name])
        assert Version(version.removesuffix(".*")) <= Version(LOCK[name])


@pytest.mark.parametrize("name", ["run", "style"])
def test_ci_is_scripts_that_bash_can_read(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / name)], check=True)


def test_ci_checks_style_by_the_command_that_contributors_run() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f".ci/style {part}" in script for part in ("lint", "types"))
    assert "bash .ci/style" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
