"""Videos of a data set, put into tar files of equal size: shards, in the format of WebDataset.

Input: a manifest. Output: a folder of tars, written by the library `webdataset`, and a manifest
whose rows lie in them. Member KEY.mp4 (or what the video's ending is) is the video, byte by byte;
KEY.json tells its path and row, or rows. Videos are shuffled: each tar is a sample of its split.
Traded: a video is in memory while it is written; the same call goes on, but a tar that it had in
hand begins anew. Chapter 5.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vidlearn.datasets import tars
from vidlearn.datasets.files import write_manifest
from vidlearn.datasets.lanes import LANES
from vidlearn.datasets.manifest import MARK, Manifest, Row
from vidlearn.datasets.quarantine import Quarantine
from vidlearn.datasets.transcode import claim
from vidlearn.datasets.write import outdated
from vidlearn.errors import ConfigError, VideoError, VidlearnError

STAMP, BAD, PART = "shards.json", "quarantine.jsonl", ".part"
VERSION = 1  # of the layout


@dataclass(frozen=True)
class Shard:
    """A tar to write: its name, and of each video the key and the rows."""

    name: str
    videos: tuple[tuple[str, tuple[Row, ...]], ...]


def shard_all(
    data: Manifest, out: Path, *, mib: float = 512.0, videos_per_shard: int | None = None,
    seed: int = 0, jobs: int = 4, progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, int, dict[str, str]]:  # fmt: skip
    """Write the tars of `data` that are not in `out` yet; its manifest, how many, the bad ones.

    A tar has about `mib`, or at most `videos_per_shard`; jobs: tars at a time; progress(done, all).
    ConfigError: a choice that cannot be, or no webdataset. VidlearnError: the folder belongs to
    something else or to another call, or a file cannot be written.
    """
    most = 1 if videos_per_shard is None else videos_per_shard
    if min(jobs, most) < 1 or not (mib > 0 and math.isfinite(mib)):
        text = f"--jobs {jobs}, --mib {mib:g}, --videos-per-shard {videos_per_shard}"
        raise ConfigError(f"{text}: give numbers above 0")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give 0 or more")
    suffix = ".parquet" if Path(data.source).suffix.lower() == ".parquet" else ".csv"
    shards, bad = plan(data, mib, videos_per_shard, seed)
    with claim(out, STAMP, _stamp(data, shards)):
        for left in out.glob(f".*{PART}"):  # of a call that was killed
            left.unlink()
        pool = ThreadPoolExecutor(jobs)
        try:
            found = pool.map(partial(write, out=out, root=_root(data)), shards)
            for done, causes in enumerate(found, 1):
                bad |= causes
                if progress:
                    progress(done, len(shards))
        finally:
            pool.shutdown(cancel_futures=True)  # an error waits for the tars in hand
        (out / BAD).unlink(missing_ok=True)
        Quarantine(out / BAD, len(data), max_share=1.0).add(list(bad.items()))
        rows = _rows(shards, out, _root(data))
        if (first := next(rows, None)) is None:
            raise VidlearnError(f"{data.source}: none of its videos can be read; see {out / BAD}")
        manifest = write_manifest(out / f"manifest{suffix}", chain([first], rows))
    return manifest, len(shards), bad


def plan(
    data: Manifest, mib: float, videos_per_shard: int | None, seed: int
) -> tuple[list[Shard], dict[str, str]]:
    """The shards of a data set, and why videos are in none of them. All rows of a video stay.

    The number of shards of a split is rounded up, to a power of two or, from LANES on, to a
    multiple of it, as far as there are videos: then many numbers of nodes share them equally.
    """
    rows_of: dict[str, list[Row]] = {}
    for row in data.rows:
        rows_of.setdefault(row.path, []).append(row)
    splits: dict[str, list[tuple[str, tuple[Row, ...]]]] = {}
    bytes_of, bad = dict[str, int](), dict[str, str]()
    for number, (path, rows) in enumerate(rows_of.items()):
        if MARK.fullmatch(path):
            text = f"{path}: pictures cannot go into shards"
            raise ConfigError(f"{text}. Write videos of them: vidlearn.datasets.write.encode")
        split = rows[0].split
        try:
            size = tars.size_bytes(path)
        except (OSError, VideoError) as error:
            bad[path] = error.cause if isinstance(error, VideoError) else str(error.strerror)
            continue
        if not size:
            bad[path] = "it is empty"
            continue
        bytes_of[split] = bytes_of.get(split, 0) + size
        splits.setdefault(split, []).append((f"{number:08d}", tuple(rows)))
    shards, taken = list[Shard](), dict[str, int]()
    for split, videos in sorted(splits.items()):
        wanted = bytes_of[split] / (mib * 2**20)
        if videos_per_shard:
            wanted = len(videos) / videos_per_shard
        order = np.random.default_rng((seed, len(shards))).permutation(len(videos))
        prefix = re.sub(r"[^\w]", "_", split) + "-" * bool(split)
        n = _rounded(math.ceil(wanted), len(videos))
        # Longer and shorter tars alternate: then lanes of any number of them are equal.
        for chosen in np.split(order, (np.arange(1, n) * len(videos)) // n):
            taken[prefix] = number = taken.get(prefix, -1) + 1
            name = f"{prefix}{number:06d}.tar"
            shards.append(Shard(name, tuple(videos[i] for i in chosen)))
    return shards, bad


def _rounded(wanted: int, most: int) -> int:
    wanted = max(1, wanted)
    rounded = -(-wanted // LANES) * LANES if wanted > LANES else 1 << (wanted - 1).bit_length()
    return min(rounded, most)


def _stamp(data: Manifest, shards: list[Shard]) -> str:
    """What tells these shards from others."""
    told = hashlib.sha256()
    for shard in shards:
        told.update(repr(shard).encode())
    about = {"version": VERSION, "tars": len(shards), "rows": len(data)}
    return json.dumps({**about, "sha256": told.hexdigest()})


def _root(data: Manifest) -> str:
    """The folder from which a video's path is told."""
    source = Path(data.source).absolute()
    return str(source if source.is_dir() else source.parent)


