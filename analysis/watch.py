"""The report of a study that is under way: ``python -m analysis.report --space NAME --watch``.

When does it end? The state of the runs does not say whether a study is over: a run appears when its job starts or, for
a short job, when it ends; waiting jobs have no run; between two jobs nothing is RUNNING, and a killed study leaves runs
that stay RUNNING for ever. But a study registers itself in its storage while its driver lives, and the registration
expires when the driver dies. So the watch ends once a study of the space has been registered, none is registered any
more, and nothing new has been recorded for ``SETTLED_SECONDS`` since: the last results arrive after the driver has
signed off. If the storage cannot be read from here, or no such study ever registers, only Ctrl-C ends the watch.
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
"""A study tries for this long to deliver its last results after it has signed off; the watch waits as long."""
REST = 3
"""After each look at the data, the watch rests for this many times as long as the look took: the study may run on the
same machine."""


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
    """Rewrite the report whenever the study has new results, until the study has ended or Ctrl-C.

    Whatever cannot be read (no such experiment yet, a tracking server that is down) is reported once and tried again.

    Args:
        space: name of the search space.
        tracking_uri: where the study records its runs.
        storage: where it keeps its results and registers itself.
        out: folder to write to.
        seconds: between two looks at the data, and between two reloads of an open page.
        logged: whether to log the last report to MLflow.
        pause: waits for a number of seconds.

    Raises:
        OSError: the report cannot be written to the folder.
    """
    watched = _Watch(space, tracking_uri, out, seconds)
    studies = _Studies(storage, space)
    print(f"watching {space} every {seconds} s, until the study has ended or Ctrl-C", flush=True)
    why = "stopped"
    try:
        while True:
            studies.look()  # before the data, which then include what the study recorded last
            watched.look(studies.jobs)
            if studies.left is not None and watched.looked - max(studies.left, watched.changed) >= SETTLED_SECONDS:
                why = "the study has ended"
                break
            pause(seconds)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # behind its ^C
    _say(f"{why}; {watched.close(logged=logged)}")


@dataclass
class _Watch:
    """The report, and the data that it was last written from. Times are those of the monotonic clock.

    Attributes:
        space: name of the search space.
        tracking_uri: where the study records its runs.
        out: folder to write to.
        seconds: between two reloads of an open page.
        frame: the runs on the current page, None if there is no page yet.
        written: its files, the page first.
        looked: when the data were last read.
        changed: when they last had news.
        rested: when the next look at the data is due.
        said: reasons for failed looks that were reported since the last successful one.
    """

    space: str
    tracking_uri: str
    out: Path
    seconds: int
    frame: pd.DataFrame | None = None
    written: list[Path] = field(default_factory=list)
    looked: float = 0.0
    changed: float = 0.0
    rested: float = 0.0
    said: set[str] = field(default_factory=set)

    def look(self, jobs: int) -> None:
        """Read the data, unless it is time to rest, and rewrite the report if they have changed.

        Args:
            jobs: number of jobs of the study, as far as known.
        """
        began = time.monotonic()
        if began < self.rested:
            return
        try:
            frame = load.runs(self.space, self.tracking_uri)
            self.looked = began
            if self.frame is None or not frame.equals(self.frame):
                self.changed = began
                self.written = write.write_files(frame, self.space, self.tracking_uri, self.out, refresh=self.seconds)
                self.frame = frame
                done = (frame["status"] == FINISHED).sum()
                _say(f"{done} of {max(jobs, len(frame))} jobs finished  {self.written[0]}")
        except AnalysisError as error:
            self._say_once(f"waiting: {error}")
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            # A bug that shows on these partial results need not show on the next ones, and a sweep takes days.
            self._say_once(f"the page stays as it is, because of a bug: {type(error).__name__}: {error}")
        else:
            self.said.clear()
        now = time.monotonic()
        self.rested = now + REST * (now - began)

    def _say_once(self, text: str) -> None:
        """Print a reason unless it has been printed since the last successful look."""
        news = re.sub(r"0x[0-9a-f]+", "", text)  # a new address in memory is no news
        if news not in self.said:
            _say(redact_text(text))
        self.said.add(news)

    def close(self, *, logged: bool) -> str:
        """Write the last page, which no browser reloads; log it if `logged`; return its path, or that there is none."""
        if self.frame is None:
            return "there was nothing to report"
        last = self.written[0]
        text = last.read_text(encoding="utf-8")
        write.replace_text(last, text.replace(page.REFRESH.format(seconds=self.seconds), "", 1))
        if logged:
            write.log(self.frame, self.space, self.tracking_uri, self.written)
        return str(last)


@dataclass
class _Studies:
    """The studies of a space that are registered in a storage.

    Attributes:
        storage: a directory or URI, as given to ``--storage``.
        space: name of the search space.
        seen: whether any has been registered.
        left: when the last one was found gone, by the monotonic clock; None while one is registered or none ever was.
        jobs: number of jobs of the largest one so far.
        said: whether the user has been told that none is registered, or that this cannot be known.
    """

    storage: str
    space: str
    seen: bool = False
    left: float | None = None
    jobs: int = 0
    said: bool = False

    def look(self) -> None:
        """See which studies are registered; a storage that does not answer changes nothing."""
        try:
            notes = [study["note"] for study in Store(self.storage).studies()]
        except (StorageError, ValueError) as error:  # ValueError: the library for this storage is missing
            self._say_once(f"cannot tell whether the study runs: {redact_text(str(error))}")
            return
        found = [note for note in notes if note.get("space") == self.space]
        if found:
            self.seen, self.left = True, None
            self.jobs = max(self.jobs, *(int(note.get("jobs", 0)) for note in found))
        elif not self.seen:
            self._say_once(f"no study of {self.space} runs on {redact(self.storage)} now; Ctrl-C ends this")
        elif self.left is None:
            self.left = time.monotonic()

    def _say_once(self, text: str) -> None:
        if not self.said:
            _say(text)
        self.said = True


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
