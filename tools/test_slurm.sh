#!/usr/bin/env bash
# Submit the scripts of slurm/ to a real SLURM of made-up nodes on this machine: make test-slurm.
# Debian's packages are installed if they are not there; where that cannot be, it says so and skips.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin # where the daemons are; Debian tells only root

skip() {
  echo "make test-slurm: skipped, $*"
  exit
}

as_root=()
if [ "$(id -u)" != 0 ]; then
  as_root=(sudo -n)
  "${as_root[@]}" true 2>/dev/null || skip "it needs root, or sudo without a password"
fi
if ! { command -v slurmctld && command -v slurmd && command -v munged && command -v ip; } >/dev/null
then
  command -v apt-get >/dev/null || skip "no SLURM here, and no apt-get to install Debian's"
  { "${as_root[@]}" apt-get update -qq \
    && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends slurm-wlm slurmd slurmctld munge iproute2; } >/dev/null 2>&1 \
    || skip "apt-get cannot install slurm-wlm"
fi
# Nothing that root writes stays in the checkout.
exec "${as_root[@]}" env VIDLEARN_SLURM=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 \
  .venv/bin/python -m pytest -p no:cacheprovider tests/test_real_slurm.py
