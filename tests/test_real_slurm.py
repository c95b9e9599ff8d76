"""The scripts of slurm/ under a real SLURM of two made-up nodes: `make test-slurm`.

test_slurm.py holds the same scripts to stand-ins, on every machine. This file sees what stand-ins
cannot: SLURM's own parser, its names of nodes, its signals, its requeue.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cluster import RUNNING, change, real_slurm, site, why_not
from test_slurm import TINY

from vidlearn import checkpoint
from vidlearn.datasets.synth import make

WHY = why_not() if os.environ.get("VIDLEARN_SLURM") == "1" else "run by `make test-slurm`"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY), reason=WHY)]
STEPS = 60
ASK = """
import sys, time, urllib.error, urllib.request
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
request = urllib.request.Request(sys.argv[1], headers={"Host": "localhost:8888"})
for _ in range(60):
    try:
        print(open_url(request).status)
        break
    except urllib.error.HTTPError as error:
        print(error.code)
        break
    except OSError:  # told before it listens
        time.sleep(1)
"""


@pytest.fixture(scope="module")
def slurm():
    with real_slurm(nodes=2, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("set"), train=24, val=0, test=12, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    return site(tmp_path_factory.mktemp("site"), data=data, gpus=2)


def log(folder, name, job):
    file = folder / "logs" / f"{name}-{job}.out"
    return file.read_text() if file.exists() else f"no {file}"


def run(slurm, folder, name, *words):
    """Hand in a job and wait for its good end: its number, what SLURM says, what its log says."""
    job = slurm.submit(folder, name, *words)
    end, text = slurm.wait(job), log(folder, name, job)
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), text
    return job, end, text


def started(slurm, folder, steps):
    """A run on two nodes that has made its first step: its job and its folder."""
    job = slurm.submit(folder, "many_nodes", "--nodes=2", "laptop", *TINY, "--steps", steps)
    out = folder / "runs" / f"many_nodes-{job}"
    while not (out / "metrics.jsonl").exists():
        assert slurm.job(job)["JobState"] in RUNNING, log(folder, "many_nodes", job)
        time.sleep(0.1)
    return job, out


def weights(out):
    return checkpoint.load(checkpoint.latest(out / "checkpoints"))["model"]


@pytest.fixture(scope="module")
def whole(slurm, folder):
    """A run of two processes on one node, which nobody stops: its folder and its log."""
    job, _, text = run(slurm, folder, "one_node", "laptop", *TINY, "--steps", STEPS)
    return folder / "runs" / f"one_node-{job}", text


def test_the_cluster_is_gone_without_a_trace():
    def networks():
        return subprocess.check_output(["lsns", "-nt", "net", "-o", "NS"], text=True).split()

    with real_slurm(nodes=3, gpus=1) as small:
        ask = "echo $(uname -n) has GPU $CUDA_VISIBLE_DEVICES"
        told = small.run("srun", "-N3", "--gpus-per-node=1", "sh", "-c", ask)
        own = re.search(r"\d+", small.run("readlink", "/proc/self/ns/net"))[0]
        assert own in networks()
        assert "cluster /run" in small.run("cat", "/proc/mounts")
        assert "cluster /run" not in Path("/proc/mounts").read_text()
    assert sorted(told.splitlines()) == [f"n{i} has GPU 0" for i in (1, 2, 3)]
    assert own not in networks()


def test_all_ranks_of_two_nodes_meet(slurm, folder):
    _, end, text = run(slurm, folder, "check", "--nodes=2")
    met = re.findall(r"rank (\d of \d) on cpu: all ranks met", text)
    assert sorted(met) == ["0 of 4", "1 of 4", "2 of 4", "3 of 4"]
    assert end["NodeList"] == "n[1-2]" and "torch" in text


def test_one_node(whole):
    assert "2 process(es)" in whole[1] and "ended with status 0" in whole[1]


def test_one_gpu_and_its_probe(slurm, folder):
    job, _, text = run(slurm, folder, "one_gpu", "laptop", *TINY, "--steps", 2)
    assert "1 process(es)" in text and "ended with status 0" in text
    _, _, text = run(slurm, folder, "probe", f"runs/one_gpu-{job}")
    assert "random" in text and "pixels" in text


@pytest.fixture
def plain_hosts(slurm):
    """A server cannot bind to the second form in which the cluster's hosts have their addresses."""
    before = slurm.run("cat", "/etc/hosts")
    after = "".join(x for x in before.splitlines(keepends=True) if not x.startswith("::ffff:"))
    slurm.run("sh", "-c", f"printf %s '{after}' > /etc/hosts")
    yield
    slurm.run("sh", "-c", f"printf %s '{before}' > /etc/hosts")


