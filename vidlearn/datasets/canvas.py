"""Parts of decoded pictures, cut out before they become RGB, several at once.

Input: a place in the frame, PyAV frames. Output: RGB pixels, the same as those of the whole frame.
Traded: up to `AT_ONCE` pixels wait, so that they become RGB as one tall picture. Chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from vidlearn.storage import FrameTable, upright

PLANAR = ("yuv420p", "yuvj420p")
PLANES = (0, 1, 1)  # halvings of their sides: brightness has all pixels, colour every other
AT_ONCE = 2**18  # pixels; more do not stay in the processor's cache
Box = tuple[int, int, int, int]  # top, left, height, width
Drawing = tuple[int, Any]  # number of a frame in its clip, and the PyAV frame


def at_once(part_THWC: np.ndarray) -> int:
    """How many frames of a clip to draw at once: equal parts of it, as far as can be."""
    frames, height, width, _ = part_THWC.shape
    parts = -(-frames * height * width // AT_ONCE)
    return -(-frames // min(parts, frames))


def canvas(table: FrameTable, box: Box, part_THWC: np.ndarray) -> Callable[[list[Drawing]], None]:
    """A function that draws frames of this video into a clip: what lies in the box, as RGB.

    Four pixels share a colour, so it is cut in pairs of rows and columns.
    """
    top, left, height, width = box
    y, x = top // 2 * 2, left // 2 * 2
    high, wide = (height + top - y + 1) // 2 * 2, (width + left - x + 1) // 2 * 2
    made: dict[Any, tuple[Any, list[np.ndarray]]] = {}

    def blank(like: Any, n: int) -> tuple[Any, list[np.ndarray]]:
        """A picture with room for n parts, one below the other, and its planes."""
        tall = av.VideoFrame(wide, n * high, like.format.name)
        tall.color_range, tall.colorspace = like.color_range, like.colorspace
        return tall, [pixels(p, n, high >> k, wide >> k) for p, k in zip(tall.planes, PLANES)]

    def draw(frames: list[Drawing]) -> None:
        kind, *others = {(f.format.name, f.color_range, f.colorspace) for _, f in frames}
        if others:
            for drawing in frames:
                draw([drawing])
        elif kind[0] not in PLANAR or table.width % 2 or table.height % 2:
            for number, frame in frames:
                part_THWC[number] = upright(frame)[top : top + height, left : left + width]
        else:
            if (kind, len(frames)) not in made:
                made[kind, len(frames)] = blank(frames[0][1], len(frames))
            tall, planes = made[kind, len(frames)]
            for i, (_, frame) in enumerate(frames):
                for plane, target, k in zip(frame.planes, planes, PLANES):
                    _, rows, columns = target.shape
                    target[i] = pixels(plane, 1, rows, columns, y >> k, x >> k)[0]
            (rgb,) = tall.reformat(format="rgb24", threads=1).planes
            drawn = pixels(rgb, len(frames), high, 3 * wide)[:, top - y :, 3 * (left - x) :]
            for (number, _), image in zip(frames, drawn):
                part_THWC[number] = image[:height, : 3 * width].reshape(height, width, 3)

    return draw


def mirrored(clips: Tensor, flip: Tensor | None) -> Tensor:
    """Clips [B, ...]; those whose `flip` (bool [B], on the CPU) is True, left to right."""
    if flip is None or not flip.any():
        return clips
    chosen = flip.to(clips.device, non_blocking=True).view(-1, *[1] * (clips.ndim - 1))
    return torch.where(chosen, clips.flip(-1), clips)


def pixels(plane: Any, n: int, height: int, width: int, top: int = 0, left: int = 0) -> np.ndarray:
    """A plane's bytes, seen as uint8 [n, height, width], n parts one below the other."""
    line = plane.line_size
    shape, strides = (n, height, width), (height * line, line, 1)
    return np.ndarray(shape, np.uint8, plane, top * line + left, strides)
