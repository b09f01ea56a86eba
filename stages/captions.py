"""captions: the caption as it will be trained on, what can be measured of it, and the rules on that.

Cleaning, patterns, measures, language and tokens are functions on Arrow arrays in stages/lib/text*.py and tokens.py; this file holds
the options, the order of the rules and their reasons. Left out: how often a caption occurs (dedup) and what the image says (scores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.stage import KEPT, Column, Stage, Strict
from stages.lib import text_boilerplate, text_language, text_measures, text_remnants
from stages.lib.text import MAX_SOURCE_CHARS, clean_batch, valid
from stages.lib.tokens import TokenCounter

Handling = Literal["keep", "remove", "drop"]
Found = tuple[str, Any, Callable[[int], str | None]]
"""Of a rule: its reason, the mask of the rows that it fires on, and what the ledger shall say of one of them."""


class Options(Strict):
    """All rules but `min_chars` and `empty` are off: a rule that is not asked for drops nothing."""

    typography: Literal["keep", "plain"] = "keep"
    """`plain` straightens curly quotes, takes apart Latin ligatures and gives full-width letters their common form, as ftfy's defaults."""
    html: Handling = "remove"
    """HTML tags, comments and cut-off tags: `keep` them, `remove` them from the text, or `drop` the row. "<PERSON>" is no tag."""
    urls: Handling = "keep"
    """URLs with a scheme, and names that begin with "www."."""
    emails: Handling = "keep"
    """E-mail addresses."""
    emoji: Handling = "keep"
    """Emoji as in Unicode's UTS #51; signs that are text by default (©, ™) count only where they are asked to be pictures."""

    empty: Literal["drop", "keep"] = "drop"
    """What becomes of a row without a caption, or with nothing left of it. Kept ones pass all other rules."""
    min_chars: int = Field(5, ge=0)
    """Characters (code points, after cleaning). LAION-400M and LAION-5B: 5; DataComp basic and COYO: 6 ("more than 5")."""
    max_chars: int | None = Field(None, ge=1)
    """Characters. COYO: 1000."""
    min_words: int | None = Field(None, ge=1)
    """Words (docs/guide/captions.md says what a word is where there are no spaces). CC12M, COYO, DataComp basic: 3."""
    max_words: int | None = Field(None, ge=1)
    """Words. CC12M, COYO: 256."""
    max_tokens: int | None = Field(None, ge=3)
    """Tokens of CLIP's tokenizer, start and end included; 77 is CLIP's context. Needs the extra `clip`."""
    boilerplate: bool = False
    """Drop captions that are as a whole a file name, "image 1 of 12", "click to enlarge", "stock photo", a URL, a date, … (CC3M)."""
    max_run: int | None = Field(None, ge=1)
    """Longest run of one character other than space: "soooo" has 4. Ours; 10 passes every one of 57,000 real captions we read."""
    max_repeated_words: float | None = Field(None, ge=0, le=1)
    """Share of the words that stood in the caption before (1 - distinct / all), 0 to 1. CC12M: 0.2 of a measure that it doesn't define."""
    min_letters: float | None = Field(None, ge=0, le=1)
    """Letters and marks per character that is no space, 0 to 1. Near Data-Juicer's alphanumeric ratio: 0.25, its LLaVA recipe 0.6."""
    max_digits: float | None = Field(None, ge=0, le=1)
    """Digits per character that is no space, 0 to 1. Ours."""
    languages: list[str] = []
    """Keep these alone: ISO 639-1 codes (`zh` includes wuu and yue, `ar` arz, `no` nn). Empty: all. LAION-2B-en, DataComp basic: [en]."""
    min_language_score: float = Field(0.0, ge=0, le=1)
    """Least probability of the language, with `languages`. 0: the likeliest language counts however unsure it is, as in DataComp."""

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: list[str]) -> list[str]:
        text_language.wanted(codes)
        return codes

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for low, high in (("min_chars", "max_chars"), ("min_words", "max_words")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is over {high} {most}: no caption could pass")
        return self


class Verdict:
    """The fates of a batch while its rules are asked in order: the first rule that fires on a row names its fate."""

    def __init__(self, rows: int, exempt: np.ndarray) -> None:
        self.alive = np.ones(rows, dtype=bool)
        self._exempt = exempt
        self._fates: list[str] = [KEPT] * rows
        self._details: list[str | None] = [None] * rows

    def drop(self, fate: str, fires: Any, detail: Callable[[int], str | None]) -> None:
        """Drops the rows of a mask that are still alive; `detail` is asked for those rows' positions alone."""
        mask = np.asarray(fires, dtype=bool)
        for row in np.flatnonzero(mask & self.alive & ~self._exempt).tolist():
            self.alive[row] = False
            self._fates[row] = fate
            self._details[row] = detail(row)

    def columns(self) -> dict[str, pa.Array]:
        return {"fate": pa.array(self._fates, pa.string()), "detail": pa.array(self._details, pa.string())}


@dataclass(frozen=True)
class Measured:
    """What is known of a batch of captions, an array a column. `unread`: too long to be cleaned. `cleaned`: before remnants went."""

    source_chars: pa.Int32Array
    unread: pa.BooleanArray
    cleaned: pa.StringArray
    caption: pa.StringArray
    chars: pa.Int32Array
    words: pa.Int32Array
    language: pa.StringArray
    language_score: pa.FloatArray


class Captions(Stage):
    """Cleans each caption, measures it, names its language, and drops those that a rule speaks against."""

    name = "captions"
    version = 2
    reads = {"source_caption": Column(pa.string(), "the caption as the input has it")}
    adds = {
        "caption": Column(pa.string(), "the cleaned caption, NFC, single spaces"),
        "language": Column(pa.string(), "fastText lid.176's label; null without letters or below a probability of 0.1"),
        "language_score": Column(pa.float32(), "its probability, 0.1 to 1"),
        "chars": Column(pa.int32(), "code points of the cleaned caption"),
        "words": Column(pa.int32(), "words of the cleaned caption"),
        "tokens": Column(pa.int32(), "CLIP's tokens, start and end included; null unless max_tokens is set and no earlier rule fired"),
    }
    # In the order of the rules: the first that fires names the fate.
    reasons = {
        "empty": "no caption, or nothing left of it after cleaning",
        "contains_html": "HTML in the caption, and html is `drop`",
        "contains_url": "a URL in the caption, and urls is `drop`",
        "contains_email": "an e-mail address in the caption, and emails is `drop`",
        "contains_emoji": "an emoji in the caption, and emoji is `drop`",
        "boilerplate": "the whole caption is a file name, counter, call to click, placeholder, address, date, size or has no letters",
        "too_short": "fewer than min_chars characters",
        "too_long": "more than max_chars characters, or more than 100,000 before cleaning",
        "too_few_words": "fewer than min_words words",
        "too_many_words": "more than max_words words",
        "repeated_characters": "one character more than max_run times in a row",
        "repeated_words": "a greater share of repeated words than max_repeated_words",
        "few_letters": "a smaller share of letters than min_letters",
        "many_digits": "a greater share of digits than max_digits",
        "language": "in none of languages, or with less than min_language_score",
        "too_many_tokens": "more than max_tokens tokens of CLIP's tokenizer",
    }

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._languages = text_language.wanted(self.config.languages)
        self._model: Any = None
        self._tokens: TokenCounter | None = None

    def open(self) -> None:
        self._model = text_language.load()
        if self.config.max_tokens is None:
            return
        try:
            self._tokens = TokenCounter()
        except ImportError as err:
            raise UserError(
                f"stages.captions.max_tokens: {err}; counting tokens needs the extra clip (make setup EXTRAS=clip), "
                "or leave max_tokens out and use max_chars or max_words"
            ) from err

    def close(self) -> None:
        self._model = self._tokens = None

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._model is None:
            self.open()
        found = self._measure(_strings(table["source_caption"]))
        verdict = Verdict(len(table), exempt=_mask(pc.equal(found.source_chars, 0)) & (self.config.empty == "keep"))
        for reason, fires, detail in self._rules(found):
            verdict.drop(f"{self.name}:{reason}", fires, detail)
        tokens = self._count_tokens(found.caption, verdict)
        measures = {name: getattr(found, name) for name in ("caption", "language", "language_score", "chars", "words")}
        for name, values in {**measures, "tokens": tokens, **verdict.columns()}.items():
            at = table.schema.get_field_index(name)
            table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
        return table

    def _measure(self, source: pa.StringArray) -> Measured:
        source_chars = pc.utf8_length(source)
        unread = pc.greater(source_chars, MAX_SOURCE_CHARS)
        cleaned = clean_batch(pc.if_else(unread, "", source), plain=self.config.typography == "plain")
        caption = cleaned
        for what, handling in self._remnants():
            if handling == "remove":
                caption = text_remnants.remove(caption, what)
        language, score = text_language.identify(self._model, caption)
        return Measured(source_chars, unread, cleaned, caption, pc.utf8_length(caption), text_measures.words(caption), language, score)

    def _remnants(self) -> list[tuple[text_remnants.Remnant, str]]:
        config = self.config
        return [("html", config.html), ("url", config.urls), ("email", config.emails), ("emoji", config.emoji)]

    def _rules(self, found: Measured) -> Iterator[Found]:
        """The rules that are asked for, in the order of `reasons`; but a caption that was not read is refused before all of them."""
        yield "too_long", found.unread, lambda row: f"{found.source_chars[row]} characters before cleaning > {MAX_SOURCE_CHARS}"
        if self.config.empty == "drop":
            said = {True: "nothing is left after cleaning", False: "the input has no caption"}
            yield "empty", pc.equal(found.chars, 0), lambda row: said[found.source_chars[row].as_py() > 0]
        for what, handling in self._remnants():
            if handling == "drop":
                yield f"contains_{what}", text_remnants.find(found.cleaned, what), lambda _: None
        if self.config.boilerplate:
            kinds = text_boilerplate.kinds(found.caption)
            yield "boilerplate", pc.is_valid(kinds), lambda row: str(kinds[row])
        yield from self._length_rules(found)
        yield from self._share_rules(found.caption)
        if self.config.languages:
            yield "language", self._foreign(found), lambda row: self._language_detail(found, row)

    def _length_rules(self, found: Measured) -> Iterator[Found]:
        config = self.config
        chars, words = found.chars, found.words
        if config.min_chars:
            yield "too_short", pc.less(chars, config.min_chars), lambda row: f"{chars[row]} characters < {config.min_chars}"
        if config.max_chars is not None:
            yield "too_long", pc.greater(chars, config.max_chars), lambda row: f"{chars[row]} characters > {config.max_chars}"
        if config.min_words is not None:
            yield "too_few_words", pc.less(words, config.min_words), lambda row: f"{words[row]} words < {config.min_words}"
        if config.max_words is not None:
            yield "too_many_words", pc.greater(words, config.max_words), lambda row: f"{words[row]} words > {config.max_words}"

    def _share_rules(self, caption: pa.StringArray) -> Iterator[Found]:
        config = self.config
        if config.max_run is not None:
            runs = text_measures.longest_run(caption)
            yield "repeated_characters", runs > config.max_run, lambda row: f"{runs[row]} in a row > {config.max_run}"
        if config.max_repeated_words is not None:
            repeated = text_measures.repeated_words(caption)
            most = config.max_repeated_words
            yield "repeated_words", repeated > most, lambda row: f"{repeated[row]:.3f} of the words repeated > {most}"
        if config.min_letters is not None:
            letters = text_measures.letter_share(caption)
            yield "few_letters", letters < config.min_letters, lambda row: f"{letters[row]:.3f} letters < {config.min_letters}"
        if config.max_digits is not None:
            digits = text_measures.digit_share(caption)
            yield "many_digits", digits > config.max_digits, lambda row: f"{digits[row]:.3f} digits > {config.max_digits}"

    def _foreign(self, found: Measured) -> pa.BooleanArray:
        known = pc.is_in(found.language, pa.array(sorted(self._languages)))
        return pc.invert(pc.and_(known, pc.fill_null(pc.greater_equal(found.language_score, self.config.min_language_score), False)))

    def _language_detail(self, found: Measured, row: int) -> str:
        language, score = found.language[row].as_py(), found.language_score[row].as_py()
        if language in self._languages:
            return f"{language} {score:.2f} < {self.config.min_language_score}"
        return f"{language} {score:.2f}" if language else "no language recognised"

    def _count_tokens(self, caption: pa.StringArray, verdict: Verdict) -> pa.Int32Array:
        """The last rule: its measure is dear, so it is taken of the rows alone that every other rule let pass."""
        most = self.config.max_tokens
        if self._tokens is None:
            return pa.nulls(len(caption), pa.int32())
        at = np.flatnonzero(verdict.alive)
        counted = self._tokens.count(caption.take(at), enough=most)
        tokens = pc.replace_with_mask(pa.nulls(len(caption), pa.int32()), pa.array(verdict.alive), counted)
        fires = pc.or_(pc.is_null(tokens), pc.fill_null(pc.greater(tokens, most), True))
        verdict.drop(f"{self.name}:too_many_tokens", fires, lambda row: f"{tokens[row].as_py() or 'too many to count:'} tokens > {most}")
        return tokens


def _strings(column: pa.ChunkedArray) -> pa.StringArray:
    """The column as one array of valid UTF-8 without nulls."""
    return valid(pc.fill_null(pa.concat_arrays([chunk.cast(pa.string()) for chunk in column.chunks] or [pa.array([], pa.string())]), ""))


def _mask(values: pa.BooleanArray) -> np.ndarray:
    out: np.ndarray = values.to_numpy(zero_copy_only=False)
    return out
