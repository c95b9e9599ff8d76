"""Parts of decoded pictures, cut out before they become RGB, several at once.

Input: a place in the frame, PyAV frames. Output: RGB pixels, the same as those of the whole frame,
or what becomes of them, such as smaller pictures, while they are in the processor's cache. Traded:
up to `AT_ONCE` pixels wait, so that they become RGB as one tall picture. Chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import av
import numpy as np
import torch
from torch import Tensor

from vidlearn.storage import FrameTable, upright

PLANAR = ("yuv420p", "yuvj420p")
PLANES = (0, 1, 1)  # halvings of their sides: brightness has all pixels, colour every other
AT_ONCE = 2**18  # pixels; more do not stay in the processor's cache
TOGETHER = 2**21  # pixels; a clip of no more is finished as one, which takes fewer calls
Box = tuple[int, int, int, int]  # top, left, height, width
Drawing = tuple[int, Any]  # number of a frame in its clip, and the PyAV frame
Finish = Callable[[Tensor], Tensor]  # uint8 [n, h, w, 3] -> [n, ...]; what it gets is overwritten


def at_once(frames: int, height: int, width: int) -> int:
    """How many frames of a clip to draw at once: equal parts of it, as far as can be."""
    parts = -(-frames * height * width // AT_ONCE)
    return -(-frames // min(parts, frames))


class Canvas:
    """Draws `frames` frames of a video, what lies in the box, as RGB, and finishes them: `clip`.

    Four pixels share a colour, so it is cut in pairs of rows and columns.
    """

    def __init__(self, table: FrameTable, box: Box, frames: int, finish: Finish) -> None:
        top, left, height, width = self.box = box
        self.left, self.finish, self.at_once = frames, finish, at_once(frames, height, width)
        room = frames if frames * height * width <= TOGETHER else self.at_once
        self.part_THWC, self.numbers = np.empty((room, height, width, 3), np.uint8), list[int]()
        self.frames, self.clip = frames, cast(Tensor | None, None)
        self.y, self.x = top // 2 * 2, left // 2 * 2
        self.high = (height + top - self.y + 1) // 2 * 2
        self.wide = (width + left - self.x + 1) // 2 * 2
        self.even = table.width % 2 == table.height % 2 == 0
        self.made: dict[Any, tuple[Any, list[np.ndarray]]] = {}

    def draw(self, frames: list[Drawing]) -> None:
        """Draw these, `at_once` at most, and at once if they are alike."""
        kind, *others = {(f.format.name, f.color_range, f.colorspace) for _, f in frames}
        if others:
            for drawing in frames:
                self.draw([drawing])
            return
        part_THWC = self.part_THWC[len(self.numbers) :]
        if kind[0] in PLANAR and self.even:
            self._draw_alike(frames, kind, part_THWC)
        else:
            top, left, height, width = self.box
            for target, (_, frame) in zip(part_THWC, frames):
                target[:] = upright(frame)[top : top + height, left : left + width]
        self.numbers += [number for number, _ in frames]
        self.left -= len(frames)
        if not self.left or len(self.part_THWC) - len(self.numbers) < min(self.at_once, self.left):
            self._finish()

    def _finish(self) -> None:
        done = self.finish(torch.from_numpy(self.part_THWC[: len(self.numbers)]))
        if self.clip is None and self.numbers == [*range(self.frames)]:
            self.clip = done
            return
        if self.clip is None:
            self.clip = done.new_empty(self.frames, *done.shape[1:])
        for number, image in zip(self.numbers, done):
            self.clip[number] = image
        self.numbers.clear()

    def _draw_alike(self, frames: list[Drawing], kind: Any, part_THWC: np.ndarray) -> None:
        top, left, height, width = self.box
        tall, planes = self._blank(kind, len(frames))
        for i, (_, frame) in enumerate(frames):
            for plane, target, k in zip(frame.planes, planes, PLANES):
                _, rows, columns = target.shape
                target[i] = pixels(plane, 1, rows, columns, self.y >> k, self.x >> k)[0]
        (rgb,) = tall.reformat(format="rgb24", threads=1).planes
        drawn = pixels(rgb, len(frames), self.high, 3 * self.wide)
        drawn = drawn[:, top - self.y :, 3 * (left - self.x) :]
        for target, image in zip(part_THWC, drawn):
            target[:] = image[:height, : 3 * width].reshape(height, width, 3)

    def _blank(self, kind: Any, n: int) -> tuple[Any, list[np.ndarray]]:
        """A picture of this kind with room for n parts, one below the other, and its planes."""
        if (kind, n) not in self.made:
            tall = av.VideoFrame(self.wide, n * self.high, kind[0])
            tall.color_range, tall.colorspace = kind[1:]
            shapes = [(n, self.high >> k, self.wide >> k) for k in PLANES]
            self.made[kind, n] = tall, [pixels(p, *s) for p, s in zip(tall.planes, shapes)]
        return self.made[kind, n]


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
