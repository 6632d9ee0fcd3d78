"""The report of a running study: ``python -m analysis.report --space NAME --watch``.

The state of the runs does not show whether a study has ended. A run appears when its job starts or, for a short job,
when it ends. Waiting jobs have no run, between two jobs no run is RUNNING, and runs of a killed study stay RUNNING.
However, a study is registered in its storage while it trains, and the registration expires if its driver dies. The
watch therefore ends when a study of the space has been registered, none is registered any more, and nothing new has
been recorded for ``SETTLED_SECONDS`` since, because the driver delivers its last results after it has deregistered. If
the storage cannot be read, or if no study of the space registers, only Ctrl-C ends the watch.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import load, page, write
from analysis.load import AnalysisError
from trainables.host.redaction import redact, redact_text
from trainables.schema import FINISHED
from trainables.storage.store import StorageError, Store

SETTLED_SECONDS = 120.0
"""The watch ends when the last study has been gone, and nothing new has been recorded, for this long."""
REST = 3
"""After each look at the data, the watch rests for this many times the duration of the look, because the study may run
on the same machine."""


def watch(
    space: str,
    tracking_uri: str,
    storage: str,
    out: Path,
    seconds: int,
    *,
    logged: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Rewrite the report whenever the study has new results, until the study has ended or the user presses Ctrl-C.

    A failure to read (the experiment does not exist yet, the tracking server is down) is reported once and retried.

    Args:
        space: name of the search space.
        tracking_uri: where the study records its runs.
        storage: where the study keeps its results and registers itself.
        out: folder to write to.
        seconds: time between two looks at the data, and between two reloads of an open page.
        logged: whether to log the last report to MLflow.
        pause: function that waits for a number of seconds.

    Raises:
        OSError: the report cannot be written to the folder.
    """
    watched = _Watch(space, tracking_uri, storage, out, seconds)
    print(f"watching {space} every {seconds} s until the study ends; Ctrl-C stops watching", flush=True)
    why = "the study has ended"
    try:
        while not watched.look():
            pause(seconds)
    except KeyboardInterrupt:
        why = "stopped"
        if sys.stdout.isatty():
            print()  # ends the terminal's line with ^C
    _say(f"{why}; {watched.close(logged=logged)}")


@dataclass
class _Watch:
    """The report of a watched study; the first fields are arguments of :func:`watch`.

    Attributes:
        frame: the runs on the current page; None if there is no page yet.
        written: the report's files, the page first.
        jobs: number of jobs of the largest study that has been registered in the storage; 0 if none has.
        left: when the last study was first found gone; None while one is registered or if none has been. This and the
            following times are seconds of the monotonic clock.
        looked: start of the last successful look at the data.
        changed: start of the last look that found changed data.
        rested: earliest time of the next look at the data.
        said: errors of the data that were reported since the last successful look.
        told: reports on the storage; only the first one is printed.
    """

    space: str
    tracking_uri: str
    storage: str
    out: Path
    seconds: int
    frame: pd.DataFrame | None = None
    written: list[Path] = field(default_factory=list)
    jobs: int = 0
    left: float | None = None
    looked: float = 0.0
    changed: float = 0.0
    rested: float = 0.0
    said: set[str] = field(default_factory=set)
    told: str = ""

    def look(self) -> bool:
        """Rewrite the report if the data have changed; return whether the study has ended."""
        self.look_at_storage()  # before the data, so that these include the last results of a study found gone
        began = time.monotonic()
        if began >= self.rested:
            self._look_at_data(began)
            now = time.monotonic()
            self.rested = now + REST * (now - began)
        return self.left is not None and self.looked - max(self.left, self.changed) >= SETTLED_SECONDS

    def look_at_storage(self) -> None:
        """Look which studies are registered; if the storage does not answer, nothing changes."""
        try:
            notes = [study["note"] for study in Store(self.storage).studies()]
        except (StorageError, ValueError) as error:  # ValueError: the library for this storage is missing
            self._tell(f"cannot tell whether the study runs: {redact_text(str(error))}")
            return
        found = [int(note.get("jobs", 0)) for note in notes if note.get("space") == self.space]
        if found:
            self.left, self.jobs = None, max(self.jobs, 1, *found)
        elif not self.jobs:
            self._tell(f"no study of {self.space} is running on {redact(self.storage)}; Ctrl-C stops watching")
        elif self.left is None:
            self.left = time.monotonic()

    def _look_at_data(self, began: float) -> None:
        try:
            frame = load.runs(self.space, self.tracking_uri)
            self.looked = began
            if self.frame is None or not frame.equals(self.frame):
                self.changed = began
                self.written = write.write_files(frame, self.space, self.tracking_uri, self.out, refresh=self.seconds)
                self.frame = frame
                done = (frame["status"] == FINISHED).sum()
                _say(f"{done} of {max(self.jobs, len(frame))} jobs finished  {self.written[0]}")
        except AnalysisError as error:
            self._say_once(f"waiting: {error}")
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            # A bug on these partial results may not affect the next ones, and a sweep takes days: keep watching.
            self._say_once(f"the page stays as it is, because of a bug: {type(error).__name__}: {error}")
        else:
            self.said.clear()

    def _say_once(self, text: str) -> None:
        """Print an error unless it has been printed since the last successful look."""
        news = re.sub(r"0x[0-9a-f]+", "", text)  # ignore memory addresses
        if news not in self.said:
            _say(redact_text(text))
        self.said.add(news)

    def _tell(self, text: str) -> None:
        if not self.told:
            _say(text)
        self.told = text

    def close(self, *, logged: bool) -> str:
        """Remove the automatic reload from the page, log the report if `logged`, and return the page's path.

        If there is no page, return a sentence that says so.
        """
        if self.frame is None:
            return "there was nothing to report"
        last = self.written[0]
        text = last.read_text(encoding="utf-8")
        write.replace_text(last, text.replace(page.REFRESH.format(seconds=self.seconds), "", 1))
        if logged:
            write.log(self.frame, self.space, self.tracking_uri, self.written)
        return str(last)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
