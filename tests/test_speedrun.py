"""The speedrun's table says what its record says, and only a whole tree can make a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import speedrun as page  # noqa: E402


def tool():
    """tools/speedrun.py, whose name the page's module has taken."""
    names = {"__name__": "tool"}
    exec((ROOT / "tools" / "speedrun.py").read_text("utf-8"), names)
    return names


def line(cpu_s, test):
    about = {"date": "2026-11-27", "commit": "abc", "by": "X", "command": "laptop", "machine": "M"}
    runs = [{"seed": i, "cpu_s": cpu_s + i, "test": test + i} for i in range(3)]
    return {**about, "runs": runs}


def test_a_record_reaches_the_bar_in_fewer_seconds_than_all_before():
    lines = [line(100, 60), line(300, 75), line(400, 80), line(200, 69), line(100, 68.9)]
    verdicts = [row[-1] for row in page.rows(lines)]
    assert verdicts == ["below 70 %", "record", "reached", "record", "below 70 %"]
    first = page.rows(lines)[1]
    assert first[3:5] == ["301 (300 to 302)", "76.0 (75.0 to 77.0)"]


def test_the_record_has_three_seeds_a_line_and_commits():
    lines = json.loads((ROOT / "book" / page.RECORD).read_text("utf-8"))
    assert len(page.rows(lines)) == len(lines)
    for found in lines:
        assert [run["seed"] for run in found["runs"]] == [0, 1, 2] and len(found["commit"]) >= 7


def test_a_line_is_added_with_its_commit_and_refused_for_a_tree_with_changes(tmp_path, monkeypatch):
    names = tool()
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    fake = {"cpu_s": 12.34, "val": 80.0, "test": 71.0, "far": 50.0, "cpu": "M"}
    names["attempt"] = lambda words: [{**fake, "seed": i} for i in range(3)]
    names["RECORD"] = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["speedrun", "laptop", "--steps", "9", "--by", "me"])
    names["main"]()
    (added,) = json.loads(names["RECORD"].read_text())
    assert (added["by"], added["command"], added["machine"]) == ("me", "laptop --steps 9", "M")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert head.startswith(added["commit"]) and added["runs"][0]["cpu_s"] == 12.3
    with pytest.raises(SystemExit, match=r"commit first:\n\?\? record.json"):
        names["main"]()


def test_a_command_keeps_its_two_dashes():
    made = page.table(("a",), page.rows([line(100, 60)]))
    assert [code.astext() for code in made.findall(page.nodes.literal)] == ["laptop"]
