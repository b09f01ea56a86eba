"""Several nodes and an object store give the bytes of one machine: `python tests/acceptance/cluster.py [ROWS]` (default 400).

A run on a Ray of three nodes, its storage on a real S3 API. While it works one node is killed and another joins: once among the
captions, once in the download. Its tars, Parquet, manifest, sizes.json and statistics must equal a local run's. Exit code 1
where bytes differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.cluster import Nodes, ray_cluster
from tests.support.corpus import command, fates, outputs, serve_pictures, shardmill, write_config
from tests.support.s3 import fetch, s3_server
from tests.support.server import Server

CHANGES = {"rows": 3, "pool": 3}  # folder of the run -> committed files after which a node leaves and one joins


def main(rows: int) -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server, s3_server("bucket") as options:
        folder = Path(name)
        listed = serve_pictures(server, folder, rows)
        shardmill("run", str(write_config(folder / "test.yaml", server, listed, run__part_rows=20)))
        local = folder / "runs" / "test"
        print(f"one machine: {fates(local)}", flush=True)
        remote = {"run__root": "s3://bucket/runs", "run__storage_options": options}
        with ray_cluster(nodes=3, cpus=1) as nodes:
            config = write_config(folder / "test.yaml", server, listed, run__part_rows=20, ray={"address": nodes.address}, **remote)
            _run(config, nodes, options)
        copy = fetch(options, "s3://bucket/runs/test", folder / "copy")
        got, wanted = outputs(copy), outputs(local)
        differ = sorted(name for name in {*got, *wanted} if got.get(name) != wanted.get(name))
        print(f"three nodes and S3: {len(wanted)} files, {len(differ)} differ {json.dumps(differ[:5]) if differ else ''}")
        return int(bool(differ) or fates(copy) != fates(local))


def _run(config: Path, nodes: Nodes, options: dict[str, object]) -> None:
    import s3fs

    bucket = s3fs.S3FileSystem(**options, skip_instance_cache=True, use_listings_cache=False)
    began = time.monotonic()
    with subprocess.Popen(command("run", str(config)), stdout=subprocess.DEVNULL) as going:
        for phase, wanted in CHANGES.items():
            while (done := len(bucket.glob(f"bucket/runs/test/{phase}/*/part-*"))) < wanted and going.poll() is None:
                time.sleep(0.1)
            if going.poll() is not None:
                raise SystemExit(f"the run was over before {phase} had {wanted} parts; take more rows")
            nodes.remove_one()
            nodes.add_one()
            print(f"  {time.monotonic() - began:5.1f} s: a node was killed and one joined, {done} parts in {phase}", flush=True)
        if going.wait(300):
            raise SystemExit(f"the run on three nodes ended with {going.returncode}")
    print(f"  {time.monotonic() - began:5.1f} s: the run is finished")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 400))
