"""Why a download ends without a body: the closed list, from which the ledger's words and the reference page are made.

`RETRIED` says which of them may pass; the others are final at their first occurrence.
"""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    # The URL itself
    "invalid_url": "the URL is missing or cannot be read: no scheme, no host, an impossible port, characters that no host has",
    "bad_scheme": "the URL (or a redirect) is neither http nor https",
    "credentials": "the URL (or a redirect) holds a user name or a password",
    "forbidden_port": "the URL (or a redirect) names the port of another protocol (mail, ssh, …)",
    "forbidden_address": "the host is, or its name leads to, a private, loopback, link-local or otherwise non-public address",
    "optout": "the URL, its host or the content's hash is on an opt-out list",
    "hash_unknown": "expected_hash is not of the form md5:, sha1:, sha256: or sha512: with as many hex digits as that hash has",
    # Names
    "dns_nxdomain": "the host name does not exist, or it has no address",
    "dns_timeout": "the name server did not answer in time",
    "dns_error": "the name server answered with an error (SERVFAIL, REFUSED, nonsense)",
    # The connection
    "connect_refused": "the host refused the connection",
    "connect_timeout": "no connection (TCP and TLS handshake) in time",
    "connect_error": "no connection: the host or its network cannot be reached",
    "tls": "the TLS handshake failed: certificate, name or protocol",
    "reset": "the connection ended before an answer had begun",
    "timeout": "the whole request, redirects and body included, did not end in time",
    # The answer
    "protocol": "the answer is not HTTP, or its head is too large",
    "truncated": "the connection ended within the body",
    "bad_encoding": "the body is compressed in a way that was not asked for and cannot be undone safely, or its compression is broken",
    "too_large": "the body is over max_bytes, as announced, as sent, or after decompression",
    "too_small": "the body is under min_bytes",
    "empty": "the body is empty",
    "http_401": "HTTP status 401: needs a login",
    "http_403": "HTTP status 403: forbidden",
    "http_404": "HTTP status 404: not found",
    "http_410": "HTTP status 410: gone",
    "http_429": "HTTP status 429: too many requests, after the retries or after too long a Retry-After",
    "http_451": "HTTP status 451: unavailable for legal reasons",
    "http_4xx": "another HTTP status of 400 to 499",
    "http_503": "HTTP status 503: service unavailable, after the retries or after too long a Retry-After",
    "http_5xx": "another HTTP status of 500 to 599",
    "http_other": "an HTTP status that is neither success, redirect nor error (204, 206, 300, 304, …)",
    # Redirects
    "bad_redirect": "a redirect without a Location, or with one that cannot be read",
    "redirect_loop": "a redirect leads back to a URL of the same chain",
    "too_many_redirects": "more than max_redirects redirects",
    # What the site's owner says
    "robots_tag": "an X-Robots-Tag header forbids the use (disallowed_header_directives)",
    "tdm_reservation": "a tdm-reservation header reserves the rights of text and data mining",
    "robots_txt": "robots.txt forbids the path, or the site fails to say (RFC 9309: then everything is forbidden)",
    # Pages (engine yt_dlp); the detail holds yt-dlp's own text
    "blocked": "the site refuses this visitor: it takes it for a robot, wants a login, or does not serve its country (403 too)",
    "no_video_in_page": "yt-dlp finds no video in the page",
    "page_error": "yt-dlp cannot read the page, or it offers no file that is taken",
    # The bytes
    "hash_mismatch": "the bytes do not have the expected hash",
    "stored_unreadable": "the place that stored_at names cannot be read",
}

RETRIED = frozenset(
    {"dns_timeout", "dns_error", "connect_timeout", "connect_error", "reset", "timeout", "truncated", "http_429", "http_503", "http_5xx"}
)

RETRIED_STATUS = frozenset({408, 425})  # statuses of http_4xx that ask for another try (RFC 9110, RFC 8470)

_OWN_STATUS = frozenset({401, 403, 404, 410, 429, 451, 503})


def status_reason(status: int) -> str:
    """The reason for an HTTP status that gives no body."""
    if status in _OWN_STATUS:
        return f"http_{status}"
    return f"http_{status // 100}xx" if status // 100 in (4, 5) else "http_other"


class FetchError(Exception):
    """One request, or the whole download of a URL, ended without a body.

    `detail` is the true error text without ports, times or anything else that differs on a rerun; `wait_s` are the seconds
    that the server asked to be left alone; `may_pass`: another try may end otherwise (by default as RETRIED has it).
    """

    def __init__(
        self,
        reason: str,
        detail: str | None = None,
        status: int | None = None,
        wait_s: float | None = None,
        may_pass: bool | None = None,
    ) -> None:
        super().__init__(reason, detail)
        if reason not in REASONS:
            raise KeyError(reason)
        self.reason, self.detail, self.status, self.wait_s = reason, detail, status, wait_s
        self.may_pass = (reason in RETRIED or status in RETRIED_STATUS) if may_pass is None else may_pass
