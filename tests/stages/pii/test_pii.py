"""E-mail addresses and telephone numbers in captions: real-looking ones are found, and what only looks like one is not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.catalog import entry
from pipeline.errors import UserError
from pipeline.layout import arrange, check_columns
from pipeline.progress import Quiet
from pipeline.runs import run
from tests.support.corpus import caption, picture, write_config, write_list
from tests.support.server import Server

pytest.importorskip("phonenumbers", reason="needs the extra pii")

# Numbers of fiction (555-01xx), of the libraries' own examples, and two from captions of the web.
PHONES = {
    "US": [
        "Call (212) 555-0123 today for a free quote",
        "Plumber Brooklyn NY, 212-555-0123, open 24/7",
        "Tel. 212.555.0198 | red brick house for sale",
        "1-800-555-0199 toll free logo",
        "tattoo by bus , for an appointment call 850 - 244 - 5117 .",
        "taxi sign 1 (415) 555-2671",
    ],
    "GB": ["ring 020 7946 0958 before noon"],
    "DE": ["Malermeister Schulz, 030 901820"],
    "FR": ["Mairie de Paris 01 42 76 40 40"],
    "VN": ["Dịch vụ - Thi Công Lát Gạch Vỉa Hè - GIÁ RẺ: 0972 580 443"],
    "JP": ["東京都千代田区 ０３-３５００-８０００ 受付"],
    "": [
        "van with a ladder, +44 20 7946 0958",
        "+14155552671 on a yellow poster",
        "Магазин +7 (495) 123-45-67",
        "WhatsApp +55 11 91234-5678 para encomendas",
        "हमें कॉल करें +91 98765 43210",
        "联系电话 +86 138 0013 8000",
    ],
}
# Prices, dates, sizes, ISBNs, file names, coordinates, cards and item numbers; the longer ones are captions of the web.
NEITHER = [
    "$1,299.00 - $2,499.00 sofa set",
    "$574,999 - 3Br/3Ba -  for Sale in City Of Lemon Grove, Lemon Grove",
    "Rs. 1,25,000 only, was 1 000 000 - 2 000 000",
    "2019-05-12 10:30:45 sunset",
    "23 Nisan - Internationales Kinderfest Wertheim 20.05.2017 - 64",
    "12/05/2019 - 14/05/2019 festival, 1939-1945 and 1914-1918",
    "GBP_5020 20190824 0714 2019-08-24 Top of Utah 1-2 Marathon",
    "Soviet Union 1950/1950 - Projects of Moscow skyscrapers - Michel 1527-1534",
    "Gờ giảm tốc cao su 500x300x40mm (DxRxC) - Model ADTL ...",
    "monitor 1920 x 1080 and 1280 x 720, 215/65/R16 225/55/R17 tyres, 12.5 x 30.5 x 100.5 cm",
    "ISBN 978-0-399-14253-3, ISBN-10: 0399142533, ISBN 0 399 14253 3",
    "Killing Floor (Jack Reacher, No. 1) (0399142533) by Child, Lee",
    "9780554282121 - The Trail of the Tramp - كتاب",
    "Africa Writes Back the African Writers Series and the Launch of African Literature, Currey, 1847015026",
    "sf-pride-peta-animal_protection-vegetarian_community_contingent-062611_-_23.jpg",
    "IMG_20190512_103045.jpg DSC 2125550123 id 3366904106",
    "bridge at 40.7128, -74.0060, server 192.168.100.200",
    "wall stock photography | Canada, Montreal, Front door and window, row house, image id 6-460-8034",
    "EAN 4006381333931, UPC 0 12345 67890 5, card 4111 1111 1111 1111",
    "Lola Ramona Ava Pumps in pink 402 22 23580 model 28022018 002W",
    "GI Joe European Missions Full Comic Set 1-2-3-4-5-6-7-8-9-10-11-12-13-14-15 Lot",
]


def found(captions: list[str | None], **options: Any) -> list[tuple[int, int]]:
    table = pipeline.use("pii", **options)(pa.table({"caption": pa.array(captions, pa.string())}))
    return list(zip(table["emails"].to_pylist(), table["phones"].to_pylist(), strict=True))


@pytest.mark.parametrize("region", [*PHONES])
def test_numbers_are_found_in_their_regions_and_with_a_plus_anywhere(region: str) -> None:
    assert found(list(PHONES[region]), regions=[region] if region else []) == [(0, 1)] * len(PHONES[region])
    assert region == "" or found(list(PHONES[region]), regions=[]) == [(0, 0)] * len(PHONES[region])


@pytest.mark.parametrize("caption", NEITHER)
def test_what_only_looks_like_a_number_is_none_by_seven_countries_plans(caption: str) -> None:
    assert found([caption], regions=["US", "GB", "DE", "FR", "VN", "JP", "IN"]) == [(0, 0)]


def test_addresses_are_found_and_files_for_dense_screens_are_none() -> None:
    captions = ["write to jane.doe+news@mail.example.co.uk, or to müller@bücher.example", "logo@2x.png and banner@1.5x.JPG"]
    captions += ["follow @shop, costs 3 @ 5.00 each", "a@b", "12125550123@sms.example.net"]
    assert found([*captions, None, ""]) == [(2, 0), (0, 0), (0, 0), (0, 0), (1, 0), (0, 0), (0, 0)]


def test_replaced_they_leave_a_place_and_the_rest_as_it_was() -> None:
    captions = [
        "ask jane@example.org or (212) 555-0123, not +44 20 7946 0958!",
        "logo@2x.png of ISBN 0 399 14253 3",
        None,
        "a dog",
        "a cat",
    ]
    source = ["<b>ask</b> jane@example.org", captions[1], "", "a  dog", "a cat <!-- jane@example.org -->"]
    given = pa.table({"caption": pa.array(captions, pa.string()), "source_caption": pa.array(source, pa.string())})
    table = pipeline.use("pii", replace=True)(given)
    assert table["caption"].to_pylist() == ["ask <EMAIL> or <PHONE>, not <PHONE>!", *captions[1:]]
    assert table["source_caption"].to_pylist() == ["ask <EMAIL> or <PHONE>, not <PHONE>!", captions[1], "", "a  dog", "a cat"]
    assert table["emails"].to_pylist() == [1, 0, 0, 0, 0]
    assert table["phones"].to_pylist() == [2, 0, 0, 0, 0]
    assert found(["ask <EMAIL> or <PHONE>, not <PHONE>!"]) == [(0, 0)]


def test_replacing_stands_before_the_rows_are_committed() -> None:
    """After the download both captions would be columns of the run, the old one too."""

    def arranged(*order: str) -> None:
        options: dict[str, Any] = {"pii": {"replace": True}, "shards": {}}
        check_columns(arrange([entry(name, options.get(name)) for name in (*order, "shards")]))

    arranged("ingest", "captions", "pii", "dedup", "download", "images")
    with pytest.raises(UserError, match=r"stages\.pii: caption, source_caption is captions's"):
        arranged("ingest", "captions", "dedup", "download", "images", "pii")


@pytest.mark.ray
def test_a_run_that_replaces_has_no_address_in_any_output(tmp_path: Path, ray_session: Any) -> None:
    captions = [f"{caption(n)} by jane{n}@example.org, +44 20 7946 0{n:03d}" for n in range(8)] + [caption(99)]
    with Server() as server:
        for n in range(9):
            server.files[f"/{n}.jpg"] = picture(n)
        write_list(tmp_path / "lists" / "list.parquet", [server.url(f"/{n}.jpg", "host.test") for n in range(9)], captions)
        download = {**server.options(), "timeout_s": 5, "retries": 0}
        stages = {"ingest": {}, "captions": {}, "pii": {"replace": True}, "dedup": {}, "download": download, "images": {"size": 64}}
        rules = [{"name": "no_phone", "keep": "phones = 0 OR row < 6"}]
        config = write_config(tmp_path / "a.yaml", server, tmp_path / "lists", stages={**stages, "selection": rules})
        made = run(config, show=Quiet()).report
    assert (made["kept"], made["dropped"]) == (7, {"selection:no_phone": 2})
    for file in sorted((tmp_path / "runs").rglob("*.parquet")):
        texts = pq.read_table(file).select([f.name for f in pq.read_schema(file) if pa.types.is_string(f.type)])
        assert "@example" not in str(texts.to_pydict()), file
    tars = [file.read_bytes() for file in (tmp_path / "runs").rglob("*.tar")]
    assert tars
    assert b"<EMAIL>, <PHONE>" in tars[0]
    assert not [one for one in tars if b"@example" in one or b"+44" in one]


def test_a_text_made_to_cost_much_costs_little() -> None:
    began = time.monotonic()
    hostile = ["1 " * 50_000, "1" * 100_000, "212-555-012" * 9000, "(212) 555-0123 " * 6000, "a@" * 50_000, "+1" * 50_000]
    assert found([one[:100_000] for one in hostile], regions=["US", "GB"])[3][1] >= 500
    assert time.monotonic() - began < 60


def test_a_region_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="two capital letters"):
        entry("pii", {"regions": ["usa"]})
    with pytest.raises(UserError, match="no region XX"):
        entry("pii", {"regions": ["US", "XX"]}).stage.check_ready()  # type: ignore[attr-defined]
