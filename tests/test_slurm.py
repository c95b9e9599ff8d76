"""The SLURM scripts: they say what SLURM reads, and they run, stop, requeue and go on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cluster import change

from vidlearn.datasets.synth import make
from vidlearn.runlog import read_metrics

ROOT = Path(__file__).parent.parent
STANDIN = Path(__file__).parent / "slurm_standin.py"
JOBS = sorted((ROOT / "slurm").glob("*.sbatch"))
TINY = (
    "--size 32 --width 24 --depth 1 --heads 2 --pred-width 12 --pred-depth 1 "
    "--pred-heads 2 --batch 4 --warmup 1 --workers 0 --log-every 1 --save-every 1000"
).split()


# What SLURM's own parser lets pass.


def faults(text):
    """Mistakes in a job script that sbatch accepts without a word."""
    found, lines = [], text.splitlines()
    command = next((i for i, x in enumerate(lines) if x.strip() and x[0] != "#"), len(lines))
    wanted = [x for x in lines[:command] if x.startswith("#SBATCH ")]
    for i, line in enumerate(lines):
        if line.startswith("#SBATCH ") and i > command:
            found.append(f"line {i + 1}: a directive after a command is ignored")
        elif re.match(r"\s*#+\s*S[BATCH]{3,5}\b", line, re.IGNORECASE) and line not in wanted:
            found.append(f"line {i + 1}: {line!r} is not a directive")
        if line.startswith("#SBATCH") and "$" in line:
            found.append(f"line {i + 1}: a directive cannot read a variable")
    options = " ".join(wanted)
    if "--output=logs/" not in options:
        found.append("the log does not go to logs/, which submit.sh makes")
    if "--requeue" in options and "--open-mode=append" not in options:
        found.append("a requeued job would cut off its log")
    return found


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.stem)
def test_job_scripts_have_no_silent_faults(job):
    assert faults(job.read_text()) == []


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("#SBATCH --time", "set -e\n#SBATCH --time", "after a command"),
        ("#SBATCH --time", "# SBATCH --time", "not a directive"),
        ("#SBATCH --time", "#SBTACH --time", "not a directive"),
        ("--time=08", "--time=$HOURS", "cannot read a variable"),
        ("logs/", "out/", "does not go to logs/"),
        ("#SBATCH --open-mode=append\n", "", "cut off"),
    ],
)
def test_planted_faults_are_found(old, new, words):
    text = (ROOT / "slurm" / "one_gpu.sbatch").read_text()
    assert old in text
    assert any(words in fault for fault in faults(text.replace(old, new)))


def test_shellcheck_and_syntax():
    scripts = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "slurm").iterdir())]
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run([checker, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for script in scripts:
        assert subprocess.run(["bash", "-n", script], cwd=ROOT).returncode == 0


# The scripts, run.


class Cluster:
    """A copy of slurm/, edited where a reader would, and the stand-ins first on PATH."""

    def __init__(self, folder, data):
        self.folder, self.data, self.job = folder, data, free_job()
        self.home = folder / "standin"
        programs, venv = self.home / "bin", folder / "venv" / "bin"
        for made in (programs, venv):
            made.mkdir(parents=True)
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        for name in ("sbatch", "srun", "scontrol"):
            (programs / name).write_text(f"#!{sys.executable}\n{STANDIN.read_text()}")
            (programs / name).chmod(0o755)
        self.path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        (venv / "activate").write_text("")
        self.change(PARTITION="debug", ACCOUNT="course", VENV="venv", DATA=data, GPUS_PER_NODE=2)

    def change(self, **values):
        change(self.folder, **values)

    def start(self, *words, **env):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        settings = {"PATH": self.path, "STANDIN": str(self.home), "STANDIN_JOB": str(self.job)}
        return subprocess.Popen(
            ["slurm/submit.sh", *words],
            cwd=self.folder,
            env={**clean, **settings, "VIDLEARN_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words, status=0, **env):
        process = self.start(*words, **env)
        text, _ = process.communicate(timeout=120)
        log = self.folder / "logs" / f"{words[0]}-{self.job}.out"
        text += log.read_text() if log.exists() else ""
        assert process.returncode == status, text
        return text

    def batch_signal(self, number):
        os.kill(int((self.home / "batch.pid").read_text()), number)

    @property
    def restarts(self):
        return int((self.home / "restarts").read_text())

    def program(self, name, text):
        """A program of the test's own instead of a real one."""
        file = self.home / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)


def free_job():
    """A job number whose port, by our rule, nobody uses."""
    while True:
        job = int.from_bytes(os.urandom(2), "big") % 20000
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 10000 + job)):
                return job


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("set"), train=24, val=0, test=12, seed=0)


@pytest.fixture
def cluster(tmp_path, data):
    return Cluster(tmp_path, data)


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited too long"
        time.sleep(0.05)


