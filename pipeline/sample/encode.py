"""Pictures to bytes as the web has them: sound files of many kinds, broken ones, and bombs."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, ImageDraw

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAGIC = ((PNG_MAGIC, 0, "png"), (b"GIF8", 0, "gif"), (b"WEBP", 8, "webp"), (b"ftypavif", 4, "avif"), (b"<svg", 0, "svg"))


def kind(body: bytes) -> tuple[str, str]:
    """Suffix and Content-Type that a host would give a file; whatever is not known passes for a JPEG."""
    suffix = next((suffix for magic, at, suffix in MAGIC if body[at : at + len(magic)] == magic), "jpg")
    return suffix, {"jpg": "image/jpeg", "svg": "image/svg+xml"}.get(suffix, f"image/{suffix}")


def scaled(image: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side `longest` pixels, smaller or larger than it was."""
    factor = longest / max(image.size)
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, quality: int = 88, **more: object) -> bytes:
    return _save(image, "JPEG", quality=quality, **more)


def png(image: Image.Image) -> bytes:
    return _save(image, "PNG", compress_level=6)


def webp(image: Image.Image, quality: int = 85) -> bytes:
    return _save(image, "WEBP", quality=quality, method=2)


def avif(image: Image.Image, quality: int = 75) -> bytes:
    """One thread, so that the bytes do not depend on the number of cores."""
    return _save(image, "AVIF", quality=quality, speed=8, max_threads=1)


def cmyk(image: Image.Image) -> bytes:
    """A JPEG in four print colours, as Adobe's programs write it (inverted)."""
    return jpeg(image.convert("CMYK"), 90)


def grey(image: Image.Image) -> bytes:
    """A JPEG of one channel."""
    return jpeg(image.convert("L"), 90)


def palette(image: Image.Image) -> bytes:
    """A PNG of 128 colours."""
    return png(image.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))


def alpha(image: Image.Image) -> bytes:
    """A PNG whose corners are transparent, with loud pixels hidden under them that nobody is meant to see."""
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, image.width - 1, image.height - 1), min(image.size) // 5, fill=255)
    hidden = Image.new("RGB", image.size, (255, 0, 255))
    hidden.paste(image, mask=mask)
    hidden.putalpha(mask)
    return png(hidden)


def animated(image: Image.Image) -> bytes:
    """A GIF of three frames; the first one is the picture, the others are it, ever darker."""
    frames = [image.point(lambda value, k=k: value * k // 3).quantize(96, Image.Quantize.MEDIANCUT) for k in (3, 2, 1)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    return out.getvalue()


# What has to be done to an upright picture so that a viewer that obeys the EXIF orientation shows it upright again.
_UNDO = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}


def rotated(image: Image.Image, orientation: int) -> bytes:
    """A JPEG stored turned or mirrored, with the EXIF orientation (2 to 8) that puts it right."""
    for step in _UNDO[orientation]:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Sample Camera Works"
    return jpeg(image, 90, exif=exif)


def cut(body: bytes, share: float) -> bytes:
    """The first part of a file: what an interrupted upload leaves."""
    return body[: int(len(body) * share)]


def broken_png(image: Image.Image) -> bytes:
    """A PNG whose compressed data was damaged on the way; the checksums tell, and so does zlib."""
    body = bytearray(png(image))
    middle = len(body) // 2
    body[middle : middle + 64] = bytes(255 - value for value in body[middle : middle + 64])
    return bytes(body)


def broken_jpeg(image: Image.Image) -> bytes:
    """A JPEG whose Huffman tables were overwritten: the header reads well, no pixel can be decoded."""
    body = bytearray(jpeg(image))
    start = 0
    while (start := body.find(b"\xff\xc4", start)) >= 0:
        length = int.from_bytes(body[start + 2 : start + 4], "big")
        body[start + 5 : start + 2 + length] = b"\xff" * (length - 3)
        start += 2 + length
    return bytes(body)


def broken_webp(image: Image.Image) -> bytes:
    """A WebP whose picture data are zeros."""
    body = webp(image)
    return body[:30] + bytes(len(body) - 30)


def noise(size: int, seed: int) -> bytes:
    """`size` bytes behind a JPEG's first marker that are no picture; the same bytes for the same seed."""
    out = bytearray(b"\xff\xd8\xff\xe0")
    state = seed
    while len(out) < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out += state.to_bytes(8, "little")
    return bytes(out[:size])


def png_bomb(side: int) -> bytes:
    """A sound PNG of `side` x `side` black pixels of one bit: a few kilobytes that decode to side squared."""
    deflate = zlib.compressobj(9)
    line = bytes(1 + (side + 7) // 8)
    data = b"".join(deflate.compress(line * min(256, side - at)) for at in range(0, side, 256)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return PNG_MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def jpeg_bomb(image: Image.Image, side: int = 65_500) -> bytes:
    """A small JPEG whose header claims `side` x `side` pixels."""
    body = bytearray(jpeg(image))
    start = body.index(b"\xff\xc0")
    body[start + 5 : start + 9] = struct.pack(">HH", side, side)
    return bytes(body)


def gif_bomb(image: Image.Image) -> bytes:
    """A GIF whose canvas is 65,535 pixels on each side, with a small frame in a corner."""
    body = bytearray(_save(image.quantize(16), "GIF"))
    body[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(body)


def svg(text: str) -> bytes:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="320" height="200"><rect width="320" height="200" fill="#246"/>'
        f'<text x="20" y="110" fill="#fff">{text}</text></svg>\n'
    ).encode()


def placeholder() -> Image.Image:
    """The grey 'image not available' card that shops and photo hosts serve for whatever they lost."""
    card = Image.new("RGB", (400, 300), (225, 225, 225))
    draw = ImageDraw.Draw(card)
    draw.rectangle((40, 40, 360, 260), outline=(150, 150, 150), width=6)
    draw.line((40, 260, 150, 130, 220, 210, 280, 150, 360, 240), fill=(150, 150, 150), width=8)
    draw.ellipse((270, 70, 320, 120), fill=(170, 170, 170))
    draw.text((130, 20), "image not available", fill=(90, 90, 90))
    return card


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
