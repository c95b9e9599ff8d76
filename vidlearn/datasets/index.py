"""Where each picture lies in its file, kept beside the manifest: no file is scanned twice.

Input: the videos of a data set. Output: a file, SQLite, with a row for each video as it was (size,
time); tables from it. Traded: a video whose size or time has changed is scanned each time that its
table is wanted and not kept, until the index is made anew. Chapters 2 and 4.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from itertools import compress
from pathlib import Path
from threading import get_ident
from typing import Any
from urllib.parse import quote

import numpy as np

from vidlearn.datasets import tars
from vidlearn.datasets.check import stamp, tried
from vidlearn.datasets.kept import TABLES_BYTES, kept, table_bytes
from vidlearn.datasets.manifest import MARK, Manifest, Row, file_of
from vidlearn.datasets.packets import PacketTable, scan
from vidlearn.datasets.sequences import frame_table
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import FrameTable

VERSION = 2  # of what stands in a row
COLUMNS = ("pts_s", "ticks", "place", "bytes", "decode_order", "start", "is_key", "referenced")
ROW = np.dtype([*zip(COLUMNS, ("f8", "i8", "i8", "i8", "i4", "i4", "?", "?"))])
ABOUT = ("codec", "width", "height", "rotation_deg", "fps", "seekable", "why")
TABLE = "path TEXT PRIMARY KEY, bytes INT, time_ns INT, content BLOB"
Stamp = tuple[int, int]  # bytes, nanoseconds since 1970 of the last change


def index_file(source: str | os.PathLike[str]) -> Path:
    """The index of a manifest or of a folder of videos."""
    source = Path(source)
    return source / "videos.index" if source.is_dir() else source.with_name(f"{source.name}.index")


def table_of(path: str, index: Path | None = None, backend: str = "auto") -> FrameTable:
    """What is in a video: from the index if it knows the file as it is now, else read anew."""
    if MARK.fullmatch(path):
        return frame_table(path)
    try:
        info = os.stat(file_of(path))
    except OSError:
        return frame_table(path)  # whose error names the file
    return _table(path, (info.st_size, info.st_mtime_ns), index, backend == "auto")


def span_of(table: FrameTable, row: Row, grid: int = 1) -> tuple[int, int]:
    """First frame of a manifest's row, on the grid, and the one after its last.

    VideoError: there is none.
    """
    first, stop = np.searchsorted(table.pts_s, (row.start_s, row.end_s or np.inf))
    first += -first % grid  # the grid is the file's, not the segment's
    if stop <= first:
        raise VideoError(row.path, f"no frames from {row.start_s} s to {row.end_s} s")
    return int(first), int(stop)


@kept(table_bytes, TABLES_BYTES)
def _table(path: str, version: Stamp, index: Path | None, direct: bool) -> FrameTable:
    if index and (opened := _opened(index)):
        words = "SELECT content FROM videos WHERE path = ? AND bytes = ? AND time_ns = ?"
        try:
            row = opened.execute(words, (_key(path, index), *version)).fetchone()
            if row:
                return _unpack(path, row[0])
        except (sqlite3.Error, zlib.error, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{index}: is damaged ({error}). Delete it") from error
    return scan(path) if direct else frame_table(path)


def _opened(index: Path) -> sqlite3.Connection | None:
    """The index to read, if there is one."""
    found = stamp(str(index))
    return _connected(index, tuple(found), (os.getpid(), get_ident())) if found else None


@lru_cache(maxsize=8)  # a connection may cross neither a fork nor to another thread
def _connected(index: Path, _version: tuple[int, ...], _who: Any) -> sqlite3.Connection:
    """Without locks, which shared disks lack: the file is replaced, not changed."""
    address = f"file:{quote(str(index.absolute()))}?mode=ro&immutable=1"
    opened = sqlite3.connect(address, uri=True)
    try:
        version = opened.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise ConfigError(f"{index}: is no index ({error}). Delete it") from error
    if version != VERSION:
        raise ConfigError(f"{index}: has version {version}, not {VERSION}. Delete it")
    return opened


def _key(path: str, index: Path) -> str:
    """A file below the index's folder by its relative path, so that all may move together."""
    return os.path.relpath(path, index.parent)


def _pack(table: FrameTable) -> bytes:
    rows = np.zeros(table.n_frames, ROW)
    head = table.head.hex() if isinstance(table, PacketTable) else None
    for name in COLUMNS:
        column = getattr(table, name, ())
        if len(column):
            rows[name] = column
    about: dict[str, Any] = {name: getattr(table, name) for name in ABOUT}
    about |= {"counted": not len(table.ticks), "head": head, "part": tars.part_in(table.path)}
    words = json.dumps(about).encode()
    return zlib.compress(len(words).to_bytes(4, "big") + words + rows.tobytes(), 1)


