"""MLflow's databases: their URIs, why MLflow cannot use one, and reading many runs. Imports neither MLflow nor torch.

SQLAlchemy interprets the path in a URI: a ``?`` ends the path, and from version 2.1 on, ``%41`` stands for an A.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

DATABASE = "mlflow.db"
"""Name of the database file in a study's local storage."""
ARTIFACTS = "mlartifacts"
"""Folder beside a database in which studies keep the artifacts of their runs."""
LOCK_SECONDS = 30.0
"""Maximum wait of a reader while a study writes to the same file."""
DELETED = "deleted"
"""MLflow's lifecycle stage of an experiment that has been deleted but can be restored."""
_REVISION = re.compile(r"^(down_revision|revision)\b[^=\n]*=\s*[\"'](\w+)[\"']", re.MULTILINE)


def default_tracking_uri(storage: Path) -> str:
    """Return the tracking URI of the database in a study's local storage."""
    return sqlite_uri(storage / DATABASE)


def sqlite_uri(file: Path) -> str:
    """Return the tracking URI of a database file, in the form that MLflow and its commands accept."""
    path = str(file)
    if not {"%", "?"} & set(path):
        return f"sqlite:///{path}"
    encoded = path.replace("%", "%25").replace("?", "%3F")
    # Before SQLAlchemy 2.1, a question mark needs SQLite's own URI syntax, which SQLite has always decoded.
    return f"sqlite:///{encoded}" if _decodes() else f"sqlite:///file:{encoded}?uri=true"


def is_server(uri: str) -> bool:
    """Return whether a tracking URI is that of an MLflow server rather than a database, a path or another service."""
    return urlsplit(uri).scheme in ("http", "https")


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of an SQLite URI; None for another kind of URI or a database in memory."""
    scheme, _, rest = uri.partition(":///")
    name, _, options = rest.partition("?")
    if scheme.partition("+")[0] != "sqlite":
        return None
    if "%" in name and _decodes():
        name = unquote(name)
    if name.startswith("file:") and parse_qs(options).get("uri") == ["true"]:
        name = unquote(name.removeprefix("file:"))
    return None if name in ("", ":memory:") else Path(name).absolute()


@functools.cache
def _decodes() -> bool:
    """Return whether the installed SQLAlchemy decodes the path of a URI."""
    from sqlalchemy.engine import make_url  # here, because few paths have such characters

    return make_url("sqlite:///%41").database == "A"


def opened(file: Path) -> sqlite3.Connection:
    """Return a read-only connection to a database file."""
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)


def refusal(uri: str, experiment: str) -> str | None:
    """Return why MLflow could not record the named experiment in an SQLite database, and a remedy; None if it can."""
    file = sqlite_file(uri)
    if file is None or not file.exists():
        return None
    aside = shlex.join(["mv", str(file), f"{file}.aside"])
    again = f"move it away, and the same command records all published results in a new one: {aside}"
    if not file.is_file():
        return f"it is a directory, where a database should be; {again}"
    if not file.stat().st_size:
        return None  # MLflow creates its tables in an empty file
    try:
        with contextlib.closing(opened(file)) as connection:
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                return f"it is damaged ({damage.splitlines()[-1]}); {again}"
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"experiments", "alembic_version"} <= tables:
                return f"it is not a database of MLflow's, or only a part of one; {again}"
            versions = {version for (version,) in connection.execute("SELECT version_num FROM alembic_version")}
            if other := other_version(uri, versions):
                return other
            found = connection.execute(
                "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments WHERE name = ?",
                (experiment,),
            ).fetchone()
    except sqlite3.OperationalError:
        return None  # locked, or left with an unfinished transaction by a writer that died, which MLflow rolls back
    except sqlite3.DatabaseError as error:
        return f"it is damaged ({error}); {again}"
    if found is None:
        return None
    number, stage, location = found
    if stage == DELETED:
        return deleted(uri, experiment, str(number))
    moved = misplaced(location or "", file)
    return f"{moved}; {again}" if moved else None


def deleted(uri: str, experiment: str, number: str) -> str:
    """Return a message on a deleted experiment, given its name and MLflow's ID, that says what the user can do."""
    restore = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {number}"
    choices = f"restore it (`{restore}`)"
    if not is_server(uri):  # a server's database is elsewhere
        remove = shlex.join(["mlflow", "gc", "--backend-store-uri", uri, "--experiment-ids", number])
        choices += f", remove it for good (`{remove}`),"
    return f"its experiment {experiment!r} has been deleted; {choices} or record elsewhere (--tracking-uri)"


def artifact_folder(location: str) -> Path | None:
    """Return the local folder of an artifact location as MLflow reads it; None if it is elsewhere, as in ``s3://``.

    MLflow decodes ``%20`` even in a path, and ends the path of a ``file:`` URI, but not a path, at a ``?`` or ``#``.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path if parts.scheme else location))


def misplaced(location: str, database: Path) -> str | None:
    """Return what is wrong with an experiment's artifact folder; None if nothing is.

    MLflow writes to the path or URI that an experiment names. If the database was copied or moved, MLflow would write
    to the original's folder, or create the path where nobody looks for it.
    """
    named = artifact_folder(location)
    if named in (None, Path()):
        return None
    folder, home = named.resolve(), database.resolve().parent
    if folder.is_relative_to(home):
        return None
    if (home / ARTIFACTS).is_dir():
        return f"it has been copied or moved: its artifacts are in {home / ARTIFACTS}, and it names {folder}"
    # MLflow creates the folder at its first write, so the folder may be missing, but hardly its parent, too.
    if not folder.is_dir() and not folder.parent.is_dir():
        return f"it has been copied or moved: it keeps its artifacts in {folder}, which is not on this machine"
    return None


def other_version(uri: str, versions: set[str]) -> str | None:
    """Return why a database is not one of the installed MLflow, and a remedy; None if it is.

    Args:
        uri: tracking URI of the database.
        versions: revisions in its table ``alembic_version``.
    """
    known, newest = _revisions()
    if not known or versions == newest:
        return None
    if versions <= known:
        command = shlex.join(["mlflow", "db", "upgrade", uri])
        return f"an older MLflow made it: back it up, then run `{command}`"
    return (
        "a newer MLflow than the installed one made it: run `pip install --upgrade mlflow`, or record elsewhere "
        "(--tracking-uri)"
    )


@functools.cache
def _revisions() -> tuple[set[str], set[str]]:
    """Return all schema revisions that the installed MLflow knows, and the newest ones, as read from its files."""
    spec = importlib.util.find_spec("mlflow")
    known, before = set[str](), set[str | None]()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
            found = dict(_REVISION.findall(file.read_text(encoding="utf-8")))
            if "revision" in found:
                known.add(found["revision"])
                before.add(found.get("down_revision"))
    return known, known - before


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector: with the many objects of a page of runs, it would cost more than the page itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
