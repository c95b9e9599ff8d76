"""Functions as the ranks of one run, quickly: forked from a process that has torch loaded."""

import os
import socket
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["vidlearn.train", "torch._dynamo"])
NAMES = ("SLURM_", "MASTER_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _begin(rank: int, world: int, port: int, text: Path, target, args) -> None:
    for name in [name for name in os.environ if name.startswith(NAMES)]:
        del os.environ[name]
    if world > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(x) for name, x in own.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["VIDLEARN_DEVICE"] = "cpu"
    with open(text, "w") as f:
        for number in (1, 2):
            os.dup2(f.fileno(), number)
    target(*args)
    sys.stdout.flush()


def start(world: int, target, *args, folder: Path) -> list[BaseProcess]:
    """The processes of a run of `target(*args)`; rank r writes to `folder`/rank{r}.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    port, found = free_port(), []
    for rank in range(world):
        how = (rank, world, port, folder / f"rank{rank}.txt", target, args)
        found.append(CONTEXT.Process(target=_begin, args=how))
        found[-1].start()
    return found


def end(processes: list[BaseProcess], folder: Path, limit_s: float = 120) -> list[tuple[int, str]]:
    """Each rank's exit code, and what it wrote; AssertionError: one is not over in time."""
    deadline, late = time.monotonic() + limit_s, []
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            late.append(process.name)
            process.kill()
            process.join()
    texts = [(folder / f"rank{r}.txt").read_text() for r in range(len(processes))]
    assert not late, (late, [text[-1500:] for text in texts])
    return [(process.exitcode, text) for process, text in zip(processes, texts)]


def run(world: int, target, *args, folder: Path, limit_s: float = 120) -> list[tuple[int, str]]:
    return end(start(world, target, *args, folder=folder), folder, limit_s)
