"""From a manifest to batches on the device, fed by worker processes (chapters 1 and 2).

Input: a manifest, which frames make a clip, a transform. Output: Batch, uint8 clips and labels.
All randomness follows from (seed, epoch, sample): N processes see what one would, also resumed.
Traded: a video that cannot be read leaves a named hole (`valid` False, zeros); no rank waits.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from vidlearn.datasets import Manifest, guard, shuffled
from vidlearn.datasets.canvas import mirrored
from vidlearn.datasets.index import index_file, span_of, table_of
from vidlearn.datasets.kept import TABLES_BYTES, table_bytes
from vidlearn.datasets.lanes import Lanes
from vidlearn.datasets.packets import part_at
from vidlearn.decode import check_backend
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.sample import ClipSpec, clip_indices
from vidlearn.storage import FrameTable
from vidlearn.transform import Box, ClipTransform

Device = torch.device | str
_MOVED = ("clips", "labels", "valid")  # what goes to the device
_CLIP, _ORDER = 1, 2  # last part of the seeds: no two uses draw the same numbers


@dataclass
class Batch:
    """B samples. `valid` is False where the video could not be read; `bad` says why."""

    clips: Tensor  # uint8 [B, C, T, H, W]
    labels: Tensor  # int64 [B], -1 without a label
    indices: Tensor  # int64 [B], stays on the CPU
    valid: Tensor  # bool [B]
    bad: list[tuple[str, str]]  # path, cause
    flip: Tensor | None = None  # bool [B]: clips that `to` is still to flip, left to right

    def to(self, device: Device) -> "Batch":
        """A copy whose clips, labels and valid are on the device, and which it has flipped."""
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in _MOVED}
        moved["clips"] = mirrored(moved["clips"], self.flip)
        return replace(self, **moved, flip=None)

    def pin_memory(self) -> "Batch":
        """Page-locked, so that the GPU copies while the CPU goes on; DataLoader calls this."""
        return replace(self, **{n: getattr(self, n).pin_memory() for n in _MOVED})


@dataclass(eq=False)
class ClipDataset(Dataset):
    """Sample i is clip i % clips of row i // clips; random_clips draws its place in each epoch."""

    manifest: Manifest
    spec: ClipSpec
    transform: ClipTransform
    seed: int = 0
    backend: str = "decord"
    random_clips: bool = True
    flip_later: bool = False  # by `Batch.to`, for a device that takes next to no time for it

    def __post_init__(self) -> None:
        check_backend(self.backend)  # here, not in a worker
        self._index = index_file(self.manifest.source)
        self._ahead = dict[tuple[int, int], Any]()  # what `choose` gave for the batch in hand
        self.clip_bytes = 3 * self.spec.frames * self.transform.size**2

    def __len__(self) -> int:
        return len(self.manifest) * self.spec.clips

    def choose(self, epoch: int, index: int) -> tuple[FrameTable, np.ndarray, Box, bool]:
        """Of that sample: what is in its video, frames to decode [T], part of them, flipped?"""
        row, nth = self.manifest.rows[index // self.spec.clips], index % self.spec.clips
        rng = np.random.default_rng((self.seed, epoch, index, _CLIP))
        table = table_of(row.path, self._index, self.backend)
        first, stop = span_of(table, row, self.spec.start_grid)
        starts = rng if self.random_clips else None
        chosen = first + clip_indices(self.spec, stop - first, table.fps, rng=starts)[nth]
        return table, chosen, *self.transform.draw(table.height, table.width, rng)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Of index or (epoch, index): clip uint8 [C, T, size, size], label, valid, flip ..."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row, cause, flip = self.manifest.rows[index // self.spec.clips], "", False
        try:
            guard.hold(row.path)  # if it ends this worker, it is known
            chosen = self._ahead.pop((epoch, index), None) or self.choose(epoch, index)
            table, frames, box, flip = chosen
            how: dict[str, Any] = {"flip": flip and not self.flip_later, "backend": self.backend}
            how |= {"table": table, "finish": self.transform.resize}
            clip = part_at(row.path, frames, box, **how).permute(3, 0, 1, 2)
        except ConfigError:
            raise  # a wrong choice, not a bad video
        except VidlearnError as error:
            cause = error.cause if isinstance(error, VideoError) else str(error)
            clip = torch.zeros(3, self.spec.frames, *[self.transform.size] * 2, dtype=torch.uint8)
        about = {"index": index, "path": row.path, "valid": not cause, "cause": cause, "clip": clip}
        return about | {"label": self.manifest.label_index(row), "flip": flip and self.flip_later}

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        """The samples of a batch: all are chosen before a decoder takes the processor's cache."""
        pairs, room = [k if isinstance(k, tuple) else (0, k) for k in keys], TABLES_BYTES
        for epoch, index in pairs:
            with suppress(VidlearnError):  # __getitem__ meets it again, and tells
                guard.hold(self.manifest.rows[index // self.spec.clips].path)
                self._ahead[epoch, index] = chosen = self.choose(epoch, index)
                if (room := room - table_bytes(chosen[0])) < 0:
                    break  # the others' tables would fill memory: __getitem__ chooses them
        return [self[pair] for pair in pairs]


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples of a dataset -> a Batch, in the order given."""
    guard.hold()
    bad = [(s["path"], s["cause"]) for s in samples if not s["valid"]]
    # Stacked as they lie in memory, T H W C; seen as ever.
    clips = guard.together([s["clip"].permute(1, 2, 3, 0) for s in samples], (0, 4, 1, 2, 3))
    told = [guard.small([s[name] for s in samples]) for name in ("label", "index", "valid", "flip")]
    return Batch(clips, told[0], told[1], told[2], bad, told[3])


@dataclass(eq=False)
class ShardedSampler:
    """Which samples this rank loads at each step, without end, from `start_step` on.

    Each epoch shuffles anew, shards in `lanes`. Step s takes places s*G to (s+1)*G of the list, G
    being the global batch, and rank r the r-th equal part of them; what fills none is left out.
    """

    n: int
    global_batch: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    start_step: int = 0
    lanes: Lanes | None = None

    def __post_init__(self) -> None:
        if not 0 < self.global_batch <= self.n or self.global_batch % self.world:
            text = f"a batch of {self.global_batch} of {self.n} samples for {self.world} ranks"
            raise ConfigError(f"{text}: give one that they share equally, at most the data set")
        self.steps_per_epoch = (self.lanes or self).n // self.global_batch
        self.share = self.global_batch // self.world

    def order(self, epoch: int) -> Any:
        """The order of an epoch's samples, the same on every rank: an array, or computed."""
        seed = (self.seed, epoch, 0, _ORDER)
        return self.lanes.order(seed) if self.lanes else shuffled(self.n, seed)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            order = self.order(epoch)
            for s in range(step, self.steps_per_epoch):
                first = s * self.global_batch + self.rank * self.share
                yield [(epoch, int(i)) for i in order[first : first + self.share]]
            epoch, step = epoch + 1, 0


def make_loader(
    dataset: ClipDataset, sampler: ShardedSampler, *, workers: int = 0, device: Device = "cpu",
    lost: dict[str, str] | None = None,
) -> guard.Loader:  # fmt: skip
    """This rank's batches, in order; two for each worker at most are read ahead.

    `lost` (path -> cause): videos that have ended a worker before, which none tries again.
    """
    pin, seed = torch.device(device).type == "cuda", hash((dataset.seed, sampler.rank))
    dataset, room = replace(dataset, flip_later=pin), sampler.share * dataset.clip_bytes
    return guard.Loader(dataset, sampler, collate, workers, seed, pin, room, lost or {})


def eval_loader(dataset: ClipDataset, batch_size: int, workers: int = 0) -> guard.Loader:
    """Every sample once and in order; the last batch may be smaller."""
    keys = BatchSampler(range(len(dataset)), batch_size, drop_last=False)
    seed, room_bytes = hash((dataset.seed, 0)), batch_size * dataset.clip_bytes
    return guard.Loader(dataset, keys, collate, workers, seed, room_bytes=room_bytes)


def to_device(loader: Iterable[Batch], device: Device) -> Iterator[Batch]:
    """Batches on the device; on CUDA the next one is copied while this one is computed."""
    if torch.device(device).type != "cuda":
        yield from (batch.to(device) for batch in loader)
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in loader:
        with torch.cuda.stream(stream):
            following = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for name in _MOVED:  # its memory is not used again before that stream is done
            getattr(following, name).record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead
