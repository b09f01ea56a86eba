"""Makes docs/images/report.png from a finished run's page: `python docs/images/report.py runs/laion_subset` (wants the extra browser).

The page's beginning down to the end of the funnel, in a real headless Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

WIDTH, COLOURS = 1100, 64


def main(run: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto((run / "report" / "index.html").resolve().as_uri())
        bottom = page.locator("#chart-funnel").bounding_box()
        if bottom is None:
            raise SystemExit(f"{run}: the report has no funnel")
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom["y"] + bottom["height"] + 8})
        browser.close()
    image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(Path(__file__).with_name("report.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
