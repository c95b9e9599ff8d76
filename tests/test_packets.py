"""Files in which a clip may not be read by its packets alone: what says so is easily missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import videos

from vidlearn.datasets import packets
from vidlearn.decode import frames_at
from vidlearn.storage import iter_frames

BOX = (0, 0, videos.HEIGHT, videos.WIDTH)
FADES_IN = [np.zeros_like(videos.picture(0)), *map(videos.picture, range(1, 30))]


def colour_outside(path: Path) -> Path:
    """BT.709 in the container's box alone: the pictures say nothing of it."""
    with av.open(str(path), "w") as out:
        nothing = videos.x264(colormatrix="undef", colorprim="undef", transfer="undef")
        stream: Any = out.add_stream("libx264", rate=25, options=nothing)
        stream.width, stream.height, stream.pix_fmt = videos.WIDTH, videos.HEIGHT, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        for tick, image in enumerate(FADES_IN):
            frame = av.VideoFrame.from_ndarray((image // [1, 2, 3]).astype(np.uint8), "rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.colorspace = tick, 1
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: videos.turn(videos.write(path, FADES_IN), (-1, 0, 0, -1)),
        lambda path: videos.turn(videos.write(path, FADES_IN), (-1, 0, 0, 1)),
        lambda path: videos.turn(videos.write(path, FADES_IN), (1, 0, 0, -1)),
        colour_outside,
    ],
    ids=["turned", "mirrored", "upside down", "colour"],
)
def test_a_black_first_frame_hides_nothing(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4")
    assert b"colr" in path.read_bytes() or make is not colour_outside
    truth = np.stack([*iter_frames(path)])
    assert not truth[0].any(), "black, as after any turn and in any colours"
    table = packets.scan(str(path))
    assert np.array_equal(packets.part_at(str(path), np.arange(30), BOX, table=table), truth)


def joined(folder: Path) -> str:
    """Two takes in one file, without encoding anew: the second one brings its own settings."""
    one = videos.write(folder / "one.mp4", 24, b_frames=0)
    other = videos.write(
        folder / "two.mp4", 24, b_frames=0, options=videos.x264(chroma_qp_offset=6)
    )
    file = folder / "joined.mp4"
    with av.open(str(one)) as a, av.open(str(other)) as b, av.open(str(file), "w") as out:
        streams = a.streams.video[0], b.streams.video[0]
        new: Any = out.add_stream_from_template(streams[0])
        for n, packet in enumerate(p for part in (a, b) for p in part.demux(video=0) if p.size):
            data = bytes(packet)
            if packet.is_keyframe and n >= 24:
                data = sets_of(bytes(streams[1].codec_context.extradata or b"")) + data
            copied = av.Packet(data)
            copied.pts = copied.dts = n * 512
            copied.time_base, copied.stream = streams[0].time_base, new
            copied.is_keyframe = packet.is_keyframe
            out.mux(copied)
    return str(file)


def sets_of(head: bytes) -> bytes:
    """The parameter sets of an avcC box, one of each, as units with their length before them."""
    n = 8 + int.from_bytes(head[6:8], "big")
    m = n + 3 + int.from_bytes(head[n + 1 : n + 3], "big")
    return b"".join(len(x).to_bytes(4, "big") + x for x in (head[8:n], head[n + 3 : m]))


def test_a_take_with_its_own_settings_does_not_change_another(tmp_path: Path) -> None:
    path = joined(tmp_path)
    table, truth = packets.scan(path), [*iter_frames(path)]
    assert table.n_frames == 48 and table.is_key[[0, 12, 24, 36]].all()
    for row in (3, 30, 3, 14, 47, 20):  # by one process, one after the other
        part = packets.part_at(path, np.array([row]), BOX, table=table)[0]
        assert np.array_equal(part, truth[row]) and np.array_equal(frames_at(path, [row])[0], part)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_what_the_head_has_too_changes_nothing(codec: str, tmp_path: Path) -> None:
    """Many encoders and recorders repeat the head before each key picture."""
    quiet = videos.CLOSED_HEVC if codec == "libx265" else None
    path = videos.write(tmp_path / "a.mp4", 20, codec=codec, options=quiet)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        head = bytes(stream.codec_context.extradata or b"")
        data = next(bytes(p) for p in container.demux(stream) if p.size)
    name = stream.codec_context.name
    assert not packets._brings_sets(data, name, head)
    unit = head[8 : 8 + int.from_bytes(head[6:8], "big")]
    if codec == "libx265":  # the first of the box's arrays, after its type and how many there are
        unit = head[28 : 28 + int.from_bytes(head[26:28], "big")]
    for some, brings in ((unit, False), (unit[:-1] + bytes([unit[-1] ^ 1]), True)):
        packet = len(some).to_bytes(4, "big") + some + data
        assert packets._brings_sets(packet, name, head) == brings
    assert packets._brings_sets(data, name, b"") and packets._brings_sets(data, name, b"\0\0\0\1")
