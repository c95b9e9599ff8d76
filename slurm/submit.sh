#!/usr/bin/env bash
# Submit a job of this folder:  slurm/submit.sh NAME [--sbatch-option=value ...] [RECIPE] [options]
#   slurm/submit.sh check --nodes=2                        does everything work, do all ranks meet?
#   slurm/submit.sh one_gpu                                the recipe `gpu` on one GPU
#   slurm/submit.sh one_node gpu --batch 256               all GPUs of a node, another batch
#   slurm/submit.sh many_nodes --nodes=16 vitl16           the full run, on 16 nodes of 4 GPUs
#   slurm/submit.sh probe runs/one_gpu-1234                what did it learn?
#   slurm/submit.sh notebook                               JupyterLab on a GPU
# Options of sbatch stand before the recipe, with "="; options of the training stand after it.
# vitl16 takes 3,072 clips a step, and they must fit: about 0.8 GB a clip, by estimate, so 48 to 64
# GPUs of 80 GB. With fewer, lower --batch, with --lr and --lr-start in proportion: another run.
# A job that SLURM puts back into the queue goes on by itself. After a job that failed, name its
# folder, since a new job has a new one:
#   slurm/submit.sh many_nodes --nodes=16 vitl16 --out runs/many_nodes-OLDID
# A rank that is dead or hung ends the job: the log names it, stack-rankN.txt in the run's folder says
# where it was. book/reference/cluster.md goes through common.sh line by line.
# Directives in a script cannot read variables, so what common.sh says goes on sbatch's command line.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=slurm/common.sh
source slurm/common.sh

refuse() {
  printf 'submit: %s\n' "$*" >&2
  exit 2
}
help() {
  sed -n '2,/^set /s/^# //p' slurm/submit.sh
  exit
}

name=${1:-}
if [[ $name == -h || $name == --help ]]; then
  help
elif [ ! -f "slurm/$name.sbatch" ]; then
  names=$(cd slurm && printf '%s ' *.sbatch)
  refuse "no job \"$name\"; there are: ${names//.sbatch/}"
fi
shift
options=()
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help) help ;;
    --*=*) options+=("$1") ;;
    *) refuse "\"$1\" is not clear: write --nodes=4; options of training come after the recipe" ;;
  esac
  shift
done

data=
case $name in
  one_gpu | one_node | many_nodes) [[ " $*" == *" --data"* ]] || data=$DATA ;;
  probe) data=${2:-$DATA} ;;
esac
if [ -n "$data" ] && [ ! -e "$data" ]; then
  refuse "no videos at \"$data\": set DATA in slurm/common.sh, or make them: vidlearn data synth $data"
fi

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
