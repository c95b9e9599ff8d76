"""Ways to keep a video, for `frontier` to weigh: the recipes of `transcode`, and what others do.

Input: frames of a video, with their times. Output: a file, or a folder of pictures, that the loader
reads: its table, and how near it is to the frames. Traded: raw pixels are kept as codecs keep them,
four with one colour, half the bytes of RGB; pictures are given even times. Chapter 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlearn.datasets.sequences import frames_at
from vidlearn.datasets.transcode import RECIPES, Plan, psnr_db, settings_of
from vidlearn.datasets.write import encode, scaled
from vidlearn.errors import VideoError
from vidlearn.storage import FrameTable, open_video

COMPARED = 8  # every so many frames
LEAST = 64  # lines; x265 4.2 writes past its memory where there are fewer
# CRFs of other codecs are not x264's: by so much coarser, ten camera videos had its 43 dB at 23.
OTHERS: dict[str, dict[str, Any]] = {
    "gop250-fine": {"codec": "libx264", "gop": 250, "coarser": -5.0},
    "hevc": {"codec": "libx265", "gop": 30, "coarser": 2.0},
    "av1": {"codec": "libsvtav1", "gop": 30, "coarser": 16.0},
    "raw": {"codec": "rawvideo", "gop": 1, "coarser": 0.0},
    "jpeg90": {"quality": 90},
    "jpeg75": {"quality": 75},
}
WAYS = (*RECIPES, *OTHERS)


def keep(
    way: str, plan: Plan, source: FrameTable, frames: Iterable[np.ndarray], times_s: np.ndarray,
    stem: Path,
) -> tuple[FrameTable, float]:  # fmt: skip
    """Write the frames of a video, uint8 [H, W, 3], in this way; the table, and the PSNR in dB.

    `plan` says side and CRF, and of a recipe all; `stem` is the file without its ending.
    VideoError: it cannot be written, or has lost frames.
    """
    from vidlearn.datasets.packets import scan  # loads torch

    how, other, kept = settings_of(plan, source), OTHERS.get(way), list[np.ndarray]()
    half = how["short_side"] / min(source.height, source.width) / 2
    width, height = 2 * round(source.width * half), 2 * round(source.height * half)

    def watched() -> Iterator[np.ndarray]:
        for row, image in enumerate(frames):
            if row % COMPARED == 0:
                kept.append(scaled(image, width, height).to_ndarray())
            yield image

    if way == "hevc" and how["short_side"] < LEAST:
        raise VideoError(source.path, f"{how['short_side']} lines are too few for hevc: {LEAST}")
    if other and "quality" in other:
        _pictures(stem, watched(), width, height, other["quality"])
        path = f"{stem}#fps={source.fps:.6f}"
    else:
        if other:
            crf = min(63.0, max(0.0, plan.crf + other["coarser"]))
            how = {"short_side": how["short_side"], "crf": crf, "codec": other["codec"]}
            how["gop"] = other["gop"]
        ending = ".mkv" if way == "raw" else ".mp4"
        path = str(stem.with_name(stem.name + ending))
        encode(path, watched(), source.fps, times_s=times_s, **how)
    table = scan(path)
    if table.n_frames != len(times_s):
        raise VideoError(source.path, f"its copy {way} has {table.n_frames} frames")
    if other and "quality" in other:
        files = sorted(stem.iterdir())
        table = replace(table, bytes=np.array([file.stat().st_size for file in files]))
    compared = _compared(table, width, height)
    return table, float(np.mean([psnr_db(a, b) for a, b in zip(kept, compared, strict=True)]))


def _pictures(
    folder: Path, frames: Iterable[np.ndarray], width: int, height: int, quality: int
) -> None:
    """A JPEG file for each frame, numbered from 1."""
    from PIL import Image

    try:
        folder.mkdir(parents=True)
        for number, image in enumerate(frames, 1):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            small = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1)
            picture = Image.fromarray(small.to_ndarray())
            picture.save(folder / f"{number:06d}.jpg", "JPEG", quality=quality)
    except OSError as error:
        raise VideoError(folder, f"it cannot be written ({error.strerror or error})") from error


def _compared(table: FrameTable, width: int, height: int) -> Iterator[np.ndarray]:
    """Every so manyeth frame of a copy, as the encoder was given it: yuv420p."""
    if table.codec == "pictures":
        images = frames_at(table.path, range(0, table.n_frames, COMPARED), table=table)
        yield from (scaled(image, width, height).to_ndarray() for image in images.numpy())
        return
    with open_video(table.path) as (container, stream):
        for frame in islice(container.decode(stream), 0, None, COMPARED):
            yield frame.reformat(format="yuv420p", threads=1).to_ndarray()
