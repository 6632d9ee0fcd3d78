"""Checkpoints of one job, written by a thread while the job trains on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from trainables.jobs.publishing import Context
from trainables.storage.artifacts import pack_checkpoint

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes a job's checkpoints, one at a time. As a context manager, it has written all of them when it ends.

    A killed process leaves the last checkpoint that was written completely, because the store replaces it in one step.
    """

    def __init__(self, key: str, context: Context) -> None:
        """Prepare to write the checkpoints of the job with this key."""
        self._key, self._context = key, context
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            StorageError: it could not be written.
        """
        if (writing := self._writing) is not None:
            self._writing = None
            writing.result()

    def write(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, see ``pack_checkpoint``; call :meth:`wait` first.

        Args:
            tensors: on the CPU; nobody may change them any more.
            document: likewise.
        """
        assert self._writing is None, "another checkpoint is being written"
        self._writing = self._thread.submit(self._write, tensors, document)

    def _write(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        with self._context.log.hearing():
            self._context.store.write_checkpoint(self._key, pack_checkpoint(self._key, tensors, document))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            _log.warning("the last checkpoint was not written: %s", failure)  # the job ends for another reason
        finally:
            self._thread.shutdown()
