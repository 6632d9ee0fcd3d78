"""The report as an artifact of the study: the files of the parent run in the study's MLflow experiment.

The run has no job key, so readers of the study's jobs skip it. It has a tag of its own, by which the next report of the
same study finds the run and replaces its files. If an earlier version recorded the study, the report creates the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainables import schema
from trainables.host.databases import artifact_folder, misplaced, sqlite_file
from trainables.host.redaction import redact, redact_text
from trainables.schema import FINISHED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


class NotLogged(RuntimeError):
    """The report could not be logged completely; the message gives the reason in one line."""


def log_report(space: str, tracking_uri: str, files: Sequence[Path], description: str) -> str:
    """Log a report to its study's experiment, in place of an earlier report, and return the ID of its run.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.
        files: the report's files, with distinct names; they become the run's only artifacts.
        description: what the report says, Markdown; it follows what the study says of itself.

    Raises:
        NotLogged: the experiment does not exist, the tracking server or its artifact store fails or refuses, or an
            earlier report's files cannot be removed.
    """
    with _one_line(), _quietly():
        from mlflow import MlflowClient
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = MlflowClient(tracking_uri=tracking_uri)
        experiment = client.get_experiment_by_name(space)
        if experiment is None:
            raise NotLogged(f"no experiment {space!r} in {redact(tracking_uri)}")
        _check_place(experiment.artifact_location, tracking_uri)
        run = _only_run(client, experiment.experiment_id)
        known = run is not None
        if run is None:
            tags = {schema.TAG_STUDY: "true", schema.TAG_SOURCE: "analysis.report"}
            run = client.create_run(experiment.experiment_id, tags=tags, run_name=schema.STUDY_RUN)
        run_id: str = run.info.run_id
        try:
            _replace(get_artifact_repository(run.info.artifact_uri, tracking_uri), files)
        except BaseException:
            if not known:  # an empty report would only mislead
                with contextlib.suppress(Exception):  # the first error is the one to report
                    client.delete_run(run_id)
            raise
        client.set_tag(run_id, schema.NOTE, _beside(run, description))
        client.set_terminated(run_id, FINISHED)
        return run_id


def _beside(run: Run, description: str) -> str:
    """Return the description of a run: first what the study says of itself, then what its report says."""
    described = schema.TAG_RECIPE in run.data.tags
    study = run.data.tags[schema.NOTE].partition(schema.RULE)[0] if described else ""
    return study + schema.RULE + description if study else description


def _only_run(client: MlflowClient, experiment_id: str) -> Run | None:
    """Return the report's run, if there is one; of several, created by concurrent reports, keep the oldest."""
    found = client.search_runs(
        [experiment_id], f"tags.{schema.TAG_STUDY} = 'true'", order_by=["attributes.start_time ASC"]
    )
    for other in found[1:]:
        client.delete_run(other.info.run_id)
    return found[0] if found else None


def _replace(artifacts: ArtifactRepository, files: Sequence[Path]) -> None:
    """Replace a run's artifacts with the given files.

    Raises:
        NotLogged: artifacts of an earlier report could not be deleted.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copy(file, folder)
        artifacts.log_artifacts(folder)
    names = {file.name for file in files}
    for name in _stale(artifacts, names):
        artifacts.delete_artifacts(name)
    if left := _stale(artifacts, names):  # not every artifact store can delete
        raise NotLogged(f"its run keeps files of an earlier report, which cannot be removed: {', '.join(left)}")


def _stale(artifacts: ArtifactRepository, names: set[str]) -> list[str]:
    return sorted(found.path for found in artifacts.list_artifacts() if found.path not in names)


def _check_place(location: str, tracking_uri: str) -> None:
    """Check that an experiment's artifact folder belongs to this machine and to its database.

    MLflow's client writes to whatever path an experiment names. If the server runs elsewhere, or the database was
    copied here, the client would write to the original's folder, or create the path where nobody looks for it.

    Raises:
        NotLogged: the folder is elsewhere.
    """
    folder, database = artifact_folder(location), sqlite_file(tracking_uri)
    if folder is None:
        return
    if database is not None and (reason := misplaced(location, database)):
        raise NotLogged(f"the database is of no use for it: {reason}")
    if database is None and not folder.is_dir():
        raise NotLogged(f"the experiment keeps its artifacts in {folder.resolve()}, which is not on this machine")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn any error of a tracking server or an artifact store into a :class:`NotLogged` of one line."""
    try:
        yield
    except NotLogged:
        raise
    except Exception as error:  # of a database, server, cloud library or disk; none of them harms the page on disk
        reason = (redact_text(str(error)).strip() or type(error).__name__).splitlines()[0]
        raise NotLogged(reason) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep MLflow from printing tracebacks and progress bars."""
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    chatty = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
