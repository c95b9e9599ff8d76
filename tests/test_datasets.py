"""Manifests and folders: what is read, and one clear error for each thing that cannot be."""

from __future__ import annotations

import datetime
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vidlearn.datasets import (
    COLUMN_NOTES,
    SPECS,
    Manifest,
    Row,
    folder_manifest,
    open_data,
    plan,
    read_manifest,
    table,
    upkeep,
    write_manifest,
)
from vidlearn.errors import ConfigError, VidlearnError

ODD = [
    "a b.mp4",
    "comma, and 'quote'.mp4",
    "čaj 茶 🎬.mp4",
    'say "hi".mp4',
    "#1;&!.avi",
    "-dash.webm",
]


def lay_out(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not read")
    return root


def text(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    rows = [
        Row(str(tmp_path / "deep" / name), f"class {i % 2}", "train", 0.5 * i, None, f"source {i}")
        for i, name in enumerate(ODD)
    ]
    rows.append(Row(str(tmp_path / "deep" / ODD[0]), "", "val", 1.25, 1 / 3 + 1.25))
    rows.append(Row("/elsewhere/x.mp4"))
    path = write_manifest(tmp_path / "manifest.csv", rows)
    again = read_manifest(path)
    assert list(again.rows) == rows and len(again) == len(rows)
    assert again.classes == ("class 0", "class 1") and again.source == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_carriage_return_in_a_name_does_not_end_the_line(tmp_path: Path) -> None:
    rows = (Row("a\rb.mp4", "x,y"), Row("c.mp4", 'z"\r\n', source_id="\r"), Row("d\n.mp4"))
    written = [replace(row, path=str(tmp_path / row.path)) for row in rows]
    again = read_manifest(write_manifest(tmp_path / "m.csv", written)).rows
    assert [(Path(r.path).name, r.label, r.source_id, r.end_s) for r in again] == [
        (r.path, r.label, r.source_id, None) for r in rows
    ]


def test_the_folder_of_a_manifest_can_move(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    write_manifest(old / "m.csv", [Row(str(old / "a" / "x.mp4")), Row("/fixed/y.mp4")])
    old.rename(new)
    assert [r.path for r in read_manifest(new / "m.csv").rows] == [
        str(new / "a" / "x.mp4"),
        "/fixed/y.mp4",
    ]


def test_splits_keep_the_class_numbers_of_the_whole(tmp_path: Path) -> None:
    csv = "path,label,split\na.mp4,zebra,train\nb.mp4,ant,val\nc.mp4,,val\n"
    data = read_manifest(text(tmp_path / "m.csv", csv))
    val = data.split("val")
    assert val.classes == data.classes == ("ant", "zebra")
    assert [val.label_index(row) for row in val.rows] == [0, -1]
    assert data.label_index(data.rows[0]) == 1
    assert pickle.loads(pickle.dumps(val)) == val
    with pytest.raises(
        VidlearnError, match=r"m\.csv: no rows of the split 'test'; it has train, val"
    ):
        data.split("test")


def test_a_csv_may_have_fewer_columns_a_mark_and_windows_line_ends(tmp_path: Path) -> None:
    csv = "\ufeffend_s, path\r\n2.5,x.mp4\r\n\r\n,y.mp4\r\n"
    data = read_manifest(text(tmp_path / "m.csv", csv))
    assert [(Path(r.path).name, r.end_s, r.label) for r in data.rows] == [
        ("x.mp4", 2.5, ""),
        ("y.mp4", None, ""),
    ]


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        ("file,label\nx.mp4,a\n", "unknown column 'file' in the first line"),
        (
            "path,Label\nx.mp4,a\n",
            "unknown column 'Label'.*path,label,split,start_s,end_s,source_id",
        ),
        ("video class\nx y\n", "unknown column 'video class'"),
        ("label,split\na,train\n", "no column 'path'"),
        ("path,label,path\nx.mp4,a,y.mp4\n", "a column stands twice"),
        ("path,start_s\nx.mp4,0\ny.mp4,soon\n", "line 3: start_s is 'soon'. Give seconds"),
        ("path,end_s\nx.mp4,-1\n", "line 2: end_s is '-1'"),
        ("path,end_s\nx.mp4,nan\n", "line 2: end_s is 'nan'"),
        ("path,start_s,end_s\nx.mp4,5,2.5\n", "line 2: end_s 2.5 is not after start_s 5"),
        ("path,label\nx.mp4,a\nx.mp4,b\n", "line 3 repeats line 2: .*x.mp4"),
        ("path,label\none, two.mp4,a\n", "line 2 has 3 fields, the header 2. Put quotes"),
        ("path,label\n,a\n", "line 2 has no path"),
        ('path,label\n"x.mp4,a\n', "line 2: "),
        ("path,label\n", "no rows"),
        ("", "manifest.csv: no column 'path'"),
    ],
)
def test_a_bad_manifest_gives_one_clear_error(tmp_path: Path, csv: str, words: str) -> None:
    path = text(tmp_path / "manifest.csv", csv)
    with pytest.raises(VidlearnError, match=words) as caught:
        open_data(tmp_path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_segments_of_one_video_are_not_duplicates(tmp_path: Path) -> None:
    csv = "path,label,start_s,end_s\nx.mp4,a,0,2\nx.mp4,b,2,4\n"
    assert len(read_manifest(text(tmp_path / "m.csv", csv))) == 2


def test_published_lists(tmp_path: Path) -> None:
    lines = 'k400/some video.mp4 2\n/abs/x.webm 0\n\nb::c.mp4::07\n"quoted one.avi" 2\n'
    lines += "no label.mp4\nz.MP4 -1\n"
    data = read_manifest(text(tmp_path / "train.csv", lines))
    assert [(row.path, row.label) for row in data.rows] == [
        (str(tmp_path / "k400/some video.mp4"), "2"),
        ("/abs/x.webm", "0"),
        (str(tmp_path / "b::c.mp4"), "7"),
        (str(tmp_path / "quoted one.avi"), "2"),
        (str(tmp_path / "no label.mp4"), ""),
        (str(tmp_path / "z.MP4"), ""),
    ]
    # Number 7 stays number 7 although the list holds four classes.
    assert [data.label_index(row) for row in data.rows] == [2, 0, 7, 2, -1, -1]
    names = read_manifest(text(tmp_path / "names.txt", "x.mp4 b\ny.mp4::a c\n"))
    assert names.classes == ("a c", "b")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("x.mp4 1\ny.mp4 playing flute\n", "line 2 is 'y.mp4 playing flute'.*path::label"),
        ("x.mp4 1\n\nx.mp4 2\n", "line 3 repeats line 1"),
        ("x.mp4 1\ny.mp4 123456789\n", "line 2: 123456789 is too large"),
        ("x.mp4,1\ny.mp4,2\n", "unknown column 'x.mp4', '1'.*a list without header"),
    ],
)
def test_a_bad_list_gives_one_clear_error(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(VidlearnError, match=words):
        open_data(text(tmp_path / "list.csv", lines))


def test_numbers_as_class_names_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    rows = "".join(f"{i}.mp4,{i}\n" for i in range(12))
    assert read_manifest(text(tmp_path / "m.csv", "path,label\n" + rows)).classes[2:4] == ("2", "3")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["b.mp4", "a.MKV"], [("a.MKV", "", ""), ("b.mp4", "", "")]),
        (["run/a.mp4", "sit/b.avi"], [("a.mp4", "run", ""), ("b.avi", "sit", "")]),
        (["train/a.mp4", "validate/b.mov"], [("a.mp4", "", "train"), ("b.mov", "", "val")]),
        (
            ["train/car/a.mp4", "test/bus/b.mp4"],
            [("b.mp4", "bus", "test"), ("a.mp4", "car", "train")],
        ),
        (["train/a.mp4", "car/b.mp4"], [("b.mp4", "car", ""), ("a.mp4", "train", "")]),
    ],
)
def test_folders(tmp_path: Path, names: list, found: list) -> None:
    lay_out(tmp_path, *names, "README.md", ".hidden/x.mp4", "run/._a.mp4", "notes/x.txt")
    data = open_data(tmp_path)
    assert [(Path(r.path).name, r.label, r.split) for r in data.rows] == found
    assert data.classes == tuple(sorted({label for _, label, _ in found} - {""}))
    assert all(Path(row.path).is_file() for row in data.rows)


