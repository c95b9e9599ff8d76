"""Bytes against time of a reader's own videos: what is measured, drawn, left out and refused."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import videos
from test_cli import inside

from vidlearn.datasets import Manifest, Row, frontier, open_data, ways
from vidlearn.datasets.frontier import draw, lines, measure, points, told
from vidlearn.datasets.packets import PacketTable, scan
from vidlearn.datasets.synth import draw as film
from vidlearn.datasets.transcode import Plan
from vidlearn.datasets.write import encode
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.storage import frame_table, iter_frames

WAYS = ("gop250", "intra", "layered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 120 frames with noise, a short one, and a file that is none."""
    root = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("right", "clockwise")):
        clean = film(kind, seed=number, frames=120, size=96)
        noisy = np.clip(clean + rng.normal(0, 4, clean.shape[:3])[..., None], 0, 255)
        encode(root / f"{number}.mp4", noisy.astype(np.uint8), 30, gop=250, crf=18)
    encode(root / "short.mp4", film("up", seed=3, frames=20, size=96), 30)
    (root / "text.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    settings = {"ways": WAYS, "clips": 6, "rounds": 2, "short_side": 48}
    measured = measure(open_data(folder), out, **settings)  # type: ignore[arg-type]
    assert list(out.iterdir()) == [], "the copies are deleted"
    return measured


def test_every_way_is_weighed_and_timed(found: dict[str, Any]) -> None:
    assert [*found["ways"]] == ["original", *WAYS, "layered (any start)"]
    ways = found["ways"]
    assert ways["intra"]["bytes_per_s"] > ways["gop250"]["bytes_per_s"]
    assert ways["original"]["bytes_per_s"] > 2 * ways["gop250"]["bytes_per_s"]
    assert ways["layered (any start)"]["bytes_per_s"] == ways["layered"]["bytes_per_s"]
    for way in ways.values():
        assert 0 < way["cpu_ms_least"] <= way["cpu_ms"] <= way["cpu_ms_most"]
    assert found["excerpt_s"] == pytest.approx(8.0) and found["fps"] == pytest.approx(30)
    assert {"cpu", "cores", "threads", "os", "av"} <= found["machine"].keys()


def test_pictures_are_counted(found: dict[str, Any]) -> None:
    pictures = {name: way["pictures"] for name, way in found["ways"].items()}
    assert pictures["intra"] == 16
    assert 16 <= pictures["layered"] <= 16 + 8 < pictures["layered (any start)"]
    assert pictures["gop250"] > 40


def test_copies_are_compared_with_their_originals(found: dict[str, Any]) -> None:
    ways = found["ways"]
    assert ways["original"]["psnr_db"] is None
    assert all(30 < ways[name]["psnr_db"] < 50 for name in WAYS)


def test_ways_that_are_no_recipes(folder: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"clips": 4, "rounds": 1, "short_side": 64}
    names = ("gop250", *ways.OTHERS)
    found = measure(open_data(folder), tmp_path, ways=names, **few)["ways"]
    assert [*found] == ["original", *names]
    size = {name: way["bytes_per_s"] for name, way in found.items()}
    assert size["gop250"] < size["gop250-fine"] < size["jpeg75"] < size["jpeg90"] < size["raw"]
    assert size["raw"] == pytest.approx(64 * 64 * 1.5 * 30, rel=0.01)
    near = {name: way["psnr_db"] for name, way in found.items() if way["psnr_db"]}
    assert near["raw"] > 65 and min(near.values()) > 28 and near["gop250-fine"] > near["gop250"]
    assert near["jpeg75"] < near["jpeg90"]
    pictures = {name: way["pictures"] for name, way in found.items()}
    assert pictures["raw"] == pictures["jpeg75"] == 16 and 60 < pictures["hevc"] < 92
    assert list(tmp_path.iterdir()) == [], "the copies are deleted"


def test_what_is_too_small_for_an_encoder_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = videos.write(tmp_path / "in" / "small.mp4", 70)
    assert frame_table(path).height < 64
    one = Manifest((Row(str(path)),), (), str(folder))
    with pytest.raises(VidlearnError, match="48 lines are too few for hevc: 64; of 1 videos"):
        measure(one, tmp_path / "out", ways=("gop12", "hevc"))
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_that_cannot_be_written_are_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "jpeg75").write_text("no folder")
    table, plan = frame_table(folder / "0.mp4"), Plan("gop250", 48)
    one = next(iter_frames(folder / "0.mp4"))
    with pytest.raises(VideoError, match=r"jpeg75.*cannot be written"):
        ways.keep("jpeg75", plan, table, [one], np.zeros(1), tmp_path / "jpeg75" / "0")


