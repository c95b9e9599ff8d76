"""One set of versions, told once: ranges, pins, conda file, citation, and set-up from nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import vidlearn
from notebooks import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64"))


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, with all extras (tomllib is newer than 3.10)."""
    lists = re.findall(r"^(\w+) = \[(.*?)\]$", PYPROJECT, re.DOTALL | re.MULTILINE)
    wanted = ("dependencies", "book", "test")
    blocks = [block for name, block in lists if name in wanted]
    lines = [re.sub(r"^\s*#.*$", "", block, flags=re.MULTILINE) for block in blocks]
    return [Requirement(text) for block in lines for text in re.findall(r'"([^"]+)"', block)]


def machine(python: str, system: str, processor: str) -> dict[str, str]:
    """The markers of a machine."""
    return {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": processor,
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "processor"), PLATFORMS)
def test_every_range_has_a_pin_inside_it(python: str, system: str, processor: str) -> None:
    here = machine(python, system, processor)
    pins: dict[str, list[str]] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(here):
            pins.setdefault(pin.name.lower(), []).append(str(pin.specifier).removeprefix("=="))
    wanted = [r for r in requirements() if r.marker is None or r.marker.evaluate(here)]
    assert len(wanted) > 20
    for requirement in wanted:
        found = pins.get(requirement.name.lower(), [])
        assert len(found) == 1, (requirement.name, found)
        assert requirement.specifier.contains(found[0]), (str(requirement), found)


@pytest.mark.parametrize(("system", "processor"), PLATFORMS)
def test_one_decord_at_most(system: str, processor: str) -> None:
    here = machine("3.11", system, processor)
    names = {"decord", "eva-decord", "decord2"}
    chosen = [r for r in requirements() if r.name in names and r.marker.evaluate(here)]
    assert len(chosen) == 1


def test_what_is_installed_is_what_is_pinned() -> None:
    wrong = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate():
            installed = version(pin.name).split("+")[0]  # torch 2.13.0+cpu satisfies 2.13.0
            if not pin.specifier.contains(installed):
                wrong[pin.name] = (installed, str(pin.specifier))
    assert wrong == {}


def test_jupyter_book_still_reads_its_config() -> None:
    assert version("jupyter-book").startswith("1.")


def test_conda_file_installs_the_same() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python = next(d for d in conda["dependencies"] if str(d).startswith("python="))
    assert SpecifierSet(re.search(r'requires-python = "([^"]+)"', PYPROJECT)[1]).contains(
        python.removeprefix("python=")
    )
    lines = next(d for d in conda["dependencies"] if isinstance(d, dict))["pip"]
    assert lines == ["-c constraints.txt", "-e .[book,test]"]
    assert "[book,test]" in (ROOT / "tools" / "setup.sh").read_text("utf-8")


def test_one_version_everywhere() -> None:
    told = re.search(r'^version = "([^"]+)"', PYPROJECT, re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert told == vidlearn.__version__ == citation["version"]


def test_licences_are_whole() -> None:
    code = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in code and "END OF TERMS AND CONDITIONS" in code
    text = (ROOT / "LICENSE-TEXT").read_text("utf-8")
    assert "https://creativecommons.org/licenses/by/4.0/" in text


# ---------------------------------------------------------------- set-up from nothing


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The three files that set-up depends on, and no .venv."""
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup.sh", "tools/fetch_pip.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(checkout: Path, path: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", "tools/setup.sh"]
    environment = {"PATH": path}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def test_setup_says_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("dirname", "cat", "cksum", "rm"):
        (empty / tool).symlink_to(shutil.which(tool))
    done = setup(checkout, str(empty))
    assert done.returncode == 1
    assert "no Python 3.10 to 3.13 found" in done.stderr


def test_setup_does_nothing_when_it_is_done(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to("/bin/false")
    stamp = "cat pyproject.toml constraints.txt tools/setup.sh | cksum > .venv/.setup-stamp"
    subprocess.run(["sh", "-c", stamp], cwd=checkout, check=True)
    done = setup(checkout, "/usr/bin:/bin")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(checkout / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert setup(checkout, "/nowhere").returncode != 0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A small PyPI on this machine with one wheel called pip: (address of its JSON, its JSON)."""
    import ensurepip

    folder = tmp_path / "index"
    folder.mkdir()
    bundled = sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    if not bundled:
        pytest.skip("this Python's ensurepip brings no wheel of pip")
    wheel = Path(shutil.copy(bundled[-1], folder))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = {"packagetype": "bdist_wheel", "filename": wheel.name, "url": wheel.name}
    page = folder / "json"
    page.write_text(json.dumps({"urls": [{**entry, "digests": {"sha256": digest}}]}))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/json", page
    server.shutdown()


def fetch_pip(python: Path, address: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(ROOT / "tools" / "fetch_pip.py"), address]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_pip_comes_without_ensurepip(tmp_path: Path, index: tuple[str, Path]) -> None:
    """What Debian's python3 without python3-venv needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    python = tmp_path / "v" / "bin" / "python"
    ask = [str(python), "-m", "pip", "--version"]
    assert subprocess.run(ask, capture_output=True, check=False).returncode != 0
    done = fetch_pip(python, index[0])
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "v") in subprocess.check_output(ask, text=True)


def test_a_wheel_with_another_sum_is_refused(index: tuple[str, Path]) -> None:
    address, page = index
    told = json.loads(page.read_text())
    told["urls"][0]["digests"]["sha256"] = "0" * 64
    page.write_text(json.dumps(told))
    done = fetch_pip(Path(sys.executable), address)
    assert done.returncode == 1
    assert "does not have the sha256 that PyPI states" in done.stderr


def test_without_a_network_the_remedy_is_told() -> None:
    done = fetch_pip(Path(sys.executable), "http://127.0.0.1:9/json")
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
