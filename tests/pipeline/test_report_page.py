"""The report's page: its figures are the ledger's, what-if counts are those of real runs, and no text of a stranger does anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import report
from pipeline.progress import Quiet
from pipeline.report import page, whatif
from pipeline.runs import reopen, run
from tests.support import reported
from tests.support.corpus import fates
from tests.support.reported import ATTACKS, RULES
from tests.support.server import Server

ECHARTS = "55974cf42cc160e6cf9099cd3ed8cdedfaa9779919fcee7e2272c85f6ca30e27"  # echarts@5.6.0, dist/echarts.common.min.js, of npm


class Page(HTMLParser):
    """Elements, their attributes, the texts between them, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.texts.append(data)


def text_of(folder: Path) -> str:
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def told(folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Every row with its columns, as the shards' Parquet has them."""
    out: list[dict[str, Any]] = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "shards").glob("*/*.parquet"))]
    ).to_pylist()
    return out


@pytest.mark.ray
def test_the_funnel_is_the_ledger_and_shows_rows_of_every_fate(shown: tuple[Path, Server, Path]) -> None:
    folder, counted = shown[0], fates(shown[0])
    assert {one["fate"]: one["rows"] for one in told(folder)["funnel"]} == counted
    assert all(one["meaning"] for one in told(folder)["funnel"])
    found = re.findall(r'<details id="fate-\d+" data-fate="([^"]+)".*?</details>', text_of(folder), re.DOTALL)
    assert found == [one["fate"] for one in told(folder)["funnel"]]
    for part in re.split(r"<details id=", text_of(folder))[1:]:
        fate = re.search(r'data-fate="([^"]+)"', part)
        assert fate is not None
        assert part.partition("</details>")[0].count('<li class="row">') == min(10, counted[fate[1]]), fate[1]


