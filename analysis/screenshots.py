"""Pictures of a study's report and of its runs in MLflow's pages: ``python -m analysis.screenshots --space NAME``.

A real browser takes them: a headless Chromium. The report is written anew, and MLflow's server is started on the
study's database for as long as it takes; nothing is asked of any other host.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from analysis import command
from analysis.devtools import Browser, Page, end_group, find_browser
from analysis.load import AnalysisError, quiet_retries, working_tracking_uri
from trainables import schema
from trainables.host import terminal
from trainables.host.redaction import redact_text

MOST_COLOURS = 128
"""Of a picture: enough for lines and text, and a fraction of the size."""
MOST_PIXELS = 1200
"""Width of a picture."""
STARTING = 90.0
"""Seconds that MLflow's server may take."""
SETTLED = (
    "new Promise(done => document.fonts.ready.then(() => requestAnimationFrame(() => requestAnimationFrame("
    "() => done(document.readyState === 'complete')))))"
)
"""True once a page is there and drawn."""
NO_ASSISTANT = (
    "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
    "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
)
"""Keeps MLflow from opening a panel over a quarter of the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A picture of a page.

    Attributes:
        name: of the file, without suffix.
        address: what is opened.
        height: of the window, CSS pixels.
        width: likewise.
        dark: whether the reader prefers a dark theme.
        phone: whether it is one.
        ready: JavaScript that is true once the page shows what it is for.
        click: of the elements that match this selector, the first is clicked before; none need be there.
    """

    name: str
    address: str
    height: int
    width: int = 1200
    dark: bool = False
    phone: bool = False
    ready: str = SETTLED
    click: str = ""


def of_report(page: Path) -> list[Shot]:
    """Return the pictures of a report: its top, in the dark, and on a phone."""
    address = page.absolute().as_uri()
    return [
        Shot(name="report", address=address, height=1700),
        Shot(name="report-dark", address=f"{address}#width", dark=True, height=760),
        Shot(name="report-phone", address=address, width=390, height=844, phone=True),
    ]


def of_mlflow(base: str, experiment: str, run: str, *, view: bool) -> list[Shot]:
    """Return the pictures of a study in MLflow: its runs, their gaps across the grid, and one run.

    Args:
        base: address of the server, without a slash at the end.
        experiment: id of the study's experiment.
        run: id of the run to show.
        view: whether the experiment has the saved view of the gaps; those of earlier versions of the study have not.
    """
    kind = "workflowType=machine_learning"  # of the two that the pages have
    study = f"{base}/#/experiments/{experiment}/runs"
    runs = f"{study}?{kind}{f'&viewStateShareKey={schema.VIEW}' if view else ''}&compareRunsMode="
    rows = "document.querySelectorAll('[role=row] a[href*=\"/runs/\"]').length > 0"
    lines = "document.querySelectorAll('.parcoords canvas, .parcoords-line-layers canvas').length > 0"
    named = f"document.body.innerText.includes('{schema.TEST_ACCURACY}')"
    banner = "[aria-label='Hide banner']"
    return [
        Shot(name="mlflow-runs", address=f"{runs}TABLE", height=760, ready=rows, click=banner),
        Shot(
            name="mlflow-charts",
            address=f"{runs}CHART",
            height=900,
            ready=f"{rows} && {lines}" if view else rows,
            click=banner,
        ),
        Shot(name="mlflow-run", address=f"{study}/{run}?{kind}", height=900, ready=named),
    ]


def take(browser: Browser, shot: Shot) -> bytes:
    """Return a picture as a PNG of as few bytes as it takes.

    Raises:
        AnalysisError: the page does not come, or does not show what it is for.
    """
    page = browser.open("about:blank", width=shot.width, height=shot.height, dark=shot.dark, phone=shot.phone)
    page.ask("Page.addScriptToEvaluateOnNewDocument", source=f"try {{ {NO_ASSISTANT} }} catch {{}}")
    page.go(shot.address)
    page.wait(shot.ready, f"picture of {shot.name}")
    if shot.click:
        page.value(f"void document.querySelector({shot.click!r})?.click()")
    _come_to_rest(page)
    return shrunk(page.picture())


