"""The display of a running study: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.estimate import Estimates
from study.plan import Plan
from study.scheduling.states import BLOCKED, DONE, FAILED, NOT_RUN, OPEN, QUEUED, READY, RUNNING, WAITING
from study.tracking.labels import name_in
from trainables import schema
from trainables.graph import target
from trainables.host.clock import duration
from trainables.host.terminal import printable
from trainables.methods import COMPARED

if TYPE_CHECKING:
    from study.scheduling.searcher import PlanSearcher

LINE_SECONDS = 10.0
"""Seconds between two plain lines."""
RUNNING_SHOWN, LAST = 12, 4
"""Number of running jobs and of most recently finished jobs in the live display."""
BAR_WIDTH = 24
STALLED_SECONDS = 30.0
"""After this many seconds without a running trial, the display says that the study waits for machines."""


class Progress:
    """Watches a searcher and shows the progress of the study."""

    def __init__(
        self,
        plan: Plan,
        searcher: PlanSearcher,
        estimates: Estimates,
        stream: TextIO | None = None,
    ) -> None:
        """Prepare the display on `stream`, by default standard output."""
        self._plan, self._searcher, self._estimates = plan, searcher, estimates
        self._stream = stream or sys.stdout
        self._console = Console(file=self._stream)
        self._started = time.monotonic()
        self._last_step: float | None = None
        self._slot_seconds = 0.0
        self._idle_since: float | None = None
        self._running: OrderedDict[str, tuple[str, str, str]] = OrderedDict()
        self._epochs: dict[str, int] = {}
        """Key of a job -> epochs that are done."""
        self._before: dict[str, int] = {}
        """Key of a job -> epochs that were done before this start."""
        self._last: deque[tuple[str, str, str]] = deque(maxlen=LAST)
        self._accuracies: dict[str, str] = {}
        self._compared = False
        self._last_line = ""

    # --- events, from the driver's loop -------------------------------------------------------------------------------
    def result(self, key: str, row: Mapping[str, Any]) -> None:
        """Note a result of a running job."""
        if self._last_step is None:
            self._last_step = time.monotonic()
        host, _, _ = str(row.get("hostname", "")).partition(".")
        epochs, accuracy = self._all_epochs(key), row.get(schema.TEST_ACCURACY)
        epoch = min(row.get("epoch", 0), epochs)
        if epoch:  # 0 while the job waits, whatever it has done before
            self._epochs[key], self._before[key] = epoch, min(self._before.get(key, epochs), epoch - 1)
        text = f"epoch {epoch}/{epochs}" if epochs else ""
        self._running[key] = host, text, "" if accuracy is None else f"{accuracy:.1f} %"

    def ended(self, key: str) -> None:
        """Note that a job has stopped running."""
        host, _, accuracy = self._running.pop(key, ("", "", ""))
        if accuracy and self._searcher.state.get(key) == DONE:
            self._last.appendleft((key, host, accuracy))
            self._accuracies[key] = accuracy
            self._compare(key)

    def _compare(self, key: str) -> None:
        """Print the accuracies of the first cell in which all methods of ``COMPARED`` are done, once."""
        job, cell = self._plan.jobs[key], self._plan.cells[key]
        if self._compared or job.kind != schema.SPARSE or cell.method not in COMPARED:
            return
        methods = [method for method in COMPARED if method in self._plan.space.method]
        keys = [target(dataclasses.replace(cell, method=method)).key for method in methods]
        if len(keys) > 1 and self._accuracies.keys() >= set(keys):
            self._compared = True
            self.say("first result: " + ", ".join(f"{self._name(each)} {self._accuracies[each]}" for each in keys))

    def say(self, line: str) -> None:
        """Print a permanent line, above the live table if there is one."""
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    # --- display ------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress during a ``with`` block."""
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            with Live(get_renderable=self._table, console=self._console, refresh_per_second=1, transient=True):
                yield
            return
        stop = threading.Event()

        def print_lines() -> None:
            while not stop.wait(LINE_SECONDS):
                self._write_line()

        thread = threading.Thread(target=print_lines, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._write_line()

    def _write_line(self) -> None:
        line = self.line()
        if line != self._last_line:
            print(line, file=self._stream, flush=True)
            self._last_line = line

    def line(self) -> str:
        """Return the state of the study as one plain line."""
        kinds = self._kinds()
        states = sum(kinds.values(), Counter())
        parts = [f"{kind} {each[DONE]}/{each.total()}" for kind, each in kinds.items()]
        if epochs := sum(map(self._all_epochs, self._searcher.state)):
            parts.append(f"epochs {sum(map(self._epochs_done, self._searcher.state)):,}/{epochs:,}")
        text = f"{duration(time.monotonic() - self._started):>10}  done: {', '.join(parts)}"
        text += f"; {states[RUNNING]} running, {_waiting(states)} waiting"
        if states[FAILED] or states[BLOCKED]:
            text += f", {states[FAILED]} failed, {states[BLOCKED]} blocked"
        if states[NOT_RUN]:
            text += f", {states[NOT_RUN]} not run"
        return text + self._left() + self._stall(states)

    def _left(self) -> str:
        left = self.seconds_left()
        return f"; about {duration(left)} left" if left else ""

    def _stall(self, states: Counter[str]) -> str:
        """Return how long the study has waited for machines, if nothing runs: a cluster may have lost its last ones."""
        if states[RUNNING] or not states[QUEUED]:
            self._idle_since = None
            return ""
        self._idle_since = self._idle_since or time.monotonic()
        idle = time.monotonic() - self._idle_since
        return f"; waiting for machines for {duration(idle)}" if idle >= STALLED_SECONDS else ""

    def _kinds(self) -> dict[str, Counter[str]]:
        """Return the number of jobs of each kind by state; a kind without jobs is left out."""
        found: dict[str, Counter[str]] = {kind: Counter() for kind in schema.STAGES}
        for key, state in self._searcher.state.items():
            found[self._plan.jobs[key].kind][state] += 1
        return {kind: states for kind, states in found.items() if states}

    def _all_epochs(self, key: str) -> int:
        return self._plan.jobs[key].epochs_to(self._searcher.todo[key])

    def _epochs_done(self, key: str) -> int:
        return self._all_epochs(key) if self._searcher.state[key] == DONE else self._epochs.get(key, 0)

    def _share(self, epochs: int, key: str) -> float:
        """Return the fraction that some epochs are of those that a job has to train; 0 for a job without epochs."""
        return epochs / max(1, self._all_epochs(key))

    def seconds_left(self) -> float | None:
        """Return the estimated seconds to the end; None if nothing is left."""
        state, slots = self._searcher.state, self._searcher.slots()
        left = {key for key, each in state.items() if each in OPEN}
        if not left:
            return None
        shares = {key: self._share(self._epochs_done(key), key) for key in left}
        remaining = self._estimates.makespan(self._plan, left, slots, shares)
        seconds, done = self._estimates.seconds, 0.0
        for key, each in state.items():
            if each == DONE or key in left:
                # Epochs of an earlier start took none of this one's time.
                done += seconds[key] * (shares.get(key, 1.0) - self._share(self._before.get(key, 0), key))
        if self._last_step is None:
            return remaining
        now = time.monotonic()
        self._slot_seconds += slots * (now - self._last_step)
        self._last_step = now
        if done <= 0:
            return remaining
        # Scale the estimate by the measured speed, whose weight grows until a tenth of the work is done.
        weight = min(1.0, done / (0.1 * (done + sum(seconds[key] * (1.0 - shares[key]) for key in left))))
        return remaining * ((1 - weight) + weight * self._slot_seconds / done)

    def _table(self) -> Group:
        kinds, table = self._kinds(), Table(box=None, pad_edge=False, header_style="bold")
        for column in ("job", "", "done", "running", "waiting", "failed", "total"):
            table.add_column(column, justify="left" if column in ("job", "") else "right")
        for kind, states in kinds.items():
            failed = states[FAILED] + states[BLOCKED] + states[NOT_RUN]
            row = (states[DONE], states[RUNNING], _waiting(states), failed, states.total())
            bar = ProgressBar(total=states.total(), completed=states[DONE], width=BAR_WIDTH)
            table.add_row(kind, bar, *(str(number) for number in row))
        header = f"{self._plan.space.name}: {duration(time.monotonic() - self._started)} so far"
        return Group(Text(header + self._left() + self._stall(sum(kinds.values(), Counter()))), table, self._jobs())

    def _jobs(self) -> Table:
        """Return the running jobs, and below them the jobs that finished most recently."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("running", "on", "", "test accuracy"):
            table.add_column(column, justify="right" if column == "test accuracy" else "left", no_wrap=True)
        running = list(self._running.items())
        for key, (host, text, accuracy) in running[:RUNNING_SHOWN]:
            table.add_row(self._name(key), host, text, accuracy)
        if len(running) > RUNNING_SHOWN:
            table.add_row(f"and {len(running) - RUNNING_SHOWN} more")
        for key, host, accuracy in list(self._last):
            table.add_row(self._name(key), host, "done", accuracy, style="dim")
        return table

    def _name(self, key: str) -> str:
        # Make the text printable before the layout, so that the columns fit it.
        return printable(name_in(self._plan, key), self._stream)


def _waiting(states: Counter[str]) -> int:
    return states[WAITING] + states[READY] + states[QUEUED]
