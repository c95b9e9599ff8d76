"""Data sets of long videos: labelled segments become rows, and what has no labels is cut.

Input: the folder of a data set, as downloaded. Output: rows in seconds from the start of the
video, whatever clock the data set counts with. Traded: only Walking Tours are opened, since
nothing else says how long they are. Chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidlearn.datasets.adapters.shared import (
    AGAIN,
    field,
    first_of,
    items,
    need,
    number,
    read_csv,
    read_json,
    segments,
)
from vidlearn.datasets.folder import SPLITS
from vidlearn.datasets.manifest import VIDEO_SUFFIXES, Row
from vidlearn.errors import VideoError, VidlearnError
from vidlearn.storage import open_video

EGO4D_FPS = 30  # of its frame numbers, whatever the video has
ASSEMBLY_FPS = 30  # of its annotations; the videos have 60
MECCANO_FPS = 12
MECCANO = ("video", "action", "name", "first", "last")


def walking_tours(root: Path) -> Iterator[Row]:
    """Every video of a folder in segments."""
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
            yield from segments(path, length_s(path))


def length_s(path: Path) -> float:
    """When the last picture ends: a header may promise more, and counting would read it all."""
    with open_video(path) as (container, stream):
        tick_s, first = float(stream.time_base), stream.start_time or 0
        told_s = (stream.duration or 0) * tick_s or (container.duration or 0) / 1e6
        container.seek(first + int(told_s / tick_s), stream=stream)
        packets = (p for p in container.demux(stream) if p.pts is not None)
        end = max((p.pts + (p.duration or 0) for p in packets), default=first)
    if end <= first:
        raise VideoError(path, "it does not say how long it is", "Transcode it, or leave it out.")
    return (end - first) * tick_s


def _ego4d_video(root: Path, uid: str) -> Path:
    places = ("v2/full_scale", "v2/video_540ss", "full_scale")
    return first_of(*(root / place / f"{uid}.mp4" for place in places))


def ego4d(root: Path) -> Iterator[Row]:
    """Ego4D's videos in segments, without split: each benchmark has its own."""
    path = need(root, "ego4d.json", "v2/ego4d.json")
    for video in items(read_json(path, dict), "videos", path):
        uid = field(video, "video_uid", path)
        long_s = number(field(video, "duration_sec", path), f"{path}: {uid}: duration_sec")
        yield from segments(_ego4d_video(root, uid), long_s)


def ego4d_moments(root: Path) -> Iterator[Row]:
    """Ego4D's moments, which have classes; the primary labels only, as the benchmark counts."""
    folder = need(root, "v2/annotations", "annotations")
    for split in ("train", "val"):
        path = need(folder, f"moments_{split}.json")
        for video in items(read_json(path, dict), "videos", path):
            uid = field(video, "video_uid", path)
            for clip in items(video, "clips", path):
                for annotator in items(clip, "annotations", path):
                    for label in items(annotator, "labels", path):
                        name = field(label, "label", path)
                        if label.get("primary", True):
                            start_s, end_s = (_ego4d_s(label, e, path) for e in ("start", "end"))
                            yield Row(
                                str(_ego4d_video(root, uid)), name, split, start_s, end_s, uid
                            )


def _ego4d_s(label: dict[str, Any], end: str, path: Path) -> float:
    """Seconds where they stand, else frames at 30 a second."""
    name = f"video_{end}_time"
    if label.get(name) is not None:
        return number(label[name], f"{path}: {name}")
    name = f"video_{end}_frame"
    return number(field(label, name, path), f"{path}: {name}") / EGO4D_FPS


def epic_kitchens(root: Path) -> Iterator[Row]:
    """EPIC-KITCHENS-100: verb and noun, by time stamp in videos, by number in extracted frames."""
    notes = first_of(root / "epic-kitchens-100-annotations", root / "annotations", root)
    notes = notes if (notes / "EPIC_100_train.csv").exists() else root
    base = first_of(root / "EPIC-KITCHENS", root)
    base = base if base.is_dir() else root
    verbs, nouns = _epic_classes(notes, "verb"), _epic_classes(notes, "noun")
    lists = {"train": "train.csv", "val": "validation.csv", "test": "test_timestamps.csv"}
    for split, name in lists.items():
        path = need(notes, f"EPIC_100_{name}") if split == "train" else notes / f"EPIC_100_{name}"
        columns = ["participant_id", "video_id", "start_timestamp", "stop_timestamp"]
        columns += ["start_frame", "stop_frame"]
        columns += ["verb_class", "noun_class"] if split != "test" else []
        for line, row in read_csv(path, columns) if path.exists() else ():
            where, label = f"{path}: line {line}", ""
            if split != "test":
                verb, noun = row["verb_class"], row["noun_class"]
                label = f"{verbs.get(verb, verb)} {nouns.get(noun, noun)}"
            video, start_s, end_s = _epic_segment(base, row, where)
            yield Row(video, label, split, start_s, end_s, row["video_id"])


