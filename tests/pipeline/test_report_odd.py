"""Reports of runs that are not as most are: what they name is gone, nothing is kept, everything is one picture, unsafe, or a video."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import browse, compare, explain, report, thumbnails, verify, views
from pipeline.report import page
from pipeline.runs import reopen
from pipeline.stage import KEPT
from pipeline.storage import Store
from stages.shards.tar import write_tar
from tests.support import reported, serial
from tests.support.corpus import caption, fates, picture, write_config
from tests.support.server import Server

ROWS = 24


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        for n in range(ROWS):
            one.files[f"/{n}.jpg"] = picture(n)
        yield one


def listed(server: Server, folder: Path, **columns: Any) -> Path:
    """A list of ROWS rows."""
    urls = [server.url(f"/{n}.jpg", "host.test") for n in range(ROWS)]
    table = pa.table({"URL": urls, "TEXT": [caption(n) for n in range(ROWS)]} | columns)
    (folder / "lists").mkdir(parents=True)
    pq.write_table(table, folder / "lists" / "list.parquet")
    return folder / "lists"


def stages(server: Server, rules: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Stages of a run whose scores are `Judged`'s; `more` stand before dedup."""
    download = {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 16, "per_second": None}}
    before = {"ingest": {}, "captions": {}, **more, "dedup": {"on": "caption"}}
    after = {"download": download, "images": {"size": 64}, "tests.support.judged:Judged": {}, "image_dedup": {}, "selection": rules}
    return before | after


def made(server: Server, folder: Path, given: dict[str, Any], **changes: Any) -> Path:
    serial.run(write_config(folder / "test.yaml", server, folder / "lists", stages=given, **changes))
    return folder / "runs" / "test"


def told(run: Path) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    return out


def looked_at(run: Path, **asked: str) -> dict[str, Any]:
    known = reopen(str(run))
    with views.connect(known.run.store) as con:
        return browse.Rows(known, con).find(asked)


def test_a_finished_run_is_read_where_the_files_that_its_config_names_are_gone(server: Server, tmp_path: Path) -> None:
    lists = reported.fill(server, tmp_path)
    (tmp_path / "optout.txt").write_text("never.example\n")
    (tmp_path / "uids.txt").write_text("0" * 32)
    rules = [{"name": "similarity", "keep": "similarity >= 0.0"}, {"name": "subset", "subset_file": str(tmp_path / "uids.txt")}]
    config = reported.config(tmp_path / "test.yaml", server, lists, rules)
    config.write_text(config.read_text().replace("  download:\n", f"  download:\n    optout: {{files: [{tmp_path}/optout.txt]}}\n"))
    serial.run(config)
    run, before = tmp_path / "runs" / "test", fates(tmp_path / "runs" / "test")
    for path in (lists, tmp_path / "eval"):
        shutil.rmtree(path)
    for name in ("words.txt", "optout.txt", "uids.txt", "test.yaml"):
        (tmp_path / name).unlink()
    report.show(str(run))
    assert {one["fate"]: one["rows"] for one in told(run)["funnel"] if one["rows"]} == before
    assert told(run)["what_if"] == [], "what another threshold would keep depends on a file that is gone"
    assert explain.stories(str(run), "row=3")[0]["row"] == 3
    assert looked_at(run)["total"] == reported.ROWS
    assert compare.compare(str(run), str(run))["overlap"]["in_both"] == reported.ROWS
    assert verify.run(str(run))[1] == []


def test_a_run_that_kept_nothing_has_no_slider(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path)
    run = made(server, tmp_path, stages(server, [{"name": "none", "keep": "similarity > 9"}]))
    assert told(run)["kept"] == 0
    assert told(run)["what_if"] == []
    assert 'class="slider"' not in (run / "report" / "index.html").read_text(encoding="utf-8")


