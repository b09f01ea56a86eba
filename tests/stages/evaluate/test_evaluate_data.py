"""What counts as one image, where captions and labels come from, and what is said of data that cannot be used."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from stages.evaluate import data
from stages.evaluate.embedding import Item, embed


def jpeg(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, samples: dict[str, dict[str, Any]]) -> str:
    with tarfile.open(path, "w") as writer:
        for key, members in samples.items():
            for suffix, value in members.items():
                body = value if isinstance(value, bytes) else (json.dumps(value) if suffix == "json" else value).encode()
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(body)
                writer.addfile(info, io.BytesIO(body))
    return str(path)


class Colours:
    """An image's vector is its mean colour; a text's is the colour that it names."""

    about: dict[str, Any] = {"model": "colours"}
    names = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def __init__(self) -> None:
        self.images, self.most = 0, 0

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.images, self.most = self.images + len(images), max(self.most, len(images))
        return np.stack([np.asarray(image).mean(axis=(0, 1)) for image in images]).astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([np.sum([self.names[word] for word in text.split() if word in self.names], axis=0) for text in texts], np.float32)


def test_samples_with_one_sha256_or_url_are_one_image(tmp_path: Path) -> None:
    red, blue = jpeg((255, 0, 0)), jpeg((0, 0, 255))
    shards = tar(
        tmp_path / "00000.tar",
        {
            "0": {"jpg": red, "txt": "a red thing", "json": {"sha256": "aa", "url": "http://x/1"}},
            "1": {"jpg": blue, "txt": "a blue thing", "json": {"url": "http://x/2"}},
            "2": {"jpg": red, "txt": "all red", "json": {"sha256": "aa", "url": "http://x/3"}},
            "3": {"jpg": blue, "txt": "all blue", "json": {"url": "http://x/2"}},
            "4": {"jpg": blue, "txt": "blue without json"},
            "5": {"jpg": b"no image", "txt": "green", "json": {"sha256": "bb"}},
        },
    )
    scorer = Colours()
    found = embed(scorer, data.of_shards([shards]), batch=2)
    assert found.captions == ["a red thing", "a blue thing", "all red", "all blue", "blue without json"]
    assert found.owner.tolist() == [0, 1, 0, 1, 2]
    assert found.unusable == ["5"]
    assert scorer.images == len(found.image) == 3
    np.testing.assert_allclose(np.linalg.norm(found.image, axis=1), 1, atol=1e-6)
    assert np.einsum("ij,ij->i", found.text, found.image[found.owner]) == pytest.approx(1)


def test_the_same_keys_in_two_shards_are_two_images(tmp_path: Path) -> None:
    for number, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        tar(tmp_path / f"0000{number}.tar", {"0": {"jpg": jpeg(colour), "txt": "red" if not number else "blue"}})
    found = embed(Colours(), data.of_shards([str(tmp_path)]), batch=8)
    assert found.owner.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("members", "fields", "wanted"),
    [
        ({"txt": "one\ntwo \n\n"}, data.Fields(), ["one", "two"]),
        ({"txt": "x", "json": {"captions": ["one", "two"]}}, data.Fields(caption="captions"), ["one", "two"]),
        ({"txt": "x", "json": {"alt": " one  two "}}, data.Fields(caption="alt"), ["one two"]),
        ({"txt": "x", "json": {"other": "one"}}, data.Fields(caption="alt"), []),
    ],
)
def test_captions_of_a_sample(tmp_path: Path, members: dict[str, Any], fields: data.Fields, wanted: list[str]) -> None:
    (item,) = data.of_shards([tar(tmp_path / "0.tar", {"0": {"jpg": jpeg((1, 2, 3)), **members}})], fields)
    assert item.captions == wanted


def test_labels_of_a_sample(tmp_path: Path) -> None:
    shards = tar(tmp_path / "0.tar", {"0": {"jpg": jpeg((1, 2, 3)), "cls": "3\n", "json": {"kind": "dog"}}})
    assert [item.label for item in data.of_shards([shards])] == ["3"]
    assert [item.label for item in data.of_shards([shards], data.Fields(label="kind"))] == ["dog"]


def test_the_frames_of_a_clip_are_pooled(tmp_path: Path) -> None:
    frames = {f"{at:03d}.jpg": jpeg(colour) for at, colour in enumerate([(200, 0, 0), (0, 200, 0)])}
    clips = data.of_shards([tar(tmp_path / "0.tar", {key: {**frames, "txt": "red green"} for key in ("0", "1", "2")})])
    scorer = Colours()
    found = embed(scorer, clips, batch=2)
    np.testing.assert_allclose(found.image, found.text, atol=1e-6)
    assert (scorer.images, scorer.most) == (
        6,
        2,
    )  # frames at once as many as photographs: clips of 32 frames must not take 32 times the memory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg((255, 0, 0)))
    (tmp_path / "images" / "deep" / "b.jpg").write_bytes(jpeg((0, 0, 255)))
    return tmp_path


def test_a_table_brings_the_captions_of_an_image_together(folder: Path) -> None:
    table = folder / "captions.csv"
    table.write_text(
        'image,caption,kind\na.jpg,"red, deep",warm\ndeep/b.jpg,blue,cold\na.jpg,all red,warm\ngone.jpg,green,cold\na.jpg, ,warm\n'
    )
    found = data.of_table(str(table), str(folder / "images"), data.Fields(label="kind"))
    assert found.absent == 1
    assert [(item.key, item.captions, item.label) for item in found] == [
        ("a.jpg", ["red, deep", "all red"], "warm"),
        ("deep/b.jpg", ["blue"], "cold"),
    ]


def test_names_that_lead_out_of_the_folder_are_not_followed(folder: Path) -> None:
    (folder / "secret.jpg").write_bytes(jpeg((0, 0, 0)))
    (folder / "t.csv").write_text(f"file,alt\na.jpg,red\n../secret.jpg,x\n{folder}/secret.jpg,x\n")
    found = data.of_table(str(folder / "t.csv"), str(folder / "images"))
    assert (found.absent, [item.key for item in found]) == (2, ["a.jpg"])


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("name,caption\na.jpg,x\n", data.Fields(), "has the columns name, caption; the image column must be one of image, file"),
        ("image,caption\na.jpg,x\n", data.Fields(caption="alt"), "the caption column must be 'alt'"),
        ("image,caption\nz.jpg,x\n", data.Fields(), r"holds none of the images that .* names \(z.jpg"),
        ("", data.Fields(), "has the columns none"),
    ],
)
def test_tables_that_cannot_be_used(folder: Path, text: str, fields: data.Fields, said: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        data.of_table(str(folder / "t.csv"), str(folder / "images"), fields)


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        data.of_table(str(folder / "none.csv"), str(folder / "images"))
    (folder / "t.csv").write_text("image,caption\na.jpg,x\n")
    with pytest.raises(UserError, match="no such folder of images"):
        data.of_table(str(folder / "t.csv"), str(folder / "nowhere"))


def test_classes_by_name_by_number_and_from_the_labels() -> None:
    assert data.classes_of(["dog", None, "cat"], ["cat", "dog"]) == (["cat", "dog"], [1, -1, 0])
    assert data.classes_of(["1", "0"], ["cat", "dog"]) == (["cat", "dog"], [1, 0])
    assert data.classes_of(["7", "3"], ["3", "7"]) == (["3", "7"], [1, 0])  # names, though they are digits
    assert data.classes_of(["dog", "cat", "dog"], None) == (["cat", "dog"], [1, 0, 1])
    with pytest.raises(UserError, match="labels are numbers; give the class names"):
        data.classes_of(["1", "0"], None)
    with pytest.raises(UserError, match="label '5' is none of the 2 classes"):
        data.classes_of(["5"], ["cat", "dog"])
    with pytest.raises(UserError, match="label 'cow' is none of the 2 classes"):
        data.classes_of(["cow"], ["cat", "dog"])


def test_a_bomb_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    found = embed(Colours(), [Item("big", "big", [jpeg((1, 1, 1))], ["red"]), Item("none", "none", [], ["red"])], batch=4)
    assert found.unusable == ["big", "none"]
    assert len(found.image) == len(found.captions) == 0


def test_a_damaged_avif_is_left_out_and_named() -> None:
    """Pillow raises a RuntimeError for it, as for nothing else."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "AVIF")
    body = out.getvalue()
    pixels = body.index(b"mdat") + 4
    found = embed(Colours(), [Item("a", "a", [body[:pixels] + bytes(len(body) - pixels)], ["red"])], batch=4)
    assert found.unusable == ["a"]
