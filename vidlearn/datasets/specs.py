"""Public video datasets as data: what a table in the lecture said, what holds, and who says so.

Input: none. Output: SPECS, one DatasetSpec a dataset with one Cell a number, and table(), the
same as rows for a page. Traded: no code here downloads or reads these sets; a reader decides by
this table whether to. Taught in the chapter "Video datasets and what they cost".

A number is either one that somebody published or measured, or the word "about" stands before
it. A source with a date was read on that date; a source without one is cited by other sources
that were, and was not opened again.
"""

from __future__ import annotations

from dataclasses import dataclass

READ = "2026-11-22"  # the day on which the sources below were read
NOT_READ = ""

_BDD = "bdd100k/bdd100k doc/source"
_EPIC = "computed from EPIC_100_video_info.csv"
_MIECH = "Miech et al., arXiv 1906.03327"
_RAGUSA = "Ragusa et al., arXiv 2209.08691"
_VINCE = "danielgordon10/vince README"
_VITO = "Parthasarathy et al., arXiv 2210.06433"


@dataclass(frozen=True)
class Cell:
    """One fact.

    Args:
        value: what holds, in words; "" is not known.
        number: the same in the unit of its column (seconds, videos, hours, bytes), where it is
            one number.
        slide: what the lecture's slide said; "" if it said nothing.
        wrong: what is wrong with that; "" if nothing is.
        source: who says so.
        checked: the day on which the source was read, or "".
    """

    value: str = ""
    number: float | None = None
    slide: str = ""
    wrong: str = ""
    source: str = ""
    checked: str = READ


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset: its average length, videos, hours, frame size and size on disk as Cells.

    get is how it is had; note holds what no single column can: terms, what else the slide said, a
    trap for readers. The hours are those of one of so many `cameras`.
    """

    key: str
    name: str
    on_slide: bool
    average_s: Cell
    videos: Cell
    hours: Cell
    frame_size: Cell
    disk_bytes: Cell
    licence: str
    get: str
    note: str = ""
    cameras: int = 1


SPECS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        key="kinetics400",
        name="Kinetics-400",
        on_slide=True,
        average_s=Cell("10.0 s", 10.0, "10.2", "851 h are 306,245 x 10.0 s; 10.2 s make 868 h",
            "computed from the annotation files of cvdfoundation/kinetics-dataset"),
        videos=Cell("306,245 in the lists, 299,758 still to be had", 306_245, "400",
            "400 is the number of classes", "annotation files of cvdfoundation/kinetics-dataset"),
        hours=Cell("851 h", 851.0, "851", "", "306,245 x 10.0 s"),
        frame_size=Cell("mixed, as uploaded, up to 1920x1080", None, "340x256",
            "the size of a reduced copy that papers train on", "cvdfoundation/kinetics-dataset"),
        disk_bytes=Cell("443 GB; the copy of height 256: 132 GB", 443e9, "", "",
            "a user's measure, cvdfoundation/kinetics-dataset#15; video-nonlocal-net DATASET.md"),
        licence="lists CC BY 4.0, videos under the terms of each uploader",
        get="clone cvdfoundation/kinetics-dataset, run its k400_downloader.sh; no form",
        note="Balanced, says the slide: only a floor of 400 clips a class holds; training has "
        "about 250 to 1,000. Copies differ in which videos are missing: always report how many.",
    ),
    DatasetSpec(
        key="webvid2m",
        name="WebVid-2M",
        on_slide=True,
        average_s=Cell("18 s", 18.0, "18", "", "m-bain/webvid README"),
        videos=Cell("2.5 million", 2.505e6, "", "missing", "m-bain/webvid README"),
        hours=Cell("13,000 h", 13_000.0, "13k", "", "m-bain/webvid README"),
        frame_size=Cell("about 596x336, with a watermark", None, "320x240",
            "not the size of the previews that were given out", "m-bain/webvid README"),
        disk_bytes=Cell("5 TB", 5e12, "", "", "the author, m-bain/webvid#7"),
        licence="withdrawn by its authors on 23 February 2024",
        get="no longer",
        note="Do not plan on it. Captions hold commas and line breaks.",
    ),
    DatasetSpec(
        key="howto100m",
        name="HowTo100M",
        on_slide=True,
        average_s=Cell("6.5 min a video, 3.6 s a clip", 396.8, "4",
            "4 s is a clip, 135,000 h are videos: 136.6 million x 4 s would be 152,000 h",
            _MIECH, NOT_READ),
        videos=Cell("1.22 million, cut into 136.6 million clips", 1.22e6, "", "missing",
            _MIECH, NOT_READ),
        hours=Cell("134,472 h", 134_472.0, "135k", "", _MIECH, NOT_READ),
        frame_size=Cell("mixed, as uploaded", None, "", "", "antoine77340/howto100m"),
        disk_bytes=Cell("not published; about 30 TB at 0.5 Mbit/s", 30e12, "", "", "estimate"),
        licence="by form from its authors; videos under the terms of each uploader",
        get="by a form at di.ens.fr/willow/research/howto100m",
        note="The text is recognised speech: it overlaps, and is out of step with the picture.",
    ),
    DatasetSpec(
        key="epic_kitchens_100",
        name="EPIC-KITCHENS-100",
        on_slide=True,
        average_s=Cell("514.4 s", 514.4, "510", "", _EPIC),
        videos=Cell("700", 700, "37", "37 is the number of people: 37 x 510 s are 5.2 h",
            _EPIC),
        hours=Cell("100.03 h", 100.028, "100", "", _EPIC),
        frame_size=Cell("1920x1080 in 694 of 700; 59.94 or 50 frames/s and others", None,
            "1920x1080", "", _EPIC),
        disk_bytes=Cell("about 1.4 TB", 1.38e12, "", "",
            "750 GB of 2018, epic-kitchens-55-annotations#3, scaled by hours"),
        licence="CC BY-NC 4.0",
        get="epic_downloader.py of epic-kitchens/epic-kitchens-download-scripts",
        note="Frame numbers count extracted frames at 60 or 50 frames/s, from 1: use the times.",
    ),
    DatasetSpec(
        key="ego4d",
        name="Ego4D",
        on_slide=True,
        average_s=Cell("about 1,370 s", 1369.8, "1446",
            "1446 s x 931 are 374 h: neither 120 nor 3,670", "3,670 h / 9,645 videos"),
        videos=Cell("about 9,645", 9_645, "931", "931 is the number of people with a camera",
            "Grauman et al., arXiv 2110.07058", NOT_READ),
        hours=Cell("3,670 h", 3670.0, "120", "some part of it that the slide does not name",
            "Grauman et al., arXiv 2110.07058, abstract"),
        frame_size=Cell("mostly 1920x1080, many others, some stereo side by side", None,
            "1920x1080", "not all of it", "facebookresearch/Ego4d"),
        disk_bytes=Cell("7.1 TB; the loader's README says 5 TB", 7.1e12, "", "",
            "showlab/videollm-online#14; facebookresearch/Ego4d ego4d/cli"),
        licence="Ego4D licence, signed online; keys last 14 days",
        get="sign online, wait about two days, then pip install ego4d",
        note="Splits belong to the benchmarks: there is no one split of all videos.",
    ),
    DatasetSpec(
        key="meccano",
        name="MECCANO",
        on_slide=True,
        average_s=Cell("1,247 s", 1247.0, "1247", "", _RAGUSA, NOT_READ),
        videos=Cell("20", 20, "20", "", "fpv-iplab/MECCANO"),
        hours=Cell("6.9 h", 6.93, "849",
            "20 x 1,247 s are 6.93 h, as are 299,376 frames at 12 a second", _RAGUSA, NOT_READ),
        frame_size=Cell("1920x1080 at 12 frames/s", None, "1920x1080", "", "fpv-iplab/MECCANO"),
        disk_bytes=Cell("not published; about 16 GB at 5 Mbit/s", 15.6e9, "", "", "estimate"),
        licence="research, not commercial",
        get="iplab.dmi.unict.it/MECCANO",
        note="Segments are named by the files of their first and last frame, such as 00152.jpg.",
    ),
    DatasetSpec(
        key="assembly101",
        name="Assembly101",
        on_slide=True,
        average_s=Cell("426 s", 426.0, "426", "", "assembly-101/assembly101-annotations"),
        videos=Cell("4,321: 362 sequences from up to 12 cameras", 4321, "362",
            "362 is the number of sequences", "cvml-nus/assembly101 on Hugging Face"),
        hours=Cell("513 h of video, 42.8 h of activity", 513.0, "167",
            "fits the 4 head cameras only (171 h)", "Sener et al., arXiv 2203.14712", NOT_READ),
        frame_size=Cell("8 cameras 1920x1080 in colour, 4 on the head 640x480 grey", None,
            "1920x1080", "not those on the head, and the hours were theirs",
            "assembly-101/assembly101-annotations"),
        disk_bytes=Cell("3.1 TB", 3.1e12, "", "", "the authors, assembly101-download-scripts#4"),
        licence="CC BY-NC 4.0",
        get="cvml-nus/assembly101 on Hugging Face, assembly101-download-scripts",
        note="Egocentric, says the slide: 4 of 12 cameras are. Videos have 60 frames/s, "
        "annotations count at 30.",
    ),
    DatasetSpec(
        key="r2v2",
        name="R2V2",
        on_slide=True,
        average_s=Cell("4 stills a video", None, "", "", _VINCE),
        videos=Cell("696,082 give 2,784,328 stills (55,631 and 222,524 for validation)", 696_082,
            "", "missing", _VINCE),
        hours=Cell("none: stills", None, "", "", _VINCE),
        frame_size=Cell("467x280 on average", None, "467x280", "an average, not a size",
            _VINCE),
        disk_bytes=Cell("110 GB, validation 8.8 GB", 110e9, "", "", _VINCE),
        licence="none stated; pictures from YouTube, no longer hosted",
        get="no longer hosted; a script of danielgordon10/vince collects it anew",
        note="Annotated by class, says the slide: no labels were published, only search words.",
    ),
    DatasetSpec(
        key="videonet",
        name="VideoNet",
        on_slide=True,
        average_s=Cell("10 s", 10.0, "10", "", _VITO, NOT_READ),
        videos=Cell("about 1.1 million", 1.0998e6, "", "missing", "3,055 h / 10 s"),
        hours=Cell("3,055 h", 3055.0, "3055", "", _VITO, NOT_READ),
        frame_size=Cell("not published", None, "", "", _VITO, NOT_READ),
        disk_bytes=Cell("not published", None, "", "", _VITO, NOT_READ),
        licence="never released",
        get="not at all",
        note="Annotated by class, says the slide: the class is the query that found the video. "
        "Other sets have the same name.",
    ),
    DatasetSpec(
        key="walking_tours",
        name="Walking Tours",
        on_slide=True,
        average_s=Cell("5,880 s", 5880.0, "5880", "10 x 5,880 s are 16.3 h, not 23 h: one is wrong",
            "Venkataramanan et al., arXiv 2310.08584", NOT_READ),
        videos=Cell("10", 10, "10", "", "shawshankvkt/Walking_Tours on Hugging Face"),
        hours=Cell("16.3 h if the average is right", 16.33, "23", "10 x 5,880 s are 16.3 h",
            "10 x 5,880 s; the paper itself prints 23 h"),
        frame_size=Cell("3840x2160 at 60 frames/s", None, "3840x2160", "",
            "shawshankvkt/Walking_Tours on Hugging Face"),
        disk_bytes=Cell("not published; about 184 GB at 25 Mbit/s", 184e9, "", "", "estimate"),
        licence="the list CC BY 4.0; the videos belong to those who filmed them",
        get="list and scripts: shawshankvkt/Walking_Tours on Hugging Face",
        note="Urban, says the slide: one of the ten is a wildlife safari. The copy of Venice on "
        "figshare is blank after half of its 3 h 40 min (DoRA_ICLR24#4).",
    ),
    DatasetSpec(
        key="something_something_v2",
        name="Something-Something v2",
        on_slide=False,
        average_s=Cell("about 4 s", 4.03, "", "", "as commonly given", NOT_READ),
        videos=Cell("220,847 (168,913 / 24,777 / 27,157)", 220_847, "", "",
            "open-mmlab/mmaction2, facebookresearch/pytorchvideo"),
        hours=Cell("about 247 h", 247.2, "", "", "220,847 x 4.03 s"),
        frame_size=Cell("height 240, width about 320 to 430, 12 frames/s", None, "", "",
            "open-mmlab/mmaction2"),
        disk_bytes=Cell("about 19.4 GB", 19.4e9, "", "", "the download page", NOT_READ),
        licence="research licence of Qualcomm, no copies to others",
        get="an account and a form at qualcomm.com/developer",
        note="Never flip left and right: labels tell the direction.",
    ),
    DatasetSpec(
        key="bdd100k",
        name="BDD100K",
        on_slide=False,
        average_s=Cell("40 s", 40.0, "", "", _BDD),
        videos=Cell("100,000 (70,000 / 10,000 / 20,000)", 100_000, "", "", _BDD),
        hours=Cell("1,111 h", 1111.1, "", "", "100,000 x 40 s"),
        frame_size=Cell("1280x720 at 30 frames/s", None, "", "", _BDD),
        disk_bytes=Cell("1.8 TB", 1.8e12, "", "", "bdd100k/bdd100k doc/source/download.rst"),
        licence="education, research and not-for-profit; the notice of copyright stays",
        get="an account at dl.cv.ethz.ch/bdd100k/data",
        note="Filmed with phones: heed the rotation flag. Boxes belong to the frame at 10 s only.",
    ),
    DatasetSpec(
        key="waymo_open",
        name="Waymo Open (perception, v2)",
        on_slide=False,
        average_s=Cell("19.8 s: 198 frames at 10 a second", 19.8, "", "",
            "waymo-research/waymo-open-dataset"),
        videos=Cell("1,150 segments (798 / 202 / 150), 5 cameras each", 1150, "", "",
            "waymo-research/waymo-open-dataset"),
        hours=Cell("6.3 h a camera", 6.325, "", "", "1,150 x 19.8 s"),
        frame_size=Cell("3 cameras 1920x1280, 2 cameras 1920x886", None, "", "",
            "waymo-research/waymo-open-dataset dataset.proto"),
        disk_bytes=Cell("387 GB of pictures; 683 GB with lidar", 386.735e9, "", "",
            "waymo-research/waymo-open-dataset#688"),
        licence="Waymo Dataset License, not commercial",
        get="sign in at waymo.com/open, then gsutil",
        note="No video files: each picture is a JPEG in a table.",
        cameras=5,
    ),
    DatasetSpec(
        key="ucf101",
        name="UCF101",
        on_slide=False,
        average_s=Cell("7.2 s", 7.21, "", "", "as commonly given", NOT_READ),
        videos=Cell("13,320", 13_320, "", "", "open-mmlab/mmaction2"),
        hours=Cell("27 h", 27.0, "", "", "as commonly given", NOT_READ),
        frame_size=Cell("320x240, 25 frames/s, some 29.97", None, "", "", "1,040 clips, opened"),
        disk_bytes=Cell("6.9 GB", 6.93e9, "", "", "crcv.ucf.edu/data/UCF101", NOT_READ),
        licence="no text; footage from YouTube, for research",
        get="crcv.ucf.edu/data/UCF101.php",
        note="Clips of one group are cut from one scene: never split them at random.",
    ),
    DatasetSpec(
        key="hmdb51",
        name="HMDB51",
        on_slide=False,
        average_s=Cell("about 3 s", 3.12, "", "", "632,635 frames at 30 a second / 6,766"),
        videos=Cell("6,766", 6_766, "", "", "facebookresearch/pytorchvideo, torchvision"),
        hours=Cell("about 5.9 h", 5.86, "", "", "632,635 frames at 30 a second", NOT_READ),
        frame_size=Cell("height 240, width varies, 30 frames/s", None, "", "", "torchvision"),
        disk_bytes=Cell("2 GB", 2e9, "", "", "as commonly given", NOT_READ),
        licence="CC BY 4.0, as its authors say; the films belong to others",
        get="serre-lab.clps.brown.edu/resource, a large human motion database",
        note="Some files hold text that is not UTF-8, at which readers fail.",
    ),
)  # fmt: skip

COLUMN_NOTES: tuple[str, ...] = (
    "EGO, PRE and BAL are not explained: read filmed from head or chest, collected for "
    "pretraining, as many videos for each class.",
    "AVG. DUR is the length of a video in some rows and of a clip in others.",
    "DUR (h) counts each camera once in some rows and the activity once in others.",
    "#VIDEOS holds classes (400), people (37, 931), sequences (362) and videos (20, 10).",
    "The table is the first of the DoRA paper (Venkataramanan et al., arXiv 2310.08584): its "
    "errors came along.",
)

_COLUMNS = {
    "average_s": "average length", "videos": "videos", "hours": "hours",
    "frame_size": "frame size", "disk_bytes": "size on disk",
}  # fmt: skip


def table() -> list[dict[str, str]]:
    """SPECS as rows for a page, in words; sources carry the day on which they were read."""
    rows = []
    for spec in SPECS:
        cells = {head: getattr(spec, field) for field, head in _COLUMNS.items()}
        sources = {f"{c.source} ({c.checked or 'not read again'})" for c in cells.values()}
        said = [f"{head} {cell.slide}" for head, cell in cells.items() if cell.slide]
        wrong = [f"{head}: {cell.wrong}" for head, cell in cells.items() if cell.wrong]
        rows.append(
            {"name": spec.name}
            | {head: cell.value for head, cell in cells.items()}
            | {
                "what the slide said": "; ".join(said) if spec.on_slide else "not on the slide",
                "correction": "; ".join(wrong) or "none",
                "licence": spec.licence,
                "how to get it": spec.get,
                "note": spec.note,
                "source": "; ".join(sorted(sources)),
            }
        )
    return rows
