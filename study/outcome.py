"""The messages at the end of a sweep: failures and the jobs they blocked, results, and the next steps."""

from __future__ import annotations

import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from study.plan import Plan
from study.scheduling.states import BLOCKED, FAILED
from study.tracking.delivery import Tracker
from study.tracking.labels import name_in
from trainables.host.databases import DATABASE, is_server, sqlite_file
from trainables.host.places import DEFAULT_STORAGE
from trainables.host.redaction import redact, redact_text
from trainables.storage.store import StorageError, Store

if TYPE_CHECKING:  # it imports ray
    from study.scheduling.searcher import PlanSearcher

NAMED_VICTIMS = 5
NAMED_FAILURES = 100
"""Failures beyond this number are not named, only counted by error."""


def report_failures(plan: Plan, searcher: PlanSearcher, command: str, ended: str | None = None) -> bool:
    """Print what failed, what it blocked, what was not run, and how to continue; return whether there was any of this.

    Excluded hosts are printed, too, but do not count as failures: the study may be complete without them.

    Args:
        plan: the study.
        searcher: its searcher after the sweep.
        command: the command line, without passwords.
        ended: the reason if the sweep ended early.
    """
    state, errors = searcher.state, searcher.errors
    failed = [key for key, each in state.items() if each == FAILED]
    victims: dict[str, list[str]] = defaultdict(list)
    for key, each in state.items():
        if each == BLOCKED:
            victims[errors[key]].append(key)
    lines = []
    for key in failed[:NAMED_FAILURES]:
        blocked = victims.get(key, [])
        text = f"failed: {name_in(plan, key)} ({key[:12]}): {errors[key]}"
        text += f"; it blocked {len(blocked)} job{'' if len(blocked) == 1 else 's'}"
        lines.append(text + (f": {_names(plan, blocked)}" if blocked else ""))
    if len(failed) > NAMED_FAILURES:
        rest = Counter(errors[key] for key in failed[NAMED_FAILURES:])
        lines += [f"failed: {count} more: {error}" for error, count in rest.most_common(NAMED_VICTIMS)]
    unfinished = searcher.unfinished()
    if unfinished:
        lines.append(f"the study ended early: {searcher.halted or ended or 'Ray Tune stopped and gave no reason'}")
        by_kind = Counter(plan.jobs[key].kind for key in unfinished)
        kinds = ", ".join(f"{count} {kind}" for kind, count in by_kind.items())
        lines.append(f"not run: {len(unfinished)} jobs ({kinds})")
    if failed and not unfinished and searcher.recurring.issuperset(failed):
        lines.append(f"these jobs would fail again: fix what the errors name, then run: {command}")
    elif lines:
        what = "retry only these" if not unfinished else "run the remaining jobs (published results are kept)"
        lines.append(f"to {what}: {command}")
    bad = bool(lines)
    if not searcher.halted:  # a halt for lack of hosts has named them above
        lines = [*(f"warning: no more jobs for {out}" for out in searcher.outs()), *lines]
    if lines:
        sys.stdout.flush()
        print(*map(redact_text, lines), sep="\n", file=sys.stderr, flush=True)
    return bad


def report_missing(plan: Plan, missing: list[str], command: str) -> None:
    """Print the results that were reported as published but are not in the store at the end.

    Args:
        plan: the study.
        missing: keys of the jobs that must run again.
        command: the command line, without passwords.
    """
    sys.stdout.flush()
    for key in missing[:NAMED_FAILURES]:
        print(f"gone: {name_in(plan, key)} ({key[:12]}) was published but is no longer in the store", file=sys.stderr)
    if len(missing) > NAMED_FAILURES:
        print(f"gone: {len(missing) - NAMED_FAILURES} more", file=sys.stderr)
    print(f"to compute only these again: {command}", file=sys.stderr, flush=True)


def _names(plan: Plan, keys: list[str]) -> str:
    names = ", ".join(name_in(plan, key) for key in keys[:NAMED_VICTIMS])
    return names + (f" and {len(keys) - NAMED_VICTIMS} more" if len(keys) > NAMED_VICTIMS else "")


def print_undelivered(plan: Plan, tracker: Tracker, tracking_uri: str, command: str, *, interrupted: bool) -> None:
    """Print which published results are not recorded in MLflow, why, and the command that records them.

    Args:
        plan: the study.
        tracker: the tracker, already closed.
        tracking_uri: MLflow tracking URI.
        command: the command line, without passwords.
        interrupted: whether the user interrupted the delivery.
    """
    missing, reason = tracker.undelivered, tracker.behind or ("interrupted" if interrupted else "it took too long")
    what = "every run has its results"
    if missing:
        what = f"{len(missing)} of {len(plan.jobs)} runs are missing: {_names(plan, missing)}"
    print(f"warning: not everything reached {redact(tracking_uri)} ({reason}); {what}")
    print(f"to deliver the rest: {command}", flush=True)


def print_results(plan: Plan, store: Store) -> None:
    """Print the table of a study, finished or not, from what the store holds."""
    from analysis.sources import AnalysisError
    from analysis.summary import short_table
    from study.tracking.stored_runs import stored_runs

    try:
        frame = stored_runs(plan, store)
    except (AnalysisError, StorageError) as error:
        print(f"warning: the table of results cannot be made: {redact_text(str(error))}", flush=True)
    else:
        print(f"\n{short_table(frame)}\n", flush=True)


def print_next_steps(plan: Plan, store: Store, tracking_uri: str, page: str | None) -> None:
    """Print the commands that show the results.

    Args:
        plan: the study.
        store: where its results are.
        tracking_uri: MLflow tracking URI.
        page: address of the study's view within MLflow's pages; None if the tracker has not found the experiment.
    """
    options = ["--space", plan.space.name]
    if not _is_default(store):
        options += ["--storage", _shown(store)]
    if not (store.is_local and sqlite_file(tracking_uri) == store.root / DATABASE):
        options += ["--tracking-uri", redact(tracking_uri)]
    print(f"report:  {shlex.join(['python', '-m', 'analysis.report', *options])}")
    if is_server(tracking_uri):
        print(f"browse:  {redact(tracking_uri).rstrip('/')}/{f'#{page}' if page else ''}")
        return
    print(f"browse:  {shlex.join(['python', '-m', 'study.browse', *options])}")
    if page:
        server = shlex.join(["mlflow", "ui", "--backend-store-uri", redact(tracking_uri)])
        print(f"         or {server}, then http://127.0.0.1:5000/#{page}")


def _is_default(store: Store) -> bool:
    return store.is_local and store.root == Path(DEFAULT_STORAGE).absolute()


def _shown(store: Store) -> str:
    if not store.is_local:
        return store.uri
    here = Path.cwd()
    return str(store.root.relative_to(here) if store.root.is_relative_to(here) else store.root)


def note_failures(store: Store, searcher: PlanSearcher, now: int) -> None:
    """Record the failure of each job whose process could not know that it was the last, or died before recording it.

    Args:
        store: the store, from which ``--status`` reads the notes.
        searcher: the searcher after the sweep.
        now: current time in ms since 1970.
    """
    noted = store.failures()
    for key in _without(searcher, noted):
        attempt = store.attempt(key) or {"environment": {}, "log": ""}
        store.record_failure(key, {**attempt, "error": redact_text(searcher.errors[key]), "at": now})


def _without(searcher: PlanSearcher, noted: Iterable[str]) -> list[str]:
    known = set(noted)
    return [key for key, each in searcher.state.items() if each == FAILED and key not in known]
