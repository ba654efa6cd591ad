"""One torch thread, in the processes that tests start too: the networks are too small to gain from more, and
to wait for the others costs seconds.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch

torch.set_num_threads(1)
os.fsync = lambda file: None  # no test cuts the power, and the disk is slow

FIRST = ("test_notebook", "test_benchmarks", "test_prior", "test_families", "test_vit")
"""Files that take long, alone or after their neighbours in the alphabet: begun last, they would let the other
processes wait at the end.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """The hub at a port where nobody listens, with an empty cache; to wait for it is an error."""

    def wait(seconds):
        raise AssertionError(f"waited {seconds} s for the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
