"""A check, before a study starts, that the tracking store can take its runs. Imports no MLflow."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from functools import partial

from trainables.checks import known
from trainables.host.databases import DELETED, deleted, is_server, other_version, refusal, sqlite_file
from trainables.host.redaction import redact, redact_text
from trainables.storage import patiently
from trainables.storage.store import StorageError

_DATABASES = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
"""Scheme of a database -> the Python module that SQLAlchemy uses for it, unless the URI names a driver."""
_MODULES = {"pysqlite": "sqlite3", "mysqldb": "MySQLdb", "mysqlconnector": "mysql"}
"""Name of a driver in a URI -> its Python module, where the two differ."""
_ELSEWHERE = (
    "bring it back and run the same command again, or record elsewhere, in mlflow.db without --tracking-uri; "
    "published results are recorded there, too"
)
"""What to do about a server or database that cannot be reached."""


def check_tracking(uri: str, experiment: str = "", timeout: float = 10.0) -> None:
    """Check that a tracking store can take the runs of an experiment, without writing anything.

    An unreachable server is retried for as long as an unreachable storage would be.

    Args:
        uri: an MLflow tracking URI.
        experiment: the experiment's name; if empty, only the store itself is checked.
        timeout: seconds to wait for each answer of a server.

    Raises:
        ValueError: the store cannot take the runs, with the reason and often the cure.
    """
    scheme, _, driver = urllib.parse.urlsplit(uri).scheme.partition("+")
    if uri == "databricks":
        return
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise ValueError(f"tracking URI {uri!r} has no scheme; a server is http://{uri}")
    if scheme in ("", "file"):
        folder = redact(uri).removeprefix("file://")
        raise ValueError(f"tracking URI {redact(uri)!r} is a directory; use sqlite:///{folder}/mlflow.db")
    if is_server(uri):
        _check_server(uri, experiment, timeout)
    elif scheme in _DATABASES:
        _check_database(uri, driver or _DATABASES[scheme], experiment)
    elif scheme != "databricks":
        plugins = {plugin.name for plugin in importlib.metadata.entry_points(group="mlflow.tracking_store")}
        known("tracking scheme", scheme, [*_DATABASES, "http", "https", "databricks", *sorted(plugins)])


def _check_server(uri: str, experiment: str, timeout: float) -> None:
    named = urllib.parse.urlencode({"experiment_name": experiment})
    try:
        patiently(partial(_ask_server, uri, "/health", timeout))
        if not experiment:
            return
        answer = patiently(partial(_ask_server, uri, f"/api/2.0/mlflow/experiments/get-by-name?{named}", timeout))
    except StorageError as error:
        raise ValueError(f"{error}; {_ELSEWHERE}") from error
    try:
        found = json.loads(answer)["experiment"]
        stage, number = found["lifecycle_stage"], str(found["experiment_id"])
    except (ValueError, LookupError, TypeError):
        return  # no such experiment, or a login that only MLflow's client can do
    if stage == DELETED:
        raise ValueError(f"tracking server {redact(uri)}: {deleted(redact(uri), experiment, number)}")


def _ask_server(uri: str, path: str, timeout: float) -> bytes:
    """Return the answer of a tracking server; empty if it refuses the request (HTTP status below 500).

    Raises:
        StorageError: the server does not answer, or answers with an HTTP status of at least 500.
    """
    parts = urllib.parse.urlsplit(uri)  # urllib does not accept user:password@
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"), query="", fragment="")
    request = urllib.request.Request(place.geturl() + path)
    if parts.username and parts.password:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password)}"
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return b""
        raise StorageError(f"tracking server {redact(uri)} cannot be reached: it answers {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        again = isinstance(reason, ValueError | ssl.SSLCertVerificationError) or not isinstance(reason, OSError)
        again |= isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
        words = redact_text(str(reason))
        raise StorageError(f"tracking server {redact(uri)} cannot be reached: {words}", passing=not again) from error


def _check_database(uri: str, driver: str, experiment: str) -> None:
    module = _MODULES.get(driver, driver)
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"tracking database {redact(uri)}: the Python package for it, {module!r}, is not installed")
    if not uri.startswith("sqlite"):
        try:
            problem = patiently(partial(_ask_database, uri, experiment))
        except StorageError as error:
            raise ValueError(f"{error}; {_ELSEWHERE}") from error
        if problem:
            raise ValueError(f"tracking database {redact(uri)}: {problem}")
        return
    database = sqlite_file(uri)
    if database is None:
        raise ValueError(f"tracking database {redact(uri)} names no file; write sqlite:///DIRECTORY/mlflow.db")
    if problem := refusal(uri, experiment):
        raise ValueError(f"tracking database {redact(uri)}: {problem}")
    existing = next(path for path in (database.parent, *database.parents) if path.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        raise ValueError(f"tracking database {redact(uri)}: directory {str(existing)!r} is not writable")


def _ask_database(uri: str, experiment: str) -> str | None:
    """Return why a database that is no file cannot take the runs of an experiment; None if it can.

    Raises:
        StorageError: the database cannot be reached.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with contextlib.closing(create_engine(uri).connect()) as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None  # MLflow creates its tables
            versions = set(connection.scalars(text("SELECT version_num FROM alembic_version")))
            named = text("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = :name")
            found = connection.execute(named, {"name": experiment}).first()
    except SQLAlchemyError as error:
        reason = redact_text(str(error)).strip().splitlines()[0]
        raise StorageError(f"tracking database {redact(uri)} cannot be reached: {reason}") from error
    if found is not None and found[1] == DELETED:
        return deleted(redact(uri), experiment, str(found[0]))
    return other_version(redact(uri), versions)
