"""The download stage's options, and the small languages that some of them are written in."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.stage import Strict, file_digest, keyless, of_the_past
from stages.download.guard import allowed_network
from stages.download.optout import normal
from stages.download.resolver import place

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def size(value: Any) -> Any:
    """`20MB` -> 20000000: bytes from a number with a decimal (KB, MB, GB) or binary (KiB, MiB, GiB) unit."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size; write bytes, or 5KB, 20MB, 1GiB")
    return math.floor(float(found[1]) * _UNITS[found[2].upper()])


def _checked(check: Any) -> AfterValidator:
    def run(value: Any) -> Any:
        for entry in value.values() if isinstance(value, dict) else value:
            check(entry)
        return value

    return AfterValidator(run)


Size = Annotated[int, BeforeValidator(size), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})]


class PerHost(Strict):
    concurrency: int = Field(8, ge=1, le=1000)
    """Requests under way at once, in the whole run."""
    per_second: float | None = Field(10, gt=0)
    """Requests in any one second, in the whole run, a fraction rounded up (0.1: at least ten seconds apart); null: no limit of rate."""


class OptOutLists(Strict):
    entries: Annotated[list[str], _checked(normal)] = []
    """URLs, hosts (with all names under them) and hashes (sha256:HEX, md5:HEX …), told apart by their form."""
    files: list[str] = []
    """Paths or fsspec URLs of text files with one such entry a line; # begins a remark line."""
    digests: dict[str, str] = {}
    """Filled in by itself: sha256 of each file, so that a changed list is another config although its name is the same."""

    @model_validator(mode="before")
    @classmethod
    def _digests(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("files"), list):
            return data
        try:
            return {**data, "digests": {path: file_digest(path) for path in data["files"]}}
        except (OSError, ValueError, ImportError) as err:
            if of_the_past(info):
                return data
            raise ValueError(f"cannot read the opt-out list: {err}") from None


