"""A clip by one read of its file: each group's packets go to a decoder, with no container between.

Input: a video whose pictures' places are known (`scan`, or `index` from its file). Output: parts of
frames, cropped before they become RGB. Traded: only H.264 and HEVC in mp4 are read so, and only
where all that the decoder must know stands in the head, and turns and colours in the pictures.
What comes out other than the table says is read again by `decode`, whose word is final.
Chapters 2 and 4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache, partial
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from vidlearn.datasets import sequences, tars
from vidlearn.datasets.canvas import Box, Canvas, Finish
from vidlearn.datasets.sequences import frame_table
from vidlearn.storage import FrameTable, open_video, orientation, upright

# Codecs whose packets, one after the other, are all that is needed: which units of them are
# parameter sets, and the byte of the head that tells how long the length before a unit is.
SETS = {"h264": ({7, 8, 13, 15}, 4), "hevc": ({32, 33, 34}, 21)}


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
    if table.codec not in SETS or not len(table.ticks):
        return table
    places = []
    begin, _ = tars.part_in(table.path) or (0, 0)
    with open_video(table.path) as (container, stream), tars.reading(table.path) as file:
        head = bytes(stream.codec_context.extradata or b"")
        for packet in container.demux(stream) if "mp4" in container.format.name else ():
            if packet.size:
                place, data = -1 if packet.pos is None else begin + packet.pos, bytes(packet)
                if place < begin or os.pread(file.fileno(), packet.size, place) != data:
                    return table  # what the decoder is given does not stand there as it is
                if _brings_sets(data, table.codec, head):
                    return table  # the decoder would keep them for other places and files
                places.append(place)
    if len(places) != table.n_frames:
        return table
    own = {f.name: getattr(table, f.name) for f in fields(FrameTable)}
    found = PacketTable(**own, place=np.array(places)[table.decode_order], head=head)
    return found if _looks_alike(found) else table


def _brings_sets(data: bytes, codec: str, head: bytes) -> bool:
    """Has a packet parameter sets that are not in the head, or cannot that be told?"""
    (sets, byte), at = SETS[codec], 0
    if head[:1] != b"\x01" or len(head) <= byte:
        return True
    prefix = (head[byte] & 3) + 1
    while at + prefix < len(data):
        end = at + prefix + int.from_bytes(data[at : at + prefix], "big")
        kind = data[at + prefix] & 31 if codec == "h264" else data[at + prefix] >> 1 & 63
        if kind in sets and data[at + prefix : end] not in head:
            return True
        at = end
    return False


class _Look:
    """A canvas that keeps the frame."""

    clip, frame = torch.zeros(1), None

    def draw(self, _: int, frame: Any) -> None:
        self.frame = frame


def _looks_alike(table: PacketTable) -> bool:
    """Whether turns and colours stand in the pictures, and not in the container alone."""
    look: Any = _Look()
    if _direct(table, np.zeros(1, np.int64), lambda _: look, lambda _: None) is None:
        return False
    with open_video(table.path) as (container, stream):
        first = next(container.decode(stream))
    kinds = [(f.format.name, f.color_range, f.colorspace) for f in (look.frame, first)]
    if orientation(first) != (1, 0, 0, 1) or kinds[0] != kinds[1]:
        return False
    whole = sequences.frames_at(table.path, [0], backend="pyav", table=table)
    return np.array_equal(whole[0], upright(look.frame))
