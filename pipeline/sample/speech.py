"""What is said in a made-up video, word by word, and the same in each subtitle format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.sax.saxutils import escape

Word = tuple[int, str]  # from when it is said, in ms
Line = list[Word]

STEP_MS, LETTER_MS = 120, 35  # between words, and more for each letter: 0.28 s in the middle, as in automatic captions
LAST_MS = 500  # how long the last word of a line is heard


def spoken(text: str, start_ms: int) -> Line:
    out, at = [], start_ms
    for word in text.split():
        out.append((at, word))
        at += STEP_MS + LETTER_MS * len(word)
    return out


def end_of(line: Line) -> int:
    return line[-1][0] + LAST_MS


def text_of(line: Line) -> str:
    return " ".join(word for _, word in line)


def clock(ms: int, point: str = ".") -> str:
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def rolling_vtt(lines: Sequence[Line]) -> str:
    """YouTube's automatic form: each line is built up word by word under the one before it, then held for 10 ms."""
    out, before = ["WEBVTT", "Kind: captions", "Language: en", ""], " "
    for n, line in enumerate(lines):
        start, end = line[0][0], lines[n + 1][0][0] - 10 if n + 1 < len(lines) else line[-1][0] + 2000
        timed = line[0][1] + "".join(f"<{clock(at)}><c> {word}</c>" for at, word in line[1:])
        out += [f"{clock(start)} --> {clock(end)} align:start position:0%", before, timed, ""]
        before = text_of(line)
        out += [f"{clock(end)} --> {clock(end + 10)} align:start position:0%", before, " ", ""]
    return "\n".join(out)


def vtt(lines: Sequence[Line]) -> str:
    return "\n\n".join(["WEBVTT", *(f"{clock(line[0][0])} --> {clock(end_of(line))}\n{text_of(line)}" for line in lines)]) + "\n"


def srt(lines: Sequence[Line]) -> str:
    blocks = (f"{n}\n{clock(line[0][0], ',')} --> {clock(end_of(line), ',')}\n{text_of(line)}\n" for n, line in enumerate(lines, 1))
    return "\n".join(blocks)


def json3(lines: Sequence[Line]) -> str:
    """As YouTube serves it: a window, and each line displayed until the line after next."""
    events: list[dict[str, object]] = [{"tStartMs": 0, "dDurationMs": lines[-1][-1][0] + 2000, "id": 1}]
    for n, line in enumerate(lines):
        start = line[0][0]
        shown = lines[n + 2][0][0] - start if n + 2 < len(lines) else line[-1][0] + 2000 - start
        words = [{"utf8": f" {word}" if k else word, **({"tOffsetMs": at - start} if k else {})} for k, (at, word) in enumerate(line)]
        events += [{"tStartMs": start - 10, "wWinId": 1, "aAppend": 1, "segs": [{"utf8": "\n"}]}] if n else []
        events.append({"tStartMs": start, "dDurationMs": shown, "wWinId": 1, "segs": words})
    return json.dumps({"wireMagic": "pb3", "events": events})


def srv3(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        start = line[0][0]
        words = "".join(f'<s t="{at - start}">{" " if k else ""}{escape(word)}</s>' for k, (at, word) in enumerate(line))
        rows.append(f'<p t="{start}" d="{end_of(line) - start + 2500}" w="1">{words}</p><p t="{end_of(line)}" w="1" a="1">\n</p>')
    return f'<?xml version="1.0" encoding="utf-8" ?><timedtext format="3"><body><w t="0" id="1"/>{"".join(rows)}</body></timedtext>'


def srv1(lines: Sequence[Line]) -> str:
    rows = (
        f'<text start="{line[0][0] / 1000}" dur="{(end_of(line) - line[0][0]) / 1000}">{escape(escape(text_of(line)))}</text>'
        for line in lines
    )
    return f'<?xml version="1.0" encoding="utf-8" ?><transcript>{"".join(rows)}</transcript>'


def ttml(lines: Sequence[Line]) -> str:
    rows = (f'<p begin="{clock(line[0][0])}" end="{clock(end_of(line))}">{escape(text_of(line))}</p>' for line in lines)
    return f'<tt xmlns="http://www.w3.org/ns/ttml" xml:lang="en"><body><div>{"".join(rows)}</div></body></tt>'


def howto100m(lines: Sequence[Line]) -> str:
    """An entry of raw_caption.json."""
    starts, ends = [line[0][0] / 1000 for line in lines], [end_of(line) / 1000 for line in lines]
    return json.dumps({"start": starts, "end": ends, "text": [text_of(line) for line in lines]})


def milnce_csv(lines: Sequence[Line]) -> str:
    return "".join(["start,end,text\n", *(f'{line[0][0] / 1000},{end_of(line) / 1000},"{text_of(line)}"\n' for line in lines)])
