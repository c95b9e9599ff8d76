"""Pictures in place of a video: numbered images in a folder, or one camera of Waymo's parquet.

Input: a row's path, which then says what no file does:

    FOLDER#fps=60            the pictures FOLDER/...000001.jpg and so on, 60 numbers a second
    FOLDER/NAME*#fps=30      those of them whose name is NAME and a number
    SEGMENT.parquet#camera=1 pictures of camera 1 (front), at the times that stand in the file

Output: tables and frames as `storage` and `decode` give them, which read every other path, of
what lies in a tar by its address (`tars`).
Traded: a picture's time is its number / fps, so that a gap stays a gap; its bytes are not looked
up. A parquet file gives a picture only with its row group: write videos if you read it often.
Chapter 5.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vidlearn import decode, storage
from vidlearn.datasets import tars
from vidlearn.datasets.kept import TABLES_BYTES, kept, table_bytes
from vidlearn.datasets.manifest import MARK, file_of
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import AGAIN, AnyPath, FrameTable, upright

PICTURE = re.compile(r"(.*?)(\d+)\.(?:jpe?g|png)", re.IGNORECASE | re.DOTALL)
TIME, CAMERA = "key.frame_timestamp_micros", "key.camera_name"
IMAGE = "[CameraImageComponent].image"
# Numbers of the cameras; an older sample of the data has their names in place of them.
CAMERAS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")


@dataclass(frozen=True, eq=False)
class PictureTable(FrameTable):
    """A FrameTable of pictures; `places` says where each is: a file's name, or group and row.

    `pts_s` counts from number 0, so the first picture need not be at 0.
    """

    places: tuple[Any, ...] = ()


def frame_table(path: AnyPath) -> FrameTable:
    """What is in a video, or how many pictures there are and when. VideoError: none is there."""
    found = MARK.fullmatch(os.fspath(path))
    if not found:
        opened = tars.address(path)
        with tars.named(path, opened):
            return storage.frame_table(opened)
    file = file_of(found[0])
    if not os.path.exists(file):
        raise VideoError(path, f"there is no {file}", "Give the folder or file of the pictures.")
    return _table(found[0], os.stat(file).st_mtime_ns)


@kept(table_bytes, TABLES_BYTES)
def _table(path: str, _stamp: int) -> PictureTable:
    found = MARK.fullmatch(path)
    assert found
    places: tuple[Any, ...]
    if found["camera"]:
        times, places = _camera(path, found["file"], int(found["camera"]))
    elif fps := float(found["fps"]):
        star = found["file"].endswith("*")
        name = os.path.basename(found["file"])[:-1] if star else None
        numbers, places = _numbered(path, file_of(path), name)
        times = np.array(numbers) / fps
    else:
        raise VideoError(path, "there is no rate of 0", "Say how many pictures make a second.")
    n, (first,) = len(places), _pictures(path, places[:1])
    rate = (n - 1) / (times[-1] - times[0]) if n > 1 else float(found["fps"] or 1)
    every, zeros = np.arange(n), np.zeros(n, np.int64)
    columns = times, zeros, zeros == 0, every, every, every, zeros == 0
    for column in columns:
        column.setflags(write=False)  # all who ask for these pictures share the table
    why = "pictures of their own"
    about = path, "pictures", first.shape[1], first.shape[0], 0, float(rate), False, why
    return PictureTable(*about, *columns, (), places)


def frames_at(
    path: AnyPath, indices: ArrayLike, *, backend: str = "decord", table: FrameTable | None = None
) -> Tensor:
    """As `decode.frames_at`, uint8 [T, H, W, 3], also of pictures, which need no backend.

    VideoError: there is no such frame, it is damaged, or pictures differ in size.
    """
    table = table or frame_table(path)
    if not isinstance(table, PictureTable):
        with tars.named(path, table.path):
            return decode.frames_at(table.path, indices, backend=backend, table=table)
    wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    if not wanted.size or wanted[0] < 0 or wanted[-1] >= table.n_frames:
        cause = f"there is no frame {wanted.tolist()}: it has {table.n_frames} pictures"
        raise VideoError(path, cause, "Ask for what lies between 0 and that.")
    frames = list(_pictures(table.path, tuple(table.places[row] for row in wanted)))
    for row, frame in zip(wanted.tolist(), frames):
        if frame.shape[:2] != (table.height, table.width):
            size = f"{frame.shape[1]}x{frame.shape[0]}, the first {table.width}x{table.height}"
            raise VideoError(path, f"picture {row} has {size}", "Make them equal, or a video each.")
    return torch.from_numpy(np.stack([frames[place] for place in places]))


def _numbered(path: str, folder: str, name: str | None) -> tuple[list[int], tuple[str, ...]]:
    """Numbers and files of the pictures with this name before the number (None: the only one)."""
    found: dict[str, dict[int, str]] = {}
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        picture = PICTURE.fullmatch(entry.name)
        if picture and name in (None, picture[1]) and not entry.name.startswith("."):
            of_name = found.setdefault(picture[1], {})
            if (other := of_name.setdefault(int(picture[2]), entry.name)) != entry.name:
                cause = f"{other} and {entry.name} have one number"
                raise VideoError(path, cause, "Delete one of the two.")
    if len(found) > 1:
        cause = f"its pictures have different names ({', '.join(sorted(found)[:3])})"
        raise VideoError(path, cause, "Give FOLDER/NAME*#fps=... for those of one name.")
    if not found:
        raise VideoError(path, "there are no numbered pictures", "Unpack .jpg or .png files there.")
    files = dict(sorted(next(iter(found.values())).items()))
    return list(files), tuple(files.values())


def _camera(path: str, file: str, camera: int) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Times in s from the first, and (row group, row) of a camera's pictures."""
    rows = []
    names = {camera, str(camera), *CAMERAS[camera - 1 : camera]}
    with _parquet(path, file) as parquet:
        for group in range(parquet.num_row_groups):
            found = parquet.read_row_group(group, columns=[TIME, CAMERA], use_threads=False)
            columns = found.to_pydict()
            both = enumerate(zip(columns[TIME], columns[CAMERA]))
            rows += [(time, group, row) for row, (time, of) in both if of in names]
    if not rows:
        remedy = f"Give one of {', '.join(f'{i} ({name})' for i, name in enumerate(CAMERAS, 1))}."
        raise VideoError(path, f"it has no pictures of camera {camera}", remedy)
    rows.sort()
    times = np.array([time for time, _, _ in rows], np.int64)
    return (times - times[0]) / 1e6, tuple((group, row) for _, group, row in rows)


