"""Small videos whose truth is known, drawn from a seed and written as real H.264 files.

Input: a class, a seed and a split. Output: uint8 [T, H, W, 3] (`draw`), or a folder of mp4 files
with its manifest (`make`). Traded: flat objects in front of a sliding pattern are far from the
world, but nothing is downloaded and every pixel can be accounted for. Taught in chapters 1 and 10.

Twelve classes are six pairs, and a class is its twin played backwards, to the bit: no frame by
itself tells them apart. A clip shows two objects opposite each other about a point, and its class
is what changes: the point, the size, the angle, the presence or the distance. Halfway, a seed is
one picture in all classes but the two with presence; near the ends, size and distance tell more.

The nuisances of the splits (`val` has other clips than `train`, from the same ranges):
    train, val  polygons; stripes, checks; hues near red, green, blue; radius 12 to 15 % of the
                frame; 0.8 to 1.05 of the usual change; the camera slides 2 to 8 % of the frame
    test        flowers; rings, spokes; hues near yellow, cyan, magenta; radius 15.5 to 18 %;
                1.1 to 1.3 of the usual change; the camera slides 8.5 to 13 %

A `twist` draws the same clip with its objects on another course, the background as it was, to the
bit. Cut from one to the other halfway, and an object does what none does in any class: it is gone,
somewhere else, or on its way back. That is how chapter 10 asks what a model expects.

Places, directions and backgrounds are drawn alike for all: noise of any grain, new for each clip.
"""

import colorsys
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vidlearn.datasets.cores import cores
from vidlearn.datasets.write import encode
from vidlearn.errors import ConfigError, VidlearnError

CLASSES: tuple[str, ...] = (
    "right", "left", "down", "up", "approaches", "recedes",
    "clockwise", "counterclockwise", "appears", "vanishes", "meet", "part",
)  # fmt: skip
# Corners of a polygon; below zero the petals of a flower.
SHAPES = {"triangle": 3, "square": 4, "hexagon": 6, "peanut": -2, "clover": -4, "star": -5}
# Hues count from red, green or blue: all together are grey, so that no colour tells a class.
SEEN = {
    "shape": ("triangle", "square", "hexagon"), "texture": ("stripes", "checks"),
    "hue": (0.0, 0.12), "radius": (0.12, 0.15), "speed": (0.8, 1.05), "pan": (0.02, 0.08),
}  # fmt: skip
UNSEEN = {
    "shape": ("peanut", "clover", "star"), "texture": ("rings", "spokes"),
    "hue": (0.17, 0.29), "radius": (0.155, 0.18), "speed": (1.1, 1.3), "pan": (0.085, 0.13),
}  # fmt: skip
RANGES: dict[str, dict] = {"train": SEEN, "val": SEEN, "test": UNSEEN, "far": UNSEEN}
# The other courses: the first object is not there, both stand a quarter turn away about the point
# between them, both go backwards (halfway they are where they were).
TWISTS = ("vanish", "teleport", "reverse")
VERSION = 1  # of the drawing: clips of different versions are not mixed in one folder
LIGHT = {"preset": "ultrafast", "b_strategy": "0"}  # quick, but with B-frames in every group


def nuisances(seed: int, split: str = "train") -> SimpleNamespace:
    """All of a clip that is not its class; lengths are shares of the frame's side, angles rad."""
    if split not in RANGES:
        raise ConfigError(f"split {split!r}: give one of {', '.join(RANGES)}")
    rng, of = np.random.default_rng([seed, list(RANGES).index(split)]), RANGES[split]
    return SimpleNamespace(
        shape=str(rng.choice(of["shape"])),
        texture=str(rng.choice(of["texture"])),
        hues=[rng.uniform(*of["hue"]) + rng.integers(3) / 3 for _ in range(2)],  # bright, dark
        radius=rng.uniform(*of["radius"]),
        speed=rng.uniform(*of["speed"]),
        pan=rng.uniform(*of["pan"]),  # way of the camera over the clip
        pan_angle=rng.uniform(0, 2 * np.pi),
        angle=rng.uniform(0, 2 * np.pi),  # of the line through both objects
        centre=rng.uniform(0.38, 0.62, 2),  # x, y halfway through the clip
        gap=rng.uniform(1.9, 2.2),  # from the centre to each object, in radii
        switch=rng.uniform(0.3, 0.7),  # when objects appear, as a share of the clip
        noise=int(rng.integers(2**32)),  # seed of the background
        backdrop=_gratings if split == "far" else _noise,
    )


