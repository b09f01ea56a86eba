"""The same config on a Ray of several nodes with its run on an object store; what a node lacks is told before the work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import packages
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.cluster import ray_cluster
from tests.support.corpus import fates, outputs, serve_pictures, shardmill, write_config
from tests.support.s3 import environment, fetch, s3_server
from tests.support.server import Server

pytestmark = pytest.mark.ray

OWN = '''
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import Column, Stage, drop


class Letters(Stage):
    """Counts a caption's letters; a long one is dropped."""

    name = "letters"
    version = 1
    reads = {"caption": Column(pa.string(), "the caption")}
    adds = {"letters": Column(pa.int32(), "characters of the caption")}
    reasons = {"many": "the caption has more than 86 characters"}

    def __call__(self, table: pa.Table) -> pa.Table:
        letters = pc.fill_null(pc.utf8_length(table["caption"]), 0).cast(pa.int32())
        return drop(table.append_column("letters", letters), pc.greater(letters, 86), "letters:many")
'''


def stages(server: Server) -> dict[str, Any]:
    """The shortest corpus with the user's own stage in it."""
    download = {**server.options(), "timeout_s": 5, "retries": 0}
    return {"ingest": {}, "captions": {}, "letters_of_mine:Letters": {}, "dedup": {}, "download": download, "images": {"size": 64}}


def own_stage(folder: Path) -> Path:
    """A folder with the user's module, which neither Python nor a node looks into by itself."""
    folder.mkdir()
    (folder / "letters_of_mine.py").write_text(OWN)
    return folder


def test_two_nodes_and_an_object_store_give_the_bytes_of_one_machine(
    tmp_path: Path, ray_session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stage of the user's own, whose file only the driver has."""
    own = own_stage(tmp_path / "own")
    with Server() as server, s3_server("bucket") as options:
        listed = serve_pictures(server, tmp_path, 60)
        changes: dict[str, Any] = {"stages": stages(server), "run__part_rows": 30}
        monkeypatch.syspath_prepend(str(own))
        run(write_config(tmp_path / "test.yaml", server, listed, **changes), show=Quiet())
        changes |= {"run__root": "s3://bucket/runs", "run__storage_options": options}
        with ray_cluster(nodes=2, cpus=1) as nodes:
            config = write_config(tmp_path / "test.yaml", server, listed, ray={"address": nodes.address}, **changes)
            monkeypatch.setenv("PYTHONPATH", str(own))
            said = shardmill("run", str(config), cwd=tmp_path)
        copy = fetch(options, "s3://bucket/runs/test", tmp_path / "copy")
    assert "s3://bucket/runs/test/shards/" in said.stdout
    local = tmp_path / "runs" / "test"
    assert fates(copy) == fates(local)
    assert 0 < fates(local)["letters:many"] < 60
    assert outputs(copy) == outputs(local)


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 1)
        said = shardmill("run", str(write_config(tmp_path / "test.yaml", server, listed, ray={"address": "127.0.0.1:9"})), check=False)
    assert said.returncode == 2
    assert re.fullmatch(r"error: ray.address: cannot join a Ray cluster at \S+:9: .*; give HOST:PORT .*\n", said.stderr)


@pytest.mark.slow
def test_a_node_with_other_code_or_without_storage_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes that cannot work: one whose shardmill differs, one that cannot import it, one that cannot reach the object store."""
    other, half = tmp_path / "other", tmp_path / "half" / "pipeline"
    for package in packages():
        shutil.copytree(package, other / package.name)
    (other / "stages" / "captions.py").write_text("# another version\n")
    half.mkdir(parents=True)
    (half / "__init__.py").touch()
    (half / "nodes.py").write_text("raise ImportError('half installed')\n")
    with Server() as server, s3_server("bucket") as options:
        listed = serve_pictures(server, tmp_path, 5)
        for name, value in environment(options).items():
            monkeypatch.setenv(name, value)
        with ray_cluster(nodes=1, cpus=1) as nodes:
            nodes.add_one(PYTHONPATH=str(other))
            nodes.add_one(PYTHONPATH=str(half.parent))
            nodes.add_one(AWS_ENDPOINT_URL="http://127.0.0.1:9")
            fit, *unfit = [node.node_id[:8] for node in nodes.workers]
            config = write_config(tmp_path / "test.yaml", server, listed, ray={"address": nodes.address}, run__root="s3://bucket/runs")
            said = shardmill("run", str(config), cwd=tmp_path, check=False)
        asked = server.count()
    assert said.returncode == 2, said.stderr
    assert asked == 0
    lines = {match[1]: match[2] for match in re.finditer(r"^error: node \S+ \((\w+)\)(.*)$", said.stderr, re.MULTILINE)}
    assert len(said.stderr.splitlines()) == 3 == len(lines), said.stderr
    assert fit not in lines
    assert re.search(r"code is \w+, here it is \w+; install the same on all nodes", lines[unfit[0]])
    assert re.search(r"cannot run shardmill: .*half installed.*; install it there, or use shardmill submit", lines[unfit[1]])
    assert re.search(r"cannot read and write s3://bucket/runs/test: .*give it access", lines[unfit[2]])
