"""Each format by small cases: W3C's rules for WebVTT, SRT as found, YouTube's and HowTo100M's forms, TTML's clocks."""

from __future__ import annotations

import json
import pickle

import pytest

from stages.lib.subtitles import SubtitleError, parse
from stages.lib.subtitles.howto100m import entries


def read(text: str | bytes, hint: str = "", **more: str) -> list[tuple[float, float, str]]:
    body = text.encode() if isinstance(text, str) else text
    return [(cue.start_s, cue.end_s, cue.text) for cue in parse(body, hint, **more).cues]


def vtt(payload: str, timing: str = "00:01.000 --> 00:02.000") -> list[tuple[float, float, str]]:
    return read(f"WEBVTT\n\n{timing}\n{payload}\n")


@pytest.mark.parametrize(
    ("timing", "times"),
    [
        ("00:01.000 --> 00:02.000", (1, 2)),
        ("0:00:01.000 --> 120:00:02.000", (1, 432002)),
        ("00:01.000-->00:02.000", (1, 2)),
        ("\t00:01.000\t-->\t00:02.000 align:start position:10% line:-1", (1, 2)),
        ("00:01.000 --> 00:02.000 nonsense:::", (1, 2)),
        ("00:03.000 --> 00:02.000", (3, 3)),
    ],
)
def test_webvtt_times_that_are_read(timing: str, times: tuple[float, float]) -> None:
    assert vtt("text", timing) == [(*times, "text")]


@pytest.mark.parametrize(
    "timing",
    [
        *("0:01.000 --> 00:02.000", "00:01.00 --> 00:02.000", "00:01.0000 --> 00:02.000", "00:60.000 --> 02:00.000", "01 --> 02"),
        *("00:01.000 --> x", "-00:01.000 --> 00:02.000", "00:01.000 -> --> 00:02.000"),
    ],
)
def test_webvtt_times_that_drop_the_cue(timing: str) -> None:
    track = parse(f"WEBVTT\n\n{timing}\nlost\n\n00:05.000 --> 00:06.000\nkept\n".encode(), "x.vtt")
    assert [cue.text for cue in track.cues] == ["kept"]
    assert track.oddities["bad_timing"] == 1


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ("<v Bob Smith>Hi</v> <c.red.big>there</c>", "Hi there"),
        ("<lang en>a</lang> <unknown x=1>b</unknown> </i>c", "a b c"),
        ("a &amp; b &lt;i&gt; &nbsp;c &#39;d&#x27; &copy;", "a & b <i> c 'd' ©"),
        ("Tom &Jerry; & co", "Tom &Jerry; & co"),
        ("<ruby>base<rt>reading</rt></ruby> end", "base end"),
        ("<rt>no ruby</rt>", "no ruby"),
        ("seen <c.first swallowed", "seen"),
        ("- one\n- two\n ", "- one\n- two"),
        (" \nafter a blank that is no empty line", "after a blank that is no empty line"),
    ],
)
def test_webvtt_text(payload: str, text: str) -> None:
    assert vtt(payload) == [(1, 2, text)]


def test_webvtt_blocks() -> None:
    text = (
        "\ufeffWEBVTT - a title\r\nKind: captions\rLanguage: de-AT\n\nSTYLE\n::cue { color: red }\n\nREGION\nid:x\n\n"
        "NOTE\n00:00\nno cue\n\n"
        "id with spaces\n00:01.000 --> 00:02.000\none\n00:02.000 --> 00:03.000\ntwo\n\n\n\nid --> no\n00:03.000 --> 00:04.000\nthree\n\n"
        "junk\njunk\n00:05.000 --> 00:06.000\nfour\n\nNOTE end"
    )
    track = parse(text.encode())
    assert [cue.text for cue in track.cues] == ["one", "two", "three", "four"]
    assert (track.language, track.encoding) == ("de-AT", "utf-8")


def test_webvtt_header_that_runs_into_the_first_cue_and_no_header() -> None:
    assert read("WEBVTT\n00:01.000 --> 00:02.000\ntext") == [(1, 2, "text")]
    track = parse(b"00:01.000 --> 00:02.000\ntext")
    assert (track.format, dict(track.oddities)) == ("vtt", {"no_signature": 1})


