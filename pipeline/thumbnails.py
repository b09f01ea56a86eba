"""report/samples.jpg: twenty-four samples as they stand in the shards, with their captions, so that a person sees what was made."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import wrap

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.storage import Store
from stages.lib.imagedecode import READERS
from stages.lib.imagetype import sniff

COUNT, COLUMNS, SIDE, GAP, LINES = 24, 6, 168, 8, 3
INK, PAPER = (40, 40, 40), (255, 255, 255)
WIDE, HIGH = SIDE + GAP, SIDE + GAP + LINES * 14
SHEET, TAG = "report/samples.jpg", "claimed_nsfw"
BLUR = ImageFilter.GaussianBlur(14)
PICTURES = ("jpg", "webp", "png")


@dataclass(frozen=True)
class Unsafe:
    """What makes a picture unsafe: a column of `by` at `least` or above, or the input's tag."""

    by: Sequence[str] = ()
    least: float = 0.5

    def keys(self, store: Store, shard: str) -> set[str]:
        """The samples of a tar that are, by the Parquet beside it."""
        listing = f"{shard.removesuffix('.tar')}.parquet"
        there = store.columns(listing) if store.exists(listing) else []
        names = [name for name in (*self.by, TAG) if name in there]
        found: set[str] = set()
        if not names:
            return found
        table = store.read_table(listing, ["key", *names])
        for name in names:
            column = table[name]
            if name == TAG:
                hit = pc.equal(column, "NSFW")
            elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                hit = pc.invert(pc.less(column.cast(pa.float64()), self.least))  # NaN says nothing: hidden, as in the page
            else:
                continue
            found |= set(table["key"].filter(pc.fill_null(hit, False)).to_pylist())
        return found


def write(store: Store, shards: list[str], unsafe: Unsafe | None = None) -> str | None:
    """Writes the sheet of the first samples of these tars (their order is random by default), the unsafe ones blurred; returns its path.
    None of no samples: then no sheet lies there."""
    found = list(islice((sample for shard in shards for sample in samples(store, shard, unsafe)), COUNT))
    if not found:
        store.remove(SHEET)
        return None
    out = io.BytesIO()
    sheet(found).save(out, "JPEG", quality=80, optimize=True)
    store.write(SHEET, out.getvalue())
    return SHEET


def samples(store: Store, shard: str, unsafe: Unsafe | None = None) -> Iterator[tuple[Image.Image, str]]:
    """Small picture and caption of each sample that can be shown, read from the tar's beginning no further than is asked for."""
    hidden = unsafe.keys(store, shard) if unsafe else set()
    with store.open(shard) as handle, tarfile.open(fileobj=handle, mode="r|") as tar:
        members: dict[str, bytes] = {}
        current = ""
        for info in tar:
            key, _, suffix = info.name.partition(".")
            if key != current and members:
                yield from _sample(members, current in hidden)
                members = {}
            current, file = key, tar.extractfile(info)
            members[suffix] = file.read() if file else b""
        yield from _sample(members, current in hidden)


def _sample(members: dict[str, bytes], hidden: bool) -> Iterator[tuple[Image.Image, str]]:
    pictures = sorted(suffix for suffix in members if suffix.rpartition(".")[2] in PICTURES)
    if pictures and (picture := small(members[pictures[len(pictures) // 2]])) is not None:  # of a clip the middle frame
        yield picture.filter(BLUR) if hidden else picture, members.get("txt", b"").decode()


def small(body: bytes, side: int = SIDE) -> Image.Image | None:
    """The picture, no side longer than `side`; None of one that cannot be shown.

    It is read by the type's reader itself: Image.open judges sizes by a limit of its own.
    """
    reader = READERS.get(sniff(body) or "")
    if reader is None:
        return None
    try:
        image: Image.Image = reader(io.BytesIO(body))
        image.thumbnail((side, side))
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):  # Pillow's of bytes that are not whole, or too many
        return None


def sheet(found: list[tuple[Image.Image, str]]) -> Image.Image:
    """The pictures in a grid, each with the beginning of its caption under it."""
    out = Image.new("RGB", (COLUMNS * WIDE + GAP, -(-len(found) // COLUMNS) * HIGH + GAP), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for place, (picture, caption) in enumerate(found):
        left, top = GAP + place % COLUMNS * WIDE, GAP + place // COLUMNS * HIGH
        out.paste(picture, (left, top))
        draw.multiline_text((left, top + SIDE + 2), "\n".join(wrap(caption, 28, max_lines=LINES, placeholder=" …")), INK, font, spacing=2)
    return out
