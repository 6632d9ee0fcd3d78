"""The experiment of a study in MLflow: opening it, listing its runs, and creating runs while no other driver does."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import SearchSpace
from study.tracking.contents import Metric
from study.tracking.views import earlier_note, note
from trainables import schema
from trainables.host.databases import ARTIFACTS, sqlite_file, sqlite_uri, without_collector
from trainables.host.redaction import redact
from trainables.storage.store import Store

LEASE_WAIT = 2.0
"""Seconds to wait while another driver creates runs; after that, the attempt has failed."""
PAGE = 1000
"""Runs per request."""


class DatabaseGone(RuntimeError):
    """The study's SQLite database has been removed or replaced while the study ran."""


class Busy(TimeoutError):
    """Another driver is creating runs."""


class Experiment:
    """The experiment named after a search space. Methods raise whatever MLflow's client raises.

    Attributes:
        space: the study's search space.
        store: holds the lease under which runs are created.
        client: MLflow's client, once the experiment is open.
        id: MLflow's experiment ID, likewise.
        tags: the experiment's tags when it was opened or refreshed, and those set since.
        created: creation time, ms since 1970.
    """

    client: Any
    id: str
    tags: dict[str, str]
    created: int

    def __init__(self, space: SearchSpace, store: Store, uri: str) -> None:
        """Prepare; :meth:`open` sends the first request.

        Args:
            space: the study's search space.
            store: holds the leases.
            uri: MLflow tracking URI.
        """
        self.space, self.store, self._uri = space, store, uri
        self._database = sqlite_file(uri)
        self._inode: tuple[int, int] | None = None
        self._is_sole_creator = False

    def open(self) -> None:
        """Open the experiment, or create it."""
        # The tracker retries by itself, and first checks what became of the last attempt.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # also saves a request per run
        for chatty in ("alembic", "mlflow.store.db.utils"):  # the latter prints a traceback per attempt
            logging.getLogger(chatty).setLevel(logging.CRITICAL)
        from mlflow import MlflowClient

        name, database = self.space.name, self._database
        location = (database.parent / ARTIFACTS / name).as_uri() if database else None
        with _locked(database) if database else contextlib.nullcontext():
            if database and not (database.exists() and database.stat().st_size):
                _make_tables(database)
            self.client = MlflowClient(tracking_uri=self._uri)
        self._inode = _inode(database)
        with self.sole_creator():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                found = self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        self.id, self.tags, self.created = found.experiment_id, dict(found.tags), int(found.creation_time or 0)
        # Makes MLflow open its page for trained models, which has charts, not the one for language models.
        self.set_tags({"mlflow.experimentKind": "custom_model_development"})
        said = self.tags.get(schema.NOTE)
        if said is None or said == earlier_note(self.space, self.id):  # a user may have edited it
            self.set_tags({schema.NOTE: note(self.space, self.id)})

    @property
    def is_open(self) -> bool:
        """Whether :meth:`open` has succeeded."""
        return hasattr(self, "created")

    def refresh(self) -> None:
        """Fetch the experiment's tags, which another driver or a user may have changed."""
        self.tags = dict(self.client.get_experiment(self.id).tags)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment, unless it has them."""
        for name, value in tags.items():
            if self.tags.get(name) != value:
                self.client.set_experiment_tag(self.id, name, value)
                self.tags[name] = value

    def check(self) -> None:
        """Raise DatabaseGone if the database is no longer the file that :meth:`open` opened.

        SQLite would go on writing to a removed file, and MLflow would write to a new file without tables.
        """
        if self._inode is not None and _inode(self._database) != self._inode:
            raise DatabaseGone(f"{redact(self._uri)} has been removed or replaced while the study ran")

    def runs(self, chosen: str = "") -> Iterator[Any]:
        """Yield the runs that a filter chooses, each once.

        MLflow numbers its pages by position, the latest runs first: a run that another driver creates meanwhile moves
        earlier ones to the next page.
        """
        seen, token = set[str](), None
        while True:
            with without_collector():
                page = self.client.search_runs([self.id], chosen, max_results=PAGE, page_token=token)
            yield from (run for run in page if run.info.run_id not in seen)
            seen.update(run.info.run_id for run in page)
            token = page.token
            if not token:
                return

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log metrics, params and tags in one request."""
        from mlflow import entities

        self.client.log_batch(
            run_id,
            [entities.Metric(*metric) for metric in metrics],
            [entities.Param(name, value) for name, value in (params or {}).items()],
            [entities.RunTag(name, value) for name, value in (tags or {}).items()],
        )

    @contextlib.contextmanager
    def sole_creator(self) -> Iterator[None]:
        """Keep other drivers from creating runs of this experiment meanwhile; nested uses cost nothing.

        Raises:
            Busy: another driver is creating runs, or died on another host while it did and its lease has not yet
                expired.
        """
        if self._is_sole_creator:
            yield
            return
        name = hashlib.sha256(f"runs of experiment {self.space.name}".encode()).hexdigest()
        end = time.monotonic() + LEASE_WAIT
        while (lease := self.store.lease(name)) is None:
            if time.monotonic() > end:
                raise Busy("another driver is creating runs")
            time.sleep(0.02)
        with lease:
            self._is_sole_creator = True
            try:
                yield
            finally:
                self._is_sole_creator = False


def _inode(database: Path | None) -> tuple[int, int] | None:
    """Return device and inode, which tell a file from a later one of the same name; None if there is no file.

    Raises:
        OSError: the file system does not answer.
    """
    with contextlib.suppress(FileNotFoundError):
        if database is not None:
            found = database.stat()
            return found.st_dev, found.st_ino
    return None


def _make_tables(database: Path) -> None:
    """Let MLflow create its tables in a temporary file, then rename that file to the database.

    MLflow takes seconds and many steps. If a driver were killed halfway, a database with only some of the tables would
    remain, which neither MLflow nor a later driver could use.
    """
    from mlflow import MlflowClient

    unfinished = database.with_name(f"{database.name}.new")
    for left in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        left.unlink(missing_ok=True)  # left by a driver that was killed
    MlflowClient(tracking_uri=sqlite_uri(unfinished))
    unfinished.replace(database)


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Keep other drivers from opening a database meanwhile, so that only one of them creates its tables."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the tracker retries what fails
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
