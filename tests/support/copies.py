"""Copies of the project that a test may edit, to show what a change costs and what it reaches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from checkout import ROOT
from waiting import HANG_SECONDS

PACKAGES: Final = ("search_spaces", "trainables", "study", "analysis")


@dataclass(frozen=True)
class Copy:
    """A copy of the project's packages.

    Attributes:
        root: where it lies; processes started by :meth:`run` import the packages from there.
        folder: where those processes start, and leave their results.
    """

    root: Path
    folder: Path

    def insert(self, file: str, text: str, *, after: str) -> None:
        """Insert text behind a passage that the file has exactly once."""
        path = self.root / file
        source = path.read_text(encoding="utf-8")
        assert source.count(after) == 1, f"{file} has {after!r} {source.count(after)} times"
        path.write_text(source.replace(after, after + text), encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        """Add a file."""
        path = self.root / file
        assert not path.exists(), file
        path.write_text(text, encoding="utf-8")

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run Python in the copy, expect an exit code, and return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout


def copy_project(folder: Path) -> Copy:
    """Return a fresh copy of the project in a subfolder of `folder`."""
    root, work = folder / "project", folder / "work"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "images"))
    work.mkdir()
    return Copy(root, work)
