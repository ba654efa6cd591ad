"""Running code that the user wrote: what it raises becomes one sentence with its file and line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segshift.runs import InputError


@contextmanager
def users_code(failed: str, expected: str) -> Iterator[None]:
    """A block of the user's own code. Raises: InputError for whatever it raises, naming its file and line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        line = error.msg if isinstance(error, SyntaxError) else first_line(error)
        raise InputError(f"{failed} ({type(error).__name__}: {line}{_place(error)}): {expected}") from error


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
    return str(error).strip().strip("'\"").split("\n")[0][:200]
