"""Cues to segments: each rule by small cases, each reason by a case that gives it, and the balance of seconds for any cues."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frame import expand, framed
from stages.lib.segments import Rules, cut
from stages.lib.subtitles.columns import CUE, to_column
from stages.lib.subtitles.model import Cue, Word
from stages.segments import Segments


def run(cues: list[list[Cue]], times: str = "none", **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parents and children of the stage."""
    column = pa.array([[to_column(cue) for cue in each] for each in cues], pa.list_(CUE))
    table = framed(pa.table({"cues": column, "word_times": pa.array([times] * len(cues), pa.string())}))
    made = expand(Segments(Segments.Config(**options)), table)
    return made.rows.to_pylist(), made.children.to_pylist()


def spoken(text: str, start: float, step: float = 0.3) -> Cue:
    words = text.split()
    timed = tuple(Word(word, start + n * step, start + (n + 1) * step) for n, word in enumerate(words))
    return Cue(start, start + len(words) * step, text, timed)


def test_sentences_go_over_the_ends_of_lines() -> None:
    cues = [spoken("we mix the flour and the", 0), spoken("water until it is smooth. Then we", 1.8), spoken("bake it for an hour.", 3.9)]
    _, children = run([cues], "real", min_s=0.5)
    assert [child["source_caption"] for child in children] == [
        "we mix the flour and the water until it is smooth.",
        "Then we bake it for an hour.",
    ]
    assert [(child["start_s"], child["end_s"]) for child in children] == [(0, pytest.approx(3.3)), (pytest.approx(3.3), pytest.approx(5.4))]
    assert [child["segment_s"] for child in children] == [pytest.approx(3.3), pytest.approx(2.1)]
    assert all(child["exact"] for child in children)
    assert [child["segment"] for child in children] == [0, 1]
    assert [word["text"] for word in children[1]["segment_words"]] == ["Then", "we", "bake", "it", "for", "an", "hour."]


def test_a_pause_ends_a_sentence_and_no_segment_goes_over_a_long_silence() -> None:
    cues = [spoken("no full stop stands here at all", 0), spoken("and after a while more is said", 5)]
    _, children = run([cues], "real", min_s=0.5)
    assert [child["source_caption"] for child in children] == [cue.text for cue in cues]
    _, joined = run([[spoken("a bit", 0), spoken("and a bit more of it", 1.5)]], "real", min_s=0.5, max_gap_s=5)
    assert [child["source_caption"] for child in joined] == ["a bit and a bit more of it"]


def test_speakers_are_parted_and_sounds_are_left_out() -> None:
    cues = [
        Cue(0, 3, ">> so what do you think?"),
        Cue(3, 6, "- well [laughs] I really don't know"),
        Cue(6, 9, "[Music]"),
        Cue(9, 12, "♪ la la ♪"),
    ]
    parents, children = run([cues], min_s=0.5)
    assert [child["source_caption"] for child in children] == ["so what do you think?", "well I really don't know"]
    assert parents[0]["fate"] == "kept"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("it was -5 degrees outside last night", "it was -5 degrees outside last night"),
        ("[♪♪♪]\nWelcome back to our kitchen", "Welcome back to our kitchen"),
        ("♪\n- Welcome back to our kitchen", "Welcome back to our kitchen"),
        ("(♪ quiet music ♪)\nWelcome back to our kitchen", "Welcome back to our kitchen"),
        ("[Applause]>> Thank you all so much", "Thank you all so much"),
        ("so [laughs], then we go on", "so then we go on"),
        ("♪ la la la\nla la la la ♪", None),
        ("♪ (quiet music) ♪", None),
    ],
)
def test_signs_and_asides_take_no_spoken_word_with_them(text: str, said: str | None) -> None:
    made = cut([Cue(0, 5, text)], Rules(max_gap_ms=10_000, pause_ms=10_000), False)
    assert [segment.text for segment in made.segments] == [said] * (said is not None)
    assert [lost.reason for lost in made.lost] == ["non_speech"] * (said is None)