def _unpack(path: str, content: bytes) -> FrameTable:
    data = zlib.decompress(content)
    end = 4 + int.from_bytes(data[:4], "big")
    about, rows = json.loads(data[4:end]), np.frombuffer(data[end:], ROW)
    every, start = np.arange(len(rows)), rows["start"]
    order = np.sort(rows["decode_order"])
    if not len(rows) or (order != every).any() or (start < 0).any() or (start > every).any():
        raise ValueError(f"of {path}")
    wide = {"decode_order": np.int64, "start": np.int64}
    columns = {name: rows[name].astype(wide.get(name, rows[name].dtype)) for name in COLUMNS}
    columns["ticks"] = columns["ticks"][: 0 if about.pop("counted") else None]
    place, head = columns.pop("place"), about.pop("head")
    for column in columns.values():
        column.setflags(write=False)
    own = {"path": tars.address(path, about.pop("part", None)), **about, **columns}
    return FrameTable(**own) if head is None else PacketTable(
        **own, place=place, head=bytes.fromhex(head)
    )  # fmt: skip


def _scanned(path: str, _touch: Callable[[], None]) -> tuple[int, int, bytes] | str:
    """What the index shall hold, or why the video cannot be read."""
    try:
        info = os.stat(file_of(path))
        return info.st_size, info.st_mtime_ns, _pack(scan(path))
    except VideoError as error:
        return error.cause
    except OSError as error:
        return error.strerror or repr(error)


def build(
    data: Manifest, *, jobs: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int, dict[str, str]]:
    """Write or bring up to date the index of a data set: videos, those new of them, path -> cause.

    jobs: processes, None for one a core; a video that ends its own is bad. progress(done, all).
    """
    target, bad = index_file(data.source), {}
    part = target.with_name(f".{target.name}.part")  # a call that was cut goes on with it
    with _alone(target), closing(_begun(part, target)) as db:
        videos, new = _unknown(db, data, target)
        todo, n_new = compress(data.paths, new), int(new.sum())
        found = enumerate(tried(todo, jobs=jobs, work=_scanned), 1)
        try:
            try:
                for done, (path, told) in found:
                    if isinstance(told, str):
                        bad[path] = told
                    else:
                        row = (_key(path, target), *told)
                        db.execute("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?)", row)
                    if done % 256 == 0:
                        db.commit()
                    if progress:
                        progress(videos - n_new + done, videos)
            finally:
                db.commit()  # with what there is the next call goes on
        except sqlite3.Error as error:
            raise _fault(part, error) from error
        os.replace(part, target)
    return videos - len(bad), n_new - len(bad), bad


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """ConfigError: another call makes this index, or its folder cannot be written."""
    try:
        lock = open(target.with_name(f".{target.name}.lock"), "w")
    except OSError as error:
        told = f"{target}: cannot be written ({error.strerror})"
        raise ConfigError(f"{told}. Write a manifest where you may, and index that") from error
    with lock:  # the lock goes when the process does
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{target}: another call makes it. Wait for its end") from error
        except OSError as error:
            told = f"{target}: cannot be locked ({error.strerror})"
            raise ConfigError(f"{told}. Put the manifest on another disk") from error
        yield


def _begun(part: Path, target: Path) -> sqlite3.Connection:
    """What there is of an index, to be written on."""
    if _opened(target) and not part.exists():
        copy = part.with_suffix(".copy")
        shutil.copyfile(target, copy)
        os.replace(copy, part)
    db = sqlite3.connect(part)
    try:
        db.execute(f"CREATE TABLE IF NOT EXISTS videos ({TABLE})")
        if (version := db.execute("PRAGMA user_version").fetchone()[0]) not in (0, VERSION):
            raise ConfigError(f"{part}: has version {version}, not {VERSION}. Delete it")
        db.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error as error:
        db.close()
        raise _fault(part, error) from error
    return db


def _fault(part: Path, error: sqlite3.Error) -> ConfigError:
    """What is wrong with an index that is to be written."""
    if "full" in str(error) or "disk I/O" in str(error):
        return ConfigError(f"{part}: cannot be written ({error}). Make room; the same call goes on")
    return ConfigError(f"{part}: is no index ({error}). Delete it")


def _unknown(db: sqlite3.Connection, data: Manifest, target: Path) -> tuple[int, np.ndarray]:
    """How many videos there are, and bool [paths]: is it one that the index does not know?"""
    videos, new = 0, np.zeros(len(data.paths), bool)
    asked = "SELECT bytes, time_ns FROM videos WHERE path = ?"
    for i, path in enumerate(data.paths):
        if not MARK.fullmatch(path):
            videos += 1
            known = db.execute(asked, (_key(path, target),)).fetchone()
            new[i] = known is None or [*known] != stamp(path)
    return videos, new
