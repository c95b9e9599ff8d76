# shellcheck shell=bash
# Read by every job script. Gives:  "${launch[@]}" COMMAND   one process for each GPU
#                                   train RECIPE [options]   a run that stops, requeues, goes on
# shellcheck source=slurm/common.sh
source slurm/common.sh
load_modules
# shellcheck disable=SC1091
source "$VENV/bin/activate" || return
set -uo pipefail # only now: modules and activate scripts use variables that are not set

say() { printf '[%s] %s: %s\n' "$(date +%T)" "$SLURM_JOB_NAME" "$*"; }

restart=${SLURM_RESTART_COUNT:-0} # SLURM leaves it unset in the first run
export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since 22.05 srun does not take it from sbatch
# Without --kill-on-bad-exit the ranks that are left keep their GPUs until the time limit.
launch=(srun --kill-on-bad-exit=1)
case $LAUNCH in
  srun) ;;
  torchrun)
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # A store that agents and ranks share keeps the addresses of ranks that are dead.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    launch+=(torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE"
      --max-restarts="$TORCHRUN_RESTARTS" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-$restart"
      --rdzv-endpoint="$host:$((10000 + SLURM_JOB_ID % 20000))" --no-python)
    ;;
  *)
    say "LAUNCH is '$LAUNCH' in slurm/common.sh; it can be srun or torchrun"
    return 1
    ;;
esac

# SLURM warns with USR1 before the time limit (--signal=B:USR1@180) and with TERM before it
# preempts. The warning becomes a file: a signal would kill ranks that still import torch,
# loader workers, and torchrun. All ranks see the file at the same step, save, and write
# another one that says so. An exit status cannot say it: the first rank to leave with one
# gets the others killed.
train() {
  local recipe=$1 mark=logs/$SLURM_JOB_NAME-$SLURM_JOB_ID-$restart pid status
  shift
  export VIDLEARN_STOP_FILE=$mark.stop VIDLEARN_STOPPED_FILE=$mark.stopped
  rm -f "$VIDLEARN_STOP_FILE" "$VIDLEARN_STOPPED_FILE"
  trap 'say "asked to stop"; touch "$VIDLEARN_STOP_FILE"' USR1 TERM
  say "start $restart of $recipe on $SLURM_JOB_NODELIST"
  "${launch[@]}" vidlearn train "$recipe" --data "$DATA" \
    --out "$RUNS/$SLURM_JOB_NAME-$SLURM_JOB_ID" "$@" & # a trap waits for a foreground command
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done # a signal ends `wait`, not the run
  wait "$pid"
  status=$?
  if [ ! -e "$VIDLEARN_STOPPED_FILE" ]; then
    say "ended with status $status"
    exit "$status"
  elif [[ $(scontrol show job "$SLURM_JOB_ID") != *JobState=RUNNING* ]]; then
    say "stopped and saved; cancelled, so not back into the queue" # scancel is a TERM as well
    exit "$status"
  elif [ "$restart" -ge "$MAX_RESTARTS" ]; then
    say "stopped and saved, but it was restarted $restart times (MAX_RESTARTS)"
    exit 1
  fi
  say "stopped and saved; back into the queue"
  trap - USR1 TERM
  scontrol requeue "$SLURM_JOB_ID" || exit
  sleep 600 # SLURM ends this script; if it ended by itself, the job would count as done
}