def test_unusable_videos_are_named(found: dict[str, Any], folder: Path) -> None:
    causes = {Path(path).name: cause for path, cause in found["left_out"].items()}
    assert causes["short.mp4"] == "20 frames, a clip needs 61"
    assert "text.mp4" in causes and found["videos"] == 2


def test_the_bytes_are_those_of_the_pictures(folder: Path, found: dict[str, Any]) -> None:
    size = sum(int(frame_table(folder / f"{n}.mp4").bytes.sum()) for n in (0, 1))
    assert found["ways"]["original"]["bytes_per_s"] == pytest.approx(size / 8.0)


def test_best_is_what_nothing_beats() -> None:
    ways = {"a": (1.0, 9.0), "b": (2.0, 5.0), "c": (2.0, 6.0), "d": (3.0, 5.0), "e": (9.0, 1.0)}
    assert frontier.unbeaten(ways) == ["a", "b", "e"]
    twins = {"x": (1.0, 1.0), "y": (1.0, 1.0)}
    assert frontier.unbeaten(twins) == ["x", "y"]


def test_only_recipes_compete(found: dict[str, Any]) -> None:
    ways, other = points(found)
    assert other == {"original", "layered (any start)"}
    best = {name for name, way in found["ways"].items() if way["best"]}
    assert best == {*frontier.unbeaten({n: w for n, w in ways.items() if n not in other})}
    text = told(ways, other)
    assert all(name in text for name in ways)


def test_the_table_is_ordered_by_bytes(found: dict[str, Any]) -> None:
    rows = [*lines(found)]
    assert len(rows) == 1 + len(found["ways"])
    size = [float(re.split(r"\s{2,}", row)[1]) for row in rows[1:]]
    assert size == sorted(size)
    best = {name for name, way in found["ways"].items() if way["best"]}
    assert {row.split("  ")[0] for row in rows if row.endswith("  best")} == best


def test_the_figure_joins_the_best() -> None:
    ways = {"a": (1e3, 9.0), "b": (2e3, 5.0), "c": (2e3, 6.0), "other": (1e2, 1.0)}
    (axes,) = draw(ways, {"other"}).axes
    line = next(line for line in axes.lines if len(line.get_xdata()) > 1)
    assert ([*line.get_xdata()], [*line.get_ydata()]) == ([1.0, 2.0], [9.0, 5.0])
    marks = {line.get_label().split(" ", 1)[-1]: line.get_marker() for line in axes.lines}
    assert {name: marks[name] for name in ways} == {"a": "o", "b": "o", "c": "x", "other": "s"}
    places = {x.get_label()[2:]: (x.get_xdata()[0] * 1e3, x.get_ydata()[0]) for x in axes.lines}
    assert {name: places[name] for name in ways} == ways
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(name.split(" ", 1)[1] for name in names) == sorted(ways)


def test_an_excerpt_is_the_middle_of_a_long_video(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "long.mp4", 200, gop=12)
    table = frame_table(path)
    excerpt = frontier._Excerpt(table, *frontier._middle(table, 3.0))
    assert (excerpt.first, excerpt.stop) == (60, 135) and table.is_key[60]
    assert [videos.read_index(image) for image in frontier._frames(excerpt)] == [*range(60, 135)]
    assert excerpt.length_s() == pytest.approx(3.0)


