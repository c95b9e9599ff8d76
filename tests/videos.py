"""Small videos with a known truth, made while the tests run: good, awkward and broken ones.

Every frame carries its own index as twelve dark or bright blocks, so that a test knows
which frame it holds without trusting any reader. `GOOD` and `BROKEN` say how each is made;
`hold` holds every backend to sequential decoding, for a child process to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlearn.datasets import packets
from vidlearn.datasets.write import usual_priority
from vidlearn.decode import backends, frames_at
from vidlearn.errors import VideoError
from vidlearn.storage import frame_table, iter_frames

HEIGHT, WIDTH, BLOCK = 48, 64, 16


def picture(index: int) -> np.ndarray:
    """One frame [48, 64, 3]: the index as 12 bits, over a slope that moves."""
    bits = (index >> np.arange(12)) & 1
    blocks = np.kron(bits.reshape(3, 4) * 150 + 30, np.ones((BLOCK, BLOCK), int))
    slope = (np.arange(WIDTH)[None, :] * 2 + np.arange(HEIGHT)[:, None] + 3 * index) % 60
    colour = np.array([0, 10, 20]) * (index % 3)
    return (blocks[:, :, None] + slope[:, :, None] // 2 + colour).astype(np.uint8)


def read_index(frame_HWC: np.ndarray) -> int:
    """The index that `picture` wrote; the frame must be upright."""
    grey = np.asarray(frame_HWC)[:HEIGHT, :WIDTH].mean(axis=2)
    blocks = grey.reshape(3, BLOCK, 4, BLOCK)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    return int(((blocks.reshape(-1) > 128) << np.arange(12)).sum())


def write(
    path: Path,
    frames: Sequence[np.ndarray] | int = 48,
    *,
    codec: str = "libx264",
    fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    pts: Iterable[int] | None = None,
    keys: Sequence[int] = (),
    options: dict[str, str] | None = None,
    movflags: str = "",
    colour: tuple[int, int] | None = None,
    title: str = "",
) -> Path:
    """Encode frames (or so many numbered ones); a tick of `pts` is 1/25 s. Not by our encoder."""
    pictures = [picture(i) for i in range(frames)] if isinstance(frames, int) else frames
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as out:
        out.metadata["title"] = title
        # The same bytes in every run; no key frames but those that are asked for.
        same = {"mbtree": "0", "sc_threshold": "0"} if codec == "libx264" else {}
        settings = {"crf": "18", **same, **(options or {})}
        stream: Any = out.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = width, height, fmt
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        context.bit_rate = 0 if codec == "libsvtav1" else 400_000
        if codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
            context.max_b_frames = b_frames
        if colour is not None:
            context.colorspace, context.color_range = colour
        with usual_priority():
            out.start_encoding()
        for tick, image in zip(pts or range(len(pictures)), pictures):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=fmt)
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            if any(image is pictures[key] for key in keys):
                frame.pict_type = 1  # an I picture; with forced-idr a key frame
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def source(path: Path, suffix: str = ".mp4", **settings: Any) -> Path:
    """A file beside `path`, to be copied into it."""
    return write(path.with_name(f"source-of-{path.name}{suffix}"), **settings)


def copy(video: Path, target: Path, *, shift_s: float = 0.0, first: int = 0) -> Path:
    """Copy the packets without decoding, moved in time: what `ffmpeg -ss .. -c copy` does."""
    with av.open(str(video)) as inp, av.open(str(target), "w") as out:
        stream = inp.streams.video[0]
        new = out.add_stream_from_template(stream)
        ticks = round(shift_s / stream.time_base)
        for packet in [p for p in inp.demux(stream) if p.size][first:]:
            packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, new
            out.mux(packet)
    return target


def hide(video: Path, target: Path, every: int = 5) -> Path:
    """Copy VP8 and clear the "show" bit of every fifth picture: decoded, but never shown."""
    with av.open(str(video)) as inp, av.open(str(target), "w") as out:
        stream = inp.streams.video[0]
        new = out.add_stream_from_template(stream)
        for n, packet in enumerate(p for p in inp.demux(stream) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= ~16 if n % every == every - 1 else 255
            copied = av.Packet(bytes(data))
            copied.pts, copied.dts, copied.time_base = packet.pts, packet.dts, packet.time_base
            copied.is_keyframe, copied.stream = packet.is_keyframe, new
            out.mux(copied)
    return target


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write the display matrix (a, b, c, d) into the track header of an mp4."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), matrix
    at = data.index(b"tkhd") + 44
    fixed = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = np.array(fixed, ">i4").tobytes()
    return put(path, bytes(data))


def sound(path: Path) -> Path:
    """A file with a tone and no picture."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000)
        wave = (np.sin(np.arange(16000) / 10) * 0.3).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Throw the end of the file away."""
    data = path.read_bytes()
    return put(path, data[: int(len(data) * share)])


def rot(path: Path, mark: bytes = b"mdat", seed: int = 0) -> Path:
    """Overwrite twelve bytes in the second half of the pictures, as a bad disk would."""
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    at = data.index(mark) + 4
    end = data.find(b"moov") if data.find(b"moov") > at else len(data)
    for _ in range(12):
        data[at + int((end - at) * rng.uniform(0.5, 0.9))] ^= 0xFF
    return put(path, bytes(data))


def x264(**params: object) -> dict[str, str]:
    """x264's own settings, with underscores for hyphens."""
    return {"x264-params": ":".join(f"{k.replace('_', '-')}={v}" for k, v in params.items())}


