"""The tables and warnings that `segshift estimate` prints, from estimate.json and ranking.json."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segshift import records
from segshift.scoring import bootstrap, estimate

_log = logging.getLogger(__name__)

UNCHANGED = 0.5
"""Grey levels on average below which a generator has changed nothing."""


def print_estimate(result: dict[str, Any], who: str) -> None:
    """The tables of one network, and its warnings."""
    domains = result["domains"].values()
    detail = Table(
        "class",
        "source",
        *(domain["name"] for domain in domains),
        title=f"predicted IoU %, with {result['level']:.0%} intervals",
    )
    for name in result["classes"]:
        on_source = next(iter(domains))["source"]["iou"][name]
        if on_source["value"] is not None:
            detail.add_row(
                name, _percent(on_source), *(_percent(domain["corrected"]["iou"][name]) for domain in domains)
            )
    Console().print(detail)
    view = Table(
        title=f"predicted mIoU %, with {result['level']:.0%} intervals; "
        f"judged by {estimate.judge_name(result)}",
        caption=result["protocol"],
    )
    for heading in (
        "domain",
        "predicted",
        "drop from source",
        "transfer alone costs",
        "uncorrected",
        "fail, worst first",
    ):
        view.add_column(heading)
    for domain in domains:
        view.add_row(
            domain["name"],
            _percent(domain["corrected"]["miou"]),
            _percent(domain["drop"]),
            _percent(domain["transfer_cost"]),
            _percent(domain["raw"]["miou"]),
            ", ".join(domain["failing"]) or "none",
        )
    print_warnings(result, who)
    Console().print(view)
    for domain in domains:
        if images := domain.get("target_images"):
            Console(soft_wrap=True, highlight=False).print(
                f"{domain['name']}: {images['count']} target images show an error of the generator of "
                f"{_percent(images['generator_error'], '+')} points, of which half is taken off; without "
                f"them {_percent(images['without'])}"
            )


def print_ranking(ranked: dict[str, Any]) -> None:
    """The networks of every domain, best first."""
    first = next(iter(ranked["candidates"].values()))
    for domain in ranked["domains"].values():
        view = Table(
            "network",
            "predicted",
            "is the best",
            title=f"{domain['name']}: predicted mIoU %, with {ranked['level']:.0%} intervals; judged by "
            f"{estimate.judge_name(first)}",
            caption=ranked["protocol"],
        )
        for line in domain["ranking"]:
            view.add_row(line["candidate"], _percent(line["miou"]), f"{line['best']:.0%}")
        Console().print(view)


def print_warnings(result: dict[str, Any], who: str) -> None:
    """What makes an estimate one not to rely on; `who` is what its network is called."""
    for domain in result["domains"].values():
        if domain["trained_on"]:
            _log.warning(
                "%s: %s was trained on transferred frames of the domain, and is examined on more of the same "
                "generator's: on the embedded town such estimates were %.0f points too high; judge it with "
                "another --generator",
                domain["name"],
                who,
                100 * bootstrap.TRAINED_ON,
            )
        if domain["changed"] < UNCHANGED:
            _log.warning(
                "%s: %s leaves the frames as they are (%.2f grey levels off on average): what was measured "
                "is the score on the source",
                domain["name"],
                estimate.judge_name(result),
                domain["changed"],
            )
        elif np.mean([draw["changed"] for draw in domain["own_draws"]]) < UNCHANGED:
            _log.warning(
                "%s: %s leaves the frames of the own domain as they are, so what it spoils by itself is not "
                "known, and the interval is too narrow",
                domain["name"],
                estimate.judge_name(result),
            )
        source, loss = domain["source"]["miou"]["value"], domain["transfer_cost"]["value"]
        if source and loss > source / 2:
            _log.warning(
                "%s: the transfer alone costs %s %.1f of %.1f points: do not rely on this estimate, use a "
                "better generator or a lower strength",
                domain["name"],
                who,
                100 * loss,
                100 * source,
            )


def _percent(found: records.Interval, sign: str = "") -> str:
    if found["value"] is None:
        return "-"
    value = f"{100 * found['value']:{sign}.1f}"
    return (
        value
        if found["low"] is None or found["high"] is None
        else f"{value} ({100 * found['low']:{sign}.1f} to {100 * found['high']:{sign}.1f})"
    )