def test_webvtt_word_times() -> None:
    (cue,) = parse(b"WEBVTT\n\n00:16.500 --> 00:18.500\nWhen the moon <00:17.500>hits <00:18.000>your eye").cues
    assert [(word.text, word.start_s, word.end_s) for word in cue.words] == [
        *(("When", 16.5, 17.5), ("the", 16.5, 17.5), ("moon", 16.5, 17.5)),
        *(("hits", 17.5, 18.0), ("your", 18.0, 18.5), ("eye", 18.0, 18.5)),
    ]


def test_hls_pieces_are_put_on_one_clock_also_where_it_wraps() -> None:
    piece = "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:{}\n\n00:00:01.000 --> 00:00:02.000\n{}\n\n"
    wrap = 1 << 33
    text = piece.format(wrap - 450_000, "one") + piece.format(0, "two") + piece.format(450_000, "three")
    assert read(text) == [(1, 2, "one"), (6, 7, "two"), (11, 12, "three")]


SRT = "1\n00:00:01,000 --> 00:00:02,500\nfirst\nline\n\n2\n00:00:03,000 --> 00:00:04,000\nsecond\n"


def test_srt() -> None:
    assert read(SRT) == [(1, 2.5, "first\nline"), (3, 4, "second")]


@pytest.mark.parametrize(
    ("timing", "times"),
    [
        ("00:01,5 --> 00:02", (1.5, 2)),
        ("0:0:1.250 --> 0:0:2,000", (1.25, 2)),
        ("00:00:01 --> 00:00:10", (1, 10)),
        ("00:00:013,567 --> 00:00:14,901", (13.567, 14.901)),
        ("100:00:00,000 --> 100:00:01,000  X1:000 X2:000", (360000, 360001)),
        ("00:00:01,000 -> 00:00:02,000", None),
        ("-00:00:01,000 --> 00:00:02,000", None),
        (" --> 00:00:02,000", None),
    ],
)
def test_srt_times(timing: str, times: tuple[float, float] | None) -> None:
    got = read(f"1\n{timing}\ntext\n\n2\n00:10:00,000 --> 00:10:01,000\nlast\n", "a.srt")
    assert got[-1] == (600, 601, "last") or times == (360000, 360001)
    assert (times is None) == (len(got) == 1)
    assert times is None or (*times, "text") in got


def test_a_cue_that_stands_twice_is_said_once() -> None:
    """Joined files, and shadows of styled texts; the same words at another time are said again."""
    first, later = "00:00:01,000 --> 00:00:02,000", "00:00:02,000 --> 00:00:03,000"
    blocks = (f"{n}\n{timing}\nthe same\n" for n, timing in enumerate((first, first, later), 1))
    track = parse("\n".join(blocks).encode())
    assert [(cue.start_s, cue.text) for cue in track.cues] == [(1, "the same"), (2, "the same")]
    assert (track.cues_in, track.oddities) == (3, {"repeated_cues": 1})


