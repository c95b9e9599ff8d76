"""Write videos: frames into a file, or a file into one that seeks quickly and takes less room.

In: frames, or a path. Out: a file that is whole or not there. Encoders get one thread, so that the
bytes do not depend on the machine. Chapters 4 and 6.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlearn.datasets.manifest import file_of
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import AnyPath, frame_table, iter_frames

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT}
# Groups of exactly `gop`, one thread, no word on the terminal; and for x264 no macroblock tree,
# which reads memory that it never wrote.
CODECS = {
    "libx264": {"sc_threshold": "0", "mbtree": "0"},
    "libx265": {"x265-params": "open-gop=0:scenecut=0:pools=none:frame-threads=1:log-level=none"},
    "libsvtav1": {"preset": "8", "svtav1-params": "lp=1:scd=0"},
    "rawvideo": {},
}


def encode(
    path: AnyPath, frames_THWC: Iterable[np.ndarray], fps: float, *, gop: int = 12,
    crf: float = 23, b_frames: int = 2, short_side: int | None = None,
    options: dict[str, str] | None = None, times_s: Iterable[float] | None = None,
    unit: Fraction = Fraction(1, 90000), codec: str = "libx264",
) -> Path:  # fmt: skip
    """Write RGB uint8 frames as video, yuv420p, a key frame every `gop`; the whole file or none.

    `short_side` scales (sides become even); `options` are the encoder's own and win; `times_s`
    replaces the even times of `fps`; times are stored in whole `unit`s of a second; `codec` is an
    encoder of CODECS, each with a scale of its own for `crf`. ConfigError: no frames,
    others than [T, H, W, 3], or an odd side without `short_side`. VideoError: the file cannot be
    written.
    """
    path, frames = Path(path), iter(frames_THWC)
    first = next(frames, None)
    if first is None or first.dtype != np.uint8 or first.shape[2:] != (3,):
        raise ConfigError(f"{path}: give uint8 frames [T, H, W, 3], at least one")
    height, width = first.shape[:2]
    if short_side:
        half = short_side / min(height, width) / 2
        height, width = 2 * round(height * half), 2 * round(width * half)
    if height % 2 or width % 2:
        raise ConfigError(f"{path}: {width}x{height} has an odd side: crop it or set short_side")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    level = {"crf": str(crf)} if codec != "rawvideo" else {}
    settings = {**CODECS[codec], **level, **(options or {})}
    os.environ.setdefault("SVT_LOG", "1")  # libsvtav1 asks for it: nothing but errors
    times_s = (i / fps for i in count()) if times_s is None else times_s
    try:
        with av.open(str(part), "w") as out:
            rate = Fraction(fps).limit_denominator(1001)
            stream: Any = out.add_stream(codec, rate=rate, options=settings)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.gop_size, context.max_b_frames, context.bit_rate = gop, b_frames, 0
            context.thread_count, context.time_base = 1, unit
            with usual_priority():
                out.start_encoding()
            for time_s, image_HWC in zip(times_s, chain([first], frames)):
                frame = scaled(image_HWC, width, height)
                frame.pts, frame.time_base = round(time_s / unit), unit
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        os.replace(part, path)
    except (av.FFmpegError, ValueError) as error:  # ValueError: the suffix names no container
        raise VideoError(path, f"it cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def usual_priority() -> Iterator[None]:
    """Threads of this process that become real-time ones in it are usual ones after it.

    As root, SVT-AV1 gives priority 99 to its threads and to the one that opens it, and leaves it
    so: this process and all that it starts would keep other processes from the processor.
    """
    if sys.platform != "linux":
        yield
        return

    def real_time() -> set[int]:
        found = set()
        for thread in map(int, os.listdir("/proc/self/task")):
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                    found.add(thread)
        return found

    before = real_time()
    try:
        yield
    finally:
        for thread in real_time() - before:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def scaled(image_HWC: np.ndarray, width: int, height: int) -> av.VideoFrame:
    """An RGB uint8 frame as the encoder is given it: yuv420p of this size."""
    frame = av.VideoFrame.from_ndarray(image_HWC, "rgb24")
    return frame.reformat(width, height, "yuv420p", interpolation="AREA", threads=1)


def disk_fault(error: VideoError) -> str:
    """What the system says where `encode` failed for the disk's sake, and not for the video's."""
    number = getattr(error.__cause__, "errno", None)
    return os.strerror(number) if number in DISK else ""


def outdated(source: str, copy: Path) -> bool:
    """Whether a copy is to be made: there is none, or its source has changed since."""
    try:
        made_ns = os.stat(copy).st_mtime_ns
    except FileNotFoundError:
        return True
    try:
        return os.stat(file_of(source)).st_mtime_ns > made_ns
    except OSError:  # of a source that is gone the copy is all there is
        return False


def transcode(source: AnyPath, target: AnyPath, **settings: Any) -> Path:
    """Write a video anew with `encode`'s settings: upright, times kept, sides even, no sound."""
    table = frame_table(source)
    settings.setdefault("short_side", 2 * (min(table.height, table.width) // 2))
    return encode(target, iter_frames(source), table.fps, times_s=table.pts_s, **settings)
