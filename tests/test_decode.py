"""Never a wrong frame in silence: every backend against sequential decoding, many kinds of file."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import videos
from conftest import REAL_VIDEOS

from vidlearn import decode
from vidlearn.datasets import pictures_to_decode
from vidlearn.datasets.write import encode
from vidlearn.decode import backends, frames_at
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import (
    FrameTable,
    frame_table,
    iter_frames,
    open_video,
    upright,
)

LOADED = [name for name, reason in backends().items() if not reason]
REAL = sorted(path for path in REAL_VIDEOS.glob("*/*") if path.is_file())
TIME_LIMIT_S = 120.0


class Child:
    """A process that may hang or die; the file that did it fails, and the next gets a new one."""

    def __init__(self) -> None:
        self.pool: futures.ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        context = multiprocessing.get_context("spawn")
        self.pool = self.pool or futures.ProcessPoolExecutor(1, mp_context=context)
        try:
            return self.pool.submit(function, *args).result(TIME_LIMIT_S)
        except (futures.TimeoutError, futures.BrokenExecutor):
            self.stop()
            raise

    def stop(self) -> None:
        for process in list(self.pool._processes.values()) if self.pool else []:
            process.kill()
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = None


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> the file, made once."""
    folder = tmp_path_factory.mktemp("made")
    makers = videos.TRUSTED | videos.AWKWARD | videos.BROKEN

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else makers[name](path)

    return make


@pytest.mark.parametrize("name", [*videos.TRUSTED, *videos.AWKWARD])
def test_every_backend_is_right(name: str, made: Callable[[str], Path], child: Child) -> None:
    report = child(videos.hold, str(made(name)))
    assert report["wrong"] == [] and report["error"] == "" and report["n"] > 0, report


@pytest.mark.parametrize("name", videos.BROKEN)
def test_broken_is_an_error_or_right(name: str, made: Callable[[str], Path], child: Child) -> None:
    report = child(videos.hold, str(made(name)))
    assert report["wrong"] == []
    assert report["error"] == "" or str(made(name)) in report["error"]
    assert report["n"] > 0 or report["error"]


@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_real_clips(path: Path, child: Child) -> None:
    report = child(videos.hold, str(path))
    assert report["wrong"] == []
    if path.parent.name == "ok":
        assert report["error"] == "" and report["n"] > 0
    else:
        assert report["error"] == "" or str(path) in report["error"]


def test_there_are_real_clips(real_videos: Path) -> None:
    assert {path.parent.name for path in REAL} >= {"ok"}


UPRIGHT = [
    n for n in [*videos.TRUSTED, *videos.AWKWARD] if not n.startswith(("turn", "mir", "tran"))
]


@pytest.mark.parametrize("name", UPRIGHT)
def test_frames_carry_the_index_that_was_written(name: str, made: Callable[[str], Path]) -> None:
    """The reference itself is held to the truth, and decord to it where it may read."""
    path = made(name)
    table = frame_table(path)
    read = [videos.read_index(frame) for frame in iter_frames(path)]
    shown = videos.SHOWN.get(name, range(table.n_frames))
    if name == "no-first-key.mkv":  # begins at the first frame that can be decoded
        shown = range(48 - table.n_frames, 48)
    assert read == list(shown)
    assert table.seekable == (name in videos.TRUSTED) == (table.why == "")


@pytest.mark.parametrize("name", videos.TRUSTED)
@pytest.mark.parametrize("backend", [name for name in LOADED if name != "pyav"])
def test_trusted_files_are_read_by_the_backend_itself(
    name: str, backend: str, made: Callable[[str], Path]
) -> None:
    table = frame_table(made(name))
    clip = getattr(decode, f"_{backend}")(table, np.arange(table.n_frames))
    assert clip is not None
    assert [videos.read_index(frame) for frame in clip.numpy()] == list(range(table.n_frames))


