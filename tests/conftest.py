"""One torch thread: the tests' networks are too small to gain from more, and waiting for the others costs
seconds.
"""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """The hub at a port where nobody listens, with an empty cache; to wait for it is an error."""

    def wait(seconds):
        raise AssertionError(f"waited {seconds} s for the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
