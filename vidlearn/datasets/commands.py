"""What `vidlearn data` does: make videos, write manifests, check files, write them for training.

Input: folders and manifests. Output: files and lines of text; 1 where something is unreadable.
Traded: the decoders are imported for a check only, since they take seconds. Chapters 5 and 6.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vidlearn.datasets import synth as built_in
from vidlearn.datasets.folder import folder_manifest, open_data
from vidlearn.datasets.manifest import write_manifest
from vidlearn.datasets.quarantine import Quarantine


def synth(
    folder: Positional[Path], train: int = 2000, val: int = 480, test: int = 480, far: int = 480,
    seed: int = 0,
) -> None:  # fmt: skip
    """Make the built-in videos, so many a split; a complete set is left alone."""
    print(built_in.make_shown(folder, train=train, val=val, test=test, far=far, seed=seed))


def manifest(root: Positional[Path], out: Path | None = None) -> None:
    """Write ROOT/manifest.csv of <split>/<class>/x.mp4, <class>/x.mp4 or x.mp4."""
    found = folder_manifest(root)
    path = write_manifest(out or root / "manifest.csv", found.rows)
    print(f"{path}: {len(found)} videos, {len(found.classes)} classes")


def check(data: Positional[Path], out: Path = Path("quarantine.jsonl")) -> int:
    """Decode a frame of every video; the file --out names those that fail."""
    from vidlearn.datasets.check import unreadable

    paths = list(dict.fromkeys(row.path for row in open_data(data).rows))
    out.unlink(missing_ok=True)
    quarantine, bad = Quarantine(out, len(paths), max_share=1.0), 0
    for path, cause in unreadable(paths):
        bad = quarantine.add([(path, cause)])
        print(f"{path}: {cause}")
    print(f"{len(paths)} videos, {bad} unreadable" + f", listed in {out}" * bool(bad))
    return int(bad > 0)


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
    from rich.console import Console
    from rich.progress import Progress

    from vidlearn.datasets import transcode as copies

    found, plan = open_data(data), copies.Plan(recipe, short_side, crf, fast_decode)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        advance = partial(bar.update, bar.add_task("videos"))
        bad = copies.transcode_all(
            found, out, plan, jobs=jobs, progress=lambda i, n: advance(completed=i, total=n)
        )
    done = {a: b for a, b in copies.target_paths(found, out).items() if a not in bad}
    print(*(f"{path}: {cause}" for path, cause in bad.items()), sep="\n", end="\n" * bool(bad))
    unreadable = f", {len(bad)} unreadable, listed in {out / copies.BAD}" * bool(bad)
    print(f"{out / copies.MANIFEST}: {len(done)} videos{unreadable}")
    print(*(copies.saved(done, plan.grid) if done else ()), sep="\n")
    return int(bool(bad))
