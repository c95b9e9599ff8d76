"""Functions that remember up to so many bytes: what goes first, and what is not kept."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import videos
from PIL import Image

from vidlearn.datasets import index, packets
from vidlearn.datasets.kept import Kept, kept, table_bytes
from vidlearn.datasets.manifest import Manifest, Row
from vidlearn.datasets.sequences import PictureTable, frame_table
from vidlearn.errors import VideoError


def numbers(most_bytes: int) -> tuple[Kept, list[int]]:
    """A function that gives so many bytes, and with what it was called."""
    calls: list[int] = []

    @kept(len, most_bytes)
    def some(n: int) -> bytes:
        calls.append(n)
        if n < 0:
            raise VideoError("x.mp4", "less than nothing")
        return bytes(n)

    return some, calls


def test_the_least_used_goes_first() -> None:
    some, calls = numbers(10)
    assert [len(some(n)) for n in (4, 5, 4)] == [4, 5, 4] and calls == [4, 5]
    some(1)  # all ten are taken
    some(3)  # 5 goes, which was used before 4
    assert [*some.values] == [(4,), (1,), (3,)] and some.bytes == 8
    some(5)
    assert calls == [4, 5, 1, 3, 5] and [*some.values] == [(1,), (3,), (5,)] and some.bytes == 9


def test_what_is_too_large_is_kept_alone() -> None:
    some, calls = numbers(10)
    for n in (4, 99, 99, 4):
        some(n)
    assert calls == [4, 99, 4] and some.bytes == 4
    some.cache_clear()
    some(4)
    assert calls == [4, 99, 4, 4] and some.bytes == 4


def test_errors_are_not_kept() -> None:
    some, calls = numbers(10)
    for _ in range(2):
        with pytest.raises(VideoError):
            some(-1)
    assert calls == [-1, -1] and some.bytes == 0


def test_tables_of_many_videos_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(videos.write(tmp_path / f"{i}.mp4", 20)) for i in range(5)]
    index.build(Manifest(tuple(map(Row, paths)), (), str(tmp_path)))
    file, one = index.index_file(tmp_path), table_bytes(frame_table(paths[0]))
    index._table.cache_clear()
    monkeypatch.setattr(index._table, "most_bytes", 3 * one)
    for _ in range(2):
        for path in paths:
            assert index.table_of(path, file).n_frames == 20
            assert index._table.bytes <= 3 * one
    assert len(index._table.values) == 3
    index._table.cache_clear()


def test_a_table_takes_what_is_counted(tmp_path: Path) -> None:
    table = packets.scan(str(videos.write(tmp_path / "a.mp4", 400)))
    assert isinstance(table, packets.PacketTable)
    columns = [getattr(table, name) for name in index.COLUMNS] + [table.row_of]
    taken = sum(column.nbytes for column in columns)
    assert taken < table_bytes(table) < 1.3 * taken


def test_pictures_take_what_is_counted(tmp_path: Path) -> None:
    for i in range(400):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i:06d}.jpg")
    table = frame_table(f"{tmp_path}#fps=30")
    assert isinstance(table, PictureTable) and table.n_frames == 400
    columns = {id(x): x.nbytes for x in vars(table).values() if isinstance(x, np.ndarray)}
    taken = sum(columns.values()) + sum(map(sys.getsizeof, table.places)) + 8 * 400
    assert taken < table_bytes(table) < 2 * taken
