"""What others read of a run: README.md, a dataset card as the Hugging Face Hub wants it, and croissant.json (Croissant 1.0, JSON-LD).

Both describe the shards by paths relative to the run's folder (the card) or to report/ (Croissant, whose reader resolves them so).
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import pyarrow as pa

from pipeline.known import Known, columns_known
from stages.shards.listing import NOT_LISTED, OFTEN_UNKNOWN

SIZES = [(10**n, name) for n, name in zip(range(3, 13), ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M",
         "100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T"), strict=True)]  # fmt: skip
PAIRS = ("image-text pairs", ["image-to-text", "text-to-image", "zero-shot-image-classification"], "image-text-pairs")
CLIPS = ("clips of videos with their texts", ["video-text-to-text", "text-to-video"], "video-text-pairs")
LANGUAGES = 0.01  # of the kept rows with a language, from which it is named
MOST_FILES = 10_000  # of croissant.json: beyond, the reader would take minutes for the list alone
ALWAYS = {"key": "the sample's name in its shard", "url": "where the {medium} came from", "caption": "the cleaned caption"}


def write(known: Known, report: dict[str, Any], template: Any) -> None:
    """Writes report/README.md and report/croissant.json. `template`: the card's, of Jinja."""
    store = known.run.store
    manifest = store.read_json("shards/manifest.json")
    about = {name: str(value) for name, value in known.run.config.about.items() if isinstance(value, str | int | float)}
    store.write("report/README.md", readme(known, report, about, template).encode())
    if len(manifest["shards"]) <= MOST_FILES:
        store.write_json("report/croissant.json", croissant(known, report, about, manifest))
    else:
        store.remove("report/croissant.json")  # of former shards


def readme(known: Known, report: dict[str, Any], about: dict[str, str], template: Any) -> str:
    """The card; its header is YAML."""
    import yaml

    languages = report["categories"].get("language", [])
    spoken = sum(line["kept"] for line in languages)
    named = [line["value"] for line in languages if line["value"] and line["kept"] >= LANGUAGES * max(spoken, 1) and line["kept"]]
    what, tasks, tag = _kind(known)
    header = {
        "pretty_name": report["run"],
        "license": "other",
        "license_name": "unknown" if "licence" not in about else "as-stated",
        **({"language": named} if named else {}),
        "task_categories": tasks,
        "size_categories": [next((name for least, name in SIZES if report["kept"] < least), "n>1T")],
        "tags": ["webdataset", tag, "shardmill"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"shards/{known.keys['shards']}/*.tar"}]}],
    }
    fields = [(name, _word(kind), meaning) for name, (kind, meaning) in _fields(known).items()]
    rules = [(one["fate"], one["rows"], one["meaning"]) for one in report["funnel"]]
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    values = {"fields": fields, "rules": rules, "key": known.keys["shards"], "what": what, "media": known.run.layout.media}
    return str(template.render(header=text, report=report, about=about, **values))


def _kind(known: Known) -> tuple[str, list[str], str]:
    """What a sample is, in words, in the Hub's names of tasks, and as a tag."""
    return PAIRS if "image" in known.run.layout.media else CLIPS


def _fields(known: Known) -> dict[str, tuple[pa.DataType, str]]:
    """Name -> type and meaning of what stands in a sample's .json."""
    meanings = {"row": "the number of the row, counted from 0"}
    meanings |= {name: column.meaning for entry in known.run.entries for name, column in entry.stage.adds.items()}
    there = {name: kind for name, kind in columns_known(known.run).items() if _listed(name, kind)}
    medium = "image" if "image" in known.run.layout.media else "video"
    always = {name: (pa.string(), meaning.replace("{medium}", medium)) for name, meaning in ALWAYS.items()}
    return {**always, **{n: (k, meanings.get(n, "")) for n, k in there.items()}}


def _listed(name: str, kind: pa.DataType) -> bool:
    """Whether a column stands in the .json (stages/shards/listing.py)."""
    left_out = name in NOT_LISTED or name in ALWAYS or name.startswith(OFTEN_UNKNOWN)
    return not left_out and (pa.types.is_primitive(kind) or pa.types.is_string(kind))


def _word(kind: pa.DataType) -> str:
    return str(kind).replace("large_", "")


