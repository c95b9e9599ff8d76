"""Bytes against milliseconds: some of your videos, kept in many ways (`ways`).

Input: a manifest. Output: for the files as they are and for each way, bytes a second of video, CPU
time of a training clip, and how far the pictures are from the original; a table, JSON, a figure.
Traded: excerpts of a few videos stand for all; the disk is not timed, as what was just written
lies in memory. All ways are given the same clips, which start on multiples of four frames; layered
files are timed once more without that grid. Chapter 6.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlearn.datasets.cost import pictures_to_decode
from vidlearn.datasets.manifest import MARK, Manifest
from vidlearn.datasets.transcode import GRID, RECIPES, Plan
from vidlearn.datasets.ways import LEAST, WAYS, keep
from vidlearn.datasets.write import disk_fault
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.storage import AGAIN, FrameTable, iter_frames, open_video, upright

FRAMES, STRIDE, SIZE, ON_GRID = 16, 4, 224, 4  # a training clip
SPAN = (FRAMES - 1) * STRIDE + 1
ORIGINAL, ANY = "original", " (any start)"
TRIED = 25  # so many videos are looked at for each wanted
Ways = Mapping[str, tuple[float, float]]  # name -> bytes a second, CPU ms a clip


@dataclass
class _Excerpt:
    """Rows first..stop-1 of a video, its copies by way, and the distance of each, in dB."""

    table: FrameTable
    first: int
    stop: int
    copies: dict[str, FrameTable] = field(default_factory=dict)
    psnr_db: dict[str, float] = field(default_factory=dict)

    def length_s(self) -> float:
        return np.diff(self.table.pts_s[[self.first, self.stop - 1]]).item() + 1 / self.table.fps

    def of(self, way: str) -> tuple[FrameTable, int]:
        """The file of that way, and its row at which the excerpt begins."""
        return (
            (self.table, self.first) if way == ORIGINAL else (self.copies[way.removesuffix(ANY)], 0)
        )


def measure(
    data: Manifest, out: Path, *, ways: tuple[str, ...] = (*RECIPES,), videos: int = 4,
    clips: int = 24, seconds: float = 20.0, short_side: int = 256, crf: float = 23.0,
    rounds: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write some of WAYS beside each other in `out`, time clips, delete them: what JSON shall hold.

    Of each of some `videos` it takes `seconds` from the middle. CPU ms is the middle of the
    `rounds` with the least and the most: read, decode, crop, resize to 224 pixels, by "auto".
    progress(done, all) counts files. ConfigError: a number or a way that cannot be. VidlearnError:
    no video is long enough.
    """
    plans = _plans(ways, short_side, crf)
    wanted = {"videos": videos, "clips": clips, "seconds": seconds, "rounds": rounds}
    for name, value in wanted.items():
        if not 1 <= value < np.inf:
            raise ConfigError(f"--{name} {value}: give 1 or more")
    chosen, left_out = _choose(data, videos, seconds)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".frontier-", dir=out) as folder:
        chosen = _copied(chosen, plans, Path(folder), left_out, progress)
        looser = [way + ANY for way in plans if way in GRID]
        found = {way: _weigh(chosen, way) for way in (ORIGINAL, *plans, *looser)}
        drawn = {way: _clips(chosen, way, clips) for way in found}
        for way, ms in _times_ms(drawn, rounds, min(SIZE, short_side)).items():
            count = [pictures_to_decode(table, rows, skip=True) for table, rows in drawn[way]]
            found[way] |= {**ms, "pictures": float(np.mean(count))}
    best = unbeaten({way: _point(found[way]) for way in plans})
    for way, row in found.items():
        row["best"] = way in best
    length_s = sum(e.length_s() for e in chosen)
    return {
        "videos": len(chosen), "excerpt_s": length_s, "clips": clips,
        "fps": sum(e.stop - e.first for e in chosen) / length_s,
        "rounds": rounds, "frames": FRAMES, "stride_frames": STRIDE, "short_side": short_side,
        "crf": crf, "left_out": left_out, "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(), "ways": found,
    }  # fmt: skip


def unbeaten(ways: Ways) -> list[str]:
    """Names that no other beats in both bytes and time, from the smallest on."""

    def beaten(size: float, ms: float) -> bool:
        return any(s <= size and t <= ms and (s, t) != (size, ms) for s, t in ways.values())

    return sorted((name for name in ways if not beaten(*ways[name])), key=lambda name: ways[name])


def points(found: Mapping[str, Any]) -> tuple[Ways, set[str]]:
    """What `measure` found, for `draw` and `told`: all ways, and those out of the contest.

    The original has other pictures; a layered file without its grid is there already.
    """
    ways = {name: _point(told) for name, told in found["ways"].items()}
    return ways, {name for name in ways if name == ORIGINAL or name.endswith(ANY)}


