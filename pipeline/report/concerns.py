"""What a data engineer would ask about a run, each as a sentence with its figures. The limits are rules of thumb, named here."""

from __future__ import annotations

from typing import Any

LEAST_FETCHED = 0.5  # of the rows that asked; a rule of thumb, lists lose links with every year
LEAST_USABLE = 0.9  # of the fetched rows: the rest are pages and broken files
HOST_SHARE = 0.2  # of the kept rows from one host
RULE_SHARE = 0.25  # of the rows in, taken by one reason
REPEAT_SHARE, REPEAT_LEAST = 0.01, 10  # of the rows in, with one caption or one image hash
LANGUAGE_SHARE = 0.1  # of the rows with a language that is not the first one, where all kept rows are of one
ONE_SIZE = 0.5  # of the images in one bin of their widths or heights
FLAT_STD, EDGE_SHARE = 0.01, 0.5  # a score that hardly varies; a score of which half stands in one bin at an end
FEW = 100  # rows below which shares say nothing


def find(report: dict[str, Any]) -> list[dict[str, str]]:
    """The warnings that the figures of report.json give cause for: code, and text."""
    out: list[dict[str, str]] = []

    def say(code: str, text: str) -> None:
        out.append({"code": code, "text": text})

    _models(report, say)
    if report["rows_in"] >= FEW:
        _fetches(report, say)
        _funnel(report, say)
        _repeats(report, say)
        _scores(report, say)
        _shapes(report, say)
    return out


def _models(report: dict[str, Any], say: Any) -> None:
    scorer = report.get("scorer")
    if scorer is None:
        say("not_scored", "No image was compared with its caption: pairs that do not belong together are still in.")
    elif "demonstration" in scorer:
        say("demonstration_scorer", f"The scorer is a stand-in ({scorer}): its scores say nothing of what a CLIP model would say.")
    if "demonstration" in report:
        what = report["demonstration"]["text"].removeprefix("demonstration: ")
        say("demonstration_data", f"The input is the embedded sample: {what}, nothing to train on.")
    if not report["kept"]:
        say("nothing_kept", "No row was kept.")
    for one in report["decontamination"].get("sets", []):
        if one["kept"]:
            say(
                "evaluation_images",
                f"Near images of the evaluation set {one['name']}, {one['kept']:,} row{'' if one['kept'] == 1 else 's'} kept: "
                "eval_match IS NULL keeps the others alone.",
            )


def _fetches(report: dict[str, Any], say: Any) -> None:
    fetched, a_medium = report["fetches"], "a video" if report["expanded"] else "an image"
    if fetched["asked"] and fetched["fetched"] < LEAST_FETCHED * fetched["asked"]:
        say(
            "few_fetched",
            f"Only {_share(fetched['fetched'], fetched['asked'])} of the rows that asked for {a_medium} got bytes. "
            f"Below {LEAST_FETCHED:.0%} look at the reasons of download: the resolver, the rate limits, the age of the list.",
        )
    if fetched["fetched"] and fetched["usable"] < LEAST_USABLE * fetched["fetched"]:
        usable = "gave frames" if report["expanded"] else "are usable images"
        say("few_usable", f"Only {_share(fetched['usable'], fetched['fetched'])} of the bodies that were fetched {usable}.")
    top = max(report["hosts"]["top"], key=lambda host: host["kept"], default=None)
    if top and top["kept"] > HOST_SHARE * max(report["kept"], 1):
        say("one_host", f"{_share(top['kept'], report['kept'])} of the kept rows come from one host, {top['name']}.")


def _funnel(report: dict[str, Any], say: Any) -> None:
    for one in report["funnel"]:
        if one["fate"] != "kept" and one["rows"] > RULE_SHARE * report["rows_in"]:
            say("one_rule", f"{one['fate']} alone takes {_share(one['rows'], report['rows_in'])} of the rows.")


def _repeats(report: dict[str, Any], say: Any) -> None:
    said = {"captions": "one caption", "images": "one image (by perceptual hash): perhaps a placeholder"}
    for what, lines in report["repeats"].items():
        for one in lines[:1]:
            if one["rows"] >= max(REPEAT_LEAST, REPEAT_SHARE * report["rows_in"]):
                say(
                    f"repeated_{what}",
                    f"{one['rows']:,} rows have {said[what]}; {_of_them(one['kept'])} kept. One is row {one['row']:,}.",
                )


def _scores(report: dict[str, Any], say: Any) -> None:
    found = report["histograms"].get("similarity")
    if report["scored"] != "yes":
        return
    if not found:
        say("no_scores", "The scorer gave no row a number.")
        return
    rows = sum(found["rows"])
    if rows >= FEW and found["std"] < FLAT_STD:
        say(
            "flat_scores",
            f"Similarity hardly varies (standard deviation {found['std']:.4f}): this looks like a broken model or broken input.",
        )
    if rows >= FEW and max(found["rows"][0], found["rows"][-1]) > EDGE_SHARE * rows:
        say("edge_scores", "More than half of the similarities stand at one end of their range: this looks like a broken model.")


def _shapes(report: dict[str, Any], say: Any) -> None:
    lines = report["categories"].get("language", [])
    kept = [line for line in lines if line["kept"]]
    total = sum(line["rows"] for line in lines)
    if kept and len(kept) == 1 and total - kept[0]["rows"] > LANGUAGE_SHARE * total:
        say(
            "languages",
            f"{_share(total - kept[0]['rows'], total)} of the captions are in another language than the kept ones ({kept[0]['value']}).",
        )
    for name in () if report["expanded"] else ("original_width", "original_height"):  # videos have one size mostly
        found = report["histograms"].get(name)  # equal from the 5th to the 50th hundredth: 45% at the least; more is not known of a bin
        if found and sum(found["rows"]) >= FEW and found["p05"] == found["p50"] and max(found["rows"]) > ONE_SIZE * sum(found["rows"]):
            say(
                "one_size",
                f"45% of the images or more have the same {name.removeprefix('original_')}, {found['p50']:.0f} pixels.",
            )


def _of_them(rows: int) -> str:
    return f"{rows:,} of them {'is' if rows == 1 else 'are'}"


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"
