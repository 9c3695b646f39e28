"""What can go wrong while an image is made."""

from __future__ import annotations

from quicferry.protocol import QuicferryError


class ImageError(QuicferryError):
    """An image cannot be made; the text says why, and what to do. Nothing is left of it."""