def told(ways: Ways, other: Set[str] = frozenset()) -> str:
    """The figure in words, for those who do not see it."""
    best = unbeaten({name: way for name, way in ways.items() if name not in other})
    rest = sorted(ways.keys() - {*best} - other)
    text = f"dots, nothing of like pictures is both smaller and faster: {', '.join(best)}"
    text += f"; crosses, the rest: {', '.join(rest) or 'none'}"
    return text + f"; open squares, out of the contest: {', '.join(sorted(other)) or 'none'}."


def draw(ways: Ways, other: Set[str] = frozenset(), title: str = "") -> Any:
    """A matplotlib figure of bytes against time; a line joins the ways that nothing beats."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    best = unbeaten({name: way for name, way in ways.items() if name not in other})
    axes = (figure := Figure((5.6, 3.2), 130, layout="constrained")).subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for number, (name, (size, ms)) in enumerate(sorted(ways.items(), key=lambda w: w[1]), 1):
        mark, colour = ("o", "#0072B2") if name in best else ("x", "grey")
        mark, fill = ("s", "none") if name in other else (mark, "full")
        axes.plot(size / 1e3, ms, mark, color=colour, fillstyle=fill, label=f"{number} {name}")
        axes.annotate(f"  {number}", (size / 1e3, ms), fontsize=8)
    line = zip(*((ways[name][0] / 1e3, ways[name][1]) for name in best))
    axes.plot(*line, color="#0072B2", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="kB a second of video", ylabel="CPU ms a clip")
    for axis, at in zip((axes.xaxis, axes.yaxis), zip(*ways.values())):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if max(at) < 20 * min(at) else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_title(title or "Bytes against milliseconds")
    axes.legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The table, from the smallest way on."""
    yield (f"{'way':26s}{'kB/s of video':>14s}{'CPU ms a clip':>14s}{'least..most':>15s}"
           f"{'pictures':>10s}{'dB':>7s}")  # fmt: skip
    for name, way in sorted(found["ways"].items(), key=lambda w: _point(w[1])):
        spread = f"{way['cpu_ms_least']:.1f}..{way['cpu_ms_most']:.1f}"
        quality = f"{way['psnr_db']:.1f}" if way["psnr_db"] else "-"
        yield (f"{name:26s}{way['bytes_per_s'] / 1e3:14.1f}{way['cpu_ms']:14.1f}{spread:>15s}"
               f"{way['pictures']:10.1f}{quality:>7s}{'  best' * way['best']}")  # fmt: skip


