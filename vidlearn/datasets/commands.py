"""What `vidlearn data` does: make videos, list them, count, check and write them for training.

Input: folders and manifests. Output: files and lines of text; 1 where something is unreadable.
Traded: the decoders are imported for a check only, since they take seconds. Chapters 5 and 6.
"""

import filecmp
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vidlearn.datasets import synth as built_in
from vidlearn.datasets.adapters import KINDS, Left, Listing
from vidlearn.datasets.files import is_parquet, read_manifest, write_manifest
from vidlearn.datasets.folder import open_data
from vidlearn.datasets.manifest import Seen, file_of
from vidlearn.errors import ConfigError


def synth(
    folder: Positional[Path], train: int = 2000, val: int = 480, test: int = 480, far: int = 480,
    seed: int = 0,
) -> None:  # fmt: skip
    """Make the built-in videos, so many a split; a complete set is left alone."""
    print(built_in.make_shown(folder, train=train, val=val, test=test, far=far, seed=seed))


def manifest(
    kind: Positional[str], root: Positional[Path | None] = None, out: Path | None = None
) -> None:
    """Write ROOT/manifest.csv of a data set as it was downloaded; say what is missing.

    Args:
        kind: KINDS. It may be left out for folders named by split and class.
        root: folder of the data set; for list, the file.
        out: file to write in place of ROOT/manifest.csv; .parquet suits millions of rows.
    """
    if root is None and kind in KINDS and not Path(kind).exists():
        raise ConfigError(f"{kind}: no folder is given. Write: vidlearn data manifest {kind} ROOT")
    kind, root = ("folder", Path(kind)) if root is None else (kind, root)
    listing = Listing(kind, root)
    path = out or (root.parent if root.is_file() else root) / "manifest.csv"
    if path.exists() and path.resolve() == root.resolve():
        raise ConfigError(f"{path}: would be written over. Choose another file with --out")
    made = write_manifest(path if out else path.with_name(f".new-{path.name}"), listing)
    if not out:
        if path.exists() and not filecmp.cmp(made, path, shallow=False):
            made.unlink()
            text = f"{path}: is there and says something else"
            raise ConfigError(f"{text}. Delete it, or choose another file with --out")
        made.replace(path)
    rows = f", {listing.rows} segments" * (listing.rows != len(listing.videos))
    if is_parquet(path):
        read_manifest(path)  # so that the first run finds it checked, and ready to be mapped
    print(f"{path}: {len(listing.videos)} videos{rows}, {len(listing.classes)} classes")
    print(*listing.notes(), sep="\n", end="\n" * bool(listing.notes()))


# The parser takes its help from here.
manifest.__doc__ = (manifest.__doc__ or "").replace("KINDS", f"one of {', '.join(KINDS)}")


def stats(data: Positional[Path]) -> None:
    """Count the rows, videos, classes, splits and hours of a data set, and what is missing."""
    found = open_data(data)
    videos, sources, gone = Seen(), Seen(), Left()
    splits: Counter[str] = Counter()
    unlabelled = segments = 0
    length_s, last = 0.0, ""
    for row in found.rows:  # ten million fit: of each, 30 bytes are kept
        if videos.add(row.path) and not os.path.exists(file_of(row.path)):
            gone.add(row.path)
        if (source := row.source_id or row.path) != last:
            sources.add(last := source)
        splits[row.split or "none"] += 1
        unlabelled += not row.label
        if row.end_s is not None:
            segments, length_s = segments + 1, length_s + row.end_s - row.start_s
    print(f"{found.source}: {len(found)} rows of {len(videos)} videos from {len(sources)} sources")
    print(f"classes: {len(found.classes)}; rows without label: {unlabelled}")
    print("splits:", ", ".join(f"{name} {n}" for name, n in splits.items()))
    hours = f"{length_s / 3600:.3f} in {segments} segments" if segments else "not in the manifest"
    print(f"hours: {hours}; rows that go to the end of their video: {len(found) - segments}")
    print(f"missing files: {gone.rows}" + f", such as {', '.join(gone.first)}" * bool(gone.rows))


