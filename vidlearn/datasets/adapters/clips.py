"""Data sets in which a file is a clip: one action, one template, one caption, one drive.

Input: the folder of a data set, as downloaded. Output: rows, also of files that are not there:
`Listing` counts those. Traded: nothing is opened. Chapter 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from vidlearn.datasets.adapters.shared import (
    AGAIN,
    field,
    first_of,
    need,
    number,
    read_csv,
    read_json,
    read_lines,
    split_of,
)
from vidlearn.datasets.folder import SPLITS
from vidlearn.datasets.manifest import VIDEO_SUFFIXES, Row
from vidlearn.errors import VidlearnError

# One class of UCF101 is spelt in two ways, its folder and its files.
HANDS = ("HandstandPushups", "HandStandPushups")
SPELT = tuple(product(HANDS, HANDS))


def kinetics(root: Path) -> Iterator[Row]:
    """Kinetics of the CVDF, flat or in class folders; replaced files win over the broken ones."""
    lists = sorted(need(root, "annotations").glob("*.csv"))
    lists = [path for path in lists if path.stem in SPLITS]
    if not lists:
        raise VidlearnError(f"{root}/annotations: no train.csv, val.csv or test.csv. Download one")
    mended = sorted(root.glob("replacement/replacement_for_corrupted_*"))
    for path in lists:
        split = SPLITS[path.stem]
        for line, row in read_csv(path, ("youtube_id", "time_start", "time_end")):
            where = f"{path}: line {line}"
            told = row.get("split") or split
            if split_of(told, where) != split:
                raise VidlearnError(f"{where}: split {told!r} in a list of {split}. Mend one")
            start, end = (int(number(row[n], f"{where}: {n}")) for n in ("time_start", "time_end"))
            name, label = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4", row.get("label", "")
            places = [root / split / sub for sub in ("", label, label.replace(" ", "_"))]
            found = (folder / name for folder in (*mended, *places) if (folder / name).exists())
            video = next(found, places[0] / name)  # what is nowhere is missed where it belongs
            yield Row(str(video), label, split, source_id=row["youtube_id"])


def something_something(root: Path) -> Iterator[Row]:
    """Something-Something v2: the class is the template without its square brackets."""
    stem = "something-something-v2-"
    kinds = ("labels", "train", "validation", "test")
    names = {kind: (f"labels/{kind}.json", f"labels/{stem}{kind}.json", f"{stem}{kind}.json")
             for kind in kinds}  # fmt: skip
    known = read_json(need(root, *names["labels"]), dict)
    for kind in kinds[1:]:
        path = need(root, *names[kind]) if kind == "train" else first_of(
            *(root / name for name in names[kind]))  # fmt: skip
        for item in read_json(path, list) if path.exists() else ():
            where = f"{path}: id {field(item, 'id', path)}"
            label = "" if kind == "test" else field(item, "template", where)
            label = re.sub(r"[\[\]]", "", str(label))
            if label and label not in known:
                raise VidlearnError(f"{where}: {label!r} is not in labels.json. {AGAIN}")
            video = root / "20bn-something-something-v2" / f"{item['id']}.webm"
            yield Row(str(video), label, SPLITS[kind], source_id=str(item["id"]))


def bdd100k(root: Path) -> Iterator[Row]:
    """BDD100K's videos; its labels belong to single frames and are left out."""
    videos = need(root, "videos", "bdd100k/videos")
    for split in ("train", "val", "test"):
        for path in sorted((videos / split).glob("*")):
            if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
                yield Row(str(path), "", split, source_id=path.stem)


def webvid(root: Path) -> Iterator[Row]:
    """WebVid-2M: a caption is no class, so rows have no label."""
    for split in ("train", "val"):
        name = f"results_2M_{split}.csv"
        if split == "val" and not any((root / n).exists() for n in (name, f"metadata/{name}")):
            continue
        for _, row in read_csv(need(root, name, f"metadata/{name}"), ("videoid", "page_dir")):
            video = root / "videos" / row["page_dir"] / f"{row['videoid']}.mp4"
            yield Row(str(video), "", split, source_id=row["videoid"])


