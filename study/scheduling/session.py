"""The Ray on which trials run: start or join it, query its resources, watch it, and leave it.

Import this module after the environment has been set, because Ray reads parts of it on import.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import services
from ray._private import state as _state  # the public API needs a dashboard, which a local Ray lacks
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from study.scheduling.address import ClusterError
from study.scheduling.cards import GIB, Card, card_of
from study.scheduling.hosts import Node
from trainables.errors import first_line
from trainables.host.nvidia import Gpu
from trainables.host.processes import cores

REFRESH_SECONDS: Final = 2.0
"""Maximum age, in seconds, of the cached nodes of the cluster."""
ANSWER_SECONDS: Final = 120.0
"""Seconds that nodes have to report their GPUs: the first task on a node starts a process that imports torch."""
RECONNECT_VARIABLE: Final = "RAY_gcs_rpc_server_reconnect_timeout_s"
RECONNECT_SECONDS: Final = 60.0
"""Default of the variable: after this many seconds without the head Ray ends the driver's process, without a word on
the study. The cluster therefore counts as lost after half this time."""
PROBE_SECONDS: Final = 3.0
SHUTDOWN_SECONDS: Final = 10.0
START_PAUSES: Final = (2.0, 10.0, 30.0)
"""Seconds before each further attempt to start Ray, which gives up after 30 s on a busy machine."""
REACH_SECONDS: Final = 30.0
"""Seconds that a cluster has to answer at its address; Ray itself would try for minutes without a message."""


class Cluster:
    """A Ray to which this process is connected."""

    def __init__(self, *, is_own: bool, scratch: Path) -> None:
        """Take over the connection to a Ray that this process has started (`is_own`) or joined.

        Tune's files go to `scratch`, a directory on this machine; nothing needs them afterwards.
        """
        self.is_own, self.scratch = is_own, scratch
        self._nodes: tuple[float, dict[str, Node]] = (-REFRESH_SECONDS, {})
        self._given: Card | None = None
        self._cards: dict[str, Card | None] = {}
        self._asked: dict[str, Any] = {}
        self._problems: dict[str, str] = {}
        self._precisions: frozenset[str] = frozenset()
        self._asks_nodes = False
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._endpoints = {
            "the head of the Ray cluster": _endpoint(context.gcs_address),
            "Ray on this machine": (own["NodeManagerAddress"], int(own["NodeManagerPort"])),
        }

    def nodes(self) -> dict[str, Node]:
        """Return node id -> node, as of now or of the last time the cluster was reachable."""
        now = time.monotonic()
        if now - self._nodes[0] >= REFRESH_SECONDS:
            with contextlib.suppress(ray.exceptions.RayError):
                alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
                if self._asks_nodes:
                    self._ask_for_gpus(alive)
                    self._cards |= self._gpus_answered(0.0)
                self._nodes = now, {each: self._node(each, node) for each, node in alive.items()}
        return self._nodes[1]

    def _node(self, node_id: str, node: Mapping[str, Any]) -> Node:
        card = (self._given or self._cards.get(node_id)) if node["Resources"].get("GPU") else None
        return Node(_name(node), node["Resources"], card)

    def ask_nodes(self, precisions: Collection[str]) -> dict[str, str]:
        """Ask the nodes for their GPUs, and return why PyTorch cannot compute on those of some: node id -> reason.

        Nodes that join later are asked as they come. There, a trial finds out by itself whether it can compute.

        Args:
            precisions: those in which the networks train.

        Raises:
            ClusterError: PyTorch cannot compute on the GPUs of any node.
        """
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")}
        self._precisions = frozenset(precisions)
        self._ask_for_gpus(nodes)
        self._cards = self._gpus_answered(ANSWER_SECONDS)
        if self._problems and len(self._problems) == len(self._cards):
            reasons = dict.fromkeys(f"{_name(nodes[node])}: {reason}" for node, reason in self._problems.items())
            raise ClusterError(f"{'; '.join(reasons)} (--gpus-per-trial 0 computes on CPUs)")
        self._asks_nodes = True
        self._nodes = -REFRESH_SECONDS, {}
        return dict(self._problems)

    def know_cards(self, memory: float | None) -> list[Card]:
        """Return the kinds of GPUs in the cluster, as its nodes have told :meth:`ask_nodes`, or as the user has.

        Args:
            memory: bytes of every GPU of the cluster, and of those to come; None asks the nodes.

        Returns:
            The kinds, smallest memory first; empty if the cluster has no GPU.

        Raises:
            ClusterError: no node has answered.
        """
        if memory is not None:
            self._given = card_of("", memory)
            return [self._given]
        if self._asked and not self._cards:
            raise ClusterError("no node has said how much memory its GPUs have; give --gpu-memory or --gpus-per-trial")
        return sorted({card for card in self._cards.values() if card is not None}, key=lambda card: card.memory)

    def _ask_for_gpus(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Ask the nodes that have GPUs, and have not been asked yet, what kind they are."""
        new = [each for each in nodes.keys() - self._asked.keys() if nodes[each]["Resources"].get("GPU")]
        if not new:
            return
        # The task reserves nothing, so it does not wait for free GPUs. Its process has seen all GPUs of the node, so it
        # is not reused (max_calls=1).
        task = ray.remote(num_cpus=0, max_calls=1)(_gpus_here)
        for node in new:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._asked[node] = task.options(scheduling_strategy=there).remote(self._precisions)

    def _gpus_answered(self, seconds: float) -> dict[str, Card | None]:
        """Return the answers that arrive within some seconds: id of a node -> its kind of GPU, None if unusable."""
        waiting = {answer: node for node, answer in self._asked.items() if answer is not None}
        arrived, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=seconds) if waiting else ([], [])
        found: dict[str, Card | None] = {}
        for answer in arrived:
            self._asked[waiting[answer]] = None
            try:
                gpus, problem = ray.get(answer)
            except ray.exceptions.RayTaskError as error:  # torch is missing there, or the driver fails
                gpus, problem = [], f"its GPUs cannot be asked: {first_line(error.cause)}"
            except ray.exceptions.RayError:  # the node was lost meanwhile
                continue
            found[waiting[answer]] = None
            if problem is None:
                smallest = min(gpus, key=lambda gpu: gpu.memory)
                found[waiting[answer]] = card_of(smallest.name, float(smallest.memory // GIB * GIB))
            else:
                self._problems[waiting[answer]] = problem
        return found

    def missing(self) -> str | None:
        """Return the part of the cluster that is unreachable; None if all parts are reachable."""
        return next((name for name, endpoint in self._endpoints.items() if not _answers(endpoint)), None)

    def comes_back(self) -> bool:
        """Wait until the whole cluster is reachable; return False if that takes too long."""
        return _comes_true(lambda: self.missing() is None, _lost_after(), PROBE_SECONDS)

    def abandon(self) -> None:
        """Leave a Ray that no longer answers; wait at most ``SHUTDOWN_SECONDS`` for it."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        thread = threading.Thread(target=ray.shutdown, daemon=True)
        thread.start()
        thread.join(SHUTDOWN_SECONDS)

    @contextlib.contextmanager
    def watched(self, lost: Callable[[str], None]) -> Iterator[None]:
        """Call `lost` from a thread, with the reason, once the cluster has been unreachable for too long.

        A thread is needed because the driver's own calls to Ray may then hang forever, where no exception reaches them.
        """
        stop = threading.Event()

        def watch() -> None:
            away: float | None = None
            while not stop.wait(PROBE_SECONDS):
                missing = self.missing()
                if missing is None:
                    away = None
                    continue
                away = away or time.monotonic()
                silence = time.monotonic() - away
                if silence >= _lost_after() and not stop.is_set():
                    lost(f"{missing} has been out of reach for {silence:.0f} s")
                    return

        threading.Thread(target=watch, name="cluster-watch", daemon=True).start()
        try:
            yield
        finally:
            stop.set()


def _gpus_here(precisions: Collection[str]) -> tuple[list[Gpu], str | None]:
    """Return the GPUs of the node on which Ray runs this function, and why PyTorch cannot compute on them."""
    from trainables.host.devices import of_node

    visible = ray._private.worker.global_worker.original_visible_accelerator_ids["GPU"]
    return of_node(precisions, None if visible is None else ",".join(map(str, visible)))


def _init(address: str | None) -> None:
    """Join a cluster or start a local Ray; a failed start is retried, because a busy machine may only delay it."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        ray.init(address=address, **options)
        return
    for pause in (*START_PAUSES, None):
        try:
            # Ray counts the machine's cores, whatever the process's affinity is.
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **options)
            return
        except Exception as error:
            passing = isinstance(error, ConnectionError | TimeoutError) or not isinstance(error, ValueError | OSError)
            if pause is None or not passing:
                raise
            reason = first_line(error)
            print(f"Ray has not started ({reason}); again in {pause:.0f} s", file=sys.stderr, flush=True)
            ray.shutdown()
            time.sleep(pause)


def _comes_true(condition: Callable[[], bool], seconds: float, pause: float) -> bool:
    """Wait until a condition is true, looking again after each pause; return False if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True


def _reach(address: str) -> None:
    """Wait until a Ray cluster answers at its address.

    Raises:
        ClusterError: nothing answers within ``REACH_SECONDS``, or something else does.
    """
    end, endpoint = time.monotonic() + REACH_SECONDS, _endpoint(address)
    if not _comes_true(lambda: _answers(endpoint), REACH_SECONDS, REACH_SECONDS / 30):
        raise ClusterError(f"Ray cluster {address}: nothing answers there for {REACH_SECONDS:.0f} s")
    # A tunnel or another program may accept the connection. Ray would wait minutes for an answer, uninterruptibly.
    answered = threading.Event()
    threading.Thread(target=_ask, args=(address, answered), daemon=True).start()
    if not answered.wait(max(end - time.monotonic(), REACH_SECONDS / 2)):
        raise ClusterError(f"Ray cluster {address}: something accepts connections there, but it does not answer as Ray")


def _ask(address: str, answered: threading.Event) -> None:
    """Set the event once the head of a cluster has answered, or denied access, which Ray explains better."""
    for _ in range(round(REACH_SECONDS / PROBE_SECONDS)):
        try:
            GcsClient(address=address)
        except ray.exceptions.AuthenticationError:
            pass
        except Exception:
            time.sleep(PROBE_SECONDS)
            continue
        answered.set()
        return


def _started_here() -> str:
    """Return the address of the cluster that ``ray start`` has started or joined on this machine.

    If there is none, Ray itself would join any Ray that runs here, such as one that another program has started.
    """
    found = services.find_bootstrap_address(None)
    if found is None:
        raise ClusterError(
            "Ray cluster auto: no `ray start` has started or joined a cluster on this machine; name one with "
            "--address host:port"
        )
    return str(found)


def place_of(actor_id: str) -> tuple[str, str]:
    """Return the node's id and the hostname where an actor runs or ran; empty if Ray no longer knows them."""
    with contextlib.suppress(ray.exceptions.RayError, KeyError, ValueError):
        node = str(_state.actors(actor_id)["Address"]["NodeID"])
        return node, next((_name(each) for each in ray.nodes() if each["NodeID"] == node), "")
    return "", ""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Join the cluster at an address, or start a local Ray that listens on the loopback device only.

    Raises:
        ClusterError: the cluster cannot be reached, or Ray cannot be started.
    """
    on_termination = signal.getsignal(signal.SIGTERM)
    if address is not None:
        _reach(_started_here() if address == "auto" else address)
    try:
        _init(address)
    except Exception as error:  # Ray also raises plain exceptions
        reason = first_line(error)
        if address not in (None, "auto") and "RAY_AUTH_MODE" not in os.environ:  # for auto, Ray finds out itself
            reason += "; if it asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        raise ClusterError(f"Ray cluster {address or 'on this machine'}: {reason}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # undo Ray's own handler, which aborts the process
    try:
        with tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True) as scratch:
            yield Cluster(is_own=not address, scratch=Path(scratch))
    finally:
        ray.shutdown()


def _name(node: Mapping[str, Any]) -> str:
    """Return the hostname of a node, or its address if the hostname is unknown."""
    return str(node.get("NodeManagerHostname") or node["NodeManagerAddress"])


def _lost_after() -> float:
    return 0.5 * float(os.environ.get(RECONNECT_VARIABLE, RECONNECT_SECONDS))


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _answers(endpoint: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(endpoint, timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
