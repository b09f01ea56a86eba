"""concepts: which words of a list a caption speaks of, so that selection can balance a corpus and the report can count.

The idea is MetaCLIP's (Xu et al. 2023, "Demystifying CLIP Data", section 3: substring matching against a list of concepts, then at most t
captions for each); built from the paper. Captions and words are compared in one form: NFKC, case folded, everything but letters, marks
and digits a space. A word is found where it stands whole; one in a script without spaces between words (Han, kana, Thai …) anywhere.
"""

from __future__ import annotations

from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationInfo, model_validator

from pipeline.errors import UserError
from pipeline.stage import Column, Stage, Strict, file_digest, of_the_past
from stages.lib.comparable import dense_script, normal_batch
from stages.lib.shingles import code_points

APART = r"[^\p{L}\p{M}\p{N}]+"  # RE2: what stands between words


class Options(Strict):
    """Words to look for."""

    words: str = Field(min_length=1)
    """A text file (path or fsspec URL), UTF-8, one word or phrase a line; empty lines count for nothing."""
    words_sha256: str | None = None
    """SHA-256 of `words`; filled in by reading the file, so that a changed list is another config."""

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, raw: Any, info: ValidationInfo) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("words"), str) or raw.get("words_sha256"):
            return raw
        try:
            return {**raw, "words_sha256": file_digest(raw["words"])}
        except (OSError, ValueError, ImportError) as err:
            if of_the_past(info):
                return raw
            raise ValueError(f"words: cannot read {raw['words']}: {err}") from err


class Concepts(Stage):
    """Looks for all words of the list at once (Aho-Corasick), whatever its length."""

    name = "concepts"
    version = 1
    reads = {"caption": Column(pa.string(), "the cleaned caption")}
    adds = {"concepts": Column(pa.list_(pa.string()), "the list's words that stand in the caption, sorted; [] for none")}

    class Config(Options):
        pass

    def check_ready(self) -> None:
        """Raises UserError for a list that cannot be read, is no UTF-8, or holds no word."""
        listed(self.config.words)

    def open(self) -> None:
        import ahocorasick

        words = listed(self.config.words)
        forms = apart(pa.array(words))
        whole = ~dense_script(code_points(forms))
        self._automaton = ahocorasick.Automaton()
        for word, form, spaced in zip(words, forms.to_pylist(), whole.tolist(), strict=True):
            key = f" {form} " if spaced else form
            self._automaton.add_word(key, [*self._automaton.get(key, []), word])
        self._automaton.make_automaton()

    def __call__(self, table: pa.Table) -> pa.Table:
        # A loop over rows: the library takes one text at a time.
        found = [
            sorted({word for _, words in self._automaton.iter(f" {form} ") for word in words})
            for form in apart(table["caption"]).to_pylist()
        ]
        return table.append_column("concepts", pa.array(found, self.adds["concepts"].type))


def apart(texts: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """The form in which captions and words are compared; a null is empty."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(normal_batch(texts), APART, " "))


def listed(path: str) -> list[str]:
    """The different words of a list, in its order; those that have neither letter nor digit are left out. Raises UserError."""
    try:
        lines = _read(path).decode("utf-8-sig").splitlines()
    except (OSError, ImportError, ValueError) as err:
        raise UserError(f"stages.concepts.words: cannot read {path} as UTF-8: {err}") from err
    words = list(dict.fromkeys(" ".join(line.split()) for line in lines))
    kept = [word for word, form in zip(words, apart(pa.array(words, pa.string())).to_pylist(), strict=True) if form]
    if not kept:
        raise UserError(f"stages.concepts.words: {path} holds no word; give a text file with one a line")
    return kept


def _read(path: str) -> bytes:
    with fsspec.open(path, "rb") as file:
        data: bytes = file.read()
    return data
