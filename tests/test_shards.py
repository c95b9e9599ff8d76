"""Shards: what is in the tars, that clips are those of the files, and which node reads which."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import videos
import webdataset

from vidlearn import train as training
from vidlearn.batch import ClipDataset, ShardedSampler, eval_loader, make_loader
from vidlearn.cli import main
from vidlearn.datasets import (
    Manifest,
    Row,
    index,
    lanes,
    open_data,
    packets,
    read_manifest,
    shards,
    tars,
    transcode,
    write_manifest,
)
from vidlearn.datasets.check import check_all
from vidlearn.datasets.cost import needs
from vidlearn.datasets.lanes import Lanes
from vidlearn.datasets.sequences import frame_table, frames_at
from vidlearn.dist import Dist
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.recipes import recipe
from vidlearn.sample import ClipSpec
from vidlearn.train import train
from vidlearn.transform import ClipTransform

SPEC, SMALL = ClipSpec(frames=4, stride_frames=3), ClipTransform(16)
KINDS = {"plain.mp4": "mp4", "h264.avi": "avi", "vp9.webm": "webm", "turned-90.mp4": "mp4"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twenty-six small videos, one of them with three segments, in a folder with odd letters."""
    root = tmp_path_factory.mktemp("of files, ü")
    rows = []
    for i in range(22):
        path = videos.write(root / f"{i}.mp4", 20 + i % 5, gop=6)
        rows.append(Row(str(path), "ab"[i % 2], "train" if i < 18 else "val"))
    made = videos.TRUSTED | videos.AWKWARD
    for name in KINDS:
        rows.append(Row(str(made[name](root / name)), "c", "train"))
    cut = rows.pop(3)
    rows += [dataclasses.replace(cut, start_s=t / 5, end_s=(t + 1) / 5) for t in range(3)]
    return open_data(write_manifest(root / "manifest.csv", rows))


