"""Peers that lack what was added to the extension later, as the thesis's endpoints do."""

from __future__ import annotations

from quicferry.protocol import WITHDRAWAL_PARAMETER_ID
from quicferry.transport import Connection
from quicferry.transport.parameters import without


class OlderClient(Connection):
    """A client that does not know that an announcement can be withdrawn."""

    def _serialize_transport_parameters(self) -> bytes:
        parameters = super()._serialize_transport_parameters()
        self.knows_withdrawals = False
        return without(parameters, WITHDRAWAL_PARAMETER_ID)