def test_turned_and_mirrored_frames_are_shown_upright(made: Callable[[str], Path]) -> None:
    plain = np.stack(list(iter_frames(made("plain.mp4"))))
    expected = {
        "turned-90.mp4": np.rot90(plain, -1, (1, 2)),
        "turned-180.mp4": np.rot90(plain, 2, (1, 2)),
        "turned-270.mov": np.rot90(plain, 1, (1, 2)),
        "mirrored.mp4": plain[:, :, ::-1],
        "transposed.mp4": plain.transpose(0, 2, 1, 3),
    }
    for name, frames in expected.items():
        assert np.array_equal(np.stack(list(iter_frames(made(name)))), frames), name
        table = frame_table(made(name))
        assert (table.height, table.width) == frames.shape[1:3]
    turns = [
        frame_table(made(f"turned-{d}")).rotation_deg for d in ("90.mp4", "180.mp4", "270.mov")
    ]
    assert turns == [90, 180, 270]


def test_a_group_that_comes_next_may_need_a_new_start(tmp_path: Path) -> None:
    """At the end of a group the decoder is emptied; pictures of the next may need older ones."""
    params = "log-level=none:keyint=10:min-keyint=10:scenecut=0:bframes=4:b-adapt=0"
    options = {"x265-params": params}
    path = videos.write(
        tmp_path / "a.mp4", 30, codec="libx265", gop=10, b_frames=4, options=options
    )
    truth = np.stack([*iter_frames(path)])
    for pair in combinations(range(30), 2):
        assert np.array_equal(frames_at(path, pair, backend="pyav"), truth[[*pair]]), pair


