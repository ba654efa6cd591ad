"""Run folders: configuration, atomic files, JSON lines, progress, and the one error for wrong input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typing_extensions import TypedDict

T = TypeVar("T")
TEMPORARY = ".tmp-"
"""What the names of unfinished files begin with."""
_FOLDERS = re.compile(r"(?:/[^/\s]+){2,}(?=/)")
"""The folders of a path, without what lies in them."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
"""Bytes that file systems take."""
LOG_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class InputError(Exception):
    """Wrong input, in one sentence: what was found, what was expected, what to do, with the path (exit code
    2).
    """


def user_path(text: str | os.PathLike[str]) -> str:
    """A path that a user gave, absolute, with `~` expanded. Raises: InputError."""
    if not isinstance(text, str | os.PathLike):
        raise InputError(f"{text!r} is no path: name a file or folder")
    path = os.fspath(text)
    if not path.strip() or "\0" in path:
        raise InputError("an empty path: is a variable of the shell unset? name a file or folder")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"the path {path!r} is not valid UTF-8: rename it") from None
    longest = max(len(step.encode()) for step in path.split("/"))
    if longest > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        raise InputError(
            f"the path {path[:50]}...{path[-30:]} is too long, with a name of {longest} bytes where file "
            f"systems take {_LONGEST_NAME}, and {_LONGEST_PATH} in all: shorten it"
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise InputError(f"no user for the home folder '{path}': write the path in full")
    return os.path.abspath(expanded)


FREE_SPACE = "free some space and run the same command again"


def disk_is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """What writes `path`. Raises: InputError when the disk is full."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise InputError(f"disk full while writing {path}: {FREE_SPACE}") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block succeeds and vanishes when it fails.

    Raises: InputError when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    try:
        with on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # With the user's own permissions, so that colleagues can read the result
            temporary.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}): choose a writable output folder"
        ) from error
    try:
        with on_disk(path):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.EISDIR:
            raise InputError(f"{path} is a folder, expected a file: move it, or name a new output") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"the name of {path} is too long for this file system: shorten it") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def one_line(text: str, most: int = 300) -> str:
    """A message as one line of at most `most` characters, without control characters.

    Of a longer one the longest paths lose the middle of their folders, and where that is not enough, the line
    loses its own.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    for folders in sorted(set(_FOLDERS.findall(line)), key=len, reverse=True):
        excess = -(-(len(line) - most) // max(line.count(folders), 1))
        kept = max((len(folders) - excess - 3) // 2, 10)
        if excess > 0 and 2 * kept + 3 < len(folders):
            line = line.replace(folders, f"{folders[:kept]}...{folders[-kept:]}")
    return line if len(line) <= most else f"{line[: most - 100]} ... {line[-95:]}"


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing below `folder`, which no other process
    writes to.
    """
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def slug(text: str) -> str:
    """A folder name: lower case, words of any alphabet joined by '-', at most 60 characters; "" when there is
    none.
    """
    name = re.sub(r"\W+", "-", text.lower()).strip("-")
    if len(name) > 60:  # file systems stop at 255 bytes
        name = f"{name[:50]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def short_names(paths: Iterable[str | Path]) -> list[str]:
    """What each of several paths is called: its last part, with as many parents' as tell it from the
    others."""
    whole = [Path(path).resolve() for path in paths]

    def name(path: Path) -> str:
        others = [other.parts for other in whole if other != path]
        depth = next(
            d for d in range(1, len(path.parts) + 1) if all(path.parts[-d:] != other[-d:] for other in others)
        )
        return "/".join(path.parts[-depth:])

    return [name(path) for path in whole]


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or plain value as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(to_plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def to_plain(value: Any) -> Any:
    """A dataclass as nested dicts and lists, ready for JSON."""
    return json.loads(
        json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)
    )


class Saved(TypedDict):
    """What config.json holds."""

    stage: str
    config: dict[str, Any]


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The value in a JSON file, checked to be a `kind`, any type that pydantic knows (`segshift.records`).

    Returns: a dataclass where `kind` is one, or else the value as it is, with the keys that no type names.
    Raises: InputError.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no file {path}: name a folder that segshift wrote") from error
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}): restore it, or start again in a new folder"
        ) from error
    return parsed(content, kind, str(path))


def parsed(content: bytes, kind: Any, where: str) -> Any:
    """The value of JSON, as `read_json` returns it; `where` names its place in messages. Raises:
    InputError."""
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is no JSON ({error}): restore it, or start again in a new folder"
        ) from error
    return _checked(value, content, kind, where)


def _checked(value: Any, content: bytes, kind: Any, where: str) -> Any:
    """What `parsed` returns of a `value` that is `content` in the file `where`. Raises: InputError."""
    try:
        made = _adapter(kind).validate_json(content, strict=True)  # no text for a number, no 1 for true
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = ": ".join(filter(None, (place, _plain(first["msg"]))))
        raise InputError(
            f"{where} is not as segshift wrote it ({what}): restore it, or start again in a new folder"
        ) from None
    return made if is_dataclass(made) else value


def _plain(message: str) -> str:
    """A message of pydantic as the end of our sentence."""
    return message.removeprefix("Value error, ").replace("Input should be", "expected", 1)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_config(path: Path, kind: type[T], stage: str | None = None) -> T:
    """The configuration in a config.json, of `stage` where one is named. Raises: InputError."""
    saved: Saved = read_json(path, Saved)
    if stage is not None and saved["stage"] != stage:
        raise InputError(f"{path} is of stage '{saved['stage']}': name a folder that segshift {stage} wrote")
    unknown = saved["config"].keys() - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not unknown:
        try:
            return _adapter(kind).validate_python(tuples(saved["config"]))  # type: ignore[arg-type]
        except ValidationError as error:
            unknown = {f"{'.'.join(map(str, one['loc']))}: {_plain(one['msg'])}" for one in error.errors()}
        except InputError as error:
            raise InputError(f"in {path}, {error}") from None
    raise InputError(
        f"{path} is no {kind.__name__} of this version ({', '.join(sorted(unknown))}): use the version that "
        "wrote it, or start again in a new folder"
    )


def tuples(value: Any) -> Any:
    """Lists inside plain values as tuples, as frozen dataclasses hold them."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def read_lines(path: Path, kind: Any = dict[str, Any]) -> list[Any]:
    """JSON lines, each checked to be a `kind`; a line that a kill cut short is left out. A missing file is an
    empty list.

    Raises: InputError.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}): restore it, or start again in a new folder"
        ) from error
    lines = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # cut, perhaps within a letter
            continue
        lines.append(_checked(value, line, kind, f"{path}, line {number},"))
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    with atomic(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )


def write_failures(out: Path, failed: Iterable[Mapping[str, Any]]) -> None:
    """Write what `failures` reads, by id; no file where nothing failed."""
    if lines := sorted(failed, key=lambda line: line["id"]):
        write_lines(out / "failures.jsonl", lines)
        return
    path = out / "failures.jsonl"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot delete {path} ({error.strerror}): delete it yourself") from error


class Failure(TypedDict):
    """A frame that a stage could not do."""

    id: str
    error: str


def failures(out: Path) -> list[Failure]:
    """Frames that a stage could not do; stages write them to failures.jsonl (exit code 1)."""
    return read_lines(out / "failures.jsonl", Failure)


class _Rate(ProgressColumn):
    """Items a second since the start, without those that were finished before."""

    def render(self, task: Task) -> Text:
        made, seconds = task.completed - task.fields["done"], task.elapsed or 0.0
        return Text(f"{made / seconds:.1f}/s" if made > 0 and seconds >= 1 else "-/s", style="cyan")


class Bar:
    """The bar of one task; in a job's log, which nobody watches, a line every LOG_EVERY seconds."""

    def __init__(self, shown: Progress, task: Task) -> None:
        self.shown, self.task, self.printed = shown, task, time.monotonic()

    def describe(self, what: str) -> None:
        """Show `what` in front of the bar from now on."""
        self.shown.update(self.task.id, description=what)

    def advance(self, by: int = 1) -> None:
        """`by` items more are done."""
        task = self.task
        self.shown.advance(task.id, by)
        if not self.shown.console.is_terminal and time.monotonic() - self.printed >= LOG_EVERY:
            self.printed = time.monotonic()
            left = (
                ""
                if task.time_remaining is None
                else f", {timedelta(seconds=round(task.time_remaining))} left"
            )
            self.shown.console.print(
                f"{task.description}: {task.completed:.0f} of {task.total:.0f}{left}", highlight=False
            )


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """A progress bar with rate and ETA; call `.advance()` on the yielded object after every item."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as shown:
        shown.add_task(what, total=total, completed=done, done=done)
        yield Bar(shown, shown.tasks[0])


def cpus() -> int:
    """Cores that this process may use: on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
