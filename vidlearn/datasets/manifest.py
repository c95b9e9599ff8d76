"""The manifest: one row for each video, or for each labelled segment of a video.

Input: a CSV file with the header path,label,split,start_s,end_s,source_id (only path must be
there; relative paths count from the CSV's folder), or a published list without header, one
"path label" or "path::label" a line. Output: a Manifest. Traded: rows are checked for form,
not for the videos behind them; a missing or broken video is found, counted and named when its
turn comes, because opening a million files to start a run costs more than it saves. Taught in
the chapter "Video datasets and what they cost".
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vidlearn.errors import ConfigError, VidlearnError

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
MOST_CLASSES = 100_000  # a larger number in a published list is no class
# What a path says of pictures that are no video: their rate, or which of the cameras.
MARK = re.compile(r"(?P<file>.+)#(?:fps=(?P<fps>\d+(?:\.\d+)?)|camera=(?P<camera>\d+))", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One video, or the part of it from start_s to end_s (None: to its end).

    source_id tells what the row was cut from: rows with one id belong into one split. The path of
    pictures in place of a video says how they are shown: see `vidlearn.datasets.sequences`.
    """

    path: str
    label: str = ""
    split: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    source_id: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
EXPECTED = f"A manifest is a CSV with the header {','.join(COLUMNS)}, of which only path must be"


@dataclass(frozen=True)
class Manifest:
    """Rows, the names of their classes in the order of their numbers, and where they came from."""

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, name: str) -> Manifest:
        """The rows of one split, with the classes of the whole; VidlearnError if there are none."""
        rows = tuple(row for row in self.rows if row.split == name)
        if not rows:
            known = ", ".join(sorted({row.split for row in self.rows} - {""})) or "no splits"
            raise VidlearnError(f"{self.source}: no rows of the split {name!r}; it has {known}")
        return replace(self, rows=rows)

    def training(self) -> Manifest:
        """The rows to train on: those of the split "train" if there are any, else all."""
        return self.split("train") if any(row.split == "train" for row in self.rows) else self

    def splits(self, seed: int = 0) -> tuple[dict[str, Manifest], str]:
        """train and what to evaluate on, and in words how the split was made.

        Data without a split gets a fixed one, in which rows of one source_id stay together.
        """
        names = {row.split for row in self.rows if row.label}
        if not names:
            raise ConfigError(
                f"{self.source}: no labels. A probe needs class folders or a manifest"
            )
        if "train" in names and names & {"val", "test"}:
            own = [name for name in ("train", "val", "test", "far") if name in names]
            return {name: self.split(name) for name in own}, "the data's own"
        rng, source = np.random.default_rng(seed), [row.source_id or row.path for row in self.rows]
        place: dict[str, str] = {}
        for label in self.classes:
            group = {s for s, row in zip(source, self.rows) if row.label == label} - place.keys()
            for i, s in enumerate(rng.permutation(sorted(group)).tolist()):
                place[s] = "test" if i < round(0.3 * len(group)) else "train"
        rows = (replace(r, split=place.get(s, "train")) for s, r in zip(source, self.rows))
        made = replace(self, rows=tuple(rows))
        how = f"none in the data: 7 to 3 in each class, by source_id or else file, seed {seed}"
        return {s: made.split(s) for s in ("train", "test")}, how

    def label_index(self, row: Row) -> int:
        """The number of the row's class, -1 for a row without label."""
        return self._number_of.get(row.label, -1)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}


def file_of(path: str) -> str:
    """The file or folder behind a row's path, which is the path itself unless it is of pictures."""
    found = MARK.fullmatch(path)
    file = found["file"] if found else path
    return os.path.dirname(file) if found and file.endswith("*") else file


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in order: numbers by value, names by the alphabet; "" is no label."""
    names = set(labels) - {""}
    by_value = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if by_value else 0, name)))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a CSV with header, or a published list of "path label" lines.

    A list's labels are class numbers and stay so: class 7 has the name "7" and the index 7.

    Raises:
        VidlearnError: no such file, not text, a column that is unknown or missing (with those
            that are expected), a bad number (with its line), one segment in two rows.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. {EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise VidlearnError(f"{path}: byte {error.start} is not UTF-8 text. {EXPECTED}") from error
    first = next((line for line in text.split("\n") if line.strip()), "")
    if _list_item(first):
        rows = _read_list(path, text)
        classes = _list_classes(path, rows)
    else:
        rows = _read_csv(path, text)
        classes = class_names(row.label for row in rows.values())
    if not rows:
        raise VidlearnError(f"{path}: the manifest has no rows. Give one for each video")
    seen: dict[tuple[str, float, float | None], int] = {}
    for line, row in rows.items():
        if (other := seen.setdefault((row.path, row.start_s, row.end_s), line)) != line:
            raise VidlearnError(f"{path}: line {line} repeats line {other}: {row.path}. Delete one")
    return Manifest(tuple(rows.values()), classes, str(path))


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> Path:
    """Write rows as CSV; paths below the file's folder become relative, so the folder can move."""
    path = Path(path)
    folder = path.parent.absolute()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        video = Path(row.path).absolute()
        name = str(video.relative_to(folder) if video.is_relative_to(folder) else video)
        writer.writerow([name, row.label, row.split, row.start_s, row.end_s, row.source_id])
    # Written beside and renamed: whoever reads meanwhile sees the old file or the new one.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(text.getvalue().encode())
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end]
        raise VidlearnError(f"{path}: {name!r} is not UTF-8. Rename that video") from error
    return beside.replace(path)


