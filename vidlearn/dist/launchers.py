"""Which process of how many is this? What torchrun, SLURM and MPI leave in the environment.

Input: the environment. Output: launcher, rank, world, local rank, and where rank 0 waits. Traded:
half an environment is an error; ranks that guess "I am alone" train alone in silence. Chapter 3.
"""

import os
import re

from vidlearn.errors import ConfigError


def tasks_per_node(text: str) -> list[int]:
    """SLURM's short form, "2(x3),1" -> [2, 2, 2, 1]: processes on each node."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def first_host(nodelist: str) -> str:
    """The first name in SLURM's short form: "gpu[007-009,12],x1" -> "gpu007"."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]|,.*", r"\1", nodelist)


def _variable(name: str, fallback: str = "", form: str = r"\d+") -> str:
    value = os.environ.get(name) or os.environ.get(fallback, "")
    if not re.fullmatch(form, value):
        text = f"the variable {name} is {value or 'missing'}, but others of its kind are set: start"
        raise ConfigError(f"{text} with torchrun or srun, or, for one process, unset the others")
    return value


def _port(default: int = 0) -> int:
    port = int(_variable("MASTER_PORT")) if not default or os.environ.get("MASTER_PORT") else default
    if not 0 < port < 65536:
        raise ConfigError(f"MASTER_PORT is {port}: give a free port up to 65535")
    return port


def _alone() -> None:
    """ConfigError: something says that this is one process of several, but not which."""
    env = os.environ
    counts = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # of MPI
    in_job = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES") if "SLURM_JOB_ID" in env else ()
    for name in (*counts, *in_job):
        if env.get(name, "1") != "1":
            text = f"{name} is {env[name]}, but SLURM_STEP_ID, which srun sets, is missing"
            raise ConfigError(f"{text}: start with srun or torchrun; for one process unset {name}")
    if env.get("SLURM_PROCID", "0") != "0":
        text = f"SLURM_PROCID is {env['SLURM_PROCID']}, but SLURM_STEP_ID is missing"
        raise ConfigError(f"{text}: pass on all of srun's variables, into a container, too")


def find_place() -> tuple[str, int, int, int, str]:
    """(launcher, rank, world, local rank, host:port of rank 0); ConfigError: half is missing."""
    env, step = os.environ, "SLURM_STEP_ID" in os.environ  # srun sets it, sbatch does not
    names: tuple[str, ...] = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    where = ("MASTER_ADDR", "MASTER_PORT")  # people set these under srun, too
    signs = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", *names, *(() if step else where))
    if any(name in env for name in signs):
        launcher, numbers = "torchrun", [_variable(name) for name in names]
        host, port = _variable("MASTER_ADDR", form=".+"), _port()
    elif step:
        launcher, names = "slurm", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        numbers = [_variable(x, "SLURM_NTASKS" * (x == names[1])) for x in names]
        text = _variable("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", r"[\d(x),]+")
        counts = tasks_per_node(text)
        if sum(counts) != int(numbers[1]) or int(numbers[2]) >= max(counts):
            told = ", ".join(f"{name}={x}" for name, x in zip(names[1:], numbers[1:]))
            raise ConfigError(f"{told}, but SLURM_STEP_TASKS_PER_NODE={text}: start with srun")
        # SLURM_NODELIST and HOSTNAME tell of the whole job; this step may run elsewhere in it.
        host = env.get("MASTER_ADDR") or first_host(_variable("SLURM_STEP_NODELIST", form=".+"))
        # A fixed port mixes two jobs on a node; above 32767 the system hands out its own.
        port = _port(10000 + int(_variable("SLURM_JOB_ID")) % 20000)
    else:
        _alone()
        return "single", 0, 1, 0, ""
    rank, world, local_rank = map(int, numbers)
    if not local_rank <= rank < world:
        text = f"{launcher} says rank {rank} of {world}, local rank {local_rank}"
        raise ConfigError(f"{text}: {', '.join(names)} cannot be so. Let the launcher set them")
    return launcher, rank, world, local_rank, f"{host}:{port}"
