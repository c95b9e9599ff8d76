"""What adapters share: reading the lists of a data set, finding its files, cutting long videos.

Input: lists as they were downloaded. Output: their lines, as text. Traded: CSV files are read line
by line, JSON files as a whole, since Python has no reader that streams them. Chapter 5.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vidlearn.datasets.folder import SPLITS
from vidlearn.datasets.manifest import Row
from vidlearn.errors import VidlearnError

SEGMENT_S = 10.0  # what a long video without labels is cut into
AGAIN = "Download the file again, or mend that place"


def need(root: Path, *names: str) -> Path:
    """The first of these files or folders below a root that is there.

    Raises:
        VidlearnError: none is there.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    wanted = " or ".join(names)
    raise VidlearnError(f"{root}: {wanted} is not there. Give the folder that holds it, unpacked")


def first_of(*paths: Path) -> Path:
    """The first of these that is there, or else the first."""
    return next((path for path in paths if path.exists()), paths[0])


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty. VidlearnError: unreadable, not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. Make it readable") from error
    except UnicodeDecodeError as error:
        raise VidlearnError(f"{path}: {error.reason}: it is not UTF-8 text. {AGAIN}") from error


def read_csv(
    path: Path, needed: Sequence[str], *, header: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields by name of every row; without a header `needed` names all columns.

    Raises:
        VidlearnError: unreadable, a column that is missing, a row with too few or many fields.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])] if header else list(needed)
            if missing := [name for name in needed if name not in names]:
                raise VidlearnError(
                    f"{path}: no column {missing[0]!r} in the first line, which is "
                    f"{','.join(names)!r}. Expected {','.join(needed)}"
                )
            for values in reader:
                if len(values) not in (0, len(names)):
                    raise VidlearnError(
                        f"{path}: line {reader.line_num} has {len(values)} fields, not "
                        f"{len(names)}. Put quotes around a name that holds a comma"
                    )
                if values:
                    yield reader.line_num, dict(zip(names, values))
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. Make it readable") from error
    except UnicodeDecodeError as error:
        raise VidlearnError(f"{path}: {error.reason}: it is not UTF-8 text. {AGAIN}") from error
    except csv.Error as error:
        raise VidlearnError(f"{path}: line {reader.line_num}: {error}. {AGAIN}") from error


def read_json(path: Path, kind: type) -> Any:
    """The list or dict that a JSON file holds. VidlearnError: unreadable, or it holds another."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. Make it readable") from error
    except ValueError as error:  # of the text or of what it says
        raise VidlearnError(f"{path}: it is not JSON ({error}). {AGAIN}") from error
    if not isinstance(found, kind):
        raise VidlearnError(f"{path}: holds {str(found)[:40]!r}, no {kind.__name__}. {AGAIN}")
    return found


def field(item: Any, name: str, where: object) -> Any:
    """item[name] of what a JSON file holds. VidlearnError: there is none."""
    if not isinstance(item, dict) or name not in item:
        raise VidlearnError(f"{where}: no {name!r} in {str(item)[:80]}. {AGAIN}")
    return item[name]


def items(item: Any, name: str, where: object) -> list[Any]:
    """item[name], which must be a list. VidlearnError: it is none."""
    found = field(item, name, where)
    if not isinstance(found, list):
        raise VidlearnError(f"{where}: {name!r} is {str(found)[:80]}, no list. {AGAIN}")
    return found


def number(text: Any, where: str) -> float:
    """A number from 0 on. VidlearnError: it is none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise VidlearnError(f"{where} is {text!r}. Give a number from 0 on")
    return value


def split_of(name: str, where: str) -> str:
    """train, val or test, for all names that these go by. VidlearnError: another name."""
    if name.strip().lower() not in SPLITS:
        raise VidlearnError(f"{where}: split {name!r}. Give one of {', '.join(SPLITS)}")
    return SPLITS[name.strip().lower()]


def segments(path: Path, length_s: float) -> Iterator[Row]:
    """A long video without labels, cut into SEGMENT_S; the last segment takes the rest."""
    n = max(1, int(length_s / SEGMENT_S))
    for i in range(n):
        end_s = (i + 1) * SEGMENT_S if i + 1 < n else length_s
        yield Row(str(path), "", "", i * SEGMENT_S, end_s, path.stem)
