"""Contests between workloads, timed alternately so that a drift in the machine's speed affects all of them.

The first run of each workload is not counted. Quote the median over the repeats; the smallest and the largest show the
noise.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from study.benchmark.processes import started
from study.benchmark.results import Comparison, Row
from trainables.host import cpu, usage
from trainables.host.processes import cores, memory

MEBIBYTE = 2**20

T = TypeVar("T")
Name = TypeVar("Name")
Part = Callable[[Iterable[int]], Iterator[Row]]
"""Takes the numbers of the rounds, from 0, and yields each row of a measurement once it is measured."""


class Workload(Protocol):
    """Work that can be repeated."""

    def run(self) -> int:
        """Do the work once; return its amount, such as the number of images."""


class Team:
    """Equal workloads that run at the same time, each in a process isolated from the memory and settings of others.

    When the parent ends, in whatever way, they end without a word.
    """

    def __init__(
        self,
        stack: ExitStack,
        name: str,
        make: Callable[..., Workload],
        *arguments: Any,
        threads: int = 1,
        count: int = 1,
    ) -> None:
        """Start the processes; each builds the workload and runs it once, uncounted.

        Args:
            stack: ends the processes.
            name: for messages.
            make: returns the workload; `make` and its arguments are pickled.
            *arguments: arguments of `make`.
            threads: torch's CPU threads in each process.
            count: number of processes.
        """
        self._name = name
        self._members: list[tuple[Connection, SpawnProcess]] = []
        stack.push(self._end)
        for _ in range(count):
            self._members.append(started(_serve, threads, make, arguments))

    def wait(self) -> None:
        """Wait for the uncounted run, and set `first` to its seconds; raises as :meth:`seconds` does."""
        self.first = self._slowest(self._answers())

    def seconds(self, request: str = "run", count: int | None = None) -> float:
        """Run the workloads once, rebuilt before that for "run afresh"; return the seconds per unit of work.

        Args:
            request: "run" or "run afresh".
            count: how many of the processes run, the first ones; None for all of them.

        Raises:
            RuntimeError: a process failed; the message contains its error.
        """
        return self._slowest(self._answers(request, count))

    def ask(self, method: str) -> Any:
        """Return what a method of the first process's workload returns, called without arguments.

        Raises:
            RuntimeError: the process failed; the message contains its error.
        """
        (answer,) = self._answers(method, 1)
        return answer

    def memory(self) -> float:
        """Return the largest peak memory of a process plus what its child processes hold now, if known, in MiB."""
        return float(max(self._answers("memory")))

    def _slowest(self, answers: list[tuple[float, int]]) -> float:
        """Return the seconds per unit of work of all members together: the slowest determines the team's time."""
        return max(seconds for seconds, _ in answers) / sum(done for _, done in answers)

    def _answers(self, request: str | None = None, count: int | None = None) -> list[Any]:
        """Return the answers of the first `count` members; without a request, those to the first run."""
        asked = self._members[:count]
        for pipe, _ in asked if request else ():
            pipe.send(request)
        answers = []
        for pipe, process in asked:
            try:
                fine, answer = pipe.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"{self._name}: its process ended with code {process.exitcode}") from None
            if not fine:
                raise RuntimeError(f"{self._name}: {answer}")
            answers.append(answer)
        return answers

    def _end(self, kind: type[BaseException] | None, *details: object) -> None:
        """End the processes, after an error without waiting for what they compute."""
        for pipe, process in self._members:
            pipe.close()
            if kind is not None:
                process.terminate()
        for _, process in self._members:
            process.join()


class Budget:
    """The time limit that the parts of a measurement share: each part may use an equal share of the time left."""

    def __init__(self, seconds: float, parts: int, repeats: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            seconds: limit for all parts together; a part that has begun runs at least one round.
            parts: number of parts.
            repeats: most rounds per part.
            clock: returns seconds.
        """
        self._clock, self._repeats, self._parts = clock, repeats, parts
        self._end = clock() + seconds

    def measure(self, parts: Mapping[str, Part]) -> Iterator[Row]:
        """Yield the rows of parts, title -> part; say of each part that it is timed or that no time is left."""
        for title, part in parts.items():
            now = self._clock()
            left = self._end - now
            print(f"timing {title}" if left > 0 else f"not measured, out of time: {title}", flush=True)
            if left > 0:
                yield from part(self._rounds(now + left / max(1, self._parts)))
            self._parts -= 1

    def _rounds(self, until: float) -> Iterator[int]:
        """Yield rounds: one, then more as long as another one of the last one's length fits."""
        for each in range(self._repeats):
            start = self._clock()
            yield each
            now = self._clock()
            if now + (now - start) > until:
                return


def ready(teams: Iterable[tuple[Name, Team]]) -> dict[Name, Team]:
    """Wait for the first run of each team; print the error of a team that fails and leave it out.

    The teams of a list get ready in parallel; a generator starts each team when the one before it is ready.
    """
    able = {}
    for name, team in teams:
        try:
            team.wait()
        except RuntimeError as error:
            print(f"not measured: {error}", flush=True)
        else:
            able[name] = team
    return able


def in_turns(works: Mapping[Name, Callable[[], float]], rounds: Iterable[int]) -> dict[Name, tuple[float, ...]]:
    """Run works alternately; return what each returns, one number per round. A different one starts each round."""
    found: dict[Name, list[float]] = {name: [] for name in works}
    names = list(works)
    for repeat in rounds:
        first = repeat % max(1, len(names))
        for name in names[first:] + names[:first]:
            found[name].append(works[name]())
    return {name: tuple(each) for name, each in found.items()}


def compared(
    pairs: Mapping[str, tuple[str, str]], seconds: Mapping[str, tuple[float, ...]], amount: int
) -> Iterator[Comparison]:
    """Yield the comparisons, name -> our work and the other one, of works that were timed.

    The rounds' seconds per unit of work become the seconds of `amount` units.
    """
    for name, pair in pairs.items():
        if seconds.keys() >= set(pair):
            ours, other = (tuple(amount * each for each in seconds[work]) for work in pair)
            yield Comparison(name=name, ours=ours, other=other)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Run a function; return the seconds that it took, and its result."""
    gc.collect()  # garbage of the last run must not slow this one
    synchronize()
    start = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - start, result


def synchronize() -> None:
    """Wait until the GPU, if this process uses one, has finished all queued work."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Return the facts about this machine that figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu.name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gib": round(memory() / 2**30, 1),
        "system": platform.system(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# --- in a team's process -------------------------------------------------------------------------------------------
def _serve(pipe: Connection, threads: int, make: Callable[..., Workload], arguments: tuple[Any, ...]) -> None:
    """Run the workload and answer requests until the pipe is closed or the workload fails."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # ends loader processes, too
    torch.set_num_threads(threads)
    request, fine, answer, workload = "run afresh", True, object(), None
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended the benchmark, or has ended itself
        while fine:
            try:
                if request == "memory":
                    children = (child.pid for child in multiprocessing.active_children())
                    answer = usage.peak_memory() / MEBIBYTE + sum(map(_own_memory, children))
                elif request in ("run", "run afresh"):
                    if workload is None or request == "run afresh":
                        workload = None  # releases its memory first
                        workload = make(*arguments)
                    answer = timed(workload.run)
                else:
                    answer = getattr(workload, request)()
            except Exception as error:
                fine, answer = False, f"{type(error).__name__}: {error}"
            pipe.send((fine, answer))
            request = pipe.recv()


def _own_memory(process: int | None) -> float:
    """Return the memory that a process shares with no other, in MiB; 0 if the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
