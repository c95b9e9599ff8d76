"""Files of manifests: CSV, published lists and Parquet, read and written.

Input: a CSV file with the header path,label,split,start_s,end_s,source_id (only path must be
there; relative paths count from the CSV's folder), a Parquet file with such columns, or a published
list without header, one "path label" or "path::label" a line. Output: a Manifest. Traded: rows of
text files are Python objects, half a kilobyte each; for millions there is Parquet (`columns`).
Taught in the chapter "Video datasets and what they cost".
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vidlearn.datasets.manifest import (
    COLUMNS,
    EXPECTED,
    UNCLEAN,
    VIDEO_SUFFIXES,
    Manifest,
    Row,
    class_names,
)
from vidlearn.errors import VidlearnError

MOST_CLASSES = 100_000  # a larger number in a published list is no class


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a CSV with header, a published list of "path label" lines, or a .parquet file.

    A list's labels are class numbers and stay so: class 7 has the name "7" and the index 7.

    Raises:
        VidlearnError: no such file, not text, a column that is unknown or missing (with those
            that are expected), a bad number (with its line), one segment in two rows.
        ConfigError: a .parquet file, and no pyarrow.
    """
    path = Path(path)
    if is_parquet(path):
        from vidlearn.datasets.columns import open_parquet  # needs pyarrow

        return open_parquet(path)
    rows = dict(read_rows(path))
    if _is_list(path):
        classes = _list_classes(path, rows)
    else:
        classes = class_names(row.label for row in rows.values())
    if not rows:
        raise VidlearnError(f"{path}: the manifest has no rows. Give one for each video")
    seen: dict[tuple[str, float, float | None], int] = {}
    for line, row in rows.items():
        if (other := seen.setdefault((row.path, row.start_s, row.end_s), line)) != line:
            raise VidlearnError(f"{path}: line {line} repeats line {other}: {row.path}. Delete one")
    return Manifest(tuple(rows.values()), classes, str(path))


def is_parquet(path: Path) -> bool:
    """Whether a manifest is, or is to be, in that format: from its name."""
    return path.suffix.lower() == ".parquet"


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV or a published list as they are read, with the lines on which they end.

    VidlearnError: as `read_manifest`, but for segments in two rows, which would need all of them.
    """
    yield from _read_list(path) if _is_list(path) else _read_csv(path)


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> Path:
    """Write rows as they come, as Parquet if the file is called so, else as CSV.

    Paths below the file's folder become relative, so the folder can move.

    Raises:
        VidlearnError: a path that is not UTF-8. ConfigError: Parquet, and no pyarrow.
    """
    path = Path(path)
    # Written beside and renamed: whoever reads meanwhile sees the old file or the new one.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if is_parquet(path):
            from vidlearn.datasets.columns import write_parquet

            write_parquet(beside, _stored(path, rows))
        else:
            with open(beside, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                # It leaves a carriage return bare, which would end the line for who reads it.
                odd = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
                for row in _stored(path, rows):
                    text = f"{row[0]}{row[1]}{row[2]}{row[5]}"
                    (odd if "\r" in text else writer).writerow(row)
        return beside.replace(path)
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end]
        raise VidlearnError(f"{path}: {name!r} is not UTF-8. Rename that video") from error
    finally:
        beside.unlink(missing_ok=True)


def _stored(path: Path, rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    """The columns of each row, as the file `path` stores them."""
    here, folder = os.path.join(os.getcwd(), ""), os.path.join(path.parent.absolute(), "")
    for row in rows:
        name = _clean(here, row.path)
        name = name[len(folder) :] if name.startswith(folder) else name
        yield name, row.label, row.split, row.start_s, row.end_s, row.source_id


def prefix_of(path: Path) -> str:
    """What stands before the names in a manifest to make paths of them."""
    return "" if str(path.parent) == "." else os.path.join(path.parent, "")


def _clean(prefix: str, name: str) -> str:
    """As str(Path(prefix, name)), which takes ten times as long."""
    name = name if os.path.isabs(name) else prefix + name
    return str(Path(name)) if UNCLEAN.search(name) else name


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[IO[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise VidlearnError(
            f"{path}: byte {_bad_byte(path)} is not UTF-8 text. {EXPECTED}"
        ) from error
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. {EXPECTED}") from error


def _bad_byte(path: Path) -> int:
    """Where a file ceases to be UTF-8: an error while reading counts from its last buffer."""
    read = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return read + error.start
            read += len(line)
    return read


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    with _opened(path, "") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            check_header(path, header, "in the first line")
            prefix = prefix_of(path)
            for values in reader:
                if values:
                    yield reader.line_num, _row(path, prefix, reader.line_num, header, values)
        except csv.Error as error:
            raise VidlearnError(f"{path}: line {reader.line_num}: {error}. {EXPECTED}") from error


def check_header(path: Path, header: list[str], where: str) -> None:
    """VidlearnError: these are not the columns of a manifest."""
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or "path" not in header or len(set(header)) < len(header):
        wrong = f"unknown column {', '.join(map(repr, unknown))}" if unknown else "no column 'path'"
        if not unknown and "path" in header:
            wrong = "a column stands twice"
        raise VidlearnError(
            f"{path}: {wrong} {where}. {EXPECTED}; a list without header has lines "
            "'path label', its paths ending in .mp4 or the like"
        )


def _row(path: Path, prefix: str, line: int, header: list[str], values: list[str]) -> Row:
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
    return Row(_clean(prefix, row["path"]), label, split, start_s, end_s, source_id)


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


def _is_list(path: Path) -> bool:
    with _opened(path, "\n") as file:
        return _list_item(next((line for line in file if line.strip()), "")) is not None


def _read_list(path: Path) -> Iterator[tuple[int, Row]]:
    prefix = prefix_of(path)
    with _opened(path, "\n") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            if (item := _list_item(content)) is None:
                raise VidlearnError(
                    f"{path}: line {line} is {content.rstrip(chr(10))!r}. A list has lines "
                    "'path label', or 'path::label' where names hold spaces"
                )
            video, label = item
            label = str(int(label)) if label.isdecimal() else label  # 03 and 3 are one class
            yield line, Row(_clean(prefix, video), "" if label == "-1" else label)


def _list_classes(path: Path, rows: dict[int, Row]) -> tuple[str, ...]:
    """All numbers from 0 to the largest, so that a class keeps its number in a part of the list."""
    names = class_names(row.label for row in rows.values())
    if not names or not names[-1].isdecimal():
        return names
    if int(names[-1]) >= MOST_CLASSES:
        line = next(n for n, row in rows.items() if row.label == names[-1])
        raise VidlearnError(f"{path}: line {line}: {names[-1]} is too large for a class number")
    return tuple(str(number) for number in range(int(names[-1]) + 1))
