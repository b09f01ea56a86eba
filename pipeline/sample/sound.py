"""The sound pairs of the sample's web, and their repetitions: what a crawl would keep, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PIL import Image

from pipeline.sample import encode, pages
from pipeline.sample.builder import SITES, Builder
from pipeline.sample.photos import View

# Encodings that a sound row may come in: truth class, how many, encoder.
ENCODINGS: tuple[tuple[str, int, Callable[[Image.Image], bytes]], ...] = (
    ("animated_gif", 4, encode.animated),
    ("cmyk", 4, encode.cmyk),
    ("grey", 3, encode.grey),
    ("palette_png", 4, encode.palette),
    ("alpha_png", 4, encode.alpha),
    ("webp", 6, encode.webp),
    ("avif", 5, encode.avif),
)
# How a picture comes a second time: factor of its size, encoder.
SMALLER: tuple[tuple[float, Callable[[Image.Image], bytes]], ...] = (
    (0.75, partial(encode.jpeg, quality=70)),
    (0.8, encode.webp),
    (0.9, encode.png),
    (0.65, partial(encode.jpeg, quality=92)),
)
# Captions that are true of every part of the photograph, mirrored or not.
SHARED = {
    "gravel": "Grey gravel photographed from above",
    "brick": "A wall of dark bricks with pale mortar",
    "grass": "Close-up of the grass of a lawn",
    "hubble": "Galaxies in a deep exposure by the Hubble telescope",
    "retina": "Inside of a human eye with its blood vessels",
    "tissue": "Stained tissue of the colon under a microscope",
}
NEARLY = {
    "moon": "The surface of the moon with its craters, plains and shadows, as a spacecraft saw it",
    "coins": "Ancient Greek money from Pompeii that belongs to the collection of the Brooklyn Museum",
    "cat": "A tabby cat called Chelsea, photographed by her owner from a very short distance",
    "rocket": "The launch site of a Falcon 9 rocket at Cape Canaveral, photographed in the evening",
    "hopper": "Part of the official portrait of Commodore Grace Hopper in the uniform of the navy",
    "pagoda": "View of the Summer Palace in Beijing with its tower high above the water of a lake",
}
FREQUENT = "A photograph that was taken in black and white"


def add_sound(b: Builder) -> None:
    """Pairs that are kept. Plain ones take the views that the other classes leave, so they come last."""
    for name, count, encoder in ENCODINGS:
        for view in b.take(count):
            b.photo(name, view, body=encoder(view.image()))
    for orientation, view in zip(range(2, 9), b.take(7), strict=True):
        b.photo("exif_rotated", view, body=encode.rotated(view.image(), orientation))
    for number, view in enumerate(b.take(6)):
        url = b.url(view.captions[0], host=f"{SITES[number]}.secure.example", scheme="https")
        b.photo("https", view, url=url)
    for view in b.take(4):
        b.photo("busy_once", view, served={"behaviour": pages.BUSY_ONCE})
    for view in b.take(3):
        b.photo("fails_once", view, served={"behaviour": pages.FAILS_ONCE})
    for kind, view in zip(("text/html", "text/plain", "application/octet-stream", "", "image/png"), b.take(5), strict=True):
        b.photo("wrong_type", view, served={"kind": kind})
    _redirects(b)
    _odd_urls(b)
    _captions(b)
    for number, view in enumerate(b.mirrored("gravel", 3), start=41):
        b.photo("numbered", view, f"Sample {number} of the stone collection: crushed grey gravel")


def _redirects(b: Builder) -> None:
    """One hop with each status, then chains of two and three, whose second hop is relative."""
    for hops, status, view in zip((1, 1, 1, 1, 1, 2, 3), (301, 302, 303, 307, 308, 301, 302), b.take(7), strict=True):
        target = b.serve(b.url(view.captions[0]), encode.jpeg(view.image()))
        for hop in range(hops):
            host, path = target.removeprefix("http://").split("/", 1)
            source = b.url("old address", "php", host if hop == 1 else None)
            b.serve(source, kind="text/html", headers={"Location": f"/{path}" if hop == 1 else target}, status=status)
            target = source
        b.add("redirect", target, view.captions[0], view)


def _odd_urls(b: Builder) -> None:
    """URLs that a parser can stumble over; the server knows each by its host, decoded path and query."""
    shapes = (
        "http://img.travelphotos.example/My holiday pictures/photo {n}.jpg",
        "http://cdn.museum.example/ausstellung/gr%C3%B6%C3%9Fe-{n}.jpg",
        "http://static.citywalks.example/straße/münchen-{n}.jpg",
        "http://media.archive.example:80/image.php?id={n}&size=large&v=1.2",
        "http://IMG.Wallpapers.Example/Upper-{n}.JPG#section-2",
        "http://cdn.teatime.example/a/b/(tea)'{n}',1.jpg",
    )
    for number, (shape, view) in enumerate(zip(shapes, b.take(len(shapes)), strict=True), start=301):
        b.photo("odd_url", view, url=shape.format(n=number))


def _captions(b: Builder) -> None:
    for number, view in enumerate(b.take(8)):
        caption = f"{view.captions[0]} – photo © Café “Zeitgeist”"
        once = _misread(caption)
        b.photo("mojibake", view, caption, text=_misread(once) if number % 4 == 3 else once)
    for number, view in enumerate(b.take(8)):
        caption = f"{view.captions[0]} & more of the same"
        text = caption.replace("&", "&lt;br&gt;&amp;").replace("'", "&#39;").replace("more", "&lt;b&gt;more&lt;/b&gt;")
        b.photo("escaped", view, caption, text=text.replace("&", "&amp;") if number % 2 else text)
    for view in b.take(4):
        words = view.captions[0].split()
        text = f" \u202e{words[0]}\u200b  {words[1]}\t\x07\r\n{' '.join(words[2:])}\u202c\u2028 "
        b.photo("control", view, text=text)


def _misread(text: str) -> str:
    """UTF-8 read as Windows-1252, its five holes as browsers fill them."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


