"""`engine: yt_dlp` against a real server on loopback: pages with and without a video, refusals, and what must not be reached or left."""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from pipeline.frame import apply
from stages.download import config, crawl
from stages.download.stage import Download
from tests.stages.download.conftest import QUICK, wanted
from tests.support.videos import Kind, make, steady

yt_dlp = pytest.importorskip("yt_dlp", reason="needs the extra pages: make test-all")


def page(inner: str) -> bytes:
    return f"<html><head><title>A page</title></head><body>{inner}</body></html>".encode()


class Site(BaseHTTPRequestHandler):
    film: ClassVar[bytes] = b""
    pieces: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[list[tuple[str, str]]] = []
    again: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("User-Agent", "")))
        pages = {
            "/page": '<video src="/film.mp4"></video>',
            "/plain": "words alone",
            "/inner": '<video src="http://169.254.169.254/latest.mp4"></video>',
            "/slow": '<video src="/drip.mp4"></video>',
            "/other": '<video src="http://unwanted.test/film.mp4"></video>',
            "/noai": '<video src="/film.mp4"></video>',
        }
        if self.path in pages:
            self.say(200, "text/html", page(pages[self.path]), {"X-Robots-Tag": "noai"} if self.path == "/noai" else {})
        elif self.path in ("/stream.m3u8", "/holed.m3u8"):
            second = "/1.ts" if self.path == "/stream.m3u8" else "/status/404"
            parts = "".join(f"#EXTINF:2.0,\n{at}\n" for at in ("/0.ts", second, "/2.ts"))
            listed = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n{parts}#EXT-X-ENDLIST\n"
            self.say(200, "application/vnd.apple.mpegurl", listed.encode())
        elif self.path in self.pieces:
            self.say(200, "video/mp2t", self.pieces[self.path])
        elif self.path == "/film.mp4":
            self.say(200, "video/mp4", self.film)
        elif self.path == "/drip.mp4":
            self.drip()
        elif self.path == "/away":
            self.say(302, "text/html", b"", {"Location": "http://10.0.0.1/film.mp4"})
        elif self.path == "/busy":
            self.again[self.path] = self.again.get(self.path, 0) + 1
            first = self.again[self.path] == 1
            self.say(429 if first else 200, "text/html", page(pages["/page"]), {"Retry-After": "0"} if first else {})
        elif self.path.startswith("/status/"):
            self.say(int(self.path.rpartition("/")[2]), "text/html", b"no")

    def say(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A byte now and then, so that no single read is late."""
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", "10000000")
        self.end_headers()
        try:
            for _ in range(600):
                self.wfile.write(self.film[:10])
                time.sleep(0.1)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    film = make(tmp_path_factory.mktemp("film") / "film.mp4", Kind(steady(2, 10)), (64, 64))
    Site.film = film.read_bytes()
    for n in range(3):
        piece = make(film.with_name(f"{n}.ts"), Kind(steady(2, 10), "ts", shift_ms=2000 * n), (64, 64))
        Site.pieces[f"/{n}.ts"] = piece.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(autouse=True)
def bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where videos lie; every test has to leave it empty, of finished ones and of those that failed on the way."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def visit(port: int, paths: list[str], **options: Any) -> list[dict[str, Any]]:
    """The rows of some pages, each with `content` where its video is there."""
    given = {
        **QUICK,
        "resolve": {"*.test": f"127.0.0.1:{port}"},
        "allow_networks": [f"127.0.0.1/32:{port}"],
        "engine": "yt_dlp",
        "to": "disk",
    }
    stage = Download(Download.Config.model_validate({**given, "timeout_s": 60, "retries": 0, **options}))
    try:
        table = apply(stage, wanted([f"http://pages.test{path}" for path in paths]))
        rows: list[dict[str, Any]] = table.to_pylist()
        for row in rows:
            row["content"] = Path(row["video"]).read_bytes() if row["video"] else None
        assert [path for path in Path(tempfile.gettempdir()).rglob("page-*") if path.is_dir()] == []
        stage.release(table)
        return rows
    finally:
        stage.close()


def test_the_video_of_a_page_and_a_video_itself(site: int) -> None:
    rows = visit(site, ["/page", "/film.mp4"])
    assert [row["fate"] for row in rows] == ["kept", "kept"]
    assert [row["content"] for row in rows] == [Site.film] * 2
    assert rows[0]["final_url"] == "http://pages.test/page"
    assert (rows[0]["http_status"], rows[0]["content_type"], rows[0]["fetched_bytes"]) == (200, "video/mp4", len(Site.film))
    assert {agent.split("/")[0] for _, agent in Site.seen} == {"shardmill"}


def test_each_refusal_has_its_reason_and_the_true_text(site: int) -> None:
    rows = visit(site, ["/plain", "/status/403", "/status/404", "/status/503", "/noai"])
    reasons = ["no_video_in_page", "blocked", "http_404", "http_503", "robots_tag"]
    assert [row["fate"] for row in rows] == [f"download:{reason}" for reason in reasons]
    assert rows[0]["detail"] == "Unsupported URL: http://pages.test/plain"
    assert "HTTP Error 403: Forbidden" in rows[1]["detail"]
    assert not any(str(site) in row["detail"] for row in rows)
    assert rows[4]["detail"] == "X-Robots-Tag: noai"


def test_a_stream_of_pieces_is_one_file_or_none(site: int) -> None:
    """With a hole in it, the frame before would be shown in the place of what is lacking."""
    import av

    whole, holed = visit(site, ["/stream.m3u8", "/holed.m3u8"])
    assert (whole["fate"], holed["fate"]) == ("kept", "download:page_error")
    with av.open(io.BytesIO(whole["content"])) as container:
        assert len(list(container.decode(video=0))) == 60


def test_a_busy_site_is_asked_again(site: int) -> None:
    (row,) = visit(site, ["/busy"], retries=1)
    assert (row["fate"], Site.again["/busy"]) == ("kept", 2)


def test_nothing_but_the_web_is_reached(site: int) -> None:
    rows = visit(site, ["/inner", "/away"])
    assert [row["fate"] for row in rows] == ["download:forbidden_address"] * 2
    rows = visit(site, ["/other"], optout={"entries": ["unwanted.test"]})
    assert [row["fate"] for row in rows] == ["download:optout"]
    rows = visit(site, ["/page"], optout={"entries": [f"sha256:{_digest()}"]})
    assert [row["fate"] for row in rows] == ["download:optout"]


def _digest() -> str:
    import hashlib

    return hashlib.sha256(Site.film).hexdigest()


def test_a_site_that_drips_ends_at_the_deadline(site: int) -> None:
    began = time.monotonic()
    (row,) = visit(site, ["/slow"], timeout_s=3)
    assert row["fate"] == "download:timeout"
    assert time.monotonic() - began < 15


def test_a_video_over_max_bytes_is_not_fetched_whole(site: int) -> None:
    rows = visit(site, ["/page", "/slow"], max_bytes=2000)
    assert [row["fate"] for row in rows] == ["download:too_large"] * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[youtube] abc: Sign in to confirm you’re not a bot. Use --cookies-from-browser", "blocked"),
        ("[vimeo] 1: This video is private video", "blocked"),
        ("[x] 1: The uploader has not made this video available in your country", "blocked"),
        ("[generic] Got HTTP Error 403 caused by Cloudflare anti-bot challenge; try again", "blocked"),
        ("[youtube] abc: Video unavailable", "page_error"),
        ("[x] 1: Requested format is not available. Use --list-formats for a list of available formats", "page_error"),
    ],
)
def test_what_sites_say_of_refusals(text: str, reason: str) -> None:
    from stages.download.engine_ytdlp import _Visit

    around = crawl.Surroundings(config.Config(engine="yt_dlp", to="disk"), None, None, None, None)  # type: ignore[arg-type]
    try:
        raise yt_dlp.utils.ExtractorError(text.partition("] ")[2], expected=True)
    except yt_dlp.utils.ExtractorError as err:
        held = yt_dlp.utils.DownloadError(f"ERROR: {text}", (type(err), err, None))
    found = _Visit(around).reason_of(held)
    assert (found.reason, found.detail) == (reason, text)


def test_geo_restriction_is_a_block() -> None:
    from stages.download.engine_ytdlp import _Visit

    around = crawl.Surroundings(config.Config(engine="yt_dlp", to="disk"), None, None, None, None)  # type: ignore[arg-type]
    inner = yt_dlp.utils.GeoRestrictedError("Not here", countries=["DE"])
    assert _Visit(around).reason_of(yt_dlp.utils.DownloadError("ERROR: Not here", (type(inner), inner, None))).reason == "blocked"


def test_videos_are_never_held_in_memory() -> None:
    with pytest.raises(ValidationError, match="needs to: disk"):
        config.Config(engine="yt_dlp")
