"""The order of an epoch: a permutation, the whole of it or place by place.

Input: how many, and what to draw from. Output: numbers of samples. Traded: up to EXACT samples the
order is NumPy's shuffle, an array; beyond, a keyed one in a few bytes, whatever the length, that is
random enough to shuffle by and no cipher. Chapter 2.
"""

from collections.abc import Sequence

import numpy as np

EXACT = 2**20  # samples; up to here the order of a run must not change
ROUNDS = 8


class Shuffle:
    """A permutation of range(n), computed where it is asked for; equal seeds give equal ones.

    A Feistel network (Luby and Rackoff, 1988, doi 10.1137/0217022) permutes the numbers below the
    next power of four; what falls outside range(n) is sent through again until it falls inside,
    which keeps it a permutation (Black and Rogaway, 2002, doi 10.1007/3-540-45760-7_9).
    """

    def __init__(self, n: int, seed: Sequence[int]) -> None:
        self.n, self.half = n, np.uint64(max(1, (max(n - 1, 0).bit_length() + 1) // 2))
        self.keys = np.random.default_rng(seed).integers(2**64, size=ROUNDS, dtype=np.uint64)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, places: slice) -> np.ndarray:
        """The numbers at these places, int64."""
        found = self._once(np.arange(*places.indices(self.n), dtype=np.uint64))
        while (outside := found >= self.n).any():
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, x: np.ndarray) -> np.ndarray:
        low = (np.uint64(1) << self.half) - np.uint64(1)
        left, right = x >> self.half, x & low
        for key in self.keys:
            left, right = right, left ^ (_mixed(right + key) & low)
        return left << self.half | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the input changes half of those of the output: SplitMix64's last step.

    Steele, Lea and Flood (2014), doi 10.1145/2660193.2660195, figure 16.
    """
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def shuffled(n: int, seed: Sequence[int]) -> np.ndarray | Shuffle:
    """A permutation of range(n) to take slices of."""
    return np.random.default_rng(seed).permutation(n) if n <= EXACT else Shuffle(n, seed)
