"""The rows that parity.py lets both programs fetch, and what may differ between their outputs, with the reason."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from pipeline.sample import encode
from tests.support.server import Server, closed_port

TURNED = "EXIF orientation is applied here; img2dataset stores such pictures lying or mirrored"
DAMAGED = "what is damaged or cut off is refused here; img2dataset stores what the decoder made of it"
# (kind of row or "*", field) -> why it may differ.
WANTED: dict[tuple[str, str], str] = {
    **{("turned", name): TURNED for name in ("width", "height", "original_width", "original_height", "pixels")},
    ("profile", "pixels"): "colour profiles are converted to sRGB here; img2dataset drops them, and colours shift",
    ("grey", "channels"): "grey pictures are stored as RGB here; by img2dataset with one channel",
    ("odd name", "status"): "URLs with spaces and umlauts are asked for as browsers do; img2dataset does not fetch them",
    ("cut", "status"): DAMAGED,
    ("damaged", "status"): DAMAGED,
    ("*", "exif"): "EXIF here: plain values of the tags that tell how a picture was taken; img2dataset: exifread's texts of all tags",
    ("*", "error_message"): "error texts: each program has its own words",
    ("*", "null in JSON"): "null in a sample's JSON: img2dataset null, which breaks type inference, here an empty text",
    ("*", "sha256 of a failed row"): "sha256 of a body that was fetched and refused: known here, null in img2dataset",
}


@dataclass
class Page:
    """One row of the list: `body` is served at `path`; without one, the server's own path of that name answers, or nobody."""

    path: str
    caption: str | None
    kind: str
    body: bytes | None = None

    def serve(self, server: Server) -> str:
        if self.kind == "refused":
            return f"http://127.0.0.1:{closed_port()}{self.path}"
        if self.body is not None:
            server.files[quote(self.path)] = self.body
        return f"http://127.0.0.1:{server.port}{self.path}"


def pages(data: Path, count: int) -> list[Page]:
    """`count` photographs, three fifths of them from the web, with what is no sound photograph strewn among them."""
    web = list(csv.DictReader((data / "web_photos" / "pairs.csv").open(encoding="utf-8")))
    flickr = {line["image"]: line["caption"] for line in csv.DictReader((data / "flickr8k" / "captions.csv").open(encoding="utf-8"))}
    found = [_photo(data / "web_photos" / line["file"], line["alt"]) for line in _spread(web, count * 3 // 5)]
    shots = _spread(sorted((data / "flickr8k" / "train").glob("*.jpg")), count * 2 // 5)
    found += [_photo(path, flickr[path.name]) for path in shots]
    with Image.open(shots[0]) as opened:
        others = _others(opened.convert("RGB"))
    every = max(1, len(found) // len(others))
    for place, page in enumerate(others):
        found.insert(place * (every + 1), page)
    return found


def _spread(items: list[object], count: int) -> list[object]:
    return items[:: max(1, len(items) // count)][:count]


def _photo(path: Path, caption: str) -> Page:
    body = path.read_bytes()
    with Image.open(io.BytesIO(body)) as image:
        turned = image.getexif().get(0x0112, 1) != 1
        kind = "turned" if turned else "profile" if image.info.get("icc_profile") else "grey" if image.mode == "L" else "photo"
    return Page(f"/photos/{path.name}", caption, kind, body)


def _others(image: Image.Image) -> list[Page]:
    """Everything that is no sound JPEG of the usual kind, made of `image` where it is a picture."""
    small = encode.scaled(image, 300)
    made = {f"exif{n}.jpg": ("turned", encode.rotated(small, n)) for n in range(2, 9)}
    made |= {
        "alpha.png": ("alpha", encode.alpha(small)),
        "palette.png": ("palette", encode.palette(small)),
        "animated.gif": ("gif", encode.animated(small)),
        "cmyk.jpg": ("cmyk", encode.cmyk(small)),
        "grey.jpg": ("grey", encode.grey(small)),
        "picture.webp": ("webp", encode.webp(small)),
        "picture.avif": ("avif", encode.avif(small)),
        "one.png": ("tiny", encode.png(image.resize((1, 1)))),
        "icon.jpg": ("tiny", encode.jpeg(image.resize((16, 16)))),
        "strip.jpg": ("strip", encode.jpeg(image.resize((600, 40)))),
        "cut.jpg": ("cut", encode.cut(encode.jpeg(small), 0.9)),
        "cut.png": ("cut", encode.cut(encode.png(small), 0.6)),
        "damaged.jpg": ("damaged", encode.broken_jpeg(small)),
        "damaged.png": ("damaged", encode.broken_png(small)),
        "page.jpg": ("page", b"<!doctype html><title>404</title>not here"),
        "drawing.svg": ("page", encode.svg("a drawing")),
        "text.jpg": ("page", b"no picture"),
    }
    out = [Page(f"/made/{name}", f"made from a photograph: {name}", kind, body) for name, (kind, body) in made.items()]
    out += [Page(f"/status/{code}", f"answers {code}", "dead") for code in (403, 404, 410, 500)]
    out += [Page(path, f"answers oddly at {path}", "dead") for path in ("/loop/a", "/reset", "/silent", "/nowhere", "/short")]
    out += [Page("/header?X-Robots-Tag=noai", "not for machines", "forbidden"), Page("/nobody.jpg", "nobody listens", "refused")]
    sound = encode.jpeg(small, 80)
    out += [
        Page("/made/no-caption.jpg", None, "photo", sound),
        Page("/made/name \u00fc.jpg", 'odd \u00fc \U0001f600 "q"', "odd name", sound),
    ]
    return out
