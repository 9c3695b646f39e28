"""The server's side of a migration, as a state machine: its rules and its table.

Theory of operation
-------------------
A migration has three moments: *imminent* (the server will be moved), *network switch* (it has been
moved), and the completion, when the client has validated the new path. Between the first two the
connection prepares:

- **Explicit** and **Synchronized Symmetric** tell the client by SERVER_MIGRATION, and are ready
  when that is acknowledged.
- **Pool of Addresses** has told the client everything right after the handshake, and
  **Symmetric** has nothing to tell: both are ready at once.

(Either way both sides need a connection ID for the new address, RFC 9000 9.5. They have one from
the first round trip after the handshake on.)

After the switch the symmetric protocols make themselves heard from the new address; the others
wait for the client to come. The server is complete when its PATH_RESPONSE is acknowledged.

There is no frame that takes an announcement back. A migration that is aborted leaves the client
with what it was told, so the next one has to use the same protocol and address (INVALID_STATE).
"""

from __future__ import annotations

import enum

from .table import Table


class State(enum.Enum):
    """Where the server is in a migration."""

    IDLE = enum.auto()
    PREPARING = enum.auto()
    READY = enum.auto()
    SWITCHED = enum.auto()


class Input(enum.Enum):
    """What can happen to the server, as it is classified."""

    # imminent migration, with something to tell the client or without
    IMMINENT_TO_ANNOUNCE = enum.auto()
    IMMINENT_IN_SILENCE = enum.auto()
    # the client knows what it has to know, and there are connection IDs for a new path
    PREPARED = enum.auto()
    # SERVER_MIGRATION has arrived, or was lost
    ANNOUNCEMENT_ACKNOWLEDGED = enum.auto()
    ANNOUNCEMENT_LOST = enum.auto()
    # network switch, of a protocol whose client waits to hear from us, or of another
    SWITCH_SYMMETRIC = enum.auto()
    SWITCH_OTHER = enum.auto()
    # PATH_RESPONSE has arrived at the client
    RESPONSE_ACKNOWLEDGED = enum.auto()
    ABORT = enum.auto()


class Do(enum.Enum):
    """What the server does on a transition."""

    ANNOUNCE = enum.auto()
    REPORT_ANNOUNCED = enum.auto()
    REPORT_READY = enum.auto()
    SWITCH = enum.auto()
    SEND_MIGRATED = enum.auto()
    COMPLETE = enum.auto()
    FAIL_IN_PROGRESS = enum.auto()
    FAIL_INVALID_STATE = enum.auto()


_S, _I, _D = State, Input, Do
_IMMINENT = (_I.IMMINENT_TO_ANNOUNCE, _I.IMMINENT_IN_SILENCE)
_SWITCHES = (_I.SWITCH_SYMMETRIC, _I.SWITCH_OTHER)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        ((_S.IDLE,), (_I.IMMINENT_TO_ANNOUNCE,), _S.PREPARING, (_D.ANNOUNCE,)),
        ((_S.IDLE,), (_I.IMMINENT_IN_SILENCE,), _S.PREPARING, ()),
        # After an abort: the announcement may still arrive, but is not sent again.
        ((_S.IDLE,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_LOST,), None, ()),
        ((_S.IDLE,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.IDLE,), (_I.RESPONSE_ACKNOWLEDGED, _I.ABORT), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.PREPARING,), (_I.PREPARED,), _S.READY, (_D.REPORT_READY,)),
        ((_S.IDLE, _S.READY, _S.SWITCHED), (_I.PREPARED,), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_LOST,), None, (_D.ANNOUNCE,)),
        ((_S.PREPARING,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.READY,), (_I.ANNOUNCEMENT_ACKNOWLEDGED, _I.ANNOUNCEMENT_LOST), None, ()),
        ((_S.READY,), (_I.SWITCH_SYMMETRIC,), _S.SWITCHED, (_D.SWITCH, _D.SEND_MIGRATED)),
        ((_S.READY,), (_I.SWITCH_OTHER,), _S.SWITCHED, (_D.SWITCH,)),
        ((_S.PREPARING, _S.READY), (_I.ABORT,), _S.IDLE, ()),
        ((_S.PREPARING, _S.READY), (_I.RESPONSE_ACKNOWLEDGED,), None, ()),
        ((_S.SWITCHED,), (_I.RESPONSE_ACKNOWLEDGED,), _S.IDLE, (_D.COMPLETE,)),
        ((_S.SWITCHED,), (_I.ANNOUNCEMENT_ACKNOWLEDGED, _I.ANNOUNCEMENT_LOST), None, ()),
        ((_S.SWITCHED,), (*_SWITCHES, _I.ABORT), None, (_D.FAIL_IN_PROGRESS,)),
        ((_S.PREPARING, _S.READY, _S.SWITCHED), _IMMINENT, None, (_D.FAIL_IN_PROGRESS,)),
    ],
)