def add_plain(b: Builder) -> None:
    """The remaining views as plain pairs, most of them with repetitions."""
    for view in b.take(5):
        b.photo("twin_of_dead", view)
        b.add("http_404", b.url("gone for ever"), view.captions[0])
    for number, view in enumerate(b.take()):
        if number % 10 == 0:
            _same_bytes(b, view, f"bytes-{number}")
        elif number % 10 == 5:
            _same_url(b, view, f"url-{number}")
        else:
            pair = b.photo("plain", view)
            if min(view.image().size) >= 110 and number % 10 not in (3, 7, 8):
                b.replace(pair, group=f"picture-{number}")
                _smaller(b, view, f"picture-{number}", number)


def _smaller(b: Builder, view: View, group: str, number: int) -> None:
    """Two smaller copies: one with the view's second caption, one with the same caption as the original."""
    captions = (b.second_caption(view), view.captions[0])
    for caption, (factor, encoder) in zip(captions, (SMALLER[number % 4], SMALLER[(number + 1) % 4]), strict=True):
        copy = encode.scaled(view.image(), round(max(view.image().size) * factor))
        b.photo("same_picture", view, caption, encoder(copy), size=copy.size, group=group)


def _same_bytes(b: Builder, view: View, group: str) -> None:
    body = encode.jpeg(view.image())
    for caption in (view.captions[0], b.second_caption(view)) * 2:
        b.photo("same_bytes", view, caption, body, group=group)


def _same_url(b: Builder, view: View, group: str) -> None:
    first = b.photo("same_url", view, group=group)
    for caption in (b.second_caption(view), f"{view.captions[0]} (a part of the photograph that is called {view.photo})"):
        b.add("same_url", first.url, caption, view, group=group)


def add_shared_captions(b: Builder) -> None:
    """Different pictures under one caption, or nearly one; each picture as large as its box, so the largest is kept."""
    for photo, caption in SHARED.items():
        for view in b.mirrored(photo, 3):
            b.photo("same_caption", view, caption, group=f"caption-{photo}")
    for photo, caption in NEARLY.items():
        typo = caption[:41] + caption[42:]
        for view, text in zip(b.mirrored(photo, 3), (caption, f"{caption}.", typo), strict=True):
            b.photo("near_caption", view, text, group=f"near-{photo}")
    for photo, count in {"camera": 6, "coins": 4, "grass": 2, "brick": 2}.items():
        for view in b.mirrored(photo, count):
            b.photo("frequent_caption", view, FREQUENT, group="frequent")


def add_same_pairs(b: Builder) -> None:
    """Some rows of the list once more. web.build sees to it that the repetition comes later in the list."""
    plain = [pair for pair in b.pairs if pair.truth == "plain" and pair.group is None]
    for pair in plain[:6]:
        b.repeat(pair, "same_pair")
