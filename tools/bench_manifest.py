"""Ten million videos: what it takes to list them, to open the list, and to load from it.

    .venv/bin/python tools/bench_manifest.py [--rows 10000000] [--workers 8] [--folder FOLDER]

Prints JSON, for book/_static/records/manifest.json. Every part is a process of its own, so that its
peak is its own, and its time counts from the start of Python; cpu_s is what this process alone
computed. The paths differ and can be opened: 10,000 links to folders lead to one folder of 1,000
copies of a small video. Memory of several processes is the sum of their PSS: a page that n share
counts 1/n in each, so the sum counts it once; the mapped file counts as far as it was touched.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PER_FOLDER, CLASSES = 1000, 400


def processes(pid: str = "self") -> list[int]:
    """A process and all below it."""
    found = [int(Path("/proc", pid).resolve().name)]
    for task in Path(f"/proc/{found[0]}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += processes(child)
    return found


def memory_mib(pids: list[int], kind: str = "Pss") -> list[float]:
    """What the kernel's smaps_rollup says of each: Pss, Rss, Pss_Anon, Pss_File ..."""
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    lines = (next(x for x in text.splitlines() if x.startswith(f"{kind}:")) for text in texts)
    return [int(line.split()[1]) / 1024 for line in lines]


def make_videos(folder: Path, rows: int) -> None:
    """A small video under as many names as there are rows."""
    from vidlearn.datasets.write import encode

    first = folder / "videos" / "real" / name(0)
    encode(first, [np.full((32, 32, 3), 5 * i, np.uint8) for i in range(32)], 25)
    for i in range(1, PER_FOLDER):
        shutil.copy(first, first.with_name(name(i)))
    for i in range(-(-rows // PER_FOLDER)):
        (folder / "videos" / f"part_{i:06d}").symlink_to("real")


def name(i: int) -> str:
    """A file's name, as long as those of public data sets."""
    return f"some_video_{i:011d}_{i:06d}_{i + 10:06d}.mp4"


def listed(folder: Path, rows: int) -> Iterator[Any]:
    """The rows, one after the other: 400 classes, one in twenty for validation."""
    from vidlearn.datasets import Row

    names = [name(i) for i in range(PER_FOLDER)]
    for i in range(rows):
        path = f"{folder}/videos/part_{i // PER_FOLDER:06d}/{names[i % PER_FOLDER]}"
        split = "train" if i % 20 else "val"
        yield Row(path, f"class {i * 7919 % CLASSES}", split, 0.0, None, f"source {i // 10:07d}")


def write(folder: Path, rows: int, suffix: str) -> dict[str, Any]:
    """Write the manifest from an iterator of rows."""
    from vidlearn.datasets import write_manifest

    path = write_manifest(folder / f"all.{suffix}", listed(folder, rows))
    return {"file_mb": round(path.stat().st_size / 1e6)}


def opened(folder: Path) -> dict[str, Any]:
    """Open it: for the first time, which checks it and writes the Arrow file, or again."""
    from vidlearn.datasets import open_data

    data = open_data(folder / "all.parquet")
    size = (folder / ".all.parquet.arrow").stat().st_size
    return {"rows": len(data), "train_rows": len(data.training()), "arrow_mb": round(size / 1e6)}


def load(folder: Path, workers: int, batches_more: int) -> dict[str, Any]:
    """The first batch of a training run and what all processes hold then, later, and at most."""
    import torch

    from vidlearn.batch import ClipDataset, ShardedSampler, make_loader
    from vidlearn.datasets import open_data
    from vidlearn.sample import ClipSpec
    from vidlearn.transform import ClipTransform

    torch.set_num_threads(1)
    data = open_data(folder / "all.parquet").training()
    dataset = ClipDataset(data, ClipSpec(frames=4, stride_frames=2), ClipTransform(16), 0, "pyav")
    batches = iter(make_loader(dataset, ShardedSampler(len(dataset), 32), workers=workers))
    assert next(batches).valid.all()
    found: dict[str, Any] = {"first_batch_s": age_s()}
    everyone = processes()
    assert len(everyone) == workers + 1
    found["pss_mib_first_batch"] = sum(memory_mib(everyone))
    for _ in range(batches_more):
        assert next(batches).valid.all()
    if not batches_more:
        return found
    found["clips"] = 32 * (1 + batches_more)
    found["pss_mib_after"] = sum(memory_mib(everyone))
    found["pss_mib_after_of_files"] = sum(memory_mib(everyone, "Pss_File"))
    # The worst: every page of the file in one of them, as at the end of an epoch.
    for column in data.rows.table.columns:  # type: ignore[attr-defined]
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                if buffer is not None:
                    np.frombuffer(buffer, np.uint8)[::4096].max(initial=0)
    found["pss_mib_whole_file"] = sum(memory_mib(everyone))
    return found


def listed_once(folder: Path) -> dict[str, Any]:
    """What `check`, `index` and `transcode` begin with: each video once, and where a copy lies."""
    from vidlearn.datasets import open_data
    from vidlearn.datasets.transcode import Targets

    data = open_data(folder / "all.parquet")
    found: dict[str, Any] = {"videos": len(data.paths), "paths_s": age_s()}
    return found | {"targets": len(Targets(data, folder / "copies"))}


def read_table(folder: Path) -> dict[str, Any]:
    """The plain way: all of the Parquet file in memory, before the workers are forked."""
    from pyarrow import parquet

    table = parquet.read_table(folder / "all.parquet", use_threads=False)
    return {"rows": len(table), "anonymous_mib": memory_mib(processes(), "Pss_Anon")[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", help="these parts, of files that --folder holds")
    parser.add_argument("--part", help="for its own use: run one part and print its numbers")
    given = parser.parse_args()
    parts = {
        "write_csv": lambda: write(given.folder, given.rows, "csv"),
        "write_parquet": lambda: write(given.folder, given.rows, "parquet"),
        "load_unconverted": lambda: load(given.folder, given.workers, 0),
        "open": lambda: opened(given.folder),
        "load": lambda: load(given.folder, given.workers, 300),
        "convert": lambda: opened(given.folder),
        "listed_once": lambda: listed_once(given.folder),
        "read_table": lambda: read_table(given.folder),
        "stats": lambda: command("stats", given.folder / "all.parquet"),
        "csv_to_parquet": lambda: command(
            "manifest", "list", given.folder / "all.csv", "--out", given.folder / "again.parquet"
        ),
    }
    if given.part:
        return print(json.dumps(measured(parts[given.part])))
    from vidlearn import measure

    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        if not given.only:
            (folder / "videos" / "real").mkdir(parents=True)
            make_videos(folder, given.rows)
        record = {"machine": measure.machine_card(), "rows": given.rows, "workers": given.workers}
        for part in given.only or parts:
            if part in ("convert", "load_unconverted"):
                (folder / ".all.parquet.arrow").unlink(missing_ok=True)
            words = ["--rows", given.rows, "--workers", given.workers, "--folder", folder]
            call = [sys.executable, __file__, "--part", part, *words]
            said = subprocess.check_output([*map(str, call)], text=True)
            record[part] = json.loads(said.splitlines()[-1])
            print(part, record[part], file=sys.stderr)
    print(json.dumps(record, indent=1))


def command(*words: object) -> dict[str, Any]:
    """A command of `vidlearn data`; what it says goes before the numbers."""
    from vidlearn.cli import main as vidlearn

    try:
        vidlearn(["data", *map(str, words)])
    except SystemExit as end:
        return {"status": end.code}
    return {}


def measured(part: Any) -> dict[str, Any]:
    """Seconds since the process began, its peak, and what else the part found; rounded."""
    found = part()
    numbers: dict[str, Any] = {"seconds": age_s(), "cpu_s": time.process_time()}
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak
    numbers["peak_mib"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    numbers |= found
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in numbers.items()}


def age_s() -> float:
    """Seconds since this process began."""
    began = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
