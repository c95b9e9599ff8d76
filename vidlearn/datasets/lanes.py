"""The order of an epoch of shards, in which each node reads tars of its own.

Input: which tar each row lies in, and the global batch. Output: an order to take slices of, and the
tars of a node. The tars, by name, are cut into lanes, and every batch takes its first samples from
the first lane, and so on: so rank r of any world reads the same lanes in every epoch. Traded: a
sample meets those of other lanes and of two tars of its own, and not all others; so rows are
shuffled when shards are written. What a batch does not fill is left out. Chapter 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidlearn.datasets.manifest import Manifest
from vidlearn.errors import ConfigError

LANES = 64  # at most, so that 1, 2, 4 ... 64 nodes have lanes of their own
MOST_LEFT = 1 / 32  # of an epoch, so that lanes have whole tars; beyond, neighbours share one
AT_ONCE = 2  # tars whose samples are mixed


class Lanes:
    """Tars dealt to lanes: `count` of them share a batch, and `n` samples of an epoch are read.

    Rows are counted in the order of their tars. Lane i is what lies between cuts[i] and
    cuts[i + 1]: whole tars, if that makes lanes of about equal length.
    """

    def __init__(self, tar_of: np.ndarray, tars: list[str], batch: int, clips: int = 1) -> None:
        rows, self.tars, self.batch, self.clips = len(tar_of), tars, batch, clips
        few = min(LANES, len(tars), batch)
        self.count = max(i for i in range(1, few + 1) if batch % i == 0)
        # Data that `vidlearn data shard` has written lists the rows of a tar one after the other.
        in_order = (tar_of[1:] >= tar_of[:-1]).all()
        self.rows = None if in_order else np.argsort(tar_of, kind="stable").astype(np.int32)
        self.ends = np.cumsum(np.bincount(tar_of, minlength=len(tars)))
        shares = np.arange(self.count + 1)
        self.cuts = np.append(0, self.ends)[shares * len(tars) // self.count]  # whole tars
        if np.diff(self.cuts).min() < (1 - MOST_LEFT) * rows / self.count:
            self.cuts = shares * rows // self.count
        self.n = int(np.diff(self.cuts).min()) * clips // (batch // self.count) * batch
        self.left_out = rows * clips - self.n

    def __str__(self) -> str:
        tars = f"{len(self.tars)} tars in {self.count} lanes"
        return f"{tars}, {self.left_out / self.clips:g} left over in an epoch"

    def order(self, seed: Sequence[int]) -> LaneOrder:
        """An order of the samples, in which `n` of them have a place."""
        return LaneOrder(self, seed)

    def pieces(self, lane: int) -> np.ndarray:
        """First row, and the one after the last, of each tar's part of a lane [tars, 2]."""
        begin, end = self.cuts[lane : lane + 2]
        inside = self.ends[(self.ends > begin) & (self.ends < end)]
        edges = np.array([begin, *inside, end])
        return np.stack([edges[:-1], edges[1:]], 1)

    def of_node(self, node: int, nodes: int) -> list[str]:
        """The tars that this one of so many nodes reads, in every epoch.

        ConfigError: no such node, or nodes that cannot share the batch.
        """
        if not 0 <= node < nodes or self.batch % nodes:
            text = f"node {node} of {nodes} with a batch of {self.batch}"
            raise ConfigError(f"{text}: count nodes from 0, and let them share the batch equally")
        share = self.batch // nodes
        first, last = (p * self.count // self.batch for p in (node * share, (node + 1) * share - 1))
        begin = np.searchsorted(self.ends, self.cuts[first], side="right")
        end = np.searchsorted(self.ends, self.cuts[last + 1], side="left")
        return self.tars[begin : end + 1]


class LaneOrder:
    """An order of samples in which place p of a batch of G belongs to lane p * lanes // G.

    In each lane the tars come in a random order, two at a time, and the samples of the two are
    shuffled. Computed where it is asked for; equal seeds give equal orders.
    """

    def __init__(self, lanes: Lanes, seed: Sequence[int]) -> None:
        self.lanes, self.seed = lanes, seed
        self.plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.mixed: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.lanes.n

    def __getitem__(self, places: slice) -> np.ndarray:
        """The samples at these places, int64."""
        batch, each = self.lanes.batch, self.lanes.batch // self.lanes.count
        step, place = np.divmod(np.arange(*places.indices(len(self))), batch)
        lane, place = np.divmod(place, each)
        place += step * each
        found = np.empty(len(place), np.int64)
        for one in np.unique(lane).tolist():
            found[lane == one] = self._of_lane(one, place[lane == one])
        if self.lanes.rows is None:
            return found
        row, clip = np.divmod(found, self.lanes.clips)
        return self.lanes.rows[row].astype(np.int64) * self.lanes.clips + clip

    def _of_lane(self, lane: int, places: np.ndarray) -> np.ndarray:
        if lane not in self.plans:
            pieces = self.lanes.pieces(lane)
            pieces = np.random.default_rng((*self.seed, lane)).permutation(pieces)
            ends = np.cumsum(pieces[:, 1] - pieces[:, 0]) * self.lanes.clips
            self.plans[lane] = pieces, np.append(ends[AT_ONCE - 1 : -1 : AT_ONCE], ends[-1])
        ends = self.plans[lane][1]
        window = np.searchsorted(ends, places, side="right")
        found = np.empty(len(places), np.int64)
        for one in np.unique(window).tolist():
            begin = ends[one - 1] if one else 0
            found[window == one] = self._window(lane, one)[places[window == one] - begin]
        return found

    def _window(self, lane: int, number: int) -> np.ndarray:
        """The samples of two tars, shuffled; the last ones of a lane are kept."""
        if self.mixed.get(lane, (-1,))[0] != number:
            clips, first = self.lanes.clips, AT_ONCE * number
            pieces = self.plans[lane][0][first : first + AT_ONCE]
            samples = np.concatenate([np.arange(a * clips, b * clips) for a, b in pieces])
            np.random.default_rng((*self.seed, lane, number)).shuffle(samples)
            self.mixed[lane] = number, samples
        return self.mixed[lane][1]


def of(data: Manifest, batch: int, clips: int = 1) -> Lanes | None:
    """The lanes of data whose rows all lie in tars, else None. The tars need not be here."""
    tar_of, tars = data.tars
    return Lanes(tar_of, tars, batch, clips) if tars and batch > 0 else None


def told(data: Manifest, batch: int) -> str:
    """How many videos there are to train on, and in which lanes, in words."""
    lanes = of(data, batch)
    return f"{len(data)} videos to train on" + f" ({lanes})" * bool(lanes)
