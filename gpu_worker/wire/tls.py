"""TLS for a front: its own certificate, the protocol it speaks, and which clients may connect."""

from __future__ import annotations

import pathlib
import ssl


def context(certificate: str, key: str, client_ca: str | None, protocol: str = "http/1.1") -> ssl.SSLContext:
    """A context of TLS 1.2 or newer that agrees on `protocol`; with `client_ca` clients must show a certificate from there.

    OSError (ssl.SSLError included) when a file cannot be used.
    """
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols([protocol])
    for path in filter(None, (certificate, key, client_ca)):
        # What the TLS library says of a file that is not there does not name it.
        pathlib.Path(path).open("rb").close()
    made.load_cert_chain(certificate, key)
    if client_ca:
        made.load_verify_locations(client_ca)
        made.verify_mode = ssl.CERT_REQUIRED
    return made
