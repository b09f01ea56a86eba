"""What kind of file a body is, by its first bytes, and whether its own structure says that its end is missing.

Nothing is decoded here. Signatures: the PNG, GIF, WebP, BMP and TIFF specifications, ISO/IEC 14496-12 (file type boxes) for AVIF and HEIC.
"""

from __future__ import annotations

import struct
import zlib

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"8BPS", "psd"),
    (b"qoif", "qoi"),
    (b"v/1\x01", "exr"),
    (b"#?RADIANCE", "hdr"),
    (b"DDS ", "dds"),
)
BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"), "heic")


def sniff(body: bytes) -> str | None:
    """`jpeg`, `png`, … or None for what no signature knows (HTML, SVG, text, nothing)."""
    for magic, name in SIGNATURES:
        if body.startswith(magic):
            return name
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body[:2] == b"BM" and len(body) >= 18 and struct.unpack_from("<I", body, 14)[0] in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    return _brand(body)


def _brand(body: bytes) -> str | None:
    """AVIF or HEIC by the brands of the file type box; AVIF wins where both stand."""
    if body[4:8] != b"ftyp":
        return None
    end = min(struct.unpack_from(">I", body)[0], len(body), 256)
    named = {BRANDS.get(body[at : at + 4]) for at in (8, *range(16, end - 3, 4))}
    return next((name for name in ("avif", "heic") if name in named), None)


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Canvas width and height in pixels, read from the first chunk, or None where it can't be read (RFC 9649).

    libwebp gives no size before it has taken memory for the whole canvas.
    """
    kind, at = body[12:16], 20
    if len(body) < 30:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[24:27], "little"), 1 + int.from_bytes(body[27:30], "little")
    if kind == b"VP8L" and body[at] == 0x2F:
        bits = int.from_bytes(body[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(body[26:28], "little") & 0x3FFF, int.from_bytes(body[28:30], "little") & 0x3FFF
    return None


def blank(body: bytes) -> int:
    """Zero bytes at the end of a WebP or AVIF if they are a quarter of it or more, else 0.

    libwebp decodes zeros to grey and AV1 decoders to smears, without a word. Sound files end in at most a few zeros, those of one
    colour too.
    """
    zeros = len(body) - len(body.rstrip(b"\0"))
    return zeros if zeros >= max(64, len(body) // 4) else 0


def ends_early(kind: str, body: bytes) -> bool | None:
    """True where the structure is sound up to the end of `body` and promises more; False where it is whole or damaged.

    None for a type without a walk of its own: there the decoder's message has to tell.
    """
    walk = {"jpeg": _jpeg_short, "png": _png_short, "webp": _riff_short, "avif": _boxes_short}.get(kind)
    return walk(body) if walk else None


def _jpeg_short(body: bytes) -> bool:
    """Marker segments up to the scan; then an end marker must follow somewhere. The first segment must be whole, or it is no JPEG."""
    at, whole = 2, 0
    while at + 4 <= len(body):
        if body[at] != 0xFF:
            return False
        marker = body[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return body.find(b"\xff\xd9", at) < 0
        if marker == 0xD9:
            return False
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        if length < 2:
            return False
        at += 2 + length
        whole += at <= len(body)
    return whole > 0


def _png_short(body: bytes) -> bool:
    at = 8
    while at + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        if not kind.isalpha():
            return False
        if kind == b"IEND":
            return False
        at += 12 + length
    return True


def png_damaged(body: bytes) -> str | None:
    """Where the checksum of a whole chunk of pixels is wrong, in words, or None. Pillow does not look at these, and shows noise."""
    view, at = memoryview(body), 8
    while at + 12 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        end = at + 8 + length
        if kind == b"IDAT" and end + 4 <= len(body) and body[end : end + 4] != zlib.crc32(view[at + 4 : end]).to_bytes(4, "big"):
            return f"the checksum of the pixels at byte {at} is wrong"
        at = end + 4
    return None


def _riff_short(body: bytes) -> bool:
    return len(body) < 8 or 8 + int.from_bytes(body[4:8], "little") > len(body)


def _boxes_short(body: bytes) -> bool:
    at = 0
    while at + 8 <= len(body):
        size = struct.unpack_from(">I", body, at)[0]
        if size == 0:  # the box lasts to the end of the file
            return False
        if size == 1 and at + 16 <= len(body):
            size = struct.unpack_from(">Q", body, at + 8)[0]
        if size < 8 or not body[at + 4 : at + 8].isalnum():
            return False
        at += size
    return at != len(body)
