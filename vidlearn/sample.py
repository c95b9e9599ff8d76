"""Which frames make a clip: integers in, integers out, no video (chapter "Choosing frames").

Input: how many frames a video has, and their rate. Output: int64 [clips, T], frames to decode.
Traded: seconds are rounded to whole frames, so that every frame exists and none is blended.
A video of 12 frames ends before a clip of T = 5, stride 4 (0 4 8 12 16), and ClipSpec.end decides:

    clamp     0 4 8 11 11   a still at the end      compress  0 3 6 8 11  faster than asked
    loop      0 4 8  0  4   a jump no camera made   error     VidlearnError
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from vidlearn.errors import ConfigError, VidlearnError


@dataclass(frozen=True)
class ClipSpec:
    """T frames, and exactly one step: stride_frames, delta_t_s seconds or span_s / T seconds.

    rule "vjepa1": V-JEPA's own (arXiv 2404.08471), strides of 4, 4, 4, 5 ..., a clip a section.
    """

    frames: int = 16
    stride_frames: int | None = 4
    delta_t_s: float | None = None
    span_s: float | None = None
    clips: int = 1
    end: str = "clamp"  # for a video too short: "clamp", "loop", "error" or "compress"
    rule: str = "exact"  # or "vjepa1"
    overlap: bool = False  # "vjepa1" only: clips of a short video may share frames
    start_grid: int = 1  # "exact" only: clips start on multiples of it; 4 suits layered files

    def __post_init__(self) -> None:
        units = ("_frames", "_s")  # the three steps are the fields that carry a unit
        steps = {n: v for n, v in vars(self).items() if n.endswith(units) and v is not None}
        if len(steps) != 1:
            raise ConfigError(f"set one of stride_frames, delta_t_s, span_s, not {steps or 'none'}")
        for name in ("frames", "clips", "start_grid", *steps):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ConfigError(f"{name}={value!r}: give a number above 0")
        ends = {"exact": ("clamp", "loop", "error", "compress"), "vjepa1": ("clamp",)}
        odd = self.overlap if self.rule == "exact" else self.start_grid > 1
        if self.end not in ends.get(self.rule, ()) or odd:
            raise ConfigError(f"no such rule, end and grid: {self}. Rules and ends are {ends}")


def clip_indices(
    spec: ClipSpec, n_frames: int, fps: float | None = None, *, rng: Generator | None = None
) -> np.ndarray:
    """Frame numbers int64 [clips, T] within 0..n_frames-1; fps is needed for a step in seconds.

    rng draws the starts. Without it each clip starts in the middle of its share of the possible
    starts ("vjepa1": at the start of its section). VidlearnError: too few frames for the clip.
    """
    if n_frames < 1:
        raise VidlearnError(f"the video has {n_frames} frames: there is no clip in it")
    if spec.rule == "vjepa1":
        return _published(spec, n_frames, int(_stride(spec, fps)), rng)
    # The small number keeps 0.1 s x 5 frames/s from falling on the wrong side of a half.
    offsets = np.floor(np.arange(spec.frames) * _stride(spec, fps) + 0.5 + 1e-6).astype(np.int64)
    spare = n_frames - 1 - int(offsets[-1])
    if spare < 0 and spec.end == "error":
        raise VidlearnError(f"the clip needs {n_frames - spare} frames, the video has {n_frames}")
    if spare < 0:
        squeezed = np.floor(np.linspace(0, n_frames - 1, spec.frames) + 0.5).astype(np.int64)
        ends = {"clamp": offsets.clip(max=n_frames - 1), "loop": offsets % n_frames}
        return np.tile(ends.get(spec.end, squeezed), (spec.clips, 1))
    spare //= spec.start_grid  # of the starts on the grid
    even = (2 * np.arange(spec.clips) + 1) * spare // (2 * spec.clips)
    starts = even if rng is None else np.sort(rng.integers(0, spare + 1, spec.clips))
    return starts[:, None] * spec.start_grid + offsets


def _stride(spec: ClipSpec, fps: float | None) -> float:
    if spec.stride_frames is not None:
        return spec.stride_frames
    if fps is None or not (math.isfinite(fps) and fps > 0):
        raise ConfigError(f"a step in seconds needs the video's frame rate, got fps={fps}")
    delta_t_s = spec.delta_t_s or (spec.span_s or 0.0) / spec.frames
    if spec.rule == "exact":
        return delta_t_s * fps
    # V-JEPA rounds a span down; V-JEPA 2 rounds the rate up before it divides by its step.
    if (stride := math.floor(delta_t_s * (math.ceil(fps) if spec.delta_t_s else fps) + 1e-9)) < 1:
        raise ConfigError(f"{spec} at {fps:g} frames/s is less than one frame a step")
    return stride


def _published(spec: ClipSpec, n: int, stride: int, rng: Generator | None) -> np.ndarray:
    span, hop, clips = spec.frames * stride, n // spec.clips, range(spec.clips)
    if hop > span:  # T points over a span of T x stride frames, hence steps of stride x T/(T-1)
        ends = [int(rng.integers(span, hop)) if rng else span for _ in clips]
        points = np.array([np.linspace(e - span, e, spec.frames).clip(max=e - 1) for e in ends])
    else:
        last = min(span, n) - 1 if spec.overlap else hop
        hop = max(0, n - span) // max(1, spec.clips - 1) if spec.overlap else hop
        points = np.full(spec.frames, last)
        points[: last // stride] = np.linspace(0, last, last // stride)
        points = points.clip(max=max(0, last - 1))
    return points.astype(np.int64) + hop * np.array(clips)[:, None]
