"""A real SLURM of several made-up nodes on this machine, up in a second and gone without a trace.

    with real_slurm(nodes=2, gpus=2) as slurm:
        slurm.run("srun", "-N2", "hostname")

All of it lives in namespaces of its own: a network with nothing but loopback, a /run in memory that
holds configuration, keys and logs, and for each node a host name and a process table. The first
process there is a bash that waits for its input to close, which happens even if this program is
killed; and when the first process of a process table ends, the kernel ends all others. Nothing of
the machine is changed. Needs root on Linux and Debian's packages; tested with SLURM 22.05.

The nodes share a disk, a clock and loopback: what differs between real hosts stays hidden.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "ip")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where the daemons are; Debian tells only root
APART = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
CONF = "/run/slurm/slurm.conf"
RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}

# CPUs and memory of a node are what the configuration says, not what the machine has.
# cred_expire: a requeued job waits so many seconds (120 by default). MinJobAge: how long `scontrol`
# remembers. SLURM asks for addresses as if 127.0.0.1 were none, so every host has one of its own.
SLURM_CONF = """
ClusterName=made_up
SlurmctldHost=login(127.0.1.250)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/socket,cred_expire=5
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/%n.pid
SlurmctldLogFile=/run/slurm/slurmctld.log
SlurmdLogFile=/run/slurm/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
MinJobAge=3600
SlurmdTimeout=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10
PartitionName=low Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""
BOOT = """
out=/run/slurm/out
trap 'tail -n 5 $out /run/slurm/*.log' ERR
mount -t tmpfs -o mode=755 cluster /run
mkdir -p /run/munge /run/slurm/state {folders}
hostname login
ip link set lo up
ip address add 127.0.1.250/8 dev lo
echo '{hosts}' > /run/hosts && mount --bind /run/hosts /etc/hosts
echo '{conf}' > $SLURM_CONF
echo '{gres}' > /run/slurm/gres.conf
touch {gpus} # SLURM wants devices, and does not ask what they do
for gpu in {gpus}; do mount --bind /dev/null $gpu; done
head -c 128 /dev/urandom > /run/munge/key && chmod 600 /run/munge/key
munged --foreground --socket=/run/munge/socket --key-file=/run/munge/key \
  --seed-file=/run/munge/seed --pid-file=/run/munge/pid --log-file=/run/munge/log &>> $out &
timeout 60 bash -c 'until [ -S /run/munge/socket ]; do sleep 0.05; done'
slurmctld -D &>> $out &
for node in {names}; do
  {apart} bash -c "hostname $node; exec slurmd -D -N $node" &>> $out &
done
timeout 60 bash -c 'until [ "$(sinfo -hN -o %t 2>&1 | sort -u)" = idle ]; do sleep 0.1; done'
echo up
read -r || true # until the input closes
"""


def why_not() -> str:
    """Why there can be no such cluster here; empty if there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"no {', '.join(missing)} here"
    if os.geteuid():
        return "namespaces need root"
    done = subprocess.run([*APART, "--net", "true"], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def site(folder: Path, *, data: object, gpus: int) -> Path:
    """A copy of slurm/ in `folder`, edited as the cluster's reader would; returns `folder`."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    activate = folder / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    change(folder, PARTITION="debug", VENV="venv", DATA=data, GPUS_PER_NODE=gpus, CPUS_PER_GPU=1)
    return folder


def change(folder: Path, *, marked: bool = True, **values: object) -> None:
    """Edit folder/slurm/common.sh; the lines that a reader must edit are those with a mark."""
    file = folder / "slurm" / "common.sh"
    lines = file.read_text().splitlines()
    for name, value in values.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}=")]
        assert ("# CHANGE" in lines[at]) == marked
        lines[at] = f"{name}={value}  " + "# CHANGE" * marked
    file.write_text("\n".join(lines) + "\n")


class Slurm:
    """The cluster that `process`, an unshare, holds up."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def run(self, *words: object, folder: Path = ROOT, **environment: str) -> str:
        """What a command says on the login host; AssertionError: its status is not 0."""
        of = f"/proc/{self.process.pid}/ns"
        spaces = [f"--{name}={of}/{name}" for name in ("net", "uts")]
        spaces += [f"--mount={of}/mnt", f"--pid={of}/pid_for_children"]
        # Nothing of another launcher, and SLURM passes on what it is given.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        done = subprocess.run(
            ["nsenter", *spaces, "env", f"--chdir={folder}", *map(str, words)],
            env={**kept, "PATH": PATH, "SLURM_CONF": CONF, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def submit(self, folder: Path, *words: object) -> int:
        """Number of the job that folder/slurm/submit.sh hands in, for a machine without GPU."""
        own = {"VIDLEARN_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        text = self.run("slurm/submit.sh", *words, folder=folder, **own)
        return int(re.search(r"Submitted batch job (\d+)", text)[1])

    def job(self, number: int) -> dict[str, str]:
        """What SLURM knows of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def wait(self, number: int, seconds: float = 300) -> dict[str, str]:
        """What SLURM knows of a job at its end. AssertionError: it is not over in time."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] in RUNNING:
            assert time.monotonic() < deadline, f"job {number} after {seconds} s: {job}"
            time.sleep(0.2)
        return job


@contextmanager
def real_slurm(nodes: int = 2, gpus: int = 2) -> Iterator[Slurm]:
    """A cluster n1, n2, ... of nodes with so many made-up GPUs each, all idle."""
    names = [f"n{i}" for i in range(1, nodes + 1)]
    addresses = ["127.0.0.1 localhost", "127.0.1.250 login"]
    conf = SLURM_CONF
    for i, name in enumerate(names, 1):
        addresses.append(f"127.0.1.{i} {name}")
        conf += f"NodeName={name} NodeHostname={name} NodeAddr=127.0.1.{i} Port={6900 + i} "
        conf += f"CPUs=16 RealMemory=1000000 Gres=gpu:{gpus}\n"
    boot = BOOT.format(
        names=" ".join(names),
        folders=" ".join(f"/run/slurm/{name}" for name in names),
        # Each address in both forms: PyTorch looks up the second, and warns if it has no name.
        hosts="\n".join(f"{prefix}{line}" for line in addresses for prefix in ("", "::ffff:")),
        conf=conf,
        gres=f"NodeName=n[1-{nodes}] Name=gpu File=/run/gpu[0-{gpus - 1}]",
        gpus=" ".join(f"/run/gpu{i}" for i in range(gpus)),
        apart=" ".join(APART),
    )
    words = [*APART, "--net", "bash", "-euc", boot]
    environment = {"PATH": PATH, "SLURM_CONF": CONF}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, **quiet) as process:
        said = []
        while said[-1:] != ["up\n"]:
            said.append(process.stdout.readline())
            assert said[-1], f"no cluster: {''.join(said)}"
        yield Slurm(process)
