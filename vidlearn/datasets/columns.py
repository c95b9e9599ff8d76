"""Manifests of any length: Parquet on the disk, columns mapped into memory, a Row when asked for.

Input: a Parquet file with the columns of a manifest. Output: a Manifest whose rows are `Columns`.
Traded: Parquet is compressed and cannot be mapped, so the first who opens it checks it and writes
it once more as an Arrow file, about as large as a CSV. All ranks and workers of a machine share
the pages of that file, and touch those of the rows that they ask for. Chapter 5.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vidlearn.datasets.files import check_header, prefix_of
from vidlearn.datasets.manifest import COLUMNS, EXPECTED, UNCLEAN, Manifest, Row, Rows, class_names
from vidlearn.datasets.tars import MEMBER
from vidlearn.errors import ConfigError, VidlearnError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    remedy = "Install it: pip install 'vidlearn[parquet]'"
    raise ConfigError(f"a manifest in Parquet needs the package pyarrow. {remedy}") from error

VERSION = 1  # of the Arrow file
BATCH = 65_536  # rows that are read, checked and written at a time
TIMES = ("start_s", "end_s")
STORED = pa.schema([(n, pa.float64() if n in TIMES else pa.string()) for n in COLUMNS])


class Columns(Rows):
    """Rows of an Arrow file, or those at `places` in it, all of one split if `as_split` is given.

    Takes 4 bytes a row for a part of the file and next to nothing for all of it.
    """

    def __init__(
        self, file: str, prefix: str, places: np.ndarray | None = None, as_split: str | None = None
    ) -> None:
        self.file, self.prefix, self.places, self.as_split = file, prefix, places, as_split
        self.table = pa.ipc.open_file(pa.memory_map(file)).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self.file, self.prefix, self.places, self.as_split)

    def __len__(self) -> int:
        return self.table.num_rows if self.places is None else len(self.places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Any:
        """The Row at a place, or the Columns of a slice."""
        every = range(len(self))[index]
        if isinstance(every, range):
            places = np.arange(every.start, every.stop, every.step, dtype=np.int32)
            return self._at(places if self.places is None else self.places[places], self.as_split)
        place = every if self.places is None else int(self.places[every])
        return self._row(*(column[place].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts():
            columns = (column.cast(kind) for column, kind in zip(part.columns, STORED.types))
            yield from map(self._row, *(column.to_pylist() for column in columns))

    def _row(
        self, path: str, label: str, split: str, start_s: float | None, end_s: float | None,
        source_id: str | None,
    ) -> Row:  # fmt: skip
        path = path if os.path.isabs(path) else self.prefix + path
        split = split if self.as_split is None else self.as_split
        return Row(path, label, split, start_s or 0.0, end_s, source_id or "")

    def _parts(self) -> Iterator[Any]:
        """The rows, as record batches in their order."""
        batches = self.table.to_batches()
        if self.places is None:
            yield from batches
            return
        ends = np.cumsum([len(batch) for batch in batches])
        for first in range(0, len(self.places), BATCH):
            places = self.places[first : first + BATCH]
            batch_of = np.searchsorted(ends, places, side="right")
            for run in np.split(places, np.flatnonzero(np.diff(batch_of)) + 1):
                number = int(np.searchsorted(ends, run[0], side="right"))
                yield batches[number].take(pa.array(run - (ends[number] - len(batches[number]))))

    def _at(self, places: np.ndarray, as_split: str | None) -> Columns:
        return Columns(self.file, self.prefix, places, as_split)

    def taken(self, mask: np.ndarray, split: str | None) -> Columns:
        """The rows where the mask is True; with a split, in that split."""
        split = self.as_split if split is None else split
        if mask.all():
            return Columns(self.file, self.prefix, self.places, split)
        found = np.flatnonzero(mask).astype(np.int32)
        return self._at(found if self.places is None else self.places[found], split)

    def numbered(self, name: str) -> tuple[np.ndarray, list[str]]:
        """As `manifest.numbered`; "source" and "tar" make text, one for each different value."""
        if name == "split" and self.as_split is not None:
            return np.zeros(len(self), np.int8), [self.as_split]
        if name in ("source", "tar"):
            number, names = self._made(name)
        else:
            chunks = self.table[name].chunks
            names = chunks[0].dictionary
            number = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
            number = number if self.places is None else number[self.places]
        there = np.bincount(number, minlength=len(names)) > 0
        order = pc.array_sort_indices(names).to_numpy()
        order = order[there[order]]
        rank = np.zeros(len(names), np.int32)
        rank[order] = np.arange(len(order))
        return rank[number], names.take(pa.array(order)).to_pylist()

    def _made(self, what: str) -> tuple[np.ndarray, Any]:
        text, found = pa.large_string(), []
        before, nothing = pa.scalar(self.prefix, text), pa.scalar("", text)
        for part in self._parts():
            path, source = (part[name].cast(text) for name in ("path", "source_id"))
            source = pc.fill_null(source, nothing)
            below = pc.binary_join_element_wise(before, path, nothing)
            path = pc.if_else(pc.starts_with(path, "/"), path, below)
            if what == "tar":
                inside = pc.extract_regex(path, f"(?s:{MEMBER.pattern})")
                found.append(pc.fill_null(pc.struct_field(inside, "tar"), nothing))
                continue
            found.append(pc.if_else(pc.equal(source, ""), path, source))
        whole = pa.chunked_array(found).combine_chunks().dictionary_encode()
        return whole.indices.to_numpy(), whole.dictionary


def write_parquet(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows, in the order of COLUMNS, as they come: no more than a batch is in memory."""
    rows = iter(rows)
    with open(path, "wb") as file, pq.ParquetWriter(file, STORED, compression="zstd") as writer:
        while some := list(islice(rows, BATCH)):
            arrays = [pa.array(values, field.type) for values, field in zip(zip(*some), STORED)]
            writer.write_batch(pa.record_batch(arrays, schema=STORED))


