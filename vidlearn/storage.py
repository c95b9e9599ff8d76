"""What is inside a video file, and how to read it through (chapters 4 and 6).

In: a path. Out: a `FrameTable` (one row a frame), or frames. Traded: a table reads the packets and
decodes one frame, which believes the file, and all frames where they give a reason for doubt.
"""

import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from vidlearn.errors import VideoError

AnyPath = str | os.PathLike[str]
AGAIN = "Copy or download the file again, or leave it out."
# Codecs in which a key frame is a clean start; pixels that decord turns to RGB as PyAV does.
RESTART = {*"h264 hevc vp8 vp9 av1 mpeg4 mjpeg mpeg2video ffv1 prores rawvideo".split()}
ALIKE = {f"yuv{j}{s}p" for j in ("", "j") for s in (420, 422, 444)}
FLAGS = ("key", "clean", "referenced", "hidden", "discard", "corrupt")
PACKET = np.dtype([("pts", float), ("dts", float), ("bytes", "i8"), *((f, bool) for f in FLAGS)])


@dataclass(frozen=True, eq=False)
class FrameTable:
    """One row a frame that sequential decoding yields, in the order in which they are shown.

    Width and height are as shown, `rotation_deg` is clockwise, `pts_s` counts from the first
    frame. A row's decoding begins at row `start` (0: the beginning of the file). `ticks`: the
    stored time, empty where frames can only be counted. No picture needs one that is not
    `referenced`. Readers that seek by themselves may be trusted if `seekable`; if not, `why`.
    """

    path: str
    codec: str
    width: int
    height: int
    rotation_deg: int
    fps: float
    seekable: bool
    why: str
    pts_s: np.ndarray
    bytes: np.ndarray
    is_key: np.ndarray
    decode_order: np.ndarray
    ticks: np.ndarray
    start: np.ndarray
    referenced: np.ndarray
    types: tuple[str, ...] = ()

    @property
    def n_frames(self) -> int:
        """How many frames there are."""
        return len(self.pts_s)


@contextmanager
def open_video(path: AnyPath) -> Iterator[tuple[Any, Any]]:
    """(container, first video stream) with one decoder thread; what fails is a VideoError."""
    try:
        # A title that is not UTF-8 does not matter.
        with av.open(os.fspath(path), "r", metadata_errors="ignore") as container:
            for stream in container.streams.video:
                # A cover picture is no video; no context means no decoder.
                if stream.codec_context and not stream.disposition & Disposition.attached_pic:
                    stream.codec_context.thread_count = 1
                    yield container, stream
                    return
        raise VideoError(path, "there is no video in it that can be decoded", "Leave it out.")
    except av.FFmpegError as error:
        raise VideoError(path, f"reading stops ({error.strerror})", AGAIN) from error


def orientation(frame: Any) -> tuple[int, int, int, int]:
    """The display matrix (a, b, c, d) of a PyAV frame: x' = ax + cy, y' = bx + dy."""
    if (data := frame.side_data.get("DISPLAYMATRIX")) is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (round(v / 65536) for v in memoryview(bytes(data)).cast("i")[:5])
    return a, b, c, d


def upright(frame: Any) -> np.ndarray:
    """A PyAV frame as RGB uint8 [H, W, 3], turned and mirrored as a player shows it."""
    # A change of pixel format would start a thread for each core.
    (a, b, c, d), image_HWC = orientation(frame), frame.to_ndarray(format="rgb24", threads=1)
    if b:
        image_HWC, a, d = image_HWC.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _packets(stream: Any) -> np.ndarray:
    """What the file says of each picture, in decode order, without decoding."""
    codec, rows = stream.codec_context.name, []
    head = bytes(stream.codec_context.extradata or b"")
    for packet in stream.container.demux(stream):
        if packet.size:
            data, key = memoryview(packet), packet.is_keyframe
            idr, referenced = _h264_picture(data, head) if codec == "h264" else (True, True)
            hidden = codec == "vp8" and not data[0] & 16
            flags = key, key and idr, referenced, hidden, packet.is_discard, packet.is_corrupt
            rows.append((packet.pts, packet.dts, packet.size, *flags))  # no time becomes NaN
    return np.array(rows, PACKET)


def _h264_picture(data: memoryview, head: bytes) -> tuple[bool, bool]:
    """Is it IDR (after any other key frame, some may need older ones)? Do others need it?"""
    at, prefix = 0, (head[4] & 3) + 1 if head[:1] == b"\x01" else 0
    while prefix and at + prefix < len(data):
        unit = data[at + prefix]
        if 1 <= unit & 31 <= 5:  # a slice; bits 5 and 6 are 0 if nothing refers to it
            return unit & 31 == 5, bool(unit & 96)
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
    return False, True


