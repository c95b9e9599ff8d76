"""The built pages in a browser: offline, without errors, on a desk and on a phone, light and dark.

The book is built here from the stored notebooks, with warnings as errors, and opened from its
files, as a reader does after `make book`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import make_book
from notebooks import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


def pages() -> list[str]:
    """Every page of the table of contents and the one that Sphinx adds, without suffix."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    told = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [toc["root"], *told, "search"]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, built with warnings as errors."""
    out = tmp_path_factory.mktemp("book")
    done = subprocess.run(make_book.pages_command(out), cwd=ROOT, capture_output=True, text=True)
    warnings = [line for line in done.stderr.splitlines() if re.search("WARNING|ERROR", line)]
    assert done.returncode == 0, "\n".join(warnings) or done.stderr[-2000:]
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of the machine's own."""
    found = os.environ.get("VIDLEARN_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), ""
    )
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium, or set VIDLEARN_BROWSER")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_pages(browser: Any, width: int, mode: str) -> tuple[Any, list[str]]:
    """A tab of this width and colour scheme, and the list in which its complaints arrive."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
    tab, complaints = context.new_page(), []
    tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))

    def watch(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(f"asked another host: {request.url[:200]}")

    tab.on("request", watch)
    return tab, complaints


@pytest.mark.slow
@pytest.mark.parametrize(("width", "mode"), VIEWS)
def test_pages_need_no_network_and_fit(browser: Any, html: Path, width: int, mode: str) -> None:
    tab, complaints = open_pages(browser, width, mode)
    wrong = {}
    for page in pages():
        tab.goto((html / f"{page}.html").as_uri(), wait_until="load")
        if tab.query_selector(".math"):
            tab.wait_for_selector("mjx-container", timeout=10_000)
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            complaints.append(f"{wide} pixels wide at {width}")
        theme = tab.evaluate("document.documentElement.dataset.theme")
        if theme != mode:
            complaints.append(f"theme {theme}")
        alts = tab.evaluate("[...document.querySelectorAll('main img')].map(i => i.alt)")
        complaints += [f"an image without words: {alt!r}" for alt in alts if len(alt) < 15]
        if complaints:
            wrong[page] = complaints.copy()
            complaints.clear()
    assert wrong == {}


def test_no_page_names_another_host_for_what_it_loads(html: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe|video|source)\b[^>]*?\bsrc=\"(?:https?:)?//[^\"]*")
    links = re.compile(r"<link\b(?=[^>]*rel=\"(?:stylesheet|preload|preconnect)\")[^>]*//[^\"]*")
    for page in html.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not loads.findall(text) + links.findall(text), page.name


@pytest.mark.parametrize("width", [1280, 390])
def test_sliders_move_by_keyboard(browser: Any, html: Path, width: int) -> None:
    tab, complaints = open_pages(browser, width, "dark")
    moved = 0
    for page in pages():
        if 'type="range"' not in (html / f"{page}.html").read_text("utf-8"):
            continue
        tab.goto((html / f"{page}.html").as_uri(), wait_until="domcontentloaded")
        for slider in tab.query_selector_all("main input[type=range]"):
            if not slider.is_visible():  # inside a folded solution
                continue
            figure = slider.evaluate_handle("e => e.closest('figure')").as_element()
            seen = [figure.query_selector("img").get_attribute("src")]
            slider.focus()
            tab.keyboard.press("End")
            tab.keyboard.press("ArrowLeft")
            seen.append(figure.query_selector("img").get_attribute("src"))
            said = figure.query_selector("output").inner_text()
            assert int(slider.input_value()) == int(slider.get_attribute("max")) - 1
            assert slider.get_attribute("aria-valuetext") == said
            tab.keyboard.press("Home")
            for _ in range(int(slider.get_attribute("max"))):  # some states may look alike
                tab.keyboard.press("ArrowRight")
                seen.append(figure.query_selector("img").get_attribute("src"))
            assert len({*seen}) >= 2
            assert figure.bounding_box()["width"] <= width
            moved += 1
    assert moved >= 3, "the book has at least three sliders"
    assert complaints == []


def small_book(folder: Path, text: str, facts: object) -> subprocess.CompletedProcess[str]:
    """Build one page with the book's own settings."""
    book = folder / "book"
    shutil.copytree(ROOT / "book" / "_ext", book / "_ext")
    (book / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    (book / "page.md").write_text(f"# Page\n\n{text}\n")
    (book / "facts.json").write_text(json.dumps(facts))
    (book / "references.bib").touch()
    shutil.copy(ROOT / "_config.yml", folder)
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        "book",
        "-W",
        "--keep-going",
    ]
    command += ["--config", "_config.yml", "--path-output", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


FACT = {
    "value": 41.2,
    "unit": "steps/s",
    "made_by": "vidlearn bench step gpu",
    "machine": "1 H200",
    "repeats": 5,
    "spread": "40.1 to 42.0",
    "date": "2026-11-22",
}


def test_a_fact_prints_its_value_and_says_how_it_was_made(tmp_path: Path) -> None:
    text = "It makes {fact}`ch02.rate`.\n\n```{facts}\n```\n\n```{this-run}\n```"
    built = small_book(tmp_path, text, {"ch02": {"rate": FACT}})
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "_build" / "html" / "page.html").read_text("utf-8")
    origin = "vidlearn bench step gpu; 1 H200; 5 runs, spread 40.1 to 42.0; 2026-11-22"
    assert f'<abbr title="{origin}">41.2\u00a0steps/s</abbr>' in page
    assert f"<p>{origin}</p>" in page
    assert "No run is here yet" in page


