"""The frame table against what is really in the file; writing and copying."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import videos

from vidlearn.datasets import pictures_to_decode
from vidlearn.datasets.write import CODECS, encode, transcode
from vidlearn.errors import ConfigError, VideoError
from vidlearn.storage import frame_table, iter_frames

FRAMES = np.stack([videos.picture(i) for i in range(48)])


def read(path: Path) -> list[int]:
    return [videos.read_index(frame) for frame in iter_frames(path)]


def packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_the_table_tells_what_is_in_the_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", FRAMES, 25, gop=12)
    table = frame_table(path, types=True)
    assert (table.codec, table.width, table.height, table.n_frames) == ("h264", 64, 48, 48)
    assert table.fps == pytest.approx(25)
    assert np.allclose(table.pts_s, np.arange(48) / 25, atol=1e-4)
    assert np.flatnonzero(table.is_key).tolist() == [0, 12, 24, 36]
    assert set(table.types) == set("IPB") and len(table.types) == 48
    assert all(table.types[key] == "I" for key in (0, 12, 24, 36))
    assert sorted(table.decode_order.tolist()) == list(range(48))
    in_file = [packets(path)[n] for n in table.decode_order]
    assert [packet.pts for packet in in_file] == table.ticks.tolist()
    assert [packet.size for packet in in_file] == table.bytes.tolist()
    assert not table.referenced[[t == "P" for t in table.types]].all() or "B" in table.types
    assert all(table.referenced[row] for row, kind in enumerate(table.types) if kind == "I")
    assert frame_table(path).types == () and table.seekable and table.why == ""


def test_times_as_they_are(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv", "ts"):
        path = videos.write(tmp_path / f"a.{suffix}", pts=[25 + tick for tick in videos.UNEVEN])
        table = frame_table(path)
        assert np.allclose(table.pts_s, np.array(videos.UNEVEN) / 25, atol=2e-3), suffix
        assert table.fps == pytest.approx(47 / (videos.UNEVEN[-1] / 25), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "h264.avi": "times",
        "no-times.h264": "times",
        "close-keys.mp4": "close",
        "open.mp4": "open groups",
        "refresh.mp4": "not IDR",
        "cut-at-5.mov": "edit list",
        "no-first-key.mkv": "inside a group",
        "hidden.webm": "never shown",
        "ten-bit.mp4": "colour",
        "turned-90.mp4": "turn",
        "av1.mp4": "AV1",
        "cut-short.mp4": "header says 48 pictures",
    }.items(),
)
def test_why_a_file_is_not_trusted(name: str, reason: str, tmp_path: Path) -> None:
    path = (videos.AWKWARD | videos.BROKEN)[name](tmp_path / name)
    table = frame_table(path)
    assert not table.seekable and reason in table.why


def test_a_file_with_two_videos_gives_the_first(tmp_path: Path) -> None:
    small, large = videos.write(tmp_path / "s.mp4"), tmp_path / "l.mp4"
    videos.write(large, [np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in FRAMES])
    both = tmp_path / "both.mp4"
    with av.open(str(small)) as a, av.open(str(large)) as b, av.open(str(both), "w") as out:
        streams = [(c, out.add_stream_from_template(c.streams.video[0])) for c in (a, b)]
        for container, stream in streams:
            for packet in [p for p in container.demux(video=0) if p.size]:
                packet.stream = stream
                out.mux(packet)
    table = frame_table(both)
    assert (table.width, table.seekable) == (64, False) and "another" in table.why
    assert read(both) == list(range(48))


def test_the_table_follows_the_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", FRAMES[:20], 25)
    assert frame_table(path) is frame_table(path) and frame_table(path).n_frames == 20
    encode(path, FRAMES[:30], 25)
    os.utime(path, ns=(1, 1))
    assert frame_table(path).n_frames == 30
    with pytest.raises(ValueError):
        frame_table(path).pts_s[0] = 1.0


def test_an_error_names_the_file_and_a_remedy(tmp_path: Path) -> None:
    for name in ("only-sound.mp4", "empty.mp4", "text.mp4", "no-index.mp4", "noise.mkv"):
        path = videos.BROKEN[name](tmp_path / name)
        with pytest.raises(VideoError) as caught:
            frame_table(path)
        assert caught.value.path == str(path) and caught.value.remedy
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(VideoError, match=str(path)):
            frame_table(path)


def test_a_title_that_is_not_utf8(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "a.avi", 5, title="ABCDEFGH")
    path.write_bytes(path.read_bytes().replace(b"ABCDEFGH", b"A\xff\xfe\xe9EFGH"))
    assert frame_table(path).n_frames == 5


def test_pictures_to_decode(tmp_path: Path) -> None:
    for gop in (1, 12, 48):
        table = frame_table(encode(tmp_path / f"{gop}.mp4", FRAMES, 25, gop=gop, b_frames=0))
        assert [pictures_to_decode(table, [i]) for i in range(48)] == [
            i % gop + 1 for i in range(48)
        ]
        assert pictures_to_decode(table, range(48)) == 48
    assert pictures_to_decode(table, [3, 3, 47, 1]) == 48
    table = frame_table(encode(tmp_path / "b.mp4", FRAMES, 25, gop=12, b_frames=2))
    assert pictures_to_decode(table, [12, 24]) == 2 and pictures_to_decode(table, range(48)) == 48


def test_layered_files_cost_little_for_a_stride_of_four(tmp_path: Path) -> None:
    """A P picture every fourth and between them three B that nothing needs: 20 pictures for 16."""
    layered = videos.x264(
        keyint=32, min_keyint=32, scenecut=0, bframes=3, b_adapt=0, b_pyramid="none", open_gop=0
    )
    frames = np.concatenate([FRAMES] * 3)[:128]
    table = frame_table(encode(tmp_path / "a.mp4", frames, 30, b_frames=3, options=layered))
    wanted = 4 * np.arange(16) + 32
    assert table.seekable and pictures_to_decode(table, wanted, skip=True) <= 20
    assert pictures_to_decode(table, wanted) > 50


def test_encode_makes_closed_groups_of_the_length_asked_for(tmp_path: Path) -> None:
    frames = FRAMES[np.r_[0:48]]
    path = encode(tmp_path / "a.mp4", frames, 30, gop=10, crf=20)
    table = frame_table(path)
    assert np.flatnonzero(table.is_key).tolist() == [0, 10, 20, 30, 40]
    assert read(path) == list(range(48)) and table.fps == pytest.approx(30, rel=1e-4)
    assert table.seekable and table.codec == "h264"


def test_encode_gives_the_same_bytes_again(tmp_path: Path) -> None:
    first = encode(tmp_path / "a.mp4", FRAMES, 25).read_bytes()
    for n in range(8):
        list(iter_frames(encode(tmp_path / f"{n}.mp4", FRAMES[::-1], 25)))  # other memory
        assert encode(tmp_path / "b.mp4", FRAMES, 25).read_bytes() == first


def test_encode_writes_all_or_nothing(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", FRAMES, 25)
    before = path.read_bytes()

    def breaks() -> object:
        yield from FRAMES[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(path, breaks(), 25)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_encode_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for frames, words in (
        (FRAMES[:, :47], {}),
        (FRAMES[:0], {}),
        (FRAMES / 255, {}),
        (FRAMES[..., 0], {}),
    ):
        with pytest.raises(ConfigError, match=str(path)):
            encode(path, frames, 25, **words)
    with pytest.raises(VideoError, match="cannot be written"):
        encode(tmp_path / "a.unknown", FRAMES, 25)
    assert os.listdir(tmp_path) == []


def test_encode_scales_and_keeps_times(tmp_path: Path) -> None:
    times_s = np.array(videos.UNEVEN) / 25
    path = encode(tmp_path / "a.mkv", FRAMES, 25, short_side=24, times_s=times_s)
    table = frame_table(path)
    assert (table.height, table.width) == (24, 32)
    assert np.allclose(table.pts_s, times_s, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["open.mp4", "h264.avi", "stream.ts", "cut-at-18.mp4", "turned-90.mp4"]
)
def test_transcode_gives_a_file_to_trust(name: str, tmp_path: Path) -> None:
    source = videos.AWKWARD[name](tmp_path / name)
    target = transcode(source, tmp_path / "new.mp4", crf=12)
    old, new = frame_table(source), frame_table(target)
    assert new.seekable and new.rotation_deg == 0
    assert (new.width, new.height, new.n_frames) == (old.width, old.height, old.n_frames)
    assert np.allclose(new.pts_s, old.pts_s, atol=1e-3)
    before, after = (np.stack(list(iter_frames(path))).astype(int) for path in (source, target))
    assert np.abs(before - after).mean() < 3


def test_transcode_keeps_uneven_times_drops_sound_and_makes_sides_even(tmp_path: Path) -> None:
    source = videos.write(tmp_path / "a.webm", videos.ODD, codec="libvpx-vp9", pts=videos.UNEVEN)
    target = transcode(source, tmp_path / "a.mp4")
    table = frame_table(target)
    assert (table.width, table.height) == (64, 48)
    assert np.allclose(table.pts_s, frame_table(source).pts_s, atol=1e-3)
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_transcode_of_a_broken_file_leaves_nothing(tmp_path: Path) -> None:
    source = videos.BROKEN["rotten.mp4"](tmp_path / "rotten.mp4")
    with pytest.raises(VideoError, match=r"rotten\.mp4"):
        transcode(source, tmp_path / "new.mp4")
    assert os.listdir(tmp_path) == ["rotten.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("codec", CODECS)
def test_no_encoder_takes_the_processor_for_itself(codec: str, tmp_path: Path) -> None:
    """As root, SVT-AV1 would: in a thread of real-time priority nothing else gets its turn."""

    def policies() -> list[int]:
        return [os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")]

    def frames() -> Iterator[np.ndarray]:
        for tone in range(30):
            yield np.full((64, 64, 3), tone, np.uint8)
            met.append(set(policies()))

    before, met = set(policies()), list[set[int]]()
    encode(tmp_path / "a.mkv", frames(), 25, codec=codec)
    videos.AWKWARD["av1.mp4"](tmp_path / "av1.mp4")
    assert met == [before] * 30 and set(policies()) == before == {os.SCHED_OTHER}