def test_folders_with_odd_names_and_links(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "store", *ODD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my class, Ü").symlink_to(store)
    data = folder_manifest(tmp_path / "data")
    assert {Path(row.path).name for row in data.rows} == set(ODD)
    assert data.classes == ("my class, Ü",)
    assert read_manifest(write_manifest(tmp_path / "m.csv", data.rows)).rows == data.rows


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["notes.txt"], r"no videos in it.*<split>/<class>/x\.mp4.*\.mp4"),
        (["a.mp4", "run/b.mp4"], "different levels"),
        (["train/a/b/c.mp4"], "too deep"),
        (["train/run/a.mp4", "holdout/run/b.mp4"], "'holdout' is not the name of a split"),
    ],
)
def test_a_folder_of_another_shape_gives_one_clear_error(
    tmp_path: Path, names: list, words: str
) -> None:
    lay_out(tmp_path, *names)
    with pytest.raises(VidlearnError, match=words) as caught:
        open_data(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_what_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    for read in (open_data, folder_manifest, read_manifest):
        with pytest.raises(
            VidlearnError, match=f"^{re.escape(str(missing))}: [Nn]o such file|folder"
        ):
            read(missing)
    with pytest.raises(VidlearnError, match=r"x\.mp4: is a single video. Give its folder"):
        open_data(lay_out(tmp_path, "x.mp4") / "x.mp4")
    (tmp_path / "list").write_bytes(b"\0\0\0\x18ftypmp42\xff\xfe")
    with pytest.raises(VidlearnError, match=r"byte 12 is not UTF-8 text.*CSV with the header"):
        open_data(tmp_path / "list")
    with pytest.raises(VidlearnError, match="directory"):
        read_manifest(tmp_path)
    broken = os.fsdecode(b"caf\xe9.mp4")
    with pytest.raises(VidlearnError, match=r"not UTF-8\. Rename that video"):
        write_manifest(tmp_path / "m.csv", [Row(str(tmp_path / broken))])


def test_the_table_names_all_rows_of_the_lecture_and_five_more() -> None:
    assert sum(spec.on_slide for spec in SPECS) == 10 and len(SPECS) == 15
    assert len({spec.key for spec in SPECS}) == 15 and COLUMN_NOTES
    rows = table()
    assert [row["name"] for row in rows] == [spec.name for spec in SPECS]
    wanted = {"name", "videos", "hours", "frame size", "size on disk", "what the slide said"}
    assert wanted | {"correction", "source", "licence", "how to get it"} <= rows[0].keys()
    assert all(value for row in rows for value in row.values())


def test_what_a_public_set_takes_as_copies() -> None:
    """Kept is hours times bytes; decoded is a clip of each video, or of each ten seconds."""
    found = {spec.key: upkeep(spec, 30_000.0, 12.0) for spec in SPECS}
    assert [key for key, numbers in found.items() if numbers is None] == ["r2v2"]
    ssv2, ego4d, waymo = (found[key] for key in ("something_something_v2", "ego4d", "waymo_open"))
    assert ssv2 and ego4d and waymo
    assert ssv2["clips"] == 220_847 and ego4d["clips"] == pytest.approx(3670 * 360)
    assert ego4d["keep_bytes"] == pytest.approx(3670 * 3600 * 30_000)
    assert ssv2["decode_core_hours"] == pytest.approx(220_847 * 0.012 / 3600)
    assert waymo["keep_bytes"] == pytest.approx(5 * 6.325 * 3600 * 30_000)  # all five cameras
    assert waymo["clips"] == pytest.approx(5 * 6.325 * 360)


def test_every_cell_has_a_source_and_a_date_or_says_that_it_was_not_read() -> None:
    for spec in SPECS:
        for cell in (spec.average_s, spec.videos, spec.hours, spec.frame_size, spec.disk_bytes):
            assert cell.value and cell.source, spec.key
            assert cell.checked == "" or datetime.date.fromisoformat(cell.checked)
            assert spec.on_slide or not (cell.slide or cell.wrong), spec.key


def test_our_numbers_agree_with_each_other_and_the_slide_does_not() -> None:
    """Videos times their average length are the hours: the check that finds the slide's errors."""

    def number(slide: str) -> float:
        return float(slide.replace("k", "000"))

    for spec in SPECS:
        videos, average_s, hours = (c.number for c in (spec.videos, spec.average_s, spec.hours))
        if videos and average_s and hours:
            assert videos * average_s / 3600 == pytest.approx(hours, rel=0.04), spec.key
        said = [c.slide for c in (spec.videos, spec.average_s, spec.hours)]
        if all(said):
            slide_h = number(said[0]) * number(said[1]) / 3600
            assert slide_h != pytest.approx(number(said[2]), rel=0.04), spec.key


def labelled(root: Path) -> Manifest:
    places = [f"{split}/{label}" for split in ("train", "val", "test") for label in "ab"]
    return folder_manifest(lay_out(root, *(f"{place}/{i}.mp4" for place in places for i in "01")))


def test_splits_are_the_datas_own_or_keep_sources_together(tmp_path: Path) -> None:
    own, how = labelled(tmp_path).splits()
    assert list(own) == ["train", "val", "test"] and how == "the data's own"
    assert {s: {row.split for row in part.rows} for s, part in own.items()} == {s: {s} for s in own}
    rows = tuple(Row(f"{i}.mp4", "ab"[i % 2], source_id=f"s{i // 4}") for i in range(80))
    data = Manifest(rows, ("a", "b"), "rows")
    made, how = data.splits(seed=3)
    assert "7 to 3" in how and "seed 3" in how
    ids = {name: {row.source_id for row in part.rows} for name, part in made.items()}
    assert not ids["train"] & ids["test"] and len(made["train"]) + len(made["test"]) == 80
    assert {row.label for row in made["test"].rows} == {"a", "b"} and len(made["test"]) == 24
    assert data.splits(seed=3) == (made, how) and data.splits(seed=4)[0] != made


def test_splits_without_labels_are_left_out_and_no_labels_at_all_is_an_error(
    tmp_path: Path,
) -> None:
    data = labelled(tmp_path)
    rows = tuple(replace(r, label="" if r.split == "test" else r.label) for r in data.rows)
    assert list(replace(data, rows=rows).splits()[0]) == ["train", "val"]
    rows = tuple(replace(r, label="") for r in data.rows)
    with pytest.raises(ConfigError, match=r"here: no labels\. A probe needs class folders"):
        Manifest(rows, (), "here").splits()


def test_plan_agrees_with_counting() -> None:
    cost = plan(1.0, 30, 340, 256, bits_per_pixel=0.315)
    assert cost["raw_bytes"] == 3600 * 30 * 340 * 256 * 3
    assert cost["stored_bytes"] == pytest.approx(cost["raw_bytes"] * 0.315 / 24)
    # 340x256 at 0.315 bits a pixel was measured at 128.6 million pixels a second.
    measured_hours = 3600 * 30 * 340 * 256 / 128.6e6 / 3600
    assert cost["decode_core_hours"] == pytest.approx(measured_hours, rel=0.4)
