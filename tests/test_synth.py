"""The built-in videos: exact twins, separate nuisances, files that repeat to the byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vidlearn.datasets import open_data, synth
from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.storage import frame_table

FEW = {"train": 12, "val": 12, "test": 12, "workers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth.make(tmp_path_factory.mktemp("synth") / "set", **FEW).parent


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.mark.parametrize("pair", range(6))
@pytest.mark.parametrize("split", ["train", "test"])
def test_twins_are_exact_reversals(pair: int, split: str) -> None:
    one, other = synth.CLASSES[2 * pair : 2 * pair + 2]
    for seed in (0, 7):
        clip = synth.draw(one, seed, split)
        assert clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8
        assert (synth.draw(other, seed, split) == clip[::-1]).all()
        assert (clip != clip[::-1]).any()


def test_halfway_all_classes_show_the_same_picture() -> None:
    """So that a frame tells as little as possible of the class; only presence must differ."""
    middle = [synth.draw(name, 5, frames=9)[4] for name in synth.CLASSES]
    same = [name for name, frame in zip(synth.CLASSES, middle) if (frame == middle[0]).all()]
    assert set(synth.CLASSES) - set(same) <= {"appears", "vanishes"}


@pytest.fixture(scope="module")
def covered() -> dict[str, np.ndarray]:
    """Where each class shows an object, bool [T, H, W]: the median of the classes is the rest."""
    names = ["right", "down", "approaches", "clockwise", "appears", "meet"]
    clips = np.stack([synth.draw(name, 3) for name in names]).astype(np.int64)
    away = np.abs(clips - np.median(clips, axis=0)).max(-1) > 20
    return dict(zip(names, away))


def moments(mask_HW: np.ndarray) -> tuple[float, float, float]:
    """Mean x, mean y and spread of a mask."""
    y, x = np.nonzero(mask_HW)
    return x.mean(), y.mean(), float(np.hypot(x.std(), y.std()))


def test_objects_move_as_their_class_says(covered: dict[str, np.ndarray]) -> None:
    moving = ("right", "down", "meet")
    ends = {name: [moments(mask) for mask in covered[name][[0, -1]]] for name in moving}
    (x_0, y_0, _), (x_1, y_1, _) = ends["right"]
    assert x_1 - x_0 > 12 and abs(y_1 - y_0) < 3
    (x_0, y_0, _), (x_1, y_1, _) = ends["down"]
    assert y_1 - y_0 > 12 and abs(x_1 - x_0) < 3
    assert covered["approaches"][-1].sum() > 2 * covered["approaches"][0].sum()
    assert ends["meet"][1][2] < 0.8 * ends["meet"][0][2]
    shown = covered["appears"].sum((1, 2))
    assert shown[0] < 10 and shown[-1] > 30


def test_clockwise_turns_clockwise_as_seen(covered: dict[str, np.ndarray]) -> None:
    """y points down, so the angle of the line through both objects grows."""
    angles = []
    for mask in covered["clockwise"]:
        y, x = np.nonzero(mask)
        angles.append(np.angle((((x - x.mean()) + 1j * (y - y.mean())) ** 2).mean()))
    steps = np.diff(np.unwrap(angles)) / 2
    assert (steps > 0).mean() > 0.8 and 1.8 < steps.sum() < 3.6


def test_nuisances_of_train_and_test_are_disjoint() -> None:
    for name, seen in synth.SEEN.items():
        unseen = synth.UNSEEN[name]
        if isinstance(seen[0], str):
            assert not set(seen) & set(unseen), name
        else:
            assert seen[1] < unseen[0] or unseen[1] < seen[0], name
    for split, ranges in synth.RANGES.items():
        for seed in range(200):
            look = synth.nuisances(seed, split)
            assert look.shape in ranges["shape"] and look.texture in ranges["texture"]
            for name in ("radius", "speed", "pan"):
                assert ranges[name][0] <= getattr(look, name) <= ranges[name][1]
            hues = np.array(look.hues) % (1 / 3)
            assert (ranges["hue"][0] <= hues).all() and (hues <= ranges["hue"][1]).all()
    assert synth.RANGES["val"] == synth.RANGES["train"]


def test_splits_hold_different_clips_and_seeds_different_backgrounds() -> None:
    a, b = synth.draw("right", 1, "train"), synth.draw("right", 1, "val")
    assert (a != b).mean() > 0.9
    assert (synth.draw("right", 1) != synth.draw("right", 2)).mean() > 0.9


def test_far_has_the_objects_of_test_before_another_kind_of_background() -> None:
    assert synth.RANGES["far"] == synth.RANGES["test"]

    def evenness(split: str, seed: int) -> float:
        """Share of a frame's variance in its four strongest frequencies, one colour."""
        look = synth.nuisances(seed, split)
        waves = np.abs(np.fft.rfft2(look.backdrop(look, 2, 64)[0, :, :, 0]))[1:, 1:] ** 2
        return float(np.sort(waves.ravel())[-8:].sum() / waves.sum())

    far, test = (np.mean([evenness(split, i) for i in range(40)]) for split in ("far", "test"))
    assert far > 0.8 and far > 1.3 * test, (far, test)
    a = synth.nuisances(1, "far")
    slow = [a.backdrop(a, 3, 64)[i] for i in range(3)]
    assert (slow[0] != slow[1]).any(), "it slides as other backgrounds do"


