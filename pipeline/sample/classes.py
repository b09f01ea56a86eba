"""The truth classes: what kinds of rows the sample holds, and where each kind has to end.

A fate that leaves a choice is written `a|b`. Rows that stand in one `group` (one picture, or one caption) share one place:
exactly one of them is kept, the one with the best score. A judge of similarity errs: which share of sound pairs it may refuse, and of
mismatched ones let pass, is bounded by tests/acceptance/truth.py.
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT = "kept"
TWIN = "selection:near_duplicate_caption|selection:near_duplicate_image"


@dataclass(frozen=True)
class TruthClass:
    """`meaning`: one line for the docs. `fate`: where rows of this class end."""

    meaning: str
    fate: str


CLASSES: dict[str, TruthClass] = {
    # Sound pairs
    "plain": TruthClass("a JPEG of a photograph or of a part of one, with a true caption", KEPT),
    "https": TruthClass("over HTTPS with a sound certificate", KEPT),
    "redirect": TruthClass("reached through one to three redirects (301, 302, 303, 307, 308; relative and absolute)", KEPT),
    "busy_once": TruthClass("429 with Retry-After: 1 at first; answered to those who wait", KEPT),
    "fails_once": TruthClass("503 at the first request, the picture at the second", KEPT),
    "wrong_type": TruthClass("a picture that is served as text/html, text/plain or octet-stream", KEPT),
    "odd_url": TruthClass("spaces, umlauts, a query, a port or a fragment in the URL", KEPT),
    "mojibake": TruthClass("caption in UTF-8 that was read as Windows-1252 once or twice", KEPT),
    "escaped": TruthClass("caption with HTML tags and escapes, some of them escaped twice", KEPT),
    "control": TruthClass("caption with control, bidi and zero-width characters and stray white space", KEPT),
    "animated_gif": TruthClass("GIF of three frames, of which the first counts", KEPT),
    "cmyk": TruthClass("JPEG in four print colours", KEPT),
    "grey": TruthClass("JPEG of one channel", KEPT),
    "palette_png": TruthClass("PNG of 128 colours", KEPT),
    "alpha_png": TruthClass("PNG with transparent corners", KEPT),
    "exif_rotated": TruthClass("JPEG that is upright only for who obeys its EXIF orientation", KEPT),
    "webp": TruthClass("WebP", KEPT),
    "avif": TruthClass("AVIF", KEPT),
    "numbered": TruthClass("captions that differ in a number alone, on different pictures", KEPT),
    "twin_of_dead": TruthClass("its caption stands at a dead link too, which must not cost it its place", KEPT),
    # Repetitions
    "same_pair": TruthClass("URL and caption stand in the list a second time", "dedup:same_pair"),
    "same_picture": TruthClass("a plain picture again, smaller or in another format, under another URL", TWIN),
    "same_bytes": TruthClass("one file under four URLs with two captions", f"{KEPT}|{TWIN}"),
    "same_url": TruthClass("one URL in three rows with different captions", f"{KEPT}|{TWIN}"),
    "same_caption": TruthClass("one caption that is true of three different pictures", f"{KEPT}|{TWIN}"),
    "near_caption": TruthClass("three different pictures whose captions differ in a letter or a full stop", f"{KEPT}|{TWIN}"),
    "frequent_caption": TruthClass("one caption at 14 different pictures", f"{KEPT}|dedup:max_per_caption|{TWIN}"),
    "placeholder": TruthClass("the card 'image not available' under 24 URLs", "selection:placeholder"),
    "blank": TruthClass("a picture of one colour", "selection:blank"),
    # Captions
    "mismatch": TruthClass("a sound picture with a true caption of another one", "selection:similarity"),
    "caption_short": TruthClass("caption of less than five characters", "captions:too_short"),
    "caption_empty": TruthClass("no caption", "captions:empty"),
    "caption_boilerplate": TruthClass("a file name, 'image 1 of 12', 'click to enlarge'", "captions:boilerplate"),
    "caption_long": TruthClass("caption of some hundred words", "captions:too_long"),
    "caption_abroad": TruthClass("a true caption in another language than English", "captions:language"),
    # URLs that must not be asked
    "bad_url": TruthClass("no URL, or one that cannot be read", "download:invalid_url"),
    "other_scheme": TruthClass("ftp, data or file instead of http", "download:bad_scheme"),
    "credentials": TruthClass("user name and password in the URL", "download:credentials"),
    "private_url": TruthClass("an address of a private network, in several spellings", "download:forbidden_address"),
    "private_name": TruthClass("a name that leads to a private address", "download:forbidden_address"),
    "redirect_private": TruthClass("redirect to a private address or another local port", "download:forbidden_address"),
    "redirect_ssh": TruthClass("redirect to the port of another protocol", "download:forbidden_port"),
    "redirect_scheme": TruthClass("redirect to a file of the reader's own machine", "download:bad_scheme"),
    # Dead links
    "http_404": TruthClass("404", "download:http_404"),
    "http_410": TruthClass("410", "download:http_410"),
    "http_403": TruthClass("403", "download:http_403"),
    "http_500": TruthClass("500, always", "download:http_5xx"),
    "busy": TruthClass("429 with Retry-After: 3600, always", "download:http_429"),
    "dns_missing": TruthClass("a host name that does not exist", "download:dns_nxdomain"),
    "dns_silent": TruthClass("a host name for which the name server never answers", "download:dns_timeout"),
    "dns_failing": TruthClass("a host name for which the name server answers SERVFAIL", "download:dns_error"),
    "refused": TruthClass("nobody listens at the host", "download:connect_refused"),
    "tls_untrusted": TruthClass("HTTPS with a certificate from an authority that nobody knows", "download:tls"),
    "tls_expired": TruthClass("HTTPS with a certificate that ran out", "download:tls"),
    "tls_other_name": TruthClass("HTTPS with another host's certificate", "download:tls"),
    "stall": TruthClass("the host takes the connection and stays silent", "download:timeout"),
    "drip": TruthClass("a byte now and then, for ever", "download:timeout"),
    "endless": TruthClass("a body without an end", "download:too_large"),
    "announced_large": TruthClass("a Content-Length of terabytes", "download:too_large"),
    "cut_off": TruthClass("the connection ends in the middle of the body", "download:truncated"),
    "reset": TruthClass("the connection ends instead of an answer", "download:reset"),
    "no_body": TruthClass("200 and nothing", "download:empty"),
    "redirect_loop": TruthClass("redirects in a circle", "download:redirect_loop"),
    "redirect_chain": TruthClass("more redirects than anybody follows", "download:too_many_redirects"),
    "noai": TruthClass("X-Robots-Tag noai, noimageai, noindex or noimageindex", "download:robots_tag"),
    "tdm_reserved": TruthClass("TDM-Reservation: 1", "download:tdm_reservation"),
    # What is no picture, or none to use
    "html": TruthClass("an HTML page (some say 404 in it) served as image/jpeg with status 200", "images:not_an_image"),
    "svg": TruthClass("a drawing in SVG", "images:not_an_image"),
    "truncated": TruthClass("the first part of a JPEG, PNG or WebP, served whole", "images:truncated"),
    "corrupt": TruthClass("damaged inside: Huffman tables, zlib data, noise behind a JPEG marker", "images:undecodable"),
    "bomb": TruthClass("a few kilobytes that claim hundreds of millions of pixels", "images:too_many_pixels"),
    "tiny": TruthClass("tracking pixels and icons", "images:too_small"),
    "extreme_aspect": TruthClass("a strip of a photograph, more than three times as long as wide", "images:aspect"),
    "small": TruthClass("between the size that images accept and the size that the selection asks for", "selection:min_side"),
}


def table() -> str:
    """The classes as a Markdown table, as docs/guide/sample.md has it (a test compares them)."""
    lines = ["| class | what it is | where it has to end |", "| --- | --- | --- |"]
    for name, kind in CLASSES.items():
        ends = " or ".join(f"`{fate}`" for fate in kind.fate.split("|"))
        lines.append(f"| `{name}` | {kind.meaning} | {ends} |")
    return "\n".join(lines)
