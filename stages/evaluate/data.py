"""Evaluation data: shards (ours, or any of img2dataset's and webdataset's form), or a table of images and captions beside a folder.

Samples of one image are brought together, since an image with several captions is one image in retrieval: in shards they have the
same `sha256`, else the same `url`, in their JSON (without both each sample is an image of its own); in a table the same file name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec

from pipeline.errors import UserError
from stages.evaluate.embedding import Item
from stages.evaluate.scorers import answered

if TYPE_CHECKING:
    from stages.train.reading import Samples

IMAGE_COLUMNS = ("image", "file", "filename", "filepath", "path")
CAPTION_COLUMNS = ("caption", "alt", "title", "text")
NAMED = 20  # keys of samples' json that a message names
LABEL_COLUMNS = ("label", "class", "cls")


@dataclass(frozen=True)
class Fields:
    """Where a sample's captions and label stand: keys of its JSON, or columns of a table.

    None: the sample's .txt and .cls, or the usual names of columns.
    """

    caption: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Shards:
    """Every sample of shards once, in their order."""

    samples: Samples
    fields: Fields

    def __iter__(self) -> Iterator[Item]:
        return (of_sample(sample, self.fields) for sample in self.samples)


def of_shards(
    sources: Sequence[str],
    fields: Fields = Fields(),
    storage_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    key: str = "eval: --data",
) -> Shards:
    """The samples of these runs, shard folders or tars. `storage_options`: for all, or one for each.

    Raises UserError at once where there are none; `key` is the option that names them.
    """
    from stages.train import corpus, reading

    found = corpus.open_corpora(list(sources), storage_options or {}, key=key)
    return Shards(reading.Samples(found), fields)


def check_names(shards: Shards) -> None:
    """Raises UserError where no sample has what `fields` name. Reads as far as the first that has: to the end only where none does."""
    from stages.train import reading

    fields = shards.fields
    wanted = {option: name for option, name in (("--caption", fields.caption), ("--label", fields.label)) if name is not None}
    if not wanted:
        return
    there: set[str] = set()
    for sample in reading.Samples(shards.samples.corpora):
        item = of_sample(sample, fields)
        has = {"--caption": bool(item.captions), "--label": item.label is not None}
        wanted = {option: name for option, name in wanted.items() if not has[option]}
        if not wanted:
            return
        there |= sample["json"].keys()
    option, name = next(iter(wanted.items()))
    known = sorted(there)
    told = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
    raise UserError(f"eval: {option} {name}: no sample's json says anything there; its keys are {told or 'none'}")


def of_sample(sample: dict[str, Any], fields: Fields) -> Item:
    """One sample as `reading.Samples` gives it."""
    facts, cls = sample["json"], sample["members"].get("cls")
    frames = sample["frames"] or ([sample["image"]] if sample["image"] is not None else [])
    same = (f"{name}:{facts[name]}" for name in ("sha256", "url") if facts.get(name))
    identity = next(same, f"key:{sample['shard']}:{sample['key']}")
    label = facts.get(fields.label) if fields.label else None if cls is None else cls.decode(errors="replace")
    return Item(sample["key"], identity, frames, _captions(sample, facts, fields), None if label is None else str(label).strip())


def _captions(sample: dict[str, Any], facts: dict[str, Any], fields: Fields) -> list[str]:
    """The .txt, a caption a line, as benchmarks in webdataset form have it; or a JSON key: a text or a list of them."""
    found = facts.get(fields.caption) if fields.caption else (sample.get("text") or "").splitlines()
    listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [" ".join(str(one).split()) for one in listed if str(one).strip()]


@dataclass(frozen=True)
class Table:
    """A table's images that are there, each with all its captions, and how many of its rows name an image that is not."""

    items: list[tuple[str, str, list[str], str | None]]  # name, address, captions, label
    absent: int
    storage_options: dict[str, Any]

    def __iter__(self) -> Iterator[Item]:
        for name, address, captions, label in self.items:
            with fsspec.open(address, "rb", **self.storage_options) as handle:
                yield Item(name, name, [handle.read()], captions, label)


