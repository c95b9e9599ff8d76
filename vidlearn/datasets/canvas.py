"""Parts of decoded pictures, cut out before they become RGB, several at once.

Input: a place in the frame, PyAV frames. Output: RGB pixels, the same as those of the whole frame,
or what becomes of them, such as smaller pictures, while they are in the processor's cache. Traded:
up to `AT_ONCE` pixels wait, so that they become RGB as one tall picture. What shall be mirrored
becomes BGR: a row of it, byte by byte from its end, is RGB from right to left. Chapter 2.
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
# uint8 [n, h, w, 3] -> [n, s, t, 3]; each colour alike, and what it gets is overwritten.
Finish = Callable[[Tensor], Tensor]


def at_once(frames: int, height: int, width: int) -> int:
    """How many frames of a clip to draw at once: equal parts of it, as far as can be."""
    parts = -(-frames * height * width // AT_ONCE)
    return -(-frames // min(parts, frames))


class Canvas:
    """Draws `frames` frames of a video, what lies in the box, as RGB, and finishes them: `clip`.

    Four pixels share a colour, so it is cut in pairs of rows and columns. `flip`: left to right.
    """

    def __init__(
        self, table: FrameTable, box: Box, frames: int, finish: Finish, flip: bool = False
    ) -> None:
        top, left, height, width = self.box = box
        self.finish, self.flip, self.at_once = finish, flip, at_once(frames, height, width)
        room = frames if frames * height * width <= TOGETHER else self.at_once
        self.part_THWC, self.numbers = np.empty((room, height, width, 3), np.uint8), list[int]()
        self.frames = self.left = frames
        self.clip = cast(Tensor | None, None)
        self.y, self.x = top // 2 * 2, left // 2 * 2
        self.high = (height + top - self.y + 1) // 2 * 2
        self.wide = (width + left - self.x + 1) // 2 * 2
        self.even = table.width % 2 == table.height % 2 == 0
        # What becomes RGB next: a tall picture, its planes as parts of frames, how many it holds.
        self.kind: Any = None
        self.tall: Any = None
        self.planes, self.held = list[np.ndarray](), 0

    def draw(self, number: int, frame: Any) -> None:
        """Draw this PyAV frame, the clip's `number`-th, of which nothing is needed afterwards."""
        kind = frame.format.name, frame.color_range, frame.colorspace
        alike = kind[0] in PLANAR and self.even
        if self.held and kind != self.kind:
            self._colour()
        if alike:
            if not self.held:
                self._begin(kind)
            for plane, target, k in zip(frame.planes, self.planes, PLANES):
                _, rows, columns = target.shape
                target[self.held] = pixels(plane, 1, rows, columns, self.y >> k, self.x >> k)[0]
            self.held += 1
        else:
            top, left, height, width = self.box
            image = upright(frame)[top : top + height, left : left + width]
            self.part_THWC[len(self.numbers)] = image[..., ::-1] if self.flip else image
        self.numbers.append(number)
        self.left -= 1
        if self.held and (self.held == len(self.planes[0]) or not self.left):
            self._colour()
        if not self.left or len(self.numbers) == len(self.part_THWC):
            self._finish()

    def _finish(self) -> None:
        done = self.finish(torch.from_numpy(self.part_THWC[: len(self.numbers)]))
        if self.flip:
            done = done.flatten(2).flip(-1).view(done.shape)
        if self.clip is None and self.numbers == [*range(self.frames)]:
            self.clip = done
            return
        if self.clip is None:
            self.clip = done.new_empty(self.frames, *done.shape[1:])
        for number, image in zip(self.numbers, done):
            self.clip[number] = image
        self.numbers.clear()

    def _begin(self, kind: Any) -> None:
        """A picture of this kind with room for parts of frames, one below the other."""
        n = min(self.at_once, self.left, len(self.part_THWC) - len(self.numbers))
        if self.tall is None or kind != self.kind or n != len(self.planes[0]):
            self.tall, self.kind = av.VideoFrame(self.wide, n * self.high, kind[0]), kind
            self.tall.color_range, self.tall.colorspace = kind[1:]
            shapes = [(n, self.high >> k, self.wide >> k) for k in PLANES]
            self.planes = [pixels(p, *s) for p, s in zip(self.tall.planes, shapes)]

    def _colour(self) -> None:
        """The parts that it holds become RGB."""
        top, left, height, width = self.box
        how = "bgr24" if self.flip else "rgb24"
        (colours,) = self.tall.reformat(format=how, threads=1).planes
        drawn = pixels(colours, self.held, self.high, 3 * self.wide)
        drawn = drawn[:, top - self.y :, 3 * (left - self.x) :]
        for target, image in zip(self.part_THWC[len(self.numbers) - self.held :], drawn):
            target[:] = image[:height, : 3 * width].reshape(height, width, 3)
        self.held = 0


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
