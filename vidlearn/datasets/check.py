"""Which videos cannot be read, and why?

Input: a data set. Output: the cause of each bad video, a quarantine, a manifest of the good rows,
and a journal, so that the same call goes on. Each video is tried in another process, which may
hang or crash: that costs this video and no other. Traded: one frame stands for all, unless all are
asked for; a call that was cut tries the videos again that it had in hand. Chapter 5.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import compress, islice
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, cast

import numpy as np

from vidlearn.datasets import guard
from vidlearn.datasets.cores import cores
from vidlearn.datasets.files import write_manifest
from vidlearn.datasets.manifest import MARK, VIDEO_SUFFIXES, Manifest, Seen, file_of
from vidlearn.datasets.quarantine import KILLED, SILENT, Quarantine, is_quarantine
from vidlearn.datasets.sequences import frame_table, frames_at
from vidlearn.errors import ConfigError, VideoError, VidlearnError
from vidlearn.storage import AGAIN, iter_frames

LIMIT_S = 60.0  # for a video, or with --full for a frame
MOST_S = 86400.0
KNOWN = ("path", "stamp", "cause", "full")  # what a line of the journal says
Work = Callable[
    [str, Callable[[], None]], Any
]  # of a path; calling the second begins the limit anew


def check_all(
    data: Manifest, out: Path, *, manifest: Path | None = None, limit_s: float = LIMIT_S,
    jobs: int | None = None, full: bool = False, progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Try each video of `data` that the journal does not know; path -> cause of the bad ones.

    `out` names the bad ones, `manifest` the rows of the others, `journal_of(out)` all that were
    tried. jobs: processes, None for one a core. progress(done, all). ConfigError: a choice that
    cannot be, or the manifest would be written over the data's own.
    """
    if not 0 < limit_s <= MOST_S:
        raise ConfigError(f"--limit-s {limit_s:g}: give more than 0 seconds, at most {MOST_S:g}")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: give 1 or more")
    own = Path(data.source) / "manifest.csv" if Path(data.source).is_dir() else Path(data.source)
    lists = {out.resolve(), journal_of(out).resolve()}
    if own.resolve() in lists:
        raise ConfigError(f"{own}: would be written over. Choose another --out")
    if manifest and manifest.resolve() in {own.resolve(), *lists}:
        raise ConfigError(f"{manifest}: would be written over. Choose another --manifest")
    if out.exists() and not is_quarantine(out):
        raise ConfigError(f"{out}: is no list of such videos and stays. Choose another --out")
    if manifest and manifest.suffix.lower() in VIDEO_SUFFIXES:
        raise ConfigError(f"{manifest}: is named as a video. Choose another --manifest")
    known, bad = _known(journal_of(out), full, limit_s), dict[str, str]()
    new = np.ones(len(data.paths), bool)
    for i, path in enumerate(data.paths):
        if (told := known(path)) is not None:
            new[i] = False
            bad |= {path: told} if told else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    quarantine = Quarantine(out, len(new), max_share=1.0)
    quarantine.add(list(bad.items()))
    stamps: dict[str, list[int] | None] = {}

    def todo() -> Iterator[str]:
        for path in compress(data.paths, new):
            stamps[path] = stamp(path)  # before it is read: it may change meanwhile
            yield path

    found = tried(todo(), limit_s, jobs, whole if full else middle)
    with open(journal_of(out), "a") as journal:
        for done, (path, cause) in enumerate(found, len(new) - int(new.sum()) + 1):
            about = {"path": path, "stamp": stamps.pop(path), "full": full, "cause": cause}
            journal.write(json.dumps(about | {"limit_s": limit_s}) + "\n")
            journal.flush()
            if cause:
                bad[path] = cause
                quarantine.add([(path, cause)])
            if progress:
                progress(done, len(new))
    if manifest:
        write_manifest(manifest, (row for row in data.rows if row.path not in bad))
    return {path: bad[path] for path in data.paths if path in bad}


def journal_of(out: Path) -> Path:
    """The file beside the quarantine that knows what was tried; delete it to try all again."""
    return out.with_name(f"{out.stem}.tried.jsonl")


def stamp(path: str) -> list[int] | None:
    """Size and time of the file or folder, None if there is none."""
    file = file_of(path)
    info = os.stat(file) if os.path.exists(file) else None
    return info and [info.st_size, info.st_mtime_ns]


