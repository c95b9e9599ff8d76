"""Pixels to pixels: one crop and one flip for all frames of a clip (chapter "Choosing frames").

Input: uint8 [T, H, W, C] as decoded. Output: uint8 [C, T, size, size], normalised on the device,
so that a quarter of the bytes travel. Traded: V-JEPA resizes in float32 (arXiv 2404.08471); uint8
is one grey level off at most, and quicker. As there, nothing antialiases: small pictures shimmer.
"""

import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from vidlearn.errors import ConfigError, VidlearnError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = namedtuple("Box", "top left height width")  # a part of the frame, in pixels


def crop_box(
    height: int, width: int, rng: np.random.Generator, *,
    scale: tuple[float, float] = (0.3, 1.0), ratio: tuple[float, float] = (0.75, 1.35),
) -> Box:  # fmt: skip
    """A random part of a frame of height x width pixels (the defaults are V-JEPA's).

    `scale` is the share of the area, uniform; `ratio` width / height, uniform in its logarithm. A
    draw that does not fit is drawn again, ten times; then the middle is taken, as large as can be.
    """
    area = height * width * rng.uniform(*scale, size=10)
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), size=10))
    sides = np.rint(np.sqrt([area / aspect, area * aspect])).astype(int).clip(min=1)
    if not len(fits := np.flatnonzero((sides[0] <= height) & (sides[1] <= width))):
        box_h = min(height, max(1, round(width / ratio[0])))
        box_w = min(width, max(1, round(height * ratio[1])))
        return Box((height - box_h) // 2, (width - box_w) // 2, box_h, box_w)
    box_h, box_w = (int(side) for side in sides[:, fits[0]])
    top, left = rng.integers(0, (height - box_h + 1, width - box_w + 1))
    return Box(int(top), int(left), box_h, box_w)


@dataclass(frozen=True)
class ClipTransform:
    """Crop, resize and flip a clip; training draws the crop and the flip, evaluation does not."""

    size: int = 64  # side of the result, in pixels
    train: bool = True  # False takes the square in the middle, and never flips
    scale: tuple[float, float] = (0.3, 1.0)  # of the random crop, as its ratio: see crop_box
    ratio: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5  # chance of a left-right flip, which makes "right" of "left"

    def __post_init__(self) -> None:
        (small, large), (thin, wide) = self.scale, self.ratio
        if self.size < 1 or not (0 < small <= large <= 1 and 0 < thin <= wide):
            raise ConfigError(f"{self}: needs size > 0, 0 < scale <= 1 and ratio > 0, low to high")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip={self.flip}: give a chance between 0 and 1")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[Box, bool]:
        """Which part of frames of height x width pixels to take, and whether it is flipped."""
        side = min(height, width)
        box = Box((height - side) // 2, (width - side) // 2, side, side)
        if self.train:
            box = crop_box(height, width, rng, scale=self.scale, ratio=self.ratio)
        return box, self.train and rng.random() < self.flip

    def resize(self, part_THWC: torch.Tensor) -> torch.Tensor:
        """That part in the size asked for: uint8 [T, h, w, C] -> [T, size, size, C]."""
        resized = interpolate(part_THWC.permute(0, 3, 1, 2), (self.size,) * 2, mode="bilinear")
        return resized.permute(0, 2, 3, 1)

    def __call__(self, clip_THWC: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """uint8 [T, H, W, C] -> uint8 [C, T, size, size]; the same rng gives the same result."""
        if clip_THWC.dtype != torch.uint8 or clip_THWC.ndim != 4 or 0 in clip_THWC.shape:
            got = f"{clip_THWC.dtype} {list(clip_THWC.shape)}"
            raise VidlearnError(f"the clip is {got}: give uint8 [T, H, W, C], none of them 0")
        (top, left, height, width), flip = self.draw(clip_THWC.shape[1], clip_THWC.shape[2], rng)
        part_THWC = clip_THWC[:, top : top + height, left : left + width]
        clip_THWC = self.resize(part_THWC)
        return (clip_THWC.flip(2) if flip else clip_THWC).permute(3, 0, 1, 2)


def normalize(clip_uint8: torch.Tensor, how: str = "imagenet") -> torch.Tensor:
    """uint8 [B, C, T, H, W] -> float32 of the same shape, on the same device.

    "imagenet" takes the mean and deviation of ImageNet's colours, as V-JEPA does; "clip" those
    of each clip and colour; a deviation below one grey level counts as one (no noise is blown up).
    """
    clip = clip_uint8.contiguous().float()  # put in order while it is small
    if how == "clip":
        var, mean = torch.var_mean(clip, dim=(2, 3, 4), keepdim=True, correction=0)
        return clip.sub_(mean).div_(var.sqrt().clamp_min(1.0))
    if how != "imagenet":
        raise ConfigError(f"how={how!r}: give 'imagenet' or 'clip'")
    mean, std = (255 * clip.new_tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return clip.sub_(mean).div_(std)
