"""Collects the sample's rows and pages while the web is built; what they are is decided in sound.py and dirt.py."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.sample import encode, pages, photos
from pipeline.sample.pages import Page
from pipeline.sample.photos import View

SEED = 20_240_117
SITES = (
    "kittens", "oldcoins", "spacenews", "teatime", "motorshed", "gardenblog", "citywalks", "museum", "lecture-notes", "eyeclinic",
    "starwatch", "navyhistory", "stonework", "filmschool", "travelphotos", "textures", "schoolbook", "wallpapers", "postcards", "archive",
)  # fmt: skip
SYMMETRIC = {next(view.picture for view in photos.views() if view.photo == photo) + at for photo, at in (("clock", 0), ("hubble", 1))}
NOTHING: Mapping[str, Any] = {}
HOSTS = ("img", "cdn", "static", "media")


@dataclass(frozen=True)
class Pair:
    """A row of the list and its truth. `caption`: the cleaned one (`text` is what the list says). `picture`: rows with the same
    number show the same picture; None where the URL gives none."""

    truth: str
    url: str | None
    text: str | None
    caption: str = ""
    view: View | None = None
    size: tuple[int, int] | None = None
    picture: int | None = None
    group: str | None = None


class Builder:
    """Collects pairs and pages, and hands out hosts, URLs, views and captions so that nothing is used twice by accident."""

    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.pairs: list[Pair] = []
        self.pages: dict[str, Page] = {}
        self.views = photos.views()
        self._hosts = self._names()
        self._main = self._mixed(self.views)
        self._mirrored = self._mixed([view.mirrored() for view in self.views if view.picture not in SYMMETRIC])
        self._second = self._mixed(self.views)  # views whose second caption no row that lives has used yet
        self._dead = self._endless(self._mixed(self.views))
        self._number = 0

    def take(self, wanted: int = -1) -> list[View]:
        """The next views for sound pairs, each given out once; -1: all that are left."""
        wanted = len(self._main) if wanted < 0 else wanted
        taken, self._main = self._main[:wanted], self._main[wanted:]
        return taken

    def mirrored(self, photo: str | None = None, wanted: int = 1) -> list[View]:
        """Mirrored views, each given out once: other pictures of which the same captions are true."""
        found = [view for view in self._mirrored if photo in (None, view.photo)][:wanted]
        if len(found) < wanted:
            raise ValueError(f"{photo} has no {wanted} views left")
        self._mirrored = [view for view in self._mirrored if view not in found]
        return found

    def second_caption(self, view: View | None = None, unlike: Collection[str] = ()) -> str:
        """A second caption that no living row has: of this view, or of any view of other photographs than `unlike`."""
        found = next(v for v in self._second if (v == view if view else v.photo not in unlike))
        self._second.remove(found)
        return found.captions[1]

    def dying(self) -> View:
        """A view for a row that will not live, whose picture and caption may therefore stand elsewhere too."""
        return next(self._dead)

    def url(self, words: str, suffix: str = "jpg", host: str | None = None, scheme: str = "http") -> str:
        """A new URL with the caption's words in its path, as blogs make them."""
        self._number += 1
        plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
        slug = "-".join(re.findall(r"[a-z0-9]+", plain)[:5]) or "image"
        day = f"20{8 + self._number % 14:02}/{1 + self._number % 12:02}"
        return f"{scheme}://{host or next(self._hosts)}/{day}/{slug}-{self._number:04}.{suffix}"

    def serve(self, url: str, body: bytes = b"", kind: str = "image/jpeg", **more: Any) -> str:
        """Puts a page under a URL, with a Content-Type and what else `pages.Page` has (more); returns the URL."""
        headers = {"Content-Type": kind, **more.pop("headers", {})}
        self.pages[pages.address(url)] = Page(body, headers, **more)
        return url

    def add(self, truth: str, url: str | None, caption: str, view: View | None = None, **more: Any) -> Pair:
        """A row. With a view it shows that picture, unless `picture` and `size` (more) say otherwise; `text` (more) is what the list
        says where that is not the caption."""
        if view is not None:
            more = {"size": view.image().size, "picture": view.picture, **more}
        pair = Pair(**{"truth": truth, "url": url, "text": caption, "caption": caption, "view": view, **more})
        self.pairs.append(pair)
        return pair

    def photo(
        self,
        truth: str,
        view: View,
        caption: str | None = None,
        body: bytes | None = None,
        served: Mapping[str, Any] = NOTHING,
        **more: Any,
    ) -> Pair:
        """A row with a page: a JPEG of the view (or `body`) under a new URL (or `url`), with the view's first caption or the one
        given. `served`: see `serve`."""
        caption = view.captions[0] if caption is None else caption
        body = encode.jpeg(view.image()) if body is None else body
        suffix, kind = encode.kind(body)
        url = more.pop("url", None) or self.url(caption, suffix)
        self.serve(url, body, **{"kind": kind, **served})
        return self.add(truth, url, caption, view, **more)

    def replace(self, pair: Pair, **changes: Any) -> None:
        """Changes a row that was added before."""
        self.pairs[self.pairs.index(pair)] = replace(pair, **changes)

    def repeat(self, pair: Pair, truth: str) -> None:
        """Adds a row that says the same as `pair` under another truth class."""
        self.pairs.append(replace(pair, truth=truth))

    def _mixed(self, found: list[View]) -> list[View]:
        return self.random.sample(found, len(found))

    def _names(self) -> Iterator[str]:
        while True:
            for host in HOSTS:
                for site in SITES:
                    yield f"{host}.{site}.example"

    @staticmethod
    def _endless(found: list[View]) -> Iterator[View]:
        while True:
            yield from found
