"""The web's dirt: links that are dead, hosts that misbehave, files that are no pictures, and rows that never were pairs.

Rows here have pictures and captions of views that live elsewhere in the list, except where they live to the selection.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from pipeline.sample import certificates, encode, nameserver, pages, photos
from pipeline.sample.builder import SITES, Builder

PLACEHOLDER, BLANK = 9000, 9100  # picture ids of what is no view
KIN = (  # photographs whose captions might be taken for true of one another
    {"astronaut", "hopper"},
    {"hubble", "moon", "rocket", "astronaut"},
    {"retina", "vessels", "tissue", "cat", "moon"},
    {"grass", "gravel", "brick", "moon", "coffee", "flower", "pagoda"},
    {"page", "handwriting"},
    {"clock", "coins", "coffee", "motorcycle", "camera"},
)
ROBOTS = ("noai", "noimageai", "noindex", "noimageindex", "noarchive, noai", "shardmill: nofollow, NoImageAI")
PRIVATE = (
    "http://10.0.0.5/photos/cat.jpg", "http://192.168.1.1/images/logo.jpg", "http://169.254.169.254/latest/meta-data/picture.jpg",
    "http://[::1]/pictures/1.png", "http://[::ffff:10.0.0.5]/mapped.jpg", "http://0x0a000005/hex.jpg", "http://167772165/decimal.jpg",
    "http://100.64.3.2/carrier.jpg",
)  # fmt: skip
LEADS_INSIDE = (
    "http://10.0.0.5/x.jpg", "http://169.254.169.254/latest/meta-data/", "http://[::1]/x.jpg", "http://127.0.0.1:9099/x.jpg",
    "http://localhost/x.jpg", f"http://intranet.{nameserver.INSIDE}.test/x.jpg",
)  # fmt: skip
DEAD_HOSTS = (
    ("dns_missing", f"{nameserver.MISSING}.test", 8),
    ("dns_silent", f"{nameserver.SILENT}.test", 3),
    ("dns_failing", f"{nameserver.FAILING}.test", 3),
    ("private_name", f"{nameserver.INSIDE}.test", 3),
    ("refused", "closed.test", 6),
    ("tls_untrusted", f"{certificates.UNTRUSTED}.secure.example", 3),
    ("tls_expired", f"{certificates.EXPIRED}.secure.example", 3),
    ("tls_other_name", f"{certificates.OTHER_NAME}.secure.example", 3),
)
HTML = (
    "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>",
    "<html><body>This domain is for sale!</body></html>",
    "\n\n  <?xml version='1.0'?><!DOCTYPE html><html><body>Please enable JavaScript to see this picture.</body></html>",
    "<html><head><meta http-equiv='refresh' content='0; url=/login'></head><body></body></html>",
)


def add_dirt(b: Builder) -> None:
    _bad_captions(b)
    _bad_urls(b)
    _dead_hosts(b)
    _statuses(b)
    _misbehaving(b)
    _redirects(b)
    _reserved(b)
    _no_pictures(b)
    _broken_pictures(b)
    _unusable_pictures(b)
    _placeholders(b)
    _mismatches(b)


def _dead(b: Builder, truth: str, url: str | None = None, **page: Any) -> None:
    """A row whose picture is never seen: a view's second caption, and a page under its URL if one is given."""
    view = b.dying()
    url = b.url(view.captions[1]) if url is None else url
    if page:
        b.serve(url, **page)
    b.add(truth, url, view.captions[1], size=view.image().size)


def _bad_captions(b: Builder) -> None:
    for text in ("cat", "red", "a", "ok!", "sky", "    "):
        b.photo("caption_short" if text.strip() else "caption_empty", b.dying(), text.strip(), text=text)
    for missing in ("", None, None):
        b.photo("caption_empty", b.dying(), "", text=missing)
    for text in ("IMG_4032.JPG", "DSC00071.jpg", "image 3 of 12", "Click to enlarge", "untitled-1.png", "Photo 2 of 7", "Stock Photo"):
        b.photo("caption_boilerplate", b.dying(), text)
    words = ", ".join(view.captions[0] for view in b.views[:40])
    for start in (0, 200):
        b.photo("caption_long", b.dying(), words[start:])
    for foreign in photos.abroad():
        b.photo("caption_abroad", foreign.view, foreign.caption)


def _bad_urls(b: Builder) -> None:
    b.add("bad_url", None, b.dying().captions[1])
    for text in ("not a link at all", "http://", "//cdn.museum.example/no-scheme.jpg", "http://[10.0.0/broken.jpg"):
        _dead(b, "bad_url", text)
    for text in ("ftp://ftp.archive.example/pub/cat.jpg", "file:///etc/passwd", "data:image/gif;base64,R0lGODlhAQABAAAAACw="):
        _dead(b, "other_scheme", text)
    for text in ("http://admin:secret@img.archive.example/a.jpg", "http://user@cdn.museum.example/b.jpg"):
        _dead(b, "credentials", text)
    for text in PRIVATE:
        _dead(b, "private_url", text)


def _dead_hosts(b: Builder) -> None:
    for truth, suffix, count in DEAD_HOSTS:
        for number in range(count):
            scheme = "https" if truth.startswith("tls") else "http"
            _dead(b, truth, b.url(b.dying().captions[1], host=f"{SITES[number]}.{suffix}", scheme=scheme))


