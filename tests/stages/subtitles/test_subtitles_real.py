"""The real files of SHARDMILL_TEST_DATA/subtitles: no word of speech is lost or doubled, by readings that share no code with ours."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from stages.lib.segments import Method, Rules, cut
from stages.lib.subtitles import SubtitleError, Track, parse
from tests.stages.subtitles.test_subtitles_hostile import check_order
from tests.support.subtitles import json3_words, rolling_lines, shown, srt_stamp

ROLLING = [
    "manifesto_90s.en",
    "downlodr_3min.en",
    "booklab_subs_8min.en",
    "narrate_13min.en",
    "tldw_15min.en",
    "sponsor_17min.en",
    "mtabe_19min.en",
    "agents_20min.en",
    "planets_26min.en-orig",
    "aiconfig_37min.en",
    "bloodbowl_37min.en",
    "talk_colour_38min.en",
    "finec_104min.ru",
    "finec_104min.en-translated",
]
NO_SUBTITLES = {  # of a talk's transcript beside its captions, and of WebVTT's test of a bad signature
    *("256bit.english.sentence_timings.json", "256bit.english.transcript.txt", "256bit.english.word_timings.json"),
    *("vttjs_file-layout_garbage-signature.vtt", "SOURCES.md"),
}
WORD = re.compile(r"\w+")


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    return data_dir / "subtitles"


def track(path: Path) -> Track:
    return parse(path.read_bytes(), path.name)


def words(found: Track) -> list[str]:
    return " ".join(cue.text for cue in found.cues).split()


def test_every_file_gives_cues_in_order_or_is_no_subtitle_file(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    refused = set()
    for path in files:
        try:
            check_order(track(path))
        except SubtitleError:
            refused.add(path.name)
    assert len(files) > 100
    assert refused == NO_SUBTITLES


@pytest.mark.parametrize("name", ROLLING)
def test_rolling_captions_have_each_line_once(folder: Path, name: str) -> None:
    path = folder / "youtube_auto_vtt" / f"{name}.vtt"
    found, wanted = track(path), rolling_lines(path.read_text(encoding="utf-8"))
    assert found.automatic
    assert [cue.text for cue in found.cues] == [line for _, line in wanted]
    assert [cue.start_s for cue in found.cues] == pytest.approx([start for start, _ in wanted], abs=1e-9)
    assert found.word_times == ("interpolated" if name.startswith("finec") else "real")


def test_the_converted_srt_of_a_video_says_the_same_at_the_same_times(folder: Path) -> None:
    auto, srt = track(folder / "youtube_auto_vtt/agents_20min.en.vtt"), track(folder / "youtube_dedup_srt/agents_20min.en.srt")
    assert len(srt.cues) == 536
    assert [(cue.start_s, cue.text) for cue in auto.cues] == [(cue.start_s, cue.text) for cue in srt.cues]
    short, plain = track(folder / "youtube_auto_vtt/manifesto_90s.en.vtt"), track(folder / "youtube_dedup_srt/manifesto.srt")
    assert words(short) == words(plain)


def test_json3_and_srv3_have_every_word_with_its_time(folder: Path) -> None:
    body = (folder / "youtube_json3/dashboards_8min.en.json3").read_bytes()
    json3, srv3 = parse(body), track(folder / "youtube_srv3/dashboards_8min.DERIVED.en.srv3")
    assert json3.cues == srv3.cues
    wanted = [(word, ms) for word, ms in json3_words(body) if not word.startswith("[")]
    got = [(word.text, round(word.start_s * 1000)) for cue in json3.cues for word in cue.words]
    assert " ".join(word for word, _ in got).split() == " ".join(word for word, _ in wanted).split()
    assert {ms for _, ms in got} == {ms for _, ms in wanted}


@pytest.mark.parametrize("name", ["bom-utf-8", "bom-utf-16-le", "bom-utf-16-be", "bom-utf-32-le", "bom-utf-32-be", "no-indexes"])
def test_one_text_in_many_encodings(folder: Path, name: str) -> None:
    assert track(folder / f"srt_wild/pysrt_{name}.srt").cues == track(folder / "srt_wild/pysrt_bom-utf-8.srt").cues


@pytest.mark.parametrize(
    ("name", "encoding", "language"),
    [
        *(("persian.auto_generated", "cp1256", language) for language in (None, "fa")),
        *(("chinese.taiwan_community", "big5", language) for language in (None, "zh")),
        *(("russian.community", "koi8_r", language) for language in (None, "ru")),
    ],
)
def test_a_talk_in_the_encoding_of_its_language(folder: Path, name: str, encoding: str, language: str | None) -> None:
    text = (folder / f"srt_talks/256bit.{name}.srt").read_text(encoding="utf-8-sig")
    text = text.replace("ی", "ي").replace("ک", "ك")  # as Persian was written in CP1256
    found = parse(text.encode(encoding, "replace"), language=language)
    assert found.cues == parse(text.encode(encoding, "replace").decode(encoding).encode()).cues


def test_pieces_of_a_live_stream_are_put_in_order_without_repeats(folder: Path) -> None:
    found = track(folder / "youtube_auto_vtt/council_hls_joined_excerpt.en.vtt")
    assert found.oddities["joined_files"] == 14
    assert len({(cue.start_s, cue.text) for cue in found.cues}) == len(found.cues)
    assert [cue.end_s < 60 for cue in found.cues].count(False) == 3  # the lines before the first piece's header, on another clock


def test_sentences_start_where_a_talk_says_so(folder: Path) -> None:
    """Against the talk's own word times: segments of its hand-made captions begin within a second of their first word."""
    timed = json.loads((folder / "srt_talks/256bit.english.word_timings.json").read_text())
    spoken = [(word, start) for text, start, _ in timed for word in WORD.findall(text.lower())]
    segments = cut(track(folder / "srt_talks/256bit.english.captions.srt").cues, Rules(), False).segments
    late, at = [], 0
    texts = [word for word, _ in spoken]
    for segment in segments:
        first = WORD.findall(segment.text.lower())[:3]
        place = next((n for n in range(at, len(texts) - 2) if texts[n : n + 3] == first), None)
        if place is not None:
            late.append(abs(segment.start / 1000 - spoken[place][1]))
            at = place
    assert len(late) > 0.7 * len(segments)
    assert sorted(late)[len(late) // 2] < 0.5
    assert sorted(late)[int(0.9 * len(late))] < 1.5


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("name", ["manifesto_90s.en", "agents_20min.en", "talk_colour_38min.en", "council_live_excerpt.en"])
def test_what_converters_make_of_automatic_captions_has_each_line_once(folder: Path, name: str, hold: bool) -> None:
    """SubRip keeps neither places nor times of words; some converters leave out the cues of 10 ms."""
    path = folder / "youtube_auto_vtt" / f"{name}.vtt"
    cues = [cue for cue in shown(path.read_text(encoding="utf-8")) if hold or cue[1] - cue[0] > 0.0105]
    blocks = (f"{n}\n{srt_stamp(a)} --> {srt_stamp(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues, 1))
    found = parse("\n".join(blocks).encode(), "converted.srt")
    assert found.automatic
    assert words(found) == words(track(path))


@pytest.mark.parametrize("method", ["sentences", "windows"])
def test_every_word_of_every_file_is_in_one_segment_or_lost_with_a_reason(folder: Path, method: Method) -> None:
    checked = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in NO_SUBTITLES:
            continue
        found = track(path)
        made = cut(found.cues, Rules(method=method), found.word_times == "real")
        runs = sorted([*made.segments, *(lost for lost in made.lost if lost.reason != "non_speech")], key=lambda run: run.start)
        got = WORD.findall(" ".join(run.text for run in runs))
        music = {id(cue) for cue in found.cues if "♪" in cue.text}
        # What stands in square brackets is a sound.
        spoken = re.sub(r"\[[^\[\]]*\]", " ", " ".join(cue.text for cue in found.cues if id(cue) not in music))
        wanted = WORD.findall(spoken) if not any(re.fullmatch(r"\s*\([^()]*\)\s*", cue.text) for cue in found.cues) else None
        if wanted is not None and sorted(starts := [cue.start_s for cue in found.cues]) == starts and len(set(starts)) == len(starts):
            assert got == wanted, path.name
            checked += len(wanted)
        spans = [(segment.start, segment.end) for segment in made.segments]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), path.name
        assert made.balance.total == made.balance.kept + sum(made.balance.dropped.values()), path.name
    assert checked > 60_000


def test_a_single_word_of_a_translated_track_does_not_last_as_long_as_it_is_shown(folder: Path) -> None:
    """Its words have no times of their own, but a word that is shown for half a minute is not said for so long."""
    found = track(folder / "youtube_auto_vtt/finec_104min.ru.vtt")
    single = [cue for cue in found.cues if " " not in cue.text and not cue.text.startswith("[")]
    assert len(single) > 10
    assert max(cue.end_s - cue.start_s for cue in single) < 0.601
