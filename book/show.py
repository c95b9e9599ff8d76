"""Draw what the other modules hand out, and say in words what the drawing shows.

Input: arrays, tables and mappings. Output: a Picture, shown when it is the value of a cell. Its alt
text is written from the data, so a screen reader speaks what a test compares; pixels are not.
Traded: still images and one prerendered slider, no plotting library in the page: it needs no other
host and no kernel, at 5 to 60 kB a figure; zooming is lost. Used in all chapters. Colours: Okabe
and Ito, for colour-blind readers too (https://jfly.uni-koeln.de/color/), on a light card.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vidlearn.storage import FrameTable

BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
WIDTH_IN = 5.6
Numbers = Mapping[str, float]
CARD = "margin:0 0 1em;padding:8px;background:#fff;color:#222;border-radius:6px;max-width:100%"
# Replaces image, alt text and caption by those of the chosen state. It finds its own figure, so
# that it needs no id, and the same slider may stand on a page twice.
SCRIPT = (
    "(()=>{const s=STATES,f=document.currentScript.parentElement,i=f.querySelector('img'),"
    "r=f.querySelector('input'),o=f.querySelector('output');r.oninput=()=>{const c=s[r.value];"
    "i.src=c[0];i.alt=c[1];o.textContent=c[2];r.setAttribute('aria-valuetext',c[2])}})()"
)


@dataclass(frozen=True)
class Picture:
    """One image as a data URI and the text that says what it shows."""

    image: str
    alt: str

    def html(self, below: str = "") -> str:
        """A figure on a light card; the image never grows wider than its column."""
        style = "max-width:100%;min-width:min(100%,256px);height:auto"
        image = f'<img alt="{html.escape(self.alt)}" src="{self.image}" style="{style}">'
        return f'<figure style="{CARD}">{image}{below}</figure>'

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {"text/html": self.html(), "text/plain": self.alt}


@dataclass(frozen=True)
class Slider(Picture):
    """States behind one slider: `image` is that of the first state, `alt` tells of them all."""

    states: tuple[Picture, ...]
    captions: tuple[str, ...]
    name: str

    def html(self, below: str = "") -> str:
        """The page's face: all states inside, moved by mouse, finger or arrow keys."""
        rows = [[state.image, state.alt, text] for state, text in zip(self.states, self.captions)]
        script = SCRIPT.replace("STATES", json.dumps(rows).replace("<", "\\u003c"))
        first = html.escape(self.captions[0])
        return super().html(
            f'<label style="display:block">{html.escape(self.name)}: <output>{first}</output>'
            f'<input type="range" min="0" max="{len(rows) - 1}" value="0" aria-valuetext="{first}" '
            f'style="display:block;width:100%"></label><script>{script}</script>{below}'
        )

    def widget(self) -> Any:
        """The kernel's face: the same states behind an ipywidgets.IntSlider."""
        import ipywidgets

        def face(at: int) -> str:
            return f"{self.states[at].html()}{html.escape(self.captions[at])}"

        shown = ipywidgets.HTML(face(0))
        chooser = ipywidgets.IntSlider(max=len(self.states) - 1, description=self.name)
        chooser.observe(lambda change: setattr(shown, "value", face(change["new"])), "value")
        return ipywidgets.VBox([shown, chooser])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        from IPython import get_ipython

        # JupyterLab prefers the widget, which needs a kernel; a page shows the HTML.
        live = self.widget()._repr_mimebundle_() if hasattr(get_ipython(), "kernel") else {}
        return {**live, **super()._repr_mimebundle_()}


def axes(rows: int = 1, columns: int = 1, *, height_in: float = 2.6) -> tuple[Figure, Any]:
    """A figure that fits the page and its axes (an array of them when more than one)."""
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=130, layout="constrained")
    made = figure.subplots(rows, columns)
    for axis in np.atleast_1d(made).flat:
        axis.set_prop_cycle(color=[BLUE, ORANGE, GREEN, RED, SKY, "black"])
        axis.spines[["top", "right"]].set_visible(False)
    return figure, made