JUNK: dict[str, tuple[Callable[[int], list[Cue]], Any]] = {
    "cues of one time": (lambda n: [Cue(1, 2, "hello there")] * n, "sentences"),
    "brackets that never close": (lambda n: [Cue(0, 100, "[ " * n)], "sentences"),
    "a cue a millisecond": (lambda n: [Cue(k / 1000, (k + 1) / 1000, "a") for k in range(n)], "howto100m"),
    "a cue a second": (lambda n: [Cue(k, k + 1, "a word or two") for k in range(n // 4)], "howto100m"),
}


@pytest.mark.parametrize("kind", JUNK)
def test_time_grows_with_the_length_not_with_its_square(kind: str) -> None:
    cues, method = JUNK[kind]
    began = time.process_time()
    made = cut(cues(40_000), Rules(method=method, min_ms=10_000, min_words=0), False)
    assert time.process_time() - began < 8
    assert made.balance.total == made.balance.kept + sum(made.balance.dropped.values())


def test_long_runs_are_cut_where_the_pause_is_longest() -> None:
    cues = [spoken("one two three four five six seven eight nine ten", 0), spoken("eleven twelve thirteen fourteen fifteen", 3.4)]
    _, children = run([cues], "real", min_s=1, max_s=4, pause_s=0.6)
    assert [child["source_caption"] for child in children] == [cue.text for cue in cues]


def test_windows_hold_as_much_as_fits() -> None:
    _, children = run([[spoken(" ".join(["word"] * 100), 0)]], "real", method="windows", max_s=6, max_words=60)
    assert [len(child["segment_words"]) for child in children] == [20] * 5


REASONS = {
    "no_cues": [],
    "non_speech": [Cue(0, 20, "[Music]"), Cue(20, 30, "(applause)")],
    "too_fast": [Cue(0, 2, " ".join(["word"] * 30))],
    "too_long": [Cue(0, 100, "Loooong")],
    "too_short": [Cue(0, 0.8, "it is far too short")],
    "too_few_words": [Cue(0, 5, "Hello.")],
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_video_without_a_segment_has_its_reason(reason: str) -> None:
    parents, children = run([REASONS[reason], [spoken("this one has a sentence of its own.", 0, 0.5)]])
    assert [parent["fate"] for parent in parents] == [f"segments:{reason}", "kept"]
    assert [child["parent"] for child in children] == [1]
    assert " s of cues" in parents[0]["detail"]


CROWDED = {
    "two speak at once": [Cue(0, 4, "I told you that we should never have come here today."), Cue(0.5, 4.2, "No, you really did not.")],
    "one after the other": [
        Cue(0, 4, "We begin with the flour and the salt, both sifted twice."),
        Cue(0.4, 5, "Then the water goes in."),
        Cue(5, 8, "And that is all for the dough."),
    ],
}


@pytest.mark.parametrize("kind", CROWDED)
def test_a_cue_over_which_another_begins_at_once_is_not_lost_as_too_fast(kind: str) -> None:
    cues = CROWDED[kind]
    made = cut(cues, Rules(max_words=20, min_ms=0, min_words=0), False)
    assert not made.lost
    assert " ".join(segment.text for segment in made.segments) == " ".join(cue.text for cue in cues)
    assert made.balance.kept == made.balance.total
    assert all(before.end <= after.start for before, after in itertools.pairwise(made.segments))


def test_a_cue_that_is_too_fast_by_itself_takes_no_other_with_it() -> None:
    cues = [Cue(0, 1, " ".join(["word"] * 40) + "."), Cue(0.5, 6, "this one is said in its own time.")]
    made = cut(cues, Rules(max_words=45), False)
    assert [lost.reason for lost in made.lost] == ["too_fast"]
    assert [segment.text for segment in made.segments] == ["this one is said in its own time."]


def test_cues_that_overlap_are_kept_or_dropped() -> None:
    cues = [Cue(0, 4, "a first line"), Cue(2, 6, "a second line"), Cue(6, 8, "a third")]
    _, kept = run([cues], method="cues")
    assert [(child["start_s"], child["end_s"]) for child in kept] == [(0, 4), (2, 6), (6, 8)]
    _, apart = run([cues], method="cues", overlap="drop")
    assert [child["source_caption"] for child in apart] == ["a first line", "a third"]


def test_overlap_is_a_reason_where_nothing_else_is() -> None:
    made = cut([Cue(0, 4, "a"), Cue(2, 6, "b")], Rules(method="cues", min_ms=0, min_words=0, keep_overlap=False), False)
    assert [lost.reason for lost in made.lost] == ["overlap"]
    assert made.balance.dropped["overlap"] == 2000


def test_howto100m_widens_by_the_nearer_neighbour() -> None:
    """The rule of its loader: ten seconds at least, always the neighbour that keeps the span shorter."""
    cues = [Cue(0, 4, "a"), Cue(4, 8, "b"), Cue(8, 12, "c"), Cue(30, 34, "d")]
    _, children = run([cues], method="howto100m")
    assert [(child["start_s"], child["end_s"], child["source_caption"]) for child in children] == [(0, 12, "a b c"), (8, 34, "c d")]


def test_milnce_widens_evenly_and_cuts_to_whole_seconds() -> None:
    cues = [Cue(0.5, 1.5, "a"), Cue(10.2, 12.2, "b"), Cue(20.4, 27.9, "c")]
    _, children = run([cues], method="milnce", candidates=2)
    assert [(child["start_s"], child["end_s"]) for child in children] == [(0, 5), (8, 13), (20, 27)]
    assert [child["candidates"] for child in children] == [["a", "b"], ["a", "b"], ["b", "c"]]
    assert not any(child["exact"] for child in children)


TIMES = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 8000)), max_size=15)
SAID = st.sampled_from(
    ["[Music]", "one two three.", "a - b", ">> hello there my friend", "日本語の文です。次の文", "word", "(sigh) well", "1,000", "♪ x ♪"]
)


@given(TIMES, st.lists(SAID, min_size=15, max_size=15), st.sampled_from(["sentences", "windows", "cues", "howto100m", "milnce"]))
def test_every_second_of_any_cues_is_accounted_for(times: list[tuple[int, int]], texts: list[str], method: Any) -> None:
    cues = [Cue(start / 1000, (start + span) / 1000, text) for (start, span), text in zip(sorted(times), texts, strict=False)]
    made = cut(cues, Rules(method=method), False)
    covered = {ms for cue in cues for ms in range(round(cue.start_s * 1000), round(cue.end_s * 1000))}
    assert made.balance.total == len(covered)
    assert made.balance.total == made.balance.kept + sum(made.balance.dropped.values())
    if method in ("sentences", "windows"):
        assert all(2000 <= segment.end - segment.start <= 15_000 for segment in made.segments)
        ordered = sorted(made.segments, key=lambda segment: segment.start)
        assert all(a.end <= b.start for a, b in itertools.pairwise(ordered))


def test_words_of_scripts_without_blanks_are_estimated_each_by_its_own_letters() -> None:
    """Twelve Thai words in 3 s are ordinary speech; their vowels and tones are letters of their own."""
    thai = "นอกจากนี้ในหัวข้อเรื่องพลังอันยิ่งใหญ่ของสองซึ่งเราเห็น"
    han = "我们今天学习如何做一个好的蛋糕"
    for text, words in ((thai, 13), (han, 7)):
        (segment,) = cut([Cue(0.0, 3.0, text)], Rules(), False).segments
        assert (segment.text, sum(token.words() for token in segment.tokens)) == (text, words)
    assert [lost.reason for lost in cut([Cue(0.0, 0.5, han)], Rules(min_ms=0), False).lost] == ["too_fast"]
