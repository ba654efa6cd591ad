"""Milliseconds a frame of the embedded town on one core: drawing, labels, and each weather.

    python benchmarks/town_speed.py [--frames 60] [--height 128] [--width 256]

Aim: 25 ms or less at 128x256, averaged over the domains. CPU time, so that other work on the machine matters
little.
"""

import argparse
from time import process_time

import cv2
from rich.console import Console
from rich.table import Table

from segshift.town import scenes, weather


def milliseconds(work, items: list) -> float:
    start = process_time()
    for item in items:
        work(item)
    return (process_time() - start) / len(items) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60, help="scenes a domain")
    parser.add_argument("--height", type=int, default=128, help="pixels")
    parser.add_argument("--width", type=int, default=256, help="pixels")
    args = parser.parse_args()
    cv2.setNumThreads(1)

    def frame(condition: str, seed: int) -> None:
        layers = scenes.draw(scenes.BENCHMARK, seed, args.height, args.width)
        weather.render(layers, (condition,), 0)
        layers.label_at_size()

    seeds = list(range(args.frames))
    domains = (*weather.CONDITIONS, "soft")
    for condition in domains:  # fill the caches of textures and clouds
        frame(condition, 0)
    drawing = milliseconds(lambda s: scenes.draw(scenes.BENCHMARK, s, args.height, args.width), seeds)
    whole = {c: milliseconds(lambda s, c=c: frame(c, s), seeds) for c in domains}
    table = Table(
        "domain", "ms a frame", title=f"town, {args.height}x{args.width}, one core, {args.frames} scenes"
    )
    table.add_row("drawing alone", f"{drawing:.1f}")
    for condition, value in whole.items():
        table.add_row(condition, f"{value:.1f}")
    table.add_row("mean over domains", f"{sum(whole.values()) / len(whole):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
