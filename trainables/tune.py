"""Ray Tune Trainables around the jobs: the only file of this package that imports ray.

``PlannedJob`` runs one job of a plan. ``Dense``, ``LTH``, ``Naive`` and ``Permuted`` run one cell of the grid from
scratch in any ``tune.Tuner``: a trial first computes the parents that the store lacks, or waits while another trial
computes them.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import math
import os
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from ray.tune import PlacementGroupFactory, Trainable

from trainables import schema
from trainables.config import Cell, check_something_left
from trainables.data import check_dataset
from trainables.errors import HostFault, Verdict, WouldRecur, first_line, verdict
from trainables.graph import Job, Ref, closure, measurements, target
from trainables.host.places import expanded, settle
from trainables.host.redaction import redact_text
from trainables.host.terminal import forgive
from trainables.jobs.execution import News, compute, compute_together
from trainables.jobs.train import Context, Row, final_metrics
from trainables.storage.store import StorageError, Store
from trainables.training.allocation import give_back

STATUS_OK = "ok"
STATUS_FAILED = "failed"
"""It would fail again in the same way."""
STATUS_HOST = "host"
"""It would fail again here, but perhaps not on another host."""
STATUS_OUT_OF_MEMORY = "out_of_memory"
STATUS_STORAGE = "storage"
"""The storage could not be read or written, by any job."""
STATUS_HELD = "held"
"""Another process is computing it."""
STATUS_DIED = "died"
"""It failed for another reason, which may not recur."""
HELD_SECONDS = 10.0
"""After waiting this long for another process's result, a trial gives up its place."""
SIGHT_PAUSES = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each look for the study in the storage: a network file system may have old news for a moment."""
_OTHER_VERSION = "this node runs another version of the study than the driver"
_STDERR = 2
"""File descriptor: a worker's goes to its file among Ray's logs, whatever has become of ``sys.stderr``."""
HOST = ("hostname", "node")
"""In each result of a planned job: the name of the machine, and Ray's id of the node."""
_NAMED_METRICS = (
    *schema.EPOCH_METRICS,
    schema.FINAL_TRAIN_LOSS,
    schema.FINAL_TRAIN_ACCURACY,
    schema.GENERALIZATION_GAP,
    schema.SPARSITY_PRUNABLE,
    schema.SPARSITY_NETWORK,
)
_SURROUNDINGS = ("storage", "data_dir", "checkpoint_seconds")


