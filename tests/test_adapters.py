"""Each public layout, made small: tree -> manifest -> rows -> a clip; and what may be wrong.

Frame i of every video has the grey level 20 + 8 i, so that a clip says which frames it holds. Trees
lie below a folder with spaces, a comma and letters of other alphabets.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from vidlearn.batch import ClipDataset, eval_loader
from vidlearn.cli import main
from vidlearn.datasets import SPECS, Manifest, Row, open_data, sequences
from vidlearn.datasets.adapters import KINDS, Listing
from vidlearn.datasets.check import tried
from vidlearn.datasets.write import encode
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.sample import ClipSpec
from vidlearn.transform import ClipTransform

FPS = 8  # of the short videos, which have 16 frames; the long ones have 25 at 1 a second
ODD_ROOT = "dáta, 茶 #1"
SPEC = ClipSpec(frames=4, stride_frames=1)
LOOK = ClipTransform(size=32, train=False)


def level(i: int) -> np.ndarray:
    return np.full((32, 32, 3), 20 + 8 * i, np.uint8)


def jpeg(i: int) -> bytes:
    data = io.BytesIO()
    imsave(data, level(i), format="jpg")
    return data.getvalue()


def noisy() -> bytes:
    """A JPEG of some kilobytes."""
    data, rng = io.BytesIO(), np.random.default_rng(0)
    imsave(data, rng.integers(0, 256, (32, 32, 3), np.uint8), format="jpg")
    return data.getvalue()


@dataclass
class Case:
    """A tree, the rows that it gives, and the four frames of the clip of its first row."""

    kind: str
    videos: list[str]
    rows: list[tuple]  # path, label, split, start_s, end_s, source_id
    lists: dict[str, object] = field(default_factory=dict)  # text, or what JSON holds
    frames: tuple[int, ...] = (6, 7, 8, 9)
    pictures: dict[str, int] = field(default_factory=dict)  # name -> number of the level
    long: bool = False


def whole(path: str, label: str = "", split: str = "", source: str = "") -> tuple:
    return (path, label, split, 0.0, None, source)


K_HEAD = "label,youtube_id,time_start,time_end,split\n"
UID = "00000000-0000-4000-8000-00000000abcd"
EPIC_HEAD = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_ROW = (
    "{1}_0,P01,{1},00:00:00.1,00:00:00.500,00:00:01.50,{2},open it,open,3,drawer,8,"
    "\"['a', 'b']\",[8]\n"
)
EPIC = "epic-kitchens-100-annotations/EPIC_100_"
EPIC_LISTS = {
    f"{EPIC}train.csv": EPIC_HEAD + EPIC_ROW.replace("{1}", "P01_01").replace("{2}", "31,90"),
    f"{EPIC}validation.csv": EPIC_HEAD,
    f"{EPIC}verb_classes.csv": "id,key,instances,category\n3,open,\"['open']\",access\n",
    f"{EPIC}noun_classes.csv": "id,key,instances,category\n8,drawer,x,y\n",
}
S_LABELS = {"Holding something next to something": "0", "Pushing something": "1"}
MOMENT = {"label": "wash_hands", "primary": True}
ASSEMBLY_HEAD = (
    "id,video,start_frame,end_frame,action_id,verb_id,noun_id,action_cls,verb_cls,noun_cls,"
    "toy_id,toy_name,is_shared,is_RGB\n"
)
UCF_LISTS = {
    "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\n2 HandstandPushups\n",
    "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
    "HandstandPushups/v_HandstandPushups_g08_c01.avi 2\n",
    "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n",
}
HMDB = "April_09_brush_hair_u_nm_np1_ba_goo_"

CASES = [
    Case(
        "folder",
        ["train/a b/x.mp4", "val/c, d/y.mp4"],
        [whole("train/a b/x.mp4", "a b", "train"), whole("val/c, d/y.mp4", "c, d", "val")],
    ),
    Case(
        "metadata",
        ["train/a, b/čaj 茶.mp4", "test/q'q.mp4"],
        [
            whole("train/a, b/čaj 茶.mp4", "tea, hot", "train"),
            whole("test/q'q.mp4", "", "val"),
        ],
        {
            "metadata.csv": 'file_name,label,split,more\n"train/a, b/čaj 茶.mp4","tea, hot",,1\n'
            "test/q'q.mp4,,validation,2\n"
        },
    ),
    *(
        Case(
            f"kinetics{n}",
            [
                f"train/{sub}Ab3-xYz_Q1w_000037_000047.mp4",
                f"val/{sub}-0fKq2LmNoP_000112_000122.mp4",
            ],
            [
                whole(
                    f"train/{sub}Ab3-xYz_Q1w_000037_000047.mp4", "eat, sit", "train", "Ab3-xYz_Q1w"
                ),
                whole(f"val/{sub}-0fKq2LmNoP_000112_000122.mp4", "eat, sit", "val", "-0fKq2LmNoP"),
            ],
            {
                "annotations/train.csv": K_HEAD + '"eat, sit",Ab3-xYz_Q1w,37,47,train\n',
                "annotations/val.csv": K_HEAD + '"eat, sit",-0fKq2LmNoP,112,122,validate\n',
                "annotations/train.txt": "not read",
            },
        )
        for n, sub in (("400", ""), ("600", ""), ("700", "eat, sit/"))
    ),
    Case(
        "something_something_v2",
        ["20bn-something-something-v2/78687.webm", "20bn-something-something-v2/3.webm"],
        [
            whole(
                "20bn-something-something-v2/78687.webm",
                "Holding something next to something",
                "train",
                "78687",
            ),
            whole("20bn-something-something-v2/3.webm", "", "test", "3"),
        ],
        {
            "labels/labels.json": S_LABELS,
            "labels/train.json": [
                {"id": "78687", "template": "Holding [something] next to [something]"}
            ],
            "labels/validation.json": [],
            "labels/test.json": [{"id": "3"}],
        },
    ),
    Case(
        "walking_tours",
        ["Chiang Mai.mp4"],
        [
            ("Chiang Mai.mp4", "", "", 0.0, 10.0, "Chiang Mai"),
            ("Chiang Mai.mp4", "", "", 10.0, 25.0, "Chiang Mai"),
        ],
        {"WTour.txt": "https://www.youtube.com/watch?v=X Chiang Mai\n"},
        (3, 4, 5, 6),
        long=True,
    ),
    Case(
        "ego4d",
        [f"v2/full_scale/{UID}.mp4"],
        [
            (f"v2/full_scale/{UID}.mp4", "", "", 0.0, 10.0, UID),
            (f"v2/full_scale/{UID}.mp4", "", "", 10.0, 25.0, UID),
        ],
        {"ego4d.json": {"videos": [{"video_uid": UID, "duration_sec": 25.0}]}},
        (3, 4, 5, 6),
        long=True,
    ),
    Case(
        "ego4d_moments",
        [f"v2/full_scale/{UID}.mp4"],
        [
            (f"v2/full_scale/{UID}.mp4", "wash_hands", "train", 4.0, 8.0, UID),
            (f"v2/full_scale/{UID}.mp4", "wash_hands", "val", 10.0, 12.0, UID),
        ],
        {
            f"v2/annotations/moments_{split}.json": {
                "videos": [
                    {"video_uid": UID, "clips": [{"annotations": [{"labels": [MOMENT | times]}]}]}
                ]
            }
            for split, times in {
                "train": {"video_start_time": 4.0, "video_end_time": 8.0},
                "val": {"video_start_frame": 300, "video_end_frame": 360},
            }.items()
        },
        (4, 5, 6, 7),
        long=True,
    ),
    Case(
        "epic_kitchens_100",
        ["EPIC-KITCHENS/P01/videos/P01_01.MP4"],
        [("EPIC-KITCHENS/P01/videos/P01_01.MP4", "open drawer", "train", 0.5, 1.5, "P01_01")],
        EPIC_LISTS,
    ),
    Case(
        "bdd100k",
        ["videos/train/0000abcd-1234ef56.mov", "videos/val/0000abcd-1234ef57.mov"],
        [
            whole(f"videos/{split}/0000abcd-1234ef5{n}.mov", "", split, f"0000abcd-1234ef5{n}")
            for split, n in (("train", 6), ("val", 7))
        ],
        {"labels/det_20/det_train.json": []},
    ),
    Case(
        "webvid2m",
        ["videos/000001_000050/1234567.mp4", "videos/000001_000050/8.mp4"],
        [
            whole("videos/000001_000050/1234567.mp4", "", "train", "1234567"),
            whole("videos/000001_000050/8.mp4", "", "val", "8"),
        ],
        {
            "results_2M_train.csv": "videoid,contentUrl,duration,page_dir,name\n"
            '1234567,https://x/y.mp4,PT00H00M18S,000001_000050,"A lake,\nat dawn"\n',
            "results_2M_val.csv": "videoid,contentUrl,duration,page_dir,name\n"
            "8,https://x/z.mp4,PT00H00M18S,000001_000050,Rain\n",
        },
    ),
    Case(
        "howto100m",
        ["AbCdEfGhIjK.webm", "-bCdEfGhIjK.mp4"],
        [
            whole("AbCdEfGhIjK.webm", "Food and Entertaining", "", "AbCdEfGhIjK"),
            whole("-bCdEfGhIjK.mp4", "Hobbies, Crafts", "", "-bCdEfGhIjK"),
        ],
        {
            "HowTo100M_v1.csv": "video_id,category_1,category_2,rank,task_id\n"
            "AbCdEfGhIjK,Food and Entertaining,Recipes,17,10385\n"
            '-bCdEfGhIjK,"Hobbies, Crafts",,1,2\n'
        },
    ),
    Case(
        "meccano",
        ["MECCANO_RGB_Videos/0003.mp4"],
        [("MECCANO_RGB_Videos/0003.mp4", "take_bolt", "train", 0.5, 1.0, "0003")],
        {"MECCANO_train_actions.csv": "0003,17,take_bolt,00006.jpg,00011.jpg\n"},
        (4, 5, 6, 7),
    ),
    Case(
        "assembly101",
        ["recordings/seq a/C10095_rgb.mp4", "recordings/seq a/HMC_1_mono10bit.mp4"],
        [
            ("recordings/seq a/C10095_rgb.mp4", "pick up wheel", "train", 0.5, 1.5, "seq a"),
            ("recordings/seq a/HMC_1_mono10bit.mp4", "pick up wheel", "val", 0.5, 1.5, "seq a"),
        ],
        {
            f"annotations/fine-grained-annotations/{split}.csv": ASSEMBLY_HEAD
            + f"10,seq a/{view}.mp4,15,45,512,3,17,pick up wheel,pick up,wheel,a00,truck,1,1\n"
            for split, view in (("train", "C10095_rgb"), ("validation", "HMC_1_mono10bit"))
        },
    ),
    Case(
        "ucf101",
        [
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
            "UCF-101/HandStandPushups/v_HandstandPushups_g08_c01.avi",
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        ],
        [
            whole(
                "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
                "ApplyEyeMakeup",
                "train",
                "ApplyEyeMakeup_g08",
            ),
            whole(
                "UCF-101/HandStandPushups/v_HandstandPushups_g08_c01.avi",
                "HandstandPushups",
                "train",
                "HandstandPushups_g08",
            ),
            whole(
                "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
                "ApplyEyeMakeup",
                "test",
                "ApplyEyeMakeup_g01",
            ),
        ],
        UCF_LISTS,
    ),
    Case(
        "hmdb51",
        [f"brush_hair/{HMDB}0.avi", f"brush_hair/{HMDB}1 #;&!.avi", f"brush_hair/{HMDB}2.avi"],
        [
            whole(f"brush_hair/{HMDB}0.avi", "brush_hair", "train", "April_09"),
            whole(f"brush_hair/{HMDB}1 #;&!.avi", "brush_hair", "test", "April_09"),
        ],
        {
            "testTrainMulti_7030_splits/brush_hair_test_split1.txt": f"{HMDB}0.avi 1 \n"
            f"{HMDB}1 #;&!.avi 2 \n{HMDB}2.avi 0 \n"
        },
    ),
    Case(
        "diving48",
        ["rgb/xY12abcdEFG_00009.mp4", "rgb/xY12abcdEFG_00010.mp4"],
        [
            whole("rgb/xY12abcdEFG_00009.mp4", "Back 15som 05Twis FREE", "train", "xY12abcdEFG"),
            whole("rgb/xY12abcdEFG_00010.mp4", "Front 1som 0Twis PIKE", "test", "xY12abcdEFG"),
        ],
        {
            "Diving48_vocab.json": [
                ["Back", "15som", "05Twis", "FREE"],
                ["Front", "1som", "0Twis", "PIKE"],
            ],
            "Diving48_V2_train.json": [
                {"vid_name": "xY12abcdEFG_00009", "label": 0, "start_frame": 0, "end_frame": 16}
            ],
            "Diving48_V2_test.json": [
                {"vid_name": "xY12abcdEFG_00010", "label": 1, "start_frame": 0, "end_frame": 16}
            ],
        },
    ),
    Case(
        "r2v2",
        [],
        [
            whole("r2v2/train/0000/AbCdEf_hIjK_*#fps=30", "", "train", "AbCdEf_hIjK"),
            whole("r2v2/val/4095/Ab_*#fps=30", "", "val", "Ab"),
        ],
        frames=(1, 2, 3, 4),
        pictures={
            **{f"r2v2/train/0000/AbCdEf_hIjK_{150 * i - 140:06d}.jpg": i for i in range(1, 5)},
            **{f"r2v2/val/4095/Ab_{i:06d}.jpg": i for i in range(4)},
        },
    ),
]
# The same sets as extracted frames.
FRAMES = [
    Case(
        "epic_kitchens_100",
        [],
        [("EPIC-KITCHENS/P01/rgb_frames/P01_01#fps=60", "open drawer", "train", 4 / 60, 8 / 60,
          "P01_01")],
        EPIC_LISTS
        | {f"{EPIC}train.csv": EPIC_LISTS[f"{EPIC}train.csv"].replace("31,90", "4,7")},
        (4, 5, 6, 7),
        {f"EPIC-KITCHENS/P01/rgb_frames/P01_01/frame_{i:010d}.jpg": i for i in range(1, 12)},
    ),
    Case(
        "epic_kitchens_100",
        [],
        [("EPIC-KITCHENS/P01/rgb_frames/P01_101#fps=50", "open drawer", "train", 4 / 50, 8 / 50,
          "P01_101")],
        EPIC_LISTS
        | {
            f"{EPIC}train.csv": EPIC_LISTS[f"{EPIC}train.csv"]
            .replace("31,90", "4,7")
            .replace("P01_01", "P01_101")
        },
        (4, 5, 6, 7),
        {f"EPIC-KITCHENS/P01/rgb_frames/P01_101/frame_{i:010d}.jpg": i for i in range(1, 12)},
    ),
    Case(
        "meccano",
        [],
        [("MECCANO_RGB_frames/0003#fps=12", "take_bolt", "train", 4 / 12, 8 / 12, "0003")],
        {
            "MECCANO_train_actions.csv": "video,id,name,first,last\n"
            "0003,17,take_bolt,00004.jpg,00007.jpg\n"
        },
        (4, 5, 6, 7),
        {f"MECCANO_RGB_frames/0003/{i:05d}.jpg": i for i in range(1, 12)},
    ),
    Case(
        "assembly101",
        [],
        [("recordings/s/C1_rgb#fps=30", "pick up", "train", 4 / 30, 8 / 30, "s")],
        {
            "annotations/fine-grained-annotations/train.csv": "id,video,start_frame,end_frame,"
            "action_cls\n1,s/C1_rgb.mp4,4,8,pick up\n"
        },
        (4, 5, 6, 7),
        {f"recordings/s/C1_rgb/C1_rgb_{i:010d}.jpg": i for i in range(1, 12)},
    ),
]  # fmt: skip
# Their lists name more than one video; nothing lists those of the others.
LISTED = [c for c in CASES if c.lists and len({row[0] for row in c.rows}) > 1]
LISTED = [c for c in LISTED if c.kind != "bdd100k"]
by_kind = pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, of which trees hold hard links."""
    root = tmp_path_factory.mktemp("store")
    encode(root / "short.mp4", map(level, range(16)), FPS)
    encode(root / "long.mp4", map(level, range(25)), 1)
    return root


