"""What `vidlearn data` does: make videos, list them, count, check and write them for training.

Input: folders and manifests. Output: files and lines of text; 1 where something is unreadable.
Traded: the decoders are imported for a check only, since they take seconds. Chapters 5 and 6.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vidlearn.datasets import synth as built_in
from vidlearn.datasets.adapters import KINDS, Listing, some
from vidlearn.datasets.folder import open_data
from vidlearn.datasets.manifest import file_of, write_manifest
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
        out: file to write in place of ROOT/manifest.csv.
    """
    if root is None and kind in KINDS and not Path(kind).exists():
        raise ConfigError(f"{kind}: no folder is given. Write: vidlearn data manifest {kind} ROOT")
    kind, root = ("folder", Path(kind)) if root is None else (kind, root)
    listing = Listing(kind, root)
    path = out or (root.parent if root.is_file() else root) / "manifest.csv"
    if path.exists() and path.resolve() == root.resolve():
        raise ConfigError(f"{path}: would be written over. Choose another file with --out")
    path = write_manifest(path, listing)
    rows = f", {listing.rows} segments" * (listing.rows != len(listing.videos))
    print(f"{path}: {len(listing.videos)} videos{rows}, {len(listing.classes)} classes")
    print(*listing.notes(), sep="\n", end="\n" * bool(listing.notes()))


# The parser takes its help from here.
manifest.__doc__ = (manifest.__doc__ or "").replace("KINDS", f"one of {', '.join(KINDS)}")


def stats(data: Positional[Path]) -> None:
    """Count the rows, videos, classes, splits and hours of a data set, and what is missing."""
    found = open_data(data)
    paths = list(dict.fromkeys(row.path for row in found.rows))
    gone = [path for path in paths if not os.path.exists(file_of(path))]
    lengths_s = [row.end_s - row.start_s for row in found.rows if row.end_s is not None]
    splits = Counter(row.split or "none" for row in found.rows)
    sources = len({row.source_id or row.path for row in found.rows})
    unlabelled = sum(not row.label for row in found.rows)
    print(f"{found.source}: {len(found)} rows of {len(paths)} videos from {sources} sources")
    print(f"classes: {len(found.classes)}; rows without label: {unlabelled}")
    print("splits:", ", ".join(f"{name} {n}" for name, n in splits.items()))
    print(f"hours: {sum(lengths_s) / 3600:.3f} in {len(lengths_s)} segments; "
          f"rows that go to the end of their video: {len(found) - len(lengths_s)}")  # fmt: skip
    print(f"missing files: {len(gone)}" + f", such as {some(gone)}" * bool(gone))


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
    n = len({row.path for row in found.rows})
    print(f"{n} videos, {len(bad)} unreadable" + f", listed in {out}" * bool(bad))
    return int(bool(bad))


def transcode(
    data: Positional[Path], out: Positional[Path],
    recipe: Literal["layered", "gop12", "intra", "gop250"] = "layered", short_side: int = 256,
    crf: float = 23.0, fast_decode: bool = False, jobs: int | None = None,
) -> int:  # fmt: skip
    """Write every video again for training; the same command goes on with what is missing.

    Args:
        data: folder of videos or manifest.
        out: folder of the new videos, of manifest.csv, and of quarantine.jsonl for the unreadable.
        recipe: layered for clips of stride 4 or 2, else a key frame every 12, 1 or 250 frames.
        short_side: lines of the smaller side; smaller videos keep their size.
        crf: how coarse, from 0 to 51.
        fast_decode: without CABAC and deblocking: a tenth more bytes, a third less time.
        jobs: processes; None: one a core.
    """
    from vidlearn.datasets import transcode as copies

    found, plan = open_data(data), copies.Plan(recipe, short_side, crf, fast_decode)
    with _progress() as advance:
        bad = copies.transcode_all(found, out, plan, jobs=jobs, progress=advance)
    done = {a: b for a, b in copies.target_paths(found, out).items() if a not in bad}
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    unreadable = f", {len(bad)} unreadable, listed in {out / copies.BAD}" * bool(bad)
    print(f"{out / copies.MANIFEST}: {len(done)} videos{unreadable}")
    print(*(copies.saved(done, plan.grid) if done else ()), sep="\n")
    return int(bool(bad))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; what is given moves it to so many of all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("videos")
        yield lambda done, total: bar.update(task, completed=done, total=total)
