"""Memory that is fetched after a restore: what the two ends of the transfer prove themselves with.

CRIU's page server at the source and its client at the destination speak TLS over a TCP connection
of their own, which the destination opens to the address that the source has spoken from. Both ends
have one key, which is made for one relocation and goes to the other host through the channel.
"""

from __future__ import annotations

import os
from pathlib import Path

from quicferry.server import self_signed

from .engines import PageTls

_NAME = "quicferry"


def make_page_tls(directory: Path) -> tuple[PageTls, bytes, bytes]:
    """Make what the two ends of a page transfer prove themselves with.

    Args:
        directory: Where it is written to; in memory.

    Returns:
        The files, and the certificate and the key, PEM, for the other end.
    """
    certificate, key = self_signed([_NAME])
    return write_page_tls(directory, certificate, key), certificate, key


def write_page_tls(directory: Path, certificate: bytes, key: bytes) -> PageTls:
    """Write what the two ends of a page transfer prove themselves with to a directory in memory."""
    tls = PageTls(directory / "pages.pem", directory / "pages-key.pem")
    for path, content in ((tls.certificate, certificate), (tls.key, key)):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(content)
    return tls
