"""Selection through its public face: rules and fates, near-duplicates, shards and places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import catalog
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.stage import keyed_config
from stages.selection import Selection

COLUMNS = {
    "row": pa.int64(),
    "fate": pa.string(),
    "detail": pa.string(),
    "uid": pa.string(),
    "caption": pa.string(),
    "similarity": pa.float32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "cluster": pa.string(),
    "image_cluster": pa.string(),
    "sha256": pa.string(),
    "url": pa.string(),
    "carried": pa.string(),
}
SHARDS = {"samples": 10, "order": "shuffled", "multiple_of": 1}


@pytest.fixture
def con() -> Iterator[Any]:
    with duckdb.connect(config={"preserve_insertion_order": False}) as connection:
        yield connection


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with what they lack filled in: kept, uid from the row's number, everything else null."""
    filled = [{"row": at, "fate": "kept", "uid": f"{at:032x}", **row} for at, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, pa.schema(list(COLUMNS.items())))


def choose(con: Any, known: pa.Table, rules: Any = None, dedup_on: str | None = None, seed: int = 7, **shards: Any) -> list[dict[str, Any]]:
    """The lines of `selected`, by row."""
    con.register("known", known)
    stage = catalog.entry("selection", rules).stage
    stage.run(con, "known", seed=seed, shards=SimpleNamespace(**{**SHARDS, **shards}), dedup_on=dedup_on)
    found: list[dict[str, Any]] = con.sql("SELECT * FROM selected ORDER BY row").to_arrow_table().to_pylist()
    return found


def fates(found: list[dict[str, Any]]) -> list[str]:
    return [line["fate"] for line in found]


def test_first_rule_that_speaks_against_a_row_names_its_fate_and_says_why(con: Any) -> None:
    known = table(
        [
            {"similarity": 0.21, "original_width": 10, "original_height": 900},
            {"similarity": 0.3, "original_width": 10, "original_height": 900},
            {"similarity": 0.3, "original_width": 800, "original_height": 900},
            {"similarity": None, "original_width": 800, "original_height": 900},
            {"fate": "download:http_404", "detail": "HTTP 404"},
        ]
    )
    rules = [
        {"name": "similarity", "keep": "similarity >= 0.28 -- as LAION"},
        {"name": "min_side", "keep": "least(original_width, original_height) >= 64"},
    ]
    found = choose(con, known, rules)
    assert fates(found) == ["selection:similarity", "selection:min_side", "kept", "selection:similarity", "download:http_404"]
    assert [line["detail"] for line in found] == [
        "similarity 0.21; keep: similarity >= 0.28 -- as LAION",
        "original_width 10, original_height 900; keep: least(original_width, original_height) >= 64",
        None,
        "similarity is null; keep: similarity >= 0.28 -- as LAION (neither true nor false)",
        "HTTP 404",
    ]
    assert set(catalog.fates(catalog.entry("selection", rules).stage)) >= {"selection:similarity", "selection:min_side"}