def picture(figure: Figure, alt: str, *, title: str = "", photo: bool = False) -> Picture:
    """Your own matplotlib figure with the words that say what to see in it."""
    canvas = FigureCanvasAgg(figure)  # draws in memory; pyplot's global figures stay untouched
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if not photo:  # 128 colours are enough for a chart, at a third of the bytes
        image = image.quantize(128, dither=Image.Dither.NONE)
    return Picture(_uri(image), f"{title}: {alt}" if title else alt)


def _uri(image: Image.Image) -> str:
    kind, options = ("png", {"optimize": True}) if image.mode == "P" else ("webp", {"quality": 80})
    memory = io.BytesIO()
    image.save(memory, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(memory.getvalue()).decode()}"


def strip(frames_THWC: Any, labels: Sequence[str] | None = None, *, title: str = "") -> Picture:
    """Frames uint8 [T, H, W, 3] (array or CPU tensor), up to eight in a row, labels above."""
    frames = np.asarray(frames_THWC)
    names = [str(name) for name in (range(len(frames)) if labels is None else labels)]
    columns, rows = min(8, len(frames)), -(-len(frames) // 8)
    height, width = frames.shape[1:3]
    row_in = WIDTH_IN / columns * height / width + 0.25
    figure, grid = axes(rows, columns, height_in=rows * row_in + (0.3 if title else 0.0))
    for axis in np.atleast_1d(grid).flat:
        axis.set_axis_off()  # also behind the frames that a last row may lack
    for axis, frame, name in zip(np.atleast_1d(grid).flat, frames, names):
        axis.imshow(frame)
        axis.set_title(name, fontsize=8, pad=2)
    figure.suptitle(title, fontsize=10)
    alt = f"{len(frames)} frames of {width} x {height} pixels, in order: {', '.join(names)}."
    return picture(figure, alt, title=title, photo=True)


def gop_chart(table: FrameTable, *, first: int = 0, last: int = 60) -> Picture:
    """Bytes of frames first..last-1 in presentation order, coloured by picture type."""
    types = np.array(table.types or ["I" if key else "P or B" for key in table.is_key])
    shown = np.arange(first, min(last, table.n_frames))
    figure, axis = axes()
    told = []
    for kind, colour in {"I": RED, "P": BLUE, "B": ORANGE, "P or B": BLUE}.items():
        mine = shown[types[shown] == kind]
        if len(mine):
            axis.bar(mine, table.bytes[mine], color=colour, label=kind)
            told.append(f"{len(mine)} {kind} frames of {table.bytes[mine].mean():,.0f} bytes")
    axis.set(xlabel="frame, in presentation order", ylabel="bytes")
    axis.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.97))
    where = f"Frames {first} to {shown[-1]} of {Path(table.path).name}"
    return picture(figure, f"{where}, mean size by type: {', '.join(told)}.")


def bars(
    values: Numbers, *, unit: str, title: str = "", errors: Numbers | None = None, log: bool = False
) -> Picture:
    """One horizontal bar a name, the value written at its end; errors are half widths."""
    spread = [errors.get(name, 0.0) for name in values] if errors else None
    figure, axis = axes(height_in=0.7 + 0.33 * len(values))
    drawn = axis.barh(list(values), list(values.values()), xerr=spread, color=BLUE, capsize=3)
    said = [f"{value:{'.3g' if abs(value) < 1000 else ',.0f'}}" for value in values.values()]
    axis.bar_label(drawn, said, padding=3)
    axis.set(xlabel=unit, xscale="log" if log else "linear", xmargin=0.15)
    figure.suptitle(title, fontsize=10)  # over the names, too: above the bars it would be cut off
    axis.invert_yaxis()
    halves = [f" ± {half:.2g}" for half in spread] if spread else [""] * len(said)
    told = [f"{name} {value}{half}" for name, value, half in zip(values, said, halves)]
    return picture(figure, f"bars in {unit}, {', '.join(told)}.", title=title)