class Config(Strict):
    engine: Literal["shardmill", "img2dataset", "yt_dlp"] = "shardmill"
    """`img2dataset` fetches with that package's own code (extra [img2dataset]), behind the same guard and limits per host. `yt_dlp` takes
    URLs for pages, and fetches the video of each by yt-dlp's extractors (extra [pages]), behind the same guard; needs `to: disk`."""
    page_height: int = keyless(720, ge=1, le=10_000)
    """Of a page's files (engine yt_dlp) the best one of at most so many rows is taken, else the best. What was fetched with another value
    stays as it is."""
    to: Literal["memory", "disk"] = keyless("memory")
    """`disk`: bodies are written to files (of videos, which are never held whole) that are gone once their rows are through. They lie
    below TMPDIR; max_bytes_in_flight bounds those that are not handed on yet."""
    keep_in: str | None = keyless(None)
    """Folder on this machine, or one that all machines share, where fetched files stay (`to: disk`): what lies there is not fetched again,
    whatever segments, captions or models change. They are not counted and never removed; null: each goes when its rows are through."""
    contact: str = keyless("", max_length=200)
    """E-mail address or URL in the User-Agent, for the owners of sites. Needed wherever anything but loopback can be reached."""

    timeout_s: float = keyless(20, gt=0, le=3600)
    """Seconds for one try: name, connection, redirects and body together; waiting for the host's turn does not count."""
    connect_timeout_s: float = keyless(8, gt=0, le=600)
    """Seconds for one connection (TCP and TLS), within timeout_s."""
    dns_timeout_s: float = keyless(5, gt=0, le=60)
    """Seconds for one name, within timeout_s."""
    retries: int = keyless(2, ge=0, le=20)
    """Tries after the first one, for failures that may pass (time-outs: one at most)."""
    backoff_s: float = keyless(0.5, ge=0, le=60)
    """Seconds before the first retry; doubled each time, with a spread of half to one and a half, 30 at most."""
    retry_after_max_s: float = keyless(60, ge=0, le=3600)
    """Longest Retry-After, in seconds, that is waited for; a host that asks for more is not asked again for that row."""

    per_host: PerHost = keyless(PerHost())
    """Limits for each host name, over all workers of the run."""
    hosts: dict[str, PerHost] = keyless({})
    """Other limits for some hosts: `name` or `*.name` (it and all under it)."""
    window: int = keyless(2000, ge=1, le=20_000)
    """Requests that one worker has under way at once; URLs that wait for their host's turn do not count."""
    max_bytes_in_flight: Size = keyless(128_000_000)
    """Bytes of bodies that one worker holds at once before they are handed on; at least twice max_bytes."""

    verify_hash: bool = True
    """Drop bodies that have not the row's `expected_hash` (`hash_mismatch`); false takes any bytes, as DataComp's downloader does."""
    max_bytes: Size = Field(20_000_000, ge=1)
    """Largest body in bytes, after decompression."""
    min_bytes: Size = Field(1, ge=1)
    """Smallest body in bytes."""
    max_redirects: int = Field(5, ge=0, le=20)
    """Redirects that are followed for one URL."""

    user_agent_token: str = Field("shardmill", pattern=r"^[a-z_-]+$")
    """The name under which X-Robots-Tag and robots.txt may speak of this crawler."""
    disallowed_header_directives: list[str] = ["noai", "noimageai", "noindex", "noimageindex"]
    """X-Robots-Tag directives that forbid the use (img2dataset's four); an empty list ignores the header."""
    tdm_reservation: bool = True
    """Honour `tdm-reservation: 1` headers (W3C TDMRep)."""
    robots_txt: bool = False
    """Ask for each site's robots.txt first and honour it (RFC 9309)."""
    optout: OptOutLists = OptOutLists()
    """Lists of URLs, hosts and hashes of content that must not be used."""

    allow_networks: Annotated[list[str], _checked(allowed_network)] = keyless([])
    """Networks that may be reached although they are not public: 127.0.0.1/32, 10.1.0.0/16:8080, [::1/128]:8080."""
    resolve: Annotated[dict[str, str], _checked(place)] = keyless({})
    """Fixed places for names, as curl's --connect-to: `host`, `host:port`, `*.suffix` or `*` -> `address` or `address:port`."""
    nameservers: Annotated[list[str], _checked(place)] = keyless([])
    """Name servers as `address` or `address:port`; empty: the system's."""
    ca_file: str | None = keyless(None)
    """PEM file with certificate authorities that are trusted besides the system's."""
    storage_options: dict[str, Any] = keyless({})
    """Passed to fsspec where `stored_at` names bytes that are there already."""
    threads: int = keyless(32, ge=1, le=512)
    """Threads for `stored_at` reads, and of engine img2dataset."""

    @field_validator("contact")
    @classmethod
    def _contact(cls, value: str) -> str:
        if value and not (value.isascii() and value.isprintable() and ("@" in value or "://" in value)):
            raise ValueError("expected an e-mail address or a URL")
        return value

    @field_validator("keep_in")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("expected a folder, no address of storage")
        return str(Path(value).expanduser().absolute()) if value else None

    @model_validator(mode="after")
    def _sizes(self) -> Config:
        if self.max_bytes_in_flight < 2 * self.max_bytes:
            raise ValueError(f"max_bytes_in_flight ({self.max_bytes_in_flight}) must be at least twice max_bytes ({self.max_bytes})")
        if self.to == "disk" and self.engine == "img2dataset":
            raise ValueError("to disk needs engine shardmill: img2dataset holds bodies in memory")
        if self.to != "disk" and self.engine == "yt_dlp":
            raise ValueError("engine yt_dlp needs to: disk, as videos do")
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes ({self.min_bytes}) is over max_bytes ({self.max_bytes})")
        return self

    def check_ready(self) -> None:
        """Raises UserError where the stage cannot, or must not, begin.

        Without a contact every network of `allow_networks` must be loopback, and there must be one: the guard then refuses
        all other addresses, so that nothing leaves the machine.
        """
        loopback = [allowed_network(entry)[0].is_loopback for entry in self.allow_networks]
        if not self.contact and not (loopback and all(loopback)):
            raise UserError(
                "stages.download.contact: empty; give an e-mail address or URL that owners of sites can write to "
                "(only a run whose allow_networks are all loopback needs none)"
            )
        if self.ca_file and not Path(self.ca_file).is_file():
            raise UserError(f"stages.download.ca_file: {self.ca_file}: no such file")
