"""Layouts that belong to no data set: folders, published lists, a metadata.csv beside the videos.

Input: a folder, or the file of a list. Output: rows. Traded: nothing is opened. Chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vidlearn.datasets.adapters.shared import read_csv, split_of
from vidlearn.datasets.files import is_parquet, read_manifest, read_rows
from vidlearn.datasets.folder import SPLITS, folder_manifest
from vidlearn.datasets.manifest import Row
from vidlearn.errors import VidlearnError


def folder(root: Path) -> Iterator[Row]:
    """Folders whose names are splits and classes."""
    yield from folder_manifest(root).rows


def published(path: Path) -> Iterator[Row]:
    """A list of "path label" lines, or another manifest: so one becomes Parquet, or CSV again."""
    rows = read_manifest(path).rows if is_parquet(path) else (row for _, row in read_rows(path))
    yield from rows


def metadata(root: Path) -> Iterator[Row]:
    """metadata.csv with file_name, and label and split if there are any, as on Hugging Face.

    It lies in the folder or in each folder of a split. Without a column split, the first folder
    of a file_name is one if it is called so.
    """
    found = [root / "metadata.csv", *sorted(root.glob("*/metadata.csv"))]
    found = [path for path in found if path.exists()]
    if not found:
        raise VidlearnError(f"{root}: no metadata.csv in it or below. Write one with file_name")
    for path in found:
        for line, row in read_csv(path, ("file_name",)):
            where, name = f"{path}: line {line}", row["file_name"]
            if not name:
                raise VidlearnError(f"{where}: no file_name. Give the file of the video")
            folders = (path.parent.name if path.parent != root else "", name.split("/")[0])
            split = next((SPLITS[part] for part in folders if part in SPLITS), "")
            split = split_of(row["split"], where) if row.get("split") else split
            yield Row(str(path.parent / name), row.get("label", ""), split)
