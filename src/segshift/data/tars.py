"""Frames in tar files, which few millions of files are not: a set of WebDataset (ours as a layout: `tar:`).

    ROOT/000000.tar, 000001.tar, ...   of BLOCK frames of the source each, in its order; of every frame
        KEY.png                        the image
        KEY.label.png                  train ids in 8 bits of grey, 255 for void
        KEY.json                       one line: its id and how it was made
    ROOT/dataset.yaml                  the classes

The key is the frame's id, with %2E for a dot: WebDataset ends a key at the first one. A path of a member is
the file's with the member's name after it, and reads like any other (`content`). The bytes of a file depend
on its frames alone.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from segshift import runs

BLOCK = 1000
"""Frames a file at most."""


def file_name(number: int) -> str:
    """Of the tar file with the frames from `number` * BLOCK on."""
    return f"{number:06d}.tar"


def key(id: str) -> str:
    """What the names of a frame's members begin with."""
    return id.replace("%", "%25").replace(".", "%2E")


def id_of(key: str) -> str:
    """The frame's id."""
    return key.replace("%2E", ".").replace("%25", "%")


def write(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar file of (name, content), atomically. Raises: InputError when it cannot be written."""
    with runs.atomic(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def names(path: Path) -> list[str]:
    """The names of a tar file's members. Raises: OSError where it is none."""
    return list(_index(path))


def content(path: Path) -> Path | io.BytesIO:
    """What is to be opened in place of `path`: itself, or the member of a tar file that it names. Raises:
    OSError where there is no such member."""
    file = path.parent
    if file.suffix != ".tar" or not file.is_file():
        return path
    found = _index(file)
    if path.name not in found:
        raise FileNotFoundError(2, "No such member", str(path))
    offset, size = found[path.name]
    with file.open("rb") as opened:
        opened.seek(offset)
        return io.BytesIO(opened.read(size))


def _index(path: Path) -> dict[str, tuple[int, int]]:
    told = path.stat()
    return _read_index(path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=10_000)
def _read_index(path: Path, _changed: int, _size: int) -> dict[str, tuple[int, int]]:
    """Offset and size of every member; read again where the file has changed."""
    try:
        with tarfile.open(path) as file:
            return {member.name: (member.offset_data, member.size) for member in file if member.isfile()}
    except tarfile.TarError as error:
        raise OSError(22, f"no whole tar file: {error}", str(path)) from error
