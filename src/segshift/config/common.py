"""What several configurations choose from."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
Select = Literal["last", "source", "transferred", "oracle"]
"""Rules to select a checkpoint by: the last step, the best mIoU on source validation, on transferred validation, or on
the target's labels (oracle: not attainable without them)."""
CHECKPOINTS: dict[Select, str] = {
    "last": "last",
    "source": "best on source",
    "transferred": "best on transferred",
    "oracle": "oracle (not attainable)",
}
"""What tables call the checkpoints that the rules choose."""
