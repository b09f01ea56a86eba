"""report/index.html: one file that needs no network, from a template with automatic escaping and a plotting library put in once.

Captions, URLs and error texts come from strangers. They stand in the page only where the template escapes them, or in a block of JSON
that no tag can end; and the page's own policy lets no script run but those whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from pipeline.known import Known
from pipeline.report import examples, parents, seconds
from pipeline.stage import KEPT

PLOTS = "echarts.common.min.js"  # Apache ECharts 5.6.0 from npm, Apache-2.0; tests/pipeline/test_report_page.py holds its hash
CHARTS = ("histograms", "categories", "what_if", "funnel", "expanded", "concepts", "throughput")  # what the page's script draws


def write(known: Known, con: Any, report: dict[str, Any]) -> int:
    """Writes report/index.html from the figures of report.json and the table `facts`; returns its bytes."""
    data = render(report, gather(known, con, report)).encode()
    known.run.store.write("report/index.html", data)
    return len(data)


def gather(known: Known, con: Any, report: dict[str, Any]) -> dict[str, Any]:
    """The rows that the page shows: by fate, by cluster, around thresholds, of repeated captions and images, beside evaluation images."""
    rows = examples.of_fates(con, known.run.config.run.seed)
    members = {
        column: examples.of_clusters(con, column, [one["name"] for one in found["largest"]]) for column, found in report["clusters"].items()
    }
    grouped = [row for found in members.values() for listed in found.values() for row in listed]
    near = [row for one in report["what_if"] for row in one["rows"]]
    repeated = [one["row"] for lines in report["repeats"].values() for one in lines]
    hits = report["decontamination"].get("hits", [])
    first = examples.told(known, con, rows, False, [])
    better = examples.of_fallen(con, {row: line["fate"] for row, line in first.items()})
    all_rows = [*rows, *better.values(), *(one["row"] for one in hits), *grouped, *repeated, *near]
    pictures = known.run.config.report.thumbnails
    told = examples.told(known, con, all_rows, pictures, [one["column"] for one in report["what_if"]])
    evaluated = examples.of_evaluation(known, {one["match"] for one in hits}) if hits and pictures else {}
    by_fate: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_fate.setdefault(told[row]["fate"], []).append({**told[row], "better": told.get(better.get(row, -1))})
    above = parents.shown(con, known.run.config.run.seed) if report["expanded"] else {}
    chosen = {"rows": told, "by_fate": by_fate, "members": members, "evaluated": evaluated, "parents": above}
    return {**chosen, "each": examples.each(con), "pictures": pictures}


def render(report: dict[str, Any], shown: dict[str, Any]) -> str:
    """The page's text."""
    data = {name: report[name] for name in CHARTS}
    return html("page.html", "page.js", data, report=report, shown=shown, kept=KEPT)


def html(name: str, script: str, data: Any, plots: bool = True, **values: Any) -> str:
    """A page from a template of ours: the page's own script and `data` for it; with `plots`, the plotting library and what goes with it."""
    scripts = [_asset(one) for one in ((PLOTS, "charts.js") if plots else ()) + (script,)]
    policy = " ".join(f"'sha256-{_hash(text)}'" for text in scripts)
    return str(template(name).render(data=embedded(data), style=_asset("page.css"), scripts=scripts, policy=policy, **values))


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: no character in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return resources.files("pipeline.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _templates() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=jinja2.select_autoescape(("html",), default=False),
        loader=jinja2.FunctionLoader(_asset),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": lambda n: f"{n:,}", "share": lambda part, whole: f"{part / max(whole, 1):.1%}"}
    environment.filters |= {"size": _size, "span": _span, "number": _number, "seconds": seconds.told}
    return environment


def template(name: str) -> Any:
    """A template of ours; what it puts into HTML is escaped."""
    return _templates().get_template(name)


def _span(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _number(value: float) -> str:
    """Four significant digits for people: 91,900, not 9.19e+04."""
    text = f"{value:.4g}"
    return f"{float(text):,.0f}" if 1e3 <= abs(value) < 1e15 else text


def _size(n: int) -> str:
    """Bytes for people."""
    return f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n:,} bytes"
