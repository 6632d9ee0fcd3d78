"""A built wheel holds all that the commands need, and they work wherever it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from copies import PACKAGES
from tiny_study import assignments
from waiting import HANG_SECONDS

from search_spaces import get_space

pytestmark = pytest.mark.slow

SPACE = "digits_quickstart"
PICTURES = "analysis/images"
"""The README's pictures, which no command reads."""


def files(root: Path) -> set[str]:
    """Return the files of the project's packages below a folder."""
    found = (path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts and path.parent.as_posix() != PICTURES}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel, built from a copy of this checkout, is installed in."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found for setuptools" in built.stdout + built.stderr:
        pytest.skip("no package index to build with")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)], check=True)
    return target


def python(installed: Path, folder: Path, *arguments: str) -> str:
    """Run Python with the installed wheel, and nothing of this checkout, in a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    assert files(ROOT) == files(installed), "extend package-data in pyproject.toml"
    assert {Path(name).suffix for name in files(installed)} >= {".py", ".csv", ".cpp", ".json", ".yaml", ".sh"}


def test_the_commands_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = python(installed, tmp_path, "-c", "import study, trainables; print(study.__file__, trainables.__file__)")
    assert [Path(each).parents[1] for each in where.split()] == [installed, installed]
    assert "trials at a time" in python(installed, tmp_path, "-m", "study.run", "--space", SPACE, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    settings = [f"--set={each}" for each in assignments(get_space(SPACE))]
    said = python(installed, tmp_path, "-m", "study.run", "--space", SPACE, *settings, "--cpus-per-trial", "0.5")
    assert "jobs run, 0 were published before" in said
    page = python(installed, tmp_path, "-m", "analysis.report", "--space", SPACE).strip()
    assert "Does" in (tmp_path / page).read_text(encoding="utf-8")
    assert python(installed, tmp_path, "-m", "study.benchmark", "table").count("|") > 10
