"""Who am I among the processes? One call for torchrun, SLURM and a single process (chapter 3).

Input: the environment that the launcher left. Output: a Dist, and a group that was tried once.
Traded: half an environment is an error; ranks that guess "I am alone" train alone in silence.
"""

import os
import zlib
from dataclasses import dataclass
from datetime import timedelta
from itertools import compress
from pathlib import Path

import torch
import torch.distributed as td

from vidlearn.dist.launchers import find_place
from vidlearn.errors import ConfigError, VidlearnError


@dataclass(frozen=True)
class Dist:
    """One process among `world`."""

    rank: int
    world: int
    local_rank: int  # number of the process on its machine
    device: torch.device
    launcher: str  # "single", "torchrun" or "slurm"

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to people."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            td.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up `tensor` over all ranks, in place; returns it."""
        if self.world > 1:
            td.all_reduce(tensor)
        return tensor


def init_distributed(*, timeout_s: float = 600) -> Dist:
    """Find this process's place and join the others, by nccl on GPUs, else by gloo.

    VIDLEARN_DEVICE may choose the device; timeout_s is the longest wait for a rank. ConfigError: an
    environment half set, a rank without GPU. VidlearnError: the ranks did not meet, port in use.
    """
    launcher, rank, world, local_rank, where = find_place()
    place = _device(os.environ.get("VIDLEARN_DEVICE", ""), local_rank)
    me = Dist(rank, world, local_rank, place, launcher)
    if world == 1 or td.is_initialized():
        return me
    method = "env://" if launcher == "torchrun" else f"tcp://{where}"
    backend, own = ("nccl", place) if place.type == "cuda" else ("gloo", None)
    limit = timedelta(seconds=timeout_s)
    try:
        td.init_process_group(backend, method, limit, world, rank, device_id=own)
    except td.DistError as error:
        text = f"rank {rank} of {world} cannot meet the others at {where}: {error}".splitlines()[0]
        remedy = "If the port is in use, set MASTER_PORT to a free one; else see that all started"
        raise VidlearnError(f"{text.rstrip('.')}. {remedy}") from error
    if int(me.all_reduce(torch.ones(1, device=place))) != world:
        raise VidlearnError(f"more or fewer than {world} ranks met at {where}: two runs are mixed")
    return me


def agree(dist: Dist, **facts: str) -> None:
    """ConfigError on every rank, unless all have the same facts, torch and code of ours."""
    facts = {"torch": torch.__version__, "code": _code(), **facts}
    digests = [zlib.crc32(text.encode()) for text in facts.values()]
    table = torch.zeros(dist.world, len(facts), dtype=torch.int64, device=dist.device)
    table[dist.rank] = torch.tensor(digests)
    rows = enumerate((dist.all_reduce(table) != table[0]).tolist())
    if others := [f"rank {r}: {', '.join(compress(facts, row))}" for r, row in rows if any(row)]:
        text = f"the ranks differ from rank 0 ({'; '.join(others[:3])})"
        remedy = "Start all with one command, from one installation on a disk that all nodes see"
        raise ConfigError(f"{text}. {remedy}")


def _code() -> str:
    """What the package's files say."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return "".join(path.read_text("utf-8") for path in files)


def shutdown(dist: Dist) -> None:
    """Leave the group after a success. After a failure do not: it waits for ranks that are gone."""
    if dist.world > 1:
        dist.barrier()  # rank 0 holds the store: if it leaves first, the others see a broken line
        td.destroy_process_group()


def _device(kind: str, local_rank: int) -> torch.device:
    env, visible = os.environ, torch.cuda.device_count()
    given = "SLURM_STEP_ID" in env and env.get("CUDA_VISIBLE_DEVICES")
    kind = kind or ("cuda" if visible or given else "cpu")
    if kind.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"VIDLEARN_DEVICE is {kind!r}: give cpu, cuda or mps, or unset it")
    if kind != "cuda":
        return torch.device(kind)
    # SLURM can bind one GPU to each task: then every task sees its own, as number 0.
    index = 0 if visible == 1 and env.get("SLURM_GPUS_ON_NODE", "1") != "1" else local_rank
    if index >= visible:
        text = f"local rank {local_rank}, but torch sees {visible} GPUs: ask for one a process"
        raise ConfigError(f"{text}, install torch for CUDA, or set VIDLEARN_DEVICE=cpu")
    torch.cuda.set_device(index)  # before the group exists: else its first collective guesses
    return torch.device("cuda", index)
