"""Arguments to a call: tyro reads them, and what it cannot take becomes one sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial, wraps
from io import StringIO
from typing import Any

import tyro
import tyro._docstrings

from segshift.runs import InputError

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = str.maketrans("│─╰╯", " -  ")  # in a terminal without UTF-8 it is drawn so
_LISTED = re.compile(r" {6}(?:--\S+, )*(\S+)")
"""An option in tyro's box, by its last name: what explains it stands further right."""
_BREAK = re.compile(r"(?<!\n)\n(?!\n)")
_KINDS = {"INT": "whole number", "FLOAT": "number"}


@dataclass
class _Part:
    """What stands between two lines of tyro's box."""

    lines: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def _flow(of: Callable[[object], dict[str, str]]) -> Callable[[object], dict[str, str]]:
    """tyro's reader of the docstrings of fields, with their lines joined: it leaves the breaks of indented
    ones in."""
    return lambda obj: {name: _BREAK.sub(" ", inspect.cleandoc(text)) for name, text in of(obj).items()}


if hasattr(tyro._docstrings, "parse_docstring_from_object"):  # no public part of tyro
    tyro._docstrings.parse_docstring_from_object = _flow(  # type: ignore[assignment]
        tyro._docstrings.parse_docstring_from_object
    )


def parsed(command: str, function: Callable[..., Any], arguments: list[str]) -> Callable[[], Any]:
    """`function` with the arguments that stand in `arguments`, ready to be called.

    command: as it is typed. Raises: InputError for arguments that it does not take; SystemExit after --help.
    """

    @wraps(function)
    def ready(*positional: Any, **options: Any) -> Callable[[], Any]:
        return partial(function, *positional, **options)

    told = StringIO()
    try:
        with redirect_stderr(told):
            made: Any = tyro.cli(
                ready, prog=command, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,)
            )
            return made
    except SystemExit as stop:
        if not stop.code:
            raise
    raise InputError(
        f"{_what(command, _parts(told.getvalue()), arguments)}: {command} --help explains all options"
    )


def _parts(box: str) -> list[_Part]:
    """The parts of tyro's box, without its frame and title."""
    found = [_Part()]
    for line in _STYLE.sub("", box).translate(_FRAME).splitlines():
        if not line.strip(" -"):
            found.append(_Part())
        if not line.strip(" -") or not line.startswith("  "):  # the title
            continue
        found[-1].lines.append(line.strip())
        if listed := _LISTED.match(line):
            found[-1].options.append(listed[1])
    return [part for part in found if part.lines]


def _what(command: str, parts: list[_Part], arguments: list[str]) -> str:
    """What is wrong, from tyro's words for it; those words where they are others than expected."""
    by_heading = {part.text.partition(":")[0].split(" from ")[0]: part for part in parts}
    unknown = []
    if strange := by_heading.get("Unrecognized options"):
        tokens = re.split(r"[,\s]+", strange.text.partition(":")[2].strip())
        unknown = [token for token in tokens if token.startswith("-")] or tokens
    if missing := by_heading.get("Missing"):
        more = f" and does not know {', '.join(unknown)}" if unknown else ""
        return f"{command} needs {', '.join(missing.options)}{more}"
    if unknown:
        near = by_heading.get("Perhaps you meant", _Part()).options[:3]
        perhaps = f", perhaps {' or '.join(near)}" if near else ""
        return f"{command} does not know {', '.join(unknown)}{perhaps}"
    first = parts[0].text if parts else "these arguments are not understood"
    if choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?),?\)", first):
        return f"{choice[2]} is '{choice[1]}': expected {_choices(choice[3])}"
    if short := re.match(r"Missing value for argument '(.*)'\. Expected (\d+) values", first):
        return f"{short[1]} needs {'a value' if short[2] == '1' else f'{short[2]} values'}"
    helped = by_heading.get("Argument helptext")
    if (wrong := re.match(r"Error parsing (?:\S+/)?(\S+): ", first)) and helped:
        metavar = re.sub(r"^(--\S+ )+", "", helped.lines[1])
        return f"{wrong[1]} is '{' '.join(_given(wrong[1], arguments))}': expected {_kind(metavar)}"
    return first


def _choices(shown: str) -> str:
    """tyro's `'13', 'None', '16'`, whose order changes from call to call where there is a None."""
    names = [name.strip(" '") for name in shown.split(",")]
    return ", ".join(sorted(name for name in names if name != "None") if "None" in names else names)


def _kind(metavar: str) -> str:
    """tyro's `{None}|{INT INT}` as 2 whole numbers."""
    words = re.sub(r"\{None\}\||[{}]", "", metavar).split()
    if len(set(words)) == 1 and words[0] in _KINDS:
        return f"a {_KINDS[words[0]]}" if len(words) == 1 else f"{len(words)} {_KINDS[words[0]]}s"
    return "names with values, NAME VALUE ..." if metavar.startswith("[STR STR") else metavar


def _given(option: str, arguments: list[str]) -> list[str]:
    """The values that follow an option."""
    values: list[str] = []
    taking = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            taking = name.replace("_", "-") == option
            values = [value] if taking and equals else [] if taking else values
        elif taking:
            values.append(argument)
    return values