@pytest.fixture(scope="module")
def sharded(files: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("shards, in") / "s:1"
    path, n, bad = shards.shard_all(files, out, videos_per_shard=4, jobs=2)
    assert n == 9 and not bad  # 22 videos to train on in eight, four in one
    return read_manifest(path)


def told(row: Row) -> tuple[Any, ...]:
    return row.label, row.split, row.start_s, row.end_s or 0.0, Path(row.source_id or row.path).name


def clips(data: Manifest, backend: str) -> dict[Any, torch.Tensor]:
    """The clip in the middle of every row."""
    dataset = ClipDataset(data, SPEC, ClipTransform(16, train=False), 0, backend, False)
    return {told(row): dataset[i]["clip"] for i, row in enumerate(data.rows)}


def test_webdataset_reads_what_was_written(files: Manifest, sharded: Manifest) -> None:
    folder = Path(sharded.source).parent
    names = sorted(str(path) for path in folder.glob("*.tar"))
    assert [Path(name).name for name in names] == [
        *(f"train-{i:06d}.tar" for i in range(8)),
        "val-000000.tar",
    ]
    samples = [s for name in names for s in webdataset.WebDataset(name, shardshuffle=False)]
    rows_of: dict[str, list[Row]] = {}
    for row in files.rows:
        rows_of.setdefault(Path(row.path).name, []).append(row)
    found = {}
    for sample in samples:
        about = json.loads(sample["json"])
        rows = rows_of[about["path"]]
        ending = Path(about["path"]).suffix[1:]
        assert sample[ending] == Path(rows[0].path).read_bytes()
        assert (about["label"], about["split"]) == (rows[0].label, rows[0].split)
        kept = about.get("rows", [about])
        assert [(r["start_s"], r["end_s"]) for r in kept] == [(r.start_s, r.end_s) for r in rows]
        found[about["path"]] = sample["__key__"]
    assert found.keys() == rows_of.keys() and len(samples) == len(set(found.values())) == 26
    assert sorted(map(told, files.rows)) == sorted(map(told, sharded.rows))
    assert sharded.classes == files.classes


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("indexed", [False, True])
def test_clips_are_those_of_the_files(
    files: Manifest, sharded: Manifest, backend: str, indexed: bool, monkeypatch
) -> None:
    index._table.cache_clear()
    file = index.index_file(sharded.source)
    file.unlink(missing_ok=True)
    if indexed:
        assert index.build(sharded, jobs=1) == (26, 26, {}) and index.build(sharded)[1] == 0
        tars.table.cache_clear()
        monkeypatch.setattr(tars, "table", lambda *_: pytest.fail("reads the table of a tar"))
    of_files, of_shards = clips(files, backend), clips(sharded, backend)
    assert of_files.keys() == of_shards.keys() and len(of_files) == 28
    for key, clip in of_files.items():
        assert clip.any() and torch.equal(clip, of_shards[key]), key
    direct = [isinstance(index.table_of(r.path, file), packets.PacketTable) for r in sharded.rows]
    assert sum(direct) == sum(row.path.endswith("mp4") for row in sharded.rows) - 1  # the turned


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_the_backends_open_the_part_themselves(sharded: Manifest, backend: str) -> None:
    from vidlearn import decode

    table = frame_table(next(r.path for r in sharded.rows if r.label == "a"))
    frames = getattr(decode, f"_{backend}")(table, np.array([3, 11]))
    assert [videos.read_index(frame) for frame in frames.numpy()] == [3, 11]


def test_everything_that_takes_paths_takes_those(sharded: Manifest, tmp_path, capsys) -> None:
    main_ok(["data", "stats", sharded.source])
    said = capsys.readouterr().out
    assert "28 rows of 26 videos" in said and "missing files: 0" in said
    assert check_all(sharded, tmp_path / "q.jsonl", full=True, jobs=1) == {}
    assert check_all(sharded, tmp_path / "q.jsonl", full=True, jobs=1) == {}
    small = dataclasses.replace(sharded, rows=sharded.rows[:3])
    sizes = [tars.size_bytes(row.path) for row in sharded.rows]
    assert needs(sharded, 1, 1.0)["stored_bytes"] <= 28 * max(sizes)
    assert not transcode.transcode_all(small, tmp_path / "t", transcode.Plan(short_side=32), jobs=1)
    assert len(transcode.saved(transcode.Targets(small, tmp_path / "t"))) == 2
    loader = make_loader(
        ClipDataset(sharded, SPEC, SMALL, backend="auto"), ShardedSampler(28, 7), workers=2
    )
    assert all(batch.valid.all() for batch in islice(loader, 4))
    again = shards.shard_all(sharded, tmp_path / "again", videos_per_shard=9, jobs=1)
    one, other = clips(sharded, "pyav"), clips(read_manifest(again[0]), "pyav")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def main_ok(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 0


# Writing


def state(out: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*.tar")}


def test_a_call_that_was_cut_goes_on(files: Manifest, tmp_path: Path, monkeypatch) -> None:
    real, written = shards._sample, []

    def dies(key: str, *given: Any) -> Any:
        written.append(key)
        if len(written) == 9:
            raise KeyboardInterrupt
        return real(key, *given)

    monkeypatch.setattr(shards, "_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        shards.shard_all(files, tmp_path / "s", videos_per_shard=4, jobs=1)
    half = state(tmp_path / "s")
    assert 1 <= len(half) < 9 and not [*(tmp_path / "s").glob(".*.part")]
    assert not (tmp_path / "s/manifest.csv").exists()
    (tmp_path / "s/.other.tar.part").write_bytes(b"of one that was killed")
    shards.shard_all(files, tmp_path / "s", videos_per_shard=4, jobs=1)
    whole = state(tmp_path / "s")
    assert half.items() <= whole.items() and len(whole) == 9  # not written again
    assert not [*(tmp_path / "s").glob(".*.part")]
    shards.shard_all(files, tmp_path / "t", videos_per_shard=4, jobs=2)
    assert {k: v[0] for k, v in whole.items()} == {
        k: v[0] for k, v in state(tmp_path / "t").items()
    }
    for other in ({"videos_per_shard": 9}, {"seed": 1, "videos_per_shard": 4}):
        with pytest.raises(VidlearnError, match=r"holds .*sha256.*Choose another folder"):
            shards.shard_all(files, tmp_path / "s", **other)


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys) -> None:
    for i in range(5):
        videos.write(tmp_path / "v" / f"{i}.mp4", 8) if i else (tmp_path / "v").mkdir()
    rows = [Row(str(tmp_path / f"v/{i}.mp4"), "a") for i in range(5)]
    data = write_manifest(tmp_path / "m.parquet", rows)
    with pytest.raises(SystemExit) as left:
        main(["data", "shard", str(data), str(tmp_path / "s"), "--mib", "1"])
    said = capsys.readouterr().out
    assert left.value.code == 1 and "v/0.mp4: No such file" in said and "1 unreadable" in said
    assert "0.mp4" in (tmp_path / "s/quarantine.jsonl").read_text()
    made = read_manifest(tmp_path / "s/manifest.parquet")
    assert len(made) == 4 and made.rows[0].path.startswith(str(tmp_path / "s/000000.tar/0000000"))
    none = Manifest(tuple(rows[:1]), ("a",), str(data))
    with pytest.raises(VidlearnError, match="none of its videos can be read"):
        shards.shard_all(none, tmp_path / "none")
    pictures = Manifest((Row(f"{tmp_path}/v#fps=3"),), (), str(data))
    with pytest.raises(ConfigError, match=r"pictures cannot go into shards.*encode"):
        shards.shard_all(pictures, tmp_path / "none")
    for wrong in ({"mib": 0}, {"mib": float("nan")}, {"videos_per_shard": 0}, {"jobs": 0}):
        with pytest.raises(ConfigError, match="give numbers above 0"):
            shards.shard_all(none, tmp_path / "none", **wrong)


def test_a_source_that_changes_and_an_empty_one(tmp_path: Path) -> None:
    for i in range(4):
        os.utime(videos.write(tmp_path / "in" / f"{i}.mp4", 9) if i else _made(tmp_path), (10, 10))
    (tmp_path / "in" / "empty.mp4").touch()
    data, out = open_data(tmp_path / "in"), tmp_path / "out"
    for changes in (False, True, False):
        if changes:
            videos.write(tmp_path / "in" / "2.mp4", 12)
        before = {tar.name: tar.stat().st_ino for tar in out.glob("*.tar")}
        path, n, bad = shards.shard_all(data, out, videos_per_shard=2)
        assert n == 2 and bad == {str(tmp_path / "in" / "empty.mp4"): "it is empty"}
        same = [before.get(tar.name) == tar.stat().st_ino for tar in out.glob("*.tar")]
        assert sum(same) == (0 if not before else 1 if changes else 2)
    frames = [index.table_of(row.path).n_frames for row in read_manifest(path).rows]
    assert sorted(frames) == [9, 9, 9, 12]


def _made(folder: Path) -> Path:
    (folder / "in").mkdir()
    return videos.write(folder / "in" / "0.mp4", 9)


def test_a_full_disk_and_a_missing_package_are_told(files, tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(VidlearnError, match=r"000000\.tar: cannot be written \(No space left"):
            shards.shard_all(files, tmp_path / "s", jobs=1)
        assert not state(tmp_path / "s") and not [*(tmp_path / "s").glob(".*part")]
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"needs the package webdataset.*vidlearn\[shards\]"):
        shards.shard_all(files, tmp_path / "s", jobs=1)


@pytest.mark.parametrize(
    ("wanted", "most", "n"), [(0, 9, 1), (3, 9, 4), (5, 6, 6), (64, 99, 64), (65, 999, 128)]
)
def test_the_number_of_shards_suits_many_nodes(wanted: int, most: int, n: int) -> None:
    assert shards._rounded(wanted, most) == n


def test_tars_have_equal_numbers_of_videos(tmp_path: Path) -> None:
    rows = [Row(str(tmp_path / f"{i}.mp4")) for i in range(35)]
    for row in rows:
        Path(row.path).write_bytes(b"0" * 2**10)
    data = Manifest(tuple(rows), (), str(tmp_path))
    for mib, per_shard in ((5 / 2**10, None), (512, 5)):
        made, bad = shards.plan(data, mib, per_shard, 0)
        sizes = [len(shard.videos) for shard in made]
        assert not bad and len(sizes) == 8 and sum(sizes) == 35 and max(sizes) - min(sizes) == 1
        halves = sum(sizes[:4]), sum(sizes[4:])
        assert abs(halves[0] - halves[1]) == 1
        assert [key for shard in made for key, _ in shard.videos] != sorted(
            key for shard in made for key, _ in shard.videos
        )


# Tars that are none, or that want something


def put(path: Path, members: dict[str, bytes], **more: Any) -> Path:
    with tarfile.open(path, "w", **more) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def damaged(folder: Path) -> Iterator[tuple[str, str]]:
    """Path of a member, and what the error says."""
    video = videos.write(folder / "v.mp4", 12).read_bytes()
    members = {"a.mp4": video, "b.mp4": video, "c.mp4": video}
    whole = put(folder / "whole.tar", members).read_bytes()
    begin, end = tars.table(str(folder / "whole.tar"), (1 << 40, 0))[0]["b.mp4"]
    for name, cut in {"in": end - 9, "head": end + 600, "between": begin - 512}.items():
        (folder / f"{name}.tar").write_bytes(whole[:cut])
        yield f"{folder}/{name}.tar/c.mp4", rf"{name}\.tar is cut short.*Copy or download the tar"
    (folder / "rot.tar").write_bytes(whole[: begin - 512] + b"?" * 512 + whole[begin:])
    yield f"{folder}/rot.tar/b.mp4", rf"rot\.tar is cut short or damaged at byte {begin - 512}"
    (folder / "packed.tar").write_bytes(gzip.compress(whole))
    yield f"{folder}/packed.tar/a.mp4", r"packed\.tar is compressed \(gzip\).*Unpack that"
    shutil.copy(folder / "packed.tar", folder / "packed.tar.gz")
    yield f"{folder}/packed.tar.gz/a.mp4", r"packed\.tar\.gz is compressed \(gzip\).*Unpack that"
    yield f"{folder}/whole.tar/d.mp4", r"whole\.tar has no plain member d\.mp4"
    yield f"{folder}/none.tar/d.mp4", r"none\.tar cannot be read \(No such file"
    sizes = {"negative": -1024, "huge": 1 << 70}
    for name, size in sizes.items():
        kind = tarfile.GNUTYPE_LONGNAME if name == "huge" else tarfile.REGTYPE
        head = bytearray(whole[:512])
        head[124:136] = (size % (1 << 95) | 1 << 95).to_bytes(12, "big")
        if size < 0:
            head[124] = 255
        head[156:157] = kind
        head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]
        (folder / f"{name}.tar").write_bytes(head + whole)
        yield f"{folder}/{name}.tar/a.mp4", rf"{name}\.tar is (cut short|no tar)"
    (folder / "text.tar").write_text("no tar\n" * 200)
    yield f"{folder}/text.tar/a.mp4", r"text\.tar is no tar"
    (folder / "empty.tar").write_bytes(b"")
    yield f"{folder}/empty.tar/a.mp4", r"empty\.tar is no tar"


def test_a_damaged_tar_is_one_clear_error(tmp_path: Path) -> None:
    for path, words in damaged(tmp_path):
        for read in (frame_table, packets.scan, index.table_of, tars.content):
            with pytest.raises(VideoError, match=words) as error:
                read(path)
            assert error.value.path == path and "\n" not in str(error.value)
    assert frame_table(f"{tmp_path}/in.tar/a.mp4").n_frames == 12  # what is whole stays
    rows = tuple(Row(path) for path, _ in damaged(tmp_path))
    data = Manifest(rows, (), str(tmp_path / "m.csv"))
    (batch,) = eval_loader(ClipDataset(data, SPEC, SMALL, backend="auto"), len(rows))
    assert not batch.valid.any() and [path for path, _ in batch.bad] == [r.path for r in rows]


def test_an_error_in_a_member_names_it(tmp_path: Path) -> None:
    path = videos.BROKEN["rotten.mp4"](tmp_path / "rotten.mp4")
    put(tmp_path / "x.tar", {"r.mp4": path.read_bytes(), "empty.mp4": b""})
    for member in ("r", "empty"):
        with pytest.raises(VideoError) as error:
            frames_at(f"{tmp_path}/x.tar/{member}.mp4", list(range(40)), backend="pyav")
        assert str(error.value).startswith(f"{tmp_path}/x.tar/{member}.mp4: ")
    with pytest.raises(VideoError) as plain:
        frames_at(path, list(range(40)), backend="pyav")
    with pytest.raises(VideoError) as inside:
        frames_at(f"{tmp_path}/x.tar/r.mp4", list(range(40)), backend="pyav")
    assert plain.value.cause == inside.value.cause


def test_members_that_are_no_plain_files_are_none(tmp_path: Path) -> None:
    secret = videos.write(tmp_path / "secret.mp4", 12)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard")):
            about = tarfile.TarInfo(f"{name}.mp4")
            about.type, about.linkname = kind, str(secret)
            tar.addfile(about)
        about = tarfile.TarInfo(str(secret))
        about.type = tarfile.FIFOTYPE
        tar.addfile(about)
    before = sorted(tmp_path.iterdir())
    for name in ("link.mp4", "hard.mp4", f"../{secret.name}", str(secret), "."):
        with pytest.raises(VideoError, match="has no plain member"):
            frame_table(f"{tmp_path}/x.tar/{name}")
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "y.tar").mkdir()
    secret.rename(tmp_path / "y.tar/v.mp4")
    assert frame_table(f"{tmp_path}/y.tar/v.mp4").n_frames == 12  # a folder that is called so


def test_random_bytes_in_a_tar_are_errors_at_most(tmp_path: Path) -> None:
    video = videos.write(tmp_path / "v.mp4", 6).read_bytes()
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        long = {"n" * (120 if kind else 60) + ".mp4": video, "é.mp4": video}
        whole = put(tmp_path / "w.tar", long, format=kind).read_bytes()
        rng = np.random.default_rng(kind)
        for trial in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, 2600 if trial % 2 else len(data), 1 + trial % 7):
                data[place] = rng.choice([0, 49, 48, 255, 32, 61, int(rng.integers(256))])
            (tmp_path / "x.tar").write_bytes(data)
            try:
                found, _ = tars.table(f"{tmp_path}/x.tar", (len(data), trial + 1000 * kind))
            except VideoError:
                continue
            assert all(0 <= a <= b <= len(data) for a, b in found.values())


