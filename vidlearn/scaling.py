"""How a step's time grows with the GPUs that share it, what binds, and what would be next.

Input: parts, measured or of data sheets. Output: seconds a step by part, throughput, efficiency.
Traded: parts are means and add up, links are alike, and what travels behind the computing does not
slow it. The page "Scaling" holds the model against measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, log2
from statistics import NormalDist
from typing import Any, NamedTuple

from vidlearn.errors import ConfigError
from vidlearn.recipes import Config

# Of the data sheets, GB/s: NVLink (or PCIe) one way, the network of a node as it is sold with eight
# GPUs (GH200: four; below: 100 Gb/s), memory. Collectives reach about REACHED of links.
LINKS = {
    "B200": (900, 400, 8000), "H200": (450, 400, 4800), "GH200": (450, 100, 4000),
    "H100": (450, 400, 3350), "A100": (300, 200, 2039), "L40S": (32, 12.5, 864),
    "L40": (32, 12.5, 864), "A10": (32, 12.5, 600), "4090": (32, 12.5, 1008),
    "L4": (32, 12.5, 300), "V100": (150, 50, 900), "T4": (16, 12.5, 320),
}  # fmt: skip
REACHED = 0.8
BUCKET_BYTES = 25 * 2**20  # of DistributedDataParallel
UPDATE_BYTES = 52  # a parameter: norm 4, AdamW reads 16 and writes 12, average 12, zeroing 4, scale 4


@dataclass(frozen=True)
class Cluster:
    """What a run finds beside GPUs; None: as the data sheets say, or more than enough."""

    nodes: int = 1  # Nodes; --gpus are then those of each.
    node_gb_s: float | None = None  # Bus bandwidth of an all-reduce within a node.
    net_gb_s: float | None = None  # The same over several nodes.
    hop_us: float = 10.0  # Latency from one GPU to the next.
    hide: float | None = None  # Share of a clip's computing behind which gradients travel.
    fixed_ms: float | None = None  # Time of a step that does not depend on clips: the update.
    jitter: float = 0.02  # Standard deviation of one GPU's step, as a share of it.
    node_clips_per_s: float | None = None  # What the loaders of a node give together.
    clip_mb: float | None = None  # MB to read for a clip.
    node_storage_gb_s: float | None = None  # What one node can read.
    storage_gb_s: float | None = None  # What all nodes can read together.
    curve: bool = False  # Also tell of 1, 2, 4 up to 1,024 GPUs.

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least_is_0 = name in ("hop_us", "hide", "fixed_ms", "jitter")
            if value is not None and not (value > 0 or least_is_0 and value == 0 or name == "curve"):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: give more than 0")
        if (self.node_storage_gb_s or self.storage_gb_s) and self.clip_mb is None:
            raise ConfigError("--storage-gb-s needs --clip-mb: what is read for a clip")


class Parts(NamedTuple):
    """What one GPU does in a step, and what it must exchange."""

    clips_per_s: float  # while it computes
    fixed_s: float  # of a step, whatever the batch
    sent_bytes: float  # by each rank when there are many: twice the gradients, or FSDP's share
    calls: int  # collectives that they are sent by, one after the other
    bare: int  # small ones that a step waits for
    hide: float  # share of a clip's computing behind which they may travel


def slowest(n: int) -> float:
    """Expected maximum of n draws, in standard deviations (Blom 1958); 0 for one."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def exchange_s(parts: Parts, n: int, gb_s: float, hop_us: float) -> float:
    """All of a step's collectives on n ranks: a ring's bytes, a tree's latency (NCCL, gloo)."""
    return (n - 1) / n * parts.sent_bytes / gb_s / 1e9 + hops_s(n, hop_us) * parts.calls


def hops_s(n: int, hop_us: float) -> float:
    """Latency of one collective, up and down a tree of n ranks."""
    return 2 * ceil(log2(n)) * hop_us / 1e6


def total_s(seconds: Mapping[str, float]) -> float:
    """A step: what a GPU does in turn, unless loader or storage takes longer beside it."""
    return max(
        seconds["compute"] + seconds["network"] + seconds["stragglers"],
        seconds["loader"], seconds["storage"],
    )  # fmt: skip


def predict(
    parts: Parts, cluster: Cluster, batch: int, gpus: int, accumulate: int = 1
) -> dict[str, Any]:
    """A step of `batch` clips on cluster.nodes x gpus: throughput, efficiency, parts, what binds.

    Efficiency is against one GPU that never waits. What binds is what would save most if it took
    no time. `accumulate`: passes a step; only the last one's exchange hides. ConfigError: no share.
    """
    n, c = cluster.nodes * gpus, cluster
    if n < 1 or batch % (n * accumulate):
        text = f"--nodes {c.nodes} --gpus {gpus}: a batch of {batch} needs one of its divisors"
        raise ConfigError(text + (f", shared by --accumulate {accumulate}" * (accumulate > 1)))
    links = [c.node_gb_s or inf] + [c.net_gb_s or inf] * (c.nodes > 1)
    clips_s = batch / n / parts.clips_per_s
    sent_s, compute_s = exchange_s(parts, n, min(links), c.hop_us), clips_s + parts.fixed_s
    # What is sent last has nothing to hide behind.
    bare_s = max(sent_s / parts.calls, sent_s - parts.hide * clips_s / accumulate)
    read_s = batch * (c.clip_mb or 0) / 1e3
    seconds = {
        "compute": compute_s, "network": parts.bare * hops_s(n, c.hop_us) + bare_s if n > 1 else 0.0,
        "stragglers": c.jitter * compute_s * slowest(n),
        "loader": batch / c.nodes / (c.node_clips_per_s or inf),
        "storage": read_s / min(c.nodes * (c.node_storage_gb_s or inf), c.storage_gb_s or inf),
    }  # fmt: skip
    left, order = dict(seconds), []
    while any(left.values()):
        order.append(min(left, key=lambda part: total_s({**left, part: 0.0})))
        left[order[-1]] = 0.0
    step_s = total_s(seconds)
    return {
        "gpus": n, "step_ms": step_s * 1e3, "clips_per_s": batch / step_s,
        "efficiency": (batch / parts.clips_per_s + parts.fixed_s) / n / step_s,
        "parts_ms": {part: s * 1e3 for part, s in seconds.items()},
        "binds": order[0], "next": order[1] if len(order) > 1 else None,
    }  # fmt: skip


def bare_calls(config: Config) -> int:
    """Small collectives that a step waits for: the votes, and the regulariser's moments and back."""
    return 1 + (0 if not config.var_cov else 4 * (1 if config.mask_cycle else 2))
