"""The README's tree is the disk, and its commands exist.

The tree is the README's ```text block. A line is a name, at least two spaces, and the entry's one
job; an entry of a folder is indented below it. Top-level entries and those of OPENED are listed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from notebooks import ROOT

OPENED = ("book", "vidlearn", "tools", "slurm")
README = (ROOT / "README.md").read_text("utf-8")


def tree() -> dict[str, str]:
    """Path -> job, from the README."""
    block = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert block, "README.md has no ```text block with the tree"
    jobs, folder = {}, ""
    for line in block[1].splitlines():
        found = re.fullmatch(r"( *)(\S+?)(/?)\s{2,}(.+)", line)
        assert found, f"not 'name  job': {line!r}"
        indent, name, is_folder, job = found.groups()
        jobs[f"{folder}/{name}" if indent else name] = job
        if is_folder and not indent:
            folder = name
    return jobs


def tracked() -> set[str]:
    """Top-level entries, and those of OPENED, that git knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    parts = [tuple(file.split("/")) for file in files if file]
    return {p[0] for p in parts} | {"/".join(p[:2]) for p in parts if p[0] in OPENED and p[1:]}


def shell_lines() -> list[list[str]]:
    """Words of every command in the README's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_tree_is_the_disk() -> None:
    told, there = set(tree()), tracked()
    assert {"missing": there - told, "gone": told - there} == {"missing": set(), "gone": set()}


def test_every_entry_has_one_job() -> None:
    jobs = list(tree().values())
    assert all(len(job.split()) >= 3 for job in jobs)
    assert len(set(jobs)) == len(jobs)


def test_every_make_command_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    named |= {words[1] for words in shell_lines() if words[0] == "make"}
    assert {"book", "test"} <= named <= targets


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    assert commands == ["make test", "make test-slurm", "make book"]
    told = {" ".join(words[:2]) for words in shell_lines()}
    assert set(commands) <= told


def vidlearn_commands() -> list[tuple[str, ...]]:
    """('train', 'laptop') for each vidlearn command in the README, also behind torchrun."""
    found = set()
    for words in shell_lines():
        if "vidlearn" in words:
            rest = words[words.index("vidlearn") + 1 :]
            found.add(tuple(word for word in rest[:2] if re.fullmatch("[a-z]+", word)))
    return sorted(found)


@pytest.mark.parametrize("words", vidlearn_commands(), ids=" ".join)
def test_every_vidlearn_command_exists(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "vidlearn", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_that_it_names_is_there() -> None:
    names = re.findall(r"`((?:slurm|book|tools|tests)/[\w./-]+)`", README)
    names += [word for words in shell_lines() for word in words[:1] if "/" in word]
    names = [name for name in names if not name.startswith(".venv")]
    assert [name for name in names if not (ROOT / name).exists()] == []