def open_parquet(path: Path) -> Manifest:
    """The manifest of a Parquet file, mapped from the Arrow file beside it, which is made once.

    Where the folder cannot be written, that file lies in $XDG_CACHE_HOME/vidlearn or
    ~/.cache/vidlearn. It is made anew when the size or the time of the Parquet file has changed.

    Raises:
        VidlearnError: no such file, not Parquet, a column that is unknown, missing or of a wrong
            type, a value that cannot be (with its row, from 1), one segment in two rows, a disk
            that is full.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise VidlearnError(f"{path}: {error.strerror}. {EXPECTED}") from error
    stamp = f"{VERSION} {about.st_size} {about.st_mtime_ns}".encode()
    arrow = _arrow_file(path, stamp)
    rows = Columns(str(arrow), prefix_of(path))
    names = rows.table["label"].chunk(0).dictionary.to_pylist()
    return Manifest(rows, tuple(name for name in names if name), str(path))


def _arrow_file(path: Path, stamp: bytes) -> Path:
    """The Arrow file of this version of the Parquet file; made by one process, others wait."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidlearn"
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    places = [path.with_name(f".{path.name}.arrow"), home / f"{name}.arrow"]
    for arrow in places:
        if _fits(arrow, stamp):
            return arrow
    arrow = places[not os.access(path.absolute().parent, os.W_OK)]
    try:
        arrow.parent.mkdir(parents=True, exist_ok=True)
        with open(arrow.with_suffix(".lock"), "w") as lock:
            part = arrow.with_suffix(".part")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # some shared disks have no locks: then several write, and one stays
                part = arrow.with_suffix(f".{socket.gethostname()}.{os.getpid()}.part")
            if not _fits(arrow, stamp):
                _convert(path, part, stamp)
                part.replace(arrow)
    except OSError as error:
        text = f"{arrow}: cannot be written ({error.strerror or error})"
        remedy = "Make room; it takes about as much as a CSV"
        raise VidlearnError(f"{text}. {remedy}, or set XDG_CACHE_HOME") from error
    return arrow


def _fits(arrow: Path, stamp: bytes) -> bool:
    """Whether there is a whole Arrow file, made from this version of the Parquet file."""
    try:
        found = pa.ipc.open_file(pa.memory_map(str(arrow))).schema.metadata or {}
    except (FileNotFoundError, NotADirectoryError, pa.ArrowInvalid):
        return False
    return found.get(b"of") == stamp


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        told = str(error).splitlines()[0].rstrip(".")
        raise VidlearnError(f"{path}: cannot be read as Parquet ({told}). {EXPECTED}") from error


def _batches(path: Path, names: list[str] | None = None) -> Iterator[Any]:
    with _opened(path) as parquet:
        for batch in parquet.iter_batches(BATCH, columns=names, use_threads=False):
            batch.validate(full=True)  # text that is not UTF-8, for one
            yield batch


def _convert(path: Path, part: Path, stamp: bytes) -> None:
    """Check the Parquet file and write it as an Arrow file, a batch at a time."""
    with _opened(path) as parquet:
        schema, n = parquet.schema_arrow, parquet.metadata.num_rows
    _check_types(path, schema)
    if not n:
        raise VidlearnError(f"{path}: the manifest has no rows. Give one for each video")
    try:
        _check_repeats(path, part, _write(path, part, schema.names, n, stamp))
    except (VidlearnError, OSError):
        part.unlink(missing_ok=True)
        raise


