"""Write all videos of a manifest again for training: small, and quick to take clips from.

Input: a manifest, a recipe, a short side. Output: a folder of H.264 files, their manifest, and the
list of videos that could not be read. Traded: each copy is compared with its source frame by frame,
so a source is decoded twice; a call that was cut repeats the videos it had in hand. Chapter 6.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from itertools import compress, islice, zip_longest
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from vidlearn.datasets.cores import cores
from vidlearn.datasets.files import write_manifest
from vidlearn.datasets.manifest import Manifest, Seen
from vidlearn.datasets.quarantine import Quarantine
from vidlearn.datasets.tars import address, size_bytes
from vidlearn.datasets.write import disk_fault, encode, outdated, scaled
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.storage import FrameTable, frame_table, iter_frames, open_video

# A P picture every fourth frame, and three B pictures between that nothing refers to: a clip with
# stride 4 on that grid needs no B picture, one with stride 2 one in three. A pyramid, in which the
# middle B picture is a reference, takes as many bytes and more pictures for every stride.
LAYERS = "keyint=32:min-keyint=32:scenecut=0:bframes=3:b-adapt=0:b-pyramid=none:open-gop=0"
FAST = {"tune": "fastdecode"}  # no CABAC, no deblocking, no weighted prediction
RECIPES: dict[str, dict[str, Any]] = {
    "layered": {"gop": 32, "b_frames": 3, "options": {"x264-params": LAYERS, **FAST}},
    "layered-small": {"gop": 32, "b_frames": 3, "options": {"x264-params": LAYERS}},
    "gop12": {"gop": 12},
    "gop12-fast": {"gop": 12, "options": FAST},
    "intra": {"gop": 1, "b_frames": 0},
    "gop250": {"gop": 250},
}
GRID = {"layered": 4, "layered-small": 4}  # frames between the starts of cheap clips, where not 1
FLOOR_DB = 25.0  # least PSNR of a frame; at CRF 23, moving water has 30 and most videos 40
# A frame that is so much nearer to the frame beside its own is that frame. In a still scene with
# noise the encoder repeats pictures, which alone makes up to 5.5 dB, and 0.6 in the mean of eight.
NEARER_DB, SHIFTED_DB, RUN = 6.0, 1.0, 8
TICK = Fraction(1, 90000)  # for times that are no multiples of the source's unit
VERSION = 2  # of the recipes: files of different versions are not mixed in one folder
AHEAD = 64  # videos that are given out for each process: one that takes long holds up no other
STAMP, MANIFEST, BAD, PART = "transcode.json", "manifest.csv", "quarantine.jsonl", ".part"


@dataclass(frozen=True)
class Plan:
    """How every video of a folder is written; ConfigError: a choice that cannot be."""

    recipe: str = "layered"
    short_side: int = 256
    crf: float = 23.0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ConfigError(f"--recipe {self.recipe!r}: give one of {', '.join(RECIPES)}")
        if self.short_side < 16 or self.short_side % 2:
            raise ConfigError(f"--short-side {self.short_side}: give an even number from 16 on")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"--crf {self.crf:g}: give 0 (exact) to 51 (coarse); 23 is usual")

    @property
    def grid(self) -> int:
        """Clips that start on multiples of it are the cheap ones."""
        return GRID.get(self.recipe, 1)

    def stamp(self) -> str:
        """What tells the files of this plan from those of another."""
        return json.dumps({**vars(self), "version": VERSION})


def settings_of(plan: Plan, table: FrameTable) -> dict[str, Any]:
    """What `encode` is told to write a video as planned; no video is made larger."""
    how = RECIPES[plan.recipe]
    if not (short_side := 2 * (min(plan.short_side, table.height, table.width) // 2)):
        raise VideoError(table.path, "its smaller side is one pixel, which no encoder takes")
    return {**how, "short_side": short_side, "crf": plan.crf}


def transcode_all(
    data: Manifest, out: Path, plan: Plan, *, jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Write each video of `data` that is not in `out` yet, and out/manifest.csv; the bad ones.

    Returns path -> cause of the sources that cannot be read, which out/quarantine.jsonl names and
    the manifest leaves out. jobs: processes, None for one a core. progress(done, all).
    ConfigError: `jobs` below 1. VidlearnError: the folder belongs to something else or to another
    call, two videos want one name, a file cannot be written, or a process died.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: give 1 or more")
    targets, bad = Targets(data, out), dict[str, str]()
    with claim(out, STAMP, plan.stamp()):
        for left in out.rglob(f".*{PART}*.mp4"):  # of a call that was killed
            left.unlink()
        missing = (outdated(source, path) for source, path in targets.items())
        new = np.fromiter(missing, bool, len(targets))
        todo, n_new = compress(targets.items(), new), int(new.sum())
        found = _rewritten(todo, plan, min(jobs or cores(), n_new))
        (out / BAD).unlink(missing_ok=True)
        quarantine = Quarantine(out / BAD, len(targets), max_share=1.0)
        for done, (source, cause) in enumerate(found, 1):
            if cause:
                bad[source] = cause
                quarantine.add([(source, cause)])
            if progress:
                progress(len(targets) - n_new + done, len(targets))
        rows = (row for row in data.rows if row.path not in bad)
        copied = (replace(row, path=str(targets[row.path])) for row in rows)
        write_manifest(out / MANIFEST, copied)
    return bad


class Targets(Mapping[str, Path]):
    """Source -> its file in `out`: the same path below the manifest's folder, or below outside/.

    VidlearnError: two sources have one target, or one folder lies in the other.
    """

    def __init__(self, data: Manifest, out: Path) -> None:
        source, held = os.path.abspath(data.source), os.path.join(os.path.abspath(out), "")
        whole = os.path.isdir(source)
        self.root = os.path.join(source if whole else os.path.dirname(source), "")
        self.sources, self.out = data.paths, out
        if whole and held.startswith(self.root):
            raise VidlearnError(f"{out}: lies in {data.source}, the data. Choose one beside it")
        taken = Seen()
        for path, target in self.items():
            if os.path.abspath(path).startswith(held):
                raise VidlearnError(f"{out}: holds the source {path}. Choose another folder")
            if not taken.add(os.fspath(target)):
                other = next(source for source in self if self[source] == target)
                raise VidlearnError(f"{path} and {other} would both become {target}. Rename one")

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __getitem__(self, source: str) -> Path:
        """Where its copy lies; computed."""
        video = os.path.abspath(source)
        name = f"outside{video}" if not video.startswith(self.root) else video[len(self.root) :]
        return self.out / (name if os.path.splitext(name)[1] == ".mp4" else f"{name}.mp4")


@contextmanager
def claim(out: Path, name: str, asked: str) -> Iterator[None]:
    """The folder for this plan and this call alone; the lock goes when the process does.

    The file `name` in it says what is `asked` for. VidlearnError: it says something else, is
    missing in a folder that is not empty, or another call is at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    stamp, remedy = out / name, "Choose another folder, or delete this one"
    if not stamp.exists() and any(out.iterdir()):
        raise VidlearnError(f"{out}: is not empty and holds no {name}. {remedy}")
    with open(stamp, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VidlearnError(f"{out}: another call writes here. Wait for its end") from error
        except OSError as error:
            text = f"{out}: cannot be locked ({error.strerror})"
            raise VidlearnError(f"{text}. Choose a folder on another disk") from error
        file.seek(0)
        if (found := file.read()) not in ("", asked):
            raise VidlearnError(f"{out}: holds {found}, not {asked}. {remedy}")
        if not found:
            file.write(asked)
            file.flush()
        yield


def _rewritten(
    todo: Iterable[tuple[str, Path]], plan: Plan, jobs: int
) -> Iterator[tuple[str, str]]:
    """(source, cause or "") in the order of `todo`, from so many processes."""
    work, ahead = partial(rewrite, plan=plan), deque[tuple[str, Future[str]]]()
    if jobs <= 1:
        yield from ((source, work(source, target)) for source, target in todo)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker)
    given = ((source, pool.submit(work, source, target)) for source, target in todo)
    try:
        ahead.extend(islice(given, AHEAD * jobs))
        while ahead:
            cause = ahead[0][1].result()
            source, _ = ahead.popleft()
            ahead.extend(islice(given, 1))
            yield source, cause
    except BrokenProcessPool as error:
        begun = (source for source, told in ahead if not told.done() or told.exception())
        names = ", ".join(islice(begun, jobs + 1))  # each process is given one more
        remedy = "Use fewer --jobs, or leave out the video; the same command goes on"
        raise VidlearnError(f"a process died at one of {names}. {remedy}") from error
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for the videos in hand


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its workers, which would write on."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def rewrite(source: str, target: Path, plan: Plan) -> str:
    """Write one video as planned, compare it, and name it; why the source cannot be read, or "".

    The target is there only when it has passed. VidlearnError: the disk is full, or its like.
    """
    name = blake2b(os.fsencode(target.name), digest_size=8).hexdigest()  # one that is short enough
    part = target.with_name(f".{name}{PART}.mp4")
    opened = source
    try:
        opened = address(source)  # which may lie in a tar
        table = frame_table(opened)
        how = settings_of(plan, table)
        with open_video(opened) as (_, stream):
            unit = Fraction(stream.time_base)
        # Finer units than this overflow the fields of an mp4.
        how["unit"] = unit if len(table.ticks) and unit.denominator <= 10**6 else TICK
        encode(part, iter_frames(opened), table.fps, times_s=table.pts_s, **how)
        verify(opened, part, plan.grid)
        os.replace(part, target)
    except VideoError as error:
        if error.path in (source, opened):
            return error.cause
        if not (why := disk_fault(error)):
            return f"its copy: {error.cause}"  # whatever the encoder has against it
        remedy = "Make room, or write elsewhere; the same command goes on"
        raise VidlearnError(f"{target}: cannot be written ({why}). {remedy}") from error
    finally:
        part.unlink(missing_ok=True)
    return ""


