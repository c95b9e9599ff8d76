"""Stand-ins for sbatch, srun, scontrol: just enough SLURM to run the scripts of slurm/ here.

They start real processes with the variables that SLURM sets, and they are as strict as SLURM
where a script can go wrong: a missing folder for the log, a log that is cut off by a requeue,
directives after a command that nobody reads, a rank that dies among others.
Run as a program by the name under which it is linked into PATH.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

NODES = ["localhost", "second"]  # only the first one's name is ever connected to


def directives(script):
    """The options that sbatch finds: lines before the first command only."""
    found = []
    for line in Path(script).read_text().splitlines():
        if line.startswith("#SBATCH"):
            found += shlex.split(line[7:])
        elif line.strip() and not line.startswith("#"):
            break
    return found


def options(words):
    pairs = {}
    for word in words:
        name, _, value = word.partition("=")
        assert name.startswith("--"), f"stand-in: option {word!r}"
        pairs[name[2:]] = value
    return pairs


def sbatch(words):
    """Run the job to its end, requeues included; STANDIN holds what happened."""
    home = Path(os.environ["STANDIN"])
    at = next(i for i, word in enumerate(words) if not word.startswith("--"))
    script, arguments = words[at], words[at + 1 :]
    chosen = {**options(directives(script)), **options(words[:at])}
    (home / "sbatch.json").write_text(json.dumps({"line": words, "options": chosen}))
    nodes, per_node = int(chosen["nodes"]), int(chosen["ntasks-per-node"])
    job = os.environ["STANDIN_JOB"]
    log = chosen["output"].replace("%x", chosen["job-name"]).replace("%j", job)
    if not Path(log).parent.is_dir():
        sys.exit("stand-in: FAILED 0:53, the folder of --output is not there")
    mode = "a" if chosen.get("open-mode") == "append" else "w"
    env = {
        **os.environ,
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NAME": chosen["job-name"],
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_TASKS_PER_NODE": f"{per_node}(x{nodes})" if nodes > 1 else str(per_node),
        "SLURM_CPUS_PER_TASK": chosen["cpus-per-task"],
        "SLURM_GPUS_ON_NODE": chosen["gpus-per-node"],
        "SLURM_JOB_NODELIST": ",".join(NODES[:nodes]),
        "SLURM_PROCID": "0",
    }
    spool = home / "slurm_script"  # SLURM runs a copy, from elsewhere
    spool.write_text(Path(script).read_text())
    for restart in range(10):
        if restart:
            env["SLURM_RESTART_COUNT"] = str(restart)
        with open(log, mode) as out:
            shell = subprocess.Popen(
                ["bash", str(spool), *arguments], stdout=out, stderr=out, env=env
            )
            (home / "batch.pid").write_text(str(shell.pid))
            status = shell.wait()
        if not (home / "requeued").exists():
            break
        (home / "requeued").unlink()
    (home / "restarts").write_text(str(restart))
    return status


def srun(words):
    """One process a task; with --kill-on-bad-exit the first failure ends the others."""
    at = next(i for i, word in enumerate(words) if not word.startswith("--"))
    chosen, command = options(words[:at]), words[at:]
    known = {"kill-on-bad-exit", "nodes", "ntasks", "ntasks-per-node"}
    assert set(chosen) <= known, f"stand-in: srun options {set(chosen) - known}"
    assert os.environ["SRUN_CPUS_PER_TASK"] == os.environ["SLURM_CPUS_PER_TASK"]
    nodes = int(chosen.get("nodes", os.environ["SLURM_NNODES"]))
    total = int(chosen.get("ntasks", os.environ["SLURM_NTASKS"]))
    each = total // nodes
    tasks = []
    for rank in range(total):
        env = {
            **os.environ,
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % each),
            "SLURM_NODEID": str(rank // each),
            "SLURM_NTASKS": str(total),
            "SLURM_STEP_NUM_TASKS": str(total),
            "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        }
        tasks.append(subprocess.Popen(command, env=env))
    signal.signal(signal.SIGUSR1, lambda n, _: [task.send_signal(n) for task in tasks])
    while None in [task.poll() for task in tasks]:  # a list: every task is looked at
        bad = [task.returncode for task in tasks if task.returncode]
        if bad and chosen.get("kill-on-bad-exit") == "1":
            for task in tasks:
                task.kill()
            return 143
        time.sleep(0.02)
    return max(abs(task.returncode) for task in tasks)


def scontrol(words):
    if words[:2] == ["show", "job"]:
        cancelled = (Path(os.environ["STANDIN"]) / "cancelled").exists()
        print("   JobState=" + ("CANCELLED" if cancelled else "RUNNING"), "Reason=None")
    elif words[:2] == ["show", "hostnames"]:
        print("\n".join(words[2].split(",")))
    elif words[0] == "requeue":
        assert words[1] == os.environ["SLURM_JOB_ID"]
        (Path(os.environ["STANDIN"]) / "requeued").touch()
        os.kill(os.getppid(), signal.SIGKILL)  # SLURM ends the batch script
    return 0


if __name__ == "__main__":
    programs = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}
    sys.exit(programs[Path(sys.argv[0]).name](sys.argv[1:]))
