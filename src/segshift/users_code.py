"""Importing and running code that the user wrote: what it raises becomes one sentence with its file and
line.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segshift.runs import InputError


@contextmanager
def users_code(failed: str, expected: str) -> Iterator[None]:
    """A block of the user's own code. Raises: InputError for whatever it raises, naming its file and line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{failed} ({described(error)}): {expected}") from error


def imported(what: str, name: str) -> tuple[Callable[..., Any], str, Path | None]:
    """The factory that `name`, [FOLDER/]module:factory, names; then module:factory, and the module's file.

    FOLDER is where the module lies (`settings.FactoryText`); without one it lies in the current folder or is
    installed. what: "network" or "generator", for messages. Raises: InputError.
    """
    path, _, factory = name.rpartition(":")
    folder, _, module = path.rpartition("/")
    if module.endswith(".py") or not all(part.isidentifier() for part in [*module.split("."), factory]):
        raise InputError(
            f"{what} '{name}' is no <module>:<factory>: write it with dots for folders and without .py, as "
            f"in my{what}:build for my{what}.py in the current folder"
        )
    place, short = os.path.abspath(folder), f"{module}:{factory}"
    if place not in sys.path:
        sys.path.insert(0, place)
    with users_code(
        f"cannot import {what} '{short}'",
        f"expected <module>:<factory>, importable from {place} or installed",
    ):
        found = importlib.import_module(module)
        where = getattr(found, "__file__", None)  # a folder without __init__.py has none
        file = Path(where) if where else None
        if folder and file and Path(folder).resolve() not in (file.parent / "_").resolve().parents:
            raise InputError(
                f"{what} '{short}' is expected in {folder}, and Python has another module '{module}' in "
                f"{file}: rename one of them"
            )
        return getattr(found, factory), short, file


def described(error: BaseException) -> str:
    """What the user's code raised: type, first line, and the last line of that code which led there."""
    line = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}: {line}{_place(error)}"


_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
_LIBRARIES = ("<", str(Path(__file__).parent), *_INSTALLED)


def _place(error: BaseException) -> str:
    """' in FILE, line N', the last line of the user's own code that led to `error`; '' for none."""
    if isinstance(error, SyntaxError):
        return f" in {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    line = str(error).strip().split("\n")[0]
    return line.removeprefix("'").removesuffix("'")[:200] if isinstance(error, KeyError) else line[:200]