@contextmanager
def _parquet(path: str, file: str) -> Iterator[Any]:
    """A pyarrow ParquetFile of Waymo's pictures; what fails while it is open is a VideoError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        remedy = "Install it: pip install 'vidlearn[waymo]'"
        raise ConfigError(f"{file}: parquet needs the package pyarrow. {remedy}") from error
    try:
        with parquet.ParquetFile(file) as opened:
            if missing := {TIME, CAMERA, IMAGE} - {*opened.schema_arrow.names}:
                remedy = "Give a file of the component camera_image."
                raise VideoError(path, f"it has no column {min(missing)}", remedy)
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        raise VideoError(path, f"reading stops ({str(error).splitlines()[0]})", AGAIN) from error


def _pictures(path: str, places: tuple[Any, ...]) -> Iterator[np.ndarray]:
    """The pictures at these places, uint8 [H, W, 3] each."""
    if isinstance(places[0], str):
        folder = Path(file_of(path))
        for name in places:
            try:
                data = (folder / name).read_bytes()
            except OSError as error:
                raise VideoError(
                    path, f"{name} cannot be read ({error.strerror})", AGAIN
                ) from error
            yield _picture(path, name, data)
        return
    groups: dict[int, Any] = {}  # clips lie in one or two groups
    with _parquet(path, file_of(path)) as parquet:
        for group, row in places:
            if group not in groups:  # no threads: loader workers are forked
                found = parquet.read_row_group(group, columns=[IMAGE], use_threads=False)
                groups[group] = found.column(0)
            yield _picture(path, f"picture {row} of group {group}", groups[group][row].as_py())


def _picture(path: str, name: str, data: bytes) -> np.ndarray:
    """RGB uint8 [H, W, 3]. Left to itself, the decoder paints grey what is missing of a JPEG."""
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-4096:]:
        raise VideoError(path, f"{name} is cut short", AGAIN)
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            for stream in container.streams.video:
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"err_detect": "explode"}
                for frame in container.decode(stream):
                    if frame.is_corrupt:
                        raise VideoError(path, f"{name} is damaged", AGAIN)
                    return upright(frame)
    except av.FFmpegError as error:
        raise VideoError(path, f"{name} cannot be read ({error.strerror})", AGAIN) from error
    raise VideoError(path, f"{name} is no picture", AGAIN)
