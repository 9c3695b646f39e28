"""Doubles of the thesis's endpoints: our own connections with the habits of its implementation.

They are for tests, to be used as `connection_type`. What they do differently was found by running
its server and client, and is in their source; see ``docs/reference/thesis-interop.md``.
"""

from __future__ import annotations

from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicFrameType

from quicferry.protocol.options import ServerMigration
from quicferry.protocol.server import Action, Do, ServerMachine, State
from quicferry.protocol.suite import MigrationProtocol
from quicferry.transport import Connection
from quicferry.transport.paths.server_side import ServerSide

INVALID_MIGRATION = 0xC
NO_MORE_CONNECTION_IDS = "No more connection ids to use for new path."
CONNECTION_IDS = 8
"""What an endpoint issues in all: the one of the handshake, and seven spare ones."""


class _IssuesOnce(Connection):
    """An endpoint that replaces no connection ID that its peer retires."""

    def _replenish_connection_ids(self) -> None:
        if self._host_cid_seq < CONNECTION_IDS:
            super()._replenish_connection_ids()


class ThesisClient(_IssuesOnce):
    """A client that replaces no retired connection IDs."""


class ThesisServer(_IssuesOnce):
    """A server that keeps its connection ID when it moves, and spends one on every PATH_CHALLENGE.

    It replaces no retired connection IDs, and completes a migration at any acknowledged
    PATH_RESPONSE, also before the network switch.
    """

    def _make_server_side(self, options: ServerMigration, family: int) -> ServerSide:
        return _ThesisServerSide(self, options, self.negotiated, family)

    def _handle_path_challenge_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_path_challenge_frame(context, frame_type, buf)
        if not self._peer_cid_available:
            raise QuicConnectionError(
                error_code=INVALID_MIGRATION,
                frame_type=QuicFrameType.TRANSPORT_CLOSE,
                reason_phrase=NO_MORE_CONNECTION_IDS,
            )
        self.change_connection_id()


class _ThesisServerSide(ServerSide):
    def __init__(
        self,
        connection: Connection,
        options: ServerMigration,
        negotiated: MigrationProtocol | None,
        family: int,
    ) -> None:
        super().__init__(connection, options, negotiated, family)
        self.machine = _ThesisServerMachine(options, negotiated, family)

    def path_response_written(self, packet_number: int) -> None:
        def acknowledged() -> None:
            self._run(self.machine.path_response_acknowledged())

        self._connection._loss.awaited[packet_number] = acknowledged

    def check_connection_ids(self, now: float) -> None:
        """Be ready without any for the new path."""
        if self.machine.state is State.PREPARING:
            self._run(self.machine.connection_ids_available(for_both=True))

    def _change_connection_ids(self) -> None:
        """Go on with the one in use."""


class _ThesisServerMachine(ServerMachine):
    def path_response_acknowledged(self) -> list[Action]:
        if self.state in (State.PREPARING, State.READY):
            self.state = State.IDLE
            self._do(Do.COMPLETE)
            return self._take_actions()
        return super().path_response_acknowledged()
