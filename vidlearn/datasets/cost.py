"""What videos cost: bytes to store, hours to decode, pictures, and the time of a clip by part.

Input: hours, frame rate, frame size, bits per pixel, or the data itself. Output: bytes, core hours,
counts, milliseconds. Traded: one machine's decoding speed stands for all in `plan`; `needs` and
`parts_ms` measure here. Chapters 2, 4, 5 and 6.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from vidlearn.datasets.manifest import Manifest, file_of
from vidlearn.errors import VideoError, VidlearnError
from vidlearn.storage import FrameTable

if TYPE_CHECKING:
    from vidlearn.recipes import Config


def plan(
    hours: float, fps: float, width: int, height: int, *, bits_per_pixel: float
) -> dict[str, float]:
    """What video costs: bytes as RGB and as stored, and hours for one core to decode it once.

    Decoding takes 4.3 ns a pixel and 8.1 ns a bit, within 40 %: fitted to H.264 camera footage,
    PyAV 18.1, one thread of an AMD EPYC.
    """
    pixels = hours * 3600 * fps * width * height
    return {
        "raw_bytes": 3 * pixels,
        "stored_bytes": pixels * bits_per_pixel / 8,
        "decode_core_hours": pixels * (4.3 + 8.1 * bits_per_pixel) / 3.6e12,
    }


def pictures_to_decode(table: FrameTable, indices: Iterable[int], *, skip: bool = False) -> int:
    """Pictures to decode for these frames from key frames on; `skip` leaves out what none needs."""
    rows, order, total = np.unique(np.fromiter(indices, np.int64)), table.decode_order, 0
    spare = np.setdiff1d(np.flatnonzero(~table.referenced), rows) if skip else rows[:0]
    for start in np.unique(table.start[rows]):
        first = order[start] if start else 0
        last = order[rows[table.start[rows] == start]].max()
        total += last + 1 - first - sum(first <= order[row] <= last for row in spare)
    return int(total)


def parts_ms(config: Config, data: Manifest, clips: int = 24) -> dict[str, float]:
    """Milliseconds of this core for a training clip of a recipe, read by "auto", by part.

    open: finding the pictures, in the index or else by reading through the file; read and colour
    (cropping, YUV to RGB) stand apart from decode where clips are read directly; resize; copy into
    the batch; device: the normalisation, here. VidlearnError: no clip can be read.
    """
    from vidlearn.batch import ClipDataset
    from vidlearn.datasets.index import part_at
    from vidlearn.transform import normalize

    spec, look = config.clip_spec(), config.transform(True)
    dataset = ClipDataset(data.training(), spec, look, config.seed, "auto")
    totals: dict[str, float] = {}
    now, began, done = "", time.process_time(), -1  # the first clip pays for what is set up once

    def mark(part: str) -> None:
        nonlocal now, began, totals
        moment = time.process_time()
        totals[now] = totals.get(now, 0.0) + moment - began
        now, began = part, moment

    for index in np.random.default_rng(config.seed).integers(0, len(dataset), clips + 1).tolist():
        mark("open")
        try:
            table, rows, box, flip = dataset.choose(0, index)
            part = part_at(table.path, rows, box, backend=dataset.backend, table=table, mark=mark)
        except VideoError:
            continue  # `vidlearn data check` names it
        mark("resize")
        clip = dataset.transform.finish(part, flip)
        mark("copy")
        batch = clip[None].clone()
        mark("device")
        normalize(batch, config.input_norm)
        mark("")
        done += 1
        totals = totals if done else {}
    if done < 1:
        raise VidlearnError(f"{data.source}: none of {clips} clips can be read")
    return {name: 1e3 * total / done for name, total in totals.items() if name}


def needs(
    data: Manifest, gpus: int, clips_per_s: float, *, sample: int = 32, recipe_name: str = "vitl16"
) -> dict[str, float]:
    """What training takes of these videos: hours, bytes, cores and bytes a second for the GPUs.

    Measured on a sample, on clips as the recipe takes them, read by "auto". Each GPU takes
    `clips_per_s`. VidlearnError: no clip of the sample can be read.
    """
    from vidlearn.batch import ClipDataset
    from vidlearn.recipes import recipe

    data, config = data.training(), recipe(recipe_name)
    stored, seconds, read = [], [], []
    dataset = ClipDataset(data, config.clip_spec(), config.transform(True), config.seed, "auto")
    for i in np.random.default_rng(config.seed).permutation(len(data))[:sample].tolist():
        row = data.rows[i]
        try:
            table, frames, _, _ = dataset.choose(0, i)
        except VideoError:
            continue  # `vidlearn data check` names it
        stored.append(os.path.getsize(file_of(row.path)))
        seconds.append((row.end_s or float(table.pts_s[-1])) - row.start_s)
        read.append(int(table.bytes[table.start[frames.min()] : frames.max() + 1].sum()))
    if not seconds:
        raise VidlearnError(f"{data.source}: no video of the sample can be read")
    ms = parts_ms(config, data, len(seconds))
    cpu_ms, rate = sum(ms.values()) - ms["device"], gpus * clips_per_s
    return {
        "rows": len(data), "sampled": len(seconds),
        "hours": len(data) * float(np.mean(seconds)) / 3600,
        "stored_bytes": len(data) * float(np.mean(stored)), "cpu_ms_per_clip": cpu_ms,
        "read_bytes_per_clip": float(np.mean(read)), "cores": rate * cpu_ms / 1e3,
        "read_bytes_per_s": rate * float(np.mean(read)),
        "to_gpus_bytes_per_s": rate * dataset.clip_bytes,
    }  # fmt: skip