def of_table(path: str, folder: str, fields: Fields = Fields(), storage_options: dict[str, Any] | None = None) -> Table:
    """A CSV or TSV with a row for each pair, its image named relative to `folder`; columns by `fields` or by their usual names.

    Rows whose image is not in the folder are left out and counted (`absent`): a table often lists more than one split. Raises UserError
    for columns that are not there, and where no image is.
    """
    options = storage_options or {}
    rows = _rows(path, options)
    names = list(rows[0]) if rows else []
    image = _column(path, names, None, IMAGE_COLUMNS, "image") or ""
    caption = _column(path, names, fields.caption, CAPTION_COLUMNS, "caption", needed=fields.label is None)
    label = _column(path, names, fields.label, LABEL_COLUMNS, "label", needed=fields.label is not None)
    present = files_in(folder, options)
    absent = sum(row[image] not in present for row in rows)
    if absent == len(rows):
        raise UserError(f"{folder}: holds none of the images that {path} names ({rows[0][image] if rows else 'none'}, …)")
    found: dict[str, tuple[str, str, list[str], str | None]] = {}
    for row in rows:
        if (name := row[image]) in present:
            entry = found.setdefault(name, (name, present[name], [], row[label] if label else None))
            text = " ".join(row[caption].split()) if caption else ""
            entry[2].extend([text] if text else [])
    return Table(list(found.values()), absent, options)


def _rows(path: str, options: dict[str, Any]) -> list[dict[str, str]]:
    text = text_of(path, options, "; give a CSV with --images, or shards without")
    tabs = path.endswith((".tsv", ".tsv.txt"))
    return list(csv.DictReader(io.StringIO(text), delimiter="\t" if tabs else ",", restval=""))


def text_of(path: str, storage_options: dict[str, Any], instead: str = "") -> str:
    """The content of a file of UTF-8. Raises UserError where it is none, or is not there: `instead` then says what to give."""
    try:
        with answered(path), fsspec.open(path, "rb", **storage_options) as handle:
            body = bytes(handle.read())
    except (FileNotFoundError, IsADirectoryError) as err:
        raise UserError(f"{path}: no such file{instead}") from err
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: is not UTF-8 (byte {err.start}); save it as UTF-8") from err


def _column(path: str, names: list[str], given: str | None, usual: Iterable[str], what: str, needed: bool = True) -> str | None:
    found = given if given in names else None if given else next((name for name in usual if name in names), None)
    if found is None and needed:
        wanted = repr(given) if given else f"one of {', '.join(usual)}"
        raise UserError(f"{path}: has the columns {', '.join(names) or 'none'}; the {what} column must be {wanted}")
    return found


def files_in(folder: str, options: dict[str, Any]) -> dict[str, str]:
    """Names relative to the folder -> addresses, of all its files."""
    with answered(folder):
        fs, root = fsspec.core.url_to_fs(folder, **options)
        root = root.rstrip("/")
        if not fs.isdir(root):
            raise UserError(f"{folder}: no such folder of images")
        return {path[len(root) + 1 :]: fs.unstrip_protocol(path) for path in fs.find(root)}


def classes_of(labels: Sequence[str | None], listed: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """Class names, and each label's place among them (-1: no label). A label is a class's name, or its number from 0 in `listed`.

    Raises UserError for labels that name no class, and for bare numbers without a list.
    """
    given = [label for label in labels if label is not None]
    if listed is None:
        if all(label.isdecimal() for label in given):
            raise UserError("classes: the data's labels are numbers; give the class names as a text file, one a line in that order")
        listed = sorted(set(given))
    place = {name: at for at, name in enumerate(listed)}
    out = [-1 if label is None else place.get(label, int(label) if label.isdecimal() else -2) for label in labels]
    wrong = next((label for label, at in zip(labels, out, strict=True) if at == -2 or at >= len(listed)), None)
    if wrong is not None:
        raise UserError(f"classes: the label {wrong!r} is none of the {len(listed)} classes")
    return list(listed), out