def _check_types(path: Path, schema: Any) -> None:
    check_header(path, schema.names, "among its columns")
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        fine = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        wanted = "seconds as numbers" if field.name in TIMES else "text"
        if field.name in TIMES:
            fine = pa.types.is_floating(field.type)
        if not (fine or pa.types.is_integer(field.type) or pa.types.is_null(field.type)):
            text = f"the column {field.name} is of the type {field.type}"
            raise VidlearnError(f"{path}: {text}. Give {wanted}")


def _write(path: Path, part: Path, names: list[str], n: int, stamp: bytes) -> np.ndarray:
    """Write the Arrow file of n rows; a hash of each row's segment, for `_check_repeats`."""
    values: dict[str, set[str]] = {"label": set(), "split": set()}
    used = {"path"}
    for batch in _batches(path, [name for name in names if name != "path"]):
        for name in batch.schema.names:
            column, given = _column(batch, name), _GIVEN[name in TIMES]
            if name in values:
                values[name] |= {*pc.unique(column).to_pylist()}
            elif name not in used and pc.any(given(column)).as_py():
                used.add(name)
    known = {"label": class_names(values["label"]), "split": sorted(values["split"] - {""})}
    listed = {name: pa.array([*texts, ""], pa.string()) for name, texts in known.items()}
    kinds = {field.name: field.type if field.name in used else pa.null() for field in STORED}
    kinds |= {name: pa.dictionary(_number(len(x)), pa.string()) for name, x in listed.items()}
    schema = pa.schema(kinds.items(), {b"of": stamp})
    hashes, first = np.empty(n, np.int64), 0
    with open(part, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in _batches(path):
            columns = _checked(path, batch, first)
            hashes[first : first + len(batch)] = [*map(hash, _segments(columns))]
            first += len(batch)
            for name, texts in listed.items():
                numbers = pc.index_in(columns[name], texts).cast(kinds[name].index_type)
                columns[name] = pa.DictionaryArray.from_arrays(numbers, texts)
            empty = pa.nulls(len(batch))
            arrays = [empty if kinds[x] == pa.null() else columns[x] for x in COLUMNS]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return hashes


# Whether a row of a column says anything: what none does is not stored.
_GIVEN = (lambda text: pc.not_equal(text, ""), lambda time_s: pc.not_equal(time_s, 0.0))


def _number(names: int) -> Any:
    """The smallest type that numbers them."""
    return pa.int8() if names < 2**7 else pa.int16() if names < 2**15 else pa.int32()


def _column(batch: Any, name: str) -> Any:
    """A column as it is stored: text and start_s without nulls."""
    there = batch[name] if name in batch.schema.names else pa.nulls(len(batch))
    if name in TIMES:
        times_s = there.cast(pa.float64(), safe=False)
        return pc.fill_null(times_s, 0.0) if name == "start_s" else times_s
    return pc.fill_null(there.cast(pa.string()), "")


def _checked(path: Path, batch: Any, first: int) -> dict[str, Any]:
    """The columns of a batch; VidlearnError names the first bad row."""
    columns = {name: _column(batch, name) for name in COLUMNS}

    def check(bad: Any, told: str, *names: str) -> None:
        if (place := pc.index(bad, True).as_py()) >= 0:
            told = told.format(*(columns[name][place].as_py() for name in names))
            raise VidlearnError(f"{path}: row {first + place + 1}{told}")

    check(pc.equal(columns["path"], ""), " has no path. Give the file of the video")
    told = " is {:g}. Give seconds from the start of the video, such as 12.5, or nothing"
    for name in TIMES:
        fine = pc.and_(pc.is_finite(columns[name]), pc.greater_equal(columns[name], 0))
        check(pc.invert(fine), f": {name}{told}", name)
    told = ": end_s {:g} is not after start_s {:g}. Give seconds from the start of the video"
    check(pc.less_equal(columns["end_s"], columns["start_s"]), told, "end_s", "start_s")
    if pc.any(pc.match_substring_regex(columns["path"], UNCLEAN.pattern)).as_py():
        columns["path"] = pa.array([str(PurePath(x)) for x in columns["path"].to_pylist()])
    return columns


def _segments(columns: Any) -> Iterator[tuple[str, float, float | None]]:
    return zip(*(columns[name].to_pylist() for name in ("path", "start_s", "end_s")))


def _check_repeats(path: Path, part: Path, hashes: np.ndarray) -> None:
    """No segment in two rows. Rows of equal hash are compared: none is taken for another."""
    ordered = np.sort(hashes)
    equal = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(equal):
        return
    rows = Columns(str(part), "")
    seen: dict[tuple[str, float, float | None], int] = {}
    for place in np.flatnonzero(np.isin(hashes, equal)).tolist():
        row = rows[place]
        other = seen.setdefault((row.path, row.start_s, row.end_s), place)
        if other != place:
            text = f"row {place + 1} repeats row {other + 1}: {row.path}"
            raise VidlearnError(f"{path}: {text}. Delete one")
