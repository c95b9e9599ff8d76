"""The index beside a manifest: what it holds, when it is used, and that its pixels are the same."""

import os
import sqlite3
from concurrent import futures
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import videos

from vidlearn.batch import ClipDataset, eval_loader
from vidlearn.datasets import Manifest, Row, canvas, folder_manifest, index, packets
from vidlearn.datasets.write import encode
from vidlearn.decode import frames_at
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.sample import ClipSpec
from vidlearn.storage import FrameTable, frame_table, iter_frames, open_video, upright
from vidlearn.transform import ClipTransform, normalize

SPEC = ClipSpec(frames=4, stride_frames=3)
X264 = videos.x264(bframes=3, keyint=24)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    index._table.cache_clear()
    index._connected.cache_clear()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("usual") / "usual.mp4"
    return videos.write(path, 60, gop=24, b_frames=3)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    for i in range(5):
        videos.write(tmp_path / "set" / f"{i}.mp4", 40 + i, gop=12) if i else (
            (tmp_path / "set").mkdir(),
            videos.write(tmp_path / "set" / "0 ü,.mp4", 40, gop=12),
        )
    return folder_manifest(tmp_path / "set")


def equal(one: FrameTable, other: FrameTable) -> bool:
    """Are all columns the same, and of the same type?"""
    for name in (f.name for f in fields(FrameTable)):
        a, b = getattr(one, name), getattr(other, name)
        same = np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype
        if not same:
            return False
    return True


def test_usual_files_are_read_directly(usual: Path) -> None:
    found = packets.scan(str(usual))
    assert isinstance(found, packets.PacketTable) and equal(found, frame_table(usual))
    data = usual.read_bytes()
    assert data[found.place[0] + 4] & 31 in (5, 6, 7)  # SEI, SPS or IDR after the length


@pytest.mark.parametrize("name", ["turned-90.mp4", "mkv.mkv", "mpeg4.avi"])
def test_others_are_not(name: str, tmp_path: Path) -> None:
    makers = videos.TRUSTED | videos.AWKWARD
    known = [key for key in makers if key.split(".")[-1] == name.split(".")[-1]]
    turned = [key for key in known if key.startswith("turn")]
    chosen = (turned if name.startswith("turn") else known)[0]
    path = makers[chosen](tmp_path / chosen)
    assert not isinstance(packets.scan(str(path)), packets.PacketTable)


