"""In Ray's place, for the tests of its driver: machines of one worker each in this process, whose faults cost
no time."""

import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError


class Machines:
    """What `segshift.execution.ray` takes of the module `ray`."""

    def __init__(self, count: int = 2) -> None:
        self.count, self.at = count, ""
        self.fault: Callable[[str, Any], None] = lambda machine, item: None
        """Called with every item that a machine is given. Raises: what becomes of the worker."""
        self.given: list[tuple[str, Any]] = []
        self.ended: list[int] = []
        self.tasks, self.actors = itertools.count(), itertools.count()

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.count}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": _id(str(i)), "Alive": True} for i in range(self.count)]

    def put(self, job: Any) -> bytes:
        return pickle.dumps(job)

    def kill(self, actor: Any) -> None:
        pass

    def remote(self, what: Any) -> "_Remote":
        return _Remote(self, what)

    def get_runtime_context(self) -> "Machines":
        return self

    def get_node_id(self) -> str:
        return _id(self.at)

    def wait(self, tasks: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        first = min(tasks, key=lambda task: task.number)
        return [first], [task for task in tasks if task is not first]

    def get(self, task: Any, timeout: float | None = None) -> Any:
        self.at = task.machine
        try:
            if task.method == "make":
                self.given.append((self.at, task.arguments[1]))
                self.fault(self.at, task.arguments[1])
            given = pickle.loads(pickle.dumps(task.arguments))
            return pickle.loads(pickle.dumps(getattr(task.worker, task.method)(*given)))
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(task.method, "", error) from error
        finally:
            self.at = ""


def _id(machine: str) -> str:
    """As Ray's, which are hexadecimal."""
    return f"{int(machine) + 1:056x}"


class _Remote:
    def __init__(self, machines: Machines, what: Any) -> None:
        self.machines, self.what = machines, what

    def options(self, **_: Any) -> "_Remote":
        return self

    def remote(self, given: Any) -> Any:
        if isinstance(self.what, type):
            machine = str(next(self.machines.actors) % self.machines.count)
            return _Actor(self.machines, machine, self.what(pickle.loads(given)))
        return self.machines.ended.append(given)  # SIGTERM to a worker


class _Actor:
    def __init__(self, machines: Machines, machine: str, worker: Any) -> None:
        self.machines, self.machine, self.worker = machines, machine, worker

    def __getattr__(self, method: str) -> "_Task":
        return _Task(self, method)


class _Task:
    """A call of an actor's method, done when its result is asked for."""

    def __init__(self, actor: _Actor, method: str) -> None:
        self.machine, self.worker, self.method = actor.machine, actor.worker, method
        self.number = next(actor.machines.tasks)

    def remote(self, *arguments: Any) -> "_Task":
        self.arguments = arguments
        return self
