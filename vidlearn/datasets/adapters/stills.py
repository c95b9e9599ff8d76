"""Data sets of pictures: Waymo's cameras and R2V2's stills, each a video of its own kind.

Input: the folder of a data set, as downloaded. Output: rows whose paths say how pictures are shown:
see `vidlearn.datasets.sequences`. Traded: nothing is opened. Chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vidlearn.datasets.adapters.shared import need
from vidlearn.datasets.folder import SPLITS
from vidlearn.datasets.manifest import Row
from vidlearn.errors import VidlearnError

R2V2_FPS = 30  # assumed: the frame numbers in the names say no rate


def waymo(root: Path) -> Iterator[Row]:
    """Waymo Open v2: a row for each segment and camera. VidlearnError: it is version 1."""
    if old := next(root.rglob("*.tfrecord"), None):
        raise VidlearnError(
            f"{old}: this is version 1, in TFRecord files, which vidlearn does not read. Download "
            "the camera_image of version 2: gs://waymo_open_dataset_v_2_0_1"
        )
    for split in ("training", "validation", "testing"):
        for path in sorted((root / split / "camera_image").glob("*.parquet")):
            for camera in range(1, 6):
                mark = f"{path}#camera={camera}"
                yield Row(mark, "", SPLITS[split], source_id=path.stem)


def r2v2(root: Path) -> Iterator[Row]:
    """R2V2: the stills of a video are a row, at the times that their frame numbers tell."""
    base = need(root, "r2v2", "train", "val")
    base = base if base.name == "r2v2" else root
    for split in ("train", "val"):
        for folder in sorted((base / split).glob("*/")):
            stills = (path.stem.rpartition("_")[0] for path in folder.glob("*.jpg"))
            for video in sorted({name for name in stills if name}):
                yield Row(f"{folder}/{video}_*#fps={R2V2_FPS}", "", split, source_id=video)


def videonet(root: Path) -> Iterator[Row]:
    """VideoNet was never released. VidlearnError: always."""
    raise VidlearnError(
        f"{root}: VideoNet was never released and its layout is not public, so nothing can be read "
        "as VideoNet. For videos that you have, use the kind folder or metadata"
    )
