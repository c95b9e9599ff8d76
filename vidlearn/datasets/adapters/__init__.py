"""Public data sets as they were downloaded -> rows of a manifest.

Input: the kind of a data set and its folder. Output: a Listing, which gives the rows whose files
are there and counts what it leaves out. Traded: files are looked for, not opened. Chapter 5.

An adapter is a function from a folder to rows. To add one, write it, and a line in KINDS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vidlearn.datasets.adapters import clips, long, plain, stills
from vidlearn.datasets.manifest import Row, Seen, file_of
from vidlearn.errors import VidlearnError

_K = "{train,val,test}/[<class>/]<id>_<start>_<end>.mp4, annotations/{train,val,test}.csv"
_UCF = "UCF-101/<class>/*.avi, ucfTrainTestlist/{classInd,trainlist0%d,testlist0%d}.txt"
_HMDB = "[hmdb51_org/]<class>/*.avi, testTrainMulti_7030_splits/<class>_test_split%d.txt"

# Kind -> the adapter, and the layout that it expects below the folder.
KINDS: dict[str, tuple[Callable[[Path], Iterator[Row]], str]] = {
    "folder": (plain.folder, "<split>/<class>/x.mp4, <split>/x.mp4, <class>/x.mp4 or x.mp4"),
    "list": (plain.published, "a file of 'path label' lines, in place of a folder"),
    "metadata": (plain.metadata, "[<split>/]metadata.csv with the column file_name"),
    "kinetics400": (clips.kinetics, _K),
    "kinetics600": (clips.kinetics, _K),
    "kinetics700": (clips.kinetics, _K),
    "something_something_v2": (
        clips.something_something,
        "20bn-something-something-v2/<id>.webm, labels/{labels,train,validation,test}.json",
    ),
    "walking_tours": (long.walking_tours, "<city>.mp4"),
    "ego4d": (long.ego4d, "ego4d.json, v2/full_scale/<uid>.mp4"),
    "ego4d_moments": (
        long.ego4d_moments, "v2/annotations/moments_{train,val}.json, v2/full_scale/<uid>.mp4",
    ),
    "epic_kitchens_100": (
        long.epic_kitchens,
        "EPIC-KITCHENS/<person>/{videos/<id>.MP4,rgb_frames/<id>/*.jpg}, "
        "epic-kitchens-100-annotations/EPIC_100_*.csv",
    ),
    "bdd100k": (clips.bdd100k, "videos/{train,val,test}/<id>.mov"),
    "waymo_open": (
        stills.waymo, "{training,validation,testing}/camera_image/<segment>.parquet (version 2)",
    ),
    "webvid2m": (clips.webvid, "results_2M_{train,val}.csv, videos/<page_dir>/<id>.mp4"),
    "howto100m": (clips.howto100m, "HowTo100M_v1.csv, [videos/]<id>.{mp4,webm,mkv}"),
    "meccano": (
        long.meccano,
        "MECCANO_{train,val,test}_actions.csv, MECCANO_RGB_Videos/<id>.mp4 or "
        "MECCANO_RGB_frames/<id>/*.jpg",
    ),
    "assembly101": (
        long.assembly101,
        "recordings/<sequence>/<view>.mp4, "
        "annotations/fine-grained-annotations/{train,validation,test}.csv",
    ),
    "r2v2": (stills.r2v2, "[r2v2/]{train,val}/<folder>/<id>_<frame>.jpg"),
    "videonet": (stills.videonet, "never released"),
    "ucf101": (clips.ucf101, _UCF % (1, 1)),
    "ucf101_2": (partial(clips.ucf101, fold=2), _UCF % (2, 2)),
    "ucf101_3": (partial(clips.ucf101, fold=3), _UCF % (3, 3)),
    "hmdb51": (clips.hmdb51, _HMDB % 1),
    "hmdb51_2": (partial(clips.hmdb51, fold=2), _HMDB % 2),
    "hmdb51_3": (partial(clips.hmdb51, fold=3), _HMDB % 3),
    "diving48": (clips.diving48, "rgb/<id>.mp4, Diving48_V2_{train,test}.json"),
}  # fmt: skip


@dataclass
class Left:
    """Rows that are left out: how many, of how many files, and the first of those."""

    rows: int = 0
    files: Seen = field(default_factory=Seen)
    first: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Count a row."""
        self.rows += 1
        if self.files.add(what) and len(self.first) < 3:
            self.first.append(what)


@dataclass
class Listing:
    """The rows of a data set, read as they are asked for; afterwards `notes` says what is not.

    Left out and counted: rows whose file is not there, rows of a segment that an earlier row has,
    with whatever label or split, and segments without a length. Of a row, 30 bytes are kept.

    Raises:
        VidlearnError: an unknown kind, no such folder, a list that cannot be read, no row left.
    """

    kind: str
    root: Path
    videos: Seen = field(default_factory=Seen)
    classes: set[str] = field(default_factory=set)
    rows: int = 0
    missing: Left = field(default_factory=Left)
    repeated: Left = field(default_factory=Left)
    empty: Left = field(default_factory=Left)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise VidlearnError(f"no kind of data set {self.kind!r}; known: {', '.join(KINDS)}")
        if not self.root.exists():
            layout = KINDS[self.kind][1]
            raise VidlearnError(f"{self.root}: no such folder. Give one laid out as {layout}")

    def __iter__(self) -> Iterator[Row]:
        read, layout = KINDS[self.kind]
        segments, last, there = Seen(), "", False
        for row in read(self.root):
            if row.path != last:  # most lists name the segments of a video one after the other
                last, there = row.path, os.path.exists(file_of(row.path))
            what = row.path if row.end_s is None else f"{row.path} at {row.start_s:g} s"
            if not there:
                self.missing.add(row.path)
            elif row.end_s is not None and row.end_s <= row.start_s:
                self.empty.add(what)
            elif not segments.add(repr((row.path, row.start_s, row.end_s))):
                self.repeated.add(what)
            else:
                self.videos.add(row.path)
                self.classes |= {row.label} - {""}
                self.rows += 1
                yield row
        if not self.rows:
            left = "; ".join(self.notes()) or "no videos in it"
            raise VidlearnError(
                f"{self.root}: {left}. Expected {layout}: unpack the videos there, or give "
                "the folder that holds them"
            )

    def notes(self) -> list[str]:
        """What was left out, a line for each reason: how many, and the first of them."""
        missing = f"{self.missing.rows} rows left out, whose {len(self.missing.files)} files"
        said = {
            f"{missing} are not there": self.missing,
            f"{self.repeated.rows} rows left out that repeat an earlier one": self.repeated,
            f"{self.empty.rows} rows left out that end where they begin": self.empty,
        }
        return [f"{text}, such as {', '.join(of.first)}" for text, of in said.items() if of.rows]
