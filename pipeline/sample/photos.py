"""The photographs that scikit-image, scikit-learn and matplotlib carry in their wheels, and hand-written views of them.

A view is a box of a photograph with captions that are true of what the box shows (views.yaml). Pictures that these packages
would have to download first, drawings, and the second half of the stereo pair are left out.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image, ImageOps

from pipeline.errors import UserError

MIRRORED = 1000  # picture ids of mirrored views lie this much above those of the views


@dataclass(frozen=True)
class View:
    """A box of a photograph. `picture` numbers it; a mirrored view is another picture with the same captions."""

    photo: str
    picture: int
    file: str
    box: tuple[int, int, int, int]
    captions: tuple[str, ...]
    mirror: bool = False

    def mirrored(self) -> View:
        return View(self.photo, self.picture + MIRRORED, self.file, self.box, self.captions, not self.mirror)

    def image(self) -> Image.Image:
        """The box's pixels, RGB, as large as the photograph has them."""
        photo = _open(self.file)
        left, top, right, bottom = self.box
        cut = photo.crop(
            (
                round(photo.width * left / 100),
                round(photo.height * top / 100),
                round(photo.width * right / 100),
                round(photo.height * bottom / 100),
            )
        )
        return ImageOps.mirror(cut) if self.mirror else cut


@dataclass(frozen=True)
class Abroad:
    """A caption of a whole photograph in another language (ISO 639-1)."""

    view: View
    language: str
    caption: str


def views() -> list[View]:
    """All views, those of one photograph together, whole photograph first."""
    return list(_read()[0])


def abroad() -> list[Abroad]:
    """All captions in other languages than English."""
    return list(_read()[1])


def photographs() -> list[str]:
    """The names of the distinct photographs."""
    return list(dict.fromkeys(view.photo for view in views()))


def files() -> list[Path]:
    """The photographs' files, for keys and for tests of what the wheels carry."""
    return sorted({locate(view.file) for view in views()})


def locate(file: str) -> Path:
    """Where `package/path/in/it` lies, without importing the package. Raises UserError when the package is missing."""
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the embedded sample needs pictures from {package}, which is not installed: pip install 'shardmill[sample]'")
    path = Path(spec.submodule_search_locations[0], inside)
    if not path.is_file():
        raise UserError(f"the embedded sample needs {path}, which this release of {package} does not carry; install the pinned one")
    return path


@functools.cache
def _read() -> tuple[tuple[View, ...], tuple[Abroad, ...]]:
    data = yaml.safe_load(Path(__file__).with_name("views.yaml").read_text(encoding="utf-8"))
    found: list[View] = []
    foreign: list[Abroad] = []
    for photo, entry in data.items():
        first = len(found)
        for number, view in enumerate(entry["views"], start=first):
            left, top, right, bottom = view["box"]
            found.append(View(photo, number, entry["file"], (left, top, right, bottom), tuple(view["captions"])))
        foreign += [Abroad(found[first], language, caption) for language, caption in entry["abroad"]]
    return tuple(found), tuple(foreign)


@functools.lru_cache(maxsize=4)
def _open(file: str) -> Image.Image:
    return Image.open(locate(file)).convert("RGB")
