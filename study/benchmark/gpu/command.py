"""The command line of the GPU benchmark, which runs each section in a process of its own.

A section that fails or hangs ends alone. Every check is appended to a file when it ends, and a second call goes on
where the first one ended.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from study.benchmark import results
from study.benchmark.gpu.record import Line, Record, read
from study.benchmark.gpu.sections import ENVIRONMENT, REDUCED, SECTIONS, Outcome, Scale
from study.benchmark.processes import started
from trainables.checks import bounded, known
from trainables.host.nvidia import gpus
from trainables.host.places import DEFAULT_STORAGE
from trainables.host.terminal import FAILURES, OK, refused
from trainables.host.version import project_commit
from trainables.training.engines import CPU, GPU

SLOWER_ON_CPU = 20
"""Factor on the sections' time limits on a CPU, which may be busy with other work."""
LEAST_SECONDS = 15.0
"""A section is not begun with less time left: importing PyTorch and starting CUDA take most of that."""
GRACE_SECONDS = 5.0
"""Time for a section's process to remove its temporary files before it is killed."""


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m study.benchmark gpu``; return 0, 1 if a check failed, or 2 for an invalid request."""
    options = _parser().parse_args(arguments)
    scale = REDUCED if options.device == CPU else Scale()
    names = options.sections.split(",") if options.sections else scale.sections
    try:
        bounded("budget", options.budget, "(0, inf)")
        for name in names:
            known("section", name, scale.sections)
        read(options.out)
        measurements = options.out.with_name(results.FILE)
        results.read(measurements)
        if scale.device == GPU and not gpus():
            raise ValueError(
                "the NVIDIA driver finds no GPU here; --device cpu tests the command itself, on a small net"
            )
    except (ValueError, OSError) as error:
        return refused(error)
    end = time.monotonic() + options.budget
    (described,) = run_section(ENVIRONMENT, scale, _limit(ENVIRONMENT, scale))
    if described.error:
        return refused(ValueError(described.error))
    machine = dict(described.outcome.found)
    record = Record(options.out, machine)
    print(record.add(described.check, described.seconds, described.outcome).text(), flush=True)
    missed = []
    for name in (each for each in names if each != ENVIRONMENT and f"section {each}" not in record.done):
        seconds = min(_limit(name, scale), end - time.monotonic())
        if seconds < LEAST_SECONDS:
            missed.append(name)
            continue
        print(f"{name}: {SECTIONS[name].about}", flush=True)
        start, errors = time.monotonic(), 0
        for line in run_section(name, scale, seconds, record.done, {*record.lines} - record.done):
            print(record.add(line.check, line.seconds, line.outcome, line.error).text(), flush=True)
            errors += line.error != ""
        if not errors:
            record.add(f"section {name}", time.monotonic() - start)
        if scale.device == GPU and record.rows:
            about = {"model": scale.model, "batch_size": scale.batch_size, "image_size": scale.image_size}
            commit = options.commit or project_commit()
            results.store(measurements, "gpu", about, record.rows, machine=machine, commit=commit)
    print("", *record.report(), sep="\n")
    if missed:
        print(f"no time was left for {', '.join(missed)}: the same command goes on with them")
    return FAILURES if any(line.ok is False for line in record.lines.values()) else OK


def _limit(name: str, scale: Scale) -> float:
    return SECTIONS[name].seconds * (SLOWER_ON_CPU if scale.device == CPU else 1)


def run_section(
    name: str, scale: Scale, seconds: float, done: Collection[str] = (), failed: Collection[str] = ()
) -> Iterator[Line]:
    """Run a section in a process of its own; yield the line of each check as it ends, without what it depends on.

    Args:
        name: of the section.
        scale: sizes of the measurements.
        seconds: time limit.
        done: names of checks that are not repeated.
        failed: names of checks that come last, because they failed before and might end the process again.
    """
    check, start = f"section {name}", time.monotonic()
    end, finished = start + seconds, False
    pipe, process = started(serve, name, scale, {*done}, {*failed})
    try:
        while True:
            if not pipe.poll(max(0.0, end - time.monotonic())):
                error = f"not finished within the {seconds:.0f} s of its section"
                break
            try:
                answer = pipe.recv()
            except EOFError:
                process.join()
                error = f"its process ended with code {process.exitcode}"
                break
            if answer is None:
                finished = True
                return
            if isinstance(answer, str):
                check, start = answer, time.monotonic()
            else:
                outcome, failure = answer
                yield Line(check=check, on={}, seconds=time.monotonic() - start, outcome=outcome, error=failure)
        yield Line(check=check, on={}, seconds=time.monotonic() - start, error=error)
    finally:
        pipe.close()
        if not finished:
            process.terminate()
        process.join(GRACE_SECONDS)
        process.kill()  # does nothing to a process that has ended
        process.join()


def serve(pipe: Connection, name: str, scale: Scale, done: Collection[str], failed: Collection[str]) -> None:
    """Make the checks of a section in a process of their own, see :func:`make`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # removes temporary files
    make(pipe, name, scale, done, failed)


def make(pipe: Connection, name: str, scale: Scale, done: Collection[str], failed: Collection[str]) -> None:
    """Make the checks of a section: send the name of each, then its outcome with its error; None at the end."""
    section = SECTIONS[name]
    module = importlib.import_module(f"{__package__}.{section.module}")
    width = {} if section.width is None else {"width": section.width}
    with ExitStack() as stack:
        checks = getattr(module, section.function)(scale, stack, **width)
        for check in sorted(checks.keys() - done, key=lambda each: (each in failed, [*checks].index(each))):
            pipe.send(check)
            try:
                pipe.send((checks[check](), ""))
            except Exception as error:
                pipe.send((Outcome(ok=False), f"{type(error).__name__}: {error}"))
        pipe.send(None)


def _parser() -> argparse.ArgumentParser:
    listed = "; ".join(f"{name}: {each.about}" for name, each in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m study.benchmark gpu",
        description="Check and measure this machine's first GPU. The same command goes on after an interruption.",
        epilog=f"Sections: {listed}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device", choices=(GPU, CPU), default=GPU, help="cpu tests the command (default: %(default)s)"
    )
    parser.add_argument("--budget", type=float, default=460.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--sections", metavar="A,...", help="the sections to run (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(DEFAULT_STORAGE, "gpu.jsonl"),
        metavar="FILE",
        help=f"gets a line per check; {results.FILE} beside it gets the measurements (default: %(default)s)",
    )
    parser.add_argument("--commit", help="commit of this code, where git cannot tell it")
    return parser
