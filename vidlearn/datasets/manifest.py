"""The manifest: one row for each video, or for each labelled segment of a video.

Input: rows, or what makes them when asked for (`columns`). Output: a Manifest, its splits and the
numbers of its classes. Traded: rows are checked for form, not for the videos behind them; a missing
or broken video is found, counted and named when its turn comes, because opening a million files to
start a run costs more than it saves. Taught in the chapter "Video datasets and what they cost".
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import blake2b
from itertools import compress
from typing import Any

import numpy as np

from vidlearn.datasets import tars
from vidlearn.errors import ConfigError, VidlearnError

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
# What a path says of pictures that are no video: their rate, or which of the cameras.
MARK = re.compile(r"(?P<file>.+)#(?:fps=(?P<fps>\d+(?:\.\d+)?)|camera=(?P<camera>\d+))", re.DOTALL)

UNCLEAN = re.compile(r"//|/\.?$|/\./|^\./")  # what pathlib would write in another way


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


class Rows(Sequence[Row]):
    """Rows that are not held as objects, and what a Manifest asks of them."""

    @abstractmethod
    def numbered(self, name: str) -> tuple[np.ndarray, list[str]]:
        """As the function `numbered`."""

    @abstractmethod
    def taken(self, mask: np.ndarray, split: str | None) -> Rows:
        """As the function `_taken`."""


class Paths(Sequence[str]):
    """Each video of such rows once, in their order; 16 bytes of each are held, then 4."""

    def __init__(self, rows: Rows) -> None:
        seen = Seen()
        mask = np.fromiter((seen.add(row.path) for row in rows), bool, len(rows))
        self.rows = rows.taken(mask, None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """The path at a place."""
        return self.rows[index].path

    def __iter__(self) -> Iterator[str]:
        return (row.path for row in self.rows)


class Seen:
    """A set of texts that keeps 16 bytes of a hash of each, and not the text.

    That two of ten million are taken for one has a chance below 1e-23: each is looked for in a
    bucket of 14-byte pieces, at any of some 2,000 places, 10^7 times.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(1 << 16)]
        self._members = 0

    def __len__(self) -> int:
        return self._members

    def __contains__(self, text: str) -> bool:
        bucket, piece = self._place(text)
        return piece in bucket

    def add(self, text: str) -> bool:
        """Take in a text; whether it is new."""
        bucket, piece = self._place(text)
        if piece in bucket:
            return False
        bucket += piece
        self._members += 1
        return True

    def _place(self, text: str) -> tuple[bytearray, bytes]:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._buckets[digest[0] << 8 | digest[1]], digest[2:]


def numbered(rows: Sequence[Row], name: str) -> tuple[np.ndarray, list[str]]:
    """The number of each row's value of "label", "split", "source" or "tar"; the values, sorted.

    A row's source is its source_id, or else its path; its tar is "" for one that lies in none.
    """
    if isinstance(rows, Rows):
        return rows.numbered(name)
    if name == "source":
        values = [row.source_id or row.path for row in rows]
    elif name == "tar":
        inside = (tars.MEMBER.fullmatch(row.path) for row in rows)
        values = [found["tar"] if found else "" for found in inside]
    else:
        values = [getattr(row, name) for row in rows]
    names = sorted(set(values))
    number = {value: i for i, value in enumerate(names)}
    return np.array([number[value] for value in values], np.int64), names


def _taken(rows: Sequence[Row], mask: np.ndarray, split: str | None = None) -> Sequence[Row]:
    """The rows where the mask is True; with a split, in that split."""
    if isinstance(rows, Rows):
        return rows.taken(mask, split)
    chosen = compress(rows, mask.tolist())
    return tuple(chosen if split is None else (replace(row, split=split) for row in chosen))


@dataclass(frozen=True)
class Manifest:
    """Rows, the names of their classes in the order of their numbers, and where they came from."""

    rows: Sequence[Row]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def paths(self) -> Sequence[str]:
        """Each video once, in the order of the rows."""
        if isinstance(self.rows, Rows):
            return Paths(self.rows)
        return tuple(dict.fromkeys(row.path for row in self.rows))

    def split(self, name: str) -> Manifest:
        """The rows of one split, with the classes of the whole; VidlearnError if there are none."""
        number, names = numbered(self.rows, "split")
        if name not in names:
            raise self._no_rows(name, names)
        mask = number == names.index(name)
        return self if mask.all() else replace(self, rows=_taken(self.rows, mask))

    def _no_rows(self, name: str, names: Iterable[str]) -> VidlearnError:
        known = ", ".join(sorted({*names} - {""})) or "no splits"
        return VidlearnError(f"{self.source}: no rows of the split {name!r}; it has {known}")

    def training(self) -> Manifest:
        """The rows to train on: those of the split "train" if there are any, else all."""
        return self.split("train") if "train" in numbered(self.rows, "split")[1] else self

    def splits(self, seed: int = 0) -> tuple[dict[str, Manifest], str]:
        """train and what to evaluate on, and in words how the split was made.

        Data without a split gets a fixed one, in which rows of one source_id stay together.
        """
        label, labels = numbered(self.rows, "label")
        split, known = numbered(self.rows, "split")
        labelled = np.array([name != "" for name in labels], bool)[label]
        names = {known[i] for i in np.unique(split[labelled])}
        if not names:
            raise ConfigError(
                f"{self.source}: no labels. A probe needs class folders or a manifest"
            )
        if "train" in names and names & {"val", "test"}:
            own = [name for name in ("train", "val", "test", "far") if name in names]
            return {name: self.split(name) for name in own}, "the data's own"
        none = len(self.classes)
        class_of = np.array([self._number_of.get(name, none) for name in labels])[label]
        source, sources = numbered(self.rows, "source")
        first = np.full(len(sources), none)  # a source's class, the first of several
        np.minimum.at(first, source, class_of)
        order, rng = np.argsort(first, kind="stable"), np.random.default_rng(seed)
        is_test = np.zeros(len(sources), bool)
        for group in np.split(order, np.searchsorted(first[order], np.arange(none + 1)))[1:-1]:
            is_test[rng.permutation(group)[: round(0.3 * len(group))]] = True
        made = {}
        for name, mask in (("train", ~is_test[source]), ("test", is_test[source])):
            if not mask.any():
                raise self._no_rows(name, {"train", "test"} - {name})
            made[name] = replace(self, rows=_taken(self.rows, mask, name))
        how = f"none in the data: 7 to 3 in each class, by source_id or else file, seed {seed}"
        return made, how

    def label_index(self, row: Row) -> int:
        """The number of the row's class, -1 for a row without label."""
        return self._number_of.get(row.label, -1)

    @cached_property
    def tars(self) -> tuple[np.ndarray, list[str]]:
        """The number of the tar that each row lies in, and the tars; none unless all do."""
        nowhere = np.zeros(0, np.int32), list[str]()
        if not self.rows or not tars.MEMBER.fullmatch(self.rows[0].path):
            return nowhere  # which spares a look at millions of rows
        number, names = numbered(self.rows, "tar")
        return nowhere if "" in names else (number.astype(np.int32), names)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}


def file_of(path: str) -> str:
    """The file or folder behind a row's path: the path itself, a tar, or where pictures are."""
    if inside := tars.parts(path):
        return inside[0]
    found = MARK.fullmatch(path) if "#" in path else None
    file = found["file"] if found else path
    return os.path.dirname(file) if found and file.endswith("*") else file


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in order: numbers by value, names by the alphabet; "" is no label."""
    names = set(labels) - {""}
    by_value = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if by_value else 0, name)))
