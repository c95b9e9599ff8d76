"""Who am I: every launcher's environment, half an environment, and real processes that meet."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from vidlearn import dist
from vidlearn.dist import first_host, group, init_distributed, tasks_per_node
from vidlearn.errors import ConfigError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29999",
}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "41",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}
CHILD = """
import json, sys, torch
from vidlearn.dist import init_distributed, shutdown
d = init_distributed(timeout_s=float(sys.argv[1]))
again = init_distributed()
total = d.all_reduce(torch.tensor([float(d.rank + 1)]))
d.barrier()
shutdown(d)
print(json.dumps([d.rank, d.world, d.local_rank, str(d.device), d.launcher, d.is_main,
                  float(total), again == d, torch.distributed.is_initialized()]))
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Tests may themselves run under a launcher."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name in TORCHRUN:
            monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("VIDLEARN_DEVICE", raising=False)


def place(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return dist.find_place()


def free_port():
    """A port that SLURM's rule can give: 10000 to 29999."""
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = 10000 + probe.getsockname()[1] % 20000
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def start(env, timeout_s=60):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(timeout_s)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VIDLEARN_DEVICE": "cpu", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(processes):
    outputs = [p.communicate(timeout=120) for p in processes]
    assert all(p.returncode == 0 for p in processes), [err[-2000:] for _, err in outputs]
    return [json.loads(out) for out, _ in outputs]


@pytest.mark.parametrize(
    "text, counts",
    [
        ("2(x2)", [2, 2]),
        ("16(x2)", [16, 16]),
        ("2,1", [2, 1]),
        ("3,1(x2)", [3, 1, 1]),
        ("12", [12]),
        ("8(x127),4,2(x3)", [8] * 127 + [4, 2, 2, 2]),
    ],
)
def test_tasks_per_node(text, counts):
    assert tasks_per_node(text) == counts


@pytest.mark.parametrize(
    "text, host",
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[007-009,12],x1", "gpu007"),
        ("gpu-b,gpu-a", "gpu-b"),
        ("n1,n[3-4]", "n1"),
        ("rack[2-3]n[04-05,7],z", "rack2n04"),
        ("n[3,5].cluster.org", "n3.cluster.org"),
    ],
)
def test_first_host(text, host):
    assert first_host(text) == host


def test_alone(monkeypatch):
    me = init_distributed()
    assert (me.rank, me.world, me.local_rank, me.launcher, me.is_main) == (0, 1, 0, "single", True)
    assert me.all_reduce(torch.tensor([3.0])) == 3.0
    me.barrier()
    dist.shutdown(me)
    monkeypatch.setenv("VIDLEARN_DEVICE", "cpu")
    assert init_distributed().device == torch.device("cpu")


def test_places(monkeypatch):
    assert place(monkeypatch, TORCHRUN) == ("torchrun", 1, 2, 1, "localhost:29999")
    # torchrun inside a SLURM step: SLURM_PROCID is then that of torchrun itself.
    assert place(monkeypatch, SLURM)[0] == "torchrun"
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    assert place(monkeypatch, SLURM) == ("slurm", 3, 4, 1, "gpu007:10041")
    assert place(monkeypatch, {"SLURM_JOB_ID": "123456"})[4] == "gpu007:13456"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    assert place(monkeypatch, {"MASTER_PORT": "2500"})[4] == "10.0.0.7:2500"