def plan(data: Positional[Path], gpus: int = 1, clips_per_s: float = 100.0) -> None:
    """Say what training on these videos takes, from a sample of 32, measured here.

    Args:
        data: folder of videos or manifest.
        gpus: how many train.
        clips_per_s: how many clips of 16 frames each takes; `vidlearn bench step` measures it.
    """
    from vidlearn.datasets.cost import needs

    if gpus < 1 or not 0 < clips_per_s < float("inf"):
        raise ConfigError(f"--gpus {gpus}, --clips-per-s {clips_per_s:g}: give numbers above 0")
    found = needs(open_data(data), gpus, clips_per_s)
    print(f"{data}: {found['rows']} rows, about {found['hours']:.3g} hours and "
          f"{found['stored_bytes'] / 1e9:.3g} GB (from {found['sampled']} of them)")  # fmt: skip
    print(f"a clip: {found['cpu_ms_per_clip']:.1f} ms of one core here, "
          f"{found['read_bytes_per_clip'] / 1e6:.2f} MB from the disk")  # fmt: skip
    print(f"{gpus} x {clips_per_s:g} clips/s: {found['cores']:.1f} cores, "
          f"{found['read_bytes_per_s'] / 1e6:.1f} MB/s from the disk, "
          f"{found['to_gpus_bytes_per_s'] / 1e6:.0f} MB/s to the GPUs")  # fmt: skip


def check(
    data: Positional[Path], out: Path = Path("quarantine.jsonl"), manifest: Path | None = None,
    limit_s: float = 60.0, jobs: int | None = None, full: bool = False,
) -> int:  # fmt: skip
    """Decode a frame of every video, each out of harm's way; the same command goes on.

    Args:
        data: folder of videos or manifest.
        out: file that names those that fail; what was tried stands beside it, in OUT.tried.jsonl.
        manifest: file to write with the rows of the others.
        limit_s: seconds after which a video that gives nothing has failed.
        jobs: processes; None: one a core.
        full: decode all frames; the limit is for each.
    """
    from vidlearn.datasets import check as checks

    found = open_data(data)
    with _progress() as advance:
        bad = checks.check_all(
            found, out, manifest=manifest, limit_s=limit_s, jobs=jobs, full=full, progress=advance
        )
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    print(f"{len(found.paths)} videos, {len(bad)} unreadable" + f", listed in {out}" * bool(bad))
    return int(bool(bad))


def index(data: Positional[Path], jobs: int | None = None) -> int:
    """Write where each picture lies in its file, beside the manifest; only what is new is read.

    Args:
        data: folder of videos or manifest.
        jobs: processes; None: one a core.
    """
    from vidlearn.datasets import index as places

    found = open_data(data)
    with _progress() as advance:
        n, new, bad = places.build(found, jobs=jobs, progress=advance)
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    told = f"{places.index_file(found.source)}: {n} videos, {new} of them new"
    print(told + f"; {len(bad)} cannot be read" * bool(bad))
    return int(bool(bad))


def transcode(
    data: Positional[Path], out: Positional[Path],
    recipe: Literal[
        "layered", "layered-small", "gop12", "gop12-fast", "intra", "gop250"
    ] = "layered",
    short_side: int = 256, crf: float = 23.0, jobs: int | None = None,
) -> int:  # fmt: skip
    """Write every video again for training; the same command goes on with what is missing.

    Args:
        data: folder of videos or manifest.
        out: folder of the new videos, of manifest.csv, and of quarantine.jsonl for the unreadable.
        recipe: layered for clips of stride 4 or 2; layered-small has an eighth fewer bytes and
            takes three fifths more time; else a key frame every 12, 1 or 250 frames.
        short_side: lines of the smaller side; smaller videos keep their size.
        crf: how coarse, from 0 to 51.
        jobs: processes; None: one a core.
    """
    from vidlearn.datasets import transcode as copies

    found, plan = open_data(data), copies.Plan(recipe, short_side, crf)
    with _progress() as advance:
        bad = copies.transcode_all(found, out, plan, jobs=jobs, progress=advance)
    targets = copies.Targets(found, out)
    n = len(targets) - len(bad)
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    unreadable = f", {len(bad)} unreadable, listed in {out / copies.BAD}" * bool(bad)
    print(f"{out / copies.MANIFEST}: {n} videos{unreadable}")
    print(*(copies.saved(targets, bad, plan.grid) if n else ()), sep="\n")
    return int(bool(bad))