def save(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the numbers and the figure into `out`."""
    paths = [out / "frontier.json", out / "frontier.svg"]
    paths[0].write_text(json.dumps(found, indent=1) + "\n")
    draw(*points(found)).savefig(paths[1], metadata={"Date": None})
    return paths


def _plans(ways: tuple[str, ...], short_side: int, crf: float) -> dict[str, Plan]:
    """Way -> side and CRF, and of a recipe how it is written."""
    if unknown := [way for way in ways if way not in WAYS]:
        raise ConfigError(f"--recipes {unknown[0]}: give some of {', '.join(WAYS)}")
    if not ways:
        raise ConfigError(f"--recipes: give at least one of {', '.join(WAYS)}")
    if "hevc" in ways and short_side < LEAST:
        raise ConfigError(f"--short-side {short_side}: hevc needs {LEAST} or more")
    return {way: Plan(way if way in RECIPES else "gop250", short_side, crf) for way in ways}


def _choose(data: Manifest, videos: int, seconds: float) -> tuple[list[_Excerpt], dict[str, str]]:
    """Excerpts of some videos by chance, always the same, and why others were not taken."""
    from vidlearn.datasets.packets import scan  # loads torch

    chosen, left_out = list[_Excerpt](), dict[str, str]()
    order = np.random.default_rng(0).permutation(len(data))[: TRIED * videos].tolist()
    for path in dict.fromkeys(data.rows[number].path for number in order):
        if len(chosen) == videos:
            break
        try:
            table = scan(path) if not MARK.fullmatch(path) else None
        except VideoError as error:
            left_out[path] = error.cause
            continue
        if table is None:
            left_out[path] = "pictures in place of a video"
        elif table.n_frames < SPAN:
            left_out[path] = f"{table.n_frames} frames, a clip needs {SPAN}"
        else:
            chosen.append(_Excerpt(table, *_middle(table, seconds)))
    if not chosen:
        raise _none_left(left_out)
    return chosen, left_out


def _none_left(left_out: Mapping[str, str]) -> VidlearnError:
    text = "{}: {}; of {} videos that were tried none can be used. Give videos of {} frames or more"
    return VidlearnError(text.format(*next(iter(left_out.items())), len(left_out), SPAN))


def _copied(
    chosen: list[_Excerpt], plans: Mapping[str, Plan], folder: Path, left_out: dict[str, str],
    progress: Callable[[int, int], None] | None,
) -> list[_Excerpt]:  # fmt: skip
    """Each excerpt written in each way; those that can be read through."""
    good = []
    for number, excerpt in enumerate(chosen):
        try:
            for count, (way, plan) in enumerate(plans.items(), 1):
                _write(excerpt, way, plan, folder / way / str(number))
                if progress:
                    progress(number * len(plans) + count, len(chosen) * len(plans))
        except VideoError as error:
            if error.path != excerpt.table.path and disk_fault(error):
                raise  # of what is written; a source that has gone is left out
            left_out[excerpt.table.path] = error.cause
        else:
            good.append(excerpt)
    if not good:
        raise _none_left(left_out)
    return good


def _middle(table: FrameTable, seconds: float) -> tuple[int, int]:
    """First row and the one after the last, from a clean start where readers may seek."""
    wanted = max(SPAN, round(seconds * table.fps))
    first = int(table.start[max(0, (table.n_frames - wanted) // 2)]) if table.seekable else 0
    return first, min(first + wanted, table.n_frames)


def _frames(excerpt: _Excerpt) -> Iterator[np.ndarray]:
    """The excerpt's frames, uint8 [H, W, 3], upright."""
    table, first, stop = excerpt.table, excerpt.first, excerpt.stop
    if not first:
        yield from islice(iter_frames(table.path), stop)
        return
    wanted = {*table.ticks[first:stop].tolist()}
    with open_video(table.path) as (container, stream):
        container.seek(int(table.ticks[first]), stream=stream)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                row = int(np.searchsorted(table.ticks, frame.pts))
                raise VideoError(table.path, f"frame {row} is damaged", AGAIN)
            if frame.pts in wanted:
                wanted.remove(frame.pts)
                yield upright(frame)
            if not wanted:
                return


def _write(excerpt: _Excerpt, way: str, plan: Plan, stem: Path) -> None:
    """Write the excerpt in this way, and compare some of its frames."""
    table, first, stop = excerpt.table, excerpt.first, excerpt.stop
    times_s = table.pts_s[first:stop] - table.pts_s[first]
    kept = keep(way, plan, table, _frames(excerpt), times_s, stem)
    excerpt.copies[way], excerpt.psnr_db[way] = kept


def _weigh(chosen: list[_Excerpt], way: str) -> dict[str, Any]:
    """Bytes of the pictures a second of video; mean distance from the original, in dB."""
    parts = [(*e.of(way), e.stop - e.first) for e in chosen]
    size = sum(int(table.bytes[first : first + n].sum()) for table, first, n in parts)
    quality = [e.psnr_db[way.removesuffix(ANY)] for e in chosen] if way != ORIGINAL else None
    return {
        "bytes_per_s": size / sum(e.length_s() for e in chosen),
        "psnr_db": float(np.mean(quality)) if quality else None,
    }


def _clips(chosen: list[_Excerpt], way: str, clips: int) -> list[tuple[FrameTable, np.ndarray]]:
    """(file, rows) of the clips: at the same places in every way."""
    drawn = []
    for number in range(clips):
        excerpt, rng = chosen[number % len(chosen)], np.random.default_rng((0, number))
        spare = excerpt.stop - excerpt.first - SPAN
        start = int(rng.integers(0, spare // ON_GRID + 1)) * ON_GRID
        start = int(rng.integers(0, spare + 1)) if way.endswith(ANY) else start
        table, first = excerpt.of(way)
        drawn.append((table, first + start + STRIDE * np.arange(FRAMES)))
    return drawn


def _times_ms(
    drawn: dict[str, list[tuple[FrameTable, np.ndarray]]], rounds: int, size: int
) -> dict[str, dict[str, float]]:
    """Way -> CPU ms a clip: the middle, the least and the greatest round; the ways take turns."""
    from vidlearn.datasets.packets import part_at
    from vidlearn.transform import ClipTransform

    look, ms = ClipTransform(size), {way: [0.0] * rounds for way in drawn}

    def load(number: int, table: FrameTable, rows: np.ndarray) -> None:
        rng = np.random.default_rng((1, number))  # the same part of the picture in each way
        box, flip = look.draw(table.height, table.width, rng)
        part_at(table.path, rows, box, table=table, finish=look.resize, flip=flip)

    for turn in range(rounds):
        for way, todo in drawn.items():
            load(0, *todo[0])  # pays for what is set up once
            began = time.process_time()
            for number, (table, rows) in enumerate(todo):
                load(number, table, rows)
            ms[way][turn] = 1e3 * (time.process_time() - began) / len(todo)
    return {
        way: {"cpu_ms": float(np.median(x)), "cpu_ms_least": min(x), "cpu_ms_most": max(x)}
        for way, x in ms.items()
    }


def _point(told: Mapping[str, Any]) -> tuple[float, float]:
    return told["bytes_per_s"], told["cpu_ms"]


def _machine() -> dict[str, Any]:
    """What the times must be read with."""
    info = Path("/proc/cpuinfo")  # of Linux; elsewhere Python knows at least the kind
    name = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "cpu": name[1] if name else platform.machine(), "cores": os.cpu_count(), "threads": 1,
        "os": platform.platform(), "python": platform.python_version(), "av": av.__version__,
    }  # fmt: skip