def test_one_file_is_edited_and_reaches_sbatch(cluster):
    cluster.change(marked=False, NODES=3, SBATCH_OPTIONS='("--qos=long one")')
    cluster.program("sbatch", 'printf "%s\\n" "$@"; ls -d logs')
    text = cluster.run("many_nodes", "--time=24:00:00", "vitl16", "--steps", "5")
    assert text.splitlines() == [
        "--partition=debug",
        "--account=course",
        "--nodes=3",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--cpus-per-task=10",
        "--mem-per-cpu=4G",
        "--qos=long one",
        "--time=24:00:00",
        "slurm/many_nodes.sbatch",
        "vitl16",
        "--steps",
        "5",
        "logs",
    ]
    cluster.change(ACCOUNT="")
    text = cluster.run("one_gpu")
    assert "--account" not in text and "--gpus-per-node=1" in text
    cluster.change(marked=False, LAUNCH="torchrun")  # one agent a node, with the cores of all
    text = cluster.run("one_node")
    assert all(f"{x}\n" in text for x in ("node=1", "gpus-per-node=2", "cpus-per-task=20"))


def test_an_unknown_job_lists_those_that_there_are(cluster):
    names = " ".join(p.stem for p in JOBS)
    assert f'no job "many"; there are: {names}' in cluster.run("many", status=2)


@pytest.mark.parametrize(
    "words, unclear",
    [
        ("check -N 2", "-N"),
        ("many_nodes --nodes 4 vitl16", "--nodes"),
        ("many_nodes --nodes=4 --time 10 vitl16", "--time"),
    ],
)
def test_an_option_that_sbatch_would_misread_is_refused(cluster, words, unclear):
    cluster.program("sbatch", "echo submitted")
    text = cluster.run(*words.split(), status=2)
    assert text == (
        f'submit: "{unclear}" is not clear: write --nodes=4; '
        "options of training come after the recipe\n"
    )
    assert "submitted" in cluster.run("many_nodes", "--nodes=4", "gpu", "--batch", "64", "-h")


@pytest.mark.parametrize("words", ["--help", "-h", "one_gpu --help", "one_gpu --nodes=2 -h"])
def test_submit_explains_itself(cluster, words):
    text = cluster.run(*words.split())
    shown = [line for line in text.splitlines() if line.startswith("  slurm/submit.sh ")]
    assert {line.split()[1] for line in shown} == {job.stem for job in JOBS}
    assert text.startswith("Submit a job") and "#" not in text and "set -e" not in text


def test_missing_videos_are_told_before_the_queue(cluster):
    cluster.program("sbatch", "echo submitted")
    cluster.change(DATA="nowhere/videos")
    line = 'submit: no videos at "nowhere/videos": set DATA in slurm/common.sh, or make them: '
    for words in ("one_gpu", "one_node gpu", "many_nodes --nodes=3", "probe runs/a"):
        assert cluster.run(*words.split(), status=2).startswith(line), words
    assert '"elsewhere"' in cluster.run("probe", "runs/a", "elsewhere", status=2)
    for words in ("check", "notebook", f"one_gpu gpu --data {cluster.data}"):
        assert "submitted" in cluster.run(*words.split()), words
    assert "submitted" in cluster.run("probe", "runs/a", str(cluster.data))


def test_check(cluster):
    text = cluster.run("check")
    assert "torch" in text
    assert all(f"rank {r} of 2 on cpu: all ranks met" in text for r in (0, 1))


def test_one_node_by_torchrun(cluster):
    cluster.change(marked=False, LAUNCH="torchrun")
    text = cluster.run("one_node", "laptop", *TINY, "--steps", "2")
    assert "2 process(es)" in text and "ended with status 0" in text
    metrics = cluster.folder / "runs" / f"one_node-{cluster.job}" / "metrics.jsonl"
    assert read_metrics(metrics)[-1]["step"] == 2
    assert cluster.restarts == 0


def test_probe_asks_for_a_run(cluster):
    cluster.program("vidlearn", 'printf "%s\\n" "$@"')
    assert cluster.run("probe", "runs/a-1").split() == ["probe", "runs/a-1", str(cluster.data)]
    words = cluster.run("probe", "runs/a-1", "slurm", "--seed", "3").split()[-5:]
    assert words == ["probe", "runs/a-1", "slurm", "--seed", "3"]
    assert "give the folder of a run" in cluster.run("probe", status=1)


def test_many_nodes_stop_requeue_and_go_on(cluster):
    """The warning before the time limit: saved, back in the queue, and on from there."""
    cluster.change(GPUS_PER_NODE=1)
    process = cluster.start("many_nodes", "laptop", *TINY, "--steps", "40")
    run = cluster.folder / "runs" / f"many_nodes-{cluster.job}"
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    cluster.batch_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    log = (cluster.folder / "logs" / f"many_nodes-{cluster.job}.out").read_text()
    assert process.returncode == 0, output + log
    assert cluster.restarts == 1
    assert "2 process(es)" in log and "goes on at step" in log
    assert log.index("asked to stop") < log.index("back into the queue") < log.index("goes on at")
    assert [m["step"] for m in read_metrics(run / "metrics.jsonl")] == list(range(1, 41))


