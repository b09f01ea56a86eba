"""The embedded sample: a small LAION-style web on loopback, with a truth label for every row.

`start` builds it where it is not built yet and serves it from a process of its own for the time of a `with` block. The list's
URLs stay the same between runs; `download_options` say at which of this run's ports the made-up hosts are found.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import TransientError


@dataclass(frozen=True)
class Sample:
    """A running sample. `ports`: http, https, dns and closed (where nobody listens), all on 127.0.0.1. `ca_file`: the certificate
    of the authority behind the sample's sound certificates."""

    folder: Path
    ports: dict[str, int]
    ca_file: Path
    name: str = "laion"

    @property
    def table(self) -> Path:
        """The list; laion's is in LAION-400M's columns."""
        return self.folder / f"{self.name}.parquet"

    @property
    def truth(self) -> Path:
        """row, url, truth (class), picture, photo, group, caption (clean), expected."""
        return self.folder / "truth.parquet"

    @property
    def download_options(self) -> dict[str, Any]:
        """Options of the download stage under which the made-up names are found, and nothing else is reached."""
        places = {"*.example": "http", "*.secure.example": "https", "*.closed.test": "closed"}
        return {
            "resolve": {name: f"127.0.0.1:{self.ports[port]}" for name, port in places.items()},
            "nameservers": [f"127.0.0.1:{self.ports['dns']}"],
            "allow_networks": [f"127.0.0.1/32:{self.ports[port]}" for port in ("http", "https", "closed")],
            "ca_file": str(self.ca_file),
        }

    def counts(self) -> dict[str, Any]:
        """`requests` by address (host and decoded path), `hosts` with total, peak and per_second, `names` asked of the name server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/__counts")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found


@contextlib.contextmanager
def start(cache_dir: Path, name: str = "laion") -> Iterator[Sample]:
    """Builds the sample `name` (laion, howto100m) under `cache_dir` if needed and serves it. Raises UserError where an extra is missing."""
    from pipeline.sample import web

    folder = web.ensure(Path(cache_dir).resolve(), name)
    command = [sys.executable, "-m", "pipeline.sample.server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield _ready(folder, process, name)
        finally:
            _end(process)


def facts(folder: Path) -> dict[str, Any]:
    """What a report says about the sample: distinct `photographs`, `pictures`, `rows`, `truth_classes`, and a `text`."""
    found: dict[str, Any] = json.loads((Path(folder) / "facts.json").read_text(encoding="utf-8"))
    return found


def _ready(folder: Path, process: subprocess.Popen[bytes], name: str) -> Sample:
    """Waits for the line that the server prints when it listens."""
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        raise TransientError(f"the sample's server ended at once with code {process.wait(5)}; its words are above")
    ports: dict[str, Any] = json.loads(line)
    return Sample(folder, ca_file=Path(ports.pop("ca_file")), ports=ports, name=name)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closing its standard input asks the server to end; one that does not is killed."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
