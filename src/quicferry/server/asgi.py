"""A server's connection whose requests an ASGI application answers, and its hand-over."""

from __future__ import annotations

import asyncio

from aioquic.asyncio.protocol import QuicStreamHandler
from aioquic.h3.connection import H3_ALPN, ErrorCode
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from quicferry.io import ConnectionLost, ConnectionProtocol
from quicferry.transport import Connection, unread_events

from .application import Application
from .bridge import AsgiBridge
from .draining import Admission, RunningRequest


class AsgiProtocol(ConnectionProtocol):
    """A server's connection whose requests are answered by an ASGI application.

    To hand it over, let new requests wait (`admit_requests`) until none is running (`wait_idle`) or
    those that are have been given up (`reject_requests`). Put the events of those that wait back
    into the connection (`withheld_events`), freeze it, and carry its snapshot and `export_state`
    along. If nothing comes of it, admit all requests again.
    """

    no_error = ErrorCode.H3_NO_ERROR

    def __init__(
        self,
        quic: Connection,
        stream_handler: QuicStreamHandler | None = None,
        *,
        application: Application,
    ) -> None:
        super().__init__(quic, stream_handler)
        self._application = application
        self._bridge: AsgiBridge | None = None
        self._admission = Admission.ALL

    # For a hand-over

    def admit_requests(self, admission: Admission) -> None:
        """Serve only such new requests from now on; those that run go on.

        What has waited is served if all are admitted again, as if nothing had been.
        """
        self._admission = admission
        if self._bridge is not None:
            self._bridge.admit(admission)
            if admission is Admission.ALL:
                unread_events(self.connection, self.withheld_events())
                self.settle_soon()

    def withheld_events(self) -> list[QuicEvent]:
        """Return the events of the requests that wait, each request in order, and forget them."""
        return [] if self._bridge is None else self._bridge.gate.take()

    def running_requests(self) -> list[RunningRequest]:
        """Return the requests that the application is working on."""
        return [] if self._bridge is None else self._bridge.running_requests()

    async def wait_running(self) -> None:
        """Wait until the application is done with the requests that it is working on now."""
        if self._bridge is not None:
            await self._bridge.wait_running()

    async def wait_idle(self) -> None:
        """Wait until the application is working on no request of this connection."""
        if self._bridge is not None:
            await self._bridge.idle.wait()

    def reject_requests(self) -> None:
        """Give up all requests that the application is working on; it is told as of a disconnect.

        They are reset in both directions: with H3_REQUEST_REJECTED where the client may simply
        send them again, otherwise with H3_REQUEST_CANCELLED.
        """
        if self._bridge is not None:
            self._bridge.reject_requests()

    def export_state(self) -> bytes:
        """Return what HTTP/3 knows of the connection; nothing changes.

        Raises:
            SnapshotError: If requests are running or withheld.
        """
        return b"" if self._bridge is None else self._bridge.export()

    def import_state(self, data: bytes) -> None:
        """Go on from what `export_state` returned.

        Raises:
            SnapshotError: If it is damaged, or not that of this connection.
        """
        if data:
            self._bridge = AsgiBridge(self, self._application, data)

    async def wind_down(self) -> None:
        """Take no new requests, and wait until those that run have ended, or the client is gone."""
        if self._bridge is None or self.closed_by is not None:
            return
        self.admit_requests(Admission.ALL)
        self._bridge.go_away()
        ends = [self._bridge.wait_delivered(), self.wait_lost()]
        tasks = [asyncio.ensure_future(each) for each in ends]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # From the connection

    def quic_event_received(self, event: QuicEvent) -> None:
        """Hand on an event to HTTP/3."""
        if self._bridge is not None:
            self._bridge.quic_event_received(event)
        elif isinstance(event, ProtocolNegotiated) and event.alpn_protocol in H3_ALPN:
            self._bridge = AsgiBridge(self, self._application)
            self._bridge.admit(self._admission)

    def connection_lost_by(self, lost: ConnectionLost) -> None:
        """Tell the application that its client is gone."""
        if self._bridge is not None:
            self._bridge.disconnected()

    def transmit(self) -> None:
        """Send, and let go on what waited for that."""
        super().transmit()
        if self._bridge is not None:
            self._bridge.transmitted()