Maker = Callable[[Path], Path]
OPEN = x264(open_gop=1, keyint=12, min_keyint=12, scenecut=0, b_pyramid="none")
CLOSED_HEVC = {"x265-params": "open-gop=0:scenecut=0:log-level=none"}
OPEN_HEVC = {"x265-params": "log-level=none:open-gop=1"}
UNEVEN = np.cumsum([0] + [1 + (7 * i) % 5 for i in range(47)]).tolist()
ODD = [np.pad(picture(i), ((0, 1), (0, 1), (0, 0))) for i in range(30)]
# Files that decord reads right, files that it does not, and files that are broken.
TRUSTED: dict[str, Maker] = {
    "plain.mp4": write,
    "plain.mov": write,
    "plain.mkv": write,
    "one-frame.mp4": lambda p: write(p, 1),
    "all-key.mp4": lambda p: write(p, gop=1),
    "uneven-times.mp4": lambda p: write(p, pts=UNEVEN),
    "uneven-times.mkv": lambda p: write(p, pts=UNEVEN),
    "starts-late.mp4": lambda p: write(p, pts=range(25, 73)),
    "full-range.mp4": lambda p: write(p, fmt="yuvj420p", colour=(1, 2)),
    "hevc.mp4": lambda p: write(p, 30, codec="libx265", options=CLOSED_HEVC),
    "vp9.webm": lambda p: write(p, 30, codec="libvpx-vp9"),
    "fragmented.mp4": lambda p: write(p, movflags="frag_keyframe+empty_moov"),
    "raw.mkv": lambda p: write(p, codec="rawvideo"),
}
AWKWARD: dict[str, Maker] = {
    "close-keys.mp4": lambda p: write(
        p, movflags="frag_keyframe+empty_moov", keys=(1, 15, 16), options={"forced-idr": "1"}
    ),
    "h264.avi": write,
    "mpeg4-b.avi": lambda p: write(p, codec="mpeg4"),
    "mpeg4-b.mp4": lambda p: write(p, codec="mpeg4"),
    "open.mp4": lambda p: write(p, options=OPEN),
    "open-hevc.mp4": lambda p: write(p, 40, codec="libx265", options=OPEN_HEVC),
    "refresh.mp4": lambda p: write(p, b_frames=0, options=x264(intra_refresh=1)),
    "stream.ts": write,
    "program.mpg": lambda p: write(p, codec="mpeg2video"),
    "no-times.h264": write,
    "cut-at-5.mov": lambda p: copy(source(p), p, shift_s=-5 / 25),
    "cut-at-18.mp4": lambda p: copy(source(p), p, shift_s=-18 / 25),
    "no-first-key.mkv": lambda p: copy(source(p), p, first=5),
    "hidden.webm": lambda p: hide(source(p, ".webm", codec="libvpx"), p),
    "odd-sides.webm": lambda p: write(p, ODD, codec="libvpx-vp9"),
    "ten-bit.mp4": lambda p: write(p, 30, fmt="yuv420p10le"),
    "av1.mp4": lambda p: write(p, 30, codec="libsvtav1", options={"preset": "10"}),
    "moving.gif": lambda p: write(p, 20, codec="gif", fmt="rgb8"),
    "turned-90.mp4": lambda p: turn(write(p), (0, 1, -1, 0)),
    "turned-180.mp4": lambda p: turn(write(p), (-1, 0, 0, -1)),
    "turned-270.mov": lambda p: turn(write(p), (0, -1, 1, 0)),
    "mirrored.mp4": lambda p: turn(write(p), (-1, 0, 0, 1)),
    "transposed.mp4": lambda p: turn(write(p), (0, 1, 1, 0)),
}
BROKEN: dict[str, Maker] = {
    "rotten.mp4": lambda p: rot(write(p)),
    "rotten.avi": lambda p: rot(write(p), b"movi"),
    "cut-short.mp4": lambda p: cut(write(p, movflags="faststart"), 0.6),
    "cut-short.mkv": lambda p: cut(write(p), 0.6),
    "cut-short.avi": lambda p: cut(write(p), 0.6),
    "no-index.mp4": lambda p: cut(write(p), 0.8),
    "only-sound.mp4": sound,
    "empty.mp4": lambda p: put(p, b""),
    "text.mp4": lambda p: put(p, b"This is not a video.\n" * 20),
    "noise.mkv": lambda p: put(p, np.random.default_rng(0).bytes(20_000)),
}
# The indices that a player shows, where they are not simply all that were written.
SHOWN = {
    "cut-at-5.mov": range(5, 48),
    "cut-at-18.mp4": range(18, 48),
    "hidden.webm": [i for i in range(48) if i % 5 != 4],
}


