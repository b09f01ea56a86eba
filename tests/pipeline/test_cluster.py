"""The same config on a Ray of several nodes with its run on an object store; what a node lacks is told before the work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import packages, submit
from pipeline.errors import TransientError, UserError
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.cluster import ray_cluster
from tests.support.corpus import command, fates, outputs, serve_pictures, shardmill, write_config
from tests.support.s3 import environment, fetch, s3_server
from tests.support.server import Server

pytestmark = pytest.mark.ray

OWN = '''
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import Column, Stage, drop


class Letters(Stage):
    """Counts a caption's letters; an odd number is dropped."""

    name = "letters"
    version = 1
    reads = {"caption": Column(pa.string(), "the caption")}
    adds = {"letters": Column(pa.int32(), "characters of the caption")}
    reasons = {"odd": "the caption has an odd number of characters"}

    def __call__(self, table: pa.Table) -> pa.Table:
        letters = pc.fill_null(pc.utf8_length(table["caption"]), 0).cast(pa.int32())
        return drop(table.append_column("letters", letters), pc.equal(pc.bit_wise_and(letters, 1), 1), "letters:odd")
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
    assert 0 < fates(local)["letters:odd"] < 60
    assert outputs(copy) == outputs(local)


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with Server() as server:
        listed = serve_pictures(server, tmp_path, 1)
        said = shardmill("run", str(write_config(tmp_path / "test.yaml", server, listed, ray={"address": "127.0.0.1:9"})), check=False)
    assert said.returncode == 2
    assert re.fullmatch(r"error: ray.address: cannot join a Ray cluster at \S+:9: .*; give HOST:PORT .*\n", said.stderr)


@pytest.mark.slow
def test_a_node_that_leaves_the_download_and_is_not_replaced_costs_nothing(tmp_path: Path) -> None:
    """Its parts are done by another while the others still have work, so the watchdog has nothing to end."""
    with Server() as server, ray_cluster(nodes=3, cpus=1, memory=8 << 30) as nodes:
        listed = serve_pictures(server, tmp_path, 1600, hosts=10)
        slow = {**server.options(), "timeout_s": 5, "retries": 0, "per_host": {"concurrency": 8, "per_second": 2}}
        given = {"ingest": {}, "download": slow, "images": {"size": 64}}
        config = write_config(
            tmp_path / "test.yaml", server, listed, ray={"address": nodes.address}, run__part_rows=20, run__stall_s=45, stages=given
        )
        pool = tmp_path / "runs" / "test" / "pool"
        with subprocess.Popen(command("run", str(config)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as going:
            until = time.monotonic() + 120
            while len(list(pool.rglob("part-*.parquet"))) < 6 and going.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            committed = len(list(pool.rglob("part-*.parquet")))
            nodes.remove_one()
            said = going.communicate(timeout=200)[1]
    assert 6 <= committed < 20
    assert going.returncode == 0, said
    assert fates(tmp_path / "runs" / "test") == {"kept": 1600}


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
    assert re.search(r"cannot run shardmill: ImportError: half installed; install it there, or use shardmill submit", lines[unfit[1]])
    assert re.search(r"cannot read and write s3://bucket/runs/test: .*give it access", lines[unfit[2]])


@pytest.mark.slow
def test_submit_ships_what_runs_follows_the_log_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp_cors", reason="the extra cluster is not installed")
    own = own_stage(tmp_path / "own")
    with (own / "letters_of_mine.py").open("a") as module:
        module.write("\nimport pipeline\n\nprint('shardmill is', pipeline.__file__, flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(own))
    with Server() as server, ray_cluster(nodes=1, cpus=2, jobs=True) as nodes:
        listed = serve_pictures(server, tmp_path, 40)
        changes: dict[str, Any] = {"stages": stages(server), "run__part_rows": 20, "run__root": f"file://{tmp_path}/runs"}
        config = write_config(tmp_path / "test.yaml", server, f"file://{listed}", **changes)
        said = shardmill("submit", str(config), "--address", nodes.jobs_address, cwd=tmp_path)
        here, there = re.findall(r"shardmill is (\S+)", said.stdout)
        assert here == str(packages()[0] / "__init__.py")
        assert "/runtime_resources/py_modules_files/" in there
        assert re.search(r"INFO phase=shards done .*\n(.*\n)+job raysubmit_\w+: succeeded\n$", said.stdout)
        assert set(fates(tmp_path / "runs" / "test")) == {"kept", "letters:odd"}
        stopped = _interrupted(tmp_path, "submit", str(config), "--address", nodes.jobs_address, "--set", "run.name=second")
    assert re.search(r"\njob raysubmit_\w+: stopped\n", stopped)
    assert not (tmp_path / "runs" / "second" / "shards").exists()


def _interrupted(folder: Path, *args: str) -> str:
    """What a command says that is stopped by Ctrl-C once the first part is committed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages()[0].parent), os.environ["PYTHONPATH"]])}
    with subprocess.Popen(command(*args), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as going:
        until = time.monotonic() + 120
        while going.poll() is None and time.monotonic() < until and not list(folder.glob("runs/second/rows/*/part-*")):
            time.sleep(0.05)
        going.send_signal(signal.SIGINT)
        said = going.communicate(timeout=60)[0]
    assert going.returncode == 130
    return said


@pytest.mark.parametrize(
    ("changes", "key"),
    [({}, "run.root"), ({"run__root": "s3://bucket/runs"}, "input.path")],
)
def test_submit_refuses_what_only_one_machine_has(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with Server() as server, pytest.raises(UserError, match=rf"^{key}: .* lies on this machine; a cluster needs what all nodes reach"):
        submit(write_config(tmp_path / "test.yaml", server, serve_pictures(server, tmp_path, 1), **changes), [])


def test_submit_says_when_no_job_server_answers(tmp_path: Path) -> None:
    with Server() as server:
        config = write_config(tmp_path / "test.yaml", server, "s3://bucket/list.parquet", run__root="s3://bucket/runs")
        with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9: no Ray job server answers"):
            submit(config, [], "http://127.0.0.1:9")
