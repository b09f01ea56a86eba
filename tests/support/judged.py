"""A stage that scores, for tests of the report: any number will do, as long as a picture and a caption always give the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from pipeline.stage import Column, Stage


class Judged(Stage):
    """Similarity from -0.2 to 0.5 by a hash of picture and caption; some are equal, since hashes are cut to 100 values."""

    name = "judged"
    version = 1
    reads = {"sha256": Column(pa.string(), "of the body"), "caption": Column(pa.string(), "the caption")}
    adds = {"similarity": Column(pa.float32(), "-0.2 to 0.5"), "charm": Column(pa.float32(), "0 to 10")}

    def __call__(self, table: pa.Table) -> pa.Table:
        pairs = zip(table["sha256"].to_pylist(), table["caption"].to_pylist(), strict=True)
        digests = [hashlib.md5(f"{body} {caption}".encode()).digest() for body, caption in pairs]
        similarity = np.array([one[0] % 100 / 100 * 0.7 - 0.2 for one in digests], np.float32)
        charm = np.array([one[1] / 25.5 for one in digests], np.float32)
        return table.append_column("similarity", pa.array(similarity)).append_column("charm", pa.array(charm))


class ByPicture(Stage):
    """A score of the picture alone, for runs whose scores are made beforehand: it is never called."""

    name = "bypicture"
    version = 1
    reads = {"sha256": Column(pa.string(), "of the body")}
    adds = {"similarity": Column(pa.float32(), "-0.2 to 0.5")}
