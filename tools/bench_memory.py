"""Does a loader grow? The memory of all its processes while it loads 100,000 tiny clips.

    .venv/bin/python tools/bench_memory.py [--clips 100000] [--workers 2] [--every 5000]

Prints JSON, for book/_static/records/memory.json: every 5,000 clips, in MiB, the sum of the RSS of
the trainer and its workers, that of their PSS (see bench_manifest.py), and their PSS that belongs
to no file; and the growth from the first such mark on, in per cent of it. The clips, 4 frames of
16 x 16 pixels, come from 6 made videos of 300 frames, so that loading is all that happens, under
20,000 names with an index: what a loader remembers of each is part of the test.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench_manifest import memory_mib, processes
from vidlearn import measure
from vidlearn.batch import ClipDataset, ShardedSampler, make_loader
from vidlearn.datasets import Manifest, Row, index
from vidlearn.datasets.write import encode
from vidlearn.sample import ClipSpec
from vidlearn.transform import ClipTransform

KINDS = {"rss": "Rss", "pss": "Pss", "pss_anonymous": "Pss_Anon"}
BATCH = 50


def mark(clips: int, began_s: float) -> dict[str, float]:
    """What all processes hold now."""
    everyone = processes()
    found = {kind: round(sum(memory_mib(everyone, name)), 1) for kind, name in KINDS.items()}
    return {"clips": clips, "seconds": round(time.perf_counter() - began_s, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=5_000)
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--names", type=int, default=20_000, help="under which the videos are found"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rng, rows = np.random.default_rng(0), []
        for i in range(6):
            picture = rng.integers(0, 255, (16, 16, 3), np.uint8)
            encode(Path(folder) / "0" / f"{i}.mp4", [picture] * 300, 25)
        for n in range(given.names):  # links to the folder: other names, the same files
            if n % 6 == 0 and n:
                (Path(folder) / str(n // 6)).symlink_to("0")
            rows.append(Row(f"{folder}/{n // 6}/{n % 6}.mp4", str(n % 6)))
        data = Manifest(tuple(rows), tuple(map(str, range(6))), folder)
        index.build(data)
        dataset = ClipDataset(
            data, ClipSpec(frames=4, stride_frames=1), ClipTransform(16), 0, given.backend
        )
        loader = make_loader(dataset, ShardedSampler(len(dataset), BATCH), workers=given.workers)
        marks, began_s = [], time.perf_counter()
        for i, batch in enumerate(loader, 1):
            assert batch.valid.all()
            if i * BATCH % given.every == 0:
                marks.append(mark(i * BATCH, began_s))
                print(marks[-1], file=sys.stderr)
            if i * BATCH >= given.clips:
                break
    first = marks[0]
    grown = {
        kind: round(100 * (max(m[kind] for m in marks) / first[kind] - 1), 2) for kind in KINDS
    }
    record: dict[str, Any] = {"machine": measure.machine_card(), "backend": given.backend}
    record |= {"workers": given.workers, "marks_mib": marks, "most_growth_percent": grown}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
