"""From a manifest to batches on the device, fed by worker processes (chapters 1 and 2).

Input: a manifest, which frames make a clip, a transform. Output: Batch, uint8 clips
[B, C, T, H, W] and their labels. Every random number follows from (seed, epoch, sample), never
from a worker, rank or batch size: N processes see what one would, and a run that stopped in the
middle of an epoch goes on with the next sample. Traded: a video that cannot be read leaves a
hole (`valid` False, zeros), so that shapes stay fixed and no rank waits for another; it is named
in the quarantine and never replaced.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidlearn.datasets import Manifest
from vidlearn.decode import frames_at
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.sample import ClipSpec, clip_indices
from vidlearn.storage import frame_table
from vidlearn.transform import ClipTransform

Key = tuple[int, int]  # epoch, index


@dataclass
class Batch:
    """B samples. `valid` is False where the video could not be read; `bad` says why."""

    clips: Tensor  # uint8 [B, C, T, H, W]
    labels: Tensor  # int64 [B], -1 without a label
    indices: Tensor  # int64 [B], stays on the CPU
    valid: Tensor  # bool [B]
    bad: list[tuple[str, str]]  # path, cause

    def to(self, device: torch.device | str) -> Batch:
        """A copy whose clips, labels and valid are on the device."""
        clips, labels, valid = (
            x.to(device, non_blocking=True) for x in (self.clips, self.labels, self.valid)
        )
        return replace(self, clips=clips, labels=labels, valid=valid)

    def pin_memory(self) -> Batch:
        """Page-locked clips, which the GPU copies while the CPU goes on; DataLoader calls this."""
        return replace(
            self,
            clips=self.clips.pin_memory(),
            labels=self.labels.pin_memory(),
            valid=self.valid.pin_memory(),
        )


class ClipDataset(Dataset):
    """Samples of a manifest: sample i is clip i % clips of row i // clips.

    Args:
        random_clips: draw the place of the clip anew in each epoch; else fixed, even places.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: ClipSpec,
        transform: ClipTransform,
        *,
        seed: int = 0,
        backend: str = "decord",
        random_clips: bool = True,
    ) -> None:
        self.manifest, self.spec, self.transform = manifest, spec, transform
        self.seed, self.backend, self.random_clips = seed, backend, random_clips

    def __len__(self) -> int:
        return len(self.manifest) * self.spec.clips

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """One sample: clip uint8 [C, T, size, size], label, index, valid, path, cause."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.manifest.rows[index // self.spec.clips]
        sample = {"label": self.manifest.label_index(row), "index": index, "path": row.path}
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            clip = self._clip(index, rng)
            return {**sample, "clip": clip, "valid": True, "cause": ""}
        except ConfigError:
            raise  # a wrong choice, not a bad video
        except VidlearnError as error:
            side = self.transform.size
            clip = torch.zeros(3, self.spec.frames, side, side, dtype=torch.uint8)
            cause = error.cause if isinstance(error, VideoError) else str(error)
            return {**sample, "clip": clip, "valid": False, "cause": cause}

    def _clip(self, index: int, rng: np.random.Generator) -> Tensor:
        row = self.manifest.rows[index // self.spec.clips]
        table = frame_table(row.path)
        # Only frames of the row's segment may be chosen.
        end_s = np.inf if row.end_s is None else row.end_s
        first, stop = np.searchsorted(table.pts_s - table.pts_s[0], (row.start_s, end_s))
        if stop <= first:
            raise VideoError(row.path, f"no frames from {row.start_s} s to {row.end_s} s")
        chosen = clip_indices(
            self.spec, int(stop - first), table.fps, rng=rng if self.random_clips else None
        )
        frames = int(first) + chosen[index % self.spec.clips]
        clip_THWC = frames_at(row.path, frames, backend=self.backend, table=table)
        return self.transform(clip_THWC, rng)


def collate(samples: list[dict[str, Any]]) -> Batch:
    """A list of samples as one Batch."""
    return Batch(
        torch.stack([s["clip"] for s in samples]),
        torch.tensor([s["label"] for s in samples]),
        torch.tensor([s["index"] for s in samples]),
        torch.tensor([s["valid"] for s in samples]),
        [(s["path"], s["cause"]) for s in samples if not s["valid"]],
    )


class ShardedSampler:
    """Which samples this rank loads at each step, without end.

    Every epoch shuffles anew. Step s takes places s*G to (s+1)*G of the shuffled list, G being
    the global batch, and rank r the r-th equal part of them; what does not fill a batch at the
    end of an epoch waits for the next one. With `start_step` the sequence begins there.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        start_step: int = 0,
    ) -> None:
        if global_batch < 1 or global_batch % world or global_batch > n:
            raise ConfigError(
                f"a batch of {global_batch} from {n} samples on {world} ranks: give a batch that "
                "the ranks can share equally and that is not larger than the data set"
            )
        self.n, self.global_batch, self.rank, self.world = n, global_batch, rank, world
        self.seed, self.shuffle, self.start_step = seed, shuffle, start_step
        self.steps_per_epoch = n // global_batch

    def order(self, epoch: int) -> np.ndarray:
        """The order of the samples in an epoch, the same on every rank."""
        if not self.shuffle:
            return np.arange(self.n)
        return np.random.default_rng((self.seed, epoch)).permutation(self.n)

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.global_batch // self.world
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            order = self.order(epoch)
            for s in range(step, self.steps_per_epoch):
                first = s * self.global_batch + self.rank * share
                yield [(epoch, int(i)) for i in order[first : first + share]]
            epoch, step = epoch + 1, 0


