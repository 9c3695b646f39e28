"""The application that the demo serves: an echo, downloads of any size, an upload counter.

It is plain ASGI without a framework, and runs by itself too::

    quicferry serve quicferry_lab.demo.app:app --bind 127.0.0.1:4433

| request               | response                                                                 |
|-----------------------|--------------------------------------------------------------------------|
| `GET /`               | what can be asked for                                                    |
| `POST /echo`          | the body of the request, while it arrives                                |
| `GET /bytes/N?seed=S` | N pseudo-random bytes, a function of S and the offset (:mod:`.content`)  |
| `POST /upload`        | JSON: the size and SHA-256 of the body, and the totals since the start,  |
|                       | on whatever host                                                         |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs

from quicferry_lab.demo import content

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

INDEX = b"""quicferry demo server
POST /echo          returns the body of the request
GET /bytes/N?seed=S returns N pseudo-random bytes
POST /upload        returns the size and the SHA-256 of the body as JSON
"""


class _DisconnectedError(Exception):
    """The client went away before its request was complete."""


@dataclass
class _Totals:
    uploads: int = 0
    bytes: int = 0


_totals = _Totals()


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer one request (the ASGI entry point)."""
    if scope["type"] == "lifespan":
        await _lifespan(scope, receive, send)
        return
    if scope["type"] != "http":
        raise ValueError(f"this application does not speak {scope['type']}")
    method, path = scope["method"], scope["path"]
    try:
        if method == "GET" and path == "/":
            await respond(send, 200, INDEX)
        elif method == "GET" and path.startswith("/bytes/"):
            await _bytes(scope, send)
        elif method == "POST" and path == "/echo":
            await _echo(receive, send)
        elif method == "POST" and path == "/upload":
            await _upload(receive, send)
        elif path in ("/", "/echo", "/upload") or path.startswith("/bytes/"):
            await respond(send, 405, b"wrong method\n")
        else:
            await respond(send, 404, b"no such resource, see /\n")
    except (_DisconnectedError, OSError):
        pass  # the client has gone; servers raise OSError from send then (ASGI 2.4)


async def _lifespan(scope: Message, receive: Receive, send: Send) -> None:
    if "state" in scope:
        # The totals go along when the server is handed over.
        scope["state"]["quicferry.export"] = _export
        scope["state"]["quicferry.import"] = _import
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _export() -> bytes:
    return json.dumps(asdict(_totals)).encode()


async def _import(state: bytes) -> None:
    carried = json.loads(state)
    _totals.uploads, _totals.bytes = carried["uploads"], carried["bytes"]


async def _bytes(scope: Message, send: Send) -> None:
    query = parse_qs(scope["query_string"].decode("ascii", "replace"))
    try:
        size = int(scope["path"].removeprefix("/bytes/"))
        seed = int(query.get("seed", ["0"])[0])
    except ValueError:
        size = seed = -1
    if size < 0:
        await respond(send, 400, b"size and seed must be numbers, as in /bytes/1000?seed=7\n")
        return
    await _start(send, 200, b"application/octet-stream", size)
    for block in content.blocks(seed, size):
        await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body"})


async def _echo(receive: Receive, send: Send) -> None:
    await _start(send, 200, b"application/octet-stream")
    async for chunk in _body(receive):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def _upload(receive: Receive, send: Send) -> None:
    digest, size = hashlib.sha256(), 0
    async for chunk in _body(receive):
        digest.update(chunk)
        size += len(chunk)
    _totals.uploads += 1
    _totals.bytes += size
    answer = {
        "bytes": size,
        "sha256": digest.hexdigest(),
        "total_uploads": _totals.uploads,
        "total_bytes": _totals.bytes,
    }
    await respond(send, 200, json.dumps(answer).encode(), b"application/json")


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


async def respond(send: Send, status: int, data: bytes, kind: bytes = b"text/plain") -> None:
    """Send a response in one piece."""
    await _start(send, status, kind, len(data))
    await send({"type": "http.response.body", "body": data})


async def _start(send: Send, status: int, kind: bytes, size: int | None = None) -> None:
    headers = [(b"content-type", kind)]
    if size is not None:
        headers.append((b"content-length", b"%d" % size))
    await send({"type": "http.response.start", "status": status, "headers": headers})
