"""Certificates for the sample's HTTPS hosts, made anew at every start: sound ones, and those that a client has to refuse.

What a host shows stands in its name: the label before `secure.example`. The sound ones come from an authority that the run is
told to trust (`download.ca_file`).
"""

from __future__ import annotations

import datetime
import ssl

UNTRUSTED = "untrusted"  # from an authority that nobody knows
EXPIRED = "expired"
OTHER_NAME = "othername"  # a certificate for another host


class Certificates:
    """`context` serves TLS; `authority` is the trusted authority's certificate as PEM."""

    def __init__(self) -> None:
        import trustme

        trusted = trustme.CA()
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
        long_past = past - datetime.timedelta(days=90)
        self.authority: bytes = trusted.cert_pem.bytes()
        self.context = _context(trusted.issue_cert("*.secure.example"))
        self._others = {
            UNTRUSTED: _context(trustme.CA().issue_cert(f"*.{UNTRUSTED}.secure.example")),
            EXPIRED: _context(trusted.issue_cert(f"*.{EXPIRED}.secure.example", not_before=long_past, not_after=past)),
            OTHER_NAME: _context(trusted.issue_cert("www.somewhere-else.example")),
        }
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        label = (name or "").removesuffix(".secure.example").rpartition(".")[2]
        if label in self._others:
            connection.context = self._others[label]


def _context(certificate: object) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)  # type: ignore[attr-defined]
    return context
