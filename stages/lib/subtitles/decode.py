"""Bytes to text: byte order marks, strict UTF-8, UTF-8 with a few broken bytes, then what the language or the bytes suggest."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

from stages.lib.subtitles.model import SubtitleError

# UTF-32 LE before UTF-16 LE: its mark begins with the other's.
MARKS = [
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
# The encodings in which subtitles were written before UTF-8, each the superset that is common in practice.
LEGACY = (
    "cp1252 cp1250 cp1251 koi8_r cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp874 cp932 euc_jp cp949 gb18030 big5hkscs".split()  # noqa: SIM905
)
BY_LANGUAGE = {
    "cp1251": "uk bg be sr mk",
    "cp1250": "pl cs sk hu sl hr ro bs sq",
    "cp1253": "el",
    "cp1254": "tr az",
    "cp1255": "he iw",
    "cp1256": "ar fa ur",
    "cp1257": "lt lv et",
    "cp1258": "vi",
    "cp874": "th",
    "cp949": "ko",
}
# Of several the content decides.
OF_LANGUAGE = {"ru": ["cp1251", "koi8_r"], "ja": ["cp932", "euc_jp"], "zh": ["gb18030", "big5hkscs"]}
FOR_LANGUAGE = {language: codec for codec, languages in BY_LANGUAGE.items() for language in languages.split()}

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")


def decode(body: bytes, language: str | None = None) -> tuple[str, str, int]:
    """The text, the encoding's name, and how many bytes or sequences were not valid in it (now U+FFFD).

    Raises SubtitleError("undecodable") where what comes out is no text.
    """
    text, encoding, replaced = _decode(body, language)
    text = text.replace("\x00", "\ufffd") if encoding == "utf-8" else text
    sample = text[:20_000]
    if len(_CONTROL.findall(sample)) + sample.count("\ufffd") > 0.1 * len(sample):
        raise SubtitleError("undecodable", f"begins with {body[:8].hex(' ')}")
    return text, encoding, replaced


def _decode(body: bytes, language: str | None) -> tuple[str, str, int]:
    for mark, codec in MARKS:
        if body.startswith(mark):
            return _replacing(body[len(mark) :], codec)
    head = body[:400]
    if len(head) > 8 and head.count(0) > 0.3 * len(head):
        return _replacing(body, "utf-16-be" if head[0] == 0 else "utf-16-le")
    text, encoding, replaced = _replacing(body, "utf-8")
    foreign = sum(1 for char in text if char > "\x7f") - replaced
    if replaced <= max(1, 0.02 * foreign) and (foreign or replaced == 0):
        return text, encoding, replaced
    return _legacy(body, language)


def _replacing(body: bytes, codec: str) -> tuple[str, str, int]:
    text = body.decode(codec, "replace")
    broken = text.count("\ufffd")
    own = body.count("\ufffd".encode(codec)) if broken and codec.startswith("utf") else 0  # code pages have no such character
    return text, codec, broken - own


def _short(language: str | None) -> str:
    """`ru` for `ru_RU`."""
    return (language or "").lower().replace("_", "-").partition("-")[0]


def _legacy(body: bytes, language: str | None) -> tuple[str, str, int]:
    short = _short(language)
    if (wanted := FOR_LANGUAGE.get(short)) and (got := _replacing(body, wanted))[2] == 0:
        return got
    several = OF_LANGUAGE.get(short)
    # Lines of numbers and times say nothing, and many of them make the guess fail.
    said = b"\n".join(line for line in body[: 1 << 18].splitlines() if not line.isascii())
    matches = from_bytes(said, cp_isolation=several or LEGACY, preemptive_behaviour=False)
    best = matches.best()
    equal = {match.encoding for match in matches if best and (match.chaos, match.coherence) == (best.chaos, best.coherence)}
    # Short Latin text looks equally sound in several code pages; then it is the one that is most in use.
    likely = several[0] if several else "cp1252"
    return _replacing(body, best.encoding if best and likely not in equal else likely)
