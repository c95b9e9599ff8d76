"""The loader of the published V-JEPA code, rebuilt from a description of what it does.

It is the opponent of `bench_loader.py`, written from facts that reading and running the released
code gave. As published, and we do otherwise: (1) the file is opened anew for each clip, by decord
with num_threads=-1, which in its version 0.6 is one thread; (2) whole frames become float32, and
the crop comes after; (3) normalised float32 goes from the worker to the trainer. Which frames and
which crop is handed in, so that both sides load the same clips; the random numbers of both cost
next to nothing.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from vidlearn.transform import IMAGENET_MEAN, IMAGENET_STD, Box

Order = tuple[str, np.ndarray, Box, bool]  # path, frames, crop, flipped?


class PublishedClips(Dataset):
    """The clips of these orders, float32 [C, T, size, size] each."""

    def __init__(self, orders: list[Order], size: int) -> None:
        self.orders, self.size = orders, size

    def __len__(self) -> int:
        return len(self.orders)

    def __getitem__(self, index: int) -> Tensor:
        import decord

        path, rows, box, flip = self.orders[index]
        reader = decord.VideoReader(path, num_threads=-1, ctx=decord.cpu(0))  # (1)
        reader.seek(0)
        clip = torch.from_numpy(reader.get_batch(rows).asnumpy()).float()  # (2)
        clip = clip.permute(3, 0, 1, 2)
        part = clip[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        part = interpolate(part, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if flip:
            part = part.flip(-1)
        part = part.permute(1, 2, 3, 0)  # as published, channels last while it is normalised
        mean, std = (255 * torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return ((part - mean) / std).permute(3, 0, 1, 2)


def published_loader(orders: list[Order], size: int, batch: int, workers: int) -> Any:
    """Batches of float32 clips from worker processes."""  # (3)
    clips = PublishedClips(orders, size)
    context = "fork" if workers else None
    return DataLoader(clips, batch, num_workers=workers, multiprocessing_context=context)