def croissant(known: Known, report: dict[str, Any], about: dict[str, str], manifest: dict[str, Any]) -> dict[str, Any]:
    """The JSON-LD: the shards with their hashes, their Parquet, and what stands in them."""
    key = known.keys["shards"]
    context = json.loads(resources.files("pipeline.report").joinpath("assets", "croissant_context.json").read_text(encoding="utf-8"))
    tars = [_tar(key, shard) for shard in manifest["shards"]]
    pictures_of: Any = next(entry.stage.config for entry in known.run.layout.pool if entry.name in ("images", "frames"))
    suffix = pictures_of.format
    # A folder that holds many Parquet files is read by mlcroissant as a clone of a repository alone, which is what the Hub makes of it.
    folder = {"@type": "cr:FileObject", "@id": "run", "name": "run", "contentUrl": "..", "encodingFormat": "git+https"}
    folder["sha256"] = hashlib.sha256(known.run.store.read("shards/manifest.json")).hexdigest()  # which holds every tar's
    listings = _files("listings", f"*shards/{key}/*.parquet", "application/x-parquet", [folder])
    pictures = _files("images", f"*.{suffix}", f"image/{suffix}".replace("jpg", "jpeg"), tars)
    licence = about.get("licence") or about.get("license") or "unknown: the images and captions belong to whoever published them"
    return {
        **context,
        "name": report["run"],
        "description": f"{report['kept']} {_kind(known)[0]} of {report['rows_in']} rows. Scored by: {report['scorer'] or 'nothing'}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "url": about.get("source") or about.get("url") or report["shards_at"],
        "license": licence,
        "citeAs": about.get("cite") or report["run"],
        "datePublished": _written(known, manifest),
        "version": "1.0.0",
        "distribution": [folder, *tars, listings, pictures],
        "recordSet": _records(known),
    }


def _written(known: Known, manifest: dict[str, Any]) -> str:
    """The day on which the last shard was written."""
    if not manifest["shards"]:
        return datetime.now(UTC).date().isoformat()
    last = manifest["shards"][-1]["name"].removesuffix(".tar")
    stats = known.run.store.read_json(f"{known.folder('shards')}/{last}_stats.json")
    return datetime.fromtimestamp(float(stats["end_time"]), UTC).date().isoformat()


def _tar(key: str, shard: dict[str, Any]) -> dict[str, Any]:
    name, where = shard["name"], f"../shards/{key}/{shard['name']}"
    facts = {"contentUrl": where, "contentSize": f"{shard['bytes']} B", "encodingFormat": "application/x-tar", "sha256": shard["sha256"]}
    return {"@type": "cr:FileObject", "@id": name, "name": name, **facts}


def _files(name: str, pattern: str, kind: str, inside: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": [{"@id": one["@id"]} for one in inside],
        "encodingFormat": kind,
        "includes": pattern,
    }


def _records(known: Known) -> list[dict[str, Any]]:
    """Record sets: `rows`, every line of the shards' Parquet (dropped rows too, their key null), and `samples`: images by key, of a clip
    each of its frames."""
    names = {name: (_schema_type(kind), meaning) for name, (kind, meaning) in _fields(known).items()}
    names |= {"fate": ("sc:Text", "kept, or stage:reason")}
    rows = [_field("rows", name, *words, {"fileSet": {"@id": "listings"}, "extract": {"column": name}}) for name, words in names.items()]
    stem = {"regex": r"^(?:.*/)?([^/.]+)(?:\.[^/]*)?$"}
    of_name = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "filename"}, "transform": stem}
    of_image = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
    key = {**_field("samples", "key", *names["key"], of_name), "references": {"field": {"@id": "rows/key"}}}
    image = _field("samples", "image", "sc:ImageObject", "the image as it stands in the shard", of_image)
    joined = [_field("samples", n, *words, {"field": {"@id": f"rows/{n}"}}) for n, words in names.items() if n != "key"]
    return [_record_set("rows", rows), _record_set("samples", [key, image, *joined])]


def _record_set(name: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}


def _field(records: str, name: str, kind: str, meaning: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{records}/{name}", "name": name, "description": meaning, "dataType": kind, "source": source}


def _schema_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
