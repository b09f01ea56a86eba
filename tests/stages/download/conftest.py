"""A hostile server and a name server for the module's tests, and tables in, rows out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.frame import apply, framed
from stages.download.stage import Download
from tests.support.server import Server

needs_img2dataset = pytest.mark.skipif(not importlib.util.find_spec("img2dataset"), reason="needs the extra img2dataset: make test-all")
ENGINES = ["shardmill", pytest.param("img2dataset", marks=needs_img2dataset)]
QUICK = {"timeout_s": 5, "backoff_s": 0.01, "per_host": {"concurrency": 100, "per_second": None}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(tls=True) as made:
        yield made


@pytest.fixture(scope="module")
def ca_file(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.write_ca(tmp_path_factory.mktemp("ca"))


def wanted(urls: list[str | None], hashes: list[str | None] | None = None, stored: list[str | None] | None = None) -> pa.Table:
    """A table as the stage reads it."""
    nulls: list[str | None] = [None] * len(urls)
    columns = {"url": urls, "expected_hash": hashes or nulls, "stored_at": stored or nulls}
    return framed(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))


def download(table: pa.Table, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a stage with these options makes of a table, through the frame."""
    stage = Download(Download.Config.model_validate({**QUICK, **options}))
    stage.open()
    try:
        return list(apply(stage, table).to_pylist())
    finally:
        stage.close()


def fetch(server: Server, paths: list[str], host: str = "a.test", **options: Any) -> list[dict[str, Any]]:
    """The rows for some paths of the server."""
    return download(wanted([server.url(path, host) for path in paths]), {**server.options(), **options})


def write_lines(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
