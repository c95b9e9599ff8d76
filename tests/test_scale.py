"""Manifests of millions of rows: Parquet says what CSV says, in little memory; long epochs."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import videos as made
from pyarrow import parquet

from vidlearn.batch import ClipDataset, ShardedSampler, make_loader
from vidlearn.cli import main
from vidlearn.datasets import (
    Manifest,
    Row,
    check,
    columns,
    index,
    open_data,
    read_manifest,
    transcode,
    write_manifest,
)  # fmt: skip
from vidlearn.datasets.adapters import KINDS, Listing
from vidlearn.datasets.manifest import Seen
from vidlearn.datasets.shuffle import EXACT, Shuffle, shuffled
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.sample import ClipSpec
from vidlearn.transform import ClipTransform

N = 300_000


def of(rows: list[Row], folder: Path) -> tuple[Manifest, Manifest]:
    """The same rows, read from CSV and from Parquet."""
    paths = [write_manifest(folder / f"m.{kind}", rows) for kind in ("csv", "parquet")]
    return read_manifest(paths[0]), read_manifest(paths[1])


def some_rows(folder: Path, n: int = 60, *, splits: str = "") -> list[Row]:
    """Rows with everything: classes and sources of several rows, segments, odd and far paths."""
    rows = [
        Row(
            str(folder / f"a, b/ü{i // 2}.mp4"), ["run", "", "sit", "Äpfel"][i % 4],
            splits.split()[i % 3] if splits else "", 0.5 * (i % 2), [None, 2.25][i % 2],
            f"s{i // 6}" if i % 12 < 6 else "",
        )
        for i in range(n)
    ]  # fmt: skip
    return [*rows, Row("/elsewhere/x.mp4", "run", "train" * bool(splits)), Row("/elsewhere/0.mp4")]


# Parquet says what CSV says.


@pytest.mark.parametrize("splits", ["", "train val test", "train test train", "a b c"])
def test_parquet_and_csv_are_one_manifest(tmp_path: Path, splits: str) -> None:
    csv, mapped = of(rows := some_rows(tmp_path, splits=splits), tmp_path)
    assert len(mapped) == len(rows) and list(mapped.rows) == list(csv.rows) == rows
    assert [mapped.rows[i] for i in (0, 7, -1)] == [rows[i] for i in (0, 7, -1)]
    assert list(mapped.rows[5:40:3]) == rows[5:40:3] and list(mapped.rows[::-7]) == rows[::-7]
    with pytest.raises(IndexError):
        mapped.rows[len(rows)]
    assert mapped.rows == csv.rows and mapped.rows != csv.rows[1:]
    assert mapped.classes == csv.classes == ("run", "sit", "Äpfel")
    assert [*map(mapped.label_index, mapped.rows)] == [*map(csv.label_index, csv.rows)]
    assert mapped.training().rows == csv.training().rows
    for name in {*splits.split()}:
        assert list(mapped.split(name).rows) == list(csv.split(name).rows)
        assert list(mapped.split(name).rows[2:5]) == list(csv.split(name).rows[2:5])
    assert mapped.source == str(tmp_path / "m.parquet")
    assert pickle.loads(pickle.dumps(mapped.training())) == mapped.training()
    for seed in range(3):
        (parts, how), (wanted, said) = mapped.splits(seed), csv.splits(seed)
        assert how == said and {n: [*p.rows] for n, p in parts.items()} == {
            n: [*p.rows] for n, p in wanted.items()
        }
        again = parts["test"].split("test") if "7 to 3" in how else parts["train"]
        assert {row.split for row in again.rows} <= {"train", "test"} and len(again)


def test_each_video_once(tmp_path: Path) -> None:
    csv, mapped = of(rows := some_rows(tmp_path), tmp_path)
    paths = [*dict.fromkeys(row.path for row in rows)]
    assert len(paths) < len(rows) and [*csv.paths] == [*mapped.paths] == paths
    assert len(mapped.paths) == len(paths) and mapped.paths[3] == paths[3]


def test_the_split_of_data_without_one_is_as_it_always_was() -> None:
    """Of 80 rows with 20 sources, drawn source by source as NumPy shuffles their names."""
    rows = tuple(Row(f"{i}.mp4", "ab"[i % 2], source_id=f"s{i // 4}") for i in range(80))
    rng, place = np.random.default_rng(3), {}
    for label in "ab":
        group = {row.source_id for row in rows if row.label == label} - place.keys()
        for i, source in enumerate(rng.permutation(sorted(group)).tolist()):
            place[source] = "test" if i < round(0.3 * len(group)) else "train"
    parts, _ = Manifest(rows, ("a", "b"), "").splits(3)
    for name, part in parts.items():
        assert {row.source_id for row in part.rows} == {s for s, n in place.items() if n == name}


def test_without_splits_or_labels_the_errors_are_the_same(tmp_path: Path) -> None:
    said = []
    for data in of([Row(str(tmp_path / "x.mp4")), Row("/y.mp4")], tmp_path):
        assert data.training() is data
        for ask in (lambda data=data: data.split("val"), data.splits):
            with pytest.raises(VidlearnError) as error:
                ask()
            said.append(str(error.value).replace(".parquet", ".csv"))
    assert said[:2] == said[2:] and "no splits" in said[0] and "no labels" in said[1]


def test_other_programs_may_write_it(tmp_path: Path) -> None:
    """Numbers as labels, other widths, dictionaries, missing values and columns."""
    path = tmp_path / "m.parquet"
    table = {
        "label": pa.array([10, 9, None], pa.int64()),
        "end_s": pa.array([3, None, 4], pa.int32()),
        "path": pa.array(["b/../x.mp4", "./y//z.mp4", "/w.mp4"], pa.large_string()),
        "split": pa.array(["train", None, "train"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(table), path, row_group_size=2)
    assert list(read_manifest(path).rows) == [
        Row(f"{tmp_path}/b/../x.mp4", "10", "train", 0.0, 3.0),
        Row(f"{tmp_path}/y/z.mp4", "9"),
        Row("/w.mp4", "", "train", 0.0, 4.0),
    ]
    assert read_manifest(path).classes == ("9", "10")


def test_it_moves_with_its_folder_and_may_be_named_from_inside(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old/manifest.parquet", [Row(str(tmp_path / "old/x.mp4"))])
    assert open_data(tmp_path / "old").rows[0].path == str(tmp_path / "old/x.mp4")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    (found,) = {
        read_manifest(name).rows[0].path for name in ("manifest.parquet", "./manifest.parquet")
    }
    assert found == "x.mp4"
    write_manifest("again.csv", read_manifest("manifest.parquet").rows)
    assert Path("again.csv").read_text().splitlines()[1].startswith("x.mp4,")
    write_manifest("manifest.csv", [Row("x.mp4")])
    with pytest.raises(
        VidlearnError, match=r"holds manifest\.csv and manifest\.parquet\. Give one"
    ):
        open_data(tmp_path / "new")


# What cannot be is told with its row.

BAD = {
    "unknown column 'file' among its columns": {"file": ["x.mp4"]},
    "no column 'path'": {"label": ["x"]},
    "manifest has no rows": {"path": pa.array([], pa.string())},
    "row 2 has no path": {"path": ["x.mp4", "", "y.mp4"]},
    "row 3 has no path": {"path": ["x.mp4", "y.mp4", None]},
    "column path is of the type double. Give text": {"path": [1.5]},
    "column end_s is of the type string. Give seconds as numbers": {"path": ["x"], "end_s": ["1"]},
    "row 2: start_s is -1. Give seconds": {"path": ["x", "y"], "start_s": [0.0, -1.0]},
    "row 1: end_s is nan. Give seconds": {"path": ["x", "y"], "end_s": [np.nan, 1.0]},
    "row 2: end_s is inf. Give seconds": {"path": ["x", "y"], "end_s": [1.0, np.inf]},
    "row 2: end_s 2 is not after start_s 5": {
        "path": ["x"] * 2,
        "start_s": [1, 5],
        "end_s": [2, 2],
    },
    "row 1: end_s 2 is not after start_s 2": {"path": ["x"], "start_s": [2], "end_s": [2]},
    "row 3 repeats row 1: x.mp4. Delete one": {"path": ["x.mp4", "y", "./x.mp4"]},
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_file_gives_one_clear_error(tmp_path: Path, words: str) -> None:
    path = tmp_path / "m.parquet"
    parquet.write_table(pa.table(BAD[words]), path, row_group_size=1)
    with pytest.raises(VidlearnError) as error:
        open_data(path)
    assert words in str(error.value) and str(error.value).startswith(f"{path}: ")
    assert not list(tmp_path.glob(".*.part")) and not list(tmp_path.glob("*.arrow"))


def test_what_is_no_parquet_is_told(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "m.parquet").write_text("path,label\nx.mp4,a\n")
    with pytest.raises(VidlearnError, match=r"m\.parquet: cannot be read as Parquet .*A manifest"):
        read_manifest(tmp_path / "m.parquet")
    with pytest.raises(VidlearnError, match=r"n\.parquet: No such file"):
        read_manifest(tmp_path / "n.parquet")
    path = write_manifest(tmp_path / "cut.parquet", some_rows(tmp_path))
    half = path.read_bytes()
    path.write_bytes(half[:40] + bytes(200) + half[240:])
    with pytest.raises(VidlearnError, match=r"cut\.parquet: cannot be read as Parquet"):
        read_manifest(path)
    broken = os.fsdecode(b"caf\xe9.mp4")
    with pytest.raises(VidlearnError, match=r"not UTF-8\. Rename that video"):
        write_manifest(tmp_path / "u.parquet", [Row(str(tmp_path / broken))])
    for name in ("vidlearn.datasets.columns", "pyarrow"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vidlearn.datasets.columns")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs the package pyarrow.*vidlearn\[parquet\]"):
        read_manifest(tmp_path / "m.parquet")
    assert len(read_manifest(write_manifest(tmp_path / "m.csv", [Row("x.mp4")]))) == 1


def test_rows_of_equal_hash_are_compared(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(columns, "hash", lambda _: 7, raising=False)
    rows = some_rows(tmp_path)
    assert len(of(rows, tmp_path)[1]) == len(rows)
    with pytest.raises(VidlearnError, match="row 63 repeats row 9"):
        read_manifest(write_manifest(tmp_path / "n.parquet", [*rows, rows[8]]))


# The Arrow file beside it.


def test_it_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path, arrow = tmp_path / "m.parquet", tmp_path / ".m.parquet.arrow"
    write_manifest(path, [Row("/a.mp4")])
    first, stamp = read_manifest(path), arrow.stat().st_mtime_ns
    assert read_manifest(path).rows == first.rows and arrow.stat().st_mtime_ns == stamp
    write_manifest(path, [Row("/b.mp4"), Row("/c.mp4")])
    assert [row.path for row in read_manifest(path).rows] == ["/b.mp4", "/c.mp4"]
    assert first.rows[0].path == "/a.mp4"  # whoever had it open keeps it
    arrow.write_bytes(arrow.read_bytes()[:-9])  # a disk that was full
    assert len(read_manifest(path)) == 2
    arrow.write_bytes(b"")
    assert len(read_manifest(path)) == 2


def test_where_the_folder_cannot_be_written_it_goes_to_the_cache(tmp_path, monkeypatch) -> None:
    path = write_manifest(tmp_path / "m.parquet", [Row("/a.mp4")])
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(read_manifest(path)) == 1 == len(read_manifest(path))
    assert len(list((tmp_path / "cache/vidlearn").glob("*.arrow"))) == 1
    assert not (tmp_path / ".m.parquet.arrow").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(VidlearnError, match=r"arrow: cannot be written \(.*set XDG_CACHE_HOME"):
        read_manifest(path)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 300,000 segments of one video that is there, nine in ten for training."""
    folder = tmp_path_factory.mktemp("long")
    video = made.write(folder / "x.mp4", 48)
    rows = (
        Row(str(video), f"class {i % 400}", "train" if i % 10 else "val", 1e-6 * i, 1.9)
        for i in range(N)
    )
    return write_manifest(folder / "m.parquet", rows)


