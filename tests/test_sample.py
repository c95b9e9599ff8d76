"""The sampler: which frames, for any length and any frame rate."""

from __future__ import annotations

import numpy as np
import pytest

from vidlearn.errors import ConfigError, VidlearnError
from vidlearn.sample import ClipSpec, clip_indices

LENGTHS = [*range(1, 80), 299, 300, 1000]


def five(end: str, n_frames: int = 12) -> list[int]:
    spec = ClipSpec(frames=5, stride_frames=4, end=end)
    return clip_indices(spec, n_frames)[0].tolist()


def test_the_drawing_in_the_docstring() -> None:
    assert five("clamp", 20) == [1, 5, 9, 13, 17]
    assert five("clamp") == [0, 4, 8, 11, 11]
    assert five("loop") == [0, 4, 8, 0, 4]
    assert five("compress") == [0, 3, 6, 8, 11]
    with pytest.raises(VidlearnError, match="needs 17 frames, the video has 12"):
        five("error")
    assert five("error", 17) == five("loop", 17) == five("compress", 17) == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_every_index_is_a_frame_and_clips_are_as_long_as_asked(n_frames: int) -> None:
    for frames, stride, clips in [(1, 1, 1), (16, 4, 1), (8, 2, 3), (5, 7, 2), (64, 1, 8)]:
        for end in ("clamp", "loop", "compress"):
            spec = ClipSpec(frames=frames, stride_frames=stride, clips=clips, end=end)
            for rng in (None, np.random.default_rng(n_frames)):
                index = clip_indices(spec, n_frames, rng=rng)
                assert index.shape == (clips, frames) and index.dtype == np.int64
                assert index.min() >= 0 and index.max() < n_frames
                if n_frames > (frames - 1) * stride:
                    assert (np.diff(index, axis=1) == stride).all()
                    assert (np.diff(index[:, 0]) >= 0).all()
                if end != "loop":
                    assert (np.diff(index, axis=1) >= 0).all()


@pytest.mark.parametrize("n_frames", [n for n in LENGTHS if n >= 8])
def test_the_published_rule_stays_inside_too(n_frames: int) -> None:
    for frames, stride, clips in [(16, 4, 1), (8, 2, 3), (4, 1, 8)]:
        for overlap in (False, True):
            spec = ClipSpec(frames, stride, clips=clips, rule="vjepa1", overlap=overlap)
            for rng in (None, np.random.default_rng(n_frames)):
                index = clip_indices(spec, n_frames, rng=rng)
                assert index.shape == (clips, frames)
                assert index.min() >= 0 and index.max() < n_frames
                assert (np.diff(index, axis=1) >= 0).all()


def test_the_published_strides_are_not_the_stride_asked_for() -> None:
    spec = ClipSpec(frames=16, stride_frames=4, rule="vjepa1")
    index = clip_indices(spec, 300)[0]
    assert np.diff(index).tolist() == [4, 4, 4, 5, 4, 4, 4, 5, 4, 4, 4, 5, 4, 4, 4]
    assert index[0] == 0 and index[-1] == 63
    # 20 frames hold five strides of four; the last frame fills the rest of the clip.
    assert clip_indices(spec, 20)[0].tolist() == [0, 5, 10, 15] + [19] * 12


@pytest.mark.parametrize("fps", [3.0, 12.0, 23.976, 24.0, 25.0, 30000 / 1001, 50.0, 59.94, 90.0])
def test_seconds_mean_the_same_at_any_frame_rate(fps: float) -> None:
    spec = ClipSpec(frames=8, stride_frames=None, delta_t_s=0.25)
    at_s = clip_indices(spec, int(20 * fps), fps)[0] / fps
    # Rounding to whole frames moves each by half a frame at most, and the errors do not add up.
    assert np.abs(at_s - at_s[0] - 0.25 * np.arange(8)).max() <= 0.5 / fps + 1e-6
    spread = ClipSpec(frames=8, stride_frames=None, span_s=2.0)
    assert (clip_indices(spread, int(20 * fps), fps) / fps == at_s).all()


def test_a_step_below_one_frame_shows_frames_twice() -> None:
    spec = ClipSpec(frames=5, stride_frames=None, delta_t_s=0.1, end="error")
    assert clip_indices(spec, 3, 5.0)[0].tolist() == [0, 1, 1, 2, 2]


def test_random_starts_reach_both_ends_and_repeat_with_the_seed() -> None:
    spec = ClipSpec(frames=4, stride_frames=2)
    seen = {clip_indices(spec, 10, rng=np.random.default_rng(s))[0, 0] for s in range(80)}
    assert seen == {0, 1, 2, 3}
    one, two = (clip_indices(spec, 99, rng=np.random.default_rng(7)) for _ in range(2))
    assert (one == two).all()


def test_starts_on_a_grid() -> None:
    """The drawn ones, the even ones, and those of a video that is too short; 1 changes nothing."""
    spec = ClipSpec(frames=4, stride_frames=4, start_grid=4)
    seen = {clip_indices(spec, 26, rng=np.random.default_rng(s))[0, 0] for s in range(80)}
    assert seen == {0, 4, 8, 12}
    even = ClipSpec(frames=4, stride_frames=4, start_grid=4, clips=3)
    assert clip_indices(even, 61)[:, 0].tolist() == [8, 24, 40]
    assert clip_indices(spec, 9)[0].tolist() == [0, 4, 8, 8]


def test_clips_without_randomness_are_spread_evenly() -> None:
    starts = clip_indices(ClipSpec(frames=2, stride_frames=1, clips=4), 82)[:, 0]
    assert starts.tolist() == [10, 30, 50, 70]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta_t_s": 0.5}, "set one of stride_frames, delta_t_s, span_s"),
        ({"stride_frames": None}, "not none"),
        ({"stride_frames": None, "delta_t_s": 1.0, "span_s": 2.0}, "set one of"),
        ({"stride_frames": 0}, "stride_frames=0"),
        ({"frames": -3}, "frames=-3"),
        ({"clips": 0}, "clips=0"),
        ({"stride_frames": None, "span_s": float("nan")}, "span_s=nan"),
        ({"end": "bounce"}, "bounce"),
        ({"rule": "vjepa9"}, "vjepa9"),
        ({"rule": "vjepa1", "end": "loop"}, "loop"),
        ({"overlap": True}, "overlap=True"),
        ({"start_grid": 0}, "start_grid=0"),
        ({"rule": "vjepa1", "start_grid": 4}, "start_grid=4"),
    ],
)
def test_a_wrong_option_is_named(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClipSpec(**options)


def test_wrong_input_is_named() -> None:
    seconds = ClipSpec(stride_frames=None, delta_t_s=0.1)
    for fps in (None, 0.0, float("nan")):
        with pytest.raises(ConfigError, match="frame rate, got fps="):
            clip_indices(seconds, 10, fps)
    with pytest.raises(VidlearnError, match="0 frames"):
        clip_indices(ClipSpec(), 0)
    published = ClipSpec(stride_frames=None, delta_t_s=0.25, rule="vjepa1")
    with pytest.raises(ConfigError, match="3 frames/s is less than one frame"):
        clip_indices(published, 100, 3.0)