def test_expression_that_fails_on_a_row_drops_that_row_alone(con: Any) -> None:
    known = table([{"carried": '{"score": "0.9"}'}, {"carried": '{"score": "none"}'}, {"carried": "no json"}, {}])
    rules = [{"name": "score", "keep": "CAST(carried->>'$.score' AS DOUBLE) > 0.5"}]
    assert fates(choose(con, known, rules)) == ["kept"] + ["selection:score"] * 3


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("similarty > 0.2", "unknown column similarty; did you mean similarity"),
        ("lenght(caption) > 3", "did you mean length"),
        ("similarity", "is FLOAT"),
        ("caption + 1 > 2 OR length(1, 2, 3) > 2", "length"),
        ("length(caption", "syntax error"),
        ("", "at least 1 character"),
        ("similarity > 0; DROP TABLE known", "SELECT"),
        ("true FROM known", "one expression"),
        ("true, false", "one expression"),
        ("true) OR (true", "syntax error"),
        ("true /* open", "unterminated"),
        ("true AS x", "no AS"),
        ("DISTINCT true", "one expression"),
        ("similarity > (SELECT avg(similarity) FROM known)", "subquery"),
        ("EXISTS (SELECT 1)", "subquery"),
        ("row IN (SELECT row FROM read_parquet('/etc/passwd'))", "subquery"),
        ("read_text('/etc/passwd') = 'x'", "read_text"),
        ("getenv('HOME') = 'x'", "getenv"),
        ("current_setting('temp_directory') = 'x'", "current_setting"),
        ("nextval('s') > 1", "nextval"),
        ("random() > 0.5", "another value each time"),
        ("now() > '2020-01-01'", "now"),
        ("age(CAST('2020-01-01' AS TIMESTAMP)) > INTERVAL 1 YEAR", "age"),
        ("CAST(current_localtimestamp() AS VARCHAR) > ''", "current_localtimestamp"),
        ("count(*) > 1", "count_star"),
        ("max(similarity) > 1", "max"),
        ("row_number() OVER () > 1", "window"),
        ("similarity > $1", "parameter"),
        ("#1 > 1", "position"),
        ("COLUMNS('s.*') > 1", "*"),
        ("known.similarity > 1", "unknown column"),
    ],
)
def test_only_an_expression_over_one_row_is_accepted_and_refused_before_any_work(expression: str, said: str) -> None:
    with pytest.raises(UserError, match="selection") as err:
        catalog.entry("selection", [{"name": "mine", "keep": expression}]).stage.check(COLUMNS)
    assert said in str(err.value)


