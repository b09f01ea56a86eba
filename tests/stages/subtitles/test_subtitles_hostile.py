"""Files that mean harm, and any bytes at all: nothing but SubtitleError is raised, and what comes out is in order."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import time
from collections import OrderedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.lib.subtitles import REASONS, SubtitleError, Track, parse


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/shardmill-was-here",)


@pytest.mark.parametrize(
    "body",
    [
        *(pickle.dumps(Evil(), protocol) for protocol in range(2, 6)),
        pickle.dumps({"a": {"start": [OrderedDict()], "end": [1], "text": ["x"]}}),
        b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x02Ppersistent\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_pickles_that_name_code_are_refused(body: bytes) -> None:
    with pytest.raises(SubtitleError) as caught:
        parse(body, "captions.pickle")
    assert caught.value.reason == "refused"


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x00x.",
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"\x80\x02h\x07.",
        b"\x80\x02.",
        b"\x80\x02uuu.",
        b"\x80\x02]",
    ],
)
def test_pickles_that_claim_memory_or_are_broken(body: bytes) -> None:
    with pytest.raises(SubtitleError) as caught:
        parse(body, "captions.pickle")
    assert caught.value.reason in ("malformed", "unknown_format")


def test_nothing_of_python_pickle_is_used() -> None:
    import stages.lib.subtitles.plainpickle as module

    assert not hasattr(module, "pickle")
    assert module.pickletools is pickletools


BOMB = '<!DOCTYPE tt [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><tt><body><p begin="0s" end="1s">&b;</p></body></tt>'
EXTERNAL = '<!DOCTYPE tt SYSTEM "file:///etc/passwd"><tt><body><p begin="0s" end="1s">x</p></body></tt>'


@pytest.mark.parametrize("text", [BOMB, EXTERNAL, BOMB.replace("tt", "timedtext"), "<tt>" * 1000])
def test_xml_with_a_dtd_or_too_deep_is_refused(text: str) -> None:
    with pytest.raises(SubtitleError) as caught:
        parse(text.encode())
    assert caught.value.reason == "refused"


def test_xml_that_breaks_off_keeps_what_came_before() -> None:
    track = parse(b'<transcript><text start="0" dur="1">one</text><text start="1" dur="1">two</text><text sta')
    assert [cue.text for cue in track.cues] == ["one", "two"]
    assert track.oddities["cut_off"] == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        (bytes(range(256)) * 40, "undecodable"),
        (b"\x1f\x8b\x08" + bytes(range(1, 30)) * 9, "undecodable"),
        (b"garbage vtt file", "unknown_format"),
        (b"<html><body>Sign in</body></html>", "unknown_format"),
        (b'{"error": 1}', "unknown_format"),
        (b"[" * 100_000, "malformed"),
        (b"{,", "malformed"),
        (b'{"text_track": "subrip", "cues": [[1e999, 2, []]]}', "malformed"),
        (b'{"text_track": "subrip", "cues": [[1, 1e308, [[null, "x"]]]]}', "malformed"),
        (b'{"text_track": "subrip", "cues": [[1, 2, [[1e300, "x"]]]]}', "malformed"),
        (b'{"recognised": true, "cues": [[1, 2, [[-1e300, "x"]]]]}', "malformed"),
        (b'"start","end,text"\n1,2\n', "malformed"),
        (b'start,end,text,"' + b"x" * 200_000, "malformed"),
        (b"[Script Info]\nTitle: ASS\n", "unknown_format"),
        (b"{0}{25}MicroDVD", "unknown_format"),
        (b"[00:12.00]lyrics", "unknown_format"),
        (b"<", "malformed"),
    ],
)
def test_what_is_no_subtitle_has_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(SubtitleError) as caught:
        parse(body)
    assert caught.value.reason == reason


@pytest.mark.parametrize("size", [10_000, 40_000])
def test_long_files_of_one_kind_of_junk_cost_little(size: int) -> None:
    for text in (
        "<" * size,
        "WEBVTT\n\n" + "-->\n" * size,
        "1\n" * size + "-->",
        "[" + "{" * 10,
        "WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<c>" * size,
        "WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<00:00.500>a" * size,
        "WEBVTT\n\n00:00.000 --> 00:01.000\n<00:00.500>" + "a " * size,
        "".join(f"WEBVTT\n\n00:0{n}.000 --> 00:0{n}.010\n" + "a\n" * (size // 2) + f"{n}\n\n" for n in range(3)),
        json.dumps({"start": [1, 2, 3], "end": [2, 3, 4], "text": ["a " * size + name for name in "bcd"]}),
        "-->" + "-" * size,
        "\n" * size + "00:00.000 --> 00:01.000\na",
        "1\n00:00:01," + " " * size + "x --> 00:00:02,000\na",
        "1\n00:00:01,000 --> 00:00:02," + " " * size + "\x0b\na",
        "1\n" + "1" * size + " " * size + "x --> 00:00:02,000\na",
    ):
        began = time.process_time()
        with contextlib.suppress(SubtitleError):
            parse(text.encode(), "x.srt" if text[0] == "1" else "")
        assert time.process_time() - began < 2, f"{text[:30]!r}: what grows with the square of the length would take minutes"


FRAGMENTS = [
    *("WEBVTT", "\n", "\n\n", " --> ", "-->", "00:00:01.000", "00:00:02,500", "1", "<c>", "</c>", "<00:00:01.500>", "<", ">", "&amp;", "♪"),
    *("position:0%", "{\\an8}", "word", " ", "\r\n", "\x00", "X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000", "0:00:01.000,0:00:02.000"),
    *('<timedtext format="3"><body>', '<p t="1" d="2">', "<s t='1'>", "</p>", '<tt><body><p begin="1s">', "<span begin='2f'>", "</tt>"),
    *(
        '{"events":[',
        '{"tStartMs":1,"segs":[{"utf8":"a"}]}',
        "]}",
        "start,end,text\n",
        "1e999,2,x\n",
        "nan,1,y\n",
        "日本。",
        "[Music]",
        ">>",
    ),
]
WILD = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(lambda parts: "".join(parts).encode()))


def check_order(track: Track) -> None:
    """Cues by start, none ends before it starts, words rise and stay inside their cue."""
    starts = [cue.start_s for cue in track.cues]
    assert starts == sorted(starts)
    for cue in track.cues:
        assert 0 <= cue.start_s <= cue.end_s
        assert cue.text.strip() == cue.text != ""
        at = cue.start_s
        for word in cue.words:
            assert at <= word.start_s <= word.end_s <= cue.end_s
            assert word.text.split() == [word.text]
            at = word.start_s
        if cue.words:
            assert " ".join(word.text for word in cue.words) == " ".join(cue.text.split())


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(WILD, st.sampled_from(["", "a.vtt", "a.srt", "a.pickle"]))
def test_any_bytes_give_a_track_or_the_declared_error(body: bytes, hint: str) -> None:
    try:
        check_order(parse(body, hint))
    except SubtitleError as err:
        reason = err.reason
    else:
        return
    assert reason in REASONS


def _pickled(data: object) -> bytes:
    out = io.BytesIO()
    pickle.Pickler(out, 4).dump(data)
    return out.getvalue()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8), lambda x: st.lists(x, max_size=4), max_leaves=8
)


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=5), st.integers(0, 5))
def test_plain_pickles_are_read_as_python_reads_them(data: dict[str, object], protocol: int) -> None:
    from stages.lib.subtitles.plainpickle import read_pickle

    assert read_pickle(pickle.dumps(data, protocol)) == data
