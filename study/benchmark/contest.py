"""Contests between workloads, timed alternately so that a drift in the machine's speed affects all of them.

The first run of each workload is not counted. Quote the median over the repeats; the smallest and the largest show the
noise.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from study.benchmark.results import Comparison
from trainables.host import cpu, usage
from trainables.host.processes import cores

_MEBIBYTE = 2**20


class Workload(Protocol):
    """Work that can be repeated."""

    def run(self) -> int:
        """Do the work once; return its amount, such as the number of images."""


class Contestant:
    """A workload in its own process, isolated from the memory and settings of the others."""

    def __init__(self, name: str, threads: int, make: Callable[..., Workload], *arguments: Any) -> None:
        """Start the process; it builds the workload and runs it once, uncounted.

        Args:
            name: for messages.
            threads: torch's CPU threads.
            make: returns the workload; `make` and its arguments are pickled.
            *arguments: arguments of `make`.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: daemons cannot start loader processes.
        self._process = context.Process(target=_serve, args=(theirs, threads, make, arguments), daemon=False)
        self._process.start()
        theirs.close()

    def begin(self, request: str = "run") -> None:
        """Send a request ("run", "run afresh" or "memory") without waiting for the answer."""
        self._pipe.send(request)

    def answer(self) -> Any:
        """Wait for the answer to the last request.

        Raises:
            RuntimeError: the process failed; the message contains its error.
        """
        try:
            fine, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{self.name}: its process ended with code {self._process.exitcode}") from None
        if not fine:
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def memory(self) -> float:
        """Return the process's peak memory in MiB, plus the memory that its child processes hold now, if known."""
        self.begin("memory")
        return float(self.answer())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


class Team:
    """Contestants that run at the same time; the slowest determines the team's time."""

    def __init__(self, stack: ExitStack, *contestants: Contestant) -> None:
        """Wait until all are ready; `stack` ends their processes."""
        self.contestants = contestants
        for each in contestants:
            stack.callback(each.close)
        self.first_seconds = max(each.answer() for each in contestants)
        """Seconds of the slowest contestant's uncounted run."""

    def seconds(self, request: str = "run") -> tuple[float, int]:
        """Run all once; return the seconds of the slowest and the amount of work done by all."""
        for each in self.contestants:
            each.begin(request)
        answers = [each.answer() for each in self.contestants]
        return max(seconds for seconds, _ in answers), sum(done for _, done in answers)

    def seconds_afresh(self) -> float:
        """Rebuild every workload and run all once; return the seconds of the slowest run."""
        return self.seconds("run afresh")[0]

    def memory(self) -> float:
        """Return the largest peak memory among the contestants, in MiB."""
        return max(each.memory() for each in self.contestants)


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
        self._end = self._until = clock() + seconds

    def begins(self, part: str) -> bool:
        """Begin a part if time is left and print whether it is timed; return whether it is."""
        now = self._clock()
        left = self._end - now
        print(f"timing {part}" if left > 0 else f"not measured, out of time: {part}", flush=True)
        self._until = now + left / max(1, self._parts)
        self._parts -= 1
        return left > 0

    def rounds(self) -> Iterator[int]:
        """Yield the current part's rounds: one, then more as long as another one of the last one's length fits."""
        for each in range(self._repeats):
            start = self._clock()
            yield each
            now = self._clock()
            if now + (now - start) > self._until:
                return


def ready(stack: ExitStack, contestants: Mapping[str, Sequence[Contestant]]) -> dict[str, Team]:
    """Return the teams whose contestants all ran once; print the error of every other team and leave it out."""
    teams = {}
    for name, members in contestants.items():
        try:
            teams[name] = Team(stack, *members)
        except RuntimeError as error:
            print(f"not measured: {error}", flush=True)
    return teams


def in_turns(teams: Mapping[str, Team], rounds: Iterable[int]) -> dict[str, tuple[float, ...]]:
    """Time teams alternately; return the seconds of each team per unit of work, one number per round.

    Args:
        teams: name -> team. A different team starts each round.
        rounds: round numbers, counted from 0.
    """
    times: dict[str, list[float]] = {name: [] for name in teams}
    names = list(teams)
    for repeat in rounds:
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            seconds, done = teams[name].seconds()
            times[name].append(seconds / done)
    return {name: tuple(each) for name, each in times.items()}


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], rounds: Iterable[int]) -> Comparison:
    """Time two functions alternately in this process, after one uncounted run of each."""
    times: dict[Callable[[], object], list[float]] = {ours: [], other: []}
    for way in times:
        way()
    synchronize()
    for _ in rounds:
        for way, seconds in times.items():
            start = time.perf_counter()
            way()
            synchronize()
            seconds.append(time.perf_counter() - start)
    return Comparison(name=name, ours=tuple(times[ours]), other=tuple(times[other]))


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Return this process's peak memory, in MiB."""
    return usage.peak_memory() / _MEBIBYTE


def machine() -> dict[str, object]:
    """Return the facts about this machine that figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu.name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# --- in the contestant's process ----------------------------------------------------------------------------------
def _serve(pipe: Connection, threads: int, make: Callable[..., Workload], arguments: Sequence[Any]) -> None:
    """Answer requests until the pipe is closed."""
    torch.set_num_threads(threads)
    try:
        workload = make(*arguments)
        pipe.send((True, _timed(workload)[0]))
        while True:
            try:
                request = pipe.recv()
            except EOFError:
                return
            if request == "memory":
                children = (child.pid for child in multiprocessing.active_children())
                answer: object = peak_memory() + sum(map(_own_memory, children))
            else:
                workload = make(*arguments) if request == "run afresh" else workload
                answer = _timed(workload)
            pipe.send((True, answer))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        raise


def _timed(workload: Workload) -> tuple[float, int]:
    gc.collect()  # garbage of the last run must not slow this one
    synchronize()
    start = time.perf_counter()
    done = workload.run()
    synchronize()
    return time.perf_counter() - start, done


def _own_memory(process: int | None) -> float:
    """Return the memory that a process shares with no other, in MiB; 0 if the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