@pytest.mark.parametrize(
    "expression",
    [
        "similarity >= 0.28 AND caption NOT LIKE '%stock photo%'",
        "coalesce(similarity, 1) BETWEEN 0.2 AND 1 OR caption IS NULL",
        "NOT regexp_matches(caption, '(?i)thumbnail')",
        "CASE WHEN original_width > 0 THEN original_height / original_width <= 3 ELSE false END",
        "json_extract_string(carried, '$.licence') IN ('CC0', 'CC BY')",
        'least("original_width", ORIGINAL_HEIGHT) >= 64',
        "TRY_CAST(carried AS INTEGER) IS NULL",
        "original_width + original_height >= 64 AND similarity - 0.1 > -similarity",
        "year(CAST(json_extract_string(carried, '$.taken') AS DATE)) > 2010",
    ],
)
def test_ordinary_expressions_are_accepted(expression: str) -> None:
    catalog.entry("selection", [{"name": "mine", "keep": expression}]).stage.check(COLUMNS)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"name": "a", "keep": "true"}, {"name": "a", "sample": 1}], "several rules are named a"),
        ([{"name": "near_duplicate_caption", "keep": "true"}], "taken"),
        ([{"name": "a"}], "exactly one of"),
        ([{"name": "a", "keep": "true", "sample": 3}], "keep and sample"),
        ([{"name": "a", "kep": "true"}], "did you mean keep"),
        ([{"name": "A b", "keep": "true"}], "pattern"),
        ([{"name": "a", "top_fraction": 0}], "greater than 0"),
        ([{"name": "a", "keep": "true", "by": "row"}], "by belongs to top_fraction"),
    ],
)
def test_config_faults_are_named(rules: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        catalog.entry("selection", rules)


def test_rule_is_overridden_by_its_name_and_changes_the_key(tmp_path: Any) -> None:
    path = tmp_path / "x.yaml"
    rules = "[{name: similarity, keep: 'similarity >= 0.28'}, {name: few, sample: 9}]"
    path.write_text(f"input: {{path: x}}\nrun: {{name: x}}\nstages:\n  selection: {rules}\n")
    plain, changed = (
        catalog.entry("selection", load(path, overrides).stages["selection"]).stage.config
        for overrides in ([], ["stages.selection.similarity.keep=similarity >= 0.3"])
    )
    assert [rule.keep for rule in changed.root] == ["similarity >= 0.3", None]
    assert keyed_config(plain) != keyed_config(changed)
    assert catalog.entry("selection", None).stage.rules == Selection().rules == []


@given(
    st.lists(st.one_of(st.none(), st.just(float("nan")), st.sampled_from([0.1, 0.2, 0.25, 0.3]), st.floats(-1, 1, width=32)), max_size=60),
    st.floats(0.01, 0.99),
)
@settings(max_examples=25)
def test_top_fraction_is_datacomps(values: list[float | None], fraction: float) -> None:
    """The arithmetic of DataComp's apply_filter: threshold = descending[int(N * fraction)], NaN last, ties stay."""
    scores = np.array([np.nan if value is None else value for value in values], np.float32)
    at = int(len(scores) * fraction)
    descending = np.sort(-scores)  # NaN last
    with duckdb.connect() as con:
        found = choose(con, table([{"similarity": value} for value in values]), [{"name": "top", "top_fraction": fraction}])
    expected = scores >= -descending[at] if at < len(scores) and not np.isnan(descending[at]) else ~np.isnan(scores)
    assert [line["fate"] == "kept" for line in found] == expected.tolist()


def test_all_of_a_top_fraction_of_one_stay_but_for_those_without_a_value(con: Any) -> None:
    found = choose(con, table([{"similarity": 0.1}, {"similarity": None}]), [{"name": "top", "top_fraction": 1}])
    assert fates(found) == ["kept", "selection:top"]
    assert found[1]["detail"] == "similarity is null; keep the top 1 by similarity of 2 rows"


def test_sample_has_its_size_and_grows_by_rows_alone(con: Any) -> None:
    known = table([{"fate": "images:too_small"} if at % 3 == 0 else {} for at in range(90)])
    drawn = {}
    for n in (0, 20, 40, 1000):
        found = choose(con, known, [{"name": "draw", "sample": n}])
        drawn[n] = {line["row"] for line in found if line["fate"] == "kept"}
        assert len(drawn[n]) == min(n, 60)
    assert drawn[20] < drawn[40]
    other = choose(con, known, [{"name": "draw", "sample": 20}], seed=8)
    assert {line["row"] for line in other if line["fate"] == "kept"} != drawn[20]


def test_best_of_a_cluster_that_passed_the_rules_is_kept(con: Any) -> None:
    known = table(
        [
            {"cluster": "a", "similarity": 0.9, "original_width": 1, "original_height": 1},
            {"cluster": "a", "similarity": 0.5, "original_width": 9, "original_height": 9},
            {"cluster": "a", "similarity": 0.5, "original_width": 8, "original_height": 9},
            {"cluster": "b", "similarity": float("nan"), "original_width": 10**5, "original_height": 10**5},
            {"cluster": "b", "similarity": 0.1, "original_width": 9, "original_height": 9},
            {"cluster": "b", "similarity": 0.1, "original_width": 9, "original_height": 9, "uid": "0" * 32},
            {"cluster": None},
            {"cluster": None},
        ]
    )
    found = choose(con, known, [{"name": "side", "keep": "coalesce(original_width, 9) > 1"}], dedup_on="caption")
    twin = "selection:near_duplicate_caption"
    assert fates(found) == ["selection:side", "kept", twin, twin, twin, "kept", "kept", "kept"]
    assert found[2]["detail"] == "of the rows with its cluster, row 1 is the better one"


@pytest.mark.parametrize(
    ("dedup_on", "expected"),
    [
        (None, ["kept", "kept", "image", "kept", "kept"]),
        ("image", ["kept", "kept", "image", "kept", "kept"]),
        ("caption", ["kept", "caption", "image", "kept", "caption"]),
        ("both", ["kept", "kept", "kept", "kept", "caption"]),
    ],
)
def test_what_near_duplicates_are_depends_on_dedup_on(con: Any, dedup_on: str | None, expected: list[str]) -> None:
    known = table(
        [
            {"cluster": "a", "image_cluster": "i"},
            {"cluster": "a", "image_cluster": "j", "sha256": "s"},
            {"cluster": "b", "image_cluster": "i"},
            {"cluster": "c", "image_cluster": "k"},
            {"cluster": "a", "image_cluster": None, "sha256": "s"},
        ]
    )
    found = choose(con, known, dedup_on=dedup_on)
    assert fates(found) == [name if name == "kept" else f"selection:near_duplicate_{name}" for name in expected]


def test_columns_of_stages_that_do_not_run_are_not_needed(con: Any) -> None:
    known = table([{"sha256": "s"}, {"sha256": "s"}, {}]).select(["row", "fate", "detail", "uid", "sha256"])
    assert fates(choose(con, known)) == ["kept"] * 3
    assert fates(choose(con, known, dedup_on="image")) == ["kept", "selection:near_duplicate_image", "kept"]


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=25)
def test_every_row_has_a_shard_and_sizes_differ_by_at_most_one(kept: list[bool], samples: int, multiple: int, seed: int) -> None:
    known = table([{} if alive else {"fate": "images:too_small"} for alive in kept])
    least = -(-sum(kept) // samples)
    total = -(-least // multiple) * multiple
    with duckdb.connect() as con:
        if total > sum(kept):
            with pytest.raises(UserError, match="multiple_of"):
                choose(con, known, samples=samples, multiple_of=multiple)
            return
        found = choose(con, known, seed=seed, samples=samples, multiple_of=multiple)
        backwards = choose(con, known.take(pa.array(range(len(kept))[::-1], pa.int64())), seed=seed, samples=samples, multiple_of=multiple)
    assert found == backwards  # the order of the view has no say
    assert [line["row"] for line in found] == list(range(len(kept)))
    assert all((line["index"] is not None) == (line["fate"] == "kept") for line in found)
    places = sorted((line["shard"], line["index"]) for line in found if line["fate"] == "kept")
    sizes = Counter(shard for shard, _ in places)
    assert places == [(shard, at) for shard in range(total) for at in range(sizes[shard])]
    assert not sizes or max(sizes.values()) - min(sizes.values()) <= 1
    assert max(sizes.values(), default=0) <= samples
    assert {line["shard"] for line in found} <= set(range(max(total, 1)))


def test_order_input_numbers_all_rows_as_img2dataset_does(con: Any) -> None:
    found = choose(con, table([{"fate": "download:timeout"} if at in (0, 4) else {} for at in range(7)]), samples=3, order="input")
    assert [(line["shard"], line["index"]) for line in found] == [(at // 3, at % 3) for at in range(7)]


def concepts(held: list[list[str]]) -> pa.Table:
    return table([{} for _ in held]).append_column("concepts", pa.array(held, pa.list_(pa.string())))


def test_balancing_keeps_rare_concepts_whole_and_draws_about_as_many_of_the_others(con: Any) -> None:
    known = concepts([["dog"]] * 3000 + [["dog", "okapi"]] * 20 + [["okapi"]] * 30 + [[]] * 5)
    rules = [{"name": "balance", "max_per_concept": 300}]
    found = choose(con, known, rules)
    kept = [fate == "kept" for fate in fates(found)]
    assert all(kept[3000:3050]), "a row stays where any of its concepts is rare"
    assert not any(kept[3050:]), "no concept, no row"
    assert 250 < sum(kept[:3000]) < 350
    assert found[3052]["detail"] == "concepts []; keep about 300 rows of each of concepts"
    assert fates(choose(con, known, rules)) == fates(found)
    assert fates(choose(con, known, rules, seed=8)) != fates(found)
    fewer = [fate == "kept" for fate in fates(choose(con, known, [{"name": "balance", "max_per_concept": 100}]))]
    assert all(more or not less for more, less in zip(kept, fewer, strict=True)), "a greater number keeps what a smaller one kept"


@pytest.mark.parametrize(("by", "said"), [(None, "unknown column concepts"), ("caption", "needs lists of texts")])
def test_balancing_wants_lists_of_texts(con: Any, by: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(con, table([{}]), [{"name": "balance", "max_per_concept": 3, **({"by": by} if by else {})}])