@pytest.fixture
def build(store: Path, tmp_path: Path) -> Callable[[Case], Path]:
    """Makes the tree of a case."""

    def make(case: Case) -> Path:
        root = tmp_path / ODD_ROOT
        root.mkdir()
        for name in case.videos:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(store / ("long.mp4" if case.long else "short.mp4"), root / name)
        for name, i in case.pictures.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(jpeg(i))
        for name, content in case.lists.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            (root / name).write_text(text, "utf-8")
        return root

    return make


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    status = 0
    try:
        main([str(word) for word in words])
    except SystemExit as leave:
        status = int(leave.code or 0)
    return status, *capsys.readouterr()


def told(data: Manifest, root: Path) -> list[tuple]:
    """The rows, with paths from the root on."""
    return [
        (str(Path(r.path).relative_to(root)), r.label, r.split, r.start_s, r.end_s, r.source_id)
        for r in data.rows
    ]


def frames_of(data: Manifest, row: int = 0) -> list[int]:
    """Which frames the clip of a row holds, read as training reads them."""
    sample = ClipDataset(data, SPEC, LOOK, backend="pyav", random_clips=False)[row]
    assert sample["valid"], sample["cause"]
    grey = sample["clip"].float().mean(dim=(0, 2, 3))
    return ((grey - 20) / 8).round().int().tolist()