def lines(series: Mapping[str, Any], *, x_label: str, y_label: str, title: str = "") -> Picture:
    """A line a name; a series is (x, y) or (x, y, half error bar)."""
    figure, axis = axes()
    told = []
    for (name, (x, y, *error)), marker in zip(series.items(), "osD^vPX*<>" * 9):
        dots = marker if len(x) <= 30 else ""
        axis.errorbar(x, y, *error, label=name, marker=dots, markersize=4, capsize=3)
        chosen = range(len(x)) if len(x) <= 8 else [0, np.argmin(y), np.argmax(y), -1]
        told.append(f"{name} " + ", ".join(f"{y[at]:.3g} at {x[at]:.3g}" for at in chosen))
    axis.set(xlabel=x_label, ylabel=y_label, title=title)
    axis.legend(frameon=False)
    return picture(figure, f"{y_label} against {x_label}. {'; '.join(told)}.", title=title)


def mask_grid(
    grid_THW: tuple[int, int, int], keep: Any, targets: Sequence[Any] = (), *, title: str = ""
) -> Picture:
    """Which tokens the encoder sees (keep) and which it must predict (one index array a block)."""
    steps, height, width = grid_THW
    kinds = np.zeros(steps * height * width, int)
    for block in targets:
        kinds[np.asarray(block, int)] = 2
    kinds[np.asarray(keep, int)] = 1
    colours = np.array([[221, 221, 221], [0, 114, 178], [230, 159, 0]], np.uint8)
    figure, grid = axes(1, steps, height_in=WIDTH_IN / steps * height / width + 0.5)
    for step, axis in enumerate(np.atleast_1d(grid).flat):
        axis.imshow(colours[kinds.reshape(grid_THW)[step]], interpolation="nearest")
        axis.set(xticks=np.arange(-0.5, width), yticks=np.arange(-0.5, height))
        axis.grid(color="white", linewidth=0.5)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelbottom=False, labelleft=False)
        axis.set_xlabel(f"t = {step}", fontsize=8)
    figure.suptitle(title or "blue: context, orange: targets, grey: neither", fontsize=9)
    seen, guessed = ((kinds.reshape(steps, -1) == kind).sum(axis=1).tolist() for kind in (1, 2))
    alt = f"{steps} time steps of {height} x {width} tokens. Context (blue) holds {seen}, "
    return picture(figure, f"{alt}targets (orange) {guessed}, by time step.", title=title)


def timeline(intervals: Mapping[str, Sequence[tuple[float, float]]], *, title: str = "") -> Picture:
    """When each worker or device was busy: (start_s, end_s) pairs, one row a name."""
    end_s = max(stop for spans in intervals.values() for _, stop in spans)
    figure, axis = axes(height_in=0.8 + 0.3 * len(intervals))
    told = []
    for row, (name, spans) in enumerate(intervals.items()):
        widths_s = [(start, stop - start) for start, stop in spans]
        axis.broken_barh(widths_s, (row - 0.4, 0.8), color=[BLUE, SKY], edgecolor="black", lw=0.3)
        busy = sum(width for _, width in widths_s) / end_s
        told.append(f"{name} busy {100 * busy:.0f} % in {len(spans)} pieces")
    axis.set(xlabel="seconds", title=title, xlim=(0, end_s))
    axis.set_yticks(range(len(intervals)), list(intervals))
    axis.invert_yaxis()
    return picture(figure, f"timeline of {end_s:.3g} seconds, {', '.join(told)}.", title=title)


def confusion(matrix: Any, classes: Sequence[str], *, title: str = "") -> Picture:
    """Counts [truth, prediction] as a table of shades with the numbers in it."""
    from vidlearn import pictures  # it loads torch

    counts = np.asarray(matrix)
    figure, axis = axes(height_in=WIDTH_IN * 0.85)
    pictures.confusion(axis, counts, classes)
    axis.set(title=title)
    return picture(figure, f"{pictures.told(counts, classes)}.", title=title)


def slider(states: Sequence[Any], captions: Sequence[str], *, name: str = "frame") -> Slider:
    """Images uint8 [H, W, 3] or Pictures behind one slider, with a caption for each state."""
    made = []
    for state, caption in zip(states, captions, strict=True):
        if not isinstance(state, Picture):
            state = Picture(_uri(Image.fromarray(np.asarray(state))), f"{name} {caption}")
        made.append(state)
    alt = f"slider over {len(made)} states of {name}, {'; '.join(captions)}."
    return Slider(made[0].image, alt, tuple(made), tuple(captions), name)
