"""How a step's time grows with the GPUs that share it, what binds, and what would be next.

Input: parts, measured or of data sheets. Output: seconds a step by part, throughput, efficiency.
Traded: parts are means that add up, links are alike, and what travels behind the computing does not
slow it. The page "Scaling" has the formulas, and holds them against measurements.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf, log2, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

from vidlearn.errors import ConfigError
from vidlearn.recipes import Config

# Of the data sheets, GB/s: NVLink or PCIe, one way; the network of a node of eight (GH200: four;
# below, 100 Gb/s are assumed); memory. Collectives reach about REACHED of links.
LINKS = {
    "B200": (900, 400, 8000), "H200": (450, 400, 4800), "GH200": (450, 100, 4000),
    "H100": (450, 400, 3350), "A100": (300, 200, 2039), "L40S": (32, 12.5, 864),
    "L40": (32, 12.5, 864), "A10": (32, 12.5, 600), "4090": (32, 12.5, 1008),
    "L4": (32, 12.5, 300), "V100": (150, 50, 900), "T4": (16, 12.5, 320),
}  # fmt: skip
REACHED, BUCKET_BYTES = 0.8, 25 * 2**20  # the latter of DistributedDataParallel
UPDATE_BYTES = 52  # of memory a parameter: zeroing 4, clipping 12, AdamW 28, teacher 12, less 4
HALVE_BYTES = 20  # the same with --bf16-grads: dividing 8, to 2 bytes 6, and back 6


@dataclass(frozen=True)
class Cluster:
    """What a run finds beside GPUs; None: as the data sheets say, or more than enough."""

    nodes: int = 1  # Nodes; --gpus are then those of each.
    node_gb_s: float | None = None  # Bus bandwidth of an all-reduce within a node.
    net_gb_s: float | None = None  # The same over several nodes.
    hop_us: float = 10.0  # Latency from one GPU to the next.
    hide: float | None = None  # Share of a clip's computing behind which gradients travel.
    update_ms: float | None = None  # Time of a step that does not depend on clips: the optimiser.
    jitter: float = 0.02  # Standard deviation of one GPU's step, as a share of it.
    node_clips_per_s: float | None = None  # What the loaders of a node give together.
    same_cores: bool = False  # Loaders have no cores of their own: they and the step take turns.
    clip_mb: float = 0.0  # MB that are read for a clip.
    node_storage_gb_s: float | None = None  # What one node can read.
    storage_gb_s: float | None = None  # What all nodes can read together.
    curve: bool = False  # Also tell of 1, 2, 4 up to 1,024 GPUs.

    def __post_init__(self) -> None:
        may_be_0 = ("hop_us", "hide", "update_ms", "jitter", "clip_mb", "curve", "same_cores")
        for name, value in vars(self).items():
            if value is not None and (value < 0 or (not value and name not in may_be_0)):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: give more than 0")
        if (self.node_storage_gb_s or self.storage_gb_s) and not self.clip_mb:
            raise ConfigError("--storage-gb-s tells nothing without --clip-mb, what a clip reads")


class Parts(NamedTuple):
    """What one GPU does in a step, and what it must exchange."""

    clips_per_s: float  # while it computes
    update_s: float  # of a step, whatever the batch
    sent_bytes: float  # by each of many ranks: twice the gradients with DDP
    calls: int  # collectives that they go by, one after the other
    bare: int  # small ones that a step waits for
    hide: float  # share of a clip's computing behind which gradients may travel
    halve_s: float = 0.0  # what several ranks take to make 2 bytes of 4, and 4 of 2
    waits: int = 1  # places in a step where all wait for the slowest


def slowest(n: int) -> float:
    """Expected maximum of n normal draws, in deviations: Blom's formula (Royston 1982)."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def total_s(seconds: dict[str, float], beside: tuple[str, ...] = ("loader", "storage")) -> float:
    """A step: what takes turns, unless what works beside it takes longer."""
    alone = [seconds[part] for part in beside]
    return max(sum(seconds.values()) - sum(alone), *alone)