def shard(
    data: Positional[Path], out: Positional[Path], mib: float = 512.0,
    videos_per_shard: int | None = None, seed: int = 0, jobs: int = 4,
) -> int:  # fmt: skip
    """Put the videos into tar files as WebDataset reads them; the same command goes on.

    Args:
        data: folder of videos or manifest.
        out: folder of the tars, of their manifest, and of quarantine.jsonl for files that are gone
            or empty; what does not decode goes in, too: data check --manifest leaves it out.
        mib: size of a tar, about.
        videos_per_shard: in place of that, how many videos a tar has at most.
        seed: of the shuffle that decides which video goes into which tar.
        jobs: tars that are written at a time.
    """
    from vidlearn.datasets import shards

    with _progress() as advance:
        path, n, bad = shards.shard_all(
            open_data(data), out, mib=mib, videos_per_shard=videos_per_shard, seed=seed,
            jobs=jobs, progress=advance,
        )  # fmt: skip
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    unreadable = f", {len(bad)} unreadable, listed in {out / shards.BAD}" * bool(bad)
    print(f"{path}: {n} tars{unreadable}")
    return int(bool(bad))


def lanes(data: Positional[Path], batch: int, nodes: int = 1, node: int | None = None) -> None:
    """Tell which tars a node reads, from the data's folder, to copy to its own disk.

    Args:
        data: folder or manifest that data shard has written.
        batch: of the run, over all nodes.
        nodes: how many share it.
        node: which one, from 0; without it, all are counted.
    """
    from vidlearn.datasets import lanes as dealt

    found = open_data(data).training()
    if not (known := dealt.of(found, batch)):
        raise ConfigError(f"{data}: its videos are no members of tars. Write them: data shard")
    if node is not None:
        root = data if data.is_dir() else data.parent
        print(*(os.path.relpath(tar, root) for tar in known.of_node(node, nodes)), sep="\n")
        return
    print(dealt.told(found, batch))
    of_node = [known.of_node(i, nodes) for i in range(nodes)]
    shared = sum(map(len, of_node)) - len(known.tars)
    print(f"{nodes} nodes read {', '.join(str(len(tars)) for tars in of_node)} tars"
          f"; {shared} of them are read by two")  # fmt: skip


def frontier(
    data: Positional[Path], out: Path = Path("frontier"),
    recipes: tuple[str, ...] = (), videos: int = 4, clips: int = 24, seconds: float = 20.0,
    short_side: int = 256, crf: float = 23.0,
) -> None:  # fmt: skip
    """Measure bytes against CPU time of your videos in each way that transcode knows.

    Args:
        data: folder of videos or manifest.
        out: folder for frontier.json and frontier.svg; the copies are deleted.
        recipes: some of what transcode knows, or raw, jpeg75, jpeg90, hevc, av1 and gop250-fine;
            none: all that transcode knows.
        videos: how many are taken, by chance.
        clips: how many clips of 16 frames, stride 4, are timed in each way.
        seconds: of each video, from its middle.
        short_side: lines of the smaller side; smaller videos keep their size.
        crf: how coarse, from 0 to 51.
    """
    from vidlearn.datasets import frontier as ways

    with _progress() as advance:
        found = ways.measure(
            open_data(data), out, ways=recipes or (*ways.RECIPES,), videos=videos, clips=clips,
            seconds=seconds, short_side=short_side, crf=crf, progress=advance,
        )  # fmt: skip
    print(*(f"left out: {path}: {cause}" for path, cause in found["left_out"].items()), sep="\n",
          end="\n" * bool(found["left_out"]))  # fmt: skip
    print(*ways.lines(found), sep="\n")
    print(*ways.save(found, out), sep="\n")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; what is given moves it to so many of all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("videos")
        yield lambda done, total: bar.update(task, completed=done, total=total)
