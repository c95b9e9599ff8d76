"""Frames by number or by second -> uint8 [T, H, W, 3]: decord, PyAV or TorchCodec in one call.

decord returns wrong frames after a seek in some kinds of file, and neither it nor TorchCodec tells
a damaged picture from a good one. So they read only `seekable` files, and groups of pictures that
PyAV has once decoded without an error; it reads the rest (`FrameTable.why`). Traded: the first look
at a group costs a second decode. Readers live for one call: none may cross a fork. Chapter 4.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import AGAIN, AnyPath, FrameTable, frame_table, open_video, stamp_of, upright

_FOUND: dict[Any, bool] = {}  # of files as they were: is the group that begins at a row sound?
MODULES = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec.decoders"}


def backends() -> dict[str, str]:
    """Each backend's name -> "" if it loads here, else the reason why it does not."""
    return {name: _why_not(name) for name in MODULES}


def _why_not(name: str) -> str:
    try:
        import_module(MODULES[name])
        return ""
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).strip() or repr(error)).splitlines()[0]


def check_backend(name: str) -> None:
    """ConfigError: this backend is unknown or does not load here."""
    if (name := "pyav" if name == "auto" else name) not in MODULES:
        raise ConfigError(f"there is no backend {name!r}: use one of {', '.join(MODULES)}")
    if reason := _why_not(name):
        raise ConfigError(f"backend {name!r} does not load: {reason}. Use the backend pyav")


def frames_at(
    path: AnyPath, indices: ArrayLike | None = None, *, seconds: ArrayLike | None = None,
    backend: str = "decord", table: FrameTable | None = None,
) -> Tensor:  # fmt: skip
    """Decode chosen frames, upright and in the order asked for: uint8 [T, H, W, 3].

    `indices` count from 0, in any order, also repeated; or the nearest frame to each of `seconds`
    after the first. The `backend` "pyav" checks as it reads. VideoError: there is no such frame,
    or it depends on a damaged one. ConfigError: no such backend, or `indices` are not integers.
    """
    check_backend(backend)
    table = table or frame_table(path)
    rows, places = np.unique(_rows(table, indices, seconds), return_inverse=True)
    if backend != "pyav" and table.seekable:
        if all(_sound(table, start) for start in np.unique(table.start[rows]).tolist()):
            if (clip := (_decord if backend == "decord" else _torchcodec)(table, rows)) is not None:
                return torch.stack([clip[place] for place in places])
    for row, frame in zip(rows, frames := _pyav(table, rows, upright)):
        if frame.shape[:2] != (table.height, table.width):
            raise VideoError(table.path, f"frame {row} has another size", "Write it anew.")
    return torch.from_numpy(np.stack([frames[place] for place in places]))


def _rows(table: FrameTable, indices: ArrayLike | None, seconds: ArrayLike | None) -> np.ndarray:
    if (indices is None) == (seconds is None):
        raise ConfigError("give frames_at either indices or seconds")
    n, wanted = table.n_frames, np.atleast_1d(np.asarray(indices if seconds is None else seconds))
    if wanted.ndim != 1 or not wanted.size or (seconds is None and wanted.dtype.kind not in "iu"):
        raise ConfigError(f"give frames_at a list of frame numbers or seconds, not {wanted!r}")
    inside = (wanted >= 0) & (wanted < (n if seconds is None else n / table.fps))
    if not inside.all():
        missing = f"{'frame' if seconds is None else 'second'} {wanted[~inside][0]}"
        cause = f"there is no {missing}: it has {n} frames, {n / table.fps:.3f} s"
        raise VideoError(table.path, cause, "Ask for what lies between 0 and that.")
    if seconds is None:
        return wanted.astype(np.int64)
    return np.searchsorted((table.pts_s[1:] + table.pts_s[:-1]) / 2, wanted)


def _sound(table: FrameTable, start: int) -> bool:
    """Does PyAV decode every frame of the group that begins at this row without an error?"""
    group = table.path, stamp_of(table.path), start
    if group not in _FOUND:
        if len(_FOUND) == 65536:
            _FOUND.clear()
        try:
            _FOUND[group] = bool(_pyav(table, np.flatnonzero(table.start == start), bool))
        except VideoError:
            _FOUND[group] = False
    return _FOUND[group]