def test_a_step_on_part_of_the_job_uses_the_steps_own_nodes(monkeypatch):
    """`srun -N1 -w n2` in a job on n[1-2]: the job's first node runs nothing."""
    job = {"SLURM_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS": "4"}
    step = {"SLURM_STEP_NODELIST": "n2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    env = {**SLURM, **job, **step, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert place(monkeypatch, env)[2:] == (2, 1, "n2:10041")


def test_old_slurm_without_step_counts(monkeypatch):
    env = {k: v for k, v in SLURM.items() if k not in ("SLURM_STEP_NUM_TASKS",)}
    del env["SLURM_STEP_TASKS_PER_NODE"]
    job = {"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "3,1"}
    assert place(monkeypatch, {**env, **job})[1:4] == (3, 4, 1)


def without(env, name, **more):
    return {**{k: v for k, v in env.items() if k != name}, **more}


# What is wrong, and the name that the one error must say. None may start alone.
WRONG = {
    **{f"torchrun without {x}": (without(TORCHRUN, x), f"{x} is missing") for x in TORCHRUN},
    **{
        f"srun without {x}": (without(SLURM, x), f"{x} is missing")
        for x in SLURM
        if x != "SLURM_STEP_ID"
    },
    "rank out of range": ({**TORCHRUN, "RANK": "2"}, "rank 2 of 2.*RANK, WORLD_SIZE"),
    "no ranks at all": ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE, LOCAL_RANK"),
    "a number in words": ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
    "a negative number": ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK is -1"),
    "local rank above rank": ({**TORCHRUN, "RANK": "0"}, "local rank 1: RANK, WORLD_SIZE"),
    "a port that cannot be": ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    "a port in words": ({**TORCHRUN, "MASTER_PORT": "auto"}, "MASTER_PORT is auto"),
    "torchrun's id alone": ({"TORCHELASTIC_RUN_ID": "7"}, "RANK is missing"),
    "torchrun's count alone": ({"LOCAL_WORLD_SIZE": "8"}, "RANK is missing"),
    "SLURM's rank out of range": ({**SLURM, "SLURM_PROCID": "4"}, "rank 4 of 4.*SLURM_PROCID"),
    "SLURM's port": ({**SLURM, "MASTER_PORT": "0"}, "MASTER_PORT is 0"),
    # What the first character of the text says, and what is true, differ.
    "other sums": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "16(x2)"},
        r"SLURM_STEP_NUM_TASKS=4.*SLURM_STEP_TASKS_PER_NODE=16\(x2\)",
    ),
    "uneven sums": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1"},
        "SLURM_STEP_NUM_TASKS=4.*SLURM_STEP_TASKS_PER_NODE=2,1",
    ),
    "more on a node than are there": ({**SLURM, "SLURM_LOCALID": "2"}, "SLURM_LOCALID=2"),
    "tasks in words": ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "many"}, "PER_NODE is many"),
    "a job without number": ({**SLURM, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is x"),
    # python in a batch script, without srun: rank 0 of 4, waiting for ever
    "no srun": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4.*start with srun"),
    "no srun, tasks a node": (
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4"},
        "SLURM_NTASKS_PER_NODE is 4",
    ),
    "no srun, nodes": ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}, "SLURM_NNODES is 2"),
    "a container that lost half": (
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3"},
        "SLURM_PROCID is 3, but SLURM_STEP_ID is missing",
    ),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE is 4.*srun or torchrun"),
    "MPICH": ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE is 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_environment_is_one_error_that_names_the_variable(monkeypatch, what):
    env, words = WRONG[what]
    with pytest.raises(ConfigError, match=words) as found:
        place(monkeypatch, env)
    assert len(str(found.value).splitlines()) == 1


def test_a_device_that_is_none(monkeypatch):
    monkeypatch.setenv("VIDLEARN_DEVICE", "gpu")
    with pytest.raises(ConfigError, match="VIDLEARN_DEVICE is 'gpu': give cpu, cuda or mps"):
        init_distributed()


def test_one_task_needs_no_srun(monkeypatch):
    assert place(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"})[0] == "single"


@pytest.mark.parametrize(
    "visible, local_rank, on_node, index",
    [
        (4, 3, "4", 3),  # --gpus-per-node=4: every task sees all
        (1, 3, "4", 0),  # --gpus-per-task=1: every task sees its own
        (1, 0, "1", 0),
        (1, 1, "1", None),  # four tasks, one GPU in the whole job
        (2, 2, "2", None),
        (0, 0, "2", None),  # GPUs in the job, torch built without CUDA
        (2, 1, "", 1),  # no SLURM
        (1, 1, "", None),
    ],
)
def test_which_gpu(monkeypatch, visible, local_rank, on_node, index):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if on_node:
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", on_node)
    if index is None:
        with pytest.raises(ConfigError, match=f"local rank {local_rank}, but torch sees {visible}"):
            group._device("", local_rank)
    else:
        assert group._device("", local_rank) == torch.device("cuda", index)
        assert chosen == [index]
    assert group._device("cpu", local_rank) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_three_tasks_on_two_uneven_nodes_meet():
    """What srun sets on the nodes `localhost` (2 tasks) and `other` (1 task)."""
    job = {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": str(free_port() - 10000),
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_STEP_NODELIST": "localhost,other",
    }
    places = [("0", "0"), ("1", "1"), ("2", "0")]
    ranks = [start({**job, "SLURM_PROCID": r, "SLURM_LOCALID": i}) for r, i in places]
    assert results(ranks) == [
        [r, 3, local, "cpu", "slurm", r == 0, 6.0, True, False]
        for r, local in ((0, 0), (1, 1), (2, 0))
    ]


def test_torchrun(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node", "2", "--redirects", "1", "--log-dir", str(tmp_path)]
    done = subprocess.run(
        [*torchrun, *options, str(tmp_path / "child.py"), "60"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VIDLEARN_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(json.loads(f.read_text()) for f in tmp_path.rglob("stdout.log"))
    assert found == [[r, 2, r, "cpu", "torchrun", r == 0, 3.0, True, False] for r in (0, 1)]


def test_a_port_in_use_and_a_rank_that_never_comes():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        late = {**env, "MASTER_PORT": str(free_port())}
        for process, words in ((start(env), "EADDRINUSE"), (start(late, 2), "1/2 clients joined")):
            _, err = process.communicate(timeout=60)
            text = err.strip().splitlines()[-1]
            assert process.returncode == 1 and words in text, err
            assert "rank 0 of 2" in text and "set MASTER_PORT to a free one" in text
