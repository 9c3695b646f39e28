"""The demo's application, with as much memory beside it as is asked for.

| request          | response                                                                     |
|------------------|------------------------------------------------------------------------------|
| `POST /memory/N` | N megabytes of random bytes are kept from now on, instead of those before    |
| `GET /memory`    | the SHA-256 of them                                                          |

Everything else is answered by :mod:`quicferry_lab.demo.app`. Random bytes can neither be compressed
nor left out, so they are what they seem to be on the way to another host.
"""

from __future__ import annotations

import hashlib
import os

from quicferry_lab.demo.app import Message, Receive, Send, respond
from quicferry_lab.demo.app import app as demo

_ballast = b""


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer one request (the ASGI entry point)."""
    global _ballast
    path = scope.get("path", "")
    if scope["type"] != "http" or not path.startswith("/memory"):
        await demo(scope, receive, send)
        return
    if scope["method"] == "POST":
        _ballast = b""  # never twice as much
        _ballast = os.urandom(int(path.removeprefix("/memory/")) << 20)
    await respond(send, 200, hashlib.sha256(_ballast).hexdigest().encode())
