"""Ray: workers on any number of machines, which may come and go (extra `ray`).

A worker is a Ray actor with a GPU (or a core) of its own, which loads the job once. The driver, the process
that the user starts, gives each idle worker one item at a time and takes the results back; it alone writes
the stage's record of what is done. So nothing is told twice, a driver that is started again goes by that
record, and a lost worker costs the item that it held, which goes to another. There are as many workers as the
cluster has GPUs at the moment.

An item whose workers die on machines that live on, as one that takes all memory, is given up after ATTEMPTS;
a machine that is lost, as a preempted one, does not count. An error that ends the stage, as a full disk on
one machine, lets the others finish what they have in hand.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segshift.config.running import EngineConfig
from segshift.execution.base import Lost
from segshift.execution.stopping import draining
from segshift.runs import InputError

_log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Workers that one item may cost on machines that live on."""
STARTS = 10
"""Workers that may die in a row before they have done anything."""
FETCH = 60.0
"""Seconds that a result may take which is ready: then its machine is lost."""
LOOK = 1.0
"""Seconds between two looks for machines that have come, and for a request to end."""


class _Worker:
    """An actor with a copy of the job."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def place(self) -> tuple[str, int]:
        """Its machine and process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def once(self, method: str, arguments: Sequence[Any]) -> Any:
        return getattr(self.job, method)(*arguments)

    def make(self, method: str, item: Any) -> list[Any]:
        """Finishes the item when the machine, or the driver, is asked to end; a training in it saves its step
        and ends. Raises: SystemExit then."""
        results = None
        try:
            with draining():
                results = list(getattr(self.job, method)([item], lambda: False))
        except SystemExit:
            if results is None:
                raise
        return results


@dataclass(eq=False)
class _Hired:
    """A worker, as the driver sees it."""

    actor: Any
    task: Any
    """What it does at the moment; None for nothing."""
    item: int | None = None
    """Index of the item it does; None while it starts."""
    node: str = ""
    pid: int = 0