def test_srt_as_found() -> None:
    text = (
        "00:00:01,000 --> 00:00:02,000\n{\\an8}no <i>index</i> <font color=#fff>here</font>\n\nafter a blank\n\n7\nno time for this one\n\n"
        "7\n00:00:03.000 --> 00:00:04,000\n2<3 &amp; 5>4\n\n8\n00:00:05,000 --> 00:00:05,000\nhidden\n\n"
        "9\n00:00:06,000 --> 00:00:07,000\n\n"
    )
    track = parse(text.encode())
    assert [cue.text for cue in track.cues] == ["no index here\nafter a blank", "2<3 & 5>4"]
    assert dict(track.oddities) == {"no_timing": 1, "blank_line_in_text": 1, "hidden": 1, "empty_text": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_encodings_with_marks_or_zeros(encoding: str) -> None:
    assert read(SRT.replace("first", "größer 日本").encode(encoding))[0] == (1, 2.5, "größer 日本\nline")


@pytest.mark.parametrize(
    ("encoding", "language", "words"),
    [
        ("cp1251", None, "Сегодня мы поговорим о том, как работает цифровая подпись и почему она надёжна"),
        ("cp1252", None, "À San Diego, un présentateur les surclassait tous, même à la télé où l'on croyait tout"),
        ("gb18030", "zh", "今天我们来谈谈数字签名"),
        ("big5", "zh-TW", "今天我們來談談數位簽章"),
        ("cp932", "ja", "今日は電子署名について"),
        ("koi8_r", "ru", "Сегодня мы поговорим о том, как работает цифровая подпись и почему она надёжна"),
        ("cp949", "ko-KR", "오늘은 전자 서명에 대해"),
        ("cp1256", "ar", "اليوم نتحدث"),
    ],
)
def test_encodings_from_before_utf_8(encoding: str, language: str | None, words: str) -> None:
    body = f"1\n00:00:01,000 --> 00:00:02,000\n{words}\n".encode(encoding)
    assert [cue.text for cue in parse(body, language=language).cues] == [words]


def test_few_broken_bytes_do_not_change_the_encoding() -> None:
    body = SRT.replace("first", "größer und größer").encode().replace(b"second", b"sec\xffond")
    track = parse(body)
    assert (track.encoding, track.oddities["replaced_bytes"]) == ("utf-8", 1)
    assert track.cues[0].text == "größer und größer\nline"


def test_sbv() -> None:
    assert read("0:00:00.378,0:00:11.378\none\n\n1:00:11.378,1:00:12.305\ntwo\nlines\n") == [
        (0.378, 11.378, "one"),
        (3611.378, 3612.305, "two\nlines"),
    ]


def test_json3_of_speech_and_of_uploads() -> None:
    events = [
        {"tStartMs": 0, "dDurationMs": 9999, "id": 1},
        {"tStartMs": 160, "dDurationMs": 4320, "segs": [{"utf8": "Dashboards"}, {"utf8": " are", "tOffsetMs": 559}]},
        {"tStartMs": 2230, "aAppend": 1, "segs": [{"utf8": "\n"}]},
        {"tStartMs": 2240, "dDurationMs": 3440, "segs": [{"utf8": "fine"}]},
    ]
    track = parse(json.dumps({"wireMagic": "pb3", "events": events}).encode())
    assert [(cue.start_s, cue.end_s, cue.text) for cue in track.cues] == [(0.16, 1.319, "Dashboards are"), (2.24, 2.84, "fine")]
    assert [(word.text, word.start_s) for cue in track.cues for word in cue.words] == [("Dashboards", 0.16), ("are", 0.719), ("fine", 2.24)]
    uploaded = {"events": [{"tStartMs": 1000, "dDurationMs": 2000, "segs": [{"utf8": "two\nlines"}, {"utf8": None}]}]}
    assert read(json.dumps(uploaded)) == [(1, 3, "two\nlines")]


def test_srv3_says_what_json3_says() -> None:
    text = (
        '<?xml version="1.0"?><timedtext format="3"><head><pen id="1" rb="4"/></head><body><w t="0" id="1"/>'
        '<p t="160" d="4320" w="1"><s ac="0">Dash&#39;s</s><s t="559"> are</s></p><p t="2230" w="1" a="1">\n</p>'
        '<p t="2240" d="3440"><s>fine</s><s p="1">reading</s></p></body></timedtext>'
    )
    assert read(text) == [(0.16, 1.319, "Dash's are"), (2.24, 2.84, "fine")]


def test_srv3_uploads_write_shadows_once() -> None:
    line = '<p t="{}" d="1000"><s>\u200b</s>\u200b \u200bText</p>'
    assert read(f'<timedtext format="3"><body>{line.format(1)}{line.format(1)}{line.format(1001)}</body></timedtext>') == [
        (0.001, 2.001, "Text")
    ]


def test_srv1_and_srv2() -> None:
    lines = '<text start="0" dur="1.54">it&amp;#39;s &lt;i>so&lt;/i></text><text start="5"></text><text start="6">x</text>'
    srv1 = f"<transcript>{lines}</transcript>"
    assert read(srv1) == [(0, 1.54, "it's so"), (6, 11, "x")]
    assert read('<timedtext><text t="500" d="1000">two</text></timedtext>') == [(0.5, 1.5, "two")]


def ttml(body: str, attributes: str = "") -> list[tuple[float, float, str]]:
    return read(f'<tt xmlns="http://www.w3.org/ns/ttml" {attributes}><body>{body}</body></tt>')


@pytest.mark.parametrize(
    ("begin", "end", "times"),
    [
        ("00:00:01.5", "00:00:02", (1.5, 2)),
        ("00:00:01:12", "00:00:02:00", (1.48, 2)),
        ("1500ms", "2s", (1.5, 2)),
        ("0.5m", "1h", (30, 3600)),
        ("25f", "100t", (1, 10)),
        ("3:58.640", "240", (238.64, 240)),
        ("00:00:01,5", "00:00:02,000", (1.5, 2)),
    ],
)
def test_ttml_clocks(begin: str, end: str, times: tuple[float, float]) -> None:
    assert ttml(f'<div><p begin="{begin}" end="{end}">x</p></div>', 'ttp:frameRate="25" ttp:tickRate="10"') == [(*times, "x")]


def test_times_beyond_a_thousand_hours_are_no_ends() -> None:
    assert ttml('<p begin="1s" end="9999999s">x</p><p begin="4s" end="5s">y</p>') == [(1, 4, "x"), (4, 5, "y")]


def test_ttml_of_which_nobody_knows_when_it_is_said() -> None:
    assert ttml('<p begin="soon" end="2s">x</p><p begin="4s" end="later">y</p>') == [(4, 9, "y")]


def test_ttml_frames_by_the_multiplier() -> None:
    rates = 'ttp:frameRate="30" ttp:frameRateMultiplier="1000 1001"'
    assert ttml('<p begin="30f" dur="30f">x</p>', rates) == [(1.001, 2.002, "x")]


def test_ttml_times_nest_and_chain() -> None:
    assert ttml('<div begin="10s" end="15s"><p begin="1s" dur="2s">a</p><p begin="2s">b</p></div>') == [(11, 13, "a"), (12, 15, "b")]
    assert ttml('<div begin="10s" timeContainer="seq"><p dur="2s">a</p><p begin="1s" dur="3s">b</p></div>') == [
        (10, 12, "a"),
        (13, 16, "b"),
    ]


def test_ttml_text() -> None:
    text = '<p begin="0s" end="1s"> one\n <br/> <span tts:ruby="base">two</span><span tts:ruby="text">no</span></p>'
    assert ttml(text) == [(0, 1, "one\ntwo")]


CAPTIONS = {"start": [0.5, 2.0], "end": [2.0, 4.25], "text": ["one two", "three"]}


def test_howto100m_json_csv_and_pickles() -> None:
    wanted = [(0.5, 2.0, "one two"), (2.0, 4.25, "three")]
    assert read(json.dumps(CAPTIONS)) == wanted
    assert read(json.dumps({"abc": CAPTIONS, "def": {"start": [], "end": [], "text": []}}), video="abc") == wanted
    assert read("start,end,text\n0.5,2.0,one two\n2.0,4.25,three\n") == wanted
    assert read(',start,end,text\n0,0.5,2.0,"one two"\n1,2.0,4.25,three\n') == wanted
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read(pickle.dumps({"abc": CAPTIONS}, protocol), "captions.pickle", video="abc") == wanted
        assert read(pickle.dumps({"abc": json.dumps(CAPTIONS), "b": ""}, protocol), "x.pkl", video="abc") == wanted
    with pytest.raises(SubtitleError, match="captions of 2 videos"):
        parse(json.dumps({"a": CAPTIONS, "b": CAPTIONS}).encode())


def test_howto100m_lines_that_repeat_the_line_before() -> None:
    """The form of MIL-NCE's small_train_captions/-tCQ4tCQdWE.csv; the words here are ours."""
    rows = [
        "0.4,3.9,mix the flour",
        "3.9,5.9,mix the flour and water",
        "5.9,10.2,and water until smooth",
        "10.3,13.8,until smooth then then",
    ]
    track = parse("\n".join(["start,end,text", *rows]).encode())
    assert [cue.text for cue in track.cues] == ["mix the flour", "and water", "until smooth", "then then"]
    assert track.oddities["overlapping_words"] == 3
    apart = parse(b"start,end,text\n0,1,go on\n1,2,on we go\n2,3,stop now\n3,4,here\n")
    assert [cue.text for cue in apart.cues] == ["go on", "on we go", "stop now", "here"]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_collections_are_read_entry_by_entry(size: int) -> None:
    whole = {f"id{n}": {"start": [n], "end": [n + 1], "text": ['a "quoted" } { text']} for n in range(20)}
    text = json.dumps(whole, indent=1)
    assert dict(entries(text[at : at + size] for at in range(0, len(text), size))) == whole
    assert list(entries(["{", " }"])) == []
    with pytest.raises(SubtitleError, match="malformed"):
        list(entries([text[:-40]]))
