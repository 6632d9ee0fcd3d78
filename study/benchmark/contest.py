"""Ways to do the same, timed in turns: a machine whose speed drifts slows them all.

The first run of each way is not counted. The median over the repeats is what to quote; the smallest and the largest
show the noise.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from study.benchmark.results import Comparison
from trainables.host import cpu
from trainables.host.processes import cores

_MEBIBYTE = 2**20


class Way(Protocol):
    """A way to do something again and again."""

    def run(self) -> int:
        """Do it once; return how much was done, such as the number of images."""

    def helpers(self) -> Sequence[int]:
        """Return the ids of further processes that work for it."""


class Contestant:
    """A way in a process of its own, so that neither memory nor settings of the others reach it."""

    def __init__(self, name: str, threads: int, make: Callable[..., Way], *arguments: Any) -> None:
        """Start the process; it builds the way and runs it once, uncounted.

        Args:
            name: for messages.
            threads: that torch computes with.
            make: returns the way; it and its arguments are pickled.
            *arguments: of `make`.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # No daemon: those may not have loader processes.
        self._process = context.Process(target=_serve, args=(theirs, threads, make, arguments), daemon=False)
        self._process.start()
        theirs.close()

    def begin(self, what: str = "run") -> None:
        """Let it begin; does not wait."""
        self._pipe.send(what)

    def answer(self) -> Any:
        """Wait for what it has to say.

        Raises:
            RuntimeError: it failed; the message has its error.
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
        """Return the peak of its memory in MiB, helpers included, as far as this system tells."""
        self.begin("memory")
        return float(self.answer())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


class Team:
    """Contestants that run at the same time; what they take is what the slowest takes."""

    def __init__(self, stack: ExitStack, *contestants: Contestant) -> None:
        """Wait until all are ready, and leave their end to `stack`."""
        self.contestants = contestants
        for each in contestants:
            stack.callback(each.close)
        self.first_seconds = max(each.answer() for each in contestants)
        """That the slowest took for the uncounted run."""

    def seconds(self) -> tuple[float, int]:
        """Let them run once; return the seconds, and how much all of them have done."""
        for each in self.contestants:
            each.begin()
        answers = [each.answer() for each in self.contestants]
        return max(seconds for seconds, _ in answers), sum(done for _, done in answers)

    def seconds_afresh(self) -> float:
        """Let each build its way anew and run it once; return the seconds of the slowest."""
        for each in self.contestants:
            each.begin("run afresh")
        answers = [each.answer() for each in self.contestants]
        return float(max(seconds for seconds, _ in answers))

    def memory(self) -> float:
        """Return the peak memory of one of them, the largest, in MiB."""
        return max(each.memory() for each in self.contestants)


class Budget:
    """The time that the parts of a measurement share: each may take its share of what those before it have left."""

    def __init__(self, seconds: float, parts: int, repeats: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the time.

        Args:
            seconds: for all parts together; a part that has begun takes at least one round.
            parts: how many there are.
            repeats: most rounds of a part.
            clock: returns seconds.
        """
        self._clock, self._repeats, self._parts = clock, repeats, parts
        self._end = self._until = clock() + seconds

    def begins(self, part: str) -> bool:
        """Begin a part if there is time left, and say what is timed, or what is not measured."""
        now = self._clock()
        left = self._end - now
        print(f"timing {part}" if left > 0 else f"not measured, the time is over: {part}", flush=True)
        self._until = now + left / max(1, self._parts)
        self._parts -= 1
        return left > 0

    def rounds(self) -> Iterator[int]:
        """Yield the rounds of the part that has begun: one, and more while another as long as the last one fits."""
        for each in range(self._repeats):
            start = self._clock()
            yield each
            now = self._clock()
            if now + (now - start) > self._until:
                return


def in_turns(teams: Mapping[str, Team], rounds: Iterable[int]) -> dict[str, tuple[float, ...]]:
    """Return the seconds that each team takes for one unit of work, repeat by repeat.

    Args:
        teams: name -> who. The order changes with each repeat.
        rounds: to run, counted from 0.
    """
    times: dict[str, list[float]] = {name: [] for name in teams}
    names = list(teams)
    for repeat in rounds:
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            seconds, done = teams[name].seconds()
            times[name].append(seconds / done)
    return {name: tuple(each) for name, each in times.items()}


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], rounds: Iterable[int]) -> Comparison:
    """Time two ways in turns in this process, after one uncounted run of each."""
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
    """Wait until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Return the most memory that this process has had, in MiB."""
    try:
        # getrusage would start from what the parent had when it started this process.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (_MEBIBYTE if sys.platform == "darwin" else 1024)


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
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
def _serve(pipe: Connection, threads: int, make: Callable[..., Way], arguments: Sequence[Any]) -> None:
    """Answer what is asked until the pipe is closed."""
    torch.set_num_threads(threads)
    try:
        way = make(*arguments)
        pipe.send((True, _timed(way)[0]))
        while True:
            try:
                asked = pipe.recv()
            except EOFError:
                return
            if asked == "memory":
                answer: object = peak_memory() + sum(map(_own_memory, way.helpers()))
            else:
                way = make(*arguments) if asked == "run afresh" else way
                answer = _timed(way)
            pipe.send((True, answer))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        raise


def _timed(way: Way) -> tuple[float, int]:
    gc.collect()  # of the last run's garbage, which is not this one's
    synchronize()
    start = time.perf_counter()
    done = way.run()
    synchronize()
    return time.perf_counter() - start, done


def _own_memory(process: int) -> float:
    """Return the memory that a process shares with no other, in MiB; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
