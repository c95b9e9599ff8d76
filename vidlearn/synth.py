"""Small videos whose truth is known, drawn from a seed and written as real H.264 files.

Input: a class, a seed and a split. Output: uint8 [T, H, W, 3] (`draw`), or a folder of mp4 files
with its manifest (`make`). Traded: two flat objects in front of a sliding pattern are far from
the world, but nothing has to be downloaded and every pixel can be accounted for. Taught in the
chapters "One training step" and "What did it learn?".

Twelve classes are six pairs, and a class is its twin played backwards, to the bit: no frame by
itself can tell them apart. Every clip shows two objects opposite each other about a point, and
the class is only what changes: the point, the size, the angle, the presence or the distance.
Halfway through, one seed is the same picture in all classes; a frame without objects tells that
it is of "appears" or "vanishes", and far from the middle sizes and distances tell a little.

What differs between the splits (see RANGES):
    train, val  polygons; stripes or checks; hues from orange to green; radius 9 to 12 % of the
                frame; 0.9 to 1.2 times the usual change; the camera slides 5 to 14 % of the frame
    test        flowers; rings or spokes; hues from blue to pink; radius 12.5 to 15 %; 0.6 to 0.8
                times the usual change; the camera slides 16 to 25 %
Places, directions and backgrounds are drawn alike for all three: each clip has a background of
its own, noise of any grain, stretch, contrast and colours.
"""

from __future__ import annotations

import colorsys
import csv
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vidlearn.errors import ConfigError
from vidlearn.storage import encode

CLASSES: tuple[str, ...] = (
    "right", "left", "down", "up", "approaches", "recedes",
    "clockwise", "counterclockwise", "appears", "vanishes", "meet", "part",
)  # fmt: skip
# Corners of a polygon; below zero the petals of a flower.
SHAPES = {"triangle": 3, "square": 4, "hexagon": 6, "peanut": -2, "clover": -4, "star": -5}
SEEN = {
    "shape": ("triangle", "square", "hexagon"), "texture": ("stripes", "checks"),
    "hue": (0.05, 0.45), "radius": (0.09, 0.12), "speed": (0.9, 1.2), "pan": (0.05, 0.14),
}  # fmt: skip
UNSEEN = {
    "shape": ("peanut", "clover", "star"), "texture": ("rings", "spokes"),
    "hue": (0.55, 0.95), "radius": (0.125, 0.15), "speed": (0.6, 0.8), "pan": (0.16, 0.25),
}  # fmt: skip
RANGES: dict[str, dict] = {"train": SEEN, "val": SEEN, "test": UNSEEN}
VERSION = 1  # of the drawing: clips of different versions are not mixed in one folder


@dataclass(frozen=True)
class Nuisances:
    """All of a clip that is not its class; lengths are shares of the frame's side, angles rad."""

    shape: str
    texture: str
    hues: tuple[float, float]
    radius: float
    speed: float
    pan: float  # way of the camera over the clip
    pan_angle: float
    angle: float  # of the line through both objects
    centre: tuple[float, float]  # x, y halfway through the clip
    gap: float  # from the centre to each object, in radii
    switch: float  # when they appear, as a share of the clip


def nuisances(seed: int, split: str = "train") -> Nuisances:
    """The nuisances that `draw` takes, whatever the class. ConfigError: an unknown split."""
    if split not in RANGES:
        raise ConfigError(f"split {split!r}: give one of {', '.join(RANGES)}")
    rng, of = _rng(seed, split, 0), RANGES[split]
    return Nuisances(
        shape=str(rng.choice(of["shape"])),
        texture=str(rng.choice(of["texture"])),
        hues=tuple(rng.uniform(*of["hue"], 2).tolist()),
        radius=rng.uniform(*of["radius"]),
        speed=rng.uniform(*of["speed"]),
        pan=rng.uniform(*of["pan"]),
        pan_angle=rng.uniform(0, 2 * np.pi),
        angle=rng.uniform(0, 2 * np.pi),
        centre=tuple(rng.uniform(0.38, 0.62, 2).tolist()),
        gap=rng.uniform(1.9, 2.2),
        switch=rng.uniform(0.3, 0.7),
    )


def draw(
    class_name: str, seed: int, split: str = "train", *, frames: int = 16, size: int = 64
) -> np.ndarray:
    """One clip, uint8 [T, H, W, 3], the same whenever it is drawn. ConfigError: unknown names."""
    if class_name not in CLASSES:
        raise ConfigError(f"class {class_name!r}: give one of {', '.join(CLASSES)}")
    pair, backwards = divmod(CLASSES.index(class_name), 2)
    look = nuisances(seed, split)
    change = np.zeros((6, frames))
    change[pair] = np.linspace(-0.5, 0.5, frames) * look.speed
    x, y = (look.centre[axis] + 0.45 * change[axis] for axis in (0, 1))
    radius = look.radius * np.exp(1.1 * change[2])
    angle = look.angle + 3.0 * change[3]
    shown = change[4] >= (look.switch - 0.5) * look.speed if pair == 4 else np.full(frames, True)
    gap = radius * look.gap * (1 - change[5])
    clip = _background(_rng(seed, split, 1), look, frames, size)
    for turn in (0.0, np.pi):
        way = angle + turn
        where = np.stack([x + gap * np.cos(way), y + gap * np.sin(way), radius]) * size
        clip = _paint(clip, look, where, way, shown)
    clip = np.floor(clip.clip(0, 255) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(clip[::-1]) if backwards else clip


def _rng(seed: int, split: str, use: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(RANGES).index(split), use])