def verify(source: str, target: Path, grid: int = 1) -> None:
    """Hold a copy to its source, frame by frame. VideoError: where they differ.

    The same number of frames at the same times; each within FLOOR_DB of its source frame, scaled,
    and not nearer to the one before or after; no picture needs one between the frames of `grid`.
    """
    old, (db, times_s) = frame_table(source), _psnr_db(source, target)
    if len(times_s) != old.n_frames or np.abs(times_s - old.pts_s).max() > 0.51 * TICK:
        raise VideoError(source, "the frames of its copy have other times")
    if (worst := db[0].min()) < FLOOR_DB:
        text = f"frame {db[0].argmin()} of its copy has {worst:.1f} dB, less than {FLOOR_DB:g}"
        raise VideoError(source, f"{text}: give a lower --crf")
    for way, other in zip((-1, 1), db[1:]):
        nearer = np.nan_to_num(other - db[0])
        runs = np.convolve(nearer, np.full(RUN, 1 / RUN), "valid")[: max(0, len(nearer) - RUN + 1)]
        if nearer.max() > NEARER_DB or runs.max(initial=0) > SHIFTED_DB:
            row = int(nearer.argmax())
            raise VideoError(source, f"frame {row} of its copy shows frame {row + way}")
    if grid > 1 and len(stray := _off_grid(frame_table(target), grid)):
        raise VideoError(source, f"other pictures need frame {stray[0]} of its copy, off the grid")