def objects(
    class_name: str, seed: int, split: str = "train", *, frames: int = 16, twist: str = ""
) -> SimpleNamespace:
    """Where the two objects of a clip are: the truth that `draw` draws, frame by frame.

    where [2, 3, T]: x, y and radius in shares of the frame's side; way [2, T]: their own angle in
    rad; shown [2, T]. ConfigError: unknown names.
    """
    if class_name not in CLASSES:
        raise ConfigError(f"class {class_name!r}: give one of {', '.join(CLASSES)}")
    if twist and twist not in TWISTS:
        raise ConfigError(f"twist {twist!r}: give one of {', '.join(TWISTS)}, or nothing")
    pair, backwards = divmod(CLASSES.index(class_name), 2)
    look = nuisances(seed, split)
    change = np.zeros((6, frames))
    change[pair] = np.linspace(-0.5, 0.5, frames) * look.speed * (-1 if twist == "reverse" else 1)
    x, y = (look.centre[axis] + 0.45 * change[axis] for axis in (0, 1))
    radius, angle = look.radius * np.exp(1.1 * change[2]), look.angle + 3.0 * change[3]
    gap = radius * look.gap * (1 - change[5])
    shown = (change[4] >= (look.switch - 0.5) * look.speed) | (pair != 4)
    ways, aside = (angle, angle + np.pi), np.pi / 2 if twist == "teleport" else 0.0
    where = [(x + gap * np.cos(w + aside), y + gap * np.sin(w + aside), radius) for w in ways]
    truth = {"where": where, "way": ways, "shown": (shown & (twist != "vanish"), shown)}
    turn = slice(None, None, -1 if backwards else 1)
    return SimpleNamespace(**{name: np.array(x)[..., turn] for name, x in truth.items()})