def _reasons(stream: Any, codec: str, packets: np.ndarray, first: Any) -> tuple[bool, str]:
    """Can frames only be counted? Why decord must not seek, for that or less ("": no reason)."""
    pts, key, n = packets["pts"], packets["key"], len(packets)
    kinds, pixels = {*stream.container.format.name.split(",")}, first.format.name
    doubts = {
        "times in this kind of file are not exact": not kinds & {"mp4", "matroska"},
        f"key frames of {codec} may be no clean starts": codec not in RESTART,
        "times are missing or given twice": np.isnan(pts).any() or len({*pts}) < n,
        f"its header says {stream.frames} pictures, {n} are there": stream.frames > n,
        "a picture is cut short": packets["corrupt"].any(),
        "it begins inside a group": not key[0] or pts.min() < pts[0],
        "some pictures are never shown": packets["hidden"].any(),
        "times run backwards": codec in {"vp8", "vp9", "av1"} and (np.diff(pts) < 0).any(),
    }
    keys = packets[key]
    latest_key = np.maximum.accumulate(np.where(key, pts, -np.inf))
    cautions = {
        "an edit list hides its beginning": packets["discard"].any() or pts.min() < 0,
        "open groups: pictures after a key frame are shown before it": (pts < latest_key).any(),
        "some key frames are no clean starts (not IDR)": (key > packets["clean"]).any(),
        "key frames lie so close that a seek may miss": (keys["dts"][1:] <= keys["pts"][:-1]).any(),
        "decord does not read AV1": codec == "av1",
        f"readers colour {pixels} in different ways": pixels not in ALIKE,
        "readers colour odd sides in different ways": first.width % 2 or first.height % 2,
        "readers disagree on how to turn it": orientation(first) != (1, 0, 0, 1),
        "decord may read another of its videos": len(stream.container.streams.video) > 1,
    }
    why = next((reason for reason, true in (doubts | cautions).items() if true), "")
    return why in doubts, why


def _decode(path: str, everything: bool) -> tuple[list[tuple[int, str]], Any]:
    """(packet number, type) of the frames in the order shown, or of some; the first frame."""
    shown, first, numbers = [], None, count()
    try:
        with open_video(path) as (container, stream), closing(container.demux(stream)) as packets:
            stream.codec_context.flags |= 128  # COPY_OPAQUE: packets hand their number on
            for packet in packets:
                if packet.size:
                    packet.opaque = [next(numbers)]  # a list: PyAV mixes up equal ints
                for frame in packet.decode():
                    first = first or frame
                    shown.append((frame.opaque[0], "?IPBSIPB"[int(frame.pict_type)]))
                if shown and not everything:
                    break
            if not shown:
                raise VideoError(path, "no frame comes out of it", AGAIN)
    except VideoError:
        if not shown:  # else: what came before the damage is what sequential decoding yields
            raise
    return shown, first


def frame_table(path: AnyPath, *, types: bool = False) -> FrameTable:
    """What is in a video file, kept as long as the file's size and time stay the same.

    With `types` ("I", "P" or "B"), or times in doubt, it decodes all. VideoError: no frame comes.
    """
    return _table(os.fspath(path), stamp_of(path), types)


def stamp_of(path: AnyPath) -> tuple[int, int] | None:
    """Bytes of a file and nanoseconds since 1970 of its last change; None if there is none."""
    file = os.fspath(path).rpartition(",,:file:")[2]  # a part of a tar is as new as the tar
    info = os.stat(file) if os.path.exists(file) else None
    return info and (info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=16)  # one may be of an hour; `datasets.index` keeps more
def _table(path: str, _stamp: tuple[int, int] | None, types: bool) -> FrameTable:
    shown, first = _decode(path, everything=types)
    with open_video(path) as (_, stream):
        codec, packets = stream.codec_context.name.replace("libdav1d", "av1"), _packets(stream)
        doubt, why = _reasons(stream, codec, packets, first)
        tick_s, rate = float(stream.time_base), float(stream.average_rate or 25)
    order = np.argsort(packets["pts"], kind="stable")
    order = order[~packets["discard"][order]]
    if types or doubt:
        shown = shown if types else _decode(path, everything=True)[0]
        order = np.array([number for number, _ in shown])
    rows, n = packets[order], len(order)
    ticks = rows["pts"]
    if np.isnan(ticks).any() or not (np.diff(ticks) > 0).all():
        ticks, tick_s = np.arange(n), 1 / rate
    pts_s = (ticks - ticks[0]) * tick_s
    fps = float((n - 1) / pts_s[-1]) if n > 1 else rate
    (a, b, _, _), (height, width, _) = orientation(first), upright(first).shape
    turn_deg = round(math.degrees(math.atan2(b, a))) % 360
    start = np.maximum.accumulate(np.where(rows["clean"] & (not doubt), np.arange(n), 0))
    ticks = ticks[: 0 if doubt else n].astype(np.int64)
    size, key, referenced = (rows[name].copy() for name in ("bytes", "key", "referenced"))
    columns = pts_s, size, key, order, ticks, start, referenced
    for column in columns:
        column.setflags(write=False)  # all who ask for this file share the table
    about = path, codec, width, height, turn_deg, fps, not why, why
    return FrameTable(*about, *columns, tuple(letter for _, letter in shown) if types else ())


def iter_frames(path: AnyPath) -> Iterator[np.ndarray]:
    """Every frame, uint8 [H, W, 3], upright and in order. VideoError: one is damaged or missing."""
    with open_video(path) as (container, stream):
        for row, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise VideoError(path, f"frame {row} is damaged", AGAIN)
            yield upright(frame)
