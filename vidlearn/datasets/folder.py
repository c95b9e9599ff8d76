"""A folder of videos as a manifest: the folders' names are the splits and the classes.

Input: a folder laid out as <split>/<class>/x.mp4, <split>/x.mp4, <class>/x.mp4 or x.mp4, one
layout for all of it. Output: a Manifest. Traded: nothing is opened, so a file that only bears
a video's name is found out later. Taught in the chapter "Video datasets and what they cost".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vidlearn.datasets.files import read_manifest
from vidlearn.datasets.manifest import VIDEO_SUFFIXES, Manifest, Row, class_names
from vidlearn.errors import VidlearnError

# The names that splits go by, and the one that the rest of the package uses.
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
LISTED = ("manifest.csv", "manifest.parquet")
LAYOUTS = "<split>/<class>/x.mp4, <split>/x.mp4, <class>/x.mp4 or x.mp4"


def open_data(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a data set: a manifest file, a folder that holds one, or a folder of videos.

    Raises:
        VidlearnError: nothing there, no videos in it, or a manifest that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise VidlearnError(
            f"{path}: no such file or folder. Give a folder of videos, or a manifest"
        )
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        raise VidlearnError(f"{path}: is a single video. Give its folder, or a manifest")
    if path.is_file():
        return read_manifest(path)
    listed = [path / name for name in LISTED if (path / name).exists()]
    if len(listed) > 1:
        raise VidlearnError(f"{path}: holds {' and '.join(LISTED)}. Give one of the two")
    return read_manifest(listed[0]) if listed else folder_manifest(path)


def folder_manifest(root: str | os.PathLike[str]) -> Manifest:
    """Every video below a folder, with its split and class from the folders it lies in.

    Names that start with a dot are left out; links are followed. Folders on the first level are
    splits if all of those with videos are called so (train, val, valid, validation, test ...),
    otherwise they are classes.

    Raises:
        VidlearnError: no such folder, no videos, or videos on different levels.
    """
    root = Path(root)
    if not root.is_dir():
        raise VidlearnError(f"{root}: no such folder. Give one laid out as {LAYOUTS}")
    try:
        found = sorted(_videos(root, ()))
    except OSError as error:
        raise VidlearnError(f"{error.filename}: {error.strerror}. Make it readable") from error
    if not found:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise VidlearnError(f"{root}: no videos in it. Expected {LAYOUTS}, ending in {suffixes}")
    depths = {len(parts): "/".join(parts) for parts in found}
    if len(depths) > 1 or max(depths) > 3:
        raise VidlearnError(
            f"{root}: videos on different levels or too deep ({', '.join(depths.values())}). "
            f"Expected one of {LAYOUTS}, or write a manifest.csv"
        )
    depth, tops = max(depths), {parts[0] for parts in found}
    has_splits = depth > 1 and tops <= SPLITS.keys()
    if depth == 3 and not has_splits:
        strange = sorted(tops - SPLITS.keys())[0]
        raise VidlearnError(f"{root}: {strange!r} is not the name of a split. Expected {LAYOUTS}")
    rows = []
    for parts in found:
        split = SPLITS[parts[0]] if has_splits else ""
        label = parts[-2] if depth - has_splits == 2 else ""
        rows.append(Row(str(root.joinpath(*parts)), label, split))
    return Manifest(tuple(rows), class_names(row.label for row in rows), str(root))


def _videos(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The path of every video as its parts; one level more than allowed, so that it is noticed."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if len(parts) < 3:
                yield from _videos(Path(entry.path), (*parts, entry.name))
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            yield (*parts, entry.name)
