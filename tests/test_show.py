"""Figures tell the truth in words, come out equal twice, and leave no global state behind."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib._pylab_helpers
import nbformat
import numpy as np
import pytest
import videos
from nbclient import NotebookClient
from PIL import Image

import show
from vidlearn.storage import FrameTable, frame_table

CLIP = np.arange(6 * 32 * 48 * 3, dtype=np.uint32).reshape(6, 32, 48, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameTable:
    """The table of a real file, with sizes, types and keys that the test knows."""
    path = videos.write(tmp_path_factory.mktemp("video") / "clip.mp4", 6)
    sizes = np.array([900, 50, 40, 300, 60, 40])
    keys = np.arange(6) == 0
    return replace(frame_table(path), bytes=sizes, is_key=keys, types=tuple("IBBPBB"))


def pixels(picture: show.Picture) -> np.ndarray:
    head, data = picture.image.split(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


DRAWINGS = {
    "strip": (
        lambda: show.strip(CLIP, ["a", "b", "c", "d", "e", "f"], title="Six"),
        "Six: 6 frames of 48 x 32 pixels, in order: a, b, c, d, e, f.",
    ),
    "bars": (
        lambda: show.bars({"decode": 8.13, "model": 2000}, unit="ms", title="Step"),
        "Step: bars in ms, decode 8.13, model 2,000.",
    ),
    "bars with errors": (
        lambda: show.bars({"a": 1, "b": 2}, unit="s", errors={"a": 0.25}, log=True),
        "bars in s, a 1 ± 0.25, b 2 ± 0.",
    ),
    "lines": (
        lambda: show.lines(
            {"mp4": ([1, 2, 4], [10, 19, 33], [1, 1, 2]), "memory": (range(40), np.arange(40) % 7)},
            x_label="workers",
            y_label="clips/s",
        ),
        "clips/s against workers. mp4 10 at 1, 19 at 2, 33 at 4; memory 0 at 0, 0 at 0, 6 at 6, "
        "4 at 39.",
    ),
    "mask": (
        lambda: show.mask_grid((2, 2, 3), [0, 1, 6], [[2, 3], [7]]),
        "2 time steps of 2 x 3 tokens. Context (blue) holds [2, 1], targets (orange) [2, 1], by "
        "time step.",
    ),
    "timeline": (
        lambda: show.timeline({"worker": [(0, 1), (1.5, 2)], "device": [(1, 1.5)]}, title="Load"),
        "Load: timeline of 2 seconds, worker busy 75 % in 2 pieces, device busy 25 % in 1 pieces.",
    ),
    "confusion": (
        lambda: show.confusion([[8, 2, 0], [0, 7, 3], [1, 0, 9]], ["left", "right", "up"]),
        "24 of 30 right; most often wrong: right taken for up, 3 times.",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_alt_text_is_made_from_the_data(name: str) -> None:
    draw, said = DRAWINGS[name]
    assert draw().alt == said


def test_gop_chart_tells_types_apart_where_they_are_known(table: FrameTable) -> None:
    where = "Frames 0 to 5 of clip.mp4, mean size by type: 1 I frames of 900 bytes, "
    assert show.gop_chart(table).alt == where + "1 P frames of 300 bytes, 4 B frames of 48 bytes."
    unknown = show.gop_chart(replace(table, types=()), last=3).alt
    assert unknown.endswith("1 I frames of 900 bytes, 2 P or B frames of 45 bytes.")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_small_equal_twice_and_not_empty(name: str) -> None:
    draw, _ = DRAWINGS[name]
    first = draw()
    assert first == draw()
    assert len(first.html()) < 50_000
    assert pixels(first).std() > 10
    assert pixels(first).shape[1] == 728


def test_pyplot_knows_of_no_figure() -> None:
    for draw, _ in DRAWINGS.values():
        draw()
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_a_bar_twice_as_high_has_twice_the_pixels() -> None:
    image = pixels(show.bars({"a": 1.0, "b": 2.0}, unit="x"))
    blue = (abs(image.astype(int) - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum(axis=1)
    lengths = sorted(set(blue[blue > 50]))
    assert lengths[-1] / lengths[0] == pytest.approx(2.0, rel=0.02)


def test_mask_grid_colours_what_it_counts() -> None:
    image = pixels(show.mask_grid((1, 4, 4), [0], [[1, 2, 3]], title="t")).astype(int)
    blue = (abs(image - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum()
    orange = (abs(image - [0xE6, 0x9F, 0x00]).sum(axis=2) < 30).sum()
    assert orange / blue == pytest.approx(3.0, rel=0.05)


def test_your_own_figure_keeps_your_words() -> None:
    figure, axis = show.axes(height_in=1.5)
    axis.plot([0, 1], [1, 0])
    assert show.picture(figure, "falls from 1 to 0", title="Line").alt == "Line: falls from 1 to 0"
    assert show.axes(2, 3)[1].shape == (2, 3)


def test_alt_text_cannot_break_the_page() -> None:
    drawn = show.bars({'"><script>alert(1)</script>': 1.0}, unit="x")
    assert "<script>" not in drawn.html()


class _Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_slider_page_face_holds_every_state() -> None:
    page = show.slider(list(CLIP), [f"{n} of 6 </script>" for n in range(6)], name="frame").html()
    tags = dict(_Reader(page).tags)
    assert tags["input"]["max"] == "5"
    assert tags["input"]["aria-valuetext"] == "0 of 6 </script>"
    assert tags["img"]["alt"].startswith("slider over 6 states of frame, 0 of 6")
    assert page.count("</script>") == 1, "a caption must not end the script"
    states = json.loads(re.search(r"const s=(\[\[.*?\]\]),f=", page)[1])
    assert [len(state) for state in states] == [3] * 6
    assert states[4][1:] == ["frame 4 of 6 </script>", "4 of 6 </script>"]
    assert np.array_equal(
        pixels(show.Picture(states[4][0], "")), pixels(show.slider([CLIP[4]], ["x"]))
    )


def test_slider_kernel_face_shows_the_chosen_state() -> None:
    slider = show.slider(
        [show.bars({"a": n}, unit="x") for n in (1, 2, 3)], ["one", "two", "three"]
    )
    shown, chooser = slider.widget().children
    assert (chooser.min, chooser.max) == (0, 2)
    assert slider.states[0].image in shown.value
    chooser.value = 2
    assert slider.states[2].image in shown.value
    assert shown.value.endswith("three")


def test_slider_needs_a_caption_for_each_state() -> None:
    with pytest.raises(ValueError, match="zip"):
        show.slider(list(CLIP), ["one"])


def test_one_call_has_a_live_face_with_a_kernel_and_only_then() -> None:
    code = "import show\nshow.slider([show.bars({'a': 1.0}, unit='x')] * 2, ['one', 'two'])"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    with_kernel = set(notebook.cells[0].outputs[0].data)
    alone = set(show.slider([show.bars({"a": 1.0}, unit="x")], ["one"])._repr_mimebundle_())
    assert alone == {"text/html", "text/plain"}
    assert with_kernel == alone | {"application/vnd.jupyter.widget-view+json"}
