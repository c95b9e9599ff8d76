"""What `vidlearn data` does: make videos, write manifests, check files.

Input: folders and manifests. Output: files and lines of text; 1 where something is unreadable.
Traded: the decoders are imported for a check only, since they take seconds. Chapter 5.
"""

from pathlib import Path

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
