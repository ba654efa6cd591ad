"""Report: one self-contained page over runs, as OUT/index.html (ours)."""

from __future__ import annotations

from pathlib import Path

from segshift import outputs, runs
from segshift.config import ReportConfig
from segshift.page import build


def report(config: ReportConfig, out: str | Path) -> Path:
    """Write OUT/index.html over the folders in `config.runs`; returns `out`.

    Raises: InputError when a folder is not one that train, predict, evaluate, estimate or transfer wrote.
    """
    # A page can always be made again
    output = outputs.open_output(out, "report", config, begun=lambda out: False)
    text = build.page(config)
    output.claim()
    return write(text, output.path)


def write(text: str, out: Path) -> Path:
    """Write OUT/index.html; returns `out`."""
    with runs.atomic(out / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out
