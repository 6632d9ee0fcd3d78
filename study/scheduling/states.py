"""What a job of a running study is doing: the words that the order of work, the display and the summary share.

A job waits until its parents are published, is then ready (or pauses before its next attempt), is handed to Ray, which
queues it until there is room, and runs. It ends as done or failed; what a failed job leaves without a parent is
blocked. When the storage itself is out of order, what has not begun is not run at all.
"""

from __future__ import annotations

from typing import Final

WAITING: Final = "waiting"
READY: Final = "ready"
QUEUED: Final = "queued"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
BLOCKED: Final = "blocked"
NOT_RUN: Final = "not run"

STATES: Final = (WAITING, READY, QUEUED, RUNNING, DONE, FAILED, BLOCKED, NOT_RUN)
OPEN: Final = (WAITING, READY, QUEUED, RUNNING)
"""What a job may still leave for another state."""