def test_a_video_without_sure_seeking_is_taken_from_its_beginning(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "a.avi", 150)
    table = frame_table(path)
    excerpt = frontier._Excerpt(table, *frontier._middle(table, 3.0))
    assert (excerpt.first, excerpt.stop, table.seekable) == (0, 75, False)
    shown = [videos.read_index(image) for image in frontier._frames(excerpt)]
    assert shown == [videos.read_index(image) for image in iter_frames(path)][:75]


@pytest.mark.parametrize("seconds", [3, 9])  # from the middle, and from the beginning
def test_a_video_that_breaks_later_is_left_out(
    folder: Path, tmp_path: Path, seconds: float
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "good.mp4").write_bytes((folder / "0.mp4").read_bytes())
    bad = videos.write(root / "bad.mp4", 150)
    table, data = scan(str(bad)), bytearray(bad.read_bytes())
    assert isinstance(table, PacketTable)
    stop, n = int(table.place[60] + table.bytes[60]), int(table.bytes[60]) // 2
    data[stop - n : stop] = np.random.default_rng(1).bytes(n)
    videos.put(bad, bytes(data))
    few: dict[str, Any] = {"clips": 2, "rounds": 1, "short_side": 32, "seconds": seconds}
    found = measure(open_data(root), tmp_path, ways=("gop12",), **few)
    assert found["left_out"] == {str(bad): "frame 60 is damaged"} and found["videos"] == 1


def test_the_command_writes_numbers_and_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--recipes gop12 layered --clips 2 --short-side 32 --seconds 3".split()
    status, text, _ = inside(capsys, "data", "frontier", folder, "--out", tmp_path / "f", *words)
    assert status == 0 and "left out: " in text and "layered (any start)" in text
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "frontier.json",
        "frontier.svg",
    ]
    stored = json.loads((tmp_path / "f" / "frontier.json").read_text())
    assert [*stored["ways"]] == ["original", "gop12", "layered", "layered (any start)"]
    assert "<svg" in (tmp_path / "f" / "frontier.svg").read_text()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ways": ("mpeg7",)}, "--recipes mpeg7: give some of layered"),
        ({"ways": ()}, "--recipes: give at least one"),
        ({"clips": 0}, "--clips 0: give 1 or more"),
        ({"videos": -1}, "--videos -1: give 1 or more"),
        ({"seconds": 0.1}, "--seconds 0.1: give 1 or more"),
        ({"short_side": 33}, "--short-side 33"),
        ({"short_side": 48, "ways": ("gop12", "hevc")}, "--short-side 48: hevc needs 64 or more"),
    ],
)
def test_choices_that_cannot_be(
    folder: Path, tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        measure(open_data(folder), tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_no_video_that_is_long_enough(tmp_path: Path) -> None:
    encode(tmp_path / "in" / "a.mp4", film("up", seed=3, frames=20, size=32), 30)
    with pytest.raises(VidlearnError, match=r"a\.mp4: 20 frames, a clip needs 61; of 1 videos"):
        measure(open_data(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_goes_meanwhile_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, gone = frontier._choose, []

    def then_lose(*args: Any) -> Any:
        chosen, left_out = choose(*args)
        path = chosen[0].table.path
        chosen[0] = replace(chosen[0], table=replace(chosen[0].table, path=f"{path}.gone"))
        gone.append(f"{path}.gone")
        return chosen, left_out

    monkeypatch.setattr(frontier, "_choose", then_lose)
    few: dict[str, Any] = {"clips": 2, "rounds": 1, "short_side": 48}
    found = measure(open_data(folder), tmp_path / "out", ways=("gop12",), **few)
    assert gone[0] in found["left_out"] and found["videos"] > 0


def test_a_full_disk_is_not_the_videos_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        cause = OSError(errno.ENOSPC, "No space left on device")
        raise VideoError(path, "it cannot be written (No space left on device)") from cause

    monkeypatch.setattr(ways, "encode", full)
    with pytest.raises(VideoError, match="No space left"):
        measure(open_data(folder), tmp_path / "out", ways=("gop12",))