def case_of(kind: str) -> Case:
    return next(case for case in CASES if case.kind == kind)


@pytest.mark.parametrize("case", CASES + FRAMES, ids=lambda case: case.rows[0][0])
def test_a_tree_becomes_a_manifest_that_leads_to_clips(case, build, capsys) -> None:
    root = build(case)
    status, out, err = command(capsys, "data", "manifest", case.kind, root)
    assert (status, err) == (0, ""), err
    assert out.startswith(f"{root / 'manifest.csv'}: ") and "left out" not in out, out
    data = open_data(root)
    assert told(data, root) == case.rows
    assert tuple(frames_of(data)) == case.frames
    assert [frames_of(data, row) for row in range(len(data))]  # each can be read
    assert not any(why for _, why in tried([row.path for row in data.rows]))


def test_every_kind_of_the_table_and_of_the_lecture_is_tested() -> None:
    tested = {case.kind for case in CASES} | {"list", "waymo_open", "videonet"}
    folds = {f"{kind}_{fold}" for kind in ("ucf101", "hmdb51") for fold in (2, 3)}
    assert tested | folds == KINDS.keys() and {spec.key for spec in SPECS} <= tested
    assert all(layout for _, layout in KINDS.values())
    cards = Path(__file__).parents[1].joinpath("book/reference/datasets.md").read_text("utf-8")
    assert [kind for kind in KINDS if not re.search(rf"[` ]{kind}[` ]", cards)] == []