def draw(
    class_name: str, seed: int, split: str = "train", *, frames: int = 16, size: int = 64,
    twist: str = "",
) -> np.ndarray:  # fmt: skip
    """One clip, uint8 [T, H, W, 3], the same whenever it is drawn. ConfigError: unknown names."""
    both = objects(class_name, seed, split, frames=frames, twist=twist)
    look, backwards = nuisances(seed, split), CLASSES.index(class_name) % 2
    turn = slice(None, None, -1 if backwards else 1)  # twins are drawn alike, to the bit
    clip = look.backdrop(look, frames, size)
    for where, way, shown in zip(both.where, both.way, both.shown):
        clip = _paint(clip, look, where[:, turn] * size, way[turn], shown[turn])
    clip = np.floor(clip.clip(0, 255) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(clip[::-1]) if backwards else clip


def make(
    root: str | os.PathLike[str], *, train: int = 2000, val: int = 480, test: int = 480,
    far: int = 0, seed: int = 0, frames: int = 16, size: int = 64, fps: float = 8.0,
    workers: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write root/<split>/<class>/<seed of the clip>.mp4, then root/manifest.csv, which is returned.

    Files that are there stay: a second call does nothing, an interrupted one goes on. With more
    than one worker (None: one a core) a script needs the `__main__` guard. progress(done, all).
    VidlearnError: the folder holds something else, or a set made with other arguments.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test, "far": far}
    asked = json.dumps({**counts, "seed": seed, "clip": [frames, size, fps], "version": VERSION})
    stamp, manifest = root / "synth.json", root / "manifest.csv"
    found = stamp.read_text() if stamp.exists() else "no stamp" if manifest.exists() else asked
    if found != asked:
        remedy = "Choose another folder, or delete this one"
        raise VidlearnError(f"{root}: holds {found}, not {asked}. {remedy}")
    root.mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        stamp.write_text(asked)
    jobs, rows = [], [("path", "label", "split", "source_id")]
    for split, i in [(name, i) for name, count in counts.items() for i in range(count)]:
        label, clip_seed = CLASSES[i % len(CLASSES)], seed * 1_000_000 + i
        rows.append((f"{split}/{label}/{clip_seed:06d}.mp4", label, split, f"{split}-{clip_seed}"))
        if not (root / rows[-1][0]).exists():
            jobs.append((root / rows[-1][0], label, clip_seed, split, frames, size, fps))
    workers = min(workers or cores(), 1 + len(jobs) // 50)  # a start costs a second
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        written = pool.map(_write, jobs, chunksize=8) if workers > 1 else map(_write, jobs)
        for done, _ in enumerate(written, 1):
            if progress:
                progress(len(rows) - 1 - len(jobs) + done, len(rows) - 1)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the clips in line
    if jobs or not manifest.exists():
        part = root / f"manifest.{os.getpid()}.part"
        part.write_text("".join(",".join(row) + "\n" for row in rows))
        part.replace(manifest)
    return manifest


def make_shown(root: str | os.PathLike[str], **how: Any) -> Path:
    """`make` with all splits, and a bar on a terminal, since it takes minutes."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        advance = partial(bar.update, bar.add_task("videos"))
        return make(
            root, **{"far": 480, **how}, progress=lambda i, n: advance(completed=i, total=n)
        )


def _write(job: tuple[Path, str, int, str, int, int, float]) -> None:
    path, label, clip_seed, split, frames, size, fps = job
    encode(path, draw(label, clip_seed, split, frames=frames, size=size), fps, options=LIGHT)


def _noise(look: SimpleNamespace, frames: int, size: int) -> np.ndarray:
    """Periodic noise that slides by parts of a pixel, float [T, H, W, 3] in grey levels."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    rng = np.random.default_rng(look.noise)
    stretch, contrast = np.exp(rng.uniform(-0.8, 0.8)), rng.uniform(0.4, 2.0)
    grain = np.hypot(np.hypot(fx * stretch, fy / stretch), 1 / size) ** -rng.uniform(1.2, 2.4)
    noise = np.fft.rfft2(rng.standard_normal((3, size, size))) * grain
    noise[:, 0, 0] = 0
    noise /= np.fft.irfft2(noise, (size, size)).std(axis=(1, 2), keepdims=True)
    way = np.linspace(-0.5, 0.5, frames)[:, None, None] * look.pan * size
    phase = way * (fx * np.cos(look.pan_angle) + fy * np.sin(look.pan_angle))
    slid = np.fft.irfft2(noise * np.exp(-2j * np.pi * phase)[:, None], (size, size))
    colours = rng.normal(0, 12, (3, 3)) + rng.normal(0, 12, (3, 1))
    return np.moveaxis(np.tanh(contrast * slid), 1, -1) @ colours + rng.uniform(75, 155, 3)


def _gratings(look: SimpleNamespace, frames: int, size: int) -> np.ndarray:
    """Two waves, each straight and of one length, that slide together; as `_noise`."""
    rng = np.random.default_rng(look.noise)
    way = np.linspace(-0.5, 0.5, frames)[:, None, None] * look.pan
    x, y = (np.arange(size) + 0.5) / size, (np.arange(size)[:, None] + 0.5) / size
    x, y = x - way * np.cos(look.pan_angle), y - way * np.sin(look.pan_angle)
    drawn = zip(rng.uniform(2, 9, 2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0, 2 * np.pi, 2))
    waves = [
        np.sin(2 * np.pi * n * (x * np.cos(a) + y * np.sin(a)) + start) for n, a, start in drawn
    ]
    colours = rng.normal(0, 20, (2, 3)) + rng.normal(0, 20, (2, 1))
    return np.stack(waves, -1) @ colours + rng.uniform(75, 155, 3)


def _paint(
    clip: np.ndarray, look: SimpleNamespace, where: np.ndarray, way: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """One object on every frame; where: x, y and radius in pixels, [3, T]; way: its angle [T]."""
    x, y, radius = where[..., None, None]
    n, grid = SHAPES[look.shape], np.arange(clip.shape[1]) + 0.5
    dx, dy = grid[None, None, :] - x, grid[None, :, None] - y
    far, theta = np.hypot(dx, dy) / radius, np.arctan2(dy, dx) - way[:, None, None]
    edge = 0.72 + 0.28 * np.cos(n * theta)
    if n > 0:
        edge = np.cos(np.pi / n) / np.cos(theta % (2 * np.pi / n) - np.pi / n)
    u, v = far * np.cos(theta), far * np.sin(theta)  # across and along the object, in radii
    waves = {"stripes": np.sin(5 * u), "checks": 2 * np.sin(4 * u) * np.sin(4 * v)}
    wave = (waves | {"rings": np.sin(8 * far), "spokes": np.cos(3 * theta)})[look.texture]
    tones = [colorsys.hsv_to_rgb(hue, 0.6, value) for hue, value in zip(look.hues, (1, 0.3))]
    bright, dark = 255 * np.array(tones)
    colour = dark + (0.5 + 0.5 * np.tanh(3 * wave))[..., None] * (bright - dark)
    cover = (((edge - far) * radius + 0.5).clip(0, 1) * shown[:, None, None])[..., None]
    return clip + cover * (colour - clip)
