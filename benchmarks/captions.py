"""The captions stage on real captions: `python benchmarks/captions.py [DATA] [--rounds 5]`.

English (Flickr8k and alt texts) and fifteen languages (DATA/captions), each caption once. Captions per CPU-second of the stage (cleaning,
all rules that the presets use, measures, language) with the MinHash signature of dedup, and of its single steps; beside bare loops of the
libraries: ftfy's fix_text, fastText's prediction, datasketch's MinHash of 5-character shingles. One thread, medians of alternating rounds.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pyarrow as pa
from datasketch import MinHash

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import results
from pipeline import catalog
from pipeline.frame import framed
from stages.lib import minhash, text, text_language
from stages.lib.shingles import code_points, shingle_hash, shingle_hashes, shingles

TARGET, PERMUTATIONS, SHINGLE, SOME = 25_000, 128, 5, 2000  # SOME: captions of the slow bare loops
RULES = {"min_chars": 5, "max_chars": 300, "min_words": 2, "boilerplate": True, "max_run": 10, "languages": ["en"]}


def read(path: Path, *columns: str) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file) for name in columns if row.get(name)]


def captions(data: Path) -> dict[str, list[str]]:
    english = read(data / "flickr8k" / "captions.csv", "caption") + read(data / "web_photos" / "pairs.csv", "alt")
    tables = sorted((data / "captions").glob("*.csv"))
    many = [line for path in tables for line in read(path, "caption", "en", "de", "fr", "cs")]
    return {"English": list(dict.fromkeys(english)), "fifteen languages": list(dict.fromkeys(many))}


def signed(texts: pa.StringArray) -> np.ndarray:
    return minhash.signatures(shingle_hashes(code_points(texts), SHINGLE), PERMUTATIONS)


def datasketch(texts: list[str]) -> None:
    for one in texts:
        made = MinHash(PERMUTATIONS, scheme="affine32", hashfunc=shingle_hash)
        made.update_batch(shingles(one, SHINGLE))


def measured(texts: list[str], rounds: int) -> dict[str, float]:
    """Captions per CPU-second of each step, the median of the rounds."""
    array, few = pa.array(texts), texts[:: max(1, len(texts) // SOME)]
    table = framed(pa.table({"source_caption": array}))
    stage: Any = catalog.entry("captions", RULES).stage
    stage.open()
    model = text_language.load()
    cleaned = text.clean_batch(array)
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "stage and signature": (len(texts), lambda: signed(stage(table)["caption"].combine_chunks())),
        "stage": (len(texts), lambda: stage(table)),
        "  cleaning": (len(texts), lambda: text.clean_batch(array)),
        "  language": (len(texts), lambda: text_language.identify(model, cleaned)),
        "signature": (len(texts), lambda: signed(cleaned)),
        "bare ftfy.fix_text": (len(few), lambda: [ftfy.fix_text(one) for one in few]),
        "bare fastText predict": (len(few), lambda: [model.predict(f"{one}\n", 1, 0.0, "strict") for one in few]),
        "bare datasketch MinHash": (len(few), lambda: datasketch(few)),
    }
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (count, work) in steps.items():
            began = time.process_time()
            work()
            found[name].append(count / (time.process_time() - began))
    return {name: statistics.median(rates) for name, rates in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("SHARDMILL_TEST_DATA"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    results.begin(parser, given)
    if given.data is None:
        print("captions: no DATA, nothing measured (name the folder, or set SHARDMILL_TEST_DATA)")
        return 0
    pa.set_cpu_count(1)
    sets = captions(Path(given.data))
    rates = {name: measured(texts, given.rounds) for name, texts in sets.items()}
    print(f"{'captions per CPU-second':28}" + "".join(f"{f'{name} ({len(sets[name])})':>28}" for name in rates))
    for step in rates["English"]:
        print(f"{step:28}" + "".join(f"{rates[name][step]:28,.0f}" for name in rates))
    for name, steps in rates.items():
        whole = steps["stage and signature"]
        results.add(f"captions: stage and signature, captions per CPU-second, {name}", whole, None, TARGET, whole >= TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