def _known(journal: Path, full: bool, limit_s: float) -> Callable[[str], str | None]:
    """What was found of a path that has not changed since: its cause, or ""; else None.

    None too where more memory, or more time if that is given now, may find something else.
    """
    good, bad, end = Seen(), dict[str, tuple[list[int], str]](), 0
    with open(journal, "rb") if journal.exists() else nullcontext([b""]) as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # of a call that was killed
            end += len(line)
            try:
                found = json.loads(line)
                path, about, cause, was_full = (found[name] for name in KNOWN)
            except (ValueError, KeyError, TypeError) as error:
                text = f"{journal}: the line that ends at byte {end} is damaged"
                raise ConfigError(f"{text}. Delete the file; all videos are tried again") from error
            if was_full < full:
                continue
            bad.pop(path, None)
            short = cause.startswith(SILENT) and found.get("limit_s", 0) < limit_s
            if short or cause == KILLED:
                continue
            if cause:
                bad[path] = about, cause
            else:
                good.add(f"{path} {about}")
    if journal.exists():
        os.truncate(journal, end)

    def known(path: str) -> str | None:
        if not (now := stamp(path)):
            return None
        before, cause = bad.get(path, (None, ""))
        if before == now:  # a picture may be mended, and its folder keeps its time
            return None if MARK.fullmatch(path) else cause
        return "" if f"{path} {now}" in good else None

    return known


def tried(
    paths: Iterable[str], limit_s: float = LIMIT_S, jobs: int | None = None,
    work: Work | None = None,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """(path, what `work` says of it) as they come from so many processes; by default `middle`.

    Of a video that ended its process, why. VidlearnError: what no other video would change, such
    as a package that is not there.
    """
    work = work or middle
    context: Any = get_context(guard.METHOD)
    todo, busy = iter(paths), dict[Any, Any]()  # taken when a process is free

    def start() -> Any:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, limit_s, work), daemon=True)
        guard.begin(process.start)
        theirs.close()  # so that its end is told when it dies
        return ours, process

    def give(path: str | None, pipe: Any, process: Any) -> None:
        """Send it the next path, or None: it ends. A dead one is replaced."""
        try:
            pipe.send(path)
        except (BrokenPipeError, ConnectionResetError):  # it died after its answer
            pipe.close()
            process.join()
            if path is not None:
                give(path, *start())
            return
        if path is None:  # it ends
            process.join()
        else:
            busy[pipe] = process, path

    try:
        for path in islice(todo, jobs or cores()):
            give(path, *start())
        while busy:
            for pipe in cast(list[Any], connection.wait(list(busy))):
                process, path = busy.pop(pipe)
                try:
                    cause = pipe.recv()
                except (EOFError, ConnectionResetError):
                    pipe.close()
                    cause = guard.cause_of(process, limit_s)
                    if (other := next(todo, None)) is not None:
                        give(other, *start())
                else:
                    if isinstance(cause, VidlearnError):
                        busy[pipe] = process, path  # is ended with the others
                        raise cause
                    give(next(todo, None), pipe, process)
                yield path, cause
    finally:
        for pipe, (process, _) in busy.items():
            pipe.close()
            process.kill()
            process.join()


def _serve(pipe: Any, limit_s: float, work: Work) -> None:
    """In the process: answers for paths, until there are no more or the parent is gone."""
    guard.quiet_start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so does Python end it, with the parent
    touch, parent = partial(guard.alarm, limit_s), multiprocessing.parent_process()
    assert parent
    try:
        while True:
            # Siblings hold the pipe's other end, too: it does not tell that the parent is gone.
            if pipe not in connection.wait([pipe, parent.sentinel]):
                return
            if (path := pipe.recv()) is None:
                return
            touch()
            try:
                answer = work(path, touch)
            except VidlearnError as error:
                answer = error
            guard.alarm(0)
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def middle(path: str, _touch: Callable[[], None] | None = None) -> str:
    """Why a video cannot be read, or "". One frame in the middle, so that seeking is tried, too."""
    try:
        table = frame_table(path)
        frames_at(path, [(table.n_frames - 1) // 2], backend="pyav", table=table)
    except VideoError as error:
        return error.cause
    return ""


def whole(path: str, touch: Callable[[], None]) -> str:
    """The same of all frames; `touch` is called after each."""
    try:
        table = frame_table(path)
        if MARK.fullmatch(path):
            for row in range(table.n_frames):
                frames_at(path, [row], table=table)
                touch()
            return ""
        shapes = Counter[tuple[int, ...]]()
        for frame in iter_frames(table.path):
            shapes[frame.shape] += 1
            touch()
        if (n := sum(shapes.values())) < table.n_frames:
            raise VideoError(path, f"{n} of its {table.n_frames} frames come out of it", AGAIN)
        if len(shapes) > 1:
            raise VideoError(path, "its frames change their size", AGAIN)
    except VideoError as error:
        return error.cause
    return ""
