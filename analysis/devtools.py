"""A headless Chromium that is told what to do through a pipe, by its DevTools protocol.

No port is opened and no package is needed for that: requests and answers are JSON documents that end in a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from types import TracebackType
from typing import IO, Any, Self

from analysis.load import AnalysisError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Commands that are looked for, in this order."""
PATIENCE = 60.0
"""Seconds to wait for an answer, or for what a page is to show."""
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
)


def find_browser(named: str | None = None) -> str:
    """Return the path of a browser.

    Args:
        named: command or path of the one to use; by default the first of `BROWSERS` that is installed.

    Raises:
        AnalysisError: there is none.
    """
    candidates = (named,) if named else BROWSERS
    for command in candidates:
        if path := shutil.which(command):
            return path
    if named:
        raise AnalysisError(f"no browser {named!r}: name the command or path of a Chromium")
    raise AnalysisError(f"no browser: none of {', '.join(BROWSERS)} is installed; name another Chromium by --browser")


class Browser:
    """A browser of its own profile, which ends with the ``with`` block; pages can reach the hosts named and no other.

    All methods raise AnalysisError if the browser ends, refuses or does not answer in `PATIENCE` seconds.
    """

    def __init__(self, path: str, *, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
        """Prepare.

        Args:
            path: of the program.
            hosts: names or addresses; files can be read whatever they are.
        """
        known = "".join(f", EXCLUDE {host}" for host in hosts)
        self._command = [path, *FLAGS, f"--host-resolver-rules=MAP * ~NOTFOUND{known}"]
        if os.geteuid() == 0:
            self._command.append("--no-sandbox")  # Chromium does not start otherwise
        self._number, self._unread = 0, b""

    def __enter__(self) -> Self:
        """Start the browser."""
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        try:
            self._process = subprocess.Popen(
                # It talks by the descriptors 3 and 4.
                ["/bin/sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null', *self._command, self._home()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError:
            self._profile.cleanup()
            raise
        return self

    def _home(self) -> str:
        return f"--user-data-dir={self._profile.name}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser and remove its profile."""
        with self._process:  # which closes the pipes
            end_group(self._process)
        self._profile.cleanup()

    def open(self, url: str, *, width: int, height: int, dark: bool = False, phone: bool = False) -> Page:
        """Return a new page.

        Args:
            url: what to open.
            width: of the window, CSS pixels.
            height: likewise.
            dark: whether the reader prefers a dark theme.
            phone: whether it is one, with two device pixels per CSS pixel.
        """
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", features=[scheme])
        page.ask("Page.enable")  # else scripts for new documents are kept, and not run
        page.go(url)
        return page

    @staticmethod
    def _pipe(end: IO[bytes] | None) -> int:
        assert end is not None
        return end.fileno()

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        if session is not None:
            request["sessionId"] = session
        try:
            unsent = memoryview(json.dumps(request).encode() + b"\0")
            while unsent:
                unsent = unsent[os.write(self._pipe(self._process.stdin), unsent) :]
        except BrokenPipeError:
            raise AnalysisError("the browser has ended") from None
        end = time.monotonic() + PATIENCE
        while (answer := self._message(end)).get("id") != self._number:
            pass  # an event
        if "error" in answer:
            raise Refused(f"the browser refuses {method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self, end: float) -> dict[str, Any]:
        """Return the next message, waiting for it until `end` by the monotonic clock."""
        answers = self._pipe(self._process.stdout)
        while b"\0" not in self._unread:
            if not select.select([answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AnalysisError(f"the browser did not answer in {PATIENCE:g} s")
            chunk = os.read(answers, 1 << 20)
            if not chunk:
                raise AnalysisError("the browser has ended")
            self._unread += chunk
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Refused(AnalysisError):
    """The browser or the page did not do what it was asked."""


class Page:
    """A page of a browser; its methods raise as the browser's do."""

    def __init__(self, browser: Browser, session: str) -> None:
        """Take over a page that the browser has attached to."""
        self._browser, self._session = browser, session

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a request that concerns this page."""
        return self._browser.ask(method, self._session, **params)

    def go(self, url: str) -> None:
        """Open another address.

        Raises:
            AnalysisError: it cannot be opened.
        """
        problem = self.ask("Page.navigate", url=url).get("errorText")
        if problem:
            raise AnalysisError(f"the browser cannot open {url}: {problem}")

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression, or of what it promises."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise Refused(f"the page refuses {script!r}: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    def wait(self, script: str, what: str) -> None:
        """Wait until a JavaScript expression is true.

        Args:
            script: the expression.
            what: for people, what it stands for.

        Raises:
            AnalysisError: it is not after `PATIENCE` seconds.
        """
        end = time.monotonic() + PATIENCE
        while True:
            reason = ""
            try:
                if self.value(script):
                    return
            except Refused as error:  # of a page that is only half there, or just giving way to the next
                reason = f" ({error})"
            if time.monotonic() > end:
                raise AnalysisError(f"no {what} on the page after {PATIENCE:g} s{reason}")
            time.sleep(0.1)

    def picture(self) -> bytes:
        """Return what the window shows, as a PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


def end_group(process: subprocess.Popen[Any], patience: float = 10.0) -> None:
    """End a process that leads a group of its own, and all that it has started.

    Args:
        process: the leader.
        patience: seconds that it has to end its own; what is left then is killed.
    """
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
