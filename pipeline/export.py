"""`shardmill export`: the clips of a run's shards as HowTo100M's files, for what reads those: one CSV a video, the list, and one JSON.

`captions/ID.csv` (start,end,text) and `videos.csv` (video_path, video_id, url) are what MIL-NCE's loader reads (video_loader.py: it takes
`video_path`, and the captions of that name); `raw_caption.json` is {id: {"start": […], "end": […], "text": […]}}, as HowTo100M's own.
Times are those of what is shown: of a shifted clip the shifted ones. A video whose id cannot name a file, or that shares it with another
one, is named by md5 of its URL, or of its place in storage where it has none.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from pipeline import views
from pipeline.errors import UserError
from pipeline.runs import states
from pipeline.storage import Store

NAMED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # ids that may name a file
ROWS = 10_000  # clips at once
NEEDED = ("start_s", "end_s", "url", "caption", "status")

Clip = tuple[str, str, float, float, str]  # video's id, its URL, start and end in seconds, text


def run(folder: str, out: str) -> dict[str, int]:
    """Writes the files into `out` (a folder or fsspec URL, which has to be empty or new) and returns how many videos and clips they hold.

    Raises UserError where the run has no shards, or its rows are no clips.
    """
    store, target = Store(folder), Store(out)
    states(store)
    if target.names(""):
        raise UserError(f"{out}: there is something already; name a new folder")
    videos = clips = 0
    listed = io.StringIO(newline="")
    lines = csv.writer(listed, lineterminator="\n")
    lines.writerow(["video_path", "video_id", "url"])
    with target.atomic("raw_caption.json") as path, path.open("w", encoding="utf-8") as whole:
        for (video, url), group in groupby(_clips(store), key=itemgetter(0, 1)):
            found = list(group)
            target.write(f"captions/{video}.csv", _table(found))
            columns = {name: [clip[at] for clip in found] for name, at in (("start", 2), ("end", 3), ("text", 4))}
            whole.write(f"{', ' if videos else '{'}{json.dumps(video)}: {json.dumps(columns, ensure_ascii=False)}")
            lines.writerow([f"{video}.mp4", video, url])
            videos, clips = videos + 1, clips + len(found)
        whole.write("}" if videos else "{}")
    target.write("videos.csv", listed.getvalue().encode())
    return {"videos": videos, "clips": clips}


def show(folder: str, out: str) -> None:
    """`run`, and a line about it."""
    counts = run(folder, out)
    print(f"{counts['clips']:,} clips of {counts['videos']:,} videos: {out}/videos.csv, {out}/captions/ID.csv, {out}/raw_caption.json")


def _table(clips: list[Clip]) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["start", "end", "text"])
    rows.writerows(clip[2:] for clip in clips)
    return text.getvalue().encode()


def _clips(store: Store) -> Iterator[Clip]:
    """The kept clips, those of a video together and in order of time."""
    if not store.exists("shards/manifest.json"):
        raise UserError(f"{store.url}: no shards yet; run its config to the end")
    key = store.read_json("shards/manifest.json")["key"]
    paths = [f"shards/{key}/{name}" for name in store.names(f"shards/{key}", ".parquet")]
    columns = store.columns(paths[0]) if paths else []
    if lacking := [name for name in NEEDED if name not in columns]:
        raise UserError(f"{store.url}: its shards lack {', '.join(lacking)}: only clips of videos can be exported")
    shift = "coalesce(shift_s, 0)" if "shift_s" in columns else "0"
    place = "coalesce(url, stored_at, '')" if "stored_at" in columns else "coalesce(url, '')"
    single = f"count(DISTINCT {place}) OVER (PARTITION BY source_id) = 1"  # an id that is no other video's, too
    known = f"regexp_full_match(source_id, {views.quote(NAMED.pattern)}) AND {single}"
    files = ", ".join(views.quote(store.address(path)) for path in paths)
    sql = (
        f"SELECT DISTINCT CASE WHEN {known} THEN source_id ELSE md5({place}) END AS video, coalesce(url, '') AS url, "
        f"round(start_s + {shift}, 3) AS s, round(end_s + {shift}, 3) AS e, coalesce(caption, '') AS text "
        f"FROM read_parquet([{files}], union_by_name = true) WHERE status = 'success' ORDER BY ALL"
    )
    with views.connect(store) as con:
        for batch in con.sql(sql).to_arrow_reader(ROWS):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
