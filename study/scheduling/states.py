"""The states of a job in a running study, which the searcher, the display and the summary share.

A job waits until its parents are published. It is then ready (also while it pauses before its next attempt), queued in
Ray until its resources are free, and running. It ends as done or failed; the descendants of a failed job are blocked.
If the storage fails or no host is left, jobs that have not begun are not run.
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
"""The states in which a job has not ended."""
