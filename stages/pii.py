"""pii: e-mail addresses and telephone numbers in captions, counted, so that selection can drop such rows; or replaced.

Addresses are found by the pattern that `captions` goes by (stages/lib/text_remnants.py). Telephone numbers are the affair of Google's
libphonenumber (package phonenumberslite, Apache-2.0): it knows each country's numbering plan, and in which groups a number is written.
Digits alone are no telephone number here, unless a + stands before them: item numbers, ISBNs and file names would be most of what is found.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from pipeline.errors import UserError
from pipeline.stage import Column, Stage, Strict
from stages.lib.text_remnants import EMAIL

EMAIL_PLACE, PHONE_PLACE = "<EMAIL>", "<PHONE>"  # as CC12M's <PERSON>
# "logo@2x.png" is a file for screens of double density. RE2 cannot look ahead, so its @ is put aside (cleaned text has no NUL).
DENSITY, ASIDE = r"(?i)@(\d(?:\.\d)?x\.(?:png|jpe?g|gif|webp|svg|avif))", "\0"
# RE2: seven digits, and between two of them no more than libphonenumber lets stand there. What has none is not shown to it.
LIKELY = r"\p{Nd}(?:[\p{Z}\p{Pd}x().\[\]/~+]{0,4}\p{Nd}){6}"
TRIES = 1000  # places of one caption at which a number is tried, before the rest of it is left: bounds what a stranger's text costs
GROUPED = re.compile(r"^[+\uff0b]|\d\D+\d")
ISBN = re.compile(r"(?i)\bISBN(?:-?1[03])?:?\s*$")


class Options(Strict):
    """What is looked for, and what becomes of it."""

    regions: list[str] = ["US"]
    """ISO 3166 codes of the countries whose numbers count in their national form ("(212) 555-0123"), each a pass of its own; numbers with +
    and a country's code count whatever stands here. [] for those alone."""
    replace: bool = Field(False)
    """Put <EMAIL> and <PHONE> in their place, in `source_caption` too, so that no output has them; wants the stage before dedup. What
    `captions` measured is of the text before."""

    @field_validator("regions")
    @classmethod
    def _codes(cls, regions: list[str]) -> list[str]:
        if wrong := [code for code in regions if not re.fullmatch("[A-Z]{2}", code)]:
            raise ValueError(f"{', '.join(wrong)}: a region has two capital letters, as GB")
        return regions


class Pii(Stage):
    """Counts e-mail addresses and telephone numbers in each caption; names, postal addresses and other personal data are not looked for."""

    name = "pii"
    version = 1
    reads = {"caption": Column(pa.string(), "the cleaned caption")}
    adds = {
        "emails": Column(pa.int32(), "e-mail addresses in the caption; 0 for a null"),
        "phones": Column(pa.int32(), "telephone numbers in the caption, as libphonenumber finds them valid; 0 for a null"),
    }

    class Config(Options):
        pass

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.replace:
            told = f"the caption with {EMAIL_PLACE} and {PHONE_PLACE} in place of what was found"
            whole = "the caption as the input has it; where anything was found in it, as `caption`"
            self.reads = {**type(self).reads, "source_caption": Column(pa.string(), "the caption as the input has it")}
            self.adds = {"caption": Column(pa.string(), told), "source_caption": Column(pa.string(), whole), **type(self).adds}

    def check_ready(self) -> None:
        """Raises UserError where the library is missing or does not know a region."""
        try:
            from phonenumbers import SUPPORTED_REGIONS
        except ModuleNotFoundError as err:
            raise UserError('stages.pii needs phonenumberslite: make setup EXTRAS=pii, or pip install "shardmill[pii]"') from err
        if unknown := [code for code in self.config.regions if code not in SUPPORTED_REGIONS]:
            raise UserError(f"stages.pii.regions: libphonenumber has no region {', '.join(unknown)}")

    def open(self) -> None:
        self.check_ready()

    def __call__(self, table: pa.Table) -> pa.Table:
        emails, numbers, caption = looked(table["caption"].combine_chunks(), self.config.regions)
        if self.config.replace:
            # What cleaning took apart or away may still stand in the original: where either holds anything, the new text stands for both.
            raw_emails, raw_numbers, _ = looked(table["source_caption"].combine_chunks(), self.config.regions)
            held = pa.array((emails + numbers + raw_emails + raw_numbers) > 0)
            source = pc.if_else(held, caption, table["source_caption"])
            for name, values in (("caption", caption), ("source_caption", source)):
                table = table.set_column(table.schema.get_field_index(name), name, values)
        return table.append_column("emails", pa.array(emails)).append_column("phones", pa.array(numbers))


def looked(texts: pa.StringArray, regions: list[str]) -> tuple[np.ndarray, np.ndarray, pa.StringArray]:
    """E-mail addresses and telephone numbers of each text (int32), and the texts with placeholders in their place."""
    probed = pc.replace_substring_regex(texts, DENSITY, ASIDE + r"\1")
    emails: np.ndarray = pc.fill_null(pc.count_substring_regex(probed, EMAIL), 0).to_numpy().astype(np.int32)
    # Numbers are looked for in what is left of the text: an address may be made of digits.
    left = pc.replace_substring_regex(probed, EMAIL, EMAIL_PLACE)
    numbers, rows, found = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool), phones(left, regions)
    numbers[list(found)] = [len(spans) for spans in found.values()]
    rows[list(found)] = True
    replaced = pa.array([_replaced(left[row].as_py(), spans) for row, spans in found.items()], pa.string())
    return emails, numbers, pc.replace_substring(pc.replace_with_mask(left, pa.array(rows), replaced), ASIDE, "@")


def phones(texts: pa.StringArray, regions: list[str]) -> dict[int, list[tuple[int, int]]]:
    """Row -> (start, end) of each telephone number, in characters, for the rows that hold any."""
    out: dict[int, list[tuple[int, int]]] = {}
    likely = np.flatnonzero(pc.fill_null(pc.match_substring_regex(texts, LIKELY), False).to_numpy(zero_copy_only=False))
    # A loop over the few rows with so many digits: the library takes one text at a time.
    for row, text in zip(likely.tolist(), texts.take(pa.array(likely)).to_pylist(), strict=True):
        if spans := _spans(text, regions):
            out[row] = spans
    return out


def _spans(text: str, regions: list[str]) -> list[tuple[int, int]]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    spans: list[tuple[int, int]] = []
    for region in regions or (None,):
        for match in PhoneNumberMatcher(text, region, Leniency.STRICT_GROUPING, TRIES):
            if not GROUPED.search(match.raw_string):
                continue
            if ISBN.search(text[max(0, match.start - 12) : match.start]):
                continue
            if all(match.end <= start or match.start >= end for start, end in spans):
                spans.append((match.start, match.end))
    return sorted(spans)


def _replaced(text: str, spans: list[tuple[int, int]]) -> str:
    for start, end in reversed(spans):
        text = f"{text[:start]}{PHONE_PLACE}{text[end:]}"
    return text
