"""The Ray engine on two nodes of one machine: order, errors, lost workers and nodes, a request to end. The
stages run on it in benchmarks/ray_faults.py."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segshift import execution
from segshift.config import EngineConfig
from segshift.config.running import RayConfig
from segshift.runs import InputError

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'segshift[ray]'")


class Job:
    """Writes down what it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.held = folder, 0

    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def fail(self) -> None:
        raise InputError("no such frame")

    def double(self, items: list[Any], asked: Any) -> Any:
        for item in items:
            (self.folder / f"{item}-{self.where()}-{os.getpid()}").touch()
            while item.startswith("meet") and len(nodes(self.folder)) < int(item[-1]):
                time.sleep(0.01)
            if item == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "wrong":
                raise InputError("a wrong frame")
            self.held += 1
            time.sleep(0.05)
            yield item, 2 * item

    def long(self, items: list[Any], asked: Any) -> Any:
        """As a training: drains by itself."""
        for item in items:
            with execution.draining() as ended:
                (self.folder / f"begun-{item}").touch()
                while not ended():
                    time.sleep(0.01)
                (self.folder / f"drained-{item}").touch()
            yield item


def never() -> bool:
    return False


def nodes(folder: Path) -> set[str]:
    """That something was done on."""
    return {path.name.split("-")[1] for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:  # the workers find this module
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        signal.signal(signal.SIGTERM, before)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def engine(cluster) -> EngineConfig:
    return EngineConfig("ray", RayConfig(cluster.address))


def test_every_item_is_done_once_in_an_order_that_holds(engine, tmp_path: Path):
    items = ["meet2", *(str(i) for i in range(1, 12))]
    after = [[] if i != 5 else [0, 1, 2] for i in range(12)]
    with execution.workers(engine, Job(tmp_path), "cpu") as workers:
        results = list(workers.map("double", items, never, after))
    assert sorted(results) == sorted((item, 2 * item) for item in items)
    done = [item for item, _ in results]
    assert all(done.index(items[i]) < done.index("5") for i in (0, 1, 2))
    assert len(nodes(tmp_path)) == 2


def test_an_error_of_the_job_is_the_callers(engine, tmp_path: Path):
    with execution.workers(engine, Job(tmp_path), "cpu") as workers:
        with pytest.raises(InputError, match=r"^no such frame$"):
            workers.once("fail")
        with pytest.raises(InputError, match=r"^a wrong frame$"):
            list(workers.map("double", ["a", "wrong"], never))


def test_an_item_that_kills_its_workers_is_given_up_and_the_others_are_done(engine, tmp_path: Path):
    with execution.workers(engine, Job(tmp_path), "cpu") as workers:
        results = list(workers.map("double", ["a", "deadly", "b", "c"], never))
    [lost] = [result for result in results if isinstance(result, execution.Lost)]
    assert lost.item == "deadly" and "its worker died 3 times" in lost.why
    assert sorted(result for result in results if result is not lost) == [
        ("a", "aa"),
        ("b", "bb"),
        ("c", "cc"),
    ]
    assert len(list(tmp_path.glob("deadly-*"))) == 3


def test_a_node_is_lost_and_another_comes(engine, cluster, tmp_path: Path):
    items = ["meet2", *(str(i) for i in range(1, 60))]
    items[30] = "meet3"  # where the node that comes has begun something
    results = []
    with execution.workers(engine, Job(tmp_path), "cpu") as workers:
        for result in workers.map("double", items, never):
            results.append(result)
            if len(results) == 10:
                [second] = cluster.worker_nodes
                cluster.remove_node(second, allow_graceful=False)
            if len(results) == 20:
                cluster.add_node(num_cpus=1)
    assert sorted(results) == sorted((item, 2 * item) for item in items)
    assert len(nodes(tmp_path)) == 3


def test_asked_to_end_it_finishes_what_is_in_hand(engine, tmp_path: Path):
    results: list[tuple[str, str]] = []
    with execution.workers(engine, Job(tmp_path), "cpu") as workers:
        for result in workers.map("double", [str(i) for i in range(100)], lambda: len(results) >= 4):
            results.append(result)
        begun = {path.name.split("-")[0] for path in tmp_path.iterdir()}
        assert {item for item, _ in results} == begun and len(begun) < 10
        assert not list(workers.map("long", ["x", "y"], lambda: len(list(tmp_path.glob("begun-*"))) == 2))
    assert len(list(tmp_path.glob("drained-*"))) == 2


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path):
    ray.shutdown()
    with (
        pytest.raises(InputError, match=r"no Ray cluster at --ray.address 127.0.0.1:9"),
        execution.workers(EngineConfig("ray", RayConfig("127.0.0.1:9")), Job(tmp_path), "cpu"),
    ):
        pass


def test_without_an_address_it_starts_on_loopback_alone(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    with execution.workers(EngineConfig("ray"), Job(tmp_path), "cpu") as workers:
        assert signal.getsignal(signal.SIGTERM) == before  # Ray's own would leave with another code
        assert sorted(workers.map("double", ["a", "b"], never)) == [("a", "aa"), ("b", "bb")]
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    ray.shutdown()