@dataclass
class _Order:
    """Which items can be done: those whose predecessors are."""

    after: Sequence[Sequence[int]]
    ready: deque[int]
    blocked: dict[int, int] = field(default_factory=dict)
    followers: dict[int, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(count: int, after: Sequence[Sequence[int]]) -> _Order:
        order = _Order(after, deque())
        for i in range(count):
            before = after[i] if after else ()
            if before:
                order.blocked[i] = len(before)
            else:
                order.ready.append(i)
            for j in before:
                order.followers.setdefault(j, []).append(i)
        return order

    def done(self, i: int) -> None:
        for j in self.followers.pop(i, ()):
            self.blocked[j] -= 1
            if not self.blocked[j]:
                del self.blocked[j]
                self.ready.appendleft(j)  # what is begun is ended first


class Cluster:
    """As many workers as a Ray cluster has room for."""

    def __init__(self, kind: str, job: Any) -> None:
        """kind: GPU or CPU, of which each worker has one."""
        self.kind, self.job = kind, ray.put(job)
        self.hired: list[_Hired] = []
        self.failed_starts, self.why, self.told = 0, "", time.monotonic()

    def close(self) -> None:
        for worker in self.hired:
            ray.kill(worker.actor)
        self.hired = []

    def once(self, method: str, *arguments: Any) -> Any:
        for attempt in range(ATTEMPTS):
            while not (idle := [worker for worker in self.hired if worker.task is None]):
                self._hire(1)
                self._next()
            try:
                return _result(idle[0].actor.once.remote(method, arguments))
            except (RayError, MemoryError) as error:
                self._dismiss(idle[0])
                if attempt == ATTEMPTS - 1:
                    raise InputError(
                        f"{ATTEMPTS} workers died one after the other ({_short(error)}): give them more "
                        "memory, or look at Ray's logs"
                    ) from error
        raise AssertionError

    def map(
        self,
        method: str,
        items: Sequence[Any],
        asked: Callable[[], bool],
        after: Sequence[Sequence[int]] = (),
    ) -> Iterator[Any]:
        order, ending = _Order.of(len(items), after), False
        tries: dict[int, int] = {}
        failure: InputError | None = None
        while True:
            if not ending and (failure or asked()):
                ending = True
                order.ready.clear()
                self._ask_to_end()
            busy = [worker for worker in self.hired if worker.item is not None]
            if not busy and not order.ready:
                if failure:
                    raise failure
                return  # done, or asked to end
            if order.ready:
                self._hire(len(busy) + len(order.ready))
            for worker in [worker for worker in self.hired if worker.task is None]:
                if order.ready:
                    worker.item = order.ready.popleft()
                    worker.task = worker.actor.make.remote(method, items[worker.item])
            ended = self._next()
            if ended is None or ended.item is None:
                continue
            i, ended.item = ended.item, None
            try:
                results = _result(ended.task, FETCH)
            except InputError as error:
                ended.task, failure = None, failure or error
                continue
            except (RayError, MemoryError) as error:
                self._dismiss(ended)
                if ending:
                    continue
                alive = any(node["NodeID"] == ended.node and node["Alive"] for node in ray.nodes())
                tries[i] = tries.get(i, 0) + alive
                if tries[i] < ATTEMPTS:
                    order.ready.appendleft(i)
                    continue
                yield Lost(items[i], f"its worker died {ATTEMPTS} times ({_short(error)})")
            else:
                ended.task = None
                yield from results
            if not ending:
                order.done(i)

    def _hire(self, wanted: int) -> None:
        """As many workers as the cluster has room for, `wanted` at most. Raises: InputError where none
        starts."""
        room = int(ray.cluster_resources().get(self.kind, 0))
        if self.failed_starts >= STARTS:
            raise InputError(
                f"{STARTS} workers in a row died before they did anything ({self.why}): install the same "
                "segshift on every machine of the cluster, and look at Ray's logs"
            )
        while len(self.hired) < min(room, wanted):
            resources = {"num_gpus": 1} if self.kind == "GPU" else {"num_cpus": 1}
            actor = ray.remote(_Worker).options(**resources).remote(self.job)
            self.hired.append(_Hired(actor, actor.place.remote()))
        if not room and time.monotonic() - self.told > 60:
            self.told = time.monotonic()
            _log.warning("the Ray cluster has no %s at the moment: waiting for a machine", self.kind)

    def _next(self) -> _Hired | None:
        """The next worker that is done with an item; None where there is none for a while, or where another
        one has started or failed to."""
        tasks = {worker.task: worker for worker in self.hired if worker.task is not None}
        if not tasks:
            time.sleep(LOOK)
            return None
        done, _ = ray.wait(list(tasks), timeout=LOOK)
        if not done:
            return None
        worker = tasks[done[0]]
        if worker.item is None:
            try:
                worker.node, worker.pid = _result(worker.task, FETCH)
            except RayError as error:
                self.failed_starts += 1
                self.why = _short(error)
                self._dismiss(worker)
            else:
                self.failed_starts, worker.task = 0, None
        return worker

    def _dismiss(self, worker: _Hired) -> None:
        self.hired.remove(worker)  # without a handle Ray ends it, if it lives

    def _ask_to_end(self) -> None:
        """SIGTERM to the workers that do something: a training saves its step and ends."""
        for worker in self.hired:
            if worker.item is not None:
                there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
                ray.remote(_terminate).options(num_cpus=0, scheduling_strategy=there).remote(worker.pid)


def _terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def workers(config: EngineConfig, job: Any, device: str) -> Cluster:
    """device: cpu, or what the workers choose. Raises: InputError where there is no such cluster."""
    if not ray.is_initialized():
        on_request = signal.getsignal(signal.SIGTERM)
        try:
            if config.ray.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # so that it listens on loopback alone
                ray.init("local", **_QUIET)
                if ray.util.get_node_ip_address() != "127.0.0.1":
                    _log.warning("Ray %s listens on the network of this machine", ray.__version__)
            else:
                host, _, port = config.ray.address.rpartition(":")
                if port.isdigit():  # Ray itself waits for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(config.ray.address, **_QUIET)
        except (OSError, RayError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster at --ray.address {config.ray.address} ({_short(error)}): start one with "
                "'ray start --head', or leave the address out"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_request)  # Ray puts its own, whose exit code is no 143
    return Cluster("GPU" if device != "cpu" and ray.cluster_resources().get("GPU") else "CPU", job)


_QUIET: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.WARNING}


def _result(task: Any, timeout: float | None = None) -> Any:
    """Raises: InputError of the job itself; MemoryError where its machine has too little; RuntimeError for a
    defect in it; RayError where the worker died."""
    try:
        return ray.get(task, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, InputError | MemoryError):
            raise error.cause from None
        raise RuntimeError(f"in a Ray worker: {error}") from error


def _short(error: Exception) -> str:
    """The end of its message, where the cause stands."""
    return " ".join(str(error).split())[-120:] or type(error).__name__