def test_the_built_in_set_holds_all_four_splits(tmp_path: Path) -> None:
    manifest = synth.make_shown(tmp_path, train=12, val=2, test=2, far=2)
    splits, how = open_data(manifest).splits()
    assert {name: len(x) for name, x in splits.items()} == dict(train=12, val=2, test=2, far=2)
    assert how == "the data's own"


def test_one_frame_is_near_chance_for_a_linear_classifier() -> None:
    """Least squares with ridge on the pixels of one frame; chance is 8.3 %."""

    def pixels(seeds: range, split: str) -> tuple[np.ndarray, np.ndarray]:
        names = [synth.CLASSES[i % 12] for i in seeds]
        clips = [synth.draw(name, i, split, frames=5, size=32) for name, i in zip(names, seeds)]
        x = np.stack(clips).astype(np.float64) / 255 - 0.5
        return x.reshape(len(x), 5, -1), np.array([synth.CLASSES.index(name) for name in names])

    (x, y), (x_val, y_val) = pixels(range(420), "train"), pixels(range(9000, 9240), "val")
    for t in (0, 2, 4):
        gram = x[:, t] @ x[:, t].T + 30 * np.eye(len(x))
        weights = x[:, t].T @ np.linalg.solve(gram, np.eye(12)[y] - 1 / 12)
        accuracy = ((x_val[:, t] @ weights).argmax(1) == y_val).mean()
        assert accuracy < 0.2, (t, accuracy)


def test_files_are_h264_with_b_frames(made: Path) -> None:
    for path in sorted(made.rglob("*.mp4"))[:6]:
        table = frame_table(path, types=True)
        assert (table.codec, table.n_frames, table.width, table.height) == ("h264", 16, 64, 64)
        assert table.fps == pytest.approx(8) and table.seekable
        assert table.types.count("B") >= 4 and table.types[0] == "I"


def test_the_manifest_names_every_file(made: Path) -> None:
    data = open_data(made)
    assert len(data) == 36 and data.classes == tuple(sorted(synth.CLASSES))
    for split in ("train", "val", "test"):
        rows = data.split(split).rows
        assert [row.label for row in rows] == list(synth.CLASSES)
        assert all(
            Path(row.path).is_file() and Path(row.path).parent.name == row.label for row in rows
        )
    assert len({row.source_id for row in data.rows}) == 36


def test_bytes_repeat_and_processes_change_nothing(made: Path, tmp_path: Path) -> None:
    """Two processes draw the same files as one, to the byte."""
    more = {**FEW, "train": 52, "val": 0, "test": 0}
    synth.make(tmp_path / "one", **more)
    synth.make(tmp_path / "two", **{**more, "workers": 2})
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    videos = {name: digest for name, digest in digests(made).items() if name.endswith(".mp4")}
    other = digests(tmp_path / "one")
    assert all(other[name] == digest for name, digest in videos.items() if name in other)
    assert sum(name in other for name in videos) == 12


