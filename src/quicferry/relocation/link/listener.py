"""Listens for other hosts, and hands on the channels of those who have proved themselves.

Whoever connects may be anybody. Strangers get little time and little room, and the one that has had
it for the longest goes first, so that many of them keep nobody out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from quicferry.protocol import Address
from quicferry.transport import address_from_network

from ..errors import ChannelError, ChannelProblem
from .channel import Channel, reason_of
from .identity import Identity
from .messages import Limits
from .session import Session

logger = logging.getLogger("quicferry.relocation")

HANDSHAKE_LIMIT = 5.0
"""Seconds that somebody who connects has to prove himself."""
MOST_STRANGERS = 64
"""Those who connect and have not proved themselves; for one more, the oldest is cut off."""
MOST_CHANNELS = 64
"""Channels of one listener; for one more, the one that has been silent the longest is cut off."""

OnChannel = Callable[[Channel], Awaitable[None]]
"""Serves a channel; when it returns, the channel is closed."""


async def listen(
    host: str,
    port: int,
    identity: Identity,
    on_channel: OnChannel,
    accepts: Limits | None = None,
) -> Listener:
    """Listen for others.

    Args:
        host: The name or IP address to listen at.
        port: The TCP port; 0 for any free one.
        identity: What this host proves itself with.
        on_channel: Called with each channel, in a task of its own, which is cancelled when the
            listener is closed.
        accepts: What may be received from whoever connects; None for any message.

    Raises:
        ChannelError: If that is not possible there.
    """
    listener = Listener(identity, on_channel, accepts)
    try:
        await listener.start(host, port)
    except OSError as exc:
        raise ChannelError(
            ChannelProblem.CANNOT_LISTEN,
            f"cannot listen at {host}, TCP port {port}: {reason_of(exc)}; choose another address "
            "or port, or stop the program that uses this one",
        ) from None
    return listener


class Listener:
    """Hands on the channels of those who have proved themselves; made by `listen`.

    Args:
        identity: What this host proves itself with.
        on_channel: Called with each channel.
        accepts: What may be received from whoever connects; None for any message.
    """

    def __init__(
        self, identity: Identity, on_channel: OnChannel, accepts: Limits | None = None
    ) -> None:
        self._accepts = accepts
        self._identity = identity
        self._on_channel = on_channel
        self._server: asyncio.Server | None = None
        self._address: Address | None = None
        self._strangers: dict[Channel, asyncio.Task[None]] = {}
        self._channels: dict[Channel, asyncio.Task[None]] = {}

    async def start(self, host: str, port: int) -> None:
        """Begin.

        Raises:
            OSError: If that is not possible there.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port)
        self._address = address_from_network(self._server.sockets[0].getsockname())

    @property
    def address(self) -> Address:
        """Where it listens; the first address, if the host has several."""
        assert self._address is not None, "it was started, at an IP address"
        return self._address

    async def close(self) -> None:
        """Listen no longer, end the tasks, and close the channels."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._strangers.values(), *self._channels.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> Channel:
        channel = Channel(Session.accepting(self._identity), accepts=self._accepts)
        if len(self._strangers) >= MOST_STRANGERS:
            next(iter(self._strangers)).abort()
        self._strangers[channel] = asyncio.create_task(self._serve(channel))
        return channel

    async def _serve(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT):
                await channel.established()
        except TimeoutError:
            logger.info("%s does not prove itself within %g s", channel.peer, HANDSHAKE_LIMIT)
            channel.abort()
        except ChannelError as exc:
            known = exc.problem in (ChannelProblem.NOT_TRUSTED, ChannelProblem.NOT_TRUSTED_BY_PEER)
            logger.log(logging.WARNING if known else logging.INFO, "%s", exc)
            await channel.close()
        else:
            await self._serve_peer(channel)
        finally:
            channel.abort()
            self._strangers.pop(channel, None)

    async def _serve_peer(self, channel: Channel) -> None:
        if len(self._channels) >= MOST_CHANNELS:
            min(self._channels, key=lambda each: each.heard_at).abort()
        self._channels[channel] = self._strangers.pop(channel)
        try:
            await self._on_channel(channel)
        except ChannelError as exc:
            logger.info("%s", exc)
        except Exception:
            logger.exception("a channel to %s fails", channel.peer)
        finally:
            try:
                await channel.close()
            finally:
                del self._channels[channel]
