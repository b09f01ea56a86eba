"""What a test asks of an S3 API: requests as the server counts them, bytes as the client receives them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass
class Traffic:
    requests: int = 0
    gets: int = 0
    bytes: int = 0


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts while the block runs. Bytes are those of objects that this process reads."""
    import s3fs

    counted = Traffic()

    def line(record: logging.LogRecord) -> None:
        if found := re.search(r'"(?:\x1b\[[0-9;]*m)*(GET|HEAD|PUT|POST|DELETE) /', record.getMessage()):  # colours by status
            counted.requests += 1
            counted.gets += found[1] == "GET"

    original = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *args: Any, **more: Any) -> Any:
        answer = await original(self, method, *args, **more)
        if method == "get_object":
            counted.bytes += answer["ContentLength"]
        return answer

    log, handler = logging.getLogger("werkzeug"), logging.Handler()
    handler.emit = line  # type: ignore[method-assign]
    before = (log.level, log.propagate, log.handlers)
    log.setLevel(logging.INFO)
    log.propagate, log.handlers = False, [handler]
    try:
        with mock.patch.object(s3fs.S3FileSystem, "_call_s3", call):
            yield counted
    finally:
        log.setLevel(before[0])
        log.propagate, log.handlers = before[1:]
