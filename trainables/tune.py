"""Ray Tune Trainables around the jobs: the only file of this package that imports ray.

``PlannedJob`` runs one job of a plan. ``Dense``, ``LTH``, ``Naive`` and ``Permuted`` run one cell of the grid from
scratch in any ``tune.Tuner``: a trial first computes the parents that the store lacks, or waits while another trial
computes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import fcntl
import functools
import gc
import json
import logging
import math
import os
import platform
import socket
import struct
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, ClassVar

import ray
import torch
from ray.tune import PlacementGroupFactory, Trainable
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainables import schema
from trainables.config import DETERMINISTIC_ON_CPU, TRAINING_CONFIGS, Cell, check_something_left, workers_of
from trainables.data import BY_DEFAULT, Reading, check_dataset
from trainables.errors import HostFault, Verdict, WouldRecur, causes, first_line, is_of_cuda, release, verdict
from trainables.graph import Closure, Job, Ref, measurements, target
from trainables.host.devices import is_broken, problem
from trainables.host.places import DEFAULT_STORAGE, located, settle
from trainables.host.redaction import redact_text
from trainables.host.terminal import forgive
from trainables.jobs.execution import News, compute, compute_together
from trainables.jobs.publishing import Context, Row
from trainables.knobs import KNOBS, UNKEYED
from trainables.storage.artifacts import read_metrics
from trainables.storage.store import StorageError, Store
from trainables.training import SILENCE
from trainables.training.allocation import give_back
from trainables.training.crew import Crew, Post, serve
from trainables.training.determinism import fix_workspace
from trainables.training.engines import CPU, GPU
from trainables.trial_results import (
    STATUS_DIED,
    STATUS_FAILED,
    STATUS_HELD,
    STATUS_HOST,
    STATUS_HOST_MEMORY,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    STATUS_STORAGE,
)

_STATUSES = {
    Verdict.RECURRING: STATUS_FAILED,
    Verdict.OF_HOST: STATUS_HOST,
    Verdict.OUT_OF_GPU_MEMORY: STATUS_OUT_OF_MEMORY,
    Verdict.OUT_OF_HOST_MEMORY: STATUS_HOST_MEMORY,
    Verdict.PASSING: STATUS_DIED,
}
HELD_SECONDS = 10.0
"""After waiting this long for another process's result, a trial gives up its place."""
SIGHT_PAUSES = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each look for the study in the storage: a network file system may briefly show an old state."""
_ADDRESS_OF_INTERFACE = 0x8915
"""Number of Linux's request ``SIOCGIFADDR``."""
_OTHER_VERSION = "this node runs another version of the study than the driver"
_STDERR = 2
"""File descriptor. In a worker it leads to the worker's file among Ray's logs, even if ``sys.stderr`` was replaced."""
_NAMED_METRICS = (
    *schema.EPOCH_METRICS,
    schema.FINAL_TRAIN_LOSS,
    schema.FINAL_TRAIN_ACCURACY,
    schema.GENERALIZATION_GAP,
    schema.SPARSITY_PRUNABLE,
    schema.SPARSITY_NETWORK,
)
Results = Generator[dict[str, Any], None, None]
"""The results of a trial's steps."""
_SURROUNDINGS = ("storage", "data_dir", "checkpoint_seconds", schema.MICRO_BATCHES, *UNKEYED)

_log = logging.getLogger(__name__)


