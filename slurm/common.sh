# shellcheck shell=bash disable=SC2034
# The only file that you edit: how your cluster is called and what it has.
# Lines marked CHANGE must fit your cluster; the others may stay as they are.

PARTITION=gpu              # CHANGE: where to queue; `sinfo -s` lists the partitions
ACCOUNT=                   # CHANGE: who pays, if your cluster asks; ask its support
VENV=.venv                 # CHANGE: the environment with vidlearn, on a disk that all nodes see
DATA=data/synth            # CHANGE: folder of videos or manifest, on a disk that all nodes see
GPUS_PER_NODE=4            # CHANGE: `sinfo -o "%P %G"` lists them
CPUS_PER_GPU=10            # CHANGE: cores of a node / GPUs of a node; more than the recipe's workers
#                            (`gpu` has 8; `vitl16` 12: then 14)
load_modules() {
  :                        # CHANGE: for example `module load python/3.11`; ":" loads nothing
}

NODES=2                    # for many_nodes, where --nodes=... says nothing else
MEM_PER_CPU=4G             # memory of a job = this x cores
RUNS=runs                  # a run goes to RUNS/NAME-JOBID
LAUNCH=srun                # srun: SLURM starts a process for each GPU; torchrun: one agent a node does
TORCHRUN_RESTARTS=0        # how often torchrun starts all ranks anew after one has died
MAX_RESTARTS=100           # how often a run may put itself back into the queue
SBATCH_OPTIONS=()          # anything else that your cluster wants, such as (--qos=normal)