def test_the_notebook_is_reached_from_the_login_host_and_ends_when_told(
    slurm, plain_hosts, tmp_path, data
):
    """As `ssh -L` would: the log's host and port, with the log's token and without it."""
    folder = site(tmp_path, data=data, gpus=1)
    (folder / "root" / "jupyter_server_config.json").parent.mkdir()
    (folder / "root" / "jupyter_server_config.json").write_text('{"ServerApp":{"allow_root":true}}')
    with open(folder / "venv" / "bin" / "activate", "a") as f:
        f.write(f"export JUPYTER_CONFIG_DIR={folder / 'root'} HOME={folder}\n")
    job, told = slurm.submit(folder, "notebook"), None
    while not (told := re.search(r":(n\d:\d+) .*?token=(\S+)", log(folder, "notebook", job), re.S)):
        assert slurm.job(job)["JobState"] in RUNNING, log(folder, "notebook", job)
        time.sleep(0.1)
    address = f"http://{told[1]}/api/kernels"
    assert slurm.run(sys.executable, "-c", ASK, address) == "403\n"
    assert slurm.run(sys.executable, "-c", ASK, f"{address}?token={told[2]}") == "200\n"
    assert told[2] not in slurm.run("ps", "-eo", "args")
    slurm.run("scancel", job)
    assert slurm.wait(job, 60)["JobState"] == "CANCELLED"


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_a_stopped_run_comes_back_as_if_nothing_had_been(slurm, whole, tmp_path, data, launch):
    """SLURM's warning, a requeue, two nodes: the weights of the whole run on one, to the bit."""
    change(site(tmp_path, data=data, gpus=1), marked=False, LAUNCH=launch)
    job, out = started(slurm, tmp_path, STEPS)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    end, text = slurm.wait(job), log(tmp_path, "many_nodes", job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert "2 process(es)" in text and "laptop on n[1-2]" in text
    stops, resumes = (re.findall(rf"{word} at step (\d+)", text) for word in ("stopped", "on"))
    assert stops == resumes and len(stops) == 1 and 0 < int(stops[0]) < STEPS, text
    expected, found = weights(whole[0]), weights(out)
    assert expected.keys() == found.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_cancelled_run_saves_and_does_not_come_back(slurm, tmp_path, data):
    job, out = started(slurm, site(tmp_path, data=data, gpus=1), 5000)
    slurm.run("scancel", job)
    end, text = slurm.wait(job), log(tmp_path, "many_nodes", job)
    assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0")
    assert "cancelled, so not back into the queue" in text
    assert checkpoint.latest(out / "checkpoints")


def on_node(slurm, job, node, signal):
    """Send a signal to the first rank of a job on a node."""
    step = ("srun", "--overlap", f"--jobid={job}", "-N1", "-n1", "-w", node, "--gpus-per-node=0")
    slurm.run(*step, "pkill", f"-{signal}", "-o", "-f", "bin/vidlearn train")


def ended(slurm, folder, job, limit_s=60):
    began = time.monotonic()
    end = slurm.wait(job, limit_s)
    return end, log(folder, "many_nodes", job), time.monotonic() - began


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_a_run_makes_way_for_a_job_of_higher_priority(slurm, whole, tmp_path, data, launch):
    """SLURM preempts: TERM to the ranks, a minute of grace, the queue; then on, to the bit."""
    folder = site(tmp_path, data=data, gpus=1)
    change(folder, PARTITION="low")
    change(folder, marked=False, LAUNCH=launch)
    job, out = started(slurm, folder, STEPS)
    other = slurm.submit(folder, "check", "--partition=high", "--nodes=2", "--gpus-per-node=2")
    assert slurm.wait(other)["JobState"] == "COMPLETED", log(folder, "check", other)
    end, text = slurm.wait(job), log(folder, "many_nodes", job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert "stopped and saved; back into the queue" in text and "goes on at step" in text
    expected, found = weights(whole[0]), weights(out)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_dead_or_hung_rank_ends_the_job_within_a_minute(slurm, tmp_path, data, launch, signal):
    folder = site(tmp_path, data=data, gpus=1)
    change(folder, marked=False, LAUNCH=launch)
    job, out = started(slurm, folder, 50_000)
    on_node(slurm, job, "n2", signal)
    end, text, seconds = ended(slurm, folder, job)
    assert end["JobState"] == "FAILED" and seconds < 60, text
    if signal == "STOP":
        assert re.search(r"rank 1 on n2 \(process \d+\) gave no sign for \d+ s, last at", text), (
            text
        )
        assert "in _steps" in (out / "stack-rank0.txt").read_text()
    else:
        assert re.search(r"n2: task 1: Killed|exitcode\s*: -9|rank 1 on n2", text), text
    print(f"{launch}, {signal}: {seconds:.0f} s")


def test_torchrun_starts_anew_after_a_rank_has_died(slurm, whole, tmp_path, data):
    folder = site(tmp_path, data=data, gpus=1)
    change(folder, marked=False, LAUNCH="torchrun", TORCHRUN_RESTARTS=2)
    job, out = started(slurm, folder, STEPS)
    on_node(slurm, job, "n2", "KILL")
    end, text = slurm.wait(job), log(folder, "many_nodes", job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "0"), text
    assert len(re.findall("starts at step 0|goes on at step", text)) == 2, text
    expected, found = weights(whole[0]), weights(out)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
