"""The report of a study that is under way: ``python -m analysis.report --space NAME --watch``.

When it ends. No state of the runs says that a study is over: a run appears when its job begins or, if that is short,
when it ends; jobs that wait for others have none; between two jobs nothing is RUNNING, and of a study that was killed
something is RUNNING for ever. But a study registers itself in its storage for as long as its driver lives, and its
registration expires when the driver dies. So the study has ended if one of the space was registered at some time,
none is any more, and nothing new was recorded for ``SETTLED_SECONDS`` since: the last results are delivered after the
driver has signed off. A storage that cannot be read from here, or never has such a study, leaves it to Ctrl-C.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import load, page, report
from analysis.load import AnalysisError
from trainables.host.redaction import redact, redact_text
from trainables.storage.store import StorageError, Store

SETTLED_SECONDS = 120.0
"""How long a study tries to deliver its last results once it has signed off, and so the time without any that ends
the watch."""
REST = 3
"""The data are left alone for so many times as long as the last look took: the study may need this machine itself."""


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
    """Write the report anew whenever the study has new results, until it has ended or Ctrl-C.

    What cannot be read - no such experiment yet, a tracking server that is away - is said once, and tried again.

    Args:
        space: name of the search space.
        tracking_uri: where the study records its runs.
        storage: where it keeps its results, and says that it runs.
        out: folder to write to.
        seconds: between two looks at the data, and after which an open page is read again.
        logged: whether to log the last report to MLflow.
        pause: waits for so many seconds.

    Raises:
        OSError: the folder does not take the report.
    """
    watched = _Watch(space, tracking_uri, out, seconds)
    studies = _Studies(storage, space)
    print(f"watching {space} every {seconds} s, until the study has ended or Ctrl-C", flush=True)
    why = "stopped"
    try:
        while True:
            studies.look()  # before the data: what a study recorded last is then among them
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
    """The report, and the data that it was last written from.

    Attributes:
        space: name of the search space.
        tracking_uri: where the study records its runs.
        out: folder to write to.
        seconds: after which an open page is read again.
        frame: the runs of the page that is there, None if there is none yet.
        written: its files, the page first.
        looked: when the data could last be read, by the monotonic clock.
        changed: when there was something new.
        rested: when the next look at the data is due.
        said: reasons why nothing could be read since something last could.
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
        """Read the data, unless it is time to rest, and write the report if they have changed.

        Args:
            jobs: that the study has to do, as far as is known.
        """
        began = time.monotonic()
        if began < self.rested:
            return
        try:
            frame = load.runs(self.space, self.tracking_uri)
            self.looked = began
            if self.frame is None or not frame.equals(self.frame):
                self.changed = began
                self.written = report.write_files(frame, self.space, self.tracking_uri, self.out, refresh=self.seconds)
                self.frame = frame
                done = (frame["status"] == load.FINISHED).sum()
                _say(f"{done} of {max(jobs, len(frame))} jobs finished  {self.written[0]}")
        except AnalysisError as error:
            self._say_once(f"waiting: {error}")
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            # A fault of ours that half of a study brings to light; the other half may not, and a sweep takes days.
            self._say_once(f"the page stays as it is, a fault of this program: {type(error).__name__}: {error}")
        else:
            self.said.clear()
        now = time.monotonic()
        self.rested = now + REST * (now - began)

    def _say_once(self, text: str) -> None:
        """Say something unless it was said since something could last be read."""
        news = re.sub(r"0x[0-9a-f]+", "", text)  # an address in memory is none
        if news not in self.said:
            _say(redact_text(text))
        self.said.add(news)

    def close(self, *, logged: bool) -> str:
        """Leave a page that a browser does not read again, log it if asked to, and return what is there."""
        if self.frame is None:
            return "there was nothing to report"
        last = self.written[0]
        text = last.read_text(encoding="utf-8")
        report.replace_text(last, text.replace(page.REFRESH.format(seconds=self.seconds), "", 1))
        if logged:
            report.log(self.frame, self.space, self.tracking_uri, self.written)
        return str(last)


@dataclass
class _Studies:
    """The studies of a space that are registered in a storage.

    Attributes:
        storage: as ``--storage`` has it.
        space: name of the search space.
        seen: whether there has been one.
        left: when the last of them was found gone, by the monotonic clock; None if one is there, or none ever was.
        jobs: of the largest one so far.
        said: whether it was said that none is there, or that this cannot be known.
    """

    storage: str
    space: str
    seen: bool = False
    left: float | None = None
    jobs: int = 0
    said: bool = False

    def look(self) -> None:
        """See who is registered; a storage that does not answer says nothing."""
        try:
            notes = [study["note"] for study in Store(self.storage).studies()]
        except (StorageError, ValueError) as error:  # ValueError: a storage that this machine lacks the library for
            self._say_once(f"whether the study runs cannot be told: {redact_text(str(error))}")
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
