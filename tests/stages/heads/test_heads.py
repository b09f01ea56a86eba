"""Heads on embeddings: against torch's own layers, and one that was trained here to know a picture when it sees one."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.keys import ingredients

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs the extra clip or scorer")
EMBEDDING = pa.list_(pa.float16())


def embeddings(n: int, width: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(n, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def judged(given: np.ndarray, **head: Any) -> list[float | None]:
    table = pa.table({"image_embedding": pa.array([*given, None], EMBEDDING)})
    out: list[float | None] = pipeline.use("heads", heads={"verdict": head})(table)["verdict"].to_pylist()
    return out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("between", ["none", "relu", "gelu"])
def test_a_stack_of_twelve_layers_says_what_torch_says(tmp_path: Path, suffix: str, between: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    act = {"none": torch.nn.Dropout, "relu": torch.nn.ReLU, "gelu": torch.nn.GELU}[between]
    sizes = [16, *range(20, 9, -1), 3]  # so many that names in the order of letters would be wrong
    parts = [part for at in range(12) for part in (torch.nn.Linear(sizes[at], sizes[at + 1], bias=at % 2 == 0), act())][:-1]
    net = torch.nn.Sequential(*parts).eval()
    path = tmp_path / f"head{suffix}"
    state = {f"layers.{key}": value for key, value in net.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    given = embeddings(5, 16)
    with torch.inference_mode():
        wanted = torch.softmax(net(torch.from_numpy(given.astype(np.float32))), 1)[:, 2].numpy()
    found = judged(given, file=str(path), between=between, output="softmax", index=2)
    np.testing.assert_allclose(np.array(found[:-1], dtype=np.float32), wanted, rtol=1e-4)
    assert found[-1] is None, "no embedding, no judgement"


def test_what_is_no_head_is_refused_and_another_file_is_another_key(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "head.safetensors"
    one = {"heads": {"verdict": {"file": str(path)}}}
    with pytest.raises(UserError, match="there is no"):
        entry("heads", one)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"scale": np.ones(3, np.float32)}, path)
    with pytest.raises(UserError, match="no linear layer"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"0.weight": np.ones((4, 8), np.float32), "1.weight": np.ones((1, 5), np.float32)}, path)
    with pytest.raises(UserError, match="no stack"):
        entry("heads", one).stage.check_ready()  # type: ignore[attr-defined]
    save_file({"weight": np.ones((1, 8), np.float32)}, path)
    with pytest.raises(UserError, match="index"):
        entry("heads", {"heads": {"verdict": {"file": str(path), "index": 1}}}).stage.check_ready()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="takes 8 values, the embedding has 4"):
        judged(embeddings(1, 4), file=str(path))
    with pytest.raises(UserError, match="lower-case"):
        entry("heads", {"heads": {"Is NSFW?": {"file": str(path)}}})
    before = ingredients([entry("heads", one)])
    save_file({"weight": np.zeros((1, 8), np.float32)}, path)
    assert ingredients([entry("heads", one)]) != before


def onnx_file(path: Path, layers: list[tuple[np.ndarray, np.ndarray]], rows: int | str = "n", last: str | None = "Sigmoid") -> Path:
    """A stack of layers (weight of shape (out, in), bias) with ReLU between them, as torch's exporter writes it: a Gemm each."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: make setup EXTRAS=dev")
    helper, nodes, held, value = onnx.helper, [], [], "embedding"
    for at, (weight, bias) in enumerate(layers):
        held += [onnx.numpy_helper.from_array(weight, f"{at}.weight"), onnx.numpy_helper.from_array(bias, f"{at}.bias")]
        nodes.append(helper.make_node("Gemm", [value, f"{at}.weight", f"{at}.bias"], [f"{at}.out"], transB=1))
        value = f"{at}.out"
        if kind := "Relu" if at + 1 < len(layers) else last:
            nodes.append(helper.make_node(kind, [value], [f"{at}.{kind}"]))
            value = f"{at}.{kind}"
    given = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [rows, layers[0][0].shape[1]])
    made = helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [rows, len(layers[-1][0])])
    graph = helper.make_graph(nodes, "head", [given], [made], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def stack(*sizes: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    return [(rng.normal(size=(out, held)).astype(np.float32), rng.normal(size=out).astype(np.float32)) for held, out in pairs]


@pytest.mark.parametrize("rows", ["n", 1])
def test_onnx_says_what_the_same_weights_say(tmp_path: Path, rows: int | str) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from safetensors.numpy import save_file

    made = stack(16, 8, 3)
    save_file(
        {f"{at}.{part}": value for at, pair in enumerate(made) for part, value in zip(("weight", "bias"), pair, strict=True)},
        tmp_path / "a.safetensors",
    )
    given = embeddings(5, 16)
    found = judged(given, file=str(onnx_file(tmp_path / "a.onnx", made, rows)), index=2)
    wanted = judged(given, file=str(tmp_path / "a.safetensors"), between="relu", output="sigmoid", index=2)
    assert found[:-1] == [pytest.approx(value, abs=1e-5) for value in wanted[:-1]]
    assert found[-1] is None
    raw = judged(given, file=str(onnx_file(tmp_path / "b.onnx", made, rows, last=None)), output="sigmoid", index=2)
    assert raw[:-1] == [pytest.approx(value, abs=1e-5) for value in wanted[:-1]]


def test_onnx_that_is_no_head_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")

    def ready(path: Path, **head: Any) -> None:
        entry("heads", {"heads": {"verdict": {"file": str(path), **head}}}).stage.check_ready()  # type: ignore[attr-defined]

    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be read"):
        ready(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="takes 4 rows at a time"):
        ready(onnx_file(tmp_path / "four.onnx", stack(16, 1), rows=4))
    good = onnx_file(tmp_path / "good.onnx", stack(16, 2))
    ready(good, index=1)
    with pytest.raises(UserError, match="gives 2 values"):
        ready(good, index=2)
    with pytest.raises(UserError, match="says itself what stands between"):
        ready(good, between="relu")
    with pytest.raises(UserError, match="takes 16 values, the embedding has 4"):
        judged(embeddings(1, 4), file=str(good))


HUB = """
import sys
import pipeline, pyarrow as pa
table = pa.table({"image_embedding": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float16()))})
print(pipeline.use("heads", heads={"verdict": {"file": sys.argv[1]}})(table)["verdict"].to_pylist())
"""


def test_a_head_comes_from_a_hub_by_its_commit(tmp_path: Path) -> None:
    """By huggingface_hub itself, from a hub on loopback; then from its cache, when the hub is gone."""
    pytest.importorskip("huggingface_hub", reason="needs the extra clip or scorer")
    from safetensors.numpy import save

    commit, body = "0123456789abcdef0123456789abcdef01234567", save({"weight": np.array([[2.0, -3.0]], np.float32)})
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            there = self.path == f"/owner/judge/resolve/{commit}/heads/nice.safetensors"
            self.send_response(200 if there else 404)
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(body) if there else 0))
            self.end_headers()
            if there and self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - as http.server calls it

        def log_message(self, *_: Any) -> None:
            pass

    def told(file: str) -> subprocess.CompletedProcess[str]:
        known = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return subprocess.run(
            [sys.executable, "-c", HUB, file],
            env={**os.environ, **known},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        first = told(f"hf://owner/judge@{commit}/heads/nice.safetensors")
        lost = told(f"hf://owner/judge@{commit}/heads/none.safetensors")
        server.shutdown()
    assert first.stdout.strip() == "[2.0, -3.0]", first.stderr
    assert "cannot be had from the hub" in lost.stderr
    assert asked
    assert told(f"hf://owner/judge@{commit}/heads/nice.safetensors").stdout.strip() == "[2.0, -3.0]"
    with pytest.raises(UserError, match="with a commit of 40 digits"):
        entry("heads", {"heads": {"x": {"file": "hf://owner/judge@main/nice.safetensors"}}})
    one, other = (ingredients([entry("heads", {"heads": {"x": {"file": f"hf://owner/judge@{c * 40}/a.onnx"}}})]) for c in "ab")
    assert one != other


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "head.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="cannot be read"):
        entry("heads", {"heads": {"x": {"file": str(tmp_path / "head.pt")}}}).stage.open()
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_head_that_was_trained_on_the_offline_scorer_fires_on_pictures_that_it_never_saw(tmp_path: Path, data_dir: Path) -> None:
    """Dogs against everything else, by the captions of Flickr8k: a linear head learnt on train photographs, asked on val ones."""
    import csv

    from PIL import Image
    from safetensors.numpy import save_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    from stages.lib import offline_scorer

    if offline_scorer.missing():
        pytest.skip("needs the extra scorer")
    flickr = data_dir / "flickr8k"
    captions: dict[str, list[str]] = {}
    with (flickr / "captions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(f" {row['caption'].lower()} ")
    scorer = offline_scorer.load()

    def embedded(split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        paths = sorted((flickr / split).glob("*.jpg"))[:most]
        images = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]
        return scorer.encode_image(images), np.array([sum(" dog" in text for text in captions[path.name]) >= 3 for path in paths])

    known, dogs = embedded("train", 200)
    learnt = LogisticRegression(C=100).fit(known, dogs)
    save_file({"weight": learnt.coef_.astype(np.float32), "bias": learnt.intercept_.astype(np.float32)}, tmp_path / "dog.safetensors")
    asked, truth = embedded("val", 150)
    said = judged(asked.astype(np.float16), file=str(tmp_path / "dog.safetensors"), output="sigmoid")[:-1]
    assert roc_auc_score(truth, said) > 0.95
    if importlib.util.find_spec("onnxruntime"):
        layer = (learnt.coef_.astype(np.float32), learnt.intercept_.astype(np.float32))
        as_onnx = judged(asked.astype(np.float16), file=str(onnx_file(tmp_path / "dog.onnx", [layer])))[:-1]
        assert as_onnx == [pytest.approx(value, abs=1e-4) for value in said]
