"""Our loader against the published one, paired in one run: prints JSON, and writes the record.

    .venv/bin/python tools/bench_loader.py [--sets 256 lean 720 1080 2160 hour] [--out FILE]

Both sides load the same clips (16 frames, stride 4, 224 pixels) of the same files with the same
number of worker processes, and take turns. The files are videos of VIDLEARN_VIDEOS, for 340 x 256
also one of each class in VIDLEARN_LABELLED, scaled to one size and encoded as H.264 with a key
frame every 250 frames, as most videos from the net are; and their copies by `vidlearn data
transcode`. `lean` is 340 x 256 without the latter, `hour` one file of an hour that shows them all,
one after the other, forwards and backwards. Time is CPU time of all processes, from the start of
the workers to their end, for a clip. Ours ends with uint8, which the device normalises;
`normalised` says what that takes where the device is this CPU. The floor, which takes turns with
the rest, is what libavcodec alone takes for the pictures that must be decoded, their bytes in
memory, in as many processes at a time. The published loader is `published_loader.py`; its index is
none, ours is made before.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from published_loader import Order, published_loader
from vidlearn import measure
from vidlearn.batch import ClipDataset, collate
from vidlearn.datasets import Manifest, folder_manifest, guard, index, transcode
from vidlearn.datasets.write import encode
from vidlearn.sample import ClipSpec
from vidlearn.storage import FrameTable, frame_table, iter_frames, open_video
from vidlearn.transform import ClipTransform, normalize

SMALL, SIZE = (340, 256), 224
SIZES = {"256": SMALL, "lean": SMALL, "720": (1280, 720), "1080": (1920, 1080)}
SIZES |= {"2160": (3840, 2160), "hour": SMALL}
FRAMES = {"256": 300, "lean": 300, "720": 240, "1080": 240, "2160": 160, "hour": 30 * 3600}
PAIRS = {"2160": 3, "hour": 3}  # others 5
SHARE = {"256": 1, "lean": 1, "2160": 32, "hour": 4}  # of the clips, one in so many; others 16
NET = {"sc_threshold": "40", "mbtree": "1"}  # x264 as it is when nobody sets anything
Clips = list[tuple[str, np.ndarray]]  # (file, rows) of each clip
Keys = list[tuple[int, int]]  # (epoch, sample) of each clip


def sources(name: str) -> list[Path]:
    """Real videos of 100 frames or more, wider than high, the same every time."""
    folder = Path(os.environ.get("VIDLEARN_VIDEOS", "../shared/videos/singles")) / "ok"
    labelled = Path(os.environ.get("VIDLEARN_LABELLED", "../shared/videos/ucf101-6"))
    tables = [frame_table(path) for path in sorted(folder.glob("*"))]
    found = [t for t in tables if t.n_frames >= 100 and t.width > t.height]
    if len(found) < 4:
        raise SystemExit(f"{folder}: {len(found)} videos of 100 frames. Set VIDLEARN_VIDEOS")
    found.sort(key=lambda table: -table.n_frames)
    if name not in ("256", "hour"):
        return [Path(table.path) for table in found[: 2 if name == "2160" else 4]]
    longest: dict[str, FrameTable] = {}
    for row in folder_manifest(labelled / "videos").rows:
        table = frame_table(row.path)
        if table.n_frames > (longest[row.label].n_frames if row.label in longest else 99):
            longest[row.label] = table
    return [Path(table.path) for table in (*found, *longest.values())]


def scaled(source: Path, width: int, height: int, n: int) -> Iterator[np.ndarray]:
    """n frames of a video, forwards and backwards, in this size."""
    frames = []
    for image in islice(iter_frames(source), n):
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame = frame.reformat(width, height, "rgb24", interpolation="BICUBIC", threads=1)
        frames.append(frame.to_ndarray())
    return islice(cycle(frames + frames[-2:0:-1]), n)


def make(folder: Path, name: str) -> Manifest:
    """The videos of one size, their index, and their layered copies."""
    found, n = sources(name), FRAMES[name]
    files = {f"{source.name}.mp4": [source] for source in found}
    if name == "hour":
        files, n = {"hour.mp4": found}, -(-n // len(found))
    for file, shown in files.items():
        if not (path := folder / name / file).exists():
            frames = chain.from_iterable(scaled(source, *SIZES[name], n) for source in shown)
            encode(path, frames, 30.0, gop=250, b_frames=3, options=NET)
    data = folder_manifest(folder / name)
    transcode.transcode_all(data, folder / f"{name}-layered", transcode.Plan("layered", 256))
    return data


def kbit_per_s(data: Manifest) -> list[int]:
    """Of the files: mean, least, greatest."""
    tables = [frame_table(row.path) for row in data.rows]
    rates = np.array([8e-3 * t.bytes.sum() * t.fps / t.n_frames for t in tables])
    return [round(float(x)) for x in (rates.mean(), rates.min(), rates.max())]


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    every = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in every)


def timed(batches: Callable[[], Iterable[Any]], clips: int) -> tuple[float, float]:
    """CPU and wall milliseconds a clip."""
    began, mark = cpu_s(), time.perf_counter()
    for _ in batches():
        pass
    return 1e3 * (cpu_s() - began) / clips, 1e3 * (time.perf_counter() - mark) / clips


def ours(dataset: ClipDataset, keys: Keys, batch: int, workers: int) -> Any:
    """Our loader over these clips."""
    groups = [keys[i : i + batch] for i in range(0, len(keys), batch)]
    return guard.Loader(dataset, groups, collate, workers, room_bytes=batch * dataset.clip_bytes)


def normalised(batches: Any) -> Iterator[torch.Tensor]:
    """As the published loader gives them."""
    return (normalize(batch.clips) for batch in batches)


def orders(dataset: ClipDataset, keys: Keys) -> list[Order]:
    """The same clips for the published loader."""
    chosen = [dataset.choose(*key) for key in keys]
    return [(table.path, rows, box, flip) for table, rows, box, flip in chosen]


def needed(table: FrameTable, rows: np.ndarray) -> np.ndarray:
    """bool [frames]: what must be decoded for these rows, each group from its key frame on."""
    order, groups, asked = table.decode_order, table.start[rows], np.zeros(table.n_frames, bool)
    for start in np.unique(groups):  # up to the last picture that is wanted of each
        asked |= (order >= order[start]) & (order <= order[rows[groups == start]].max())
    return asked & (table.referenced | np.isin(np.arange(table.n_frames), rows))


def floor_s(clips: Clips) -> float:
    """CPU seconds of libavcodec alone for the pictures that these clips need."""
    total, tables = 0.0, {path: frame_table(path) for path in {path for path, _ in clips}}
    for path, rows in clips:
        table, first = tables[path], int(tables[path].ticks[tables[path].start[rows[0]]])
        asked = needed(table, rows)
        ticks, span = {*table.ticks[asked].tolist()}, int(np.ptp(table.decode_order[asked]))
        with open_video(path) as (container, stream):
            container.seek(first, stream=stream)
            read = container.demux(stream)
            packets = [next(packet for packet in read if packet.pts == first)]
            packets += [packet for packet in islice(read, span) if packet.pts in ticks]
            assert len(packets) == len(ticks)
            began = time.process_time()
            for packet in packets:
                packet.decode()
            stream.codec_context.decode(None)
            total += time.process_time() - began
    return total


def floor_ms(clips: Clips, workers: int) -> float:
    """The same a clip in ms, with as many processes at work as the loaders have."""
    shares = [clips[i::workers] for i in range(workers)]
    with get_context("fork").Pool(workers) as pool:
        return 1e3 * sum(pool.map(floor_s, shares, 1)) / len(clips)


def compare(name: str, data: Manifest, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One size: both sides, and ours on the layered copies."""
    copies = folder_manifest(folder / f"{name}-layered")
    n, pairs = args.clips // SHARE.get(name, 16), args.pairs or PAIRS.get(name, 5)
    keys = [(k // len(data), k % len(data)) for k in range(n)]
    batch = 8 if SIZES[name] == SMALL else 4
    spec, look = ClipSpec(start_grid=4), ClipTransform(SIZE)
    plain, layered = (ClipDataset(d, spec, look, backend="auto") for d in (data, copies))
    for dataset in (plain, layered):
        index.build(dataset.manifest, jobs=1)
    asked, small = orders(plain, keys), orders(layered, keys)
    check(asked, ours(plain, keys, batch, 0))
    decord = ClipDataset(data, spec, look)
    for path, *_ in (*asked, *small):
        assert frame_table(path).seekable  # and decord's way remembers it
    more = max(1, args.clips // n)  # times the layered copies of large videos, or the start counts
    sides: dict[str, tuple[Callable[[], Any], int]] = {
        "published": (lambda: published_loader(asked, SIZE, batch, args.workers), n),
        "ours": (lambda: ours(plain, keys, batch, args.workers), n),
        "ours, normalised": (lambda: normalised(ours(plain, keys, batch, args.workers)), n),
        "ours, decord": (lambda: ours(decord, keys, batch, args.workers), n),
        "ours, layered": (lambda: ours(layered, keys * more, batch, args.workers), n * more),
    }
    least = {"ours": asked, "ours, layered": small}
    rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    floors: dict[str, list[float]] = {side: [] for side in least}
    for number in range(pairs):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            rounds[side].append(timed(*sides[side]))
            if side in least:
                clips = [(path, rows) for path, rows, *_ in least[side]]
                floors[side].append(floor_ms(clips, args.workers))
    return {
        "pairs": pairs,
        "files": len(data),
        "kbit_per_s": kbit_per_s(data),
        "clips": n,
        "batch": batch,
        "floor_ms": {side: round(float(np.median(ms)), 2) for side, ms in floors.items()},
        "sides": summary(rounds, floors),
    }


def check(asked: list[Order], batches: Any) -> None:
    """Do both sides give the same clips, within a grey level of 2/255 after resizing?"""
    for theirs, batch in zip(
        published_loader(asked[:8], SIZE, len(next(iter(batches)).clips), 0), batches
    ):
        near = (normalize(batch.clips) - theirs).abs().max()
        assert near < 1.1 / 255 / 0.224, f"the clips differ by {near}"
        break


def spread(ratios: np.ndarray) -> list[float]:
    """Middle, least, greatest."""
    return [round(float(x), 2) for x in (np.median(ratios), ratios.min(), ratios.max())]


def summary(rounds: dict[str, list[tuple[float, float]]], floors: dict[str, list[float]]) -> Any:
    """Medians, and the ratios of the pairs: middle, least, greatest."""
    base, told = np.array(rounds["published"]), {}
    for side, found in rounds.items():
        both = np.array(found)
        (cpu, wall), ratios = np.median(both, 0), base / both
        told[side] = {"cpu_ms": round(cpu, 2), "wall_ms": round(wall, 2)}
        told[side] |= {"times_cpu": spread(ratios[:, 0]), "times_wall": spread(ratios[:, 1])}
        if side in floors:
            told[side]["over_floor"] = spread(both[:, 0] / floors[side])
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--pairs", type=int, help="by default 5, of the largest files 3")
    parser.add_argument("--clips", type=int, default=512, help="of 340 x 256; of others fewer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for the videos; by default a new one")
    parser.add_argument("--out", type=Path, default=Path("book/_static/records/loader.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        found = {name: compare(name, make(folder, name), folder, args) for name in args.sets}
    about = {"machine": measure.machine_card(), "workers": args.workers}
    text = json.dumps({**about, "sets": found}, indent=1)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
