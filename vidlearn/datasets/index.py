"""Where each picture lies in its file: a clip becomes one read, and no file is scanned twice.

Input: the videos of a data set. Output: a file beside the manifest, SQLite, with a row for each
video as it was (size, time); tables from it; parts of frames, cropped before they become RGB.
Traded: only H.264 and HEVC in mp4 are read so. What comes out other than the index says is read
again by `decode`, whose word is final. Chapters 2 and 4.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import torch
from torch import Tensor

from vidlearn.datasets import sequences, tars
from vidlearn.datasets.canvas import Box, Canvas, Finish
from vidlearn.datasets.check import stamp, tried
from vidlearn.datasets.kept import TABLES_BYTES, kept, table_bytes
from vidlearn.datasets.manifest import MARK, Manifest, Row, file_of
from vidlearn.datasets.sequences import frame_table
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import FrameTable, open_video

VERSION = 1  # of what stands in a row
DIRECT = ("h264", "hevc")  # codecs whose packets, one after the other, are all that is needed
COLUMNS = ("pts_s", "ticks", "place", "bytes", "decode_order", "start", "is_key", "referenced")
ROW = np.dtype([*zip(COLUMNS, ("f8", "i8", "i8", "i8", "i4", "i4", "?", "?"))])
ABOUT = ("codec", "width", "height", "rotation_deg", "fps", "seekable", "why")
TABLE = "path TEXT PRIMARY KEY, bytes INT, time_ns INT, content BLOB"
Stamp = tuple[int, int]  # bytes, nanoseconds since 1970 of the last change


@dataclass(frozen=True, eq=False)
class PacketTable(FrameTable):
    """A FrameTable whose pictures can be had without opening the file as a video.

    `place` is where a row's bytes begin in the file, or in the tar that the video lies in; `head`
    is what the decoder must know before.
    """

    place: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    head: bytes = b""

    @cached_property
    def row_of(self) -> np.ndarray:
        """Place in the order of decoding -> row."""
        return np.argsort(self.decode_order)


def part_at(
    path: str, rows: np.ndarray, box: Box, *, backend: str = "auto",
    table: FrameTable | None = None, finish: Finish = lambda part: part, flip: bool = False,
    mark: Callable[[str], Any] = lambda _: None,
) -> Tensor:  # fmt: skip
    """A part of chosen frames, upright and in the order asked for: uint8 [T, height, width, 3].

    `finish` turns some parts at a time into others, [n, ..., 3], and these are given back, with
    `flip` left to right. `backend` "auto" takes one read of the file where the table allows it,
    else PyAV. Errors are those of `decode.frames_at`. `mark` hears of read, decode and colour.
    """
    table = table or scan(path)
    mark("decode")
    if backend == "auto" and isinstance(table, PacketTable):
        drawn = partial(Canvas, table, box, finish=finish, flip=flip)
        if (clip := _direct(table, rows, drawn, mark)) is not None:
            return clip
    how = "pyav" if backend == "auto" else backend
    frames = sequences.frames_at(path, rows, backend=how, table=table)
    top, left, height, width = box
    done = finish(frames[:, top : top + height, left : left + width])
    return done.flip(2) if flip else done


def _direct(
    table: PacketTable,
    rows: np.ndarray,
    drawn: Callable[[int], Canvas],
    mark: Callable[[str], Any],
) -> Tensor | None:
    """The same, or None where something else comes out than the index says."""
    wanted, places = np.unique(rows, return_inverse=True)
    if wanted[0] < 0 or wanted[-1] >= table.n_frames:
        return None
    row_of, groups, order = table.row_of, table.start[wanted], table.decode_order
    number = dict(zip(table.ticks[wanted].tolist(), range(len(wanted))))
    canvas, sent, came, width, height = drawn(len(wanted)), 0, 0, table.width, table.height
    context = _decoder(table.codec, table.head, os.getpid())
    try:
        with tars.reading(table.path) as file:
            for start in np.unique(groups):
                begin, goals = order[start] if start else 0, order[wanted[groups == start]]
                send = row_of[begin : goals.max() + 1]
                needed = table.referenced[send]
                needed[goals - begin] = True  # others that nothing refers to are left out
                send = send[needed]
                sent += len(send)
                mark("read")
                packets = _packets(file.fileno(), table, send)
                mark("decode")
                for packet in packets:
                    for frame in context.decode(packet):
                        came += 1
                        if frame.is_corrupt or frame.width != width or frame.height != height:
                            return None
                        if (i := number.pop(frame.pts, None)) is not None:
                            mark("colour")
                            canvas.draw(i, frame)
                            mark("decode")
                context.flush_buffers()  # and can begin another group
    except (av.FFmpegError, OSError):
        return None  # `decode` finds out what it is
    finally:
        context.flush_buffers()
    if number or came != sent or canvas.clip is None:
        return None
    return canvas.clip if np.array_equal(wanted, rows) else canvas.clip[torch.from_numpy(places)]


def _packets(file: int, table: PacketTable, rows: np.ndarray) -> list[Any]:
    """What the decoder is given for these rows, which are read at once; None at the end."""
    places, sizes = table.place[rows], table.bytes[rows]
    begin = int(places.min())
    end = int((places + sizes).max())
    data: Any = memoryview(os.pread(file, end - begin, begin))
    if len(data) < end - begin:  # the file has become shorter, and too few frames come
        return []
    starts, ends = places - begin, places - begin + sizes
    packets = [av.Packet(data[a:z]) for a, z in zip(starts.tolist(), ends.tolist())]
    for packet, tick in zip(packets, table.ticks[rows].tolist()):
        packet.pts = tick
    return [*packets, None]


@lru_cache(maxsize=2)  # each holds the pictures that others refer to
def _decoder(codec: str, head: bytes, _process: int) -> Any:
    context: Any = av.CodecContext.create(codec, "r")
    context.extradata, context.thread_count = head, 1
    return context


def scan(path: str) -> FrameTable:
    """What is in a video, read anew: a PacketTable where the places of its pictures are sure."""
    table = frame_table(path)
    if table.codec not in DIRECT or not len(table.ticks):
        return table
    places = []
    begin, _ = tars.part_in(table.path) or (0, 0)
    with open_video(table.path) as (container, stream), tars.reading(table.path) as file:
        head = bytes(stream.codec_context.extradata or b"")
        for packet in container.demux(stream) if "mp4" in container.format.name else ():
            if packet.size:
                place = -1 if packet.pos is None else begin + packet.pos
                if place < begin or os.pread(file.fileno(), packet.size, place) != bytes(packet):
                    return table  # what the decoder is given does not stand there as it is
                places.append(place)
    if len(places) != table.n_frames:
        return table
    own = {f.name: getattr(table, f.name) for f in fields(FrameTable)}
    found = PacketTable(**own, place=np.array(places)[table.decode_order], head=head)
    # Turns and colours may stand in the container alone: then the first frame comes out different.
    whole_frame = (0, 0, table.height, table.width)
    drawn = partial(Canvas, found, whole_frame, finish=lambda part: part)
    alone = _direct(found, np.zeros(1, np.int64), drawn, lambda _: None)
    whole = sequences.frames_at(path, [0], backend="pyav", table=table)
    return found if alone is not None and torch.equal(alone, whole) else table


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
    return _connected(index, tuple(found), os.getpid()) if found else None


@lru_cache(maxsize=8)  # a connection may not cross a fork
def _connected(index: Path, _version: tuple[int, ...], _process: int) -> sqlite3.Connection:
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
    if _opened(target) and not part.exists():
        shutil.copyfile(target, part)
    with closing(sqlite3.connect(part)) as db:
        try:
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute(f"CREATE TABLE IF NOT EXISTS videos ({TABLE})")
        except sqlite3.Error as error:
            raise ConfigError(f"{part}: is no index ({error}). Delete it") from error
        videos, new = _unknown(db, data, target)
        todo, n_new = compress(data.paths, new), int(new.sum())
        try:
            for done, (path, found) in enumerate(tried(todo, jobs=jobs, work=_scanned), 1):
                if isinstance(found, str):
                    bad[path] = found
                else:
                    row = (_key(path, target), *found)
                    db.execute("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?)", row)
                if done % 256 == 0:
                    db.commit()
                if progress:
                    progress(videos - n_new + done, videos)
        finally:
            db.commit()
    os.replace(part, target)
    return videos - len(bad), n_new - len(bad), bad


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
