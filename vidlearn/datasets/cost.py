"""What videos cost: bytes to store, hours to decode, pictures, and the time of a clip by part.

Input: hours, frame rate, frame size, bits per pixel, or the data itself. Output: bytes, core hours,
counts, milliseconds. Traded: one machine's decoding speed stands for all in `plan`; `needs` and
`parts_ms` measure here. Chapters 2, 4, 5 and 6.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from vidlearn.datasets.manifest import Manifest, file_of
from vidlearn.datasets.specs import DatasetSpec
from vidlearn.datasets.tars import parts, size_bytes
from vidlearn.errors import VideoError, VidlearnError
from vidlearn.storage import FrameTable

if TYPE_CHECKING:
    from torch import Tensor

    from vidlearn.sample import ClipSpec
    from vidlearn.transform import ClipTransform

ROW_S = 10.0  # longer videos are cut into rows of so many seconds


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


def upkeep(spec: DatasetSpec, bytes_per_s: float, cpu_ms: float) -> dict[str, float] | None:
    """What a public data set takes as copies: bytes to keep, clips and core hours an epoch.

    `bytes_per_s` of video and `cpu_ms` of a clip are those of a way to keep videos, as
    `frontier.measure` finds them. An epoch is a clip of each row: a video, or ten seconds of a
    longer one. All cameras count. None where there are no hours, as of stills.
    """
    if spec.hours.number is None or spec.videos.number is None:
        return None
    seconds = 3600 * spec.hours.number * spec.cameras
    clips = max(spec.videos.number * spec.cameras, seconds / ROW_S)
    return {
        "keep_bytes": seconds * bytes_per_s, "clips": clips,
        "decode_core_hours": clips * cpu_ms / 3.6e6,
    }  # fmt: skip


def pictures_to_decode(table: FrameTable, indices: Iterable[int], *, skip: bool = False) -> int:
    """Pictures to decode for these frames from key frames on; `skip` leaves out what none needs."""
    rows, order, total = np.unique(np.fromiter(indices, np.int64)), table.decode_order, 0
    spare = np.setdiff1d(np.flatnonzero(~table.referenced), rows) if skip else rows[:0]
    for start in np.unique(table.start[rows]):
        first = order[start] if start else 0
        last = order[rows[table.start[rows] == start]].max()
        total += last + 1 - first - sum(first <= order[row] <= last for row in spare)
    return int(total)


class Laps:
    """Consecutive laps, each with a name.

    `now` gives seconds, or CUDA events, which are not waited for before `totals_ms`.
    """

    def __init__(self, now: Callable[[], Any]) -> None:
        self.now = now
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str, *_: Any) -> None:
        """The lap before ends, and `name` begins, unless it is on."""
        if not self.marks or self.marks[-1][0] != name:
            self.marks.append((name, self.now()))

    def totals_ms(self) -> dict[str, float]:
        """Milliseconds by name; the last mark only ends the lap before it. Then starts anew."""
        total: dict[str, float] = {}
        for (name, a), (_, b) in zip(self.marks, self.marks[1:]):
            if isinstance(b, float):
                lap_ms = (b - a) * 1e3
            else:
                b.synchronize()
                lap_ms = a.elapsed_time(b)
            total[name] = total.get(name, 0) + lap_ms
        self.marks.clear()
        return total


def parts_ms(
    data: Manifest, spec: ClipSpec, look: ClipTransform, norm: str, clips: int = 24
) -> dict[str, float]:
    """Milliseconds of this core for a training clip, read by "auto", by part.

    open: finding the pictures, in the index or else by reading through the file; read and colour
    (cropping, YUV to RGB) stand apart from decode where clips are read directly; resize; copy into
    the batch; device: the normalisation, here. VidlearnError: no clip can be read.
    """
    from vidlearn.datasets.packets import part_at  # these load torch
    from vidlearn.transform import normalize

    def resize(part_THWC: Tensor) -> Tensor:
        laps.mark("resize")
        return look.resize(part_THWC)

    rng, laps, done = np.random.default_rng(0), Laps(time.process_time), -1
    for number in rng.integers(0, len(data), clips + 1).tolist():
        laps.mark("open")
        try:
            table, rows = _clip_of(data, number, spec, rng)
            box, flip = look.draw(table.height, table.width, rng)
            how: dict[str, Any] = {"finish": resize, "flip": flip, "mark": laps.mark}
            clip = part_at(table.path, rows, box, table=table, **how)
        except VideoError:
            continue  # `vidlearn data check` names it
        laps.mark("copy")
        batch = clip.permute(3, 0, 1, 2)[None].clone()
        laps.mark("device")
        normalize(batch, norm)
        laps.mark("")
        if (done := done + 1) == 0:
            laps.marks.clear()  # the first clip pays for what is set up once
    if done < 1:
        raise VidlearnError(f"{data.source}: none of {clips} clips can be read")
    return {name: ms / done for name, ms in laps.totals_ms().items() if name}


def _clip_of(
    data: Manifest, number: int, spec: ClipSpec, rng: np.random.Generator
) -> tuple[FrameTable, np.ndarray]:
    """What is in that row's video, and the frames of a random clip of it."""
    from vidlearn.datasets.index import index_file, span_of, table_of
    from vidlearn.sample import clip_indices

    row = data.rows[number]
    table = table_of(row.path, index_file(data.source))
    first, stop = span_of(table, row)
    return table, first + clip_indices(spec, stop - first, table.fps, rng=rng)[0]


def needs(data: Manifest, gpus: int, clips_per_s: float, *, sample: int = 32) -> dict[str, float]:
    """What training takes of these videos: hours, bytes, cores and bytes a second for the GPUs.

    Measured on a sample: clips of 16 frames, stride 4, 224 pixels, read by "auto". Each GPU takes
    `clips_per_s`. VidlearnError: no clip of the sample can be read.
    """
    from vidlearn.sample import ClipSpec
    from vidlearn.transform import ClipTransform

    data, spec, look = data.training(), ClipSpec(), ClipTransform(224)
    rng, found = np.random.default_rng(0), []
    for number in rng.permutation(len(data))[:sample].tolist():
        row = data.rows[number]
        try:
            table, frames = _clip_of(data, number, spec, rng)
        except VideoError:
            continue  # `vidlearn data check` names it
        length_s = (row.end_s or float(table.pts_s[-1])) - row.start_s
        read = table.bytes[table.start[frames.min()] : frames.max() + 1].sum()
        stored = size_bytes(row.path if parts(row.path) else file_of(row.path))
        found.append((length_s, stored, read))
    if not found:
        raise VidlearnError(f"{data.source}: no video of the sample can be read")
    length_s, stored, read = np.mean(found, axis=0).tolist()
    ms = parts_ms(data, spec, look, "imagenet", len(found))
    cpu_ms, rate = sum(ms.values()) - ms["device"], gpus * clips_per_s
    return {
        "rows": len(data), "sampled": len(found), "hours": len(data) * length_s / 3600,
        "stored_bytes": len(data) * stored, "cpu_ms_per_clip": cpu_ms, "cores": rate * cpu_ms / 1e3,
        "read_bytes_per_clip": read, "read_bytes_per_s": rate * read,
        "to_gpus_bytes_per_s": rate * 3 * spec.frames * look.size**2,
    }  # fmt: skip
