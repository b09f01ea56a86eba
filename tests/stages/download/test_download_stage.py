"""The stage as the frame meets it: rows in order, one request a URL, columns, stored bytes, secrets; and img2dataset's engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.frame import apply, apply_stream, framed
from pipeline.stage import keyed_config
from stages.download.stage import Download
from tests.stages.download.conftest import QUICK, download, fetch, needs_img2dataset, wanted
from tests.support.server import Server, bytes_for


def stage_of(server: Server, **options: Any) -> Download:
    return Download(Download.Config.model_validate({**QUICK, **server.options(), **options}))


def test_rows_come_back_in_order_with_all_columns(server: Server) -> None:
    paths = ["/slow/0.2", "/ok", "/status/404", "/slow/0.1", "/size/10"]
    rows = fetch(server, paths, "order.test", retries=0)
    assert [row["row"] for row in rows] == list(range(5))
    assert [row["fate"] for row in rows] == ["kept", "kept", "download:http_404", "kept", "kept"]
    body = bytes_for("order.test/ok{}", 2000)
    expected = {
        "body": body, "final_url": "http://order.test/ok", "http_status": 200, "content_type": "image/jpeg", "fetched_bytes": 2000,
        "sha256": hashlib.sha256(body).hexdigest(), "detail": None,
    }  # fmt: skip
    assert {name: rows[1][name] for name in expected} == expected
    assert 200 <= rows[0]["latency_ms"] < 2000
    assert {name: rows[2][name] for name in Download.adds} == dict.fromkeys(Download.adds) | {"http_status": 404}


def test_an_empty_table_and_dead_rows(server: Server) -> None:
    assert fetch(server, []) == []
    table = wanted(["http://dead.test/x", "http://alive.test/x"])
    table = table.set_column(table.schema.get_field_index("fate"), "fate", pa.array(["captions:empty", "kept"]))
    rows = download(table, server.options())
    assert [row["fate"] for row in rows] == ["captions:empty", "kept"]
    assert server.count(host="dead.test") == 0


def test_a_url_that_stands_in_many_rows_is_fetched_once(server: Server) -> None:
    rows = fetch(server, ["/same"] * 5 + ["/other"], "once.test")
    assert server.count(host="once.test") == 2
    assert len({row["sha256"] for row in rows[:5]}) == 1
    assert rows[5]["sha256"] != rows[0]["sha256"]


def test_hashes_are_each_rows_own(server: Server) -> None:
    """One URL, three rows: the right hash, a wrong one, none."""
    url, right = "http://hash.test/x", hashlib.sha256(bytes_for("hash.test/x{}", 2000)).hexdigest()
    table = wanted([url] * 4, [f"sha256:{right}", f"sha256:{'1' * 64}", None, "nonsense"])
    rows = download(table, server.options())
    assert [row["fate"] for row in rows] == ["kept", "download:hash_mismatch", "kept", "download:hash_unknown"]
    assert server.count(host="hash.test") == 1
    assert rows[1]["sha256"] == right
    assert rows[1]["body"] is None
    unasked = download(wanted([url], [f"sha256:{'1' * 64}"]), {**server.options(), "verify_hash": False})
    assert [(row["fate"], row["sha256"]) for row in unasked] == [("kept", right)]


def test_a_stream_gives_each_row_once_and_the_quick_ones_first(server: Server) -> None:
    urls = [server.url(f"/slow/{1.0 if i == 0 else 0}/{i}", f"s{i % 7}.test") for i in range(200)]

    async def run() -> list[int]:
        stage = stage_of(server)
        stage.open()
        order = [row async for piece in apply_stream(stage, wanted(list(urls))) for row in piece["row"].to_pylist()]
        await stage.aclose()
        return order

    order = asyncio.run(run())
    assert sorted(order) == list(range(200))
    assert order[-1] == 0


def test_two_streams_at_once_share_what_is_under_way(server: Server) -> None:
    async def run() -> None:
        stage = stage_of(server)
        stage.open()
        table = wanted([server.url("/slow/0.2", "shared.test")])
        both = await asyncio.gather(stage.run(table), stage.run(table))
        assert [out["fate"].to_pylist() for out in both] == [["kept"], ["kept"]]
        await stage.aclose()

    asyncio.run(run())
    assert server.count(host="shared.test") == 1


def test_a_stage_may_be_called_again_and_closed_again(server: Server) -> None:
    stage = stage_of(server)
    for _ in range(2):
        table = framed(wanted([server.url("/ok")]))
        assert apply(stage, table)["fate"].to_pylist() == ["kept"]
        stage.close()
        stage.close()


def test_secrets_never_reach_details_columns_or_logs(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hunter2"
    urls = [
        f"http://user:{secret}@a.test/ok", f"https://{secret}@a.test/", f"http://a.test/to?u=http://u:{secret}@b.test/",
        f"http://u:{secret}@[bad/", f"//{secret}@a.test", f"http://u:{secret}@127.0.0.1:1/",
    ]  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        rows = download(wanted(list(urls)), {**server.options(), "retries": 0})
    assert all(row["fate"] != "kept" for row in rows)
    for row in rows:
        assert secret not in json.dumps({name: value for name, value in row.items() if name != "url"})
    quiet = [record for record in caplog.records if not record.name.startswith("asyncio")]
    assert not any(secret in record.getMessage() for record in quiet)


def test_stored_bytes_are_read_where_they_lie(tmp_path: Path) -> None:
    """A member of a tar at its offset, a whole file, one with a broken place; nothing is fetched."""
    path, members = tmp_path / "00000.tar", {f"{i}.jpg": bytes_for(str(i), 1000 + i) for i in range(3)}
    with tarfile.open(path, "w") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    with tarfile.open(path) as tar:
        places = [json.dumps({"path": str(path), "offset": m.offset_data, "length": m.size}) for m in tar.getmembers()]
    whole = json.dumps({"path": f"file://{path}", "offset": None, "length": None})
    digest = hashlib.sha256(members["0.jpg"]).hexdigest()
    broken = ['{"path": 5}', "[]", '{"path": "x", "offset": -1}', '{"path": "x", "length": "9"}', '{"path": "zip://a::https://b/c.zip"}']
    stored = [*places, whole, places[0], *broken]
    table = wanted(["http://never.test/x"] * len(stored), [*[None] * 4, f"sha256:{digest}", *[None] * len(broken)], list(stored))
    rows = download(table, {"allow_networks": ["127.0.0.1/32"]})
    assert [row["body"] for row in rows[:5]] == [*members.values(), path.read_bytes(), members["0.jpg"]]
    assert {row["fate"] for row in rows[5:]} == {"download:stored_unreadable"}
    assert all(row["final_url"] is None and row["http_status"] is None for row in rows)
    assert str(tmp_path) not in "".join(row["detail"] or "" for row in rows)


def test_only_what_changes_the_bytes_is_in_the_key() -> None:
    assert set(keyed_config(Download.Config())) == {
        "engine", "max_bytes", "min_bytes", "max_redirects", "user_agent_token", "disallowed_header_directives", "tdm_reservation",
        "robots_txt", "optout", "verify_hash",
    }  # fmt: skip


IMG2DATASET = {
    "/ok": "kept", "/chunked/70000": "kept", "/until-close/5000": "kept", "/redirect/3": "kept",
    "/status/404": "download:http_404", "/status/429": "download:http_429", "/status/500": "download:http_5xx", "/empty": "download:empty",
    "/short": "download:truncated", "/silent": "download:reset", "/reset": "download:reset", "/garbage": "download:protocol",
    "/huge/9000000": "download:too_large", "/endless": "download:too_large", "/drip": "download:timeout", "/hang": "download:timeout",
    "/loop/a": "download:redirect_loop", "/to?u=ftp://a.test/x": "download:bad_scheme", "/nowhere": "download:bad_redirect",
    "/to?u=http://u:p@b.test/": "download:credentials", "/header?X-Robots-Tag=noai": "download:robots_tag",
}  # fmt: skip


@needs_img2dataset
def test_img2datasets_engine_gives_the_same_reasons(server: Server) -> None:
    options = {"retries": 0, "timeout_s": 0.8, "connect_timeout_s": 0.5, "max_bytes": 1_000_000, "engine": "img2dataset"}
    rows = fetch(server, list(IMG2DATASET), "theirs.test", **options)
    assert dict(zip(IMG2DATASET, (row["fate"] for row in rows), strict=True)) == IMG2DATASET
    assert rows[0]["body"] == bytes_for("theirs.test/ok{}", 2000)
    agents = {request.headers["user-agent"] for request in server.requests if request.host == "theirs.test"}
    assert all("Mozilla" in agent for agent in agents)
    (row,) = download(wanted(["https://untrusted.test/ok"]), {**server.options(), "engine": "img2dataset", "retries": 0})
    assert row["fate"] == "download:tls"


@needs_img2dataset
def test_img2datasets_engine_keeps_the_limits_per_host(server: Server) -> None:
    options = {"engine": "img2dataset", "per_host": {"concurrency": 2, "per_second": None}}
    rows = fetch(server, [f"/slow/0.05/{i}" for i in range(8)], "limited.test", **options)
    assert {row["fate"] for row in rows} == {"kept"}
    assert server.peak("limited.test") == 2
