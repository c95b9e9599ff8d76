"""Clips from shards against the same clips from files: CPU time, and files that are opened.

    .venv/bin/python tools/bench_shards.py DATA [--clips 400] [--repeats 7]

DATA is a folder of mp4 videos. Prints JSON. Both sides have an index and are read by "auto"
in one process, whose CPU time is taken after a warm-up, files and shards in turn: so the pages are
in memory, and what shared disks take to open a file is not in the times but in the counts. A clip
has 16 frames, stride 4, 224 pixels. Opens are those of Python, which reads a clip directly.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path

from vidlearn import measure
from vidlearn.batch import ClipDataset, ShardedSampler
from vidlearn.datasets import Manifest, index, lanes, open_data, shards, write_manifest
from vidlearn.sample import ClipSpec
from vidlearn.transform import ClipTransform

BATCH = 16
opened: list[str] = []


def heard(event: str, given: tuple) -> None:
    """Notes the files that Python opens to read."""
    if event == "open" and isinstance(given[0], str):
        opened.append(given[0])


def ms_per_clip(data: Manifest, keys: list[tuple[int, int]]) -> tuple[float, list[str]]:
    """CPU time of a clip in ms, and what was opened, a name for each time."""
    dataset = ClipDataset(data, ClipSpec(), ClipTransform(224), backend="auto")
    before, began = len(opened), time.process_time()
    for key in keys:
        assert dataset[key]["valid"], dataset[key]["cause"]
    return 1e3 * (time.process_time() - began) / len(keys), opened[before:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--per-shard", type=int, default=32)
    given = parser.parse_args()
    sys.addaudithook(heard)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = open_data(given.data).training()
        path, n, bad = shards.shard_all(data, root / "s", videos_per_shard=given.per_shard)
        assert not bad, bad
        told = open_data(path)
        source = {row.path.removeprefix(f"{given.data}/"): row for row in data.rows}
        rows = [source[row.source_id] for row in told.rows]  # sample i is the same on both sides
        sides = {"files": open_data(write_manifest(root / "files.csv", rows)), "shards": told}
        order = ShardedSampler(len(told), BATCH, lanes=lanes.of(told, BATCH))
        keys = [*islice(chain.from_iterable(order), given.clips)]
        for side in sides.values():
            index.build(side)
        runs: dict[str, list[float]] = {side: [] for side in sides}
        opens: dict[str, list[str]] = {}
        for _ in range(given.repeats + 1):
            for side in sides:
                ms, names = ms_per_clip(sides[side], keys)
                opens.setdefault(side, names)  # tars stay open, so the first time counts
                runs[side].append(ms)
        found = {}
        for side, times in runs.items():
            times = times[1:]  # the first read the tables
            names = [x for x in opens[side] if x.endswith((".mp4", ".tar"))]
            found[side] = {
                "cpu_ms_per_clip": [round(f(times), 2) for f in (statistics.median, min, max)],
                "opens": len(names),
            }
        pairs = [b / a for a, b in zip(*(times[1:] for times in runs.values()))]
        print(json.dumps({
            "machine": measure.machine_card(), "videos": len(told), "tars": n,
            "clips": given.clips, **found,
            "shards_to_files": [round(f(pairs), 3) for f in (statistics.median, min, max)],
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