def write(shard: Shard, out: Path, root: str) -> dict[str, str]:
    """Write a tar, whole or not at all, unless it is there; why videos of it cannot be read.

    VidlearnError: it cannot be written. ConfigError: no webdataset.
    """
    target, bad = out / shard.name, dict[str, str]()
    if not any(outdated(rows[0].path, target) for _, rows in shard.videos):
        there, _ = tars.table(str(target), tars.stamp_of(str(target)))
        gone = [rows for key, rows in shard.videos if _member(key, rows) not in there]
        return {rows[0].path: "it could not be read when its shard was written" for rows in gone}
    part = target.with_name(f".{target.name}{PART}")
    try:
        with open(part, "wb") as file:
            with _writer(file) as writer:
                for key, rows in shard.videos:
                    try:
                        writer.write(_sample(key, rows, root))
                    except VideoError as error:
                        bad[rows[0].path] = error.cause
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        text = f"{target}: cannot be written ({error.strerror or error})"
        raise VidlearnError(f"{text}. Make room, or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)
    return bad


def _writer(file: Any) -> Any:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        remedy = "Install it: pip install 'vidlearn[shards]'"
        raise ConfigError(f"writing shards needs the package webdataset. {remedy}") from error
    # GNU's format stores more than 8 GiB; no time of writing, so that equal data give equal bytes.
    return TarWriter(file, encoder=False, mtime=0, format="GNU_FORMAT")


def _sample(key: str, rows: tuple[Row, ...], root: str) -> dict[str, Any]:
    """What webdataset is given of a video. VideoError: it cannot be read."""
    path = rows[0].path
    try:
        video = tars.content(path)
    except OSError as error:
        raise VideoError(path, str(error.strerror)) from error
    told = [asdict(_traced(row, root)) for row in rows]
    for row in told:
        del row["path"]
    about = {"path": _name(path, root), **told[0], **({"rows": told} if len(told) > 1 else {})}
    ending = _member(key, rows).partition(".")[2]
    return {"__key__": key, ending: video, "json": json.dumps(about).encode()}


def _name(path: str, root: str) -> str:
    """A path as it is told: below the data's folder, from there."""
    below = os.path.relpath(path, root)
    return path if below.startswith(os.pardir) else below


def _traced(row: Row, root: str) -> Row:
    """A row that still tells its source when its path is another."""
    return replace(row, source_id=row.source_id or _name(row.path, root))


def _member(key: str, rows: tuple[Row, ...]) -> str:
    """A video's name in its tar, which keeps its ending."""
    return key + (Path(rows[0].path).suffix or ".mp4")


def _rows(shards: list[Shard], out: Path, root: str) -> Iterator[Row]:
    """The rows of what the tars hold, in their order."""
    for shard in shards:
        tar = str(out / shard.name)
        there, _ = tars.table(tar, tars.stamp_of(tar))
        for key, rows in shard.videos:
            if (member := _member(key, rows)) in there:
                yield from (replace(_traced(row, root), path=f"{tar}/{member}") for row in rows)
