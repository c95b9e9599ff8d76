#!/usr/bin/env bash
# Resolve every range in pyproject.toml once and write constraints.txt.
# An author runs this after changing a range; readers and CI only read the result.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
# No find-links here: a universal lock would otherwise pin the CPU build's local version.
env -u UV_FIND_LINKS -u PIP_FIND_LINKS "$uv" pip compile --quiet --universal --python-version 3.10 \
    --extra book --extra test --no-annotate --no-header pyproject.toml \
  | grep -viE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)(==|\[)' > constraints.tmp
{
  echo "# Exact versions that the tests passed with. Written by tools/lock.sh; do not edit."
  echo "# torch has no local tag here, so its CPU and its CUDA build both satisfy the line."
  echo "torch==2.13.0"
  cat constraints.tmp
} > constraints.txt
rm constraints.tmp
echo "constraints.txt: $(grep -c == constraints.txt) pins"
