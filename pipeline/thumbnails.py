"""report/samples.jpg: twenty-four samples as they stand in the shards, with their captions, so that a person sees what was made."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import islice
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from pipeline.storage import Store
from stages.lib.imagedecode import READERS
from stages.lib.imagetype import sniff

COUNT, COLUMNS, SIDE, GAP, LINES = 24, 6, 168, 8, 3
INK, PAPER = (40, 40, 40), (255, 255, 255)
WIDE, HIGH = SIDE + GAP, SIDE + GAP + LINES * 14
PICTURES = ("jpg", "webp", "png")


def write(store: Store, shards: list[str]) -> str | None:
    """Writes the sheet of the first samples of these tars (their order is random by default); returns its path, None of no samples."""
    found = list(islice((sample for shard in shards for sample in samples(store, shard)), COUNT))
    if not found:
        return None
    out = io.BytesIO()
    sheet(found).save(out, "JPEG", quality=80, optimize=True)
    store.write("report/samples.jpg", out.getvalue())
    return "report/samples.jpg"


def samples(store: Store, shard: str) -> Iterator[tuple[Image.Image, str]]:
    """Small picture and caption of each sample that can be shown, read from the tar's beginning no further than is asked for."""
    with store.open(shard) as handle, tarfile.open(fileobj=handle, mode="r|") as tar:
        members: dict[str, bytes] = {}
        current = ""
        for info in tar:
            key, _, suffix = info.name.partition(".")
            if key != current and members:
                yield from _sample(members)
                members = {}
            current, file = key, tar.extractfile(info)
            members[suffix] = file.read() if file else b""
        yield from _sample(members)


def _sample(members: dict[str, bytes]) -> Iterator[tuple[Image.Image, str]]:
    pictures = sorted(suffix for suffix in members if suffix.rpartition(".")[2] in PICTURES)
    if pictures and (picture := small(members[pictures[len(pictures) // 2]])) is not None:  # of a clip the middle frame
        yield picture, members.get("txt", b"").decode()


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