def test_the_container_is_opened_once(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = packets.scan(str(usual))
    want = frames_at(usual, [50, 3, 3, 27])

    def never(*_: object) -> None:
        raise AssertionError("opened as a video")

    monkeypatch.setattr("vidlearn.decode.open_video", never)
    part = packets.part_at(str(usual), np.array([50, 3, 3, 27]), (0, 0, 48, 64), table=table)
    assert torch.equal(part, want)


def test_pictures_that_nobody_needs_are_left_out(usual: Path) -> None:
    table = packets.scan(str(usual))
    assert isinstance(table, packets.PacketTable)
    sent = []

    class Counted:
        def __init__(self, context: object) -> None:
            self.context = context

        def decode(self, packet: object) -> list:
            sent.extend([packet] if packet is not None else [])
            return self.context.decode(packet)  # type: ignore[attr-defined]

        def flush_buffers(self) -> None:
            self.context.flush_buffers()  # type: ignore[attr-defined]

    real = packets._decoder(table.codec, table.head, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packets, "_decoder", lambda *_: Counted(real))
        packets.part_at(str(usual), np.array([0, 4, 8]), (0, 0, 48, 64), table=table)
    spare = (~table.referenced[:9]).sum() - (~table.referenced[[0, 4, 8]]).sum()
    assert 3 <= len(sent) <= 9 + 2 - spare


def test_a_damaged_picture_is_the_same_error(usual: Path, tmp_path: Path) -> None:
    table = packets.scan(str(usual))
    assert isinstance(table, packets.PacketTable)
    path = tmp_path / "hurt.mp4"
    content = bytearray(usual.read_bytes())
    begin = int(table.place[0])
    content[begin + 30 : begin + int(table.bytes[0])] = os.urandom(int(table.bytes[0]) - 30)
    path.write_bytes(content)
    hurt = replace(table, path=str(path))
    with pytest.raises(VideoError, match=r"damaged|does not come") as one:
        packets.part_at(str(path), np.array([0, 9]), (0, 0, 8, 8), table=hurt)
    with pytest.raises(VideoError) as other:
        frames_at(path, [0, 9], backend="pyav")
    assert str(one.value) == str(other.value)


def test_a_file_that_became_shorter_is_an_error(usual: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    path.write_bytes(usual.read_bytes())
    table = packets.scan(str(path))
    path.write_bytes(usual.read_bytes()[: int(table.place[30])])  # type: ignore[attr-defined]
    with pytest.raises(VideoError, match=r"short\.mp4"):
        packets.part_at(str(path), np.array([40]), (0, 0, 8, 8), table=table)


def test_an_index_holds_the_same_tables(data: Manifest) -> None:
    assert index.build(data) == (5, 5, {})
    file = index.index_file(data.source)
    assert file.name == "videos.index" and not list(file.parent.glob(".*part"))
    for row in data.rows:
        stored, anew = index.table_of(row.path, file), packets.scan(row.path)
        assert type(stored) is type(anew) and equal(stored, anew)
        if isinstance(stored, packets.PacketTable) and isinstance(anew, packets.PacketTable):
            assert np.array_equal(stored.place, anew.place) and stored.head == anew.head


def test_frames_that_can_only_be_counted_are_stored_too(tmp_path: Path) -> None:
    makers = videos.TRUSTED | videos.AWKWARD
    for name in ("packed.avi", "program.mpg"):
        for key in (k for k in makers if k.split(".")[-1] == name.split(".")[-1]):
            makers[key](tmp_path / key)
    data = folder_manifest(tmp_path)
    index.build(data)
    counted = [not len(index.table_of(r.path, index.index_file(tmp_path)).ticks) for r in data.rows]
    assert any(counted)
    for row in data.rows:
        assert equal(index.table_of(row.path, index.index_file(tmp_path)), frame_table(row.path))


def test_a_known_video_is_not_scanned(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    index.build(data)
    monkeypatch.setattr(index, "scan", lambda path: pytest.fail(f"scans {path}"))
    monkeypatch.setattr(index, "frame_table", lambda path: pytest.fail(f"scans {path}"))
    batch = next(iter(eval_loader(ClipDataset(data, SPEC, ClipTransform(16), backend="auto"), 5)))
    assert batch.valid.all()


def test_a_changed_video_is_scanned_anew(data: Manifest) -> None:
    index.build(data)
    path = data.rows[2].path
    videos.write(Path(path), 20, gop=5)
    assert index.table_of(path, index.index_file(data.source)).n_frames == 20
    assert index.build(data)[:2] == (5, 1)  # only that one


def test_the_index_may_move_with_its_videos(data: Manifest, tmp_path: Path) -> None:
    index.build(data)
    os.rename(tmp_path / "set", tmp_path / "moved")
    moved = folder_manifest(tmp_path / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "scan", lambda path: pytest.fail(f"scans {path}"))
        for row in moved.rows:
            index.table_of(row.path, index.index_file(moved.source))


def test_what_cannot_be_read_is_told_and_tried_again(data: Manifest) -> None:
    (Path(data.source) / "bad.mp4").write_bytes(b"nothing")
    both = folder_manifest(data.source)
    for _ in range(2):
        n, new, bad = index.build(both)
        assert n == 5 and list(bad) == [str(Path(data.source) / "bad.mp4")]
    assert new == 0


def test_a_call_that_was_cut_goes_on(data: Manifest) -> None:
    def cut(done: int, _all: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.build(data, jobs=1, progress=cut)
    assert not index.index_file(data.source).exists()
    assert index.build(data)[:2] == (5, 2)


def test_two_calls_do_not_make_one_index(data: Manifest) -> None:
    """And an index that one of them copies has its name when it is whole."""
    index.build(data)
    videos.write(Path(data.source) / "new.mp4", 20)
    again = folder_manifest(data.source)

    def other(*_: int) -> None:
        with pytest.raises(ConfigError, match=r"videos\.index: another call makes it\. Wait"):
            index.build(again)

    assert index.build(again, progress=other) == (6, 1, {})
    left = {path.name for path in Path(data.source).glob(".*")}
    assert left == {".videos.index.lock"}


def test_a_copy_that_was_cut_is_made_again(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    index.build(data)
    videos.write(Path(data.source) / "new.mp4", 20)
    again = folder_manifest(data.source)

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:5000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index.shutil, "copyfile", half)
        index.build(again)
    assert index.build(again) == (6, 1, {})


def test_an_index_of_an_older_version_is_not_gone_on_with(data: Manifest) -> None:
    with sqlite3.connect(index.index_file(data.source).with_name(".videos.index.part")) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(ConfigError, match=r"videos\.index\.part: has version 1, not 2\. Delete it"):
        index.build(data)


def test_a_folder_that_cannot_be_written_has_no_index(data: Manifest) -> None:
    Path(data.source, ".videos.index.lock").mkdir()
    with pytest.raises(ConfigError, match=r"videos\.index: cannot be written \(.*Write a manifest"):
        index.build(data)


def test_a_full_disk_is_no_damaged_index(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def small(path: Any) -> sqlite3.Connection:
        db = connect(path)
        db.execute("PRAGMA max_page_count = 3")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(index.sqlite3, "connect", small)
        with pytest.raises(ConfigError, match=r"cannot be written \(.*full\)\. Make room"):
            index.build(data, jobs=1)
    assert not index.index_file(data.source).exists() and index.build(data)[0] == 5


def test_threads_may_read_the_index(data: Manifest) -> None:
    index.build(data)
    path, file = data.rows[1].path, index.index_file(data.source)
    index.table_of(data.rows[0].path, file)  # opens it in this thread
    with futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(index.table_of, path, file).result().n_frames == 41


def test_a_video_that_ends_its_process_costs_itself(
    data: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packets.scan

    def scan(path: str) -> FrameTable:
        if path == data.rows[1].path:
            os.kill(os.getpid(), 9)
        return real(path)

    monkeypatch.setattr(index, "scan", scan)
    n, new, bad = index.build(data)
    assert (n, new) == (4, 4) and bad == {data.rows[1].path: "its decoder died (signal 9)"}


@pytest.mark.parametrize("content", [b"no database", b""])
def test_what_is_no_index_is_an_error(content: bytes, data: Manifest) -> None:
    file = index.index_file(data.source)
    file.write_bytes(content)
    with pytest.raises(VidlearnError, match=r"videos\.index.*Delete it"):
        index.table_of(data.rows[0].path, file)


def test_a_damaged_row_is_an_error(data: Manifest) -> None:
    index.build(data)
    file = index.index_file(data.source)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE videos SET content = x'00010203'")
    with pytest.raises(VidlearnError, match=r"videos\.index.*damaged.*Delete it"):
        index.table_of(data.rows[0].path, file)


@pytest.mark.parametrize("workers", [0, 2])
def test_auto_gives_the_clips_that_decord_gives(data: Manifest, workers: int) -> None:
    def clips(backend: str) -> torch.Tensor:
        dataset = ClipDataset(data, SPEC, ClipTransform(24), seed=3, backend=backend)
        return torch.cat([b.clips for b in eval_loader(dataset, 2, workers)])

    assert torch.equal(clips("auto"), clips("decord"))


def test_other_planes_and_odd_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    path = str(encode(tmp_path / "noise.mp4", frames, 25, crf=8))
    truth = torch.from_numpy(np.stack(list(iter_frames(path))))
    table = packets.scan(path)
    assert isinstance(table, packets.PacketTable)
    for _ in range(200):
        top, left = int(rng.integers(48)), int(rng.integers(64))
        height, width = int(rng.integers(1, 49 - top)), int(rng.integers(1, 65 - left))
        part = packets.part_at(path, np.array([4, 1]), (top, left, height, width), table=table)
        assert torch.equal(part, truth[[4, 1], top : top + height, left : left + width])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pixels", [1, 5000, 2**18])
def test_frames_that_are_drawn_together_are_those_drawn_alone(
    pixels: int, flip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tall picture, several, or one a frame: also where colours change within a file."""
    frames = np.random.default_rng(0).integers(0, 256, (11, 48, 64, 3), dtype=np.uint8)
    path = str(encode(tmp_path / "noise.mp4", frames, 25, crf=8))
    step = -1 if flip else 1
    truth = np.stack(list(iter_frames(path)))[:, 3:40, 5:58][:, :, ::step]
    monkeypatch.setattr(canvas, "AT_ONCE", pixels)
    table, box = packets.scan(path), (3, 5, 37, 53)
    for backend in ("auto", "pyav"):
        how = {"table": table, "flip": flip, "backend": backend}
        assert np.array_equal(packets.part_at(path, np.arange(11), box, **how).numpy(), truth)
    with open_video(path) as (container, stream):
        drawings = [*enumerate(container.decode(stream))]
    for number, frame in drawings:
        frame.color_range = 1 + number // 3 % 2
    drawings[4] = 4, drawings[4][1].reformat(format="yuv444p")  # no canvas takes that at once
    want = np.stack([upright(frame) for _, frame in drawings])[:, 3:40, 5:58][:, :, ::step]
    for order in (drawings, drawings[::-1]):
        made = canvas.Canvas(table, box, 11, lambda part: part, flip)
        for drawing in order:
            made.draw(*drawing)
        assert np.array_equal(made.clip, want) and not np.array_equal(made.clip, truth)


def test_frames_are_finished_as_they_are_drawn(
    usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part by part as all at once; each frame asked for twice is there twice."""
    look, rows, box = ClipTransform(20), np.array([50, 3, 3, 27, 9, 10]), (2, 3, 30, 40)
    seen = []

    def finish(part_THWC: torch.Tensor) -> torch.Tensor:
        seen.append(len(part_THWC))
        return look.resize(part_THWC)

    table = packets.scan(str(usual))
    want = finish(packets.part_at(str(usual), rows, box, table=table)).flip(2)
    assert seen.pop() == 6
    monkeypatch.setattr(canvas, "AT_ONCE", 3 * 30 * 40)
    how: dict[str, Any] = {"table": table, "finish": finish, "flip": True}
    together = packets.part_at(str(usual), rows, box, **how)
    assert seen == [5] and torch.equal(together, want)
    monkeypatch.setattr(canvas, "TOGETHER", 0)
    clip = packets.part_at(str(usual), rows, box, **how)
    assert seen == [5, 3, 2] and clip.shape == (6, 20, 20, 3) and torch.equal(clip, want)
    plain = packets.part_at(str(usual), rows, box, **how, backend="pyav")
    assert seen == [5, 3, 2, 6] and torch.equal(plain, want)


def test_frames_are_drawn_in_equal_parts() -> None:
    sizes = {
        (16, 200, 250): 4,
        (16, 100, 100): 16,
        (16, 1080, 1920): 1,
        (1, 9, 9): 1,
        (5, 512, 256): 2,
    }
    for (n, height, width), want in sizes.items():
        assert canvas.at_once(n, height, width) == want


def test_the_device_puts_the_bytes_in_order() -> None:
    """What the loader hands over lies as T H W C; the normalised batch as the model wants it."""
    clip = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8)
    seen = clip.permute(0, 4, 1, 2, 3)
    for how in ("imagenet", "clip"):
        ready = normalize(seen, how)
        assert ready.is_contiguous() and torch.equal(ready, normalize(seen.contiguous(), how))


def test_rows_outside_are_the_usual_error(usual: Path) -> None:
    for rows in ([60], [-1, 3]):
        with pytest.raises(VideoError, match="60 frames"):
            table = packets.scan(str(usual))
            packets.part_at(str(usual), np.array(rows), (0, 0, 8, 8), table=table)


def test_a_manifest_file_has_its_index_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "manifest.csv"
    file.touch()
    assert index.index_file(file) == tmp_path / "manifest.csv.index"


def test_pictures_and_missing_files_are_left_to_others(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4"):
        index.table_of(str(tmp_path / "gone.mp4"), None)
    rows = (Row(f"{tmp_path}#fps=5"),)
    assert index.build(Manifest(rows, (), str(tmp_path / "m.csv"))) == (0, 0, {})


def test_times_that_do_not_come_out_are_no_frames(usual: Path) -> None:
    """A wrong index gives the right frames, by PyAV, and never memory that nobody has written."""
    table = packets.scan(str(usual))
    real = packets._decoder(table.codec, table.head, 0)  # type: ignore[attr-defined]

    class Timeless:
        def decode(self, packet: object) -> list:
            if packet is not None:
                packet.pts = packet.pts + 7  # type: ignore[attr-defined]
            return real.decode(packet)

        def flush_buffers(self) -> None:
            real.flush_buffers()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packets, "_decoder", lambda *_: Timeless())
        part = packets.part_at(str(usual), np.array([3, 9]), (0, 0, 48, 64), table=table)
    assert torch.equal(part, frames_at(usual, [3, 9]))


def test_a_damaged_index_stops_the_run_and_is_not_built_upon(data: Manifest) -> None:
    file = index.index_file(data.source)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"videos\.index.*Delete it"):
        ClipDataset(data, SPEC, ClipTransform(16), backend="auto")[0]
    with pytest.raises(ConfigError, match=r"videos\.index.*Delete it"):
        index.build(data)
    file.unlink()
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"part: is no index.*Delete it"):
        index.build(data)
    part.unlink()
    assert index.build(data)[0] == 5
