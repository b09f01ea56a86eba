"""A finished run over a small web with some dirt, which the tests of what comes after a run copy and go on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import Quiet
from pipeline.runs import Result, run
from tests.support import reported
from tests.support.corpus import caption, picture, write_config, write_list
from tests.support.server import Server

ROWS = 160


@dataclass
class Made:
    """A corpus on a server, its config's file, and the finished run."""

    server: Server
    folder: Path
    lists: Path
    result: Result

    @property
    def config(self) -> Path:
        return self.folder / "test.yaml"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "test"

    def again(self, **changes: Any) -> Result:
        """The same run with a changed config."""
        write_config(self.config, self.server, **{"path": self.lists, **changes})
        return run(self.config, show=Quiet())

    def requests(self) -> int:
        return self.server.count()

    @contextlib.contextmanager
    def healed(self, status: int) -> Iterator[None]:
        """While the block runs, the server has the pictures that it refused with this status."""
        gone = {f"/status/{status}/{n}": self.server.files[f"/pictures/{n}.jpg"] for n in range(ROWS)}
        self.server.files.update(gone)
        try:
            yield
        finally:
            for path in gone:
                del self.server.files[path]


def fill(server: Server, folder: Path) -> None:
    """160 rows: plain ones, and of each kind of loss a few."""
    urls, captions = [], []
    for n in range(ROWS):
        path, text = f"/pictures/{n}.jpg", caption(n)
        server.files[path] = picture(n, (80, 60) if n % 20 == 7 else (320, 256))
        if n % 20 == 3:
            path = f"/status/404/{n}"
        elif n % 20 == 5:
            path = f"/html/{n}"
        elif n % 20 == 9:
            text = "abc"
        elif n % 20 == 11:
            text = caption(n - 1) + "."
        elif n % 20 == 13:
            server.files[path] = server.files[f"/pictures/{n - 1}.jpg"]
        elif n % 20 == 15:
            path = f"/status/503/{n}"
        urls.append(server.url(path, f"host{n % 8}.test"))
        captions.append(text)
    write_list(folder / "lists" / "list-0.parquet", urls, captions)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> Iterator[Made]:
    """The run itself; tests that change anything take `made`."""
    folder = tmp_path_factory.mktemp("first")
    with Server() as server:
        fill(server, folder)
        config = write_config(folder / "test.yaml", server, folder / "lists")
        yield Made(server, folder, folder / "lists", run(config, show=Quiet()))


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> Iterator[tuple[Path, Server, Path]]:
    """A run that a report has much to tell of: its folder, its server, and its lists. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("shown")
    with Server() as server:
        lists = reported.fill(server, folder)
        run(reported.config(folder / "test.yaml", server, lists, reported.RULES), show=Quiet())
        yield folder / "runs" / "test", server, lists


@pytest.fixture
def made(first_run: Made, tmp_path: Path) -> Made:
    """A copy of the finished run in a folder of its own, on the same server."""
    shutil.copytree(first_run.folder / "runs", tmp_path / "runs", copy_function=shutil.copy2)
    write_config(tmp_path / "test.yaml", first_run.server, first_run.lists)
    return Made(first_run.server, tmp_path, first_run.lists, first_run.result)