def predict(p: Parts, c: Cluster, batch: int, gpus: int, accumulate: int = 1) -> dict[str, Any]:
    """A step of `batch` clips on c.nodes x gpus: throughput, efficiency, parts, what binds.

    Efficiency is against one GPU that never waits; what binds is what would save most if it took no
    time. `accumulate`: passes a step, of which the last hides. ConfigError: the batch has no share.
    """
    n = c.nodes * gpus
    if gpus < 1 or batch % (n * accumulate):
        text = f"{n} GPUs: a batch of {batch} needs one of its divisors"
        raise ConfigError(text + f", in {accumulate} equal passes" * (accumulate > 1))
    gb_s = min(c.node_gb_s or inf, c.net_gb_s or inf) if c.nodes > 1 else c.node_gb_s or inf
    update_s = p.update_s + p.halve_s * (n > 1)
    clips_s, hops_s = batch / n / p.clips_per_s, 2 * ceil(log2(n)) * c.hop_us / 1e6
    sent_s = (n - 1) / n * p.sent_bytes / gb_s / 1e9 + p.calls * hops_s  # a ring's, a tree's
    # What is sent last has nothing to hide behind.
    seen_s = max(sent_s / p.calls, sent_s - p.hide * clips_s / accumulate)
    read_gb_s = min(c.nodes * (c.node_storage_gb_s or inf), c.storage_gb_s or inf)
    seconds = {
        "compute": clips_s, "update": update_s, "network": seen_s + p.bare * hops_s,
        "stragglers": c.jitter * (clips_s + update_s) * slowest(n) * sqrt(p.waits),
        "loader": batch / c.nodes / (c.node_clips_per_s or inf),
        "storage": batch * c.clip_mb / 1e3 / read_gb_s,
    }  # fmt: skip
    total = partial(total_s, beside=("loader", "storage")[c.same_cores :])
    left, order = dict(seconds), ["nothing"]
    while any(left.values()):
        order.insert(-1, min(left, key=lambda part: total(left | {part: 0.0})))
        left[order[-2]] = 0.0
    step_s, one_s = total(seconds), batch / p.clips_per_s + p.update_s
    told: dict[str, Any] = {"gpus": n, "step_ms": step_s * 1e3, "clips_per_s": batch / step_s}
    told |= {"efficiency": one_s / n / step_s, "binds": order[0], "next": order[1]}
    return told | {f"{part}_ms": s * 1e3 for part, s in seconds.items()}


def scale(config: Config, told: dict[str, Any], c: Cluster, gpus: int, measured: bool) -> dict:
    """What `budget.plan` told of a run on c.nodes x gpus, with the waiting counted in; the curve.

    `measured`: the clips a second are, and hold the update. ConfigError: the links are not known.
    """
    from vidlearn.budget import gpu_kind, step_cost  # torch, which help does not wait for

    node, net, memory = LINKS.get(gpu_kind(told["gpu"]), (0, 0, inf))
    inside, between = c.node_gb_s or REACHED * node or None, c.net_gb_s or REACHED * net or None
    many = c.nodes > 1 or c.curve
    if (not between and many) or (not inside and (many or gpus > 1)):
        text = f"--gpu {told['gpu']!r}: its links are not known here. Give --node-gb-s and"
        raise ConfigError(f"{text} --net-gb-s, as all_reduce_perf of nccl-tests has them")
    cost, width = step_cost(config, min(told["clips_per_gpu"], 8)), 2 if config.bf16_grads else 4
    rate, kinds, trained = told["clips_per_s_per_gpu"], int(cost["kinds"]), cost["parameters"]
    accumulate, both = config.accumulate, kinds * (config.var_cov > 0)  # passes that wait
    bare, waits = 1 + 4 * both, 2 + 2 * both  # the votes; gradients
    known_s = 0.0 if measured else UPDATE_BYTES * trained / memory / 1e9
    update_s = known_s if c.update_ms is None else c.update_ms / 1e3
    # DDP hides behind the backward pass of the last kind of masks.
    hide = 2 / 3 * (cost["context"] + cost["predictor"]) / cost["tflop"] / kinds
    halve_s = HALVE_BYTES * trained / memory / 1e9 if config.bf16_grads else 0.0
    calls = ceil(4 * trained / BUCKET_BYTES)
    p = Parts(rate, update_s, 2 * width * trained, calls, bare, hide, halve_s, waits)
    if config.shard:  # blocks are gathered twice a pass while others compute; the teacher's once
        passes, blocks = kinds * accumulate, config.depth + config.pred_depth + 1
        sent, calls = passes * (8 + width) * trained, 3 * passes * blocks + config.depth
        p = p._replace(sent_bytes=sent + 4 * cost["frozen"], calls=calls, hide=1.0, halve_s=0.0)
    p = p if c.hide is None else p._replace(hide=c.hide)
    c = replace(c, node_gb_s=inside, net_gb_s=between)

    def on(nodes: int, each: int) -> dict[str, Any]:
        here = p._replace(update_s=update_s / (nodes * each if config.shard else 1))
        row = predict(here, replace(c, nodes=nodes), config.batch, each, accumulate)
        return {k: float(f"{x:.4g}") if isinstance(x, float) else x for k, x in row.items()}

    told, pace = told | on(c.nodes, gpus), told["clips_per_s_per_gpu"] * c.nodes * gpus
    pace = told["clips_per_s"] / pace  # of what the GPUs compute when nothing makes them wait
    told |= {x: float(f"{told[x] / pace:.4g}") for x in ("gpu_hours", "days", "usd")}
    told["mfu"] = told["mfu"] and float(f"{told['mfu'] * pace:.4g}")
    if c.curve:
        sizes = sorted({2**k for k in range(11) if 2**k < gpus} | {gpus * 2**k for k in range(11)})
        sizes = [n for n in sizes if n <= 1024 and config.batch % (n * accumulate) == 0]
        told["curve"] = [on(max(1, n // gpus), min(n, gpus)) for n in sizes]
    return told