def _psnr_db(source: str, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """PSNR [3, T] of each copied frame to its own, the one before, the one after; seconds [T]."""
    rows: list[list[float]] = []
    times_s, old, new = [], None, None
    with open_video(target) as (container, stream):
        for image, frame in zip_longest(iter_frames(source), container.decode(stream)):
            if image is None or frame is None or frame.is_corrupt:
                raise VideoError(source, f"its copy ends or is damaged at frame {len(rows)}")
            now = scaled(image, frame.width, frame.height).to_ndarray()
            copied = frame.to_ndarray()
            rows.append([psnr_db(now, copied), psnr_db(old, copied), np.nan])
            if new is not None:
                rows[-2][2] = psnr_db(now, new)
            old, new = now, copied
            times_s.append(frame.pts * float(stream.time_base))
    return np.array(rows).T, np.array(times_s) - times_s[0]


def psnr_db(one: np.ndarray | None, other: np.ndarray) -> float:
    """PSNR of two pictures; below a hundredth of a grey level's square all are alike."""
    if one is None:
        return np.nan
    error = np.subtract(one, other, dtype=np.float32).ravel()
    return 10 * np.log10(255**2 / max(float(error @ error) / error.size, 0.01))


def _off_grid(table: FrameTable, grid: int) -> np.ndarray:
    """Rows off the grid that another picture may need; the last of a group serves its own only."""
    last = np.append(table.is_key[1:], True)
    return np.flatnonzero(table.referenced & ~last & (np.arange(table.n_frames) % grid > 0))


def saved(
    targets: Targets, bad: Container[str] = (), grid: int = 1, videos: int = 8, seed: int = 0
) -> list[str]:
    """What the copies but the `bad` save, in words: bytes of all, CPU time of a clip of some.

    A clip is 16 frames, stride 4, at a random place on the grid, the same in both files.
    """
    from vidlearn.decode import frames_at  # loads torch, which the processes do without
    from vidlearn.sample import ClipSpec, clip_indices

    there, mb = np.array([source not in bad for source in targets], bool), np.zeros(2)
    for pair in compress(targets.items(), there):
        mb += np.array([size_bytes(path) for path in pair]) / 1e6
    rng, spec = np.random.default_rng(seed), ClipSpec(start_grid=grid)
    ms = np.zeros(2)
    chosen = rng.permutation(np.flatnonzero(there))[:videos].tolist()
    for source in (targets.sources[i] for i in chosen):
        old = address(source)
        rows = clip_indices(spec, frame_table(old).n_frames, rng=rng)[0]
        for side, path in enumerate((old, str(targets[source]))):
            table, seconds = frame_table(path), []
            for _ in range(2):
                began = time.process_time()
                frames_at(path, rows, backend="pyav", table=table)
                seconds.append(time.process_time() - began)
            ms[side] += 1e3 * min(seconds) / len(chosen)
    where = f", starts on multiples of {grid}" if grid > 1 else ""
    clip = f"16 frames, stride 4{where}, PyAV, mean of {len(chosen)}"
    told = [f"bytes: {mb[0]:.2f} -> {mb[1]:.2f} MB ({mb[1] / mb[0]:.2f})"]
    told += [f"decoding: {ms[0]:.1f} -> {ms[1]:.1f} ms of CPU a clip ({clip})"]
    return told + [f"train with --start-grid {grid}"] * (grid > 1)
