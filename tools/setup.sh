#!/usr/bin/env bash
# Make .venv with the pinned packages, or do nothing if it is already right.
# Needs only Python 3.10 to 3.13 (not even ensurepip). VIDLEARN_PYTHON chooses the interpreter,
# UV_TORCH_BACKEND the build of torch (cpu, cu128 ...) for another machine than this one.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

checksum() { cat pyproject.toml constraints.txt tools/setup.sh | cksum; }
stamp=.venv/.setup-stamp
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(checksum)" ]; then
  exit 0
fi

python=${VIDLEARN_PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$candidate" >/dev/null 2>&1 \
      && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      python=$candidate; break
    fi
  done
fi
[ -n "$python" ] || fail "no Python 3.10 to 3.13 found. Install one, or set VIDLEARN_PYTHON=/path/to/python"

start=$SECONDS
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv  # absent, half made, or of a Python that is gone
  printf 'setup: making .venv with %s\n' "$("$python" --version)"
  "$python" -c 'import venv' 2>/dev/null || fail "$python has no venv module; install a whole Python"
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv .venv
  else
    # Debian and Ubuntu split ensurepip out of Python; pip can install itself from its wheel.
    "$python" -m venv --without-pip .venv
    .venv/bin/python tools/fetch_pip.py
  fi
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"

# uv does not read pip's settings, so a folder of wheels that pip is told about is handed on.
find_links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
backend=()
if [ -n "$find_links" ] && compgen -G "${find_links%/}/torch-*.whl" >/dev/null; then
  export UV_FIND_LINKS=$find_links
  printf 'setup: torch from %s\n' "$find_links"
else
  # Looks at the machine's driver: the CUDA build with a GPU, the CPU build without.
  backend=("--torch-backend=${UV_TORCH_BACKEND:-auto}")
fi
printf 'setup: installing the pinned packages (1 to 3 GB with everything; several GB more with CUDA)\n'
.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --constraints constraints.txt \
  ${backend[@]+"${backend[@]}"} --editable ".[book,test]"
checksum > "$stamp"
printf 'setup: done in %d s\n' $((SECONDS - start))