@pytest.mark.parametrize("case", LISTED, ids=lambda case: case.kind)
def test_a_missing_video_is_counted_and_named(case, build, capsys) -> None:
    root = build(case)
    (root / case.rows[0][0]).unlink()
    status, out, _ = command(capsys, "data", "manifest", case.kind, root)
    assert status == 0 and told(open_data(root), root) == case.rows[1:]
    assert "1 rows left out, whose 1 files are not there, such as " in out
    assert Path(case.rows[0][0]).stem in out


@by_kind
def test_no_video_at_all_is_one_error(case, build, capsys) -> None:
    root = build(case)
    for name in [*case.videos, *case.pictures]:
        (root / name).unlink()
    status, out, err = command(capsys, "data", "manifest", case.kind, root)
    assert (status, out) == (2, "") and err.count("\n") == 1 and str(root) in err
    assert "Expected " in err and KINDS[case.kind][1].split(",")[0] in err
    assert not (root / "manifest.csv").exists()


@by_kind
def test_an_empty_folder_is_one_error(case, tmp_path, capsys) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        status, out, err = command(capsys, "data", "manifest", case.kind, root)
        assert (status, out) == (2, "") and err.count("\n") == 1 and str(root) in err


def add(case: Case, name: str, text: str) -> Case:
    """The case with more in one of its lists."""
    return Case(
        case.kind, case.videos, case.rows, case.lists | {name: str(case.lists[name]) + text}
    )


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("kinetics400", "annotations/train.csv", "another,Ab3-xYz_Q1w,37,47,train\n"),
        ("metadata", "metadata.csv", "test/q'q.mp4,x,train,\n"),
        ("howto100m", "HowTo100M_v1.csv", "AbCdEfGhIjK,Other,,1,1\n"),
        ("hmdb51", "testTrainMulti_7030_splits/brush_hair_test_split1.txt", f"{HMDB}0.avi 2\n"),
        ("ucf101", "ucfTrainTestlist/testlist01.txt",
         "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n"),
        ("meccano", "MECCANO_train_actions.csv", "0003,18,other,00006.jpg,00011.jpg\n"),
    ],
)  # fmt: skip
def test_of_a_repeated_id_the_first_stays(kind, name, line, build, capsys) -> None:
    case = add(case_of(kind), name, line)
    root = build(case)
    status, out, _ = command(capsys, "data", "manifest", kind, root)
    assert status == 0 and told(open_data(root), root) == case.rows
    assert "1 rows left out that repeat an earlier one, such as " in out


