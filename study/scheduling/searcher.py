"""The order of work, which hands out a job once its parents are published.

Imports neither ray nor torch, so that a plan can be laid on machines that do not exist; ``trials`` passes it to Tune.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from study.estimate import Estimates, image_size
from study.plan import Plan
from study.scheduling.cards import Card
from study.scheduling.hosts import TOLERANCE, Hosts, Resources
from study.scheduling.placement import Group, Need, Pool, Request, Slot, group
from study.scheduling.states import BLOCKED, DONE, FAILED, NOT_RUN, OPEN, QUEUED, READY, RUNNING, WAITING
from study.tracking.labels import name_in
from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.graph import Job
from trainables.host.clock import duration
from trainables.host.redaction import redact_text
from trainables.storage.patience import default_patience
from trainables.storage.store import StorageError
from trainables.training import LEAST_MICRO_BATCH, eval_batch
from trainables.training.way import Way
from trainables.trial_results import (
    STATUS_DIED,
    STATUS_FAILED,
    STATUS_HELD,
    STATUS_HOST,
    STATUS_HOST_MEMORY,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    STATUS_STORAGE,
    by_net,
)

NO_MORE_TRIALS = "FINISHED"
"""What Ray Tune expects from a search algorithm that has no more trials."""
AHEAD_LOCAL, AHEAD_CLUSTER, AHEAD_IN_GROWTH = 2, 16, 128
"""Number of jobs handed to Ray beyond what fits: on this machine, on a cluster, and on one to which machines are being
added. Ray's autoscaler starts machines for them. They vanish with the driver, unlike ``ray.autoscaler.sdk``'s requests,
which would keep machines alive, and paid for, after the driver has died."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before the next attempt at a job that died; the pause doubles from the first to the longest."""
HELD_PAUSE = 20.0
"""Seconds before the next look at a job that another study is computing."""
LOOK_SECONDS = 0.05
"""Seconds that the searcher waits for the store to confirm a result; it takes later answers at its next call."""
STARVING_SECONDS = 10.0
"""While a trial has waited longer than this many seconds for resources, no smaller one is handed out."""
GROWTH_SECONDS = 900.0
"""A cluster counts as growing until no node has joined for this many seconds: a machine takes minutes to start."""
_GPU_ADVICE = (
    "it had a whole GPU, and its batches cannot be divided further: a smaller batch_size or precision=bf16 needs less; "
    "or use GPUs with more memory"
)
_HOST_ADVICE = "a smaller batch_size needs less, and so do fewer trials at a time (--max-concurrent)"
LIKE_LENGTH = 0.75
"""Only networks with at least this fraction of the longest one's epochs are stacked together; otherwise the stack would
drain to a single network."""


@dataclass
class Trial:
    """A trial that Tune holds: one job, or several whose networks are stacked.

    Attributes:
        trial_id: Tune's name of it.
        keys: keys of its jobs that have not ended.
        asked: the resources that each of its workers requests.
        avoided: nodes on which it must not run.
        since: when it was handed out, in seconds of the searcher's clock.
        card: the kind of GPU that it is meant for; None if the kind does not matter.
        slots: the GPUs on which its workers probably are; None for one that waits.
        workers: number of its workers.
        micro_batches: parts into which its jobs divide their batches.
        started: whether it has got its resources.
        worked: whether it has reported an epoch.
        heard: monotonic seconds of its last result, or of the first check for silence; 0 before both.
        asked_store: monotonic seconds of the last question to the store about its jobs; 0 if there was none.
        answers: the store's pending answers, one for each job.
        killed: why the driver has killed it; empty if it has not.
        published: whether the driver has killed it because all its jobs are published.
    """

    trial_id: str
    keys: list[str]
    asked: Resources
    avoided: frozenset[str]
    since: float
    card: Card | None = None
    slots: Sequence[Slot | None] = (None,)
    workers: int = 1
    micro_batches: int = 1
    started: bool = False
    worked: bool = False
    heard: float = 0.0
    asked_store: float = 0.0
    answers: Sequence[Future[bool]] = ()
    killed: str = ""
    published: bool = False


