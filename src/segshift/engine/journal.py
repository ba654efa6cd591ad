"""The journal of a stage that several processes work on at once: which frames are done, which could not be
read.

Every process appends to a file of its own, a line at a time, so no line can be lost; manifests are made from
all of them. A journal is kept for good: it is what a continued run goes by.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from segshift import records, runs
from segshift.data import frames, tars
from segshift.data.frames import Dataset
from segshift.runs import InputError


class Journal:
    """The lines of all processes that share `out`, and the file that this one (`name`) writes."""

    def __init__(self, out: Path, name: str, slugs: tuple[str, ...], packed: bool = False) -> None:
        """packed: pictures go into tar files."""
        self.out, self.slugs, self.packed = out, slugs, packed
        self.path = out / "journal" / f"{name}.jsonl"

    def add(self, line: dict) -> None:
        """Append a line. Raises: InputError when it cannot be written."""
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open(
                "ab"
            ) as file:  # a newline before, too: a kill may have cut the last line short
                file.write(f"\n{json.dumps(line, ensure_ascii=False)}\n".encode())
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}): free some space and run the same command again"
            ) from error

    def read(self) -> list[dict]:
        """The lines of every process. Raises: InputError."""
        paths = sorted(self.path.parent.glob("*.jsonl"))
        return [line for path in paths for line in runs.read_lines(path, records.Entry)]

    def never_begun(self) -> list[str]:
        """Shares i/n that have no journal, where others of the same n have one."""
        names = (re.fullmatch(r"(\d+)-of-(\d+)", path.stem) for path in self.path.parent.glob("*.jsonl"))
        begun = {(int(name[1]), int(name[2])) for name in names if name}
        return [f"{i}/{n}" for n in sorted({n for _, n in begun}) for i in range(n) if (i, n) not in begun]

    def finished(self, dataset: Dataset, lines: list[dict]) -> set[tuple[str, str]]:
        """(domain, frame id) of what has one of the `lines` and an image, or a line that says it was
        dropped."""

        def there(path: Path) -> bool:
            return path.exists() and path.stat().st_size > 0  # empty after a power cut

        def packed(slug: str, id: str) -> bool:
            tar = self.out / slug / tars.file_name(places[id] // tars.BLOCK)
            loose = frames.place(dataset, by_id[id], loose_files(self.out) / slug)
            return tar in whole or there(loose)

        by_id = {frame.id: frame for frame in dataset.frames}
        places = {frame.id: i for i, frame in enumerate(dataset.frames)}
        whole = {path for slug in self.slugs for path in (self.out / slug).glob("*.tar")}
        made = {(line["domain"], line["id"]): line for line in lines if "domain" in line}
        return {
            (s, id)
            for (s, id), line in made.items()
            if id in by_id
            and (
                frames.was_dropped(line)
                or (packed(s, id) if self.packed else there(frames.place(dataset, by_id[id], self.out / s)))
            )
        }

    def merge(self, known: set[str]) -> None:
        """Make manifest.jsonl and failures.jsonl of all lines; a frame that failed and is not `known`, for it
        was removed, is no failure any more.

        Two processes may do this at the same time, and the one with older lines write last. Whoever finishes
        says so in its journal first; so if nobody has in the meantime, what was just written holds all of the
        finished.
        """
        while True:
            lines = self.read()
            failed = {line["id"]: line for line in lines if "error" in line and line["id"] in known}
            missing: dict[str, dict] = {}
            for slug in self.slugs:
                made = {line["id"]: line for line in lines if line.get("domain") == slug}
                runs.write_lines(self.out / slug / "manifest.jsonl", [made[id] for id in sorted(made)])
                here = {id: line for id, line in failed.items() if id not in made}
                runs.write_failures(self.out / slug, here.values())
                missing |= here
            runs.write_failures(self.out, missing.values())
            if _ends(self.read()) == _ends(lines):
                return


def loose_files(out: Path) -> Path:
    """Where pictures wait for the others of their tar file."""
    return out / "loose"


def _ends(lines: list[dict]) -> int:
    return sum("finished" in line for line in lines)
