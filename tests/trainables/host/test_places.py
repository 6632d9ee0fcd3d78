"""A machine that does not know the user: no HOME, no entry in /etc/passwd."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.host import places

UNKNOWN = """
import os, pwd
for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def missing(_):
    raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = missing
"""


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The test runs as a user whom nobody knows; the directory of temporary files."""

    def missing(_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", missing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_an_unknown_user_has_a_place_for_what_can_be_made_again(unknown: Path) -> None:
    with pytest.raises(RuntimeError):
        Path.home()
    assert places.expanded("~/data") == Path("~/data")
    folder = places.first_writable(places.cache_folders(), "this")
    assert folder.parent == unknown
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_unknown_user_gets_a_home_and_a_name(unknown: Path) -> None:
    places.settle()
    assert Path.home().is_dir()
    assert unknown in Path.home().parents
    assert getpass.getuser() == f"uid{os.getuid()}"


def test_a_known_user_keeps_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("LOGNAME", "somebody")
    before = dict(os.environ)
    places.settle()
    assert dict(os.environ) == before


def test_a_folder_is_named_by_a_path_or_a_uri() -> None:
    assert places.folder_of("~/a%20b?c#d") == Path("~/a%20b?c#d")
    assert places.folder_of("file:///a%20b?c#d") == Path("/a b?c#d")
    assert places.folder_of("s3://bucket/prefix") is None
    assert places.located("file:///a%20b?c#d") == "/a b?c#d"


def test_the_users_cache_comes_before_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.first_writable(places.cache_folders(), "this") == tmp_path / "cache" / places.CACHE
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert places.first_writable(places.cache_folders(), "this") == places.temporary_folder()


def test_a_folder_of_somebody_else_is_not_trusted(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unknown / "target").mkdir()
    places.temporary_folder().symlink_to(unknown / "target")
    with pytest.raises(ValueError, match="belongs to another user"):
        places.first_writable(places.cache_folders(), "this")
    places.settle()
    assert not Path.home().is_symlink()


@pytest.mark.parametrize("arguments", ["['--space', 'digits_quickstart', '--dry-run']", "['--list']"])
def test_an_unknown_user_can_plan(tmp_path: Path, arguments: str) -> None:
    program = f"{UNKNOWN}\nfrom study.run import main\nraise SystemExit(main({arguments}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