def _background(rng: np.random.Generator, look: Nuisances, frames: int, size: int) -> np.ndarray:
    """Periodic noise that slides by parts of a pixel, float [T, H, W, 3] in grey levels."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    stretch = np.exp(rng.uniform(-0.8, 0.8))
    grain = np.hypot(np.hypot(fx * stretch, fy / stretch), 1 / size) ** -rng.uniform(0.6, 2.2)
    noise = np.fft.rfft2(rng.standard_normal((3, size, size))) * grain
    noise[:, 0, 0] = 0
    noise /= np.fft.irfft2(noise, (size, size)).std(axis=(1, 2), keepdims=True)
    way = np.linspace(-0.5, 0.5, frames)[:, None, None] * look.pan * size
    phase = way * (fx * np.cos(look.pan_angle) + fy * np.sin(look.pan_angle))
    slid = np.fft.irfft2(noise * np.exp(-2j * np.pi * phase)[:, None], (size, size))
    contrast = rng.uniform(0.4, 3.0)
    colours = rng.normal(0, 25, (3, 3)) + rng.normal(0, 25, (3, 1))
    mean = rng.uniform(80, 175, 3)
    return np.moveaxis(np.tanh(contrast * slid), 1, -1) @ colours + mean


def _paint(
    clip: np.ndarray, look: Nuisances, where: np.ndarray, way: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """One object on every frame; where: x, y and radius in pixels, [3, T]; way: its angle [T]."""
    x, y, radius = where[..., None, None]
    grid = np.arange(clip.shape[1]) + 0.5
    dx, dy = grid[None, None, :] - x, grid[None, :, None] - y
    far, theta = np.hypot(dx, dy) / radius, np.arctan2(dy, dx) - way[:, None, None]
    n = SHAPES[look.shape]
    edge = 0.72 + 0.28 * np.cos(n * theta)
    if n > 0:
        edge = np.cos(np.pi / n) / np.cos(theta % (2 * np.pi / n) - np.pi / n)
    u, v = far * np.cos(theta), far * np.sin(theta)
    wave = {
        "stripes": np.sin(5 * u),
        "checks": np.sin(4 * u) * np.sin(4 * v) * 2,
        "rings": np.sin(8 * far),
        "spokes": np.cos(3 * theta),
    }[look.texture]
    bright, dark = (
        255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, value))
        for hue, value in zip(look.hues, (1, 0.4))
    )
    blend = (0.5 + 0.5 * np.tanh(3 * wave))[..., None]
    cover = (((edge - far) * radius + 0.5).clip(0, 1) * shown[:, None, None])[..., None]
    return clip + cover * (dark + blend * (bright - dark) - clip)


def make(
    root: str | os.PathLike[str],
    *,
    train: int = 2000,
    val: int = 480,
    test: int = 480,
    seed: int = 0,
    frames: int = 16,
    size: int = 64,
    fps: float = 15.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write root/SPLIT/CLASS/ID.mp4 and root/manifest.csv; returns the manifest's path.

    Clips that are there already are kept, so a call that was interrupted goes on, and a set that
    is complete is left alone. ConfigError: `root` holds a set made with other arguments.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    choices = {**counts, "seed": seed, "frames": frames, "size": size, "fps": fps, "by": VERSION}
    stamp, manifest = root / "synth.json", root / "manifest.csv"
    if stamp.exists() and (old := json.loads(stamp.read_text())) != choices:
        raise ConfigError(f"{root} holds a set made with {old}: delete it or choose another folder")
    if stamp.exists() and manifest.exists():
        return manifest
    root.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(choices))
    jobs = [
        (f"{split}/{CLASSES[i % len(CLASSES)]}/{i:06d}.mp4", split, i)
        for split, n in counts.items()
        for i in range(n)
    ]
    write = partial(_write, root=root, seed=seed, frames=frames, size=size, fps=fps)
    todo = [job for job in jobs if not (root / job[0]).exists()]
    method = "fork" if sys.platform == "linux" else "spawn"  # a fork needs no main guard
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        for done, _ in enumerate(pool.map(write, todo, chunksize=8), start=1):
            if progress:
                progress(len(jobs) - len(todo) + done, len(jobs))
    part = manifest.with_suffix(".part")
    with open(part, "w", newline="") as f:
        lines = csv.writer(f, lineterminator="\n")
        lines.writerow(["path", "label", "split", "source_id"])
        lines.writerows(
            [name, name.split("/")[1], split, f"{split}-{i}"] for name, split, i in jobs
        )
    part.replace(manifest)
    return manifest


def _write(
    job: tuple[str, str, int], *, root: Path, seed: int, frames: int, size: int, fps: float
) -> None:
    name, split, number = job
    clip = draw(name.split("/")[1], seed * 1_000_003 + number, split, frames=frames, size=size)
    encode(root / name, clip, fps, gop=frames, crf=20, b_frames=2, options={"preset": "veryfast"})