class JobTrainable(Trainable):  # type: ignore[misc] # ray is untyped
    """A trial that advances one job by one epoch per step and ends when the job's outputs are published.

    Each result has the ``stage`` and ``job_key`` of what was computed, ``epoch`` (completed epochs of the trial's own
    job, 0 while an ancestor is computed; suitable as a scheduler's ``time_attr``) and the epoch's metrics. The last
    result also has the final metrics of the job, which is then published.

    Only ``step()`` does work, because Tune may call a trial's ``setup()`` more than once.
    """

    _results: Results | None = None
    _crew = Crew()

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the job that `config` describes."""
        settle()
        forgive()
        fix_workspace()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the next job in the same process and release everything that belonged to the last one."""
        self._close()
        _free_memory()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        surroundings = {name: config[name] for name in _SURROUNDINGS if config.get(name) is not None}
        own = {name: value for name, value in config.items() if name not in _SURROUNDINGS}
        data_dir = _located(str(surroundings["data_dir"])) if "data_dir" in surroundings else None
        given = {name: KNOBS[name].checked(surroundings.pop(name)) for name in UNKEYED if name in surroundings}
        workers = given.pop("workers", 1)
        reading = Reading(**given)
        job, outputs = self._job(own, data_dir, reading)
        context = Context(
            store=Store(_located(str(surroundings.pop("storage", DEFAULT_STORAGE)))),
            reading=reading,
            device=self._device(job),
            crew=self._crew_of(workers_of(job.config, workers), config.get("max_silence", SILENCE)),
            **{**surroundings, "data_dir": data_dir},
        )
        # One thread per CPU of this worker: more would compete for the cores of the other workers and trials.
        torch.set_num_threads(max(1, int(self._cpus())))
        self._target, self._context = job, context
        self._results = self._following(compute(job, outputs, context))

    def _crew_of(self, workers: int, silence: float) -> Crew:
        """Return this trial's crew: the last trial's, if this process ran one with as many workers."""
        if self._crew.workers != workers:
            self._crew.close()
            self._crew = _crew(workers, silence)
        return self._crew

    def _job(self, config: dict[str, Any], data_dir: str | None, reading: Reading) -> tuple[Job, list[int | None]]:
        """Return the job that the rest of the config names, and the outputs to publish."""
        raise NotImplementedError

    def _device(self, job: Job) -> torch.device:
        """Return the GPU that Ray has given to this trial, or the CPU if it has given none.

        Raises:
            HostFault: PyTorch cannot compute the job on this GPU.
        """
        if not ray.get_gpu_ids():
            return torch.device(CPU)
        precisions = [job.config.recipe.precision] if isinstance(job.config, TRAINING_CONFIGS) else []
        if (reason := problem(precisions)) is not None:
            raise HostFault(f"Ray has given a GPU of {platform.node()} to this trial, but {reason}")
        return torch.device(GPU)

    def _cpus(self) -> float:
        """Return the CPUs of the worker that leads, which has the first bundle; every worker has as many."""
        resources = self.trial_resources
        return float(resources.bundles[0].get("CPU", 1)) if resources else 1.0

    def step(self) -> dict[str, Any]:
        """Compute one epoch, or one measurement.

        Raises:
            RuntimeError: the trial has already ended or failed.
        """
        result = None if self._results is None else next(self._results, None)
        if result is None:
            raise RuntimeError("this trial has ended: there is nothing left to compute")
        return result

    def _following(self, computed: Generator[Row, None, None]) -> Results:
        """Yield the result of each step of the job that `computed` computes."""
        with closing(computed) as rows:
            for row in rows:
                if row["job_key"] == self._target.key and row.get("step") == self._target.epochs:
                    for _ in rows:  # publish before reporting: a scheduler may end the trial at its last epoch
                        pass
                    yield {**row, **self._finished(self._target)}
                    return
                yield self._going_on(self._target, row)
        yield self._finished(self._target)

    def _going_on(self, job: Job, row: Row) -> dict[str, Any]:
        return {"epoch": row.get("step", 0) if row["job_key"] == job.key else 0, **row, "done": False}

    def _finished(self, job: Job) -> dict[str, Any]:
        store = self._context.store
        final = read_metrics(store, job.key)["final"] if job.key in store else {}
        return {"stage": job.kind, "job_key": job.key, "epoch": job.epochs, "status": STATUS_OK, **final, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return the job's key; a resumed trial finds the job's state in the store's own checkpoint."""
        return {"job_key": self._target.key}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Do nothing: the job resumes from the store's own checkpoint of its key."""

    def cleanup(self) -> None:
        """Release the lease on a job that is stopped before its end, and end the other workers."""
        self._close()
        self._crew.close()

    def _close(self) -> None:
        if self._results is not None:
            self._results.close()

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Request one CPU for each worker; ``tune.with_resources`` requests more CPUs or GPUs, a bundle per worker."""
        return PlacementGroupFactory([{"CPU": 1}] * config.get("workers", 1))


class PlannedJob(JobTrainable):
    """One job of a plan, named by its key and a cell that needs it, or several jobs whose networks are stacked.

    The worker derives the job from the cell again. This keeps the config small and detects a node whose code differs
    from the planner's: the key is then not among those that the cell needs.

    The ``mates`` of a job are named in the same way. A result of such a trial has ``nets``: for each job with news, the
    result that a trial of this job alone would have, and its ``key``; see :func:`trainables.trial_results.by_net`.
    """

    _max_silence: float | None = None
    """Seconds after which a step counts as hung."""
    _study: str | None = None
    """Id of the study, which the first step looks for in the storage; None once it is found."""
    _fault: Exception | None = None
    """Why the job cannot begin here. The first step reports it; the error of a trial that dies earlier is lost."""
    _held_since: float | None = None

    def _begin(self, config: dict[str, Any]) -> None:
        self._fault = None
        try:
            self._prepare(config)
        except Exception as error:  # the driver has done the same without an error, so the fault is on this host
            its = verdict(error) is Verdict.RECURRING
            self._fault = HostFault(f"{type(error).__name__}: {first_line(error)}") if its else error

    def _prepare(self, config: dict[str, Any]) -> None:
        super()._begin(config)
        self._max_silence, self._held_since = config.get("max_silence"), None
        self._study = config.get("study")
        mates = [self._job(each, None, BY_DEFAULT) for each in json.loads(config.get("mates", "[]"))]
        if mates:
            wanted = [(self._target, list(config["outputs"])), *mates]
            self._results = self._following_all([job for job, _ in wanted], compute_together(wanted, self._context))

    def _job(self, config: dict[str, Any], data_dir: str | None, reading: Reading) -> tuple[Job, list[int | None]]:
        # The driver has derived the same job from the same cell, so any error here is this host's fault.
        try:
            cell = Cell.from_mapping(json.loads(config["cell"]))
            jobs = Closure(Ref(job) for job in (target(cell), *measurements(cell))).jobs
        except Exception as error:
            raise HostFault(f"{_OTHER_VERSION}: {type(error).__name__}: {first_line(error)}") from error
        if config["key"] not in jobs:
            raise HostFault(f"job {config['key'][:12]} is not part of its cell here: {_OTHER_VERSION}")
        return jobs[config["key"]], list(config["outputs"])

    def _find_study(self) -> None:
        """Raise HostFault unless this host sees the storage in which the driver has registered the study.

        Raises:
            HostFault: it does not, or the storage denies it access, which the driver has.
            StorageError: the storage is out of reach.
        """
        if self._study is None:
            return
        store = self._context.store
        for pause in SIGHT_PAUSES:
            time.sleep(pause)
            try:
                found = store.has_study(self._study)
            except StorageError as error:
                if error.passing:
                    raise
                raise HostFault(f"{platform.node()} does not reach the driver's storage: {error}") from error
            if found:
                self._study = None
                return
        raise HostFault(
            f"{platform.node()} does not see the driver's storage at {store.uri}; --storage takes a directory that "
            "all nodes share, or s3://, gs://, az://"
        )

    def step(self) -> dict[str, Any]:
        """Compute one epoch; a failure that the searcher can act on ends the trial with a status, not an exception.

        After an exception, Tune replaces the process; after a status, it may run the next trial there. So an error that
        has left the GPU unusable for this process is raised, whatever its status.

        A watchdog ends the process if a step hangs: an exception would not interrupt a hang in a driver or the kernel.
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
            ended = _ended(error)
            if ended["status"] == STATUS_DIED or _has_broken_gpu(error):
                raise
            release(error)
            gc.collect()
            _free_memory()
            return ended if self._fault is not None else {"stage": self._target.kind, **ended}
        finally:
            faulthandler.cancel_dump_traceback_later()
        if not all(each.get("waiting") for each in result.get("nets", [result])):
            self._held_since = None
            return result
        self._held_since = self._held_since or time.monotonic()
        if time.monotonic() - self._held_since < HELD_SECONDS:
            return result
        self._close()
        nets = result.get("nets", [{"key": self._target.key, **result}])
        held = {net["key"]: net["job_key"] for net in nets}
        return {"stage": self._target.kind, "status": STATUS_HELD, "held": held, "done": True}

    def _following_all(self, wanted: Sequence[Job], computed: Generator[dict[str, News], None, None]) -> Results:
        """Yield the result of each step of several jobs that `computed` computes; the last one ends when all have."""
        jobs = {job.key: job for job in wanted}
        with closing(computed) as rounds:
            for news in rounds:
                nets = []
                for key, event in news.items():
                    if isinstance(event, Exception):
                        if _has_broken_gpu(event):
                            raise event
                        result = {"stage": jobs[key].kind, **_ended(event)}
                    else:
                        result = self._finished(jobs[key]) if event is None else self._going_on(jobs[key], event)
                    nets.append({"key": key, **result})
                    if result["done"]:
                        del jobs[key]
                yield {"stage": self._target.kind, "nets": nets, "done": not jobs}


class CellTrainable(JobTrainable):
    """One cell of the grid on its own; the config holds the fields of ``trainables.config.Cell`` as flat scalars."""

    method: ClassVar[str]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Request one CPU for each worker; log, once in the driver's process, where trials run and results go."""
        _say_where(cls.__name__)
        return super().default_resource_request(config)

    def step(self) -> dict[str, Any]:
        """Compute one epoch; metrics that are not known yet are NaN, also while an ancestor is computed.

        Tune ends the whole experiment if any result lacks the metric that the user has named.
        """
        result = super().step()
        if result["job_key"] != self._target.key:
            result = {name: value for name, value in result.items() if name not in schema.EPOCH_METRICS}
        return {**dict.fromkeys(_NAMED_METRICS, math.nan), **result}

    def _job(self, config: dict[str, Any], data_dir: str | None, reading: Reading) -> tuple[Job, list[int | None]]:
        asked = config.setdefault("method", self.method)
        if asked != self.method:
            raise ValueError(f"{type(self).__name__} trains method {self.method!r}, the config says {asked!r}")
        cell = Cell.from_mapping(config)
        if cell.deterministic and not ray.get_gpu_ids():
            raise ValueError(DETERMINISTIC_ON_CPU)
        # The fingerprints of the data give the job the same key as in a plan.
        reading = dataclasses.replace(reading, image_size=cell.image_size)
        facts = check_dataset(cell.dataset, data_dir, reading)
        check_something_left(cell, facts)
        versions: dict[str, Any] = {"data_version": facts.fingerprint}
        if cell.mask_dataset:
            versions["mask_data_version"] = check_dataset(cell.mask_dataset, data_dir, reading).fingerprint
        return target(dataclasses.replace(cell, **versions)), [None]


class Dense(CellTrainable):
    """Train the dense net A."""

    method = "dense"


class LTH(CellTrainable):
    """Train net A from the rewind epoch under its own mask (lottery ticket)."""

    method = "lth"


class Naive(CellTrainable):
    """Train net B from the rewind epoch under A's unchanged mask."""

    method = "naive"


class Permuted(CellTrainable):
    """Train net B from the rewind epoch under A's mask, permuted to align A with B."""

    method = "permuted"


class _Serving:
    """The process of a worker other than the leader."""

    def serve(self, post: Post) -> None:
        """Work until this process is ended."""
        settle()
        forgive()
        _use_interface_of(ray.util.get_node_ip_address())
        serve(post)


class _ActorWorker:
    """A worker in its bundle of the trial's placement group."""

    def __init__(self, group: PlacementGroup, post: Post) -> None:
        """Start the process."""
        resources = dict(group.bundle_specs[post.rank])
        self._actor = (
            ray.remote(_Serving)
            .options(
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                resources={name: amount for name, amount in resources.items() if name != "memory"},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=post.rank),
            )
            .remote()
        )
        self._end = self._actor.serve.remote(post)

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return bool(ray.wait([self._end], timeout=0)[0])

    def end(self) -> None:
        """End the process."""
        ray.kill(self._actor)