def hold(path: str) -> dict[str, Any]:
    """Hold every backend to sequential decoding of one file, and say in words what is wrong.

    Small files are compared whole, others at the ends, in the middle and at random places.
    """
    try:
        table = frame_table(path)
    except VideoError as error:
        return {"error": str(error), "n": 0, "wrong": []}
    n, rng = table.n_frames, np.random.default_rng(0)
    whole = n * table.width * table.height < 3_000_000
    rows = range(n) if whole else [0, n // 2, n - 1, *rng.integers(0, n, 3)]
    truth, read, error = {}, 0, ""
    try:
        for row, frame in enumerate(iter_frames(path)):
            read = row + 1
            if row in rows:
                truth[row] = frame
    except VideoError as stopped:
        error = str(stopped)
    wrong = [] if error or read == n else [f"the table has {n} frames, the file {read}"]
    shuffled = rng.permutation([*truth, *list(truth)[:2]]).tolist()  # two of them twice
    orders = [shuffled, sorted(truth), sorted(truth)[::-1]][: 3 if whole else 1]
    for backend in (name for name, reason in backends().items() if not reason):
        for order in orders if truth else ():
            try:
                clip = frames_at(path, order, backend=backend).numpy()
            except VideoError as failed:
                wrong += [] if error else [f"{backend}: {failed}"]
                continue
            bad = [i for i, frame in zip(order, clip) if not np.array_equal(frame, truth[i])]
            wrong += [f"{backend}: frames {bad} are wrong"] if bad else []
        for row in (-1, n):
            try:
                frames_at(path, [0, row], backend=backend)
                wrong += [f"{backend}: frame {row} of {n} is no error"]
            except VideoError as failed:
                wrong += [] if error or f"{n} frames" in str(failed) else [f"{failed}"]
    found = packets.scan(path)
    for order in orders if truth else ():
        top, left = int(rng.integers(table.height)), int(rng.integers(table.width))
        height, width = (
            int(rng.integers(1, n + 1)) for n in (table.height - top, table.width - left)
        )
        try:
            box = (top, left, height, width)
            part = packets.part_at(path, np.array(order), box, table=found).numpy()
        except VideoError as failed:
            wrong += [] if error else [f"part: {failed}"]
            continue
        cut = [truth[i][top : top + height, left : left + width] for i in order]
        bad = [i for i, frame, true in zip(order, part, cut) if not np.array_equal(frame, true)]
        wrong += [f"part {box}: frames {bad} are wrong"] if bad else []
    direct = isinstance(found, packets.PacketTable)
    return {"error": error, "n": read, "wrong": wrong, "direct": direct}
