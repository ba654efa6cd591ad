"""The one guard of output folders: nothing of the user's is overwritten, and a failed start leaves nothing
behind.

A stage opens its folder with `open_output` before it does anything, and claims it when its first result is
about to be written. Until a result is there, a start with another configuration takes the folder over.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from segshift import runs
from segshift.data import frames, layouts
from segshift.runs import InputError, Saved
from segshift.settings import Data, RunFolder, inputs, option

_log = logging.getLogger(__name__)

LOCK = ".segshift-lock"
"""File in an output folder that a process holds while it works there."""
PATIENCE = 2.0
"""Seconds that a process is given to leave, as one whose driver has just been killed."""


@dataclass(frozen=True)
class Output:
    """An output folder that a stage may write to."""

    path: Path
    """Absolute."""
    stage: str
    config: Any
    free: tuple[str, ...]
    begun: Callable[[Path], bool]

    def claim(self) -> bool:
        """Write config.json; returns whether that replaces another configuration, which had no result.

        Raises: InputError when another process has claimed the folder for something else.
        """
        replaced = self.check()
        runs.write_json(
            self.path / "config.json", {"stage": self.stage, "config": runs.to_plain(self.config)}
        )
        return replaced

    def check(self) -> bool:
        """Whether the folder holds another configuration, without a result. Raises: InputError when it is not
        free.
        """
        file = self.path / "config.json"
        # Before config.json is looked for: of what segshift writes it comes first
        there = _visible(self.path)
        if not there:
            return False
        if not file.is_file():
            shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
            raise InputError(
                f"{self.path} is not empty and segshift did not begin it (it holds {shown}): name a new "
                "folder"
            )
        try:
            saved: Saved = runs.read_json(file, Saved)
        except InputError:
            raise InputError(
                f"{file} is no configuration that segshift wrote: name a new folder, or restore the file"
            ) from None
        if saved["stage"] != self.stage:
            raise InputError(
                f"{self.path} holds a run of stage '{saved['stage']}', not '{self.stage}': name a new folder"
            )
        new = runs.to_plain(self.config)
        differ = [
            (name, *values)
            for name, *values in differences("", saved["config"], new)
            if not any(name == field or name.startswith(f"{field}.") for field in self.free)
            and "where" not in name.split(".")  # it runs is no part of a result
        ]
        if differ and self.begun(self.path):
            what = ", ".join(
                f"{option(name)} {_short(old)} there, {_short(now)} asked for"
                for name, old, now in differ[:2]
            )
            more = f", and {len(differ) - 2} more" if len(differ) > 2 else ""
            raise InputError(
                f"{self.path} holds a run of other options ({what}{more}): name a new folder, or delete it"
            )
        return bool(differ)


def open_output(
    out: str | os.PathLike[str],
    stage: str,
    config: Any,
    *,
    free: Sequence[str] = (),
    begun: Callable[[Path], bool] = lambda out: True,
) -> Output:
    """The folder `out`, which is new, empty, or begun by this stage with this configuration, and apart from
    all inputs.

    free: fields that may differ when a run is continued, dotted where they are nested. begun: whether the
    folder holds a result; where it holds none, another configuration may take it over. Raises: InputError.
    """
    output = Output(Path(runs.user_path(out)), stage, config, tuple(free), begun)
    try:
        _keep_apart(output.path.resolve(), config)
        output.check()
    except OSError as error:
        raise InputError(
            f"cannot use {output.path} ({error.strerror}): name another output folder"
        ) from error
    return output


def begin(out: str | os.PathLike[str], stage: str, config: Any, **how: Any) -> Path:
    """Open `out` and claim it at once; returns it as an absolute path. Raises: InputError, as
    `open_output`."""
    output = open_output(out, stage, config, **how)
    output.claim()
    return output.path


@contextmanager
def alone(out: Path, index: int = 0, count: int = 1) -> Iterator[None]:
    """Holds `out` in this block, or the share `index` of `count` of its frames; the kernel lets go of it when
    the process is killed.

    Raises: InputError while another process holds the same, or the whole; it is given PATIENCE to leave.
    """
    new = not out.exists()
    try:
        with runs.on_disk(out / LOCK):
            out.mkdir(parents=True, exist_ok=True)
            lock = (out / LOCK).open("a+")
    except OSError as error:
        raise InputError(
            f"cannot write to {out} ({error.strerror}): choose a writable output folder"
        ) from error
    with lock as file:
        try:
            until = time.monotonic() + PATIENCE
            while not _hold(file, index, count) and time.monotonic() < until:
                time.sleep(0.1)
            if not _hold(file, index, count):
                share = f" (share {index}/{count})" if count > 1 else ""
                raise InputError(f"another process works in {out}{share}: wait for it, or name a new folder")
        except (ImportError, OSError) as error:
            _log.warning(
                "cannot tell whether another process works in %s (%s): start it once only", out, error
            )
        try:
            yield
        finally:
            if count == 1 and not (out / "config.json").exists():  # a start that failed leaves nothing
                (out / LOCK).unlink(missing_ok=True)
                if new:
                    with suppress(OSError):  # not where something else lies in it by now
                        out.rmdir()


def _hold(file: IO[str], index: int, count: int) -> bool:
    """Take a share, where no other process has it. Raises: OSError, ImportError where there are no locks."""
    import fcntl  # which Windows lacks

    whole = fcntl.LOCK_EX if count == 1 else fcntl.LOCK_SH
    try:
        # not flock: data workers would inherit it and outlive a kill
        fcntl.lockf(file, whole | fcntl.LOCK_NB, 1)
        if count > 1:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(index, count))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def held(out: Path, index: int, count: int) -> bool:
    """Whether another process has that share of `out`. This one must have none: closing a file drops its
    locks."""
    try:
        with (out / LOCK).open("a+") as file:
            return not _hold(file, index, count)
    except (ImportError, OSError):
        return False


def _byte(index: int, count: int) -> int:
    """The byte of the lock file that stands for a share of several; byte 0 stands for the whole."""
    return 1 + count * (count - 1) // 2 + index


def _visible(path: Path) -> list[str]:
    """What a folder holds, but for hidden files: those of the system, of an editor, and ours that a kill left
    behind.
    """
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise InputError(f"{path} is a file: name a new folder to write to") from None


def _keep_apart(out: Path, config: Any) -> None:
    """Raises: InputError when `out` lies in an input, or an input in `out`."""
    for name in inputs(config):
        if "{" in name:
            continue  # a folder of the experiment's own
        for path in _places(name):
            if path == out or (path in out.parents and not isinstance(name, RunFolder)):
                raise InputError(
                    f"the output folder {out} lies in the input {path}: name a folder outside of it"
                )
            if out in path.parents:
                raise InputError(
                    f"the input {path} lies in the output folder {out}: name a folder that does not hold it"
                )


def _places(name: str) -> list[Path]:
    """Where an input lies, links resolved; of a data set its description too."""
    if not isinstance(name, Data):
        return [Path(name).resolve()]
    try:
        layout, path, _ = frames.split(name)
    except InputError:
        return []  # no data set: reading it says so
    try:
        return list(dict.fromkeys(place.resolve() for place in (path, layouts.LAYOUTS[layout](path).root)))
    except InputError:
        return [path.resolve()]


def differences(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Where two plain values differ, by dotted name; of nested ones where inside."""
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and all(isinstance(i, dict) for i in [*old, *new])
    ):
        old, new = ({str(i): item for i, item in enumerate(items)} for items in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        parts = ((f"{name}.{key}" if name else key, old.get(key), new.get(key)) for key in old | new)
        return [found for part in parts for found in differences(*part)]
    return [] if old == new else [(name, old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