PROBED = {
    "chance": {"val": 8.3, "test": 8.3},
    "rows": {
        "trained encoder": {
            "knn": {"val": {"percent": 34.1}, "test": {"percent": 25.2}},
            "linear, time kept": {"val": {"percent": 62.3}, "test": {"percent": 50.4}},
        },
        "random encoder": {
            "knn": {"val": {"percent": 12.1}, "test": {"percent": 14.0}},
            "linear, time kept": {"val": {"percent": 52.2}, "test": {"percent": 37.9}},
        },
        "pixels": {"knn": {"val": {"percent": 9.4}, "test": {"percent": 10.4}}},
    },
}


def test_the_page_shows_the_readers_own_run(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "runs" / "book"
    run.mkdir(parents=True)
    monkeypatch.setattr(make_book, "RUN", run)
    monkeypatch.setattr(make_book, "PROBE", run / "probe.json")
    (run / "probe.json").write_text(json.dumps(PROBED))
    lines = [{"step": n, "loss": 1 / n, "spread": 0.5, "effective_rank": n} for n in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = make_book.summary({"train": 181.0, "probe": 60.0})
    assert "181 s of training, 60 s of probing" in result["summary"]
    told = (
        "(linear, time kept), trained against random encoder: val 62 against 52; test 50 against 38"
    )
    assert told in result["summary"]
    assert result["tables"][0]["rows"][-1] == ["30", "0.0333", "0.500", "30.0"]
    assert result["tables"][2]["rows"][2] == ["pixels", "10", "-"]
    (run / "result.json").write_text(json.dumps(result))
    assert small_book(tmp_path, "```{this-run}\n```", {}).returncode == 0
    page = (tmp_path / "_build" / "html" / "page.html").read_text("utf-8")
    assert "181 s of training" in page
    assert "No run is here yet" not in page
    assert page.count("<table") == 3


@pytest.mark.parametrize(
    ("key", "facts", "said"),
    [
        ("ch02.rat", {"ch02": {"rate": FACT}}, "facts.json has no 'ch02.rat'"),
        ("ch02.rate", {"ch02": {"rate": {"value": 1}}}, "ch02.rate lacks unit, made_by"),
    ],
)
def test_a_fact_without_source_fails_the_build(tmp_path: Path, key: str, facts, said: str) -> None:
    built = small_book(tmp_path, f"It makes {{fact}}`{key}`.", facts)
    assert built.returncode != 0
    assert said in built.stderr