def test_the_second_call_does_nothing(made: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in made.rglob("*.*")}
    calls: list = []
    assert synth.make(made, **FEW, progress=lambda *c: calls.append(c)) == made / "manifest.csv"
    assert calls == [] and before == {path: os.stat(path).st_mtime_ns for path in made.rglob("*.*")}


def test_an_interrupted_call_goes_on(made: Path, tmp_path: Path) -> None:
    root, seen = tmp_path / "set", []

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth.make(root, **FEW, progress=stop)
    assert len(list(root.rglob("*.mp4"))) == 5 and not (root / "manifest.csv").exists()
    synth.make(root, **FEW, progress=lambda *call: seen.append(call))
    assert seen == [(n, 36) for n in range(6, 37)]
    assert digests(root) == digests(made)


def test_another_set_is_not_mixed_in(made: Path, tmp_path: Path) -> None:
    with pytest.raises(VidlearnError, match="Choose another folder"):
        synth.make(made, **{**FEW, "seed": 1})
    (tmp_path / "manifest.csv").write_text("path\nx.mp4\n")
    with pytest.raises(VidlearnError, match="no stamp"):
        synth.make(tmp_path, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize("twist", synth.TWISTS)
def test_a_twist_changes_the_objects_and_nothing_else(twist: str) -> None:
    """To the bit, outside of where either course has an object; twins stay twins."""
    for name in ("right", "left", "clockwise"):
        clips = [synth.draw(name, 4, twist=course) for course in ("", twist)]
        y, x = np.mgrid[:64, :64] + 0.5
        near = np.zeros((16, 64, 64), bool)
        for course in ("", twist):
            for at_x, at_y, radius in 64 * synth.objects(name, 4, twist=course).where:
                far = np.hypot(x - at_x[:, None, None], y - at_y[:, None, None])
                near |= far < radius[:, None, None] + 1
        away = (clips[0] != clips[1]).any(-1)
        assert not (away & ~near).any()
        # Halfway the way there and the way back meet.
        assert away.any((1, 2))[[0, 1, 2, 13, 14, 15]].all()
    there, back = (synth.draw(name, 4, twist=twist) for name in ("right", "left"))
    assert np.array_equal(there, back[::-1])


def test_twists_do_what_their_names_say() -> None:
    plain = synth.objects("down", 4)
    vanish, teleport, reverse = (synth.objects("down", 4, twist=t) for t in synth.TWISTS)
    assert vanish.shown.tolist() == [[False] * 16, [True] * 16] and plain.shown.all()
    assert np.allclose(reverse.where, plain.where[..., ::-1])
    assert np.allclose(teleport.where[:, :2].mean(0), plain.where[:, :2].mean(0))
    lines = [where[0, :2] - where[1, :2] for where in (plain.where, teleport.where)]
    assert np.allclose(np.hypot(*lines[0]), np.hypot(*lines[1]))
    assert np.allclose((lines[0] * lines[1]).sum(0), 0)
    assert all(np.array_equal(course.way, plain.way) for course in (vanish, teleport, reverse))


def test_the_truth_is_that_of_the_clip() -> None:
    """Twins are told backwards; objects appear when the clip shows them."""
    one, other = (synth.objects(name, 6) for name in ("appears", "vanishes"))
    assert all(np.array_equal(vars(one)[k], vars(other)[k][..., ::-1]) for k in vars(one))
    with_it, without = (synth.draw("appears", 6, twist=t) for t in ("", "vanish"))
    assert (with_it != without).any((1, 2, 3)).tolist() == one.shown[0].tolist()


def test_unknown_names_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'explode'.*vanish, teleport, reverse"):
        synth.draw("right", 0, twist="explode")
    with pytest.raises(ConfigError, match=r"'sideways'.*right, left"):
        synth.draw("sideways", 0)
    with pytest.raises(ConfigError, match=r"'dev'.*train, val, test"):
        synth.nuisances(0, "dev")