def _crew(workers: int, silence: float) -> Crew:
    """Return the crew of a trial whose placement group, if there is one, has a bundle for each worker.

    Raises:
        ValueError: the group has fewer bundles.
    """
    group = ray.util.get_current_placement_group() if ray.is_initialized() else None
    if group is None or workers == 1:
        return Crew(workers, silence=silence)
    if group.bundle_count < workers:
        raise ValueError(
            f"workers={workers} needs a bundle of resources for each, the trial has {group.bundle_count}: request "
            "tune.PlacementGroupFactory([{...}] * workers), or nothing for one CPU each"
        )
    address = ray.util.get_node_ip_address()
    _use_interface_of(address)
    whole = all(bundle.get("GPU", 0.0) >= 1.0 for bundle in group.bundle_specs)
    return Crew(workers, functools.partial(_ActorWorker, group), host=address, silence=silence, own_gpus=whole)


def _use_interface_of(address: str) -> None:
    """Have gloo connect workers through the network interface with an address: a host's name may lead elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                found = fcntl.ioctl(asked, _ADDRESS_OF_INTERFACE, struct.pack("256s", name.encode()))[20:24]
                if socket.inet_ntoa(found) == address:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@functools.cache
def _say_where(name: str) -> None:
    """Log where the results of a Tuner's trials go, and on which Ray they run if this process has not started it."""
    node = ray._private.worker._global_node
    is_own = node is None or node.head
    joined = "" if is_own else f"; they run on the Ray cluster at {node.gcs_address}, which was there before"
    _log.warning("trials of %s publish in the storage and log nothing in MLflow by themselves%s", name, joined)