def test_a_tar_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    short, long = (videos.write(tmp_path / f"{n}.mp4", n).read_bytes() for n in (6, 9))
    size = max(len(short), len(long))
    path = f"{tmp_path}/x.tar/v.mp4"
    for n, data in ((6, short), (9, long)):
        put(tmp_path / "x.tar", {"v.mp4": data.ljust(size, b"\0")})
        assert index.table_of(path).n_frames == frame_table(path).n_frames == n
        box = (0, 0, 48, 64)
        part = packets.part_at(path, np.array([n - 1]), box, table=index.table_of(path))
        assert videos.read_index(part[0].numpy()) == n - 1


# Lanes


def of_sizes(sizes: Any, batch: int, clips: int = 1, shuffle: bool = False) -> Lanes:
    tar_of = np.repeat(np.arange(len(sizes)), sizes)
    if shuffle:
        np.random.default_rng(0).shuffle(tar_of)
    return Lanes(tar_of, [f"{i:04d}.tar" for i in range(len(sizes))], batch, clips)


def epoch(known: Lanes, rank: int = 0, world: int = 1, start: int = 0, **more: Any) -> list[Any]:
    n = len(known.rows) if known.rows is not None else int(known.ends[-1])
    sampler = ShardedSampler(
        n * known.clips, known.batch, rank, world, start_step=start, lanes=known, **more
    )
    return [*islice(sampler, sampler.steps_per_epoch - start % sampler.steps_per_epoch)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize(
    ("sizes", "batch", "count", "left"),
    [
        ([10] * 8, 8, 8, 0),
        ([10] * 8, 6, 6, None),  # lanes of eight sixths of a tar
        ([11, 10, 10, 11, 10, 11, 10, 11], 8, 8, None),
        ([1, 40, 3, 17, 2], 4, 4, None),
        ([7], 4, 1, None),
        ([100] * 65, 128, 64, None),
        ([5] * 7, 35, 7, 0),
        ([64, 66] * 4, 8, 8, None),
    ],
)
def test_each_sample_comes_once(sizes, batch, count, left, clips, shuffle) -> None:
    known = of_sizes(sizes, batch, clips, shuffle)
    n = sum(sizes) * clips
    steps = epoch(known)
    assert {len(step) for step in steps} == {batch}
    keys = [key for step in steps for key in step]
    samples = [sample for _, sample in keys]
    assert {number for number, _ in keys} == {0}
    assert len(samples) == len(set(samples)) == known.n == n - known.left_out
    assert set(samples) <= set(range(n)) and known.count == count
    assert known.left_out < batch + n / 32 + known.count * clips
    assert left is None or known.left_out == left


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("step", [0, 1, 7, 31])
def test_any_number_of_ranks_goes_on_with_the_same(world: int, step: int) -> None:
    known = of_sizes([20] * 12, 12)
    straight = ShardedSampler(240, 12, seed=4, lanes=known)
    wanted = [*islice(straight, 50)][step:]
    ranks = [ShardedSampler(240, 12, r, world, 4, step, known) for r in range(world)]
    for alone, *together in zip(wanted, *ranks):
        assert alone == [key for part in together for key in part]
    first = {sample for batch in [*islice(straight, 20)][:step] for _, sample in batch}
    rest = [sample for batch in wanted[: max(0, 20 - step)] for _, sample in batch]
    assert step > 20 or len(rest) == len({*rest} - first) == 240 - len(first)


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_nodes_read_tars_of_their_own(nodes: int) -> None:
    rng = np.random.default_rng(0)
    known = of_sizes(50 + rng.integers(0, 2, 64), 128)
    tar_of = np.repeat(np.arange(64), np.diff(known.ends, prepend=0))
    seen: list[set[str]] = []
    for node in range(nodes):
        used = set()
        for number in range(3):  # in every epoch the same
            start = number * (known.n // 128)
            keys = [key for step in epoch(known, node, nodes, start, seed=2) for key in step]
            assert {at for at, _ in keys} == {number}
            used |= {known.tars[tar_of[sample]] for _, sample in keys}
        assert used == set(known.of_node(node, nodes))
        assert not used & set().union(*seen)
        seen.append(used)
    assert set().union(*seen) == set(known.tars) and known.left_out < len(tar_of) / 32 + 128
    with pytest.raises(ConfigError, match="count nodes from 0"):
        known.of_node(nodes, nodes)


def test_epochs_and_seeds_differ_and_a_batch_has_all_lanes() -> None:
    known = of_sizes([30] * 8, 16)
    orders = [ShardedSampler(240, 16, seed=s, lanes=known).order(e) for s in (0, 1) for e in (0, 1)]
    whole = [order[:].tolist() for order in orders]
    assert len({tuple(order) for order in whole}) == 4
    tar = np.array(whole[0]).reshape(15, 16) // 30
    assert (np.sort(tar, axis=1) == np.repeat(np.arange(8), 2)).all()
    inside = np.array(whole[0]).reshape(15, 16)[:, 0] % 30
    assert (np.diff(inside) < 0).sum() > 3  # shuffled
    many = of_sizes([10] * 32, 8)  # four tars a lane, two of which make the first half
    halves = [ShardedSampler(320, 8, lanes=many).order(e)[:160] // 10 for e in (0, 1)]
    assert len({*halves[0]}) == len({*halves[1]}) == 16 and {*halves[0]} != {*halves[1]}
    pieces = [orders[0][a : a + 7].tolist() for a in range(0, 240, 7)]
    assert [sample for piece in pieces for sample in piece] == whole[0]


def test_nodes_with_their_tars_only(files: Manifest, tmp_path: Path, capsys) -> None:
    """What `data lanes` lists is copied to two nodes, which see what one sees."""
    some = dataclasses.replace(files, rows=[row for row in files.rows if row.end_s is None][:16])
    source = shards.shard_all(some, tmp_path / "s", videos_per_shard=2, jobs=1)[0].parent
    whole = open_data(source).training()
    known = lanes.of(whole, 4)
    assert known is not None and known.count == 4
    spec = dict(spec=SPEC, transform=SMALL, seed=1, backend="auto")
    sampler = ShardedSampler(len(whole), 4, seed=1, lanes=known)
    alone = islice(make_loader(ClipDataset(whole, **spec), sampler), 6)
    nodes = []
    for node in (0, 1):
        main_none(["data", "lanes", source, "--batch", 4, "--nodes", 2, "--node", node])
        there = capsys.readouterr().out.split()
        assert not any("/" in name for name in there)  # from the data's folder
        (tmp_path / f"{node}").mkdir()
        for name in ["manifest.csv", *there]:
            shutil.copy2(source / name, tmp_path / f"{node}")
        data = read_manifest(tmp_path / f"{node}/manifest.csv").training()
        mine = ShardedSampler(len(data), 4, node, 2, 1, lanes=lanes.of(data, 4))
        nodes.append((there, islice(make_loader(ClipDataset(data, **spec), mine), 6)))
    assert not {*nodes[0][0]} & {*nodes[1][0]} and len(nodes[0][0] + nodes[1][0]) == 8
    for one, *two in zip(alone, nodes[0][1], nodes[1][1]):
        assert one.valid.all() and torch.equal(one.clips, torch.cat([b.clips for b in two]))
    main_none(["data", "lanes", source, "--batch", 4, "--nodes", 2])
    said = capsys.readouterr().out
    assert "8 tars in 4 lanes" in said and "2 nodes read 4, 4 tars; 0 of them" in said


def main_none(words: list[Any]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 0


def test_other_data_are_shuffled_as_ever(files: Manifest, sharded: Manifest, tmp_path) -> None:
    assert lanes.of(files, 4) is None and "tars" not in lanes.told(files, 4)
    mixed = dataclasses.replace(files, rows=(*sharded.rows, *files.rows))
    assert lanes.of(mixed, 4) is None
    stored = read_manifest(write_manifest(tmp_path / "m.parquet", sharded.rows)).training()
    (one, names), (other, same) = stored.tars, sharded.training().tars
    assert np.array_equal(one, other) and names == same and len(names) == 8
    with pytest.raises(SystemExit):
        main(["data", "lanes", files.source, "--batch", "4"])


def test_many_rows_are_dealt_quickly() -> None:
    rows = tuple(Row(f"/d/{i // 100:06d}.tar/{i:08d}.mp4") for i in range(10_000))
    began = time.process_time()
    known = lanes.of(Manifest(rows, (), "m.csv"), 256)
    assert known is not None
    sampler = ShardedSampler(10_000, 256, 3, 8, start_step=39 * 1000 + 20, lanes=known)
    keys = [*islice(sampler, 40)]
    assert time.process_time() - began < 1.5
    assert known.count == 64 and sampler.steps_per_epoch == 39 and len(keys[0]) == 32


# Training

TINY = dataclasses.replace(
    recipe("laptop-adamw"),
    size=32, stride_frames=1, width=24, depth=1, heads=2, pred_width=12,
    pred_depth=1, pred_heads=2, batch=4, steps=9, warmup=2, workers=0, log_every=1, save_every=4,
    backend="auto",
)  # fmt: skip
ALONE = Dist(0, 1, 0, torch.device("cpu"), "single")


def weights(out: Path) -> dict[str, torch.Tensor]:
    content = training.checkpoint.load(training.checkpoint.latest(out / "checkpoints"))
    return content["model"]


def test_a_run_that_stops_goes_on_exactly(sharded: Manifest, tmp_path: Path, monkeypatch) -> None:
    train(TINY, sharded, tmp_path / "straight", dist=ALONE)
    stop = tmp_path / "stop"
    monkeypatch.setenv("VIDLEARN_STOP_FILE", str(stop))
    stop.touch()
    assert train(TINY, sharded, tmp_path / "cut", dist=ALONE)["stopped"]
    stop.unlink()
    assert train(TINY, sharded, tmp_path / "cut", dist=ALONE)["step"] == 9
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    known = lanes.of(sharded.training(), 4)
    dealt = next(iter(ShardedSampler(24, 4, seed=TINY.seed, lanes=known)))
    batch = next(training.load(TINY, sharded, ALONE))
    assert batch.indices.tolist() == [sample for _, sample in dealt]
    said = (tmp_path / "cut/train.log").read_text()
    assert "24 videos to train on (8 tars in 4 lanes" in said