OPEN = """
import sys
from pathlib import Path
from vidlearn.datasets import columns, read_manifest
def anonymous_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("Pss_Anon")) / 1024
before, convert, converted = anonymous_mib(), columns._convert, []
columns._convert = lambda *given: (convert(*given), converted.append(given))
data = read_manifest(sys.argv[1])
grown = len(data), len(data.training()), anonymous_mib() - before
print(*grown, len(converted))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is asked of Linux")
def test_ranks_that_start_at_once_share_one_file(long: Path) -> None:
    call = [sys.executable, "-c", OPEN, str(long)]
    for converts in (1, 0):  # one of the first two does, of the second none
        ranks = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [rank.communicate()[0].split() for rank in ranks]
        assert sum(int(converted) for *_, converted in said) == converts
        assert [(n, train) for n, train, *_ in said] == [(str(N), str(N * 9 // 10))] * 2
    assert {path.suffix for path in long.parent.iterdir()} == {
        ".mp4",
        ".parquet",
        ".lock",
        ".arrow",
    }
    # A tuple of 300,000 rows takes more than 100 MiB; 4 bytes a row are 1.
    assert all(float(mib) < 12 for _, _, mib, _ in said), said


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is asked of Linux")
def test_workers_load_from_it(long: Path) -> None:
    data = read_manifest(long).training()
    dataset = ClipDataset(data, ClipSpec(frames=2, stride_frames=1), ClipTransform(16), 0, "pyav")
    loader = make_loader(dataset, ShardedSampler(len(dataset), 4), workers=2)
    for batch in islice(loader, 2):
        assert batch.valid.all()
        rows = [data.rows[i] for i in batch.indices.tolist()]
        assert batch.labels.tolist() == [*map(data.label_index, rows)]
        assert {row.split for row in rows} == {"train"}


# Writing and listing take rows as they come.


def lines(folder: Path, n: int) -> Iterator[Row]:
    for i in range(n):
        yield Row(f"{folder}/videos/{i:040d}.mp4", f"class {i % 400}", "train", 0.0, None, f"s{i}")


def peak_mib(call: Any) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_writing_holds_a_batch_and_not_the_whole(tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(columns, "BATCH", 1000)
    write_manifest(tmp_path / f"first.{kind}", lines(tmp_path, 100))
    path = tmp_path / f"m.{kind}"
    peaks = [peak_mib(lambda n=n: write_manifest(path, lines(tmp_path, n))) for n in (3000, 12000)]
    assert peaks[1] < 1.3 * peaks[0] + 0.1, peaks
    if kind == "parquet":
        assert parquet.ParquetFile(path).num_row_groups == 12
        assert pa.total_allocated_bytes() < 10 * 2**20


def test_nothing_is_left_of_a_listing_that_fails(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield Row("/x.mp4")
        raise VidlearnError("no more")

    for kind in ("csv", "parquet"):
        with pytest.raises(VidlearnError, match="no more"):
            write_manifest(tmp_path / f"m.{kind}", rows())
    assert not list(tmp_path.iterdir())


def known_videos(folder: Path, n: int) -> Manifest:
    """A mapped manifest of so many files that `check` has found good and `index` knows."""
    folder.mkdir()
    for i in range(n):
        (folder / f"{i:060d}.mp4").touch()
    paths = [str(path) for path in sorted(folder.iterdir())]
    file = write_manifest(folder / "m.parquet", (Row(path, "run") for path in paths))
    lines = ({"path": p, "stamp": check.stamp(p), "full": False, "cause": ""} for p in paths)
    check.journal_of(folder / "q").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with sqlite3.connect(index.index_file(file)) as db:
        db.execute(f"PRAGMA user_version = {index.VERSION}")
        db.execute(f"CREATE TABLE videos ({index.TABLE})")
        rows = ((os.path.basename(p), *(check.stamp(p) or ()), b"") for p in paths)
        db.executemany("INSERT INTO videos VALUES (?, ?, ?, ?)", rows)
    return read_manifest(file)


@pytest.mark.parametrize("work", ["check", "index", "transcode"])
def test_no_list_of_the_videos_is_held(
    tmp_path: Path, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BATCH", 250)  # rows that are objects at a time
    peaks, few, many = [], 500, 4500
    for n in (few, many):
        data = known_videos(tmp_path / str(n), n)
        out = tmp_path / f"{n}-copies"
        does: dict[str, Callable[[], Any]] = {
            "check": lambda data=data, n=n: check.check_all(data, tmp_path / str(n) / "q"),
            "index": lambda data=data: index.build(data),
            "transcode": lambda data=data, out=out: len(transcode.Targets(data, out)),
        }
        assert does[work]() in ({}, (n, 0, {}), n)  # and what is imported is there
        peaks.append(peak_mib(does[work]))
    assert (peaks[1] - peaks[0]) * 2**20 < 100 * (many - few), "bytes a video, whose path has 90"


def test_what_was_seen_takes_few_bytes() -> None:
    seen = Seen()
    before = peak_mib(lambda: seen.add("warm"))
    peak = peak_mib(lambda: [seen.add(f"{i:060d}") for i in range(50_000)] and None)
    assert peak - before < 3 and len(seen) == 50_001 and "warm" in seen and "cold" not in seen
    assert not seen.add("warm") and not seen.add(f"{7:060d}") and seen.add(f"{50_000:060d}")
    assert seen.add("\udce9") and not seen.add("\udce9") and len(seen) == 50_003


def test_a_listing_keeps_no_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: not path.endswith("7.mp4"))
    peaks = []
    for n in (4_000, 16_000):
        monkeypatch.setitem(KINDS, "folder", (lambda root, n=n: lines(root, n), ""))
        listing = Listing("folder", tmp_path)
        peaks.append(peak_mib(lambda listing=listing: sum(1 for _ in listing)))
        assert len(listing.missing.first) == 3
        assert listing.rows == len(listing.videos) == listing.missing.rows * 9
    assert (peaks[1] - peaks[0]) * 2**20 / 12_000 < 120, peaks  # bytes a row; texts alone take 200


def run(capsys: Any, *words: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    return end.value.code, *capsys.readouterr()


def test_the_commands_take_parquet(tmp_path: Path, capsys) -> None:
    """A CSV becomes Parquet with one command; then `stats` and `check` say the same of both."""
    video = made.write(tmp_path / "x.mp4", 12)
    made.write(tmp_path / "y.mp4", 12)
    rows = [Row(str(video), "a", "train", 0.0, 0.2), Row(str(video), "b", "val", 0.2, 0.4)]
    rows += [Row(str(tmp_path / "y.mp4"), "a", "train"), Row(str(tmp_path / "gone.mp4"))]
    csv, out = write_manifest(tmp_path / "m.csv", [*rows, rows[1]]), tmp_path / "m.parquet"
    status, text, _ = run(capsys, "data", "manifest", "list", csv, "--out", out)
    assert status == 0 and text.splitlines() == [
        f"{out}: 2 videos, 3 segments, 2 classes",
        f"1 rows left out, whose 1 files are not there, such as {tmp_path / 'gone.mp4'}",
        f"1 rows left out that repeat an earlier one, such as {video} at 0.2 s",
    ]
    assert (tmp_path / ".m.parquet.arrow").exists()  # ready for the first run
    assert list(read_manifest(out).rows) == rows[:3]
    again = tmp_path / "again.csv"
    assert run(capsys, "data", "manifest", "list", out, "--out", again)[0] == 0
    assert read_manifest(again).rows == tuple(rows[:3])
    for words in (["stats"], ["check", "--out", tmp_path / "bad.jsonl"]):
        said = [run(capsys, "data", words[0], path, *words[1:]) for path in (out, again)]
        assert said[0][1].replace(str(out), str(again)) == said[1][1] and said[0][0] == 0
    assert run(capsys, "data", "transcode", out, tmp_path / "small")[0] == 0
    assert [row.label for row in open_data(tmp_path / "small").rows] == ["a", "b", "a"]


def test_where_a_long_csv_is_no_text(tmp_path: Path) -> None:
    start = b"path\n" + b"x.mp4\n" * 5000
    (tmp_path / "m.csv").write_bytes(start + b"\xe9.mp4\n")
    with pytest.raises(VidlearnError, match=f"byte {len(start)} is not UTF-8"):
        read_manifest(tmp_path / "m.csv")


# Long epochs.


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097, 100_003])
def test_a_shuffle_has_every_number_once(n: int) -> None:
    found = Shuffle(n, (1, 2))[:]
    assert found.dtype == np.int64 and np.array_equal(np.sort(found), np.arange(n))
    assert len(Shuffle(n, (1, 2))) == n
    assert np.array_equal(found[n // 3 : n // 2], Shuffle(n, (1, 2))[n // 3 : n // 2])


def test_a_shuffle_looks_random() -> None:
    """Each within five standard deviations of what a random permutation gives."""
    n, bins = 400_000, 20
    found = Shuffle(n, (0, 0, 0, 2))[:]
    places = np.histogram2d(np.arange(n), found, bins)[0]
    expected = n / bins**2
    chi2, freedom = ((places - expected) ** 2 / expected).sum(), (bins - 1) ** 2
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    for lag in (1, 2, 1000):
        assert abs(np.corrcoef(found[lag:], found[:-lag])[0, 1]) < 5 / n**0.5
        assert abs((np.abs(found[lag:] - found[:-lag]) == lag).sum() - 2) < 8
    for bit in range(15):  # no bit of the place stays in the number
        kept = ((found >> bit & 1) == (np.arange(n) >> bit & 1)).mean()
        assert abs(kept - 0.5) < 5 * 0.5 / n**0.5
    fixed = [(Shuffle(1000, (s,))[:] == np.arange(1000)).sum() for s in range(200)]
    assert abs(np.mean(fixed) - 1) < 5 / 200**0.5


def test_small_shuffles_are_of_every_kind() -> None:
    """Of five numbers there are 120 orders."""
    assert len({tuple(Shuffle(5, (seed,))[:].tolist()) for seed in range(1200)}) == 120


def test_seeds_and_epochs_shuffle_anew() -> None:
    n = 10_000
    orders = [Shuffle(n, seed)[:] for seed in ((0, 0), (0, 1), (1, 0), (2, 5))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10 and abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_up_to_a_million_the_order_is_as_it_always_was() -> None:
    wanted = np.random.default_rng((3, 4, 0, 2)).permutation(1000)
    assert np.array_equal(ShardedSampler(1000, 10, seed=3).order(4), wanted)
    assert isinstance(shuffled(EXACT, (0,)), np.ndarray)
    assert isinstance(shuffled(EXACT + 1, (0,)), Shuffle)


def test_a_long_epoch_takes_no_memory_and_goes_on_anywhere() -> None:
    n, batch = 10_000_019, 64
    steps = n // batch
    samplers = [ShardedSampler(n, batch, rank, 2, seed=5) for rank in range(2)]
    ranks = [[*islice(sampler, 6)] for sampler in samplers]
    seen = [i for step in zip(*ranks) for part in step for i in part]
    assert [i for _, i in seen] == samplers[0].order(0)[: 6 * batch].tolist()
    assert len(set(seen)) == 6 * batch and {epoch for epoch, _ in seen} == {0}
    later = ShardedSampler(n, batch, 1, 2, seed=5, start_step=4)
    assert [*islice(later, 2)] == ranks[1][4:]
    last = [*islice(ShardedSampler(n, batch, seed=5, start_step=steps - 1), 2)]
    assert [part[0][0] for part in last] == [0, 1]
    assert [i for _, i in last[0]] == samplers[0].order(0)[(steps - 1) * batch :][:batch].tolist()
    assert peak_mib(lambda: [*islice(ShardedSampler(n, batch, start_step=99), 20)]) < 1


def test_the_columns_of_a_row_are_those_of_a_file() -> None:
    assert columns.STORED.names == list(columns.COLUMNS) and len(astuple(Row(""))) == 6