class JobTrainable(Trainable):  # type: ignore[misc] # ray is untyped
    """A trial that advances one job by one epoch per step and ends when the job's outputs are published.

    Each result has ``stage`` and ``job_key`` of what was computed, ``epoch`` (epochs completed of the trial's own job,
    0 while an ancestor is computed: use it as a scheduler's ``time_attr``) and the epoch's metrics. The last one has
    the final metrics of the job, too, which is published by then.

    Work happens in ``step()`` only: Tune may call ``setup()`` of a trial more than once.
    """

    _rows: Iterator[Row] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the job that `config` describes."""
        settle()
        forgive()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the next job in the same process; nothing of the last one remains."""
        self._close()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        give_back()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        surroundings = {name: config[name] for name in _SURROUNDINGS if config.get(name) is not None}
        if "data_dir" in surroundings:
            surroundings["data_dir"] = str(_absolute(surroundings["data_dir"]))
        job, outputs = self._job(
            {name: value for name, value in config.items() if name not in _SURROUNDINGS}, surroundings.get("data_dir")
        )
        context = Context(
            store=Store(_location(str(surroundings.pop("storage", "outputs")))),
            device=self._device(),
            **surroundings,
        )
        # One thread per CPU of the trial: more would only fight over the cores that other trials compute on.
        torch.set_num_threads(max(1, int(self._cpus())))
        self._target, self._context = job, context
        self._rows = compute(job, outputs, context)

    def _job(self, config: dict[str, Any], data_dir: str | None) -> tuple[Job, list[int | None]]:
        """Return the job that the rest of the config names, and which of its outputs are wanted."""
        raise NotImplementedError

    def _device(self) -> torch.device:
        """Return the GPU that Ray has given to this trial, or the CPU if it has given none."""
        if not ray.get_gpu_ids():
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise HostFault(
                f"Ray has given a GPU to this trial, but PyTorch {torch.__version__} sees none on {platform.node()}: "
                "its driver, or a PyTorch built for CUDA, is missing there"
            )
        return torch.device("cuda")

    def _cpus(self) -> float:
        resources = self.trial_resources
        return float(resources.required_resources.get("CPU", 1)) if resources else 1.0

    def step(self) -> dict[str, Any]:
        """Compute one epoch, or one measurement.

        Raises:
            RuntimeError: the trial has ended, or failed, before.
        """
        if self._rows is None:
            raise RuntimeError("this trial has ended: there is nothing left to compute")
        try:
            return self._advance(self._rows)
        except BaseException:
            self._close()  # a generator that has raised looks like one that is through
            raise

    def _advance(self, rows: Iterator[Row]) -> dict[str, Any]:
        row = next(rows, None)
        if row is None:
            return self._finished(self._target)
        if row["job_key"] == self._target.key and row.get("step") == self._target.epochs:
            for _ in rows:  # published before it is reported: a scheduler may end the trial at its last epoch
                pass
            return {**row, **self._finished(self._target)}
        return self._going_on(self._target, row)

    def _going_on(self, job: Job, row: Row) -> dict[str, Any]:
        return {"epoch": row.get("step", 0) if row["job_key"] == job.key else 0, **row, "done": False}

    def _finished(self, job: Job) -> dict[str, Any]:
        store = self._context.store
        final = final_metrics(store, job.key) if job.key in store else {}
        return {"stage": job.kind, "job_key": job.key, "epoch": job.epochs, "status": STATUS_OK, **final, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return which job this is: its state is in the store's own checkpoint, where a resumed trial finds it."""
        return {"job_key": self._target.key}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Do nothing: the job goes on from the store's own checkpoint of its key."""

    def cleanup(self) -> None:
        """Give back the lease on a job that is stopped half-way."""
        self._close()

    def _close(self) -> None:
        if self._rows is not None and hasattr(self._rows, "close"):
            self._rows.close()
        self._rows = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Ask for one CPU; ``tune.with_resources`` asks for more, or for a GPU."""
        return PlacementGroupFactory([{"CPU": 1}])


class PlannedJob(JobTrainable):
    """One job of a plan, named by its key and a cell that it belongs to; or several, whose networks are stacked.

    The job is derived anew from the cell, so the config stays small and a node with other code than the planner's is
    found out: the key is then not among the cell's.

    The ``mates`` of a job are named in the same way. Results of such a trial have ``nets``, a list with what the
    result would be for each of the jobs of which there is news, and its ``key``; see :func:`by_net`.
    """

    _max_silence: float | None = None
    """Seconds after which a step is taken for hung."""
    _study: str | None = None
    """Id of the study, to be looked for in the storage before any work."""
    _fault: Exception | None = None
    """Why the job cannot begin here. Told by the first step: of a trial that dies earlier, nobody would learn it."""
    _held_since: float | None = None
    _rounds: Generator[dict[str, News], None, None] | None = None
    """Of several jobs; None for a single one."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._fault = None
        try:
            self._prepare(config)
        except Exception as error:  # of what the driver has done before: what is wrong is here
            its = verdict(error) is Verdict.RECURRING
            self._fault = HostFault(f"{type(error).__name__}: {first_line(error)}") if its else error

    def _prepare(self, config: dict[str, Any]) -> None:
        super()._begin(config)
        self._max_silence, self._held_since = config.get("max_silence"), None
        self._study = config.get("study")
        mates = [self._job(each, None) for each in json.loads(config.get("mates", "[]"))]
        if mates:
            wanted = [(self._target, list(config["outputs"])), *mates]
            self._open = {job.key: job for job, _ in wanted}
            self._rounds = compute_together(wanted, self._context)
            self._max_silence = self._max_silence and len(wanted) * self._max_silence

    def _job(self, config: dict[str, Any], data_dir: str | None) -> tuple[Job, list[int | None]]:
        # The driver has derived the same job from the same cell: whatever goes wrong here is this host's.
        try:
            cell = Cell.from_mapping(json.loads(config["cell"]))
            jobs = closure(Ref(job) for job in (target(cell), *measurements(cell))).jobs
        except Exception as error:
            raise HostFault(f"{_OTHER_VERSION}: {type(error).__name__}: {first_line(error)}") from error
        if config["key"] not in jobs:
            raise HostFault(f"job {config['key'][:12]} is not part of its cell here: {_OTHER_VERSION}")
        return jobs[config["key"]], list(config["outputs"])

    def _find_study(self) -> None:
        """Raise HostFault unless the storage here is the driver's, which has registered the study there."""
        if self._study is None:
            return
        store = self._context.store
        for pause in SIGHT_PAUSES:
            time.sleep(pause)
            if store.has_study(self._study):
                self._study = None
                return
        raise HostFault(
            f"{platform.node()} does not see the driver's storage at {store.uri}; --storage takes a directory that "
            "all nodes share, or s3://, gs://, az://"
        )

    def step(self) -> dict[str, Any]:
        """Compute one epoch; failures of which it is known what to do about them end the trial with a status.

        A step that hangs ends the process, which no exception could do if it hangs in a driver or in the kernel.
        """
        return {**self._step(), "node": _node()}

    def _step(self) -> dict[str, Any]:
        if self._max_silence:
            faulthandler.dump_traceback_later(self._max_silence, exit=True, file=_STDERR)
        try:
            if self._fault is not None:
                raise self._fault
            self._find_study()
            result = super().step()
        except Exception as error:
            self._close()
            ended = _ended(error)
            if ended["status"] == STATUS_DIED:
                raise
            return ended if self._fault is not None else {"stage": self._target.kind, **ended}
        finally:
            faulthandler.cancel_dump_traceback_later()
        if not self._is_waiting(result):
            self._held_since = None
            return result
        self._held_since = self._held_since or time.monotonic()
        if time.monotonic() - self._held_since < HELD_SECONDS:
            return result
        together = self._rounds is not None
        self._close()
        if together:
            return self._news({key: _held(job) for key, job in self._open.items()})
        return _held(self._target)

    def _advance(self, rows: Iterator[Row]) -> dict[str, Any]:
        if self._rounds is None:
            return super()._advance(rows)
        news = {}
        for key, event in next(self._rounds).items():
            job = self._open[key]
            if isinstance(event, Exception):
                news[key] = {"stage": job.kind, **_ended(event)}
            else:
                news[key] = self._finished(job) if event is None else self._going_on(job, event)
        return self._news(news)

    def _news(self, news: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a trial of several jobs, which ends when all of them have."""
        for key, result in news.items():
            if result["done"]:
                del self._open[key]
        if not self._open:
            self._close()
        nets = [{"key": key, **result} for key, result in news.items()]
        return {"stage": self._target.kind, "nets": nets, "done": not self._open}

    def _is_waiting(self, result: Mapping[str, Any]) -> bool:
        return all(each.get("waiting") for each in result.get("nets", [result]))

    def _close(self) -> None:
        super()._close()
        if self._rounds is not None:
            self._rounds.close()
        self._rounds = None


class CellTrainable(JobTrainable):
    """One cell of the grid by itself; the config holds the fields of ``trainables.config.Cell`` as flat scalars."""

    method: ClassVar[str]

    def step(self) -> dict[str, Any]:
        """Compute one epoch; metrics that are not known yet, an ancestor's time among them, are NaN.

        Tune ends the whole experiment if the metric that its user has named is missing from any result.
        """
        result = super().step()
        if result["job_key"] != self._target.key:
            result = {name: value for name, value in result.items() if name not in schema.EPOCH_METRICS}
        return {**dict.fromkeys(_NAMED_METRICS, math.nan), **result}

    def _job(self, config: dict[str, Any], data_dir: str | None) -> tuple[Job, list[int | None]]:
        asked = config.setdefault("method", self.method)
        if asked != self.method:
            raise ValueError(f"{type(self).__name__} trains method {self.method!r}, the config says {asked!r}")
        cell = Cell.from_mapping(config)
        # With the planner's fingerprints of the data it is the planner's job.
        facts = check_dataset(cell.dataset, data_dir)
        check_something_left(cell, facts)
        versions: dict[str, Any] = {"data_version": facts.fingerprint}
        if cell.mask_dataset:
            versions["mask_data_version"] = check_dataset(cell.mask_dataset, data_dir).fingerprint
        return target(dataclasses.replace(cell, **versions)), [None]


class Dense(CellTrainable):
    """Train the dense net A."""

    method = "dense"


class LTH(CellTrainable):
    """Train net A from the rewind epoch under its own mask (lottery ticket)."""

    method = "lth"


class Naive(CellTrainable):
    """Train net B from the rewind epoch under A's mask as it is."""

    method = "naive"


class Permuted(CellTrainable):
    """Train net B from the rewind epoch under A's mask, permuted to align A with B."""

    method = "permuted"


def by_net(result: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what a trial's result says of its jobs: key -> its part of the result.

    Args:
        result: of a :class:`PlannedJob`.
        keys: of the jobs that are of interest. What is said of a trial as a whole is said of the first of them.
    """
    if "nets" not in result:
        return dict.fromkeys(keys[:1], result)
    host = {name: result.get(name, "") for name in HOST}
    return {str(net["key"]): {**host, **net} for net in result["nets"] if net["key"] in keys}


def _held(job: Job) -> dict[str, Any]:
    return {"stage": job.kind, "status": STATUS_HELD, "done": True}


def _ended(error: Exception) -> dict[str, Any]:
    """Return the last result of a job that an exception has ended: its status says what is to be done about it."""
    named = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, StorageError):
        status, text = STATUS_STORAGE, str(error)
    elif _is_out_of_memory(error):
        status, text = STATUS_OUT_OF_MEMORY, f"out of memory: {first_line(error)}"
    elif (found := verdict(error)) is Verdict.OF_HOST:
        status, text = STATUS_HOST, first_line(error) if isinstance(error, HostFault) else named
    elif found is Verdict.RECURRING:
        status, text = STATUS_FAILED, first_line(error) if isinstance(error, WouldRecur | ValueError) else named
    else:
        status, text = STATUS_DIED, named
    return {"status": status, "error": redact_text(text), "done": True}


def _node() -> str:
    """Return Ray's id of this node; empty outside of Ray."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has a class of its own for a full GPU only.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _location(storage: str) -> str:
    """Return a storage as the driver means it: URIs are the same everywhere."""
    return storage if "://" in storage else str(_absolute(storage))


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Resolve a path from where the driver was started; a trial's own directory is somewhere in Tune's results."""
    return Path(os.environ.get("TUNE_ORIG_WORKING_DIR") or os.getcwd()) / expanded(path)