@pytest.mark.parametrize("backend", [name for name in LOADED if name != "pyav"])
def test_what_was_found_of_a_file_is_of_that_file(backend: str, tmp_path: Path) -> None:
    """A sound file that is damaged, and mended, by one and the same process, always of one size."""
    path = encode(tmp_path / "a.mp4", [videos.picture(i) for i in range(48)], 25, gop=12)
    truth, good, table = np.stack([*iter_frames(path)]), path.read_bytes(), frame_table(path)
    with av.open(str(path)) as container:
        hurt = [p for p in container.demux(video=0) if p.size][int(table.decode_order[15])]
    damaged = bytearray(good)
    damaged[hurt.pos + hurt.size // 2 : hurt.pos + hurt.size] = bytes(hurt.size - hurt.size // 2)
    for time_s, data in ((1, good), (2, damaged), (3, good)):
        path.write_bytes(data)
        os.utime(path, (time_s, time_s))
        if data is good:
            assert np.array_equal(frames_at(path, [20], backend=backend)[0], truth[20])
        else:
            with pytest.raises(VideoError, match="damaged"):
                frames_at(path, [20], backend=backend)


def test_a_table_that_is_given_is_not_made_again(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("plain.mp4")
    table = frame_table(path)
    monkeypatch.setattr(decode, "frame_table", lambda path: pytest.fail(f"scans {path}"))
    monkeypatch.setattr(decode, "_FOUND", {})
    for backend in LOADED:
        frames_at(path, [20], backend=backend, table=table)


@pytest.mark.parametrize("backend", LOADED)
def test_a_damaged_picture_is_named_and_spoils_only_its_group(backend: str, tmp_path: Path) -> None:
    frames = [videos.picture(i) for i in range(48)]
    path = encode(tmp_path / "a.mp4", frames, 25, gop=12, crf=18)
    truth = np.stack(list(iter_frames(path)))
    table = frame_table(path)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    key = packets[int(table.decode_order[24])]
    data = bytearray(path.read_bytes())
    middle = key.pos + key.size // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"frame \d+ is damaged"):
        frames_at(path, [30], backend=backend)
    for index in (0, 5, 23, 36, 47):
        assert np.array_equal(frames_at(path, [index], backend=backend)[0], truth[index])
    with pytest.raises(VideoError, match="damaged"):
        list(iter_frames(path))


def test_seconds_take_the_nearest_frame(made: Callable[[str], Path]) -> None:
    path = made("uneven-times.mp4")
    times_s = np.array(videos.UNEVEN) / 25
    wanted = [0.0, times_s[7] + 0.001, times_s[8] - 0.001, times_s[-1]]
    clip = frames_at(path, seconds=wanted)
    assert [videos.read_index(frame) for frame in clip.numpy()] == [0, 7, 8, 47]
    assert [videos.read_index(f) for f in frames_at(made("stream.ts"), seconds=[1.0]).numpy()] == [
        25
    ]
    for second in (-0.1, 1e6, float("nan")):
        with pytest.raises(VideoError, match="there is no second"):
            frames_at(path, seconds=[second])


def test_all_backends_read_a_whole_file_alike(made: Callable[[str], Path]) -> None:
    path = made("plain.mp4")
    expected = torch.stack([torch.from_numpy(frame) for frame in iter_frames(path)])
    for backend in LOADED:
        clip = frames_at(path, range(48), backend=backend)
        assert clip.shape == (48, 48, 64, 3) and clip.dtype == torch.uint8
        assert torch.equal(clip, expected)


def test_what_cannot_be_asked(made: Callable[[str], Path]) -> None:
    path = made("plain.mp4")
    for index in (-1, 48, 10**9):
        with pytest.raises(VideoError, match=rf"no frame {index}: it has 48 frames"):
            frames_at(path, [index])
    for words in ({"indices": [0.5]}, {"indices": []}, {}, {"indices": [0], "seconds": [0.0]}):
        with pytest.raises(ConfigError, match="give frames_at"):
            frames_at(path, **words)
    with pytest.raises(ConfigError, match="no backend 'opencv'"):
        frames_at(path, [0], backend="opencv")
    for name, reason in backends().items():
        if reason:
            with pytest.raises(ConfigError, match="does not load"):
                frames_at(path, [0], backend=name)


def fed(table: FrameTable, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many pictures the decoder is given for these rows."""
    counts = [0]

    class Counted:
        def __init__(self, packet: Any) -> None:
            self.packet, self.pts, self.size = packet, packet.pts, packet.size

        def decode(self) -> list[Any]:
            counts[0] += self.size > 0
            return self.packet.decode()

    class Container:
        def __init__(self, container: Any) -> None:
            self.demux = lambda stream: (Counted(x) for x in container.demux(stream))
            self.seek = container.seek

    @contextmanager
    def opened(path: str) -> Iterator[tuple[Any, Any]]:
        with open_video(path) as (container, stream):
            yield Container(container), stream

    with monkeypatch.context() as patch:
        patch.setattr(decode, "open_video", opened)
        frames = decode._pyav(table, rows, upright)
    truth = list(iter_frames(table.path))
    assert all(np.array_equal(truth[row], frame) for row, frame in zip(rows, frames))
    return counts[0]


@pytest.mark.parametrize("gop", [1, 12, 48])
def test_the_decoder_is_given_no_picture_too_many(
    gop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the frame table says: none is read ahead of the last one that is needed."""
    path = encode(tmp_path / "a.mp4", [videos.picture(i) for i in range(48)], 25, gop=gop)
    table = frame_table(path)
    for rows in ([30], [5, 30], [0, 11], [11, 25], range(3, 47, 4), range(1, 48, 3), [20, 21, 44]):
        chosen = np.array(rows)
        assert fed(table, chosen, monkeypatch) == pictures_to_decode(table, chosen, skip=True)


def _child_reads(path: str) -> int:
    return videos.read_index(frames_at(path, [30], backend="decord")[0].numpy())


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe to rely on only on Linux")
@pytest.mark.skipif("decord" not in LOADED, reason="decord does not load here")
def test_reading_before_a_fork_does_no_harm(made: Callable[[str], Path]) -> None:
    path = str(made("plain.mp4"))
    assert _child_reads(path) == 30
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_child_reads, (path,)).get(TIME_LIMIT_S) == 30