def _start_worker(worker: int, seed: int, rank: int) -> None:
    """Own seeds; one thread; signals are the trainer's business (they reach the whole group)."""
    torch.set_num_threads(1)
    torch.manual_seed(hash((seed, rank, worker)))
    np.random.seed([seed, rank, worker])
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _options(workers: int, seed: int, rank: int) -> dict[str, Any]:
    """What both loaders tell DataLoader."""
    options: dict[str, Any] = {"collate_fn": collate, "num_workers": workers}
    if workers:
        # Readers are opened inside the workers, so a fork is safe and starts at once on Linux;
        # elsewhere system libraries do not survive it.
        method = "fork" if sys.platform == "linux" else "spawn"
        options |= {
            "multiprocessing_context": method,
            "worker_init_fn": partial(_start_worker, seed=seed, rank=rank),
        }
    return options


def make_loader(
    dataset: ClipDataset,
    sampler: ShardedSampler,
    *,
    workers: int = 0,
    prefetch: int = 2,
    device: str = "cpu",
) -> DataLoader:
    """Batches of this rank in the sampler's order, read ahead by `workers` processes.

    Memory in flight is at most workers x prefetch batches of uint8 clips.
    """
    options = _options(workers, dataset.seed, sampler.rank)
    if workers:
        options["prefetch_factor"] = prefetch
    pinned = device.startswith("cuda")
    return DataLoader(dataset, batch_sampler=sampler, pin_memory=pinned, **options)


def eval_loader(dataset: ClipDataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Every sample once and in order; the last batch may be smaller."""
    return DataLoader(dataset, batch_size=batch_size, **_options(workers, dataset.seed, 0))


def to_device(loader: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """Batches on the device; on CUDA the next one is copied while this one is computed."""
    device = torch.device(device)
    if device.type != "cuda":
        yield from (batch.to(device) for batch in loader)
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in loader:
        with torch.cuda.stream(stream):
            following = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in (following.clips, following.labels, following.valid):
            # Made on the side stream: its memory may not be reused while this one reads it.
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead


class Quarantine:
    """The unreadable videos of a run, named once each in a file that all ranks share.

    Args:
        path: JSON lines {"path", "cause"}; an existing file is gone on with.
        n_videos: videos of the data set.
        max_share: more bad ones than this share end the run.
    """

    def __init__(self, path: str | Path, n_videos: int, max_share: float = 0.05) -> None:
        self.path, self.n_videos, self.max_share = Path(path), n_videos, max_share
        self.names: set[str] = set()
        self._read_bytes = 0
        self._read()

    def _read(self) -> None:
        """Take in what has been written since, by this rank or another."""
        if self.path.exists() and os.path.getsize(self.path) != self._read_bytes:
            text = self.path.read_text()
            self._read_bytes = len(text.encode())
            self.names = {json.loads(line)["path"] for line in text.splitlines()}

    def add(self, bad: list[tuple[str, str]]) -> int:
        """Name these (path, cause) pairs; returns how many videos of the run are bad.

        Raises:
            VidlearnError: more than `max_share` of the videos are bad.
        """
        self._read()
        new = {path: cause for path, cause in bad if path not in self.names}
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as f:  # one write: lines of several ranks do not mix
                f.write("".join(json.dumps({"path": p, "cause": c}) + "\n" for p, c in new.items()))
            self._read()
            if len(self.names) > self.max_share * self.n_videos:
                raise VidlearnError(
                    f"{len(self.names)} of {self.n_videos} videos cannot be read, more than the "
                    f"share of {self.max_share:g} that is allowed; the quarantine {self.path} "
                    "names them. Mend or remove them, or raise --max-bad-share"
                )
        return len(self.names)