def _statuses(b: Builder) -> None:
    for truth, status, count in (("http_404", 404, 10), ("http_410", 410, 4), ("http_403", 403, 4), ("http_500", 500, 3)):
        for _ in range(count):
            _dead(b, truth, status=status, body=b"<html><body>Sorry.</body></html>", kind="text/html")
    for _ in range(3):
        _dead(b, "busy", behaviour=pages.BUSY)


def _misbehaving(b: Builder) -> None:
    picture = encode.jpeg(b.dying().image())
    counts = {pages.STALL: 3, pages.DRIP: 3, pages.ENDLESS: 2, pages.SHORT: 4, pages.RESET: 3}
    for behaviour, count in counts.items():
        for _ in range(count):
            _dead(b, "cut_off" if behaviour == pages.SHORT else behaviour, behaviour=behaviour, body=picture)
    _dead(b, "announced_large", behaviour=pages.HUGE, body=picture)
    for _ in range(3):
        _dead(b, "no_body", body=b"")


def _redirects(b: Builder) -> None:
    for status in (301, 302, 308):
        first, second = b.url("round"), b.url("and round")
        b.serve(second, headers={"Location": first}, status=status)
        _dead(b, "redirect_loop", first, headers={"Location": second}, status=status)
    for _ in range(2):
        target = b.url("the end")
        for _ in range(15):
            source = b.url("still further")
            b.serve(source, headers={"Location": target}, status=302)
            target = source
        _dead(b, "redirect_chain", target)
    for truth, targets in (
        ("redirect_private", LEADS_INSIDE), ("redirect_ssh", ("http://127.0.0.1:22/",)), ("redirect_scheme", ("file:///etc/hostname",)),
    ):  # fmt: skip
        for target in targets:
            _dead(b, truth, headers={"Location": target}, status=302)


def _reserved(b: Builder) -> None:
    for tag in ROBOTS:
        view = b.dying()
        _dead(b, "noai", headers={"X-Robots-Tag": tag}, body=encode.jpeg(view.image()))
    for _ in range(3):
        _dead(b, "tdm_reserved", headers={"TDM-Reservation": "1"}, body=encode.jpeg(b.dying().image()))


def _no_pictures(b: Builder) -> None:
    for number in range(8):
        b.photo("html", b.dying(), body=HTML[number % len(HTML)].encode(), picture=None)
        if number < 2:
            b.photo("svg", b.dying(), body=encode.svg("drawing"), picture=None)


def _broken_pictures(b: Builder) -> None:
    for share in (0.3, 0.5, 0.7, 0.9):
        view = b.dying()
        b.photo("truncated", view, body=encode.cut(encode.jpeg(view.image()), share))
    for share in (0.4, 0.8):
        view = b.dying()
        b.photo("truncated", view, body=encode.cut(encode.png(view.image()), share))
        b.photo("truncated", view, body=encode.cut(encode.webp(view.image()), share))
    for seed in range(2):
        views = [b.dying() for _ in range(4)]
        b.photo("corrupt", views[0], body=encode.broken_jpeg(views[0].image()))
        b.photo("corrupt", views[1], body=encode.broken_png(views[1].image()))
        b.photo("corrupt", views[2], body=encode.broken_webp(views[2].image()))
        b.photo("corrupt", views[3], body=encode.noise(20_000, seed))
    small = encode.scaled(b.dying().image(), 120)
    for body in (encode.png_bomb(20_000), encode.png_bomb(40_000), encode.jpeg_bomb(small), encode.gif_bomb(small)):
        b.photo("bomb", b.dying(), body=body, picture=None)


def _unusable_pictures(b: Builder) -> None:
    pixel = encode.animated(Image.new("RGB", (1, 1), (255, 255, 255)))
    for _ in range(3):
        b.photo("tiny", b.dying(), body=pixel, size=(1, 1), picture=None)
    for side in (8, 16, 24, 31):
        icon = encode.scaled(b.dying().image(), side)
        b.photo("tiny", b.dying(), body=encode.png(icon), size=icon.size, picture=None)
    for aspect in (3.5, 4, 5, 6, 8):
        image = b.dying().image()
        strip = encode.scaled(image.crop((0, 0, image.width, max(8, round(image.width / aspect)))), 400)
        b.photo("extreme_aspect", b.dying(), body=encode.jpeg(strip), size=strip.size, picture=None)
    for _ in range(4):
        view = b.mirrored()[0]
        thumb = encode.scaled(view.image(), 60)
        b.photo("small", view, b.second_caption(), encode.jpeg(thumb), size=thumb.size)
    for number, colour in enumerate(((255, 255, 255), (255, 255, 255), (0, 0, 0), (0, 0, 0), (200, 30, 40), (128, 128, 128))):
        flat = Image.new("RGB", (200 + 40 * number, 240), colour)
        b.photo("blank", b.dying(), b.second_caption(), encode.jpeg(flat), size=flat.size, picture=BLANK + number)


def _placeholders(b: Builder) -> None:
    card = encode.placeholder()
    body = encode.jpeg(card)
    for _ in range(24):
        b.photo("placeholder", b.dying(), b.second_caption(), body, size=card.size, picture=PLACEHOLDER)


def _mismatches(b: Builder) -> None:
    for photo in ("astronaut", "motorcycle", "flower", "rocket", "pagoda", "coffee", "cat") * 2:
        view = b.mirrored(photo)[0]
        kin = set().union(*(family for family in KIN if photo in family)) | {photo}
        b.photo("mismatch", view, b.second_caption(unlike=kin))