class PlanSearcher:
    """Suggests the jobs of a plan, the longest remaining chain first.

    Its methods never raise, whatever Tune reports, because an exception here would end the sweep. The search is
    finished when no job is ready, pausing, running or awaiting the store's answer, so a plan with failed jobs, too,
    comes to an end.

    A job whose trial died is tried again after a pause. Each attempt is a new trial, because Tune does not retry a
    trial whose process dies before the trial starts, as a reused process may. An attempt that gets further than all
    earlier ones resets the count of attempts: a job of many hours completes on machines that are taken away every hour,
    while a job that dies in the same epoch each time fails.

    The next attempt runs on another node if one fits. A node that turns out to be broken gets no more jobs, and
    failures there do not count. A job is done when the store holds its result, whatever its trial has reported.

    A job whose recipe allows stacking shares a trial with the next ready jobs like it; each of them ends separately. A
    job that has died is tried again alone, because it may have caused the death of the whole stack.
    """

    deaths: Callable[[str], Mapping[str, Any]] = staticmethod(lambda trial_id: {})
    """Returns ``error``, ``node`` and ``hostname`` of a trial that died, and its ``status`` if its jobs were done; Tune
    does not pass them to a searcher."""
    moved: Callable[[str, str], None] = staticmethod(lambda key, state: None)
    """Called with a job's key and new state, after each change of state except for the first ones."""

    def __init__(
        self,
        plan: Plan,
        todo: Mapping[str, set[int | None]],
        estimates: Estimates,
        surroundings: Mapping[str, Any],
        retries: int = 0,
        *,
        hosts: Hosts,
        needs: Mapping[Group, Need] | None = None,
        expected: Card | None = None,
        ahead: int = AHEAD_LOCAL,
        ahead_in_growth: int = 0,
        max_concurrent: int | None = None,
        nets_per_trial: int = 1,
        elastic: bool = False,
        stored: Callable[[str], Future[bool]] | None = None,
        free: Callable[[str], Future[bool]] | None = None,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the order.

        Args:
            plan: the graph.
            todo: missing outputs of each job, from ``plan.closure.todo(published)``.
            estimates: seconds of each job, which give the order of the ready jobs.
            surroundings: config entries that every trial gets (storage, data_dir, ...).
            retries: further attempts at a job that died; an attempt that gets further than all earlier ones resets
                their count.
            hosts: the nodes of the cluster, which may change, and the failures on them.
            needs: group -> what its jobs need; one CPU by default.
            expected: the kind of GPU of nodes that are yet to come.
            ahead: number of jobs handed to Ray beyond what fits, at least 1, so that free resources are used at once
                and an autoscaler sees the demand. An urgent job that becomes ready later waits behind all of them.
            ahead_in_growth: the same while the cluster grows, if that is more: an autoscaler starts no more machines
                than the waiting trials need.
            max_concurrent: most trials at the same time; None: as many as fit.
            nets_per_trial: most networks that are stacked; fewer when that keeps every GPU (or every CPU, without
                GPUs) busy.
            elastic: a trial starts with fewer workers while the cluster has no room for all, busy or not.
            stored: asks the store for a job's results; None: the searcher trusts the trial's report.
            free: asks the store whether no process holds the lease on a job; None: the next trial finds out.
            say: shows a line about a further attempt, or about a node that gets no more jobs.
            clock: returns monotonic seconds.
        """
        self.plan = plan
        self.todo = {key: sorted(outputs, key=lambda epoch: (epoch is None, epoch)) for key, outputs in todo.items()}
        self.state = dict.fromkeys(self.todo, WAITING)
        self.errors: dict[str, str] = {}
        """Key of a failed job -> its error; of a blocked job -> key of the failed job that it waited for."""
        self.halted: str | None = None
        """Why no more jobs are handed out: the storage's error at a job's last attempt, or that no host is left; else
        None."""
        self.recurring: set[str] = set()
        """Keys of failed jobs that would fail again in the same way."""
        self._surroundings = dict(surroundings)
        self._retries, self._ahead, self._max_concurrent = retries, ahead, max_concurrent
        self._nets_per_trial, self._elastic = nets_per_trial, elastic
        self._most: dict[Group, int] = {}
        self._divided: dict[tuple[Group, bool], int] = {}
        """Group, and whether its jobs train or measure -> the micro-batches of their batches, if more than one."""
        self._hosts, self._stored, self._free, self._say, self._clock = hosts, stored, free, say, clock
        self._ahead_in_growth, self._grown = max(ahead, ahead_in_growth), clock()
        self._room: Resources = hosts.room()
        """What the nodes that get jobs had for trials at the last call of :meth:`suggest`, or at the start."""
        self._needs = {each: Need(workers=each.workers) for each in map(self._group, self.todo)} | dict(needs or {})
        self._expected = expected
        self._vain = dict.fromkeys(self.todo, 0)
        self._furthest = dict.fromkeys(self.todo, 0)
        self._shunned: dict[str, set[str]] = {}
        """Key of a job -> nodes on which the job has died, or has not reached the storage."""
        self._unreached: dict[str, set[str]] = {}
        """Key of a job -> nodes from which the job has not reached the storage."""
        self._homeless: dict[str, float] = {}
        """Key of a job -> since when only excluded nodes could run it, in seconds of the clock: others may join."""
        self._published: dict[str, float] = {}
        """Id of a node -> seconds of the clock when the store last confirmed a result from there."""
        self._patience = default_patience()
        self._looking: list[tuple[str, Trial, Mapping[str, Any], Future[bool]]] = []
        """Jobs that their trials report as done and that the store has not confirmed yet."""
        parents = {key: {ref.job.key for _, ref in plan.jobs[key].parents} & self.todo.keys() for key in self.todo}
        self._children: dict[str, list[str]] = {key: [] for key in self.todo}
        for key, its in parents.items():
            for parent in its:
                self._children[parent].append(key)
        self._urgency = self._longest_chains(estimates)
        self._ready: list[tuple[float, int, str]] = []
        self._pausing: list[tuple[float, int, str]] = []
        self._held: dict[str, tuple[str, Future[bool] | None]] = {}
        """Key of a job that waits for another process -> key of the job that this one computes, and the store's pending
        answer whether it is free; None in a pause.

        The driver asks, because a trial would have to watch the lease for a minute to see that its holder is dead."""
        self.trials: dict[str, Trial] = {}
        """Id of each trial that Tune holds -> the trial."""
        self._mean: Counter[str] = Counter()
        for each, count in Counter(map(self._group, self.todo)).items():
            asked = self._pool().request(self._needs[each], math.inf, expected).resources
            weight = each.workers * count / len(self.todo)
            self._mean.update({name: amount * weight for name, amount in asked.items()})
        self._number = {key: number for number, key in enumerate(self.todo)}
        self._order = TopologicalSorter(parents)
        self._order.prepare()
        for key in self._order.get_ready():
            self._release(key)

    def _longest_chains(self, estimates: Estimates) -> dict[str, float]:
        """Return for each job the seconds from its start to the end of the longest chain of its descendants."""
        chains: dict[str, float] = {}
        for key in reversed(self.todo):  # children come after their parents
            below = max((chains[child] for child in self._children[key]), default=0.0)
            chains[key] = estimates.seconds[key] + below
        return chains

    def _move(self, key: str, state: str) -> None:
        self.state[key] = state
        self.moved(key, state)

    def _release(self, key: str) -> None:
        self._move(key, READY)
        heapq.heappush(self._ready, (-self._urgency[key], self._number[key], key))

    # --- Ray Tune's side --------------------------------------------------------------------------------------------
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the most urgent ready job; None if no job may start now; NO_MORE_TRIALS at the end."""
        now = self._clock()
        self._confirm()
        room = self._hosts.room()
        if any(amount > self._room.get(name, 0.0) for name, amount in room.items()):
            self._grown = now
        self._room = room
        self._end_pauses(now)
        while self._ready and self._is_homeless(self._ready[0][2]):
            key = heapq.heappop(self._ready)[2]
            if self._ahead_in_growth and now - self._homeless.setdefault(key, now) < GROWTH_SECONDS:
                self._postpone(key, LONGEST_PAUSE)
            else:
                self._fail(key, f"no remaining host can run it; {self._outs()}")
        if not (self.trials or self._ready or self._pausing or self._looking or self._held):
            return NO_MORE_TRIALS
        if not self._ready:
            return None
        pool, key = self._pool(), self._ready[0][2]
        like = self._like(key)
        number = self._nets(key, len(like))
        trials = len(self._ready) - (1 + len(like)) + math.ceil((1 + len(like)) / number)
        request = pool.request(self._need(key), trials, self._expected)
        if not self._may_start(request, pool, now):
            return None
        asked, keys = request.resources, [key, *like[: number - 1]]
        self._ready = [entry for entry in self._ready if entry[2] not in keys]
        heapq.heapify(self._ready)
        for each in keys:
            self._homeless.pop(each, None)
            self._move(each, QUEUED)
        avoided = self._avoided(key, request)
        workers, micro_batches = request.workers, self._micro_batches(key)
        waiting = [None] * workers
        self.trials[trial_id] = Trial(
            trial_id, keys, asked, avoided, now, request.card, waiting, workers, micro_batches
        )
        nets = [
            {"cell": json.dumps(asdict(self.plan.cells[each])), "key": each, "outputs": self.todo[each]}
            for each in keys
        ]
        mates = {"mates": json.dumps(nets[1:])} if nets[1:] else {}
        where: dict[str, Any] = {"avoided": sorted(avoided)} if avoided else {}
        if workers > 1:
            where |= {"workers": workers, "together": self._hosts.fit_together(asked, avoided, workers)}
        divided = {schema.MICRO_BATCHES: micro_batches} if micro_batches > 1 else {}
        return {**self._surroundings, **nets[0], **mates, "resources": dict(asked), "workers": 1, **where, **divided}

    def on_trial_start(self, trial_id: str) -> None:
        """Note that a trial has got its resources; Tune tells only callbacks, so ``StudyCallback`` passes it on."""
        if (trial := self.trials.get(trial_id)) is not None and not trial.started:
            trial.started = True
            for key in trial.keys:
                self._move(key, RUNNING)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reset a job's failed attempts once it gets further than them all; note which jobs of a stack have ended."""
        trial = self.trials.get(trial_id)
        if trial is None:
            return
        for key, row in by_net(result, trial.keys).items():
            if row.get("job_key") == key and row.get("step", 0) > self._furthest[key]:
                self._furthest[key], self._vain[key] = row["step"], 0
            if "step" in row:
                trial.worked = True
                self._hosts.worked(str(row.get("node")))
            if row.get("done"):
                trial.keys.remove(key)
                self._end(key, trial, row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release a finished job's children, schedule another attempt, or block a failed job's descendants."""
        result = {"status": STATUS_DIED, **self.deaths(trial_id)} if error else result or {}
        self._complete(trial_id, result)

    def _complete(self, trial_id: str, result: Mapping[str, Any]) -> None:
        trial = self.trials.pop(trial_id, None)
        if trial is None:
            return
        rows = by_net(result, trial.keys)
        for key in trial.keys:
            self._end(key, trial, rows.get(key, result))

    def _end(self, key: str, trial: Trial, result: Mapping[str, Any]) -> None:
        """Act on the end of an attempt at a job."""
        status, text = result.get("status"), str(result.get("error") or "the trial died")
        if status == STATUS_OK:
            self._look(key, trial, result)
        elif status == STATUS_HELD:
            self._wait_for_lease(key, result.get("held", {}).get(key, key))
        elif status in (STATUS_DIED, STATUS_HOST, STATUS_STORAGE):
            self._go_elsewhere(key, trial, result, text)
        elif status in (STATUS_OUT_OF_MEMORY, STATUS_HOST_MEMORY):
            self._lacks_memory(key, trial, result, text)
        else:
            if status == STATUS_FAILED:
                self.recurring.add(key)
            self._fail(key, text)

    def _look(self, key: str, trial: Trial, result: Mapping[str, Any]) -> None:
        """Mark a job as done once the store confirms its trial's report."""
        self._hosts.worked(str(result.get("node")))
        if self._stored is None:
            self._finish(key, result)
            return
        answer = self._stored(key)
        self._looking.append((key, trial, result, answer))
        wait([answer], LOOK_SECONDS)
        self._confirm()

    def _confirm(self) -> None:
        """Act on the store's answers so far."""
        for end in [end for end in self._looking if end[-1].done()]:
            self._looking.remove(end)
            key, trial, result, answer = end
            error = answer.exception()
            if error is None and answer.result():
                self._finish(key, result)
                continue
            if isinstance(error, StorageError):  # of this process, so the trial's node has no part in it
                ended = {"status": STATUS_STORAGE, "error": str(error), "node": "", "hostname": ""}
            else:
                text = str(error or "its trial has published it, but the store does not hold it")
                ended = {"status": STATUS_DIED, "error": text}
            self._end(key, trial, {**result, **ended})

    def _go_elsewhere(self, key: str, trial: Trial, result: Mapping[str, Any], text: str) -> None:
        """Retry a job on another node, and exclude this node if it is to blame."""
        node, host, known = str(result.get("node", "")), str(result.get("hostname", "")), len(self._hosts.out)
        surely, of_storage = (result.get("status") == status for status in (STATUS_HOST, STATUS_STORAGE))
        suspect = surely or (not trial.worked and (not of_storage or self._others_publish(node)))
        its_fault = suspect and self._hosts.failed(node, trial.trial_id, key, text, surely=surely)
        why = f"{text} (on {host})" if host and host not in text else text
        if not its_fault:
            self._shunned.setdefault(key, set()).update({node} - {""})
            if of_storage:
                self._unreached.setdefault(key, set()).update({node} - {""})
            if self._pause(key, why):
                return
            if not of_storage:
                self._fail(key, text)
            elif self._may_reach_elsewhere(key, trial, node):
                self._tell(key, f"{why}; goes to another host, this attempt does not count")
                self._postpone(key, FIRST_PAUSE)
            else:
                self._halt(key, text)
            return
        if len(self._hosts.out) > known:
            self._put_out(node)
        if self._hosts.room().get("CPU"):
            self._tell(key, f"{why}; goes to another host, this attempt does not count")
        self._postpone(key, FIRST_PAUSE)

    def _others_publish(self, node: str) -> bool:
        """Return whether other nodes reach the storage while one does not: then the node is suspect, not the storage.

        A result that the store confirmed before an outage proves nothing. Operations give up somewhat before their
        patience is over, so only half of it counts.
        """
        since = self._clock() - self._patience / 2
        return any(at >= since for each, at in self._published.items() if each != node)

    def _may_reach_elsewhere(self, key: str, trial: Trial, node: str) -> bool:
        """Return whether a job without attempts, and without the storage, is worth one on a node that it has not tried.

        After two nodes the storage is to blame, unless other nodes reach it.
        """
        tried = self._unreached[key]
        return (
            (len(tried) == 1 or (bool(tried) and self._others_publish(node)))
            and self.halted is None
            and self._hosts.fit(trial.asked, self._hosts.present() | tried, trial.workers)
        )

    def _put_out(self, node: str) -> None:
        """Announce that a node gets no more jobs, discount the failures there, and halt if it was the last one."""
        self._say(f"no more jobs for {self._hosts.out[node]}")
        for key, failures in self._hosts.forgiven(node).items():
            self._vain[key] = max(0, self._vain[key] - failures)
        if not self._hosts.room().get("CPU"):
            self._halt(None, f"no host is left; {self._outs()}")

    def outs(self) -> list[str]:
        """Return the hosts that get no more jobs, each with the reason."""
        return list(self._hosts.out.values())

    def _outs(self) -> str:
        return "no more jobs for " + "; ".join(self.outs())

    def _is_homeless(self, key: str) -> bool:
        """Return whether all nodes that could run a job are excluded."""
        out = self._hosts.present()
        if not out:
            return False
        asks = self._asks(key)
        fit = partial(self._hosts.fit, asks.resources, workers=asks.workers)
        return fit() and not fit(out)

    def _avoided(self, key: str, request: Request) -> frozenset[str]:
        """Return the nodes on which the next attempt at a job must not run."""
        out = self._hosts.present()
        others = out | request.avoided
        for avoided in (others | self._shunned.get(key, set()), others):
            if self._hosts.fit(request.resources, avoided, request.workers):
                return avoided
        return out

    def is_stuck(self) -> bool:
        """Return whether Tune holds only trials that have not started and may run on none of the remaining nodes.

        They are stuck only if one of them could run if it was handed out again.
        """
        trials = self.trials.values()
        return all(
            not trial.started
            and (trial.avoided or (self._elastic and trial.workers > 1))
            and not self._hosts.fit(trial.asked, trial.avoided, trial.workers)
            for trial in trials
        ) and any(self._fits_somewhere(key) for trial in trials for key in trial.keys[:1])

    def _fits_somewhere(self, key: str) -> bool:
        """Return whether the nodes could run a job's next attempt if they were idle."""
        request = self._asks(key)
        return self._hosts.fit(request.resources, self._avoided(key, request), request.workers)

    def take_back(self) -> None:
        """Take back the trials that Tune holds, none of which has started, and make their jobs ready again."""
        trials, self.trials = self.trials, {}
        for trial in trials.values():
            for key in trial.keys:
                self._postpone(key, 0.0)

    def lose_trials(self) -> None:
        """Count the trials that Tune holds as dead, because Tune itself has ended."""
        for trial_id in list(self.trials):
            self._complete(trial_id, {"status": STATUS_DIED})

    # --- what may start -----------------------------------------------------------------------------------------------
    def _group(self, key: str) -> Group:
        return group(self.plan.jobs[key], self.plan.space.workers)

    def _need(self, key: str) -> Need:
        need = self._needs[self._group(key)]
        if not self._elastic or need.workers == 1:
            return need
        request = self._pool().request(need, math.inf, self._expected)
        places = self._hosts.places(request.resources, self._hosts.present() | request.avoided)
        return dataclasses.replace(need, workers=min(need.workers, max(1, places)))

    def _pool(self) -> Pool:
        pool = Pool(self._hosts.available())
        for trial in sorted(self.trials.values(), key=lambda trial: None in trial.slots):
            if trial.card is not None:
                trial.slots = [pool.take(trial.card, trial.asked["GPU"], slot) for slot in trial.slots]
        return pool

    def _asks(self, key: str) -> Request:
        """Return what a job requests at least."""
        return self._pool().request(self._need(key), math.inf, self._expected)

    def _may_start(self, request: Request, pool: Pool, now: float) -> bool:
        if self._max_concurrent is not None and len(self.trials) >= self._max_concurrent:
            return False
        queued = [trial for trial in self.trials.values() if not trial.started]
        for trial in queued:
            larger = any(
                amount * trial.workers > request.resources.get(name, 0.0) * request.workers
                for name, amount in trial.asked.items()
            )
            starves = larger and trial.card == request.card and now - trial.since > STARVING_SECONDS
            # One that fits no node waits for another machine, and would not get what is left free.
            if starves and self._hosts.fit(trial.asked, trial.avoided, trial.workers):
                return False
        ahead = self._ahead_in_growth if now - self._grown < GROWTH_SECONDS else self._ahead
        return self._fits(request, pool) or len(queued) < ahead

    def _like(self, key: str) -> list[str]:
        """Return the other ready jobs whose networks may share a trial with a job's, the most urgent first."""
        job = self.plan.jobs[key]
        if self._most_nets(self._group(key)) == 1 or not self._is_stackable(key):
            return []
        ready = sorted(entry for entry in self._ready if entry[2] != key and self._is_stackable(entry[2]))
        return [
            other for _, _, other in ready if _are_alike(job, self.plan.jobs[other]) and self._take_as_long(key, other)
        ]

    def _take_as_long(self, key: str, other: str) -> bool:
        """Return whether two jobs train for about as many epochs."""
        mine, its = (self.plan.jobs[each].epochs_to(self.todo[each]) for each in (key, other))
        return min(mine, its) >= LIKE_LENGTH * max(mine, its)

    def _nets(self, key: str, like: int) -> int:
        """Return how many networks share the next trial: a job's and those of some of the `like` ready ones."""
        need, most = self._need(key), self._most_nets(self._group(key))
        devices = int(self._room.get("CPU", 0.0) / need.cpus if need.share == 0.0 else self._room.get("GPU", 0.0))
        idle = min(devices, self._max_concurrent or devices) - len(self.trials)
        # With every device busy, do not split the ready jobs further: a freed slot takes a full stack.
        return min(most, math.ceil((1 + like) / max(1, idle)))

    def _most_nets(self, like: Group) -> int:
        """Return the most networks of a group that may share a trial."""
        return self._most.get(like, self._needs[like].nets or self._nets_per_trial)

    def _is_stackable(self, key: str) -> bool:
        config = self.plan.jobs[key].config
        alone = self._vain[key] or self._micro_batches(key) > 1
        return isinstance(config, TRAINING_CONFIGS) and config.recipe.engine.shares_trial and not alone

    def _fits(self, request: Request, pool: Pool) -> bool:
        if request.card is not None and pool.places(request.card, request.resources["GPU"]) < request.workers:
            return False
        taken: Counter[str] = Counter()
        for trial in self.trials.values():
            taken.update({name: amount * trial.workers for name, amount in trial.asked.items()})
        room = self._room
        return all(
            taken[name] + amount * request.workers <= room.get(name, 0.0) + TOLERANCE
            for name, amount in request.resources.items()
        )

    def slots(self) -> int:
        """Return the number of trials of average size that fit the cluster now, at least 1."""
        fits = (int(self._room.get(name, 0.0) / amount + TOLERANCE) for name, amount in self._mean.items() if amount)
        running = sum(trial.started for trial in list(self.trials.values()))
        return min(max(1, min(fits, default=1), running), self._max_concurrent or len(self.todo))

    # --- how a job ends -----------------------------------------------------------------------------------------------
    def _finish(self, key: str, result: Mapping[str, Any]) -> None:
        self._published[str(result.get("node"))] = self._clock()
        self._move(key, DONE)
        self._order.done(key)
        for child in self._order.get_ready():
            if self.state[child] == WAITING:
                self._release(child)

    def _pause(self, key: str, why: str) -> bool:
        """Make a job ready again after a pause; return False if it has used up its attempts."""
        if self.halted is not None:
            self._postpone(key, 0.0)
            return True
        self._vain[key] += 1
        if self._vain[key] > self._retries:
            return False
        pause = min(FIRST_PAUSE * 2.0 ** min(self._vain[key] - 1, 32), LONGEST_PAUSE)
        self._tell(key, f"{why}; attempt {self._vain[key]} of {self._retries} more in {duration(pause)}")
        self._postpone(key, pause)
        return True

    def _tell(self, key: str, what: str) -> None:
        name = name_in(self.plan, key)
        self._say(redact_text(f"again: {name} ({key[:12]}): {what}"))

    def _postpone(self, key: str, seconds: float) -> None:
        if self.halted is not None:
            self._move(key, NOT_RUN)
            return
        self._move(key, READY)
        heapq.heappush(self._pausing, (self._clock() + seconds, self._number[key], key))

    def _wait_for_lease(self, key: str, computed: str) -> None:
        """Make a job ready again once the job that another process computes, itself or an ancestor, is free."""
        if self._free is None or self.halted is not None:
            self._postpone(key, HELD_PAUSE)
            return
        self._move(key, READY)
        self._held[key] = computed, self._free(computed)

    def _end_pauses(self, now: float) -> None:
        """Release the jobs whose pause is over, and those whose lease has become free."""
        while self._pausing and self._pausing[0][0] <= now:
            key = heapq.heappop(self._pausing)[2]
            if key in self._held:
                self._wait_for_lease(key, self._held[key][0])
            else:
                self._release(key)
        for key, (computed, answer) in list(self._held.items()):
            if answer is None or not answer.done():
                continue
            if answer.exception() is not None:  # then a trial finds out
                del self._held[key]
                self._postpone(key, HELD_PAUSE)
            elif answer.result():
                del self._held[key]
                self._release(key)
            else:
                self._held[key] = computed, None
                self._postpone(key, HELD_PAUSE)

    def _unstack(self, key: str, together: int) -> bool:
        """Release a job that ran out of memory again, and let half as many networks of its group share a trial.

        Args:
            key: key of the job.
            together: number of networks that shared its trial; if it was alone, nothing is done, and the answer False.
        """
        if together < 2 or self.halted is not None:
            return False
        like = self._group(key)
        self._most[like] = min(self._most_nets(like), together // 2)
        self._tell(key, f"{together} networks were out of memory; {self._most[like]} at a time")
        self._release(key)
        return True

    def _lacks_memory(self, key: str, trial: Trial, result: Mapping[str, Any], text: str) -> None:
        """Retry a job that ran out of memory where it may get more, or fail it."""
        if result.get("status") == STATUS_OUT_OF_MEMORY and self._is_misplaced(trial, str(result.get("node"))):
            self._tell(key, f"{text}; it was meant for another kind of GPU, and goes there")
            self._postpone(key, 0.0)
            return
        if self._unstack(key, len({*trial.keys, key})) or self._enlarge(key, trial, text):
            return
        if self.halted is None and result.get("status") == STATUS_OUT_OF_MEMORY and trial.asked.get("GPU"):
            if not self._divide(key, trial, text):
                self.recurring.add(key)
                self._fail(key, f"{text}; {_GPU_ADVICE}")
        elif not self._pause(key, text):  # other trials may return memory by then
            self._fail(key, f"{text}; {_HOST_ADVICE}")

    def _is_misplaced(self, trial: Trial, node: str) -> bool:
        """Return whether a trial ran on a kind of GPU that it was not meant for: the node has joined while it waited.

        The next attempt avoids the node.
        """
        there = self._hosts.available().get(node)
        return trial.card is not None and there is not None and there.card not in (None, trial.card)

    def _enlarge(self, key: str, trial: Trial, why: str) -> bool:
        """Double the GPU memory of a job that ran out of it, and of its group; return False if it had the largest GPU.

        A job that does not fit would not fit at the next attempt either, so this attempt does not count.
        """
        share = trial.asked.get("GPU", 0.0)
        cards = [node.card for node in self._hosts.available().values() if node.card is not None]
        larger = trial.card is not None and any(card.memory > trial.card.memory for card in cards)
        if not share or not (share < 1.0 or larger) or self.halted is not None:
            return False
        like = self._group(key)
        self._needs[like] = self._needs[like].after_running_out(trial.card, share)
        self._tell(
            key, f"{why}; with {self._asks(key).resources['GPU']:g} GPU{' of a larger kind' if share >= 1.0 else ''}"
        )
        self._release(key)
        return True

    def _micro_batches(self, key: str) -> int:
        trains = isinstance(self.plan.jobs[key].config, TRAINING_CONFIGS)
        return self._divided.get((self._group(key), trains), 1)

    def _divide(self, key: str, trial: Trial, why: str) -> bool:
        """Let a job that ran out of a whole GPU's memory, and its like, compute a batch in twice as many micro-batches.

        The job goes on from its checkpoint. All trained networks of a group are divided alike, because BatchNorm
        normalises each micro-batch by its own statistics. Return False if micro-batches would be too small, or if the
        job has to have the same bits on all cards of a kind.
        """
        job = self.plan.jobs[key]
        config, number = job.config, max(self._micro_batches(key), 2 * trial.micro_batches)
        measured = eval_batch(image_size(self.plan, job))
        batch = config.recipe.batch_size if isinstance(config, TRAINING_CONFIGS) else measured
        if config.task.deterministic or batch // trial.workers // number < LEAST_MICRO_BATCH:
            return False
        self._divided[self._group(key), isinstance(config, TRAINING_CONFIGS)] = number
        self._tell(key, f"{why}; with batches of {batch} images in {number} micro-batches")
        self._release(key)
        return True

    def _fail(self, key: str, error: str) -> None:
        self.errors[key] = error
        self._move(key, FAILED)
        blocked = list(self._children[key])
        while blocked:
            child = blocked.pop()
            if self.state[child] in (WAITING, NOT_RUN):
                self.errors[child] = key
                self._move(child, BLOCKED)
                blocked.extend(self._children[child])

    def _halt(self, key: str | None, error: str) -> None:
        """Stop handing out jobs: without the storage every job would fail, and without a host none can run."""
        self.halted = error
        if key is not None:
            self._move(key, NOT_RUN)
        for other, state in self.state.items():
            if state in (WAITING, READY):
                self._move(other, NOT_RUN)
        self._ready.clear()
        self._pausing.clear()
        self._held.clear()

    # --- for other modules --------------------------------------------------------------------------------------------
    def unfinished(self) -> list[str]:
        """Return the keys of the jobs that were not run because the searcher halted or the sweep ended early."""
        return [key for key, state in self.state.items() if state in (*OPEN, NOT_RUN)]


def _are_alike(job: Job, other: Job) -> bool:
    """Return whether the networks of two training jobs can be stacked."""
    mine, its = job.config, other.config
    assert isinstance(mine, TRAINING_CONFIGS)
    assert isinstance(its, TRAINING_CONFIGS)
    return (
        mine.task == its.task
        and mine.recipe.batch_size == its.recipe.batch_size
        and Way.of(mine.recipe) == Way.of(its.recipe)
    )