def _pyav(table: FrameTable, rows: np.ndarray, draw: Callable[[Any], Any]) -> list[Any]:
    """`draw` each row's PyAV frame. Pictures that no other needs and nobody wants are left out."""
    counted, counter = not len(table.ticks), count()
    names = np.arange(table.n_frames) if counted else table.ticks
    groups, order = table.start[rows], table.decode_order
    wanted = dict(zip(names[rows].tolist(), rows.tolist()))
    span = slice(table.start[rows[0]], rows[-1])
    spare: set[int] = set() if counted else {*names[span][~table.referenced[span]]} - {*wanted}
    whole: dict[int, bool] = {}  # by name, each picture that was begun
    drawn: dict[int, Any] = {}
    landing = -np.inf

    def take(frames: Iterable[Any]) -> None:
        for frame in frames:
            name = next(counter) if counted else frame.pts
            if name is not None and name >= landing:  # others may need pictures before the jump
                whole[name] = not frame.is_corrupt and (frame.key_frame or name != landing)
                if name in wanted:
                    drawn[wanted[name]] = draw(frame)

    with open_video(table.path) as (container, stream), ExitStack() as done:
        # PyAV keeps a little memory for each generator that is left open.
        demux: Any = lambda: done.enter_context(closing(container.demux(stream)))  # noqa: E731
        context, packets, at, ended = stream.codec_context, demux(), 0, False
        for row in rows.tolist():
            start = int(table.start[row])
            away, last = order[start] - at, order[rows[groups == start]].max()
            if jump := row not in drawn and start > 0 and (away > 0 or (ended and away <= 0)):
                take([] if ended else context.decode(None))
                landing = table.ticks[start]
                container.seek(int(landing), stream=stream)
                packets, at, ended = demux(), order[start], False
            while row not in drawn:
                if at > last and not (counted or ended):
                    take(context.decode(None))  # it has all that the group's frames need
                    context.flush_buffers()  # and can begin another one
                    ended = True
                    continue
                if (ended and at > last) or (packet := next(packets, None)) is None:
                    raise VideoError(table.path, f"frame {row} does not come out of it", AGAIN)
                if jump and packet.pts != landing:  # the seek went elsewhere: read from the start
                    return _pyav(replace(table, start=np.zeros_like(table.start)), rows, draw)
                jump, ended, at = False, not packet.size, at + 1
                if packet.pts not in spare:
                    if not counted and packet.size and packet.pts >= landing:
                        whole[packet.pts] = False
                    take(packet.decode())
        take([] if ended else context.decode(None))
    _check(table, rows, np.isin(names, [name for name in whole if not whole[name]]))
    return [drawn[row] for row in rows.tolist()]


def _check(table: FrameTable, rows: np.ndarray, damaged: np.ndarray) -> None:
    """A damaged picture spoils those that are decoded after it, up to the next clean start."""
    order, key = table.decode_order, np.where(table.is_key, np.arange(table.n_frames), 0)
    clean = table.start if len(table.ticks) else np.maximum.accumulate(key)
    for row in rows.tolist() if damaged.any() else ():
        since = order[clean[row]] if clean[row] else 0
        for i in np.flatnonzero(damaged & (order >= since) & (order <= order[row])):
            raise VideoError(table.path, f"frame {row} cannot be had: frame {i} is damaged", AGAIN)


def _decord(table: FrameTable, rows: np.ndarray) -> Tensor | None:
    """The rows by decord, or None if it refuses the file or sees other frames in it."""
    import decord

    try:
        reader = decord.VideoReader(table.path, ctx=decord.cpu(0), num_threads=1)
        keys = np.flatnonzero(table.is_key).tolist()
        if len(reader) != table.n_frames or reader.get_key_indices() != keys:
            return None
        with decord.bridge.use_torch():
            return reader.get_batch(rows.tolist())
    except (decord.DECORDError, RuntimeError):
        return None


def _torchcodec(table: FrameTable, rows: np.ndarray) -> Tensor | None:
    """The rows by TorchCodec, or None if it refuses the file or sees other frames in it."""
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(table.path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return decoder.get_frames_at(rows.tolist()).data if len(decoder) == table.n_frames else None
    except (RuntimeError, ValueError):
        return None
