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

A migration that is aborted before the switch is *withdrawn* from a client that knows withdrawals:
SERVER_MIGRATION naming the address where the server is and stays. Until that is acknowledged the
client may still believe the announcement, so the next migration waits (WITHDRAWING, QUEUED). Other
clients keep what they were told, and the next migration has to use the same protocol and address
(INVALID_STATE).
"""

from __future__ import annotations

import enum

from .table import Symbol, Table


class State(Symbol):
    """Where the server is in a migration."""

    IDLE = enum.auto()
    PREPARING = enum.auto()
    READY = enum.auto()
    SWITCHED = enum.auto()
    WITHDRAWING = enum.auto()
    QUEUED = enum.auto()


class Input(Symbol):
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
    # given up, with something that the client can be told to forget or without
    ABORT = enum.auto()
    ABORT_TO_WITHDRAW = enum.auto()
    # the withdrawal has arrived, or was lost
    WITHDRAWAL_ACKNOWLEDGED = enum.auto()
    WITHDRAWAL_LOST = enum.auto()


class Do(enum.Enum):
    """What the server does on a transition."""

    ANNOUNCE = enum.auto()
    REPORT_ANNOUNCED = enum.auto()
    REPORT_READY = enum.auto()
    WITHDRAW = enum.auto()
    REPORT_WITHDRAWN = enum.auto()
    DROP_PLAN = enum.auto()
    SWITCH = enum.auto()
    SEND_MIGRATED = enum.auto()
    COMPLETE = enum.auto()
    FAIL_IN_PROGRESS = enum.auto()
    FAIL_INVALID_STATE = enum.auto()


_S, _I, _D = State, Input, Do
_IMMINENT = (_I.IMMINENT_TO_ANNOUNCE, _I.IMMINENT_IN_SILENCE)
_SWITCHES = (_I.SWITCH_SYMMETRIC, _I.SWITCH_OTHER)
_TAKE_BACK = (_D.DROP_PLAN, _D.WITHDRAW)
_ANNOUNCE_NEXT = (_D.REPORT_WITHDRAWN, _D.ANNOUNCE)
_UNTOLD = (_S.WITHDRAWING, _S.QUEUED)
_ABORTS = (_I.ABORT, _I.ABORT_TO_WITHDRAW)
_WITHDRAWAL = (_I.WITHDRAWAL_ACKNOWLEDGED, _I.WITHDRAWAL_LOST)
_ANNOUNCEMENT = (_I.ANNOUNCEMENT_ACKNOWLEDGED, _I.ANNOUNCEMENT_LOST)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        ((_S.IDLE,), (_I.IMMINENT_TO_ANNOUNCE,), _S.PREPARING, (_D.ANNOUNCE,)),
        ((_S.IDLE,), (_I.IMMINENT_IN_SILENCE,), _S.PREPARING, ()),
        # After an abort without withdrawal: the announcement may still arrive, once.
        ((_S.IDLE,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_LOST,), None, ()),
        ((_S.IDLE,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.IDLE,), (_I.RESPONSE_ACKNOWLEDGED, *_ABORTS), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.PREPARING,), (_I.PREPARED,), _S.READY, (_D.REPORT_READY,)),
        (tuple(state for state in State if state is not _S.PREPARING), (_I.PREPARED,), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_LOST,), None, (_D.ANNOUNCE,)),
        ((_S.PREPARING,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.READY,), _ANNOUNCEMENT, None, ()),
        ((_S.READY,), (_I.SWITCH_SYMMETRIC,), _S.SWITCHED, (_D.SWITCH, _D.SEND_MIGRATED)),
        ((_S.READY,), (_I.SWITCH_OTHER,), _S.SWITCHED, (_D.SWITCH,)),
        ((_S.PREPARING, _S.READY), (_I.ABORT,), _S.IDLE, ()),
        ((_S.PREPARING, _S.READY), (_I.ABORT_TO_WITHDRAW,), _S.WITHDRAWING, _TAKE_BACK),
        ((_S.PREPARING, _S.READY), (_I.RESPONSE_ACKNOWLEDGED,), None, ()),
        ((_S.SWITCHED,), (_I.RESPONSE_ACKNOWLEDGED,), _S.IDLE, (_D.COMPLETE,)),
        ((_S.SWITCHED,), _ANNOUNCEMENT, None, ()),
        ((_S.SWITCHED,), (*_SWITCHES, *_ABORTS), None, (_D.FAIL_IN_PROGRESS,)),
        ((_S.PREPARING, _S.READY, _S.SWITCHED), _IMMINENT, None, (_D.FAIL_IN_PROGRESS,)),
        # The client is told to forget
        ((_S.WITHDRAWING,), _IMMINENT, _S.QUEUED, ()),
        ((_S.WITHDRAWING,), (_I.WITHDRAWAL_ACKNOWLEDGED,), _S.IDLE, (_D.REPORT_WITHDRAWN,)),
        ((_S.WITHDRAWING,), _ABORTS, None, ()),
        ((_S.QUEUED,), _IMMINENT, None, (_D.FAIL_IN_PROGRESS,)),
        ((_S.QUEUED,), (_I.WITHDRAWAL_ACKNOWLEDGED,), _S.PREPARING, _ANNOUNCE_NEXT),
        ((_S.QUEUED,), _ABORTS, _S.WITHDRAWING, (_D.DROP_PLAN,)),
        (_UNTOLD, (_I.WITHDRAWAL_LOST,), None, (_D.WITHDRAW,)),
        (_UNTOLD, _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        (_UNTOLD, (*_ANNOUNCEMENT, _I.RESPONSE_ACKNOWLEDGED), None, ()),
        (tuple(state for state in State if state not in _UNTOLD), _WITHDRAWAL, None, ()),
    ],
)
