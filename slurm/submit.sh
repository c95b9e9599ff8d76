#!/usr/bin/env bash
# Submit a job of this folder:  slurm/submit.sh NAME [--sbatch-option=value ...] [arguments]
#   slurm/submit.sh check                                  does everything work on a node?
#   slurm/submit.sh one_gpu                                the recipe `gpu` on one GPU
#   slurm/submit.sh one_node gpu --batch 256               all GPUs of a node, another batch
#   slurm/submit.sh many_nodes --nodes=4 --time=24:00:00 vitl16
#   slurm/submit.sh probe runs/one_gpu-1234                what did it learn?
#   slurm/submit.sh notebook                               JupyterLab on a GPU
# Directives in a script cannot read variables, so what common.sh says goes on sbatch's command line.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

name=${1:-}
if [ ! -f "slurm/$name.sbatch" ]; then
  names=$(cd slurm && printf '%s ' *.sbatch)
  printf 'submit: no job "%s"; there are: %s\n' "$name" "${names//.sbatch/}" >&2
  exit 2
fi
shift
options=()
while [[ ${1:-} == --* ]]; do
  options+=("$1")
  shift
done

nodes=1 gpus=1
case $name in
  check | one_node) gpus=$GPUS_PER_NODE ;;
  many_nodes) gpus=$GPUS_PER_NODE nodes=$NODES ;;
esac
tasks=$gpus
if [ "$LAUNCH" = torchrun ]; then
  tasks=1
fi
mkdir -p logs # without the folder of --output a job fails and leaves no word
if [ "$name" = notebook ]; then
  umask 077 # the log holds the password
fi
exec sbatch --partition="$PARTITION" ${ACCOUNT:+"--account=$ACCOUNT"} \
  --nodes="$nodes" --ntasks-per-node="$tasks" --gpus-per-node="$gpus" \
  --cpus-per-task=$((CPUS_PER_GPU * gpus / tasks)) --mem-per-cpu="$MEM_PER_CPU" \
  ${SBATCH_OPTIONS[@]+"${SBATCH_OPTIONS[@]}"} ${options[@]+"${options[@]}"} \
  "slurm/$name.sbatch" "$@"