def _epic_classes(notes: Path, kind: str) -> dict[str, str]:
    """Number -> name of verbs or nouns; empty without the file, so that numbers stay."""
    names = (f"EPIC_100_{kind}_classes.csv", f"EPIC_100_{kind}_classes_v2.csv")
    path = first_of(*(notes / name for name in names))
    found = read_csv(path, ("id", "key")) if path.exists() else ()
    return {row["id"]: row["key"] for _, row in found}


def _epic_segment(base: Path, row: dict[str, str], where: str) -> tuple[str, float, float]:
    """Path, start and end. Frames were extracted at 60 a second, at 50 in the extension."""
    person, video = row["participant_id"], row["video_id"]
    file, frames = (base / person / kind for kind in (f"videos/{video}.MP4", f"rgb_frames/{video}"))
    if file.exists() or not frames.is_dir():
        start_s, stop_s = (
            _clock_s(row[name], f"{where}: {name}")
            for name in ("start_timestamp", "stop_timestamp")
        )
        return str(file), start_s, stop_s
    fps = 50 if len(video.partition("_")[2]) == 3 else 60
    first, last = (
        int(number(row[name], f"{where}: {name}")) for name in ("start_frame", "stop_frame")
    )
    return f"{frames}#fps={fps}", first / fps, (last + 1) / fps


def _clock_s(text: str, where: str) -> float:
    """00:02:11.84 in seconds."""
    parts = text.split(":")
    if len(parts) != 3:
        raise VidlearnError(f"{where} is {text!r}. Give hours:minutes:seconds")
    hours, minutes, seconds = (number(part, where) for part in parts)
    return round(3600 * hours + 60 * minutes + seconds, 3)


def meccano(root: Path) -> Iterator[Row]:
    """MECCANO: first and last frame by file name, at 12 a second, in videos or extracted frames."""
    for split in ("train", "val", "test"):
        name = f"MECCANO_{split}_actions.csv"
        path = root / name if split != "train" else need(root, name)
        for line, row in read_csv(path, MECCANO, header=False) if path.exists() else ():
            if line == 1 and not row["first"][:1].isdigit():
                continue  # copies with a header exist
            video, frames = (
                root / f"MECCANO_RGB_Videos/{row['video']}.mp4",
                root / f"MECCANO_RGB_frames/{row['video']}",
            )
            first, last = (
                int(number(Path(row[n]).stem, f"{path}: line {line}: frame")) for n in MECCANO[3:]
            )
            found = str(video)
            if frames.is_dir() and not video.exists():
                found = f"{frames}#fps={MECCANO_FPS}"
            times = first / MECCANO_FPS, (last + 1) / MECCANO_FPS
            yield Row(found, row["name"], split, *times, row["video"])


def assembly101(root: Path) -> Iterator[Row]:
    """Assembly101's fine actions: frames at 30 a second, in videos or folders of frames."""
    name = "fine-grained-annotations"
    notes = need(root, f"annotations/{name}", f"assembly101-annotations/{name}", name)
    columns = ("video", "start_frame", "end_frame")
    for split in ("train", "validation", "test"):
        path = need(notes, "train.csv") if split == "train" else notes / f"{split}.csv"
        for line, row in read_csv(path, columns) if path.exists() else ():
            where = f"{path}: line {line}"
            sequence, _, view = row["video"].rpartition("/")
            if not sequence or not view:
                raise VidlearnError(f"{where}: {row['video']!r} is no sequence/view. {AGAIN}")
            video = root / "recordings" / row["video"]
            frames, found = video.with_suffix(""), str(video)
            if frames.is_dir() and not video.exists():
                found = f"{frames}#fps={ASSEMBLY_FPS}"
            start_s, end_s = (
                number(row[n], f"{where}: {n}") / ASSEMBLY_FPS for n in ("start_frame", "end_frame")
            )
            yield Row(found, row.get("action_cls", ""), SPLITS[split], start_s, end_s, sequence)
