"""Trains a minimal Whisper on chords that stand for words, and counts what comes of films through the stages: words right, and how far off
in time. Needs the extras speech and scorer (torch). `python tests/acceptance/speech.py [--steps 1500] [--model FOLDER]`; 1,500 steps of
training took 19 minutes of two busy cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.stages.download.test_download_speech import listened, sounding
from tests.support import whisper, whispertrain


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--steps", type=int, default=1500)
    given.add_argument("--model", type=Path, help="a folder that an earlier run has trained")
    args = given.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = args.model or whispertrain.trained(Path(name) / "model", args.steps, tell=lambda text: print(text, flush=True))
        said, films = [], []
        for n in range(12):
            told = [s for s in whisper.sentences(np.random.default_rng(1000 + n), 28) if s[-1][2] < 28]
            said.append([word for sentence in told for word in sentence])
            films.append(sounding(Path(name) / f"{n}.mkv", whisper.spoken(said[-1], 28, n), sound_s=2))
        rows = listened(films, model).to_pylist()
    right, off = 0, []
    for truth, row in zip(said, rows, strict=True):
        heard = [word for cue in row["cues"] or [] for word in cue["words"]]
        for word, start, _ in truth:
            same = [other["start_s"] - 2 - start for other in heard if other["text"] == word]
            if same:
                right += 1
                off.append(min(same, key=abs))
    told = np.percentile(np.abs(off), [50, 90, 95, 100]).round(2) if off else []
    near = sum(abs(each) <= 0.5 for each in off)
    print(f"words said {sum(map(len, said))}, heard anywhere {right}, within 0.5 s of their time {near}")
    print(f"starts off by (s, quantiles 50 90 95 100): {told}, median {np.median(off):.2f}")


if __name__ == "__main__":
    main()
