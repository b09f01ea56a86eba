"""A real S3 API on loopback (moto's server), for tests of storage on an object store."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, Any]]:
    """Starts a server with one empty bucket; yields the storage options under which s3fs finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
        client.create_bucket(Bucket=bucket)
        yield options
    finally:
        server.stop()


@contextlib.contextmanager
def requests() -> Iterator[Counter[str]]:
    """Counts, by method, what the server is asked while the block runs."""
    counted: Counter[str] = Counter()
    log, handler = logging.getLogger("werkzeug"), logging.Handler()
    method = re.compile(r'"(?:\x1b\[[0-9;]*m)*(GET|HEAD|PUT|POST|DELETE) /')  # werkzeug colours lines by their status
    handler.emit = lambda record: counted.update(method.findall(record.getMessage()))  # type: ignore[method-assign]
    before = (log.level, log.propagate)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield counted
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def fetch(options: dict[str, Any], url: str, folder: Path) -> Path:
    """Copies a folder of the bucket to this machine."""
    import s3fs

    s3fs.S3FileSystem(**options).get(url.removeprefix("s3://").rstrip("/") + "/", f"{folder}/", recursive=True)
    return folder


def environment(options: dict[str, Any]) -> dict[str, str]:
    """The variables by which s3fs finds the server without any options."""
    return {
        "AWS_ENDPOINT_URL": options["client_kwargs"]["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
    }
