"""Install pip into a virtual environment that was made without it.

    python3 -m venv --without-pip .venv
    .venv/bin/python tools/fetch_pip.py

Debian and Ubuntu leave ensurepip out of Python (it is in the package python3-venv). This asks PyPI
for pip's newest wheel, compares its sha256 with the one that PyPI states, and lets that pip, which
runs from inside its own wheel, install itself. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

PYPI = "https://pypi.org/pypi/pip/json"


def fetch(url: str) -> bytes:
    """The bytes behind an address."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def wheel(index: str = PYPI) -> tuple[str, bytes]:
    """File name and content of pip's newest wheel, checked."""
    try:
        files = json.loads(fetch(index))["urls"]
        entry = next(item for item in files if item["packagetype"] == "bdist_wheel")
        content = fetch(urljoin(index, entry["url"]))  # mirrors state relative addresses
    except (urllib.error.URLError, TimeoutError) as error:
        raise SystemExit(
            f"setup: this Python has no ensurepip, and {index} cannot be reached ({error}). "
            "Install the package python3-venv, or connect to the network"
        ) from error
    if hashlib.sha256(content).hexdigest() != entry["digests"]["sha256"]:
        raise SystemExit(f"setup: {entry['url']} does not have the sha256 that PyPI states")
    return entry["filename"], content


def main() -> None:
    """Install into the environment whose Python runs this."""
    name, content = wheel(*sys.argv[1:2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        pip = [sys.executable, str(path / "pip"), "install", "--quiet", "--no-index", str(path)]
        sys.exit(subprocess.run(pip, check=False).returncode)


if __name__ == "__main__":
    main()