@pytest.mark.ray
def test_what_strangers_wrote_is_text_and_nothing_else(shown: tuple[Path, Server, Path]) -> None:
    text = text_of(shown[0])
    found = Page(text)
    assert len(found.scripts) == 4
    assert "iframe" not in found.tags
    assert not {"svg", "math", "object", "a"} & {tag for tag in found.tags if tag != "a"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert {value[:1] for tag, name, value in found.attributes if name in ("href", "src") and value and tag == "a"} == {"#"}
    pictures = [value for tag, name, value in found.attributes if tag == "img" and name == "src"]
    assert pictures
    assert all(value and value.startswith("data:image/jpeg;base64,") for value in pictures)
    page_text = " ".join(found.texts)
    shown_attacks = [attack for attack in ATTACKS if attack.strip("\u2028") in page_text]
    assert len(shown_attacks) >= 5, "the attacks did reach the page, as text"


@pytest.mark.ray
def test_the_policy_names_our_scripts_and_no_other_may_run(shown: tuple[Path, Server, Path]) -> None:
    found = Page(text_of(shown[0]))
    policy = next(value for tag, name, value in found.attributes if tag == "meta" and name == "content" and value and "script-src" in value)
    running = [text for attrs, text in found.scripts if "type" not in attrs]
    hashes = {"'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in running}
    assert len(hashes) == 3
    assert f"script-src {' '.join(sorted(hashes, key=policy.index))};" in policy
    assert "default-src 'none'" in policy
    assert "http" not in re.sub(r"http-equiv", "", policy)


def test_json_cannot_end_its_element() -> None:
    value = {"a": [*ATTACKS, "\u2028\u2029", "é"]}
    text = page.embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_the_plotting_library_is_the_pinned_one() -> None:
    assert hashlib.sha256(page._asset(page.PLOTS).encode()).hexdigest() == ECHARTS
    assert "</script" not in page._asset(page.PLOTS)


@pytest.mark.ray
def test_pictures_are_small_blurred_above_the_score_and_left_out_on_request(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    folder, server, lists = shown
    assert len(text_of(folder)) < 5_000_000
    assert 'class="unsafe"' in text_of(folder)
    shutil.copytree(folder, tmp_path / "runs" / "test")
    run(reported.config(tmp_path / "test.yaml", server, lists, RULES, report={"thumbnails": False}), show=Quiet())
    assert "<img" not in text_of(tmp_path / "runs" / "test").partition("<script")[0]


@pytest.mark.ray
def test_concepts_are_counted_as_the_captions_have_them(shown: tuple[Path, Server, Path]) -> None:
    found, listed = told(shown[0])["concepts"], rows_of(shown[0])
    counted = Counter(word for row in listed for word in row["concepts"] or [])
    kept = Counter(word for row in listed if row["fate"] == "kept" for word in row["concepts"] or [])
    assert {one["concept"]: (one["rows"], one["kept"]) for one in found["most"]} == {word: (n, kept[word]) for word, n in counted.items()}
    assert (found["found"], found["mentions"]) == (len(counted), sum(counted.values()))
    assert set(counted) == set(reported.CONCEPTS) - {"unicorn"}
    assert [n for _, n in found["curve"]["rows"]] == sorted(counted.values(), reverse=True)
    assert [n for _, n in found["curve"]["kept"]] == sorted(kept.values(), reverse=True)
    assert found["rows_without"] == sum(row["concepts"] == [] for row in listed)
    assert found["top_share"] == pytest.approx(max(counted.values()) / sum(counted.values()), abs=1e-4)


@pytest.mark.ray
def test_rows_near_evaluation_images_stand_beside_them(shown: tuple[Path, Server, Path]) -> None:
    found, listed = told(shown[0])["decontamination"], rows_of(shown[0])
    near = {row["row"]: row["eval_match"] for row in listed if row["eval_match"]}
    assert set(near.values()) == {f"eval/{reported.EVALUATION}.jpg", "eval/deep/b.jpg"}
    assert {one["row"]: one["match"] for one in found["hits"]} == near
    assert [one["distance"] for one in found["hits"]] == sorted(one["distance"] for one in found["hits"])
    kept = sum(row["fate"] == "kept" for row in listed if row["eval_match"])
    assert found["sets"] == [{"name": "eval", "rows": len(near), "kept": kept, "images": 2}]
    assert kept
    assert "evaluation_images" in {one["code"] for one in told(shown[0])["warnings"]}
    section = text_of(shown[0]).partition('<section id="evaluation">')[2].partition("</section>")[0]
    assert section.count('<li class="row">') == len(near)
    assert section.count('<img src="data:image/jpeg;base64,') == 2 * len(near), "a picture of the row and one of the evaluation image"


@pytest.mark.ray
def test_what_if_goes_with_a_rule_that_balances(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    folder, server, lists = shown
    shutil.copytree(folder, tmp_path / "runs" / "test")
    rules = [*RULES, {"name": "balance", "max_per_concept": 2}, {"name": "evaluation", "keep": "eval_match IS NULL"}]
    config = reported.config(tmp_path / "test.yaml", server, lists, rules)
    made = run(config, show=Quiet()).report
    assert made["concepts"]["cap"] == 2
    assert [one["kept"] for one in made["decontamination"]["sets"]] == [0]
    one = next(one for one in made["what_if"] if one["column"] == "charm")
    change = shlex.split(one["command"].replace("{}", one["thresholds"][2]))[4]
    assert run(config, [change], show=Quiet()).report["kept"] == one["kept"][2]


@pytest.mark.ray
def test_what_if_counts_are_those_of_real_runs(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    """The page's own commands: for the score that decides among near-duplicates, for one that does not, and for one of the list."""
    folder, server, lists = shown
    shutil.copytree(folder, tmp_path / "runs" / "test")
    config = reported.config(tmp_path / "test.yaml", server, lists, RULES)
    found = {one["column"]: one for one in told(folder)["what_if"]}
    assert {"similarity", "charm", "claimed_similarity", "claimed_punsafe"} == set(found)
    assert found["similarity"]["thresholds"][found["similarity"]["now"]] == "0.0"
    for column, places in (("similarity", (5, 30, -4)), ("charm", (3, -3)), ("claimed_similarity", (5,))):
        one = found[column]
        for place in places:
            change = shlex.split(one["command"].replace("{}", one["thresholds"][place]))
            assert change[:2] == ["shardmill", "run"]
            assert change[3] == "--set"
            result = run(config, [change[4]], show=Quiet())
            assert result.report["kept"] == one["kept"][place], (column, one["thresholds"][place])
        assert len(set(one["kept"])) > 5


@pytest.mark.ray
def test_what_if_counts_before_a_rule_that_counts_rows(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    """A share of the rows follows from how many there are: each threshold is a selection of its own."""
    folder, server, lists = shown
    shutil.copytree(folder, tmp_path / "runs" / "test")
    rules = [*RULES, {"name": "best", "top_fraction": 0.5, "by": "charm"}, {"name": "few", "sample": 30}]
    config = reported.config(tmp_path / "test.yaml", server, lists, rules)
    found = {one["column"]: one for one in run(config, show=Quiet()).report["what_if"]}
    for column, place in (("similarity", 6), ("similarity", -4), ("charm", 8)):
        one = found[column]
        change = shlex.split(one["command"].replace("{}", one["thresholds"][place]))[4]
        assert run(config, [change], show=Quiet()).report["kept"] == one["kept"][place], (column, one["thresholds"][place])


def test_only_a_bare_threshold_is_one() -> None:
    from stages.selection.rules import Rule

    keeps = {"similarity >= 0.28": "0.28", " Similarity>=-.5 ": "-.5", "similarity > 0.2": None, "similarity >= 0.2 OR width > 3": None}
    assert {keep: whatif._threshold(Rule(name="a", keep=keep), "similarity", ">=") for keep in keeps} == keeps
    assert whatif._threshold(Rule(name="a", top_fraction=0.3), "similarity", ">=") == ""
    assert whatif._threshold(Rule(name="a", sample=3), "similarity", ">=") is None


@pytest.mark.ray
def test_the_command_makes_the_same_report_again(shown: tuple[Path, Server, Path], tmp_path: Path) -> None:
    shutil.copytree(shown[0], tmp_path / "runs" / "test")
    folder = tmp_path / "runs" / "test"
    before, text = told(folder), text_of(folder)
    (folder / "report" / "index.html").unlink()
    report.show(str(folder))
    here = {"shards_at": before["shards_at"].replace(str(shown[0]), str(folder))}
    assert told(folder) == {**before, **here}
    assert text_of(folder).replace(str(folder), "") == text.replace(str(shown[0]), "")
    assert reopen(str(folder)).published


@pytest.mark.ray
def test_the_card_is_one_that_the_hub_reads(shown: tuple[Path, Server, Path]) -> None:
    text = (shown[0] / "report" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pretty_name"] == "test"
    assert header["size_categories"] == ["n<1K"]
    pattern = header["configs"][0]["data_files"][0]["path"]
    assert len(list(shown[0].glob(pattern))) == told(shown[0])["shards"]["count"]
    assert f"{told(shown[0])['kept']} image-text pairs" in text


@pytest.mark.ray
def test_croissant_is_valid_and_its_records_are_the_rows(shown: tuple[Path, Server, Path]) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is missing: make setup EXTRAS=browser")
    data = mlcroissant.Dataset(str(shown[0] / "report" / "croissant.json"))
    assert data.metadata.issues.report() == ""
    rows = list(data.records("rows"))
    assert Counter(one["rows/fate"].decode() for one in rows) == fates(shown[0])
    samples = list(data.records("samples"))
    assert len(samples) == told(shown[0])["kept"]
    kept = {one["rows/key"]: one for one in rows if one["rows/key"]}
    for one in samples:
        assert one["samples/image"].size == (64, 64)
        assert one["samples/caption"] == kept[one["samples/key"]]["rows/caption"]
