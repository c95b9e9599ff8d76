"""Videos that lie in tar files, read where they lie: nothing is unpacked.

Input: a row's path of the form TAR/MEMBER, such as data/000000.tar/00000042.mp4. Output: which part
of the tar it is, in a form that FFmpeg opens, and with it every backend. Traded: the table of a tar
is read once a process, header by header; an index (`vidlearn data index`) saves that. A tar is
only parsed, and only plain members count, whatever it claims of links, devices and paths.
Chapter 5.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

from vidlearn.datasets.kept import kept
from vidlearn.errors import VideoError

AnyPath = str | os.PathLike[str]
# No file can have such a path unless the tar is a folder, which `parts` looks up.
MEMBER = re.compile(r"(?P<tar>.+\.(?:tar|tar\.\w+|tgz))/(?P<name>.+)", re.DOTALL)
# What FFmpeg calls a part of a file: https://ffmpeg.org/ffmpeg-protocols.html#subfile
ADDRESS = re.compile(r"subfile,,start,(\d+),end,(\d+),,:file:(.+)", re.DOTALL)
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
AGAIN = "Copy or download the tar again."
KEPT_BYTES, OPEN = 2**26, 128  # of tars' tables, and tars that are open, in a process
BLOCK = 512  # a tar is made of such; one of zeros ends it
Part = tuple[int, int]  # the byte at which it begins, and the one after its last
Stamp = tuple[int, int]  # bytes, nanoseconds since 1970 of the last change


def parts(path: AnyPath) -> tuple[str, str] | None:
    """Tar and member of a path, None if it is the path of a file."""
    name = os.fspath(path)
    found = MEMBER.fullmatch(name) if ".t" in name else None
    return (found["tar"], found["name"]) if found and not os.path.isdir(found["tar"]) else None


def part_of(path: AnyPath) -> Part | None:
    """Where in its tar a member lies; None for a file, which is no part of another.

    VideoError: no such tar or member, a tar that is compressed, cut short or none.
    """
    if not (found := parts(path)):
        return None
    tar, name = found
    try:
        members, ends = table(tar, stamp_of(tar))
    except OSError as error:
        raise VideoError(path, f"{tar} cannot be read ({error.strerror})", AGAIN) from error
    except VideoError as error:
        raise VideoError(path, f"{tar} {error.cause}", error.remedy) from error
    if name in members:
        return members[name]
    raise VideoError(path, f"{tar} {ends or f'has no plain member {name}'}", AGAIN)


def address(path: AnyPath, part: Part | None = None) -> str:
    """What FFmpeg opens for a path: a file's own, of a member the part of its tar.

    `part` spares looking it up. VideoError: as `part_of`.
    """
    if part := part or part_of(path):
        found = parts(path)
        assert found
        begin, end = map(int, part)
        return f"subfile,,start,{begin},end,{end},,:file:{found[0]}"
    return os.fspath(path)


def part_in(opened: str) -> Part | None:
    """The part that an `address` names."""
    found = ADDRESS.fullmatch(opened)
    return (int(found[1]), int(found[2])) if found else None


@contextmanager
def named(path: AnyPath, opened: str) -> Iterator[None]:
    """Errors about what was opened are told of the path that stands in the manifest."""
    try:
        yield
    except VideoError as error:
        if error.path != opened or opened == os.fspath(path):
            raise
        raise VideoError(path, error.cause, error.remedy) from error


def stamp_of(file: str) -> Stamp:
    """Size and time of a file; OSError: there is none."""
    info = os.stat(file)
    return info.st_size, info.st_mtime_ns


@kept(lambda found: 250 * len(found[0]), KEPT_BYTES)
def table(tar: str, stamp: Stamp) -> tuple[dict[str, Part], str]:
    """Name -> part of the plain members that are all there; why there may be more, or "".

    VideoError: this is no tar, or a compressed one.
    """
    found: dict[str, Part] = {}
    with open(tar, "rb") as file:
        head = file.read(6)
        if kind := next((kind for magic, kind in PACKED.items() if head.startswith(magic)), ""):
            remedy = "Unpack that, and name the .tar; videos do not get smaller by it."
            raise VideoError(tar, f"is compressed ({kind}), so no part of it can be read", remedy)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for member in opened:
                    end = member.offset_data + member.size
                    if not member.offset_data <= end <= stamp[0]:  # or it would be read for ever
                        return found, f"is cut short: {member.name} should end at byte {end}"
                    if member.isreg() and not member.issparse():
                        found[member.name] = member.offset_data, end
                file.seek(opened.offset)  # tarfile is silent about what stands there
                if file.read(BLOCK) != bytes(BLOCK):
                    return found, f"is cut short or damaged at byte {opened.offset}"
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last: huge sizes
            if found:
                return found, f"is cut short or damaged at byte {file.tell()} ({error})"
            raise VideoError(tar, f"is no tar ({error})", AGAIN) from error
    return found, ""


@contextmanager
def reading(opened: str) -> Iterator[IO[bytes]]:
    """The file, or for an `address` the tar; a tar stays open, since the next clip needs it."""
    if found := ADDRESS.fullmatch(opened):
        yield _kept(found[3], stamp_of(found[3])).file
    else:
        with open(opened, "rb", buffering=0) as file:
            yield file


class _Open:
    """A file that is closed when the cache lets go of it."""

    def __init__(self, file: str) -> None:
        self.file = open(file, "rb", buffering=0)

    def __del__(self) -> None:
        if hasattr(self, "file"):  # else it could not be opened
            self.file.close()


@lru_cache(maxsize=OPEN)
def _kept(file: str, _stamp: Stamp) -> _Open:
    return _Open(file)


def content(path: AnyPath) -> bytes:
    """All bytes of a video, be it a file or a member. OSError, VideoError: it cannot be read."""
    begin, end = part_of(path) or (0, os.path.getsize(path))
    with open((parts(path) or (path,))[0], "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def size_bytes(path: AnyPath) -> int:
    """How many bytes a video has. OSError, VideoError: it cannot be read."""
    begin, end = part_of(path) or (0, os.path.getsize(path))
    return end - begin