def test_of_what_is_better_the_smaller_a_threshold_goes_the_other_way(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path, punsafe=[n % 10 / 10 for n in range(ROWS)], aesthetic=[n % 7 / 1 for n in range(ROWS)])
    rules = [{"name": "unsafe", "keep": "claimed_punsafe <= 0.5"}, {"name": "curly", "keep": "source_caption <> '{}'"}]
    run = made(server, tmp_path, stages(server, rules))
    found = {one["column"]: one for one in told(run)["what_if"]}
    assert {name: one["sign"] for name, one in found.items()} == {
        "similarity": ">=", "charm": ">=", "claimed_punsafe": "<=", "claimed_aesthetic": ">="
    }  # fmt: skip
    one = found["claimed_punsafe"]
    assert one["thresholds"][one["now"]] == "0.5"
    assert one["kept"][one["now"]] == told(run)["kept"]
    assert one["kept"] == [sum(n % 10 / 10 <= float(text) + 1e-6 for n in range(ROWS)) for text in one["thresholds"]]
    assert one["command"].endswith("--set 'stages.selection.unsafe.keep=claimed_punsafe <= {}'")
    assert "Keep claimed_punsafe ≤ " in (run / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("on", ["caption", "image", "both", None])
@pytest.mark.parametrize("images", [True, False])
def test_counts_of_near_duplicates_are_those_of_the_selection_itself(server: Server, tmp_path: Path, on: str | None, images: bool) -> None:
    """Of every threshold on a score that does not decide among near-duplicates."""
    from pipeline.phases.select import view_selected
    from pipeline.report import tables, whatif

    lists = listed(server, tmp_path)
    urls = [server.url(f"/{n // 3}.jpg?{n}", "host.test") for n in range(ROWS)]
    server.files |= {f"/{n // 3}.jpg?{n}": picture(n // 3) for n in range(ROWS)}
    texts = [caption(n // 2) + "." * (n % 2) for n in range(ROWS)]
    unsafe = pa.array([None if n == 5 else n * 7 % 10 / 10 for n in range(ROWS)], pa.float32())
    pq.write_table(pa.table({"URL": urls, "TEXT": texts, "punsafe": unsafe}), lists / "list.parquet")
    rules = [
        {"name": "charm", "keep": "charm >= 1"},
        {"name": "unsafe", "keep": "claimed_punsafe <= 0.8"},
        {"name": "all", "keep": "row >= 0"},
    ]
    given = stages(server, rules)
    given["dedup"] = {"on": on}
    for name, there in (("dedup", on), ("image_dedup", images)):
        if not there:
            del given[name]
    known = reopen(str(made(server, tmp_path, given)))
    with views.connect(known.run.store) as con:
        known.view_known(con, "known", image_dedup=True)
        view_selected(known, con)
        tables.make_facts(known, con)
        for column in ("charm", "claimed_punsafe"):
            found = whatif.make(known, con, column, 0)
            listed_rules = [rule for rule in given["selection"] if not rule["keep"].startswith(column)]
            for text, kept in zip(found["thresholds"], found["kept"], strict=True):
                asked = whatif.Rule(name="asked", keep=f"{column} {found['sign']} {text}")
                assert whatif._kept_with(known, con, [*(whatif.Rule(**rule) for rule in listed_rules), asked]) == kept
                con.execute("DROP TABLE temp.selected")
            assert len(set(found["kept"])) >= 3


def test_pictures_are_blurred_by_any_score_that_is_named(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path, NSFW=["NSFW" if n == 1 else "UNLIKELY" for n in range(ROWS)])
    run = made(server, tmp_path, stages(server, []), report={"unsafe": 0.9, "unsafe_by": ["charm", "claimed_punsafe", "none"]})
    rows = looked_at(run, sort="charm")["rows"]
    assert {row["row"] for row in rows if row["blurred"]} == {row["row"] for row in rows if (row["charm"] or 0) >= 0.9 or row["row"] == 1}
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    kept = text[text.index('data-fate="kept"') :]
    kept = kept[: kept.index("</ul>")]
    assert kept.count('class="unsafe"') == len(re.findall(r"Show the picture of row", kept)) > 0
    shown = {int(row) for row in re.findall(r"Picture of row (\d+)", text)}
    assert shown <= {row["row"] for row in rows if not row["blurred"]}


def test_the_sheet_blurs_what_is_unsafe_and_goes_when_pictures_are_not_wanted(server: Server, tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8) * 255).save(out, "PNG")
    write_tar(tmp_path / "00000.tar", ((f"{n}", {"png": out.getvalue(), "txt": b"board", "json": b"{}"}) for n in range(3)))
    columns = {
        "key": ["0", "1", "2", None],
        "claimed_nsfw": ["NSFW", None, None, "NSFW"],
        "nsfw": pa.array([0, float("nan"), None, 1], pa.float32()),  # a NaN says nothing, so it is hidden
    }
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    thumbnails.write(Store(str(tmp_path)), ["00000.tar"], thumbnails.Unsafe(("nsfw", "none"), 0.5))
    with Image.open(tmp_path / "report" / "samples.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L"), float)
    contrast = [pixels[8:130, 8 + at * 176 : 8 + at * 176 + 120].std() for at in range(3)]
    assert contrast[0] < 40
    assert contrast[1] < 40
    assert contrast[2] > 100

    listed(server, tmp_path / "run")
    run = made(server, tmp_path / "run", stages(server, []))
    assert (run / "report" / "samples.jpg").exists()
    made(server, tmp_path / "run", stages(server, []), report={"thumbnails": False})
    assert not (run / "report" / "samples.jpg").exists()
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in text
    assert "no picture" not in text, "nor a frame where one would stand"


def test_pages_of_former_shards_are_not_left_beside_a_report_that_has_none(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(server, tmp_path)
    run = made(server, tmp_path, stages(server, []))
    assert {"index.html", "README.md", "croissant.json"} <= {path.name for path in (run / "report").iterdir()}
    monkeypatch.setattr(report, "PAGE_ROWS", ROWS - 1)
    made(server, tmp_path, stages(server, [{"name": "similarity", "keep": "similarity >= 0.1"}]))
    assert {path.name for path in (run / "report").iterdir()} == {"report.json", "samples.jpg"}
    assert told(run)["files"] == ["report.json", "samples.jpg"]


def test_a_rule_on_a_list_of_words_makes_no_column_of_numbers(server: Server, tmp_path: Path) -> None:
    listed(server, tmp_path)
    (tmp_path / "words.txt").write_text("tractor\nviolin\nred")
    rules = [{"name": "balance", "max_per_concept": 3}]
    run = made(server, tmp_path, stages(server, rules, concepts={"words": str(tmp_path / "words.txt")}))
    known = reopen(str(run))
    with views.connect(known.run.store) as con:
        rows = browse.Rows(known, con)
        assert "concepts" in rows.columns
        assert {"row", "similarity", "chars"} <= {*rows.numeric}
        assert not {"concepts", "url", "flat"} & {*rows.numeric}
        assert browse.answer(rows, "/rows?column=concepts&least=1")[0] == 400
        assert browse.answer(rows, "/rows?sort=concepts&down=1")[0] == 200
        for row in ("nan", "inf", "1e400", "-1e99"):
            assert [browse.answer(rows, f"{path}={row}")[0] for path in ("/story?row", "/image?row", "/rows?page")] == [400] * 3


def test_a_story_is_found_by_words_of_the_cleaned_caption(server: Server, tmp_path: Path) -> None:
    lists = listed(server, tmp_path)
    table = pq.read_table(lists / "list.parquet")
    texts = ["a caf&eacute; by the <b>old</b> harbour wall", *table["TEXT"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, "TEXT", pa.array(texts)), lists / "list.parquet")
    run = made(server, tmp_path, stages(server, []))
    for words in ("text=caf&eacute;", "text=CAFÉ by the old"):
        assert [story["row"] for story in explain.stories(str(run), words)] == [0]


def test_one_large_picture_shown_everywhere_does_not_swell_the_page(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A placeholder that most rows have stands in the page once for each of them."""
    lists = listed(server, tmp_path)
    table = pq.read_table(lists / "list.parquet")
    pq.write_table(table.set_column(0, "URL", pa.array([table["URL"][0].as_py()] * ROWS)), lists / "list.parquet")
    monkeypatch.setattr("pipeline.report.examples.MOST_BYTES", 20_000)
    given = stages(server, [])
    del given["image_dedup"]
    run = made(server, tmp_path, given)
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert sum(map(len, re.findall(r'data:image/jpeg;base64,[^"]*', text))) <= 20_000


def test_the_better_row_is_the_one_that_the_ledger_names(server: Server, tmp_path: Path) -> None:
    """With `on: both` rows of one caption cluster are kept beside each other, as their pictures differ."""
    lists = listed(server, tmp_path)
    table = pq.read_table(lists / "list.parquet")
    urls = [server.url(f"/{n // 2}.jpg?{n % 2}", "host.test") for n in range(ROWS)]
    for n in range(ROWS):
        server.files[f"/{n // 2}.jpg?{n % 2}"] = picture(n // 2)
    pq.write_table(pa.table({"URL": urls, "TEXT": [caption(0)] * 8 + table["TEXT"].to_pylist()[8:]}), lists / "list.parquet")
    given = stages(server, [])
    given["dedup"] = {"on": "both", "max_per_caption": 20}
    run = made(server, tmp_path, given)
    key = json.loads((run / "run.json").read_text())["keys"]["shards"]
    lines = pq.read_table(sorted((run / "ledger" / key).glob("part-*.parquet"))).to_pylist()
    named = {line["row"]: int(found[1]) for line in lines if (found := re.search(r"row (\d+) is the better one", line["detail"] or ""))}
    assert len(named) >= 4
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    start = text.index('data-fate="selection:near_duplicate_caption"')
    cards = text[start : text.index("</ul>", start)].split('<li class="row">')[1:]
    shown = {int(re.search(r"<dt>row</dt><dd>(\d+)", card)[1]): int(re.search(r"better: row (\d+)", card)[1]) for card in cards}  # type: ignore[index]
    assert shown
    assert shown.items() <= named.items()


@pytest.fixture
def films(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="needs the extra video")
    from pipeline.sample import film
    from tests.support.videos import picture as frame
    from tests.support.videos import steady

    said = [(1000, 3000, "Cut the onion into thin rings."), (4000, 6500, "Now fry them slowly in butter.")]
    for name, texts in (("a", said), ("b", said[:1]), ("c", [])):
        pictures = ((ms, frame(ms, 128, 96)) for ms in steady(8, 12.5))
        film.write(tmp_path / f"{name}.mp4", pictures, options={"g": "25", "bf": "2"}, subtitles=texts)
    (tmp_path / "lists").mkdir()
    listed = pa.table({"id": ["<b>a</b>", "b", "c"], "path": [str(tmp_path / f"{name}.mp4") for name in "abc"]})
    pq.write_table(listed, tmp_path / "lists" / "videos.parquet")
    raw = {
        "input": {"path": str(tmp_path / "lists"), "columns": {"source_id": "id", "stored_at": "path"}},
        "run": {"name": "test", "root": str(tmp_path / "runs")},
        "stages": {
            "ingest": {"subtitles": True},
            "subtitle_files": {"contact": "test@example.org"},
            "subtitles": {},
            "segments": {"min_s": 1},
            "download": {"contact": "test@example.org", "to": "disk"},
            "frames": {"count": 2, "size": 96, "format": "webp"},
        },
    }
    (tmp_path / "test.yaml").write_text(json.dumps(raw))
    serial.run(tmp_path / "test.yaml")
    return tmp_path / "runs" / "test"


def test_a_report_of_videos_tells_of_the_videos_too(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(str(films))
    found, said = told(films), capsys.readouterr().out
    assert {one["fate"]: one["rows"] for one in found["expanded"]["funnel"]} == {"subtitle_files:no_track": 1, KEPT: 2}
    assert sum(found["expanded"]["children"]["rows"]) == found["expanded"]["with_kept"] == 2
    assert re.search(r"test: 3 rows in\s.*expanded +2 +66\.7%.*subtitle_files:no_track +1 .*3 rows made of them.*kept +3 ", said, re.DOTALL)
    assert found["expanded"]["seconds"]["cues"] == {"in": 6.5, "kept": 6.5, "dropped": {}}
    assert found["expanded"]["seconds"]["segments"] == {"in": 6.5, "kept": 6.5, "dropped": {}}
    assert "seconds of segments: 6.5 = 6.5 kept + 0.0 dropped" in said
    text = (films / "report" / "index.html").read_text(encoding="utf-8")
    assert "Seconds of cues: 6.5 = 6.5 in segments" in text
    section = text[text.index('<section id="expanded">') : text.index('<section id="funnel">')]
    assert 'data-fate="subtitle_files:no_track"' in section
    assert "Of the 3 rows of the input 2 were expanded, to 3 rows" in section
    assert "&lt;b&gt;a&lt;/b&gt;" in section
    assert str(films.parents[1] / "c.mp4") in section
    assert found["histograms"]["frame_lag"]["rows"], "how far frames lie from the times that were asked for"
    card = (films / "report" / "README.md").read_text(encoding="utf-8")
    assert "3 clips of videos with their texts, kept of 3 that were made of 3 rows" in card
    assert "| `subtitle_files:no_track` | 1 | 33.3% |" in card
    assert "`KEY.000.jpg`" in card


def test_a_video_without_a_url_is_found_by_what_the_list_calls_it(films: Path) -> None:
    for what, row in (("<b>a</b>", 0), ("c", 2), (str(films.parents[1] / "b.mp4"), 1)):
        assert [story["row"] for story in explain.stories(str(films), what)] == [row]


def test_clips_are_seen_by_their_middle_frame(films: Path) -> None:
    text = (films / "report" / "index.html").read_text(encoding="utf-8")
    kept = text[text.index('id="fate-0"') :]
    assert kept[: kept.index("</details>")].count('src="data:image/jpeg;base64,') == 3
    known = reopen(str(films))
    with views.connect(known.run.store) as con:
        kind, body = browse.Rows(known, con).image(0) or ("", b"")
    assert (kind, body[:4]) == ("image/webp", b"RIFF")


def test_croissant_gives_each_frame_with_its_clip(films: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is missing: make setup EXTRAS=browser")
    data = mlcroissant.Dataset(str(films / "report" / "croissant.json"))
    assert data.metadata.issues.report() == ""
    samples = list(data.records("samples"))
    assert len(samples) == 2 * 3
    assert {one["samples/caption"].decode() for one in samples} == {"Cut the onion into thin rings.", "Now fry them slowly in butter."}
    assert {one["samples/image"].size for one in samples} == {(96, 96)}


def test_a_page_never_shows_none_for_a_url(films: Path) -> None:
    assert page.template("page.html")
    assert '<dd class="url">None</dd>' not in (films / "report" / "index.html").read_text(encoding="utf-8")


def test_every_column_that_can_be_read_in_a_line_can_be_looked_through(server: Server, tmp_path: Path) -> None:
    """Whatever rules there are: also those that no rule and no figure of the report reads."""
    listed(server, tmp_path, id=[f"id{n}" for n in range(ROWS)], colour=["red" if n % 3 else "blue" for n in range(ROWS)])
    (tmp_path / "words.txt").write_text("tractor\nviolin\nred")
    rules = [{"name": "long", "keep": "length(caption) + length(source_caption) > 0"}]
    run = made(server, tmp_path, stages(server, rules, concepts={"words": str(tmp_path / "words.txt")}))
    everything = looked_at(run)["rows"]
    assert {"concepts", "carried", "source_id", "final_url"} <= {*everything[0]}
    assert not [name for name in everything[0] if name.startswith(("caption_", "caption:", "source_caption_"))]
    held = [row["row"] for row in everything if "red" in row["concepts"]]
    assert [row["row"] for row in looked_at(run, column="concepts", **{"is": "red"})["rows"]] == held != []
    assert [row["row"] for row in looked_at(run, column="source_id", **{"is": "id7"})["rows"]] == [7]
    for name in everything[0]:
        if name != "blurred":
            assert looked_at(run, sort=name, down="1")["total"] == ROWS