def _ended(error: Exception) -> dict[str, Any]:
    """Return the last result of a job that an exception has ended; its status tells the searcher how to proceed."""
    if isinstance(error, StorageError):
        status, text = STATUS_STORAGE, str(error)
    else:
        found = verdict(error)
        status, text = _STATUSES[found], first_line(error)
        if found in (Verdict.OUT_OF_GPU_MEMORY, Verdict.OUT_OF_HOST_MEMORY):
            source = next(each for each in reversed(causes(error, contexts=True)) if verdict(each) is found)
            text = f"{'' if found is Verdict.OUT_OF_GPU_MEMORY else 'the host is '}out of memory: {first_line(source)}"
        elif found is Verdict.PASSING or not isinstance(error, WouldRecur | ValueError):
            text = f"{type(error).__name__}: {text}"
    return {"status": status, "error": redact_text(text), "done": True}


def _has_broken_gpu(error: Exception) -> bool:
    return is_of_cuda(error) or is_broken()


def _free_memory() -> None:
    """Return the memory that this process keeps for later to the GPU and to the system."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    give_back()


def _node() -> str:
    """Return Ray's id of this node; empty outside of Ray."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def _located(place: str) -> str:
    """Return a path or URI as the driver means it: a trial runs in a directory of Tune's."""
    return located(place, os.environ.get("TUNE_ORIG_WORKING_DIR", ""))