def test_a_segment_without_length_is_counted_and_named(build, capsys) -> None:
    line = "0003,17,take_bolt,00011.jpg,00006.jpg\n"
    root = build(add(case_of("meccano"), "MECCANO_train_actions.csv", line))
    status, out, _ = command(capsys, "data", "manifest", "meccano", root)
    assert status == 0 and len(open_data(root)) == 1
    assert "1 rows left out that end where they begin, such as " in out and "0003.mp4 at 0.9" in out


WRONG = [
    ("kinetics400", "annotations/val.csv", K_HEAD + "a,b,1,2,train\n", "line 2: split 'train'"),
    ("kinetics400", "annotations/val.csv", K_HEAD + "a,b,1,2,holdout\n", "line 2: split 'holdout'"),
    ("kinetics400", "annotations/val.csv", K_HEAD + "a,b,soon,2,val\n", "time_start is 'soon'"),
    ("kinetics400", "annotations/val.csv", K_HEAD + "a,b,c,1,2,val\n", "line 2 has 6 fields"),
    ("kinetics400", "annotations/val.csv", "label,id\na,b\n", "no column 'youtube_id'"),
    ("kinetics400", "annotations/val.csv", K_HEAD + '"a,b,1,2,val\n', "line 2: unexpected end"),
    ("kinetics400", "annotations/val.csv", b"\xff\xfe", "not UTF-8"),
    ("metadata", "metadata.csv", "file_name,split\nx.mp4,dev\n", "line 2: split 'dev'"),
    ("metadata", "metadata.csv", "path,split\nx.mp4,val\n", "no column 'file_name'"),
    ("metadata", "metadata.csv", "file_name,split\n,val\n", "line 2: no file_name"),
    ("something_something_v2", "labels/train.json", "[{]", "it is not JSON"),
    ("something_something_v2", "labels/train.json", '{"a": 1}', "no list"),
    ("something_something_v2", "labels/train.json", '[{"template": "x"}]', "no 'id'"),
    ("something_something_v2", "labels/train.json", '[{"id": "1", "template": "No [x]"}]',
     "id 1: 'No x' is not in labels.json"),
    ("ego4d", "ego4d.json", '{"videos": {}}', "'videos' is {}, no list"),
    ("ego4d", "ego4d.json", '{"videos": [{"video_uid": "a"}]}', "no 'duration_sec'"),
    ("ego4d", "ego4d.json", '{"videos": [{"video_uid": "a", "duration_sec": null}]}',
     "a: duration_sec is None"),
    ("ego4d_moments", "v2/annotations/moments_val.json", '{"videos": [{"video_uid": "a", "clips": '
     '[{"annotations": [{"labels": [{"label": "x"}]}]}]}]}', "no 'video_start_frame'"),
    ("epic_kitchens_100", f"{EPIC}validation.csv",
     EPIC_HEAD + "a,P01,P01_02,0,12.5,13,1,2,a,b,3,c,8,d,e\n",
     "line 2: start_timestamp is '12.5'. Give hours"),
    ("webvid2m", "results_2M_val.csv", "videoid,name\n1,a\n", "no column 'page_dir'"),
    ("howto100m", "HowTo100M_v1.csv", "video_id,a\n1,2\n", "no column 'category_1'"),
    ("meccano", "MECCANO_train_actions.csv", "0003,17,a,1.jpg,x.jpg\n", "line 1: frame is 'x'"),
    ("meccano", "MECCANO_train_actions.csv", "0003,17,a,1.jpg\n", "line 1 has 4 fields, not 5"),
    ("assembly101", "annotations/fine-grained-annotations/train.csv",
     "video,start_frame,end_frame\nx.mp4,1,2\n", "line 2: 'x.mp4' is no sequence/view"),
    ("assembly101", "annotations/fine-grained-annotations/train.csv",
     "video,start_frame,end_frame\ns/x.mp4,1,-2\n", "line 2: end_frame is '-2'"),
    ("ucf101", "ucfTrainTestlist/testlist01.txt", "Sleep/v_Sleep_g01_c01.avi\n",
     "line 1: 'Sleep' is not in classInd"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", "ApplyEyeMakeup\n", "line 1: not 'number class'"),
    ("hmdb51", "testTrainMulti_7030_splits/brush_hair_test_split1.txt", f"{HMDB}0.avi 3\n",
     "line 1: '3' is no split: 0, 1 or 2"),
    ("diving48", "Diving48_V2_test.json", '[{"vid_name": "a", "label": 2}]',
     "a: label 2 is not in"),
    ("diving48", "Diving48_V2_test.json", '[{"vid_name": "a", "label": "x"}]', "a: label is 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "text", "words"), WRONG)
def test_a_bad_list_is_one_error(kind, name, text, words, build, capsys) -> None:
    root = build(case_of(kind))
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = command(capsys, "data", "manifest", kind, root)
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    assert f"{root / name}: " in err and words in err, err
    assert not (root / "manifest.csv").exists()


def test_replaced_files_of_kinetics_win(build) -> None:
    root = build(case_of("kinetics400"))
    name = "Ab3-xYz_Q1w_000037_000047.mp4"
    mended = root / "replacement/replacement_for_corrupted_k400" / name
    mended.parent.mkdir(parents=True)
    shutil.copy(root / "train" / name, mended)
    assert next(iter(Listing("kinetics400", root))).path == str(mended)


@pytest.mark.parametrize("fold", [2, 3])
def test_other_splits_of_ucf101_and_hmdb51(fold, build) -> None:
    case = case_of("hmdb51")
    name = "testTrainMulti_7030_splits/brush_hair_test_split"
    lists = {f"{name}{fold}.txt": f"{HMDB}2.avi 2\n"}
    root = build(Case("hmdb51", case.videos, [], lists))
    (row,) = Listing(f"hmdb51_{fold}", root)
    assert row.path.endswith("2.avi") and row.split == "test"
    shutil.rmtree(root)
    lists = {key.replace("01.", f"0{fold}."): text for key, text in UCF_LISTS.items()}
    root = build(Case("ucf101", case_of("ucf101").videos, [], lists))
    assert len(list(Listing(f"ucf101_{fold}", root))) == 3


def test_older_names_of_something_something(build) -> None:
    case = case_of("something_something_v2")
    stem = "something-something-v2-"
    lists = {key.replace("labels/", stem, 1): text for key, text in case.lists.items()}
    root = build(Case(case.kind, case.videos, case.rows, lists))
    assert [row.split for row in Listing(case.kind, root)] == ["train", "test"]


def test_metadata_in_the_folders_of_splits(build) -> None:
    lists = {f"{split}/metadata.csv": "file_name,label\nx y.mp4,a\n" for split in ("train", "test")}
    root = build(Case("metadata", ["train/x y.mp4", "test/x y.mp4"], [], lists))
    assert [(row.split, row.label) for row in Listing("metadata", root)] == [
        ("test", "a"),
        ("train", "a"),
    ]


def test_ego4d_labels_that_are_not_primary_are_left_out(build) -> None:
    case = case_of("ego4d_moments")
    lists = {key: json.dumps(text) for key, text in case.lists.items()}
    lists["v2/annotations/moments_val.json"] = lists["v2/annotations/moments_val.json"].replace(
        "true", "false"
    )
    root = build(Case(case.kind, case.videos, case.rows, lists, long=True))
    assert [row.split for row in Listing(case.kind, root)] == ["train"]


def test_epic_test_segments_have_no_label_and_numbers_stand_without_names(build) -> None:
    case = case_of("epic_kitchens_100")
    lists = {f"{EPIC}train.csv": case.lists[f"{EPIC}train.csv"]}
    head = ",".join(EPIC_HEAD.split(",")[:8])
    lists[f"{EPIC}test_timestamps.csv"] = head + "\na,P01,P01_01,0,00:00:01,00:00:02,60,120\n"
    root = build(Case(case.kind, case.videos, case.rows, lists))
    assert [(row.label, row.split) for row in Listing(case.kind, root)] == [
        ("3 8", "train"),
        ("", "test"),
    ]


def test_a_broken_walk_is_one_error(build, capsys) -> None:
    root = build(case_of("walking_tours"))
    (root / "Zürich.mp4").write_bytes(b"no video")
    status, _, err = command(capsys, "data", "manifest", "walking_tours", root)
    assert status == 2 and err.count("\n") == 1 and f"{root / 'Zürich.mp4'}: reading stops" in err


def test_sound_that_outlasts_the_pictures_makes_no_video_longer(tmp_path) -> None:
    import av

    path = tmp_path / "Venice.mp4"
    with av.open(str(path), "w") as out:
        video, sound = out.add_stream("libx264", rate=1), out.add_stream("aac", rate=8000)
        video.width = video.height = 32
        for i in range(12):
            out.mux(video.encode(av.VideoFrame.from_ndarray(level(i), "rgb24")))
        out.mux(video.encode(None))
        for i in range(60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 8000 * i
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    with av.open(str(path)) as file:
        assert file.duration / 1e6 > 50
    assert [(row.start_s, row.end_s) for row in Listing("walking_tours", tmp_path)] == [(0, 12)]


def test_a_published_list(build, capsys) -> None:
    root = build(Case("list", ["a b.mp4"], [], {"train.txt": "a b.mp4 3\ngone.mp4 1\n"}))
    status, out, _ = command(capsys, "data", "manifest", "list", root / "train.txt")
    assert status == 0 and "gone.mp4" in out
    assert told(open_data(root), root) == [whole("a b.mp4", "3")]
    assert frames_of(open_data(root)) == [6, 7, 8, 9]
    (root / "train.txt").rename(root / "manifest.csv")
    status, _, err = command(capsys, "data", "manifest", "list", root / "manifest.csv")
    assert status == 2 and "would be written over" in err


def test_videonet_says_that_there_is_none(tmp_path, capsys) -> None:
    status, _, err = command(capsys, "data", "manifest", "videonet", tmp_path)
    assert status == 2 and f"{tmp_path}: VideoNet was never released" in err
    assert "layout is not public" in err and err.count("\n") == 1


def test_one_word_is_a_folder_and_a_kind_needs_one(build, tmp_path, capsys, monkeypatch) -> None:
    root = build(case_of("folder"))
    assert command(capsys, "data", "manifest", root)[0] == 0
    assert told(open_data(root), root) == case_of("folder").rows
    monkeypatch.chdir(tmp_path)
    for words, message in {
        "ucf101": "ucf101: no folder is given. Write: vidlearn data manifest ucf101 ROOT",
        "ucf11 x": "no kind of data set 'ucf11'; known: folder, list, metadata, kinetics400",
        "ucf101 x": "x: no such folder. Give one laid out as UCF-101/<class>/*.avi",
    }.items():
        status, _, err = command(capsys, "data", "manifest", *words.split())
        assert status == 2 and message in err and err.count("\n") == 1
    (tmp_path / "ucf101").mkdir()  # a folder that is there is one
    assert "no videos in it" in command(capsys, "data", "manifest", "ucf101")[2]


def test_stats(build, capsys) -> None:
    root = build(case_of("assembly101"))
    command(capsys, "data", "manifest", "assembly101", root)
    status, out, _ = command(capsys, "data", "stats", root)
    assert status == 0 and out.splitlines() == [
        f"{root / 'manifest.csv'}: 2 rows of 2 videos from 1 sources",
        "classes: 1; rows without label: 0",
        "splits: train 1, val 1",
        "hours: 0.001 in 2 segments; rows that go to the end of their video: 0",
        "missing files: 0",
    ]
    (root / case_of("assembly101").videos[0]).unlink()
    out = command(capsys, "data", "stats", root)[1]
    assert out.splitlines()[-1].startswith("missing files: 1, such as ") and "C10095" in out


def test_adapters_stream(build) -> None:
    """The first row comes before the second line is looked at."""
    root = build(add(case_of("howto100m"), "HowTo100M_v1.csv", "too,short\n"))
    rows = iter(Listing("howto100m", root))
    assert next(rows).source_id == "AbCdEfGhIjK"
    with pytest.raises(VidlearnError, match="line 4 has 2 fields"):
        list(rows)


# ---------------------------------------------------------------- pictures


def waymo(path: Path, cameras: list, times: list[int], levels: list[int], **more: object) -> None:
    """A camera_image component, two pictures a row group."""
    import pyarrow
    from pyarrow import parquet

    columns = {
        "key.segment_context_name": [path.stem] * len(times),
        sequences.TIME: times,
        sequences.CAMERA: pyarrow.array(cameras, pyarrow.int8() if 1 in cameras else None),
        sequences.IMAGE: [jpeg(i) for i in levels],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns | more), path, row_group_size=2)


@pytest.mark.parametrize("names", [[1, 2, 3, 4, 5], list(sequences.CAMERAS)])
def test_waymo(names, tmp_path, capsys) -> None:
    root, start = tmp_path / ODD_ROOT, 1550083467346370
    path = root / "training/camera_image/100_1000.parquet"
    shuffled = [5, 0, 3, 1, 4, 2]
    cells = [(names[c], start + 100_000 * t, 4 * c + t) for t in shuffled for c in range(5)]
    waymo(path, *map(list, zip(*cells)))
    status, out, _ = command(capsys, "data", "manifest", "waymo_open", root)
    assert status == 0 and ": 5 videos, 0 classes" in out
    data = open_data(root)
    assert told(data, root) == [
        whole(f"training/camera_image/100_1000.parquet#camera={c}", "", "train", "100_1000")
        for c in range(1, 6)
    ]
    for c in range(5):
        assert frames_of(data, c) == [4 * c + t for t in (1, 2, 3, 4)]
    workers = eval_loader(ClipDataset(data, SPEC, LOOK, backend="pyav"), 3, workers=2)
    assert all(batch.valid.all() for batch in workers)  # pyarrow has run before the fork
    table = sequences.frame_table(data.rows[0].path)
    assert table.fps == pytest.approx(10) and table.pts_s[-1] == pytest.approx(0.5)


def test_waymo_version_1_leads_to_version_2(tmp_path, capsys) -> None:
    old = tmp_path / "training" / "segment-1_with_camera_labels.tfrecord"
    old.parent.mkdir()
    old.touch()
    status, _, err = command(capsys, "data", "manifest", "waymo_open", tmp_path)
    assert status == 2 and err.count("\n") == 1
    assert f"{old}: this is version 1" in err and "gs://waymo_open_dataset_v_2_0_1" in err
    old.unlink()
    status, _, err = command(capsys, "data", "manifest", "waymo_open", tmp_path)
    assert status == 2 and "no videos in it. Expected {training,validation,testing}/" in err


def test_what_is_wrong_with_parquet_is_named(tmp_path, monkeypatch) -> None:
    import pyarrow
    from pyarrow import parquet

    broken, other = tmp_path / "broken.parquet", tmp_path / "other.parquet"
    broken.write_bytes(b"PAR1 cut short")
    parquet.write_table(pyarrow.table({sequences.TIME: [1], sequences.CAMERA: [1]}), other)
    for path, words in {broken: "reading stops", other: r"no column \[CameraImage"}.items():
        with pytest.raises(VideoError, match=words):
            sequences.frame_table(f"{path}#camera=1")
    good = tmp_path / "good.parquet"
    waymo(good, [1, 1], [0, 1], [1, 2])
    with pytest.raises(VideoError, match=r"no pictures of camera 2. Give one of 1 \(FRONT\)"):
        sequences.frame_table(f"{good}#camera=2")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs the package pyarrow.*vidlearn\[waymo\]"):
        sequences.frame_table(f"{other}#camera=3")


def sequence(root: Path, numbers: list[int], name: str = "", end: str = "jpg") -> Path:
    root.mkdir(exist_ok=True, parents=True)
    for i in numbers:
        (root / f"{name}{i:05d}.{end}").write_bytes(jpeg(i))
    return root


def test_times_follow_the_numbers_and_a_gap_stays_one(tmp_path) -> None:
    folder = sequence(tmp_path / "a #b", [3, 1, 2, 7])
    (folder / "notes.txt").touch()
    (folder / "._00001.jpg").touch()
    table = sequences.frame_table(f"{folder}#fps=2")
    assert table.pts_s.tolist() == [0.5, 1.0, 1.5, 3.5] and table.fps == pytest.approx(1)
    assert (table.width, table.height, table.n_frames) == (32, 32, 4)
    clip = sequences.frames_at(f"{folder}#fps=2", [3, 0, 3])
    assert [round((float(f.float().mean()) - 20) / 8) for f in clip] == [7, 1, 7]
    sequence(folder, [9])  # a new picture is seen
    os.utime(folder, (1, 1))
    assert sequences.frame_table(f"{folder}#fps=2").n_frames == 5
    rows = (Row(f"{folder}#fps=2", start_s=1.0, end_s=1.6),)
    spec = ClipSpec(frames=2, stride_frames=1)
    sample = ClipDataset(Manifest(rows, (), "x"), spec, LOOK, random_clips=False)[0]
    assert sample["valid"] and round((float(sample["clip"][0, 0, 0, 0]) - 20) / 8) == 2


def test_what_is_wrong_with_pictures_is_named(tmp_path) -> None:
    two = sequence(sequence(tmp_path / "two", [1], "a_"), [1], "b_")
    same = sequence(tmp_path / "same", [1])
    (same / "1.jpg").write_bytes(jpeg(1))
    empty = tmp_path / "empty"
    empty.mkdir()
    for mark, words in {
        f"{two}#fps=1": r"different names \(a_, b_\). Give FOLDER/NAME\*",
        f"{same}#fps=1": "have one number",
        f"{empty}#fps=1": "no numbered pictures",
        f"{tmp_path}/gone#fps=1": "there is no .*gone",
        f"{two}/a_*#fps=0": "no rate of 0",
    }.items():
        with pytest.raises(VideoError, match=words):
            sequences.frame_table(mark)
    assert sequences.frame_table(f"{two}/a_*#fps=1").n_frames == 1
    with pytest.raises(VideoError, match=r"there is no frame \[1\]: it has 1 pictures"):
        sequences.frames_at(f"{two}/a_*#fps=1", [1])
    odd = sequence(tmp_path / "odd", [1, 2, 3])
    imsave(odd / "00002.jpg", level(1)[:16])
    (odd / "00003.jpg").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="picture 1 has 32x16, the first 32x32"):
        sequences.frames_at(f"{odd}#fps=1", [0, 1])
    with pytest.raises(VideoError, match=r"00003\.jpg cannot be read"):
        sequences.frames_at(f"{odd}#fps=1", [2])
    whole_of = jpeg(3) + b"\0" * 9  # room at the end harms nobody
    (odd / "00003.jpg").write_bytes(whole_of)
    assert sequences.frames_at(f"{odd}#fps=1", [2]).shape == (1, 32, 32, 3)
    (odd / "00003.jpg").write_bytes(whole_of[:-15])
    with pytest.raises(VideoError, match=r"00003\.jpg is cut short"):
        sequences.frames_at(f"{odd}#fps=1", [2])
    hurt = bytearray(noisy())
    del hurt[len(hurt) // 2 : -2]
    (odd / "00003.jpg").write_bytes(hurt)
    with pytest.raises(VideoError, match=r"00003\.jpg cannot be read"):
        sequences.frames_at(f"{odd}#fps=1", [2])
    paths = [f"{odd}#fps=1", f"{tmp_path}/gone#fps=1"]
    bad = sorted(dict(tried(paths)).items(), key=lambda one: paths.index(one[0]))
    assert [path for path, _ in bad] == [f"{odd}#fps=1", f"{tmp_path}/gone#fps=1"]
