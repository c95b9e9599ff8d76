"""Videos written again: every recipe, frame by frame, after a kill, and what must be refused."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import videos

from vidlearn.cli import main
from vidlearn.datasets import open_data, pictures_to_decode, transcode
from vidlearn.datasets.transcode import RECIPES, Plan, rewrite, transcode_all
from vidlearn.datasets.write import encode
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.storage import frame_table, iter_frames

FRAMES = np.stack([videos.picture(i) for i in range(100)])


def new(source: Path, target: Path, **choices: Any) -> Path:
    """The copy of one video, which must succeed."""
    assert rewrite(str(source), target, Plan(**choices)) == ""
    return target


def indices(path: Path) -> list[int]:
    return [videos.read_index(frame) for frame in iter_frames(path)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write(tmp_path_factory.mktemp("source") / "a.mp4", FRAMES, gop=250)


@pytest.fixture(scope="module")
def made(source: Path) -> Callable[[str], Path]:
    """Recipe -> its copy of `source`, made once."""

    def make(recipe: str) -> Path:
        path = source.with_name(f"{recipe}.mp4")
        return path if path.exists() else new(source, path, recipe=recipe)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three labelled videos, and a manifest with two segments of the first."""
    rows = [("path", "label", "split", "start_s", "end_s", "source_id")]
    for name, count in (("x/a.mp4", 20), ("x/b.mkv", 12), ("y/c.mp4", 9)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        videos.write(path, count)
        rows.append((name, path.parent.name, "train", "0.0", "", f"film-{name}"))
    rows.append(("x/a.mp4", "z", "val", "0.2", "0.6", "film-x/a.mp4"))
    with open(tmp_path / "in" / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows(rows)
    return tmp_path / "in"


def fed(path: Path, rows: Iterable[int]) -> np.ndarray:
    """What a decoder makes of the packets of these frames alone: uint8 [T, H, W, 3]."""
    ticks = {*frame_table(path).ticks[list(rows)].tolist()}
    frames: list[av.VideoFrame] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if not packet.size or packet.pts in ticks:
                frames += packet.decode()
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def test_a_folder_by_a_way_back_is_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for data in ("../in", "../in/manifest.csv"):
        found = transcode.Targets(open_data(data), Path("../new"))
        assert {path.relative_to("../new").as_posix() for path in found.values()} == {
            "x/a.mp4", "x/b.mkv.mp4", "y/c.mp4",
        }  # fmt: skip
    with pytest.raises(VidlearnError, match="holds the source"):
        transcode.Targets(open_data("../in"), Path(".").absolute().parent / "in" / "x")


def test_a_name_may_be_as_long_as_disks_allow(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    videos.write(tmp_path / "in" / f"{'x' * 247}.mp4", 9)
    (tmp_path / "in" / "b.mp4").write_bytes(next((tmp_path / "in").iterdir()).read_bytes())
    data, out = open_data(tmp_path / "in"), tmp_path / "new"
    assert transcode_all(data, out, Plan("gop12", 32), jobs=1) == {}
    assert len([*out.glob("*.mp4")]) == 2


def test_few_videos_are_given_out_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcode, "AHEAD", 1)
    targets, taken = transcode.Targets(open_data(folder), tmp_path / "new"), []
    todo = ((taken.append(source) or source, path) for source, path in targets.items())
    found = transcode._rewritten(todo, Plan("gop12", 32), 2)
    assert taken == [] and next(found)[1] == "" and len(taken) == 3
    assert [cause for _, cause in found] == ["", ""]
    assert all(path.exists() for path in targets.values()) and len(targets) == 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_keeps_frames_and_times(
    recipe: str, source: Path, made: Callable[[str], Path]
) -> None:
    old, table = frame_table(source), frame_table(made(recipe), types=True)
    gop = {"layered": 32, "layered-small": 32, "gop12": 12, "gop12-fast": 12}
    gop = {**gop, "intra": 1, "gop250": 250}[recipe]
    assert np.flatnonzero(table.is_key).tolist() == list(range(0, 100, gop))
    assert indices(made(recipe)) == list(range(100))
    assert (table.codec, table.seekable, table.n_frames) == ("h264", True, 100)
    assert len({*np.diff(table.ticks).tolist()}) == 1 and np.array_equal(table.pts_s, old.pts_s)


def test_every_fourth_frame_of_a_layered_file_needs_no_other(made: Callable[[str], Path]) -> None:
    path = made("layered")
    truth = np.stack(list(iter_frames(path)))
    assert np.array_equal(fed(path, range(0, 100, 4)), truth[::4])
    half = sorted({*range(0, 100, 2), 31, 63, 95, 99})  # and the P picture that ends each group
    assert np.array_equal(fed(path, half), truth[half])
    types = "".join(frame_table(path, types=True).types)
    assert types[:32] == "I" + "BBBP" * 7 + "BBP" and types[96:] == "IBBP"
    truth = np.stack(list(iter_frames(made("gop250"))))
    some = fed(made("gop250"), range(0, 100, 4))  # no layers: pictures that lack what they need
    assert some.shape != truth[::4].shape or not np.array_equal(some, truth[::4])


def test_pictures_to_decode_by_recipe_and_stride(made: Callable[[str], Path]) -> None:
    """The layered file is the only one in which a clip costs hardly more than its frames."""

    def mean(recipe: str, stride: int, grid: int) -> float:
        table = frame_table(made(recipe))
        clips = [s + stride * np.arange(16) for s in range(0, 100 - 15 * stride, grid)]
        return float(np.mean([pictures_to_decode(table, clip, skip=True) for clip in clips]))

    assert mean("layered", 4, 4) < 20.5 < 40 < mean("gop12", 4, 1) < mean("gop250", 4, 1)
    assert mean("layered", 2, 4) < 22.5 and mean("layered", 1, 1) < 22
    assert 2 * 16 < mean("layered", 4, 1) < 36  # off the grid: the layers do not help, nor harm
    assert mean("intra", 4, 1) == 16


def test_a_copy_that_is_not_layered_is_refused(source: Path, tmp_path: Path) -> None:
    other = new(source, tmp_path / "a.mp4", recipe="gop12")
    with pytest.raises(VideoError, match="other pictures need frame 1 of its copy, off the grid"):
        transcode.verify(str(source), other, grid=4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times_are_kept(suffix: str, tmp_path: Path) -> None:
    path = videos.write(tmp_path / f"a.{suffix}", pts=videos.UNEVEN)
    old, table = frame_table(path), frame_table(new(path, tmp_path / "new.mp4"))
    assert np.allclose(table.pts_s, old.pts_s, atol=1e-9) and len({*np.diff(table.ticks)}) > 3
    assert indices(tmp_path / "new.mp4") == list(range(48))


def test_an_even_rate_stays_even(tmp_path: Path) -> None:
    rate = Fraction(24000, 1001)  # no multiple of the usual 1/90000 s
    path = encode(tmp_path / "a.mp4", FRAMES, float(rate), unit=1 / rate)
    table = frame_table(new(path, tmp_path / "new.mp4"))
    assert {*np.diff(table.ticks).tolist()} == {table.ticks[1]}
    assert table.pts_s[-1] == pytest.approx(99 * 1001 / 24000, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "turn"),
    {
        "turned-90.mp4": lambda x: np.rot90(x, -1, (1, 2)),
        "turned-180.mp4": lambda x: np.rot90(x, 2, (1, 2)),
        "turned-270.mov": lambda x: np.rot90(x, 1, (1, 2)),
        "mirrored.mp4": lambda x: x[:, :, ::-1],
    }.items(),
)
def test_what_is_stored_is_upright(name: str, turn: Callable[..., Any], tmp_path: Path) -> None:
    target = new(videos.AWKWARD[name](tmp_path / name), tmp_path / "new.mp4", crf=12)
    truth, table = turn(FRAMES[:48]), frame_table(target)
    assert (table.height, table.width) == truth.shape[1:3] and table.rotation_deg == 0
    assert np.abs(np.stack(list(iter_frames(target))).astype(int) - truth).mean() < 4


@pytest.mark.parametrize("name", ["h264.avi", "stream.ts", "cut-at-5.mov", "odd-sides.webm"])
def test_awkward_files_become_files_to_trust(name: str, tmp_path: Path) -> None:
    path = videos.AWKWARD[name](tmp_path / name)
    table = frame_table(new(path, tmp_path / "new.mp4"))
    assert table.seekable and indices(tmp_path / "new.mp4") == indices(path)


def test_sound_is_dropped_and_nothing_is_scaled_up(tmp_path: Path) -> None:
    path, parts = tmp_path / "both.mp4", (videos.write(tmp_path / "v.mp4"), tmp_path / "s.mp4")
    videos.sound(parts[1])
    with av.open(str(parts[0])) as v, av.open(str(parts[1])) as s, av.open(str(path), "w") as out:
        streams = [(c, out.add_stream_from_template(c.streams[0])) for c in (v, s)]
        for container, stream in streams:
            for packet in [p for p in container.demux() if p.size]:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    for side, size in ((256, (64, 48)), (24, (32, 24))):
        table = frame_table(new(path, tmp_path / f"{side}.mp4", short_side=side))
        assert (table.width, table.height) == size
        with av.open(table.path) as container:
            assert [stream.type for stream in container.streams] == ["video"]


def shift(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [*frames[1:], frames[-1]]


MISTAKES: dict[str, tuple[Callable[[list[np.ndarray]], list[np.ndarray]], str]] = {
    "a frame too early": (shift, r"frame \d+ of its copy .*"),
    "a frame too late": (lambda x: [x[0], *x[:-1]], r"frame \d+ of its copy .*"),
    "late from the middle on": (lambda x: [*x[:50], *x[49:-1]], r"frame \d+ of its copy .*"),
    "two exchanged": (lambda x: [*x[:40], x[41], x[40], *x[42:]], "frame 4[01] of its copy .*"),
    "one is another": (lambda x: [*x[:40], x[70], *x[41:]], r"frame 40 of its copy has .* dB.*"),
    "one is missing": (lambda x: x[:-1], "its copy ends or is damaged at frame 99"),
}


@pytest.mark.parametrize("speed", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_frame_is_found(
    name: str, speed: float, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In films of waves, neighbours have more than FLOOR_DB: only the comparison finds a shift."""
    mistake, text = MISTAKES[name]
    if speed:
        place = np.arange(64)[:, None] + np.arange(48)[:, None, None]
        wave = [128 + 60 * np.sin((place + speed * t) / 4 + np.arange(3)) for t in range(100)]
        source = videos.write(tmp_path / "wave.mp4", [image.astype(np.uint8) for image in wave])

    def wrong(path: Path, frames: Iterable[np.ndarray], fps: float, **how: Any) -> Path:
        return encode(path, mistake(list(frames)), fps, **how)

    monkeypatch.setattr(transcode, "encode", wrong)
    cause = rewrite(str(source), tmp_path / "new.mp4", Plan())
    if (speed, name) == (0.25, "two exchanged"):
        text += "|"  # two frames differ by less than what the encoder itself may do
    assert re.fullmatch(text, cause), cause
    assert not speed or "is" in name or cause == "" or "shows frame" in cause
    assert (tmp_path / "new.mp4").exists() == (cause == "")


def test_other_times_are_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, frames: Any, fps: float, *, times_s: np.ndarray, **how: Any) -> Path:
        return encode(path, frames, fps, times_s=times_s + 0.001 * (times_s > 2), **how)

    monkeypatch.setattr(transcode, "encode", wrong)
    cause = rewrite(str(source), tmp_path / "new.mp4", Plan())
    assert cause == "the frames of its copy have other times"


def test_a_manifest_becomes_a_manifest(folder: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    bad = transcode_all(open_data(folder), out, Plan(), jobs=1, progress=lambda *x: told.append(x))
    assert bad == {} and told == [(1, 3), (2, 3), (3, 3)]
    old, rows = open_data(folder).rows, open_data(out).rows
    names = [Path(row.path).relative_to(out).as_posix() for row in rows]
    assert names == ["x/a.mp4", "x/b.mkv.mp4", "y/c.mp4", "x/a.mp4"]
    for a, b in zip(old, rows):
        assert {**vars(a), "path": b.path} == vars(b)
        assert indices(Path(a.path)) == indices(Path(b.path))
    assert sorted(p.name for p in out.iterdir()) == ["manifest.csv", "transcode.json", "x", "y"]


def test_videos_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "lists" / "m.csv"
    listed.parent.mkdir()
    listed.write_text(f"path\n{folder}/x/a.mp4\n../in/y/c.mp4\n")
    out = tmp_path / "out"
    assert transcode_all(open_data(listed), out, Plan(), jobs=1) == {}
    inner = folder.relative_to("/")
    assert {row.path for row in open_data(out).rows} == {
        str(out / "outside" / inner / name) for name in ("x/a.mp4", "y/c.mp4")
    }


def state(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in out.rglob("*.mp4") if p.name[0] != "."}


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_call_goes_on(tmp_path: Path, source: Path) -> None:
    data, out = tmp_path / "in", tmp_path / "out"
    data.mkdir()
    for i in range(8):
        os.link(source, data / f"{i}.mp4")
    words = [sys.executable, "-m", "vidlearn", "data", "transcode", data, out, "--jobs", "2"]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL)
    wait_for(lambda: len(state(out)) > 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(alive(int(child)) for child in children), 10)  # none writes on
    done = state(out)
    assert 1 < len(done) < 8 and not (out / "manifest.csv").exists()
    for path in done:
        assert indices(Path(path)) == list(range(100))
    (out / "..9.part.123.mp4").write_bytes(b"half")  # what a killed process may leave
    (out / ".9.part.mp4").write_bytes(b"half")
    assert transcode_all(open_data(data), out, Plan(), jobs=1) == {}
    after = state(out)
    assert len(after) == 8 and {path: after[path] for path in done} == done
    assert [p.name for p in out.iterdir() if p.name[0] == "."] == []
    assert transcode_all(open_data(data), out, Plan(), jobs=2) == {} and state(out) == after


def test_unreadable_videos_are_named_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos.BROKEN["text.mp4"](folder / "x" / "b.mkv")
    videos.BROKEN["rotten.mp4"](folder / "y" / "c.mp4")
    out = tmp_path / "out"
    words = ["data", "transcode", str(folder), str(out), "--jobs", "1", "--short-side", "32"]
    with pytest.raises(SystemExit) as left:
        main(words)
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 1
    assert lines[0].startswith(f"{folder / 'x' / 'b.mkv'}: ") and "frame" in lines[1]
    assert lines[2] == (
        f"{out / 'manifest.csv'}: 1 videos, 2 unreadable, listed in {out / 'quarantine.jsonl'}"
    )
    listed = [json.loads(x) for x in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [x["path"] for x in listed] == [str(folder / n) for n in ("x/b.mkv", "y/c.mp4")]
    assert [row.label for row in open_data(out).rows] == ["x", "z"]
    assert [*map(Path, state(out))] == [out / "x" / "a.mp4"]
    videos.write(folder / "x" / "b.mkv", 5)  # mended
    videos.write(folder / "y" / "c.mp4", 5)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0 and not (out / "quarantine.jsonl").exists()
    told = capsys.readouterr().out
    assert "3 videos\nbytes: " in told and "ms of CPU a clip" in told and "--start-grid 4" in told


def test_another_plan_in_the_same_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    data, out = open_data(folder), tmp_path / "out"
    transcode_all(data, out, Plan(short_side=32), jobs=1)
    before = state(out)
    for plan in (Plan(short_side=24), Plan("gop12", 32), Plan(short_side=32, crf=20)):
        with pytest.raises(VidlearnError, match=rf"{out}: holds .*layered.*Choose another folder"):
            transcode_all(data, out, plan, jobs=1)
    with transcode.claim(out, transcode.STAMP, Plan(short_side=32).stamp()):
        with pytest.raises(VidlearnError, match="another call writes here"):
            transcode_all(data, out, Plan(short_side=32), jobs=1)
    assert state(out) == before


def test_folders_that_would_mix_sources_and_copies_are_refused(folder: Path) -> None:
    before = state(folder)
    for data, out, text in (
        (folder, folder, "holds the source"),
        (folder, folder / "x", "holds the source"),
        (folder / "x", folder / "x" / "new", "lies in .*, the data"),
        (folder / "x", folder / "y", "is not empty and holds no transcode.json"),
    ):
        with pytest.raises(VidlearnError, match=f"{out}: {text}"):
            transcode_all(open_data(data), out, Plan(), jobs=1)
    (folder / "x" / "b.mkv.mp4").write_bytes(b"")
    with pytest.raises(VidlearnError, match="would both become"):
        transcode_all(open_data(folder / "x"), folder.parent / "out", Plan(), jobs=1)
    assert {path: state(folder)[path] for path in before} == before


def test_choices_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    for words, text in (
        ({"recipe": "raw"}, "--recipe 'raw': give one of layered, layered-small"),
        ({"short_side": 15}, "--short-side 15: give an even number"),
        ({"crf": 52.0}, "--crf 52: give 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            Plan(**words)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--jobs 0: give 1 or more"):
        transcode_all(open_data(folder), tmp_path / "out", Plan(), jobs=0)


def test_a_copy_too_coarse_is_refused(source: Path, tmp_path: Path) -> None:
    cause = rewrite(str(source), tmp_path / "a.mp4", Plan("layered-small", crf=51))
    assert cause.startswith("frame ") and cause.endswith("less than 25: give a lower --crf")


class Deadly(Plan):
    """A plan that ends the process that receives it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    todo = [(f"{i}.mp4", tmp_path / f"{i}.mp4") for i in range(3)]
    with pytest.raises(VidlearnError, match=r"a process died at one of 0.mp4, 1.mp4, 2.mp4. Use"):
        list(transcode._rewritten(todo, Deadly(), 2))


def test_a_source_that_changes_is_written_again(folder: Path, tmp_path: Path) -> None:
    data, out, plan = open_data(folder), tmp_path / "new", Plan("gop12", 32)
    sources = [Path(path) for path in data.paths]
    for source in sources:
        os.utime(source, (10, 10))
    assert transcode_all(data, out, plan, jobs=1) == {}
    targets = transcode.Targets(data, out)
    before = [path.stat().st_ino for path in targets.values()]
    old = sources[0].read_bytes()
    videos.write(sources[0], 9, options={"forced-idr": "1"})
    sources[1].unlink()  # its copy is all there is
    transcode_all(data, out, plan, jobs=1)
    after = [path.stat().st_ino for path in targets.values()]
    assert [a == b for a, b in zip(before, after)] == [False, True, True]
    assert frame_table(targets[str(sources[0])]).n_frames == 9 and old


def test_what_an_encoder_refuses_costs_itself(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.csv").unlink()
    thin = [np.zeros((1, 18, 3), np.uint8)] * 5
    path = videos.write(folder / "y" / "thin.mkv", thin, codec="ffv1", fmt="bgr0")
    bad = transcode_all(open_data(folder), tmp_path / "new", Plan("gop12", 32), jobs=1)
    assert bad == {str(path): "its smaller side is one pixel, which no encoder takes"}
    assert len([*(tmp_path / "new").rglob("*.mp4")]) == 3


def test_only_the_disk_ends_a_call(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(number: int) -> Callable[..., Path]:
        def encode(path: Path, *_: Any, **__: Any) -> Path:
            raise VideoError(path, f"it cannot be written ({number})") from OSError(number, "x")

        return encode

    target = tmp_path / "a.mp4"
    monkeypatch.setattr(transcode, "encode", refused(542398533))  # of avcodec_open2
    assert rewrite(str(source), target, Plan()) == "its copy: it cannot be written (542398533)"
    monkeypatch.setattr(transcode, "encode", refused(errno.ENOSPC))
    told = r"a\.mp4: cannot be written \(No space left on device\)\. Make room.* goes on"
    with pytest.raises(VidlearnError, match=told):
        rewrite(str(source), target, Plan())


def test_of_videos_that_are_done_none_is_blamed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.mp4")  # nobody writes into it
    names = ["slow", *"abcdef", "deadly", *"ghi"]
    todo: list[Any] = [(f"{tmp_path}/{n}.mp4", tmp_path / f"{n}-copy.mp4") for n in names]
    todo[7] = todo[7][0], Deadly()  # no process lives to see where it would go
    with pytest.raises(VidlearnError) as error:
        list(transcode._rewritten(todo, Plan(), 2))
    told = str(error.value).replace(f"{tmp_path}/", "")
    assert told.startswith("a process died at one of slow.mp4, deadly.mp4, g.mp4. Use fewer")


def test_what_is_slow_to_read_is_left_out(made: Callable[[str], Path]) -> None:
    for recipe in RECIPES:
        fast = recipe in ("layered", "gop12-fast")
        data = made(recipe).read_bytes()
        assert (b"cabac=0" in data) == (b"deblock=0" in data) == fast
