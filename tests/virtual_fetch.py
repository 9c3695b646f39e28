"""`quicferry fetch` with an application in the same process, without sockets and in no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from in_memory import connected
from virtual_time import VirtualPolicy

import quicferry
from quicferry import HttpClient
from quicferry.cli import main


def fetch_virtually(monkeypatch: pytest.MonkeyPatch, app: Any, *arguments: str) -> int:
    """Run the command, and return its exit status.

    The addresses in its arguments all lead to the application.
    """

    @asynccontextmanager
    async def connect(*_: object, **options: Any) -> AsyncIterator[HttpClient]:
        async with connected(app, options["create_protocol"]) as this:
            yield this.client

    before = asyncio.get_event_loop_policy()
    with monkeypatch.context() as patch:
        patch.setattr(quicferry, "connect", connect)
        asyncio.set_event_loop_policy(VirtualPolicy())
        try:
            main(["fetch", *arguments])
        except SystemExit as exc:
            return int(exc.code or 0)
        finally:
            asyncio.set_event_loop_policy(before)
    raise AssertionError("a command exits")
