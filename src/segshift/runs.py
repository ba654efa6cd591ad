"""Run folders: configuration, atomic files, JSON lines, progress, and the one error for wrong input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
LOG_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal."""


os.umask(_UMASK := os.umask(0o022))  # it can only be read by setting it


class InputError(Exception):
    """Wrong input, in one sentence: what was found, what was expected, what to do, with the path (exit code 2)."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block succeeds and vanishes when it fails.

    Raises: InputError when the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: choose a writable output folder") from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)  # as any other file: mkstemp's 0600 would hide results from colleagues
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"disk full while writing {path}: free some space and run the same command again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def slug(text: str) -> str:
    """A folder name: lower case, words of any alphabet joined by '-', at most 60 characters; "" when there is none."""
    name = re.sub(r"\W+", "-", text.lower()).strip("-")
    if len(name) > 60:  # file systems stop at 255 bytes
        name = f"{name[:50]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or plain value as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(to_plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists, ready for JSON."""
    return json.loads(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))


def read_json(path: Path) -> Any:
    """Raises: InputError when the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no file {path}: expected a folder that segshift wrote") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): restore it or start again in a new folder") from error


def read_config(path: Path, kind: type[T]) -> T:
    """Read a configuration saved by `begin`. Raises: InputError."""
    try:
        return TypeAdapter(kind).validate_python(tuples(read_json(path)["config"]))
    except ValidationError as error:
        wrong = ", ".join(dict.fromkeys(".".join(map(str, one["loc"])) for one in error.errors()))
        raise InputError(
            f"{path} is no {kind.__name__} of this version ({wrong}): use the version that wrote it, or run it again in a new folder"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no {kind.__name__}: {error}") from error


def tuples(value: Any) -> Any:
    """Lists inside plain values as tuples, as frozen dataclasses hold them."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def begin(out: Path, stage: str, config: Any, *, free: tuple[str, ...] = ()) -> None:
    """Claim `out` for this stage and configuration, or accept it if it is the same one being continued.

    `free`: fields that change no result (workers, device, ...) and may differ when a run is continued.
    Raises: InputError when `out` belongs to another configuration, naming the fields that differ.
    """
    path = out / "config.json"
    plain = {"stage": stage, "config": to_plain(config)}
    if path.exists():
        before = read_json(path)
        if before.get("stage") != stage:
            raise InputError(f"{out} holds a run of stage '{before.get('stage')}', not '{stage}': name a new folder")
        old, new = before["config"], plain["config"]
        differ = [told for key in new if key not in free for told in _differences(key, old.get(key), new[key])]
        if differ:
            what = ", ".join(differ[:3]) + (f", and {len(differ) - 3} more" if len(differ) > 3 else "")
            raise InputError(f"{out} holds a run of another configuration ({what}): name a new folder, or delete it")
        return
    write_json(path, plain)


def _differences(name: str, old: Any, new: Any) -> list[str]:
    """Where two plain values differ; of nested ones where inside. A path may be written in another way."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and all(isinstance(i, dict) for i in [*old, *new]):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        return [told for key in old | new for told in _differences(f"{name}.{key}", old.get(key), new.get(key))]
    return [] if _spelled_out(old) == _spelled_out(new) else [f"{name} {old!r} there, {new!r} asked for"]


def _spelled_out(value: Any) -> Any:
    """A text, or a list of such, with all that could be a path in it absolute: the same path is then the same text."""
    if isinstance(value, list):
        return [_spelled_out(item) for item in value]
    if isinstance(value, str):
        return ":".join(os.path.abspath(part) if part else part for part in value.split(":"))
    return value


def world_size() -> int:
    """Processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def one_process(command: str, instead: str = "start it without torchrun") -> None:
    """Raises: InputError under torchrun, where every process would do the whole of it at once."""
    if world_size() > 1:
        raise InputError(f"{command} is one process: {instead}")


STAGES_FIRST = (
    "start its stages under torchrun one after the other, with the settings of their config.json, and then this, which finds "
    "them finished"
)
"""What one does with `one_process` of several stages."""


def read_lines(path: Path) -> list[dict]:
    """JSON lines; a last line cut short by a kill is left out. A missing file is an empty list."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:  # cut, perhaps within a letter
            continue
    return lines


def write_lines(path: Path, lines: list[dict]) -> None:
    """Write JSON lines atomically."""
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_failures(out: Path, failed: Iterable[dict]) -> None:
    """Write what `failures` reads, by id; no file where nothing failed."""
    if lines := sorted(failed, key=lambda line: line["id"]):
        write_lines(out / "failures.jsonl", lines)
    else:
        (out / "failures.jsonl").unlink(missing_ok=True)


def failures(out: Path) -> list[dict]:
    """Frames a stage could not do: {"id", "error"} each; stages write them to failures.jsonl (exit code 1)."""
    return read_lines(out / "failures.jsonl")


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s", style="cyan")


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[Progress]:
    """A progress bar with rate and ETA; call `.advance()` on the yielded object after every item."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        bar.add_task(what, total=total, completed=done)
        bar.advance = _advance(bar)
        yield bar


def _advance(bar: Progress) -> Callable[..., None]:
    """`bar.advance` of its one task; where nobody watches, as in a job's log, it says a line every LOG_EVERY seconds."""
    [task], advance, told = bar.tasks, bar.advance, time.monotonic()

    def step(by: int = 1) -> None:
        nonlocal told
        advance(task.id, by)
        if not bar.console.is_terminal and time.monotonic() - told >= LOG_EVERY:
            told = time.monotonic()
            left = "" if task.time_remaining is None else f", {timedelta(seconds=round(task.time_remaining))} left"
            bar.console.print(f"{task.description}: {task.completed:.0f} of {task.total:.0f}{left}", highlight=False)

    return step


def cpus() -> int:
    """Cores that this process may use: on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
