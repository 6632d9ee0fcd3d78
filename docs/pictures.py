"""Takes pictures of a study's report and of its runs in MLflow's pages: ``python docs/pictures.py --space NAME``.

It needs ``pip install -e ".[pictures]"`` and an installed Chromium. The report is written to a temporary folder, and an
MLflow server runs on the study's database meanwhile. The pages can reach no other host.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PIL import Image

from analysis import cells, command, load, write
from study.browse import pages
from study.tracking.views import CELLS, address
from trainables import schema
from trainables.host import terminal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Commands that are looked for, in this order."""
MOST_COLOURS = 256
"""Colours of a picture: enough for lines and text, at a fraction of the file size."""
MOST_PIXELS = 1200
"""Width of a picture, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A picture of a page.

    Attributes:
        name: of the file, without suffix.
        address: of the page.
        height: of the window, CSS pixels.
        width: of the window, CSS pixels.
        dark: whether the reader prefers a dark theme.
        phone: whether the device is a phone, with two device pixels per CSS pixel.
        ready: JavaScript that is true once the page shows its content.
        hidden: selector of elements that are not to be seen.
    """

    name: str
    address: str
    height: int
    width: int = 1200
    dark: bool = False
    phone: bool = False
    ready: str = "document.readyState === 'complete'"
    hidden: str = "#none"


def of_report(page: Path) -> list[Shot]:
    """Return the pictures of a report: its top, in the dark, and on a phone."""
    uri = page.absolute().as_uri()
    return [
        Shot(name="report", address=uri, height=1700),
        Shot(name="report-dark", address=f"{uri}#width", dark=True, height=760),
        Shot(name="report-phone", address=uri, width=390, height=844, phone=True),
    ]


def of_mlflow(base: str, experiment: str, run: str) -> list[Shot]:
    """Return the pictures of a study in MLflow: its cells, their gaps across the grid, and the run of a job.

    Args:
        base: address of the server, without a slash at the end.
        experiment: id of the study's experiment.
        run: id of the run to show.
    """
    kind = "workflowType=machine_learning"  # one of two kinds that the pages have
    rows = "document.querySelectorAll('[role=row] a[href*=\"/runs/\"]').length > 0"
    lines = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length > 0"
    named = f"document.body.innerText.includes('{schema.TEST_ACCURACY}')"
    banner = "div:has(> [aria-label='Hide banner'])"
    wide = functools.partial(Shot, width=1440)
    runs, charts = (f"{base}/#{address(experiment, *view)}" for view in ((CELLS,), ()))
    return [
        wide(name="mlflow-runs", address=runs, height=900, ready=rows, hidden=banner),
        wide(name="mlflow-charts", address=charts, height=1790, ready=lines, hidden=banner),
        Shot(
            name="mlflow-run", address=f"{base}/#/experiments/{experiment}/runs/{run}?{kind}", height=900, ready=named
        ),
    ]


def take(browser: Browser, shot: Shot, host: str) -> bytes:
    """Return a picture as a PNG.

    Args:
        browser: takes it.
        shot: what to show.
        host: the only host that the page may reach.

    Raises:
        playwright.sync_api.Error: the page does not open, or does not show its content.
    """
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme="dark" if shot.dark else "light",
        device_scale_factor=2 if shot.phone else 1,
        is_mobile=shot.phone,
    )
    with contextlib.closing(context):
        context.route(lambda url: urlsplit(url).hostname not in (None, host), lambda route: route.abort())
        page = context.new_page()
        page.goto(shot.address)
        page.wait_for_function(shot.ready)
        page.add_style_tag(content=f"{shot.hidden} {{ display: none !important }}")
        return shrunk(_at_rest(page))


def _at_rest(page: Page) -> bytes:
    """Return the first of two equal pictures in a row: pages fade in, and charts grow."""
    before = b""
    for _ in range(20):
        now = page.screenshot(animations="disabled")
        if now == before:
            break
        before = now
        page.wait_for_timeout(400)
    return before


def shrunk(png: bytes) -> bytes:
    """Return a picture with at most `MOST_COLOURS` colours, no wider than `MOST_PIXELS`."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > MOST_PIXELS:
        image = image.resize((MOST_PIXELS, round(image.height * MOST_PIXELS / image.width)), Image.Resampling.LANCZOS)
    # By coverage, so that thin lines, which fill few pixels, keep the colours of their methods. Each colour then
    # becomes the mean of its pixels, or a grey background would become pink.
    image = image.quantize(MOST_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE, kmeans=1)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def write_pictures(space: str, tracking_uri: str, out: Path, program: str) -> list[Path]:
    """Write a report to a temporary folder, take all pictures and return their paths.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.
        out: folder for the pictures.
        program: path of a Chromium.

    Raises:
        AnalysisError: there is no such study.
        OSError: MLflow's server does not start.
    """
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    frame = load.runs(space, tracking_uri).sort_values(["started", "key"], kind="stable")
    permuted = frame[(frame["stage"] == schema.SPARSE) & (frame["method"] == cells.PERMUTED)]
    run = str((permuted if len(permuted) else frame)["run_id"].iloc[0])
    experiment = MlflowClient(tracking_uri).get_experiment_by_name(space).experiment_id
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        page = write.write_report(space, tracking_uri, Path(folder))
        with (
            pages(tracking_uri) as base,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=program) as browser,
        ):
            for shot in [*of_report(page), *of_mlflow(base, experiment, run)]:
                written.append(out / f"{shot.name}.png")
                written[-1].write_bytes(take(browser, shot, urlsplit(base).hostname or ""))
    return written


@terminal.command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    options = command.parser("pictures", "Take pictures of a study's report and of its runs in MLflow.")
    options.prog = "python docs/pictures.py"
    options.add_argument("--browser", metavar="PROGRAM", help=f"a Chromium (default: one of {', '.join(BROWSERS)})")
    return command.guarded(options.parse_args(argv), _take_all)


def _take_all(arguments: argparse.Namespace) -> None:
    program = next(filter(None, map(shutil.which, [arguments.browser] if arguments.browser else BROWSERS)), None)
    if program is None:
        raise load.AnalysisError("no browser: name a Chromium by --browser")
    tracking_uri = command.tracking_uri(arguments)
    out = Path(arguments.out or Path(__file__).with_name("images"))
    print(*write_pictures(arguments.space, tracking_uri, out, program), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