def howto100m(root: Path) -> Iterator[Row]:
    """HowTo100M: a row for each video, with its first category; what is said is left out."""
    folder = root / "videos" if (root / "videos").is_dir() else root
    for _, row in read_csv(need(root, "HowTo100M_v1.csv"), ("video_id", "category_1")):
        video = first_of(*(folder / f"{row['video_id']}.{end}" for end in ("mp4", "webm", "mkv")))
        yield Row(str(video), row["category_1"], "", source_id=row["video_id"])


def ucf101(root: Path, fold: int = 1) -> Iterator[Row]:
    """UCF101, one of its three splits; clips of one group (gXX) share their source_id."""
    lists = need(root, "ucfTrainTestlist")
    numbered = [(n, line.split()) for n, line in read_lines(need(lists, "classInd.txt"))]
    for n, words in numbered:
        if len(words) != 2:
            raise VidlearnError(f"{lists}/classInd.txt: line {n}: not 'number class'. {AGAIN}")
    classes = {name.lower(): name for _, (_, name) in numbered}
    for split in ("train", "test"):
        path = need(lists, f"{split}list{fold:02d}.txt")
        for n, line in read_lines(path):
            file = re.sub(r"\s+\d+$", "", line)
            folder, _, name = file.partition("/")
            if folder.lower() not in classes:
                raise VidlearnError(f"{path}: line {n}: {folder!r} is not in classInd.txt. {AGAIN}")
            label = classes[folder.lower()]
            places = [root / "UCF-101" / file]
            if label.lower() == HANDS[0].lower():
                both = ((a, re.sub(label, b, name, flags=re.IGNORECASE)) for a, b in SPELT)
                places += [root / "UCF-101" / place / other for place, other in both]
            video = first_of(*places)
            group = re.match(r"v_.+_g(\d+)_", name)
            yield Row(str(video), label, split, source_id=f"{label}_g{group[1]}" if group else name)


def hmdb51(root: Path, fold: int = 1) -> Iterator[Row]:
    """HMDB51, one of its three splits, without the clips that it does not use (0)."""
    folder = need(root, "testTrainMulti_7030_splits")
    lists = sorted(folder.glob(f"*_test_split{fold}.txt"))
    if not lists:
        raise VidlearnError(f"{folder}: no <class>_test_split{fold}.txt in it. Unpack the splits")
    base = root / "hmdb51_org" if (root / "hmdb51_org").is_dir() else root
    for path in lists:
        label = path.name.removesuffix(f"_test_split{fold}.txt")
        for n, line in read_lines(path):
            name, _, part = line.strip().rpartition(" ")
            if part not in ("0", "1", "2"):
                raise VidlearnError(f"{path}: line {n}: {part!r} is no split: 0, 1 or 2. {AGAIN}")
            if part != "0":
                name = name.strip()
                film = name.split(f"_{label}_")[0]
                split = "train" if part == "1" else "test"
                yield Row(str(base / label / name), label, split, source_id=film)


def diving48(root: Path) -> Iterator[Row]:
    """Diving48 with the labels of its second version; a class is its four words."""
    words = root / "Diving48_vocab.json"
    vocabulary: list[Any] = read_json(words, list) if words.exists() else []
    for split in ("train", "test"):
        path = need(root, f"Diving48_V2_{split}.json")
        for item in read_json(path, list):
            name = field(item, "vid_name", path)
            where = f"{path}: {name}: label"
            label = int(number(field(item, "label", path), where))
            if vocabulary and label >= len(vocabulary):
                raise VidlearnError(f"{where} {label} is not in {words}. {AGAIN}")
            told = " ".join(map(str, vocabulary[label])) if vocabulary else str(label)
            video = root / "rgb" / f"{name}.mp4"
            yield Row(str(video), told, split, source_id=name.rpartition("_")[0] or name)