def test_a_new_job_goes_on_in_the_folder_of_a_failed_one(cluster):
    tiny = ("laptop", *TINY, "--steps", "4", "--save-every", "2")
    cluster.run("one_gpu", *tiny)
    old = f"runs/one_gpu-{cluster.job}"
    (cluster.folder / old / "checkpoints" / "step-00000004.pt").unlink()
    cluster.job = free_job()
    text = cluster.run("one_gpu", *tiny, "--out", old)
    assert "goes on at step 2 of 4" in text
    assert [path.name for path in (cluster.folder / "runs").iterdir()] == [Path(old).name]


STOPS = 'while [ ! -e "$VIDLEARN_STOP_FILE" ]; do sleep 0.05; done; touch "$VIDLEARN_STOPPED_FILE"'


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("status", [0, 1])
def test_a_saved_stop_is_requeued_whatever_the_status(cluster, number, status):
    """torchrun leaves a clean stop with status 1; only the file tells it from a crash."""
    cluster.program("vidlearn", f'[ "$SLURM_RESTART_COUNT" = 1 ] && exit; {STOPS}; exit {status}')
    process = cluster.start("one_gpu")
    log = cluster.folder / "logs" / f"one_gpu-{cluster.job}.out"
    wait_for(lambda: log.exists() and "start 0 of gpu" in log.read_text())
    cluster.batch_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0 and cluster.restarts == 1, log.read_text()
    assert "start 0 of gpu" in log.read_text() and "start 1 of gpu" in log.read_text()


def test_a_cancelled_job_does_not_come_back(cluster):
    """`scancel` ends a job with the signal of a preemption; a requeue would wake it again."""
    cluster.program("vidlearn", STOPS)
    (cluster.home / "cancelled").touch()
    process = cluster.start("one_gpu")
    log = cluster.folder / "logs" / f"one_gpu-{cluster.job}.out"
    wait_for(lambda: log.exists() and "start 0 of gpu" in log.read_text())
    cluster.batch_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert cluster.restarts == 0 and "cancelled, so not back into the queue" in log.read_text()


def test_restarts_have_an_end(cluster):
    cluster.change(marked=False, MAX_RESTARTS=2)
    cluster.program("vidlearn", 'touch "$VIDLEARN_STOPPED_FILE"')
    text = cluster.run("one_gpu", status=1)
    assert cluster.restarts == 2 and "restarted 2 times (MAX_RESTARTS)" in text


def test_a_crash_is_a_failure_and_is_not_requeued(cluster):
    """One rank fails, the other would hang for ever: both end, and the job fails."""
    cluster.program("vidlearn", '[ "$SLURM_PROCID" = 1 ] && exit 3; exec sleep 600')
    began = time.time()
    text = cluster.run("one_node", status=143)
    assert "ended with status 143" in text and cluster.restarts == 0
    assert time.time() - began < 30


def test_a_wrong_recipe_is_told_in_the_log(cluster):
    text = cluster.run("one_gpu", "nonsense", status=2)
    assert "laptop" in text and "ended with status 2" in text and "Traceback" not in text


def test_a_wrong_launch_is_told(cluster):
    cluster.change(marked=False, LAUNCH="mpirun")
    assert "LAUNCH is 'mpirun'" in cluster.run("one_gpu", status=1)


@pytest.mark.skipif(not shutil.which("jupyter-lab", path=str(Path(sys.executable).parent)),
                    reason="JupyterLab is in the extra `book`")  # fmt: skip
def test_notebook_answers_to_its_password_only(cluster):
    cluster.program("hostname", "echo localhost")
    (cluster.folder / ".jupyter").mkdir()
    (cluster.folder / ".jupyter/jupyter_server_config.py").write_text(
        "c.ServerApp.allow_root = True\n"  # the test may run as root, in a container
    )
    process = cluster.start("notebook", HOME=str(cluster.folder))
    log = cluster.folder / "logs" / f"notebook-{cluster.job}.out"
    wait_for(lambda: log.exists() and "is running at" in log.read_text())
    text = log.read_text()
    port = 10000 + cluster.job
    assert f"ssh -N -L 8888:localhost:{port} " in text
    token = re.search(r"http://localhost:8888/lab\?token=(\S+)", text)[1]
    address = f"http://localhost:{port}/api/contents"
    wait_for(lambda: socket.socket().connect_ex(("localhost", port)) == 0)  # told before it listens
    with urllib.request.urlopen(f"{address}?token={token}") as answer:
        assert "slurm" in {item["name"] for item in json.load(answer)["content"]}
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address)
    assert log.stat().st_mode & 0o077 == 0
    cluster.batch_signal(signal.SIGTERM)
    process.communicate(timeout=30)