def _come_to_rest(page: Page) -> None:
    """Wait until two pictures in a row are the same: pages fade in, and charts grow."""
    page.wait(SETTLED, "end of loading")
    before = page.picture()
    for _ in range(20):
        page.value("new Promise(done => setTimeout(done, 400))")
        now = page.picture()
        if now == before:
            return
        before = now


def shrunk(png: bytes) -> bytes:
    """Return a picture with at most `MOST_COLOURS` colours, no wider than `MOST_PIXELS`."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > MOST_PIXELS:
        image = image.resize((MOST_PIXELS, round(image.height * MOST_PIXELS / image.width)), Image.Resampling.LANCZOS)
    # By coverage: what a method is drawn in fills few pixels, and must keep its colour.
    image = image.quantize(MOST_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


@contextlib.contextmanager
def mlflow_pages(tracking_uri: str) -> Iterator[str]:
    """Yield the address of MLflow's pages for a tracking store, which is served meanwhile unless a server already does.

    Raises:
        AnalysisError: the server does not start.
    """
    if urlsplit(tracking_uri).scheme in ("http", "https"):
        yield tracking_uri.rstrip("/")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri, "--workers", "1"]
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes that nothing here needs
    }
    with tempfile.TemporaryDirectory(prefix="mlflow-") as folder, open(Path(folder, "log.txt"), "w+b") as log:
        process = subprocess.Popen(
            [*server, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,  # where it would put artifacts
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if not _healthy(process, f"http://127.0.0.1:{port}/health"):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                raise AnalysisError(f"MLflow's server does not start; it says: {redact_text(said[-1])}")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_group(process)


def _healthy(process: subprocess.Popen[Any], address: str) -> bool:
    """Wait until a server answers; return False if it has ended before, or takes longer than `STARTING`."""
    end = monotonic() + STARTING
    while process.poll() is None and monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:  # it does not listen yet
            sleep(0.2)
        else:
            return True
    return False


def shown(space: str, tracking_uri: str) -> dict[str, Any]:
    """Return what :func:`of_mlflow` is to show of a study: a permuted net, or else the first run.

    Raises:
        AnalysisError: nothing can be read there, see :func:`analysis.load.runs`.
    """
    from mlflow import MlflowClient

    from analysis import cells, load

    frame = load.runs(space, tracking_uri).sort_values(["started", "key"], kind="stable")
    best = frame[(frame["stage"] == schema.SPARSE) & (frame["method"] == cells.PERMUTED)]
    run = str((best if len(best) else frame)["run_id"].iloc[0])
    experiment = MlflowClient(tracking_uri).get_experiment_by_name(space)
    return {"experiment": experiment.experiment_id, "run": run, "view": schema.TAG_VIEW in experiment.tags}


def write_screenshots(space: str, tracking_uri: str, out: Path, browser: str) -> list[Path]:
    """Write a report to a temporary folder, take all pictures and return their paths.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.
        out: folder for the pictures; made if need be.
        browser: path of a Chromium.

    Raises:
        AnalysisError: there is no study, or a page does not show what it is for.
    """
    from analysis.write import write_report

    study = shown(space, tracking_uri)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(prefix="report-") as folder, mlflow_pages(tracking_uri) as base:
        page = write_report(space, tracking_uri, Path(folder))
        host = urlsplit(base).hostname or "127.0.0.1"
        with Browser(browser, hosts=(host,)) as opened:
            for shot in [*of_report(page), *of_mlflow(base, **study)]:
                written.append(out / f"{shot.name}.png")
                written[-1].write_bytes(take(opened, shot))
    return written


@terminal.command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    options = command.parser("screenshots", "Take pictures of a study's report and of its runs in MLflow.")
    options.add_argument("--browser", metavar="PROGRAM", help="a Chromium (default: the one that is installed)")
    arguments = options.parse_args(argv)
    return command.guarded(lambda: _write(arguments))


def _write(arguments: argparse.Namespace) -> None:
    browser = find_browser(arguments.browser)
    quiet_retries()
    tracking_uri = working_tracking_uri(arguments.storage, arguments.tracking_uri)
    out = Path(arguments.out) if arguments.out else command.folder(arguments) / "images"
    print(*write_screenshots(arguments.space, tracking_uri, out, browser), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
