"""An authenticated channel for messages between two hosts: TLS on TCP, with the size in front.

A message is a length of 4 bytes in network byte order, and so many bytes. Nothing is handed on
before both ends have proved themselves; see `identity`. What is sent while the event loop is busy
goes out in few large pieces, and messages that came before the end of a channel are still received.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque

from quicferry.transport import address_from_network

from ..errors import ChannelClosed, ChannelError, ChannelProblem
from .identity import Identity
from .messages import MAX_MESSAGE_SIZE, Limits
from .session import Session

CLOSE_LIMIT = 1.0
"""Seconds that the peer has to take what is left when a channel is closed."""

_SIZE = 4
_PIECE = 1 << 18
"""Bytes that are encrypted at once."""
_MOST_SENDING = 1 << 20
_MOST_RECEIVED = 8 << 20
"""Bytes of complete messages that wait to be received until no more are read."""
_MOST_IN_A_ROW = 64
"""Messages that are received until others have their turn."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT = 10_000
"""Milliseconds until a peer that acknowledges nothing is given up (tcp(7))."""


class Channel(asyncio.Protocol):
    """Sends and receives messages; made by `connect` and `listen`.

    Args:
        session: Its TLS.
        remote: The peer's address, if it is known already.
        accepts: What may be received; None for any message.

    Attributes:
        accepts: What may be received from now on. Anything else ends the channel before it is
            stored or looked at.
        peer: What the peer's certificate calls it; its address until it has shown one.
        heard_at: When it was last heard of, on the clock of the event loop.
    """

    def __init__(self, session: Session, remote: str = "?", accepts: Limits | None = None) -> None:
        self.accepts = accepts
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._remote = remote
        self.peer = remote
        self.heard_at = self._loop.time()
        self._transport: asyncio.Transport | None = None
        self._error: ChannelClosed | None = None
        self._is_established = False
        self._established = asyncio.Event()
        self._gone = asyncio.Event()
        # What was received
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._received = 0
        self._in_a_row = 0
        self._arrived = asyncio.Event()
        self._is_reading = True
        # What is to be sent
        self._waiting: deque[memoryview] = deque()
        self._sending = 0
        self._may_write = True
        self._will_pump = False
        self._drained = asyncio.Event()

    # For its user

    @property
    def is_congested(self) -> bool:
        """Whether the peer, or the network, is slower than what is to be sent."""
        return self._sending > _MOST_SENDING or not self._may_write

    @property
    def local_host(self) -> str:
        """The IP address of this host that the peer sees, without address translation."""
        return self._host("sockname")

    @property
    def remote_host(self) -> str:
        """The IP address of the peer."""
        return self._host("peername")

    def send_soon(self, data: bytes) -> None:
        """Send a message without waiting; on a closed channel nothing happens.

        Raises:
            ChannelError: If the message is larger than `MAX_MESSAGE_SIZE`.
        """
        if len(data) > MAX_MESSAGE_SIZE:
            raise ChannelError(
                ChannelProblem.TOO_LARGE,
                f"a message takes at most {MAX_MESSAGE_SIZE} bytes, and this one {len(data)}",
            )
        if self._error is not None:
            return
        self._waiting.append(memoryview(len(data).to_bytes(_SIZE, "big")))
        self._waiting.append(memoryview(data))
        self._sending += _SIZE + len(data)
        if self._sending >= _PIECE:
            self._pump()
        elif not self._will_pump:
            self._will_pump = True
            self._loop.call_soon(self._pump)

    async def send(self, data: bytes) -> None:
        """Send a message, and wait while too much is on its way.

        Raises:
            ChannelClosed: If the channel is closed.
            ChannelError: If the message is larger than `MAX_MESSAGE_SIZE`.
        """
        self.send_soon(data)
        while self._error is None and self.is_congested:
            self._drained.clear()
            await self._drained.wait()
        if self._error is not None:
            raise self._error.again()

    async def receive(self) -> bytes:
        """Return the next message. Only one task may wait for it.

        Raises:
            ChannelClosed: If there is none any more; the text says why.
        """
        self._in_a_row += 1
        while not self._messages:
            if self._error is not None:
                raise self._error.again()
            self._arrived.clear()
            self._in_a_row = 0
            await self._arrived.wait()
        if self._in_a_row > _MOST_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        message = self._messages.popleft()
        self._received -= len(message)
        if not self._is_reading and self._received <= _MOST_RECEIVED and self._transport:
            self._is_reading = True
            self._transport.resume_reading()
        return message

    async def close(self) -> None:
        """Send what is left and close, within `CLOSE_LIMIT`; what still arrives is dropped."""
        if self._transport is not None:
            try:
                async with asyncio.timeout(CLOSE_LIMIT):
                    self._pump()
                    while self._waiting and self._error is None:
                        self._drained.clear()
                        await self._drained.wait()
                    if self._error is None:
                        self._session.close()
                        self._end(ChannelProblem.CLOSED, "it was closed here")
                    await self._gone.wait()
            except TimeoutError:
                pass
            finally:
                self.abort()

    def abort(self) -> None:
        """Close at once; what was to be sent is lost."""
        self._end(ChannelProblem.CLOSED, "it was closed here")
        if self._transport is not None:
            self._transport.abort()

    async def established(self) -> None:
        """Wait until both ends have proved themselves.

        Raises:
            ChannelError: If they do not.
        """
        await self._established.wait()
        if not self._is_established and self._error is not None:
            raise ChannelError(self._error.problem, str(self._error))

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the handshake. asyncio has set TCP_NODELAY."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._error is not None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_MOST_SENDING)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (*_KEEPALIVE, (socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if (address := address_from_network(transport.get_extra_info("peername"))) is not None:
            self._remote = self.peer = str(address)
        self._advance()

    def data_received(self, data: bytes) -> None:
        """Take what the peer has sent."""
        if self._error is None:
            self.heard_at = self._loop.time()
            self._session.feed(data)
            self._advance()

    def eof_received(self) -> None:
        """Take the end of what the peer sends; asyncio closes the connection then."""
        middle = " in the middle of a message" if self._buffer else ""
        early = "; its log may say why" if not self._is_established else ""
        self._end(ChannelProblem.CLOSED, f"it has closed the connection{middle}{early}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        reason = f": {reason_of(exc)}" if isinstance(exc, OSError) else ""
        self._end(ChannelProblem.CLOSED, f"the connection is lost{reason}")
        self._transport = None  # asyncio's cannot always be aborted after its end
        self._gone.set()

    def pause_writing(self) -> None:
        """Let what is to be sent wait."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on sending."""
        self._may_write = True
        self._pump()

    # Between the two

    def _host(self, which: str) -> str:
        address = self._transport.get_extra_info(which) if self._transport is not None else None
        if address is None:
            raise ChannelError(ChannelProblem.CLOSED, f"{self._remote}: the channel is closed")
        return str(address[0])

    def _advance(self) -> None:
        """Go on with what the peer has sent."""
        try:
            if not self._is_established:
                if not self._session.shake_hands():
                    return
                self._is_established = True
                self.peer = self._session.peer
                self._established.set()
            while data := self._session.read():
                self._buffer += data
            self._split()
            if self._session.is_over:
                self.eof_received()
        except ChannelError as exc:
            self._end(exc.problem, str(exc))
        finally:
            self._flush()

    def _split(self) -> None:
        """Take the complete messages from the buffer."""
        start, buffer = 0, self._buffer
        with memoryview(buffer) as view:
            while len(view) - start >= _SIZE:
                size = int.from_bytes(view[start : start + _SIZE], "big")
                if not self._may_follow(size, view[start + _SIZE : start + _SIZE + 1]):
                    break
                end = start + _SIZE + size
                if len(view) < end:
                    break
                self._messages.append(bytes(view[start + _SIZE : end]))
                self._received += size
                start = end
        if start:
            del buffer[:start]
            self._arrived.set()
            if self._received > _MOST_RECEIVED and self._is_reading and self._transport:
                self._is_reading = False
                self._transport.pause_reading()

    def _may_follow(self, size: int, kind: memoryview) -> bool:
        """Check what a message begins with; return False if that is not known yet.

        Raises:
            ChannelError: If it is not accepted.
        """
        most = MAX_MESSAGE_SIZE
        if self.accepts is not None:
            if size and not kind:
                return False
            number = kind[0] if size else -1
            if number not in self.accepts:
                raise ChannelError(
                    ChannelProblem.NOT_ACCEPTED,
                    f"it sends what is not accepted here or now (0x{max(number, 0):02x}); run the "
                    "same quicferry on both hosts",
                )
            most = self.accepts[number]
        if size > most:
            raise ChannelError(
                ChannelProblem.TOO_LARGE,
                f"it wants to send {size} bytes in a message, and at most {most} are accepted",
            )
        return True

    def _pump(self) -> None:
        """Send as much of what waits as the network takes."""
        self._will_pump = False
        try:
            while self._waiting and self._may_write and self._error is None:
                self._session.write(self._next_piece())
                self._flush()
        except ChannelError as exc:
            self._end(exc.problem, str(exc))
        if not self.is_congested:
            self._drained.set()

    def _next_piece(self) -> bytes:
        chunks, size = [], 0
        while self._waiting and size < _PIECE:
            chunk = self._waiting.popleft()
            if len(chunk) > _PIECE:
                self._waiting.appendleft(chunk[_PIECE:])
                chunk = chunk[:_PIECE]
            chunks.append(chunk)
            size += len(chunk)
        self._sending -= size
        return b"".join(chunks)

    def _flush(self) -> None:
        if self._transport is not None and (data := self._session.to_send()):
            self._transport.write(data)

    def _end(self, problem: ChannelProblem, text: str) -> None:
        """Send and receive nothing more.

        The peer is given the time to read why before the connection is closed: bytes that are
        still on their way here would make the kernel take back what it has not read (RFC 1122
        4.2.2.13).
        """
        if self._error is not None:
            return
        self._error = ChannelClosed(problem, f"{self._remote}: {text}")
        for event in (self._established, self._arrived, self._drained):
            event.set()
        self._waiting.clear()
        self._sending = 0
        if self._transport is not None:
            self._flush()
            if self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()
            if not self._is_reading:
                self._is_reading = True
                self._transport.resume_reading()


async def connect(
    host: str,
    port: int,
    identity: Identity,
    *,
    timeout: float,  # noqa: ASYNC109 (a caller's own could name neither host nor remedy)
    peer: str | None = None,
    accepts: Limits | None = None,
) -> Channel:
    """Connect to a listener.

    There is no waiting for its opinion of this host's certificate: if it does not accept it, the
    first `Channel.receive` says so.

    Args:
        host: A name or an IP address.
        port: Its TCP port.
        identity: What this host proves itself with.
        timeout: Seconds that all of it may take.
        peer: What its certificate has to name; None for `host`.
        accepts: What may be received; None for any message.

    Raises:
        ChannelError: If that does not succeed.
    """
    remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        channel = Channel(Session.connecting(identity, peer or host), remote, accepts)
    except ValueError:
        raise ChannelError(
            ChannelProblem.UNREACHABLE, f"{remote}: this is no host; write a name or an IP address"
        ) from None
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: channel, host, port)
            await channel.established()
    except TimeoutError:
        channel.abort()
        raise ChannelError(
            ChannelProblem.TIMEOUT,
            f"{remote}: no answer within {timeout:g} s; look whether an agent runs there, and "
            "whether a firewall is in the way",
        ) from None
    except ChannelError:
        await channel.close()
        raise
    except OSError as exc:
        raise _cannot_connect(remote, exc) from None
    except BaseException:
        channel.abort()
        raise
    return channel


def _cannot_connect(remote: str, error: OSError) -> ChannelError:
    if isinstance(error, ConnectionRefusedError):
        return ChannelError(
            ChannelProblem.REFUSED,
            f"{remote}: nobody listens there; start an agent there (`quicferry agent run`, or "
            "`agent receive` for containers), or correct the address",
        )
    return ChannelError(
        ChannelProblem.UNREACHABLE,
        f"{remote}: {reason_of(error)}; correct the address, or look at the network between the "
        "hosts",
    )


def reason_of(error: OSError) -> str:
    """Return what the operating system says, without what asyncio adds."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)