def _read_csv(path: Path, text: str) -> dict[int, Row]:
    """Rows by the line of the file on which they end."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = {}
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        for values in reader:
            if values:
                rows[reader.line_num] = _row(path, reader.line_num, header, values)
    except csv.Error as error:
        raise VidlearnError(f"{path}: line {reader.line_num}: {error}. {EXPECTED}") from error
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or "path" not in header or len(set(header)) < len(header):
        wrong = f"unknown column {', '.join(map(repr, unknown))}" if unknown else "no column 'path'"
        if not unknown and "path" in header:
            wrong = "a column stands twice"
        raise VidlearnError(
            f"{path}: {wrong} in the first line. {EXPECTED}; a list without header has lines "
            "'path label', its paths ending in .mp4 or the like"
        )


def _row(path: Path, line: int, header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        raise VidlearnError(
            f"{path}: line {line} has {len(values)} fields, the header {len(header)}. Put quotes "
            "around a name that holds a comma"
        )
    row = dict(zip(header, values))
    if not row["path"]:
        raise VidlearnError(f"{path}: line {line} has no path. Give the file of the video")
    start_s = _seconds(path, line, "start_s", row.get("start_s", "")) or 0.0
    end_s = _seconds(path, line, "end_s", row.get("end_s", ""))
    if end_s is not None and end_s <= start_s:
        raise VidlearnError(
            f"{path}: line {line}: end_s {end_s:g} is not after start_s {start_s:g}. Give seconds "
            "from the start of the video"
        )
    label, split, source_id = (row.get(name, "") for name in ("label", "split", "source_id"))
    return Row(str(path.parent / row["path"]), label, split, start_s, end_s, source_id)


def _seconds(path: Path, line: int, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise VidlearnError(
            f"{path}: line {line}: {column} is {text!r}. Give seconds from the start of the video, "
            "such as 12.5, or nothing"
        )
    return seconds


def _list_item(line: str) -> tuple[str, str] | None:
    """Path and label of a line of a published list; None for a line that is none."""
    line = line.strip()
    video, label = line, ""
    if not _is_video(line):
        parts = line.rsplit("::", 1) if "::" in line else line.rsplit(None, 1)
        video, label = (parts[0].strip(), parts[-1].strip()) if len(parts) == 2 else ("", "")
    return (video.strip('"'), label) if _is_video(video) else None


def _is_video(name: str) -> bool:
    return Path(name.strip('"')).suffix.lower() in VIDEO_SUFFIXES


def _read_list(path: Path, text: str) -> dict[int, Row]:
    rows = {}
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        if (item := _list_item(content)) is None:
            raise VidlearnError(
                f"{path}: line {line} is {content!r}. A list has lines 'path label', or "
                "'path::label' where names hold spaces"
            )
        video, label = item
        label = str(int(label)) if label.isdecimal() else label  # 03 and 3 are one class
        rows[line] = Row(str(path.parent / video), "" if label == "-1" else label)
    return rows


def _list_classes(path: Path, rows: dict[int, Row]) -> tuple[str, ...]:
    """All numbers from 0 to the largest, so that a class keeps its number in a part of the list."""
    names = class_names(row.label for row in rows.values())
    if not names or not names[-1].isdecimal():
        return names
    if int(names[-1]) >= MOST_CLASSES:
        line = next(n for n, row in rows.items() if row.label == names[-1])
        raise VidlearnError(f"{path}: line {line}: {names[-1]} is too large for a class number")
    return tuple(str(number) for number in range(int(names[-1]) + 1))
