"""The client's side of a migration, as a state machine: its rules and its table.

Theory of operation
-------------------
The client regards one address as its server's: the *home* address. Each input is first classified
by what the client knows (what was negotiated, announced or sent as a pool; where a packet comes
from), and the table below then says what happens. `quicferry.protocol.client` does both; nothing
looks at a clock or a socket there either.

- **Explicit.** SERVER_MIGRATION(address) makes that address the *candidate*. A reactive or
  proactive client waits (ANNOUNCED) and, at a probe timeout or when asked, turns everything it
  sends to the candidate (PROBING). An eager client stays where it is and asks the candidate with
  PATH_CHALLENGE frames (CHALLENGING).
- **Pool of Addresses.** At a probe timeout the client turns everything to the next address of a
  schedule (POOL_PROBING), or asks all of the pool at once (POOL_CHALLENGING).
- **Symmetric.** A packet from an address never heard of moves the connection.
- **Synchronized Symmetric.** The same, announced (AWAITING).

A probe is only a guess. The first highest-numbered non-probing packet decides: one from home means
that the timeout was mere loss, and everything is rolled back; one from a candidate moves the
connection there (VALIDATING_...), where the path is validated before the move is final. An answer
to a PATH_CHALLENGE from the address that was asked is both at once: the move is done. Until
then home stays known, and a newer packet from home, or a failed validation, brings the connection
back: an attacker who copies a packet to the client from another address gains nothing (RFC 9000
9.3.2).

SERVER_MIGRATION that names home is a *withdrawal*: the server stays. What it had announced is
forgotten. Where nothing is known to be announced it has overtaken the announcement, or come twice,
and there is nothing to do. While a move is being validated the packets decide, as always; if they
bring the client home, the withdrawal is taken up then.
"""

from __future__ import annotations

import enum

from .suite import MigrationProtocol
from .table import Symbol, Table


class State(Symbol):
    """Where the client is in a migration."""

    IDLE = enum.auto()
    ANNOUNCED = enum.auto()
    CHALLENGING = enum.auto()
    PROBING = enum.auto()
    POOL_PROBING = enum.auto()
    POOL_CHALLENGING = enum.auto()
    AWAITING = enum.auto()
    VALIDATING_EXPLICIT = enum.auto()
    VALIDATING_POOL = enum.auto()
    VALIDATING_SYMMETRIC = enum.auto()
    VALIDATING_SYNCHRONIZED = enum.auto()


class Input(Symbol):
    """What can happen to the client, as it is classified."""

    # SERVER_MIGRATION(address): another address than home and than announced before
    ANNOUNCEMENT = enum.auto()
    ANNOUNCEMENT_TO_EAGER = enum.auto()
    ANNOUNCEMENT_REPEATED = enum.auto()
    # SERVER_MIGRATION(home), to a client that has said that it knows withdrawals, and to another
    WITHDRAWAL = enum.auto()
    ANNOUNCEMENT_OF_HOME = enum.auto()
    # SERVER_MIGRATION(all zero)
    SWITCH_ANNOUNCED = enum.auto()
    # POOL_MIGRATION_ADDRESS not known yet; late: this connection has migrated before
    POOL_ADDRESS = enum.auto()
    POOL_ADDRESS_LATE = enum.auto()
    # SERVER_MIGRATED from another address than the one in use; symmetric: Symmetric may be used
    MIGRATED = enum.auto()
    MIGRATED_SYMMETRIC = enum.auto()
    # the highest-numbered packet so far, and not a probing one
    PACKET_FROM_HOME = enum.auto()
    PACKET_FROM_CANDIDATE = enum.auto()
    PACKET_FROM_ELSEWHERE = enum.auto()
    PACKET_FROM_ELSEWHERE_SYMMETRIC = enum.auto()
    # a probe timeout, or the application's wish to look for the server now
    TIMEOUT = enum.auto()
    TIMEOUT_WITH_POOL = enum.auto()
    TIMEOUT_WITH_PARALLEL_POOL = enum.auto()
    # the next probe is due, or there have been enough
    PROBE_DUE = enum.auto()
    PROBES_EXHAUSTED = enum.auto()
    # PATH_RESPONSE for the address that the server was heard from; none in time
    VALIDATED = enum.auto()
    VALIDATION_FAILED = enum.auto()


class Do(enum.Enum):
    """What the client does on a transition."""

    REMEMBER = enum.auto()
    ADD_TO_POOL = enum.auto()
    ANNOUNCE_SWITCH = enum.auto()
    FORGET = enum.auto()
    KEEP_IN_MIND = enum.auto()
    CHALLENGE = enum.auto()
    REDIRECT = enum.auto()
    CHALLENGE_POOL = enum.auto()
    REDIRECT_TO_NEXT = enum.auto()
    STOP_PROBING = enum.auto()
    RETURN_HOME = enum.auto()
    MOVE = enum.auto()
    COMMIT = enum.auto()
    VIOLATION = enum.auto()


_S, _I, _D = State, Input, Do
_EXPLICIT = (_S.ANNOUNCED, _S.CHALLENGING, _S.PROBING)
_POOL = (_S.POOL_PROBING, _S.POOL_CHALLENGING)
VALIDATING = (
    _S.VALIDATING_EXPLICIT,
    _S.VALIDATING_POOL,
    _S.VALIDATING_SYMMETRIC,
    _S.VALIDATING_SYNCHRONIZED,
)
"""The states in which the server has been seen at a new address, which is not proven yet."""
_ANNOUNCED_MOVE = (_S.VALIDATING_EXPLICIT, _S.VALIDATING_SYNCHRONIZED)
_NOTHING_ANNOUNCED = (_S.IDLE, *_POOL, _S.VALIDATING_POOL, _S.VALIDATING_SYMMETRIC)
_ANNOUNCEMENTS = (_I.ANNOUNCEMENT, _I.ANNOUNCEMENT_TO_EAGER, _I.ANNOUNCEMENT_OF_HOME)
_MIGRATED = (_I.MIGRATED, _I.MIGRATED_SYMMETRIC)
_ELSEWHERE = (_I.PACKET_FROM_ELSEWHERE, _I.PACKET_FROM_ELSEWHERE_SYMMETRIC)
_TIMEOUTS = (_I.TIMEOUT, _I.TIMEOUT_WITH_POOL, _I.TIMEOUT_WITH_PARALLEL_POOL)
_PROBES = (_I.PROBE_DUE, _I.PROBES_EXHAUSTED)
_HOME, _CANDIDATE = (_I.PACKET_FROM_HOME,), (_I.PACKET_FROM_CANDIDATE,)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        # states                inputs                              next state          actions
        ((_S.IDLE,), (_I.ANNOUNCEMENT,), _S.ANNOUNCED, (_D.REMEMBER,)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_TO_EAGER,), _S.CHALLENGING, (_D.REMEMBER, _D.CHALLENGE)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_OF_HOME,), None, (_D.VIOLATION,)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_REPEATED,), None, ()),
        ((_S.IDLE,), (_I.SWITCH_ANNOUNCED,), _S.AWAITING, (_D.ANNOUNCE_SWITCH,)),
        ((_S.IDLE,), (_I.POOL_ADDRESS,), None, (_D.ADD_TO_POOL,)),
        ((_S.IDLE,), (_I.MIGRATED,), None, (_D.VIOLATION,)),
        ((_S.IDLE,), (_I.MIGRATED_SYMMETRIC,), _S.VALIDATING_SYMMETRIC, (_D.MOVE,)),
        ((_S.IDLE,), _HOME, None, ()),
        ((_S.IDLE,), _CANDIDATE, _S.VALIDATING_POOL, (_D.MOVE,)),
        ((_S.IDLE,), (_I.PACKET_FROM_ELSEWHERE,), None, ()),
        ((_S.IDLE,), (_I.PACKET_FROM_ELSEWHERE_SYMMETRIC,), _S.VALIDATING_SYMMETRIC, (_D.MOVE,)),
        ((_S.IDLE,), (_I.TIMEOUT,), None, ()),
        ((_S.IDLE,), (_I.TIMEOUT_WITH_POOL,), _S.POOL_PROBING, (_D.REDIRECT_TO_NEXT,)),
        ((_S.IDLE,), (_I.TIMEOUT_WITH_PARALLEL_POOL,), _S.POOL_CHALLENGING, (_D.CHALLENGE_POOL,)),
        ((_S.IDLE,), _PROBES, None, ()),
        # Explicit
        (_EXPLICIT, (*_ANNOUNCEMENTS, _I.SWITCH_ANNOUNCED, *_MIGRATED), None, (_D.VIOLATION,)),
        (_EXPLICIT, (_I.POOL_ADDRESS,), None, (_D.VIOLATION,)),
        (_EXPLICIT, (_I.ANNOUNCEMENT_REPEATED, *_ELSEWHERE), None, ()),
        (_EXPLICIT, _CANDIDATE, _S.VALIDATING_EXPLICIT, (_D.MOVE,)),
        ((_S.ANNOUNCED,), _TIMEOUTS, _S.PROBING, (_D.REDIRECT,)),
        ((_S.ANNOUNCED,), (*_HOME, *_PROBES), None, ()),
        ((_S.CHALLENGING,), (*_TIMEOUTS, _I.PROBE_DUE), None, (_D.CHALLENGE,)),
        ((_S.CHALLENGING,), _HOME, None, ()),
        ((_S.CHALLENGING,), (_I.PROBES_EXHAUSTED,), _S.ANNOUNCED, (_D.STOP_PROBING,)),
        ((_S.PROBING,), _TIMEOUTS, None, ()),
        ((_S.PROBING,), _PROBES, None, (_D.REDIRECT,)),
        ((_S.PROBING,), _HOME, _S.ANNOUNCED, (_D.RETURN_HOME,)),
        # Pool of Addresses
        (_POOL, (*_ANNOUNCEMENTS, _I.SWITCH_ANNOUNCED, *_MIGRATED), None, (_D.VIOLATION,)),
        (_POOL, (_I.POOL_ADDRESS,), None, (_D.ADD_TO_POOL,)),
        (_POOL, (_I.ANNOUNCEMENT_REPEATED, *_ELSEWHERE), None, ()),
        (_POOL, _HOME, _S.IDLE, (_D.RETURN_HOME,)),
        (_POOL, _CANDIDATE, _S.VALIDATING_POOL, (_D.MOVE,)),
        ((_S.POOL_PROBING,), _TIMEOUTS, None, ()),
        ((_S.POOL_PROBING,), _PROBES, None, (_D.REDIRECT_TO_NEXT,)),
        ((_S.POOL_CHALLENGING,), (*_TIMEOUTS, _I.PROBE_DUE), None, (_D.CHALLENGE_POOL,)),
        ((_S.POOL_CHALLENGING,), (_I.PROBES_EXHAUSTED,), _S.IDLE, (_D.STOP_PROBING,)),
        # Synchronized Symmetric
        ((_S.AWAITING,), (*_ANNOUNCEMENTS, _I.POOL_ADDRESS), None, (_D.VIOLATION,)),
        ((_S.AWAITING,), (_I.ANNOUNCEMENT_REPEATED, _I.SWITCH_ANNOUNCED), None, ()),
        ((_S.AWAITING,), (*_MIGRATED, *_ELSEWHERE), _S.VALIDATING_SYNCHRONIZED, (_D.MOVE,)),
        ((_S.AWAITING,), (*_HOME, *_CANDIDATE, *_TIMEOUTS, *_PROBES), None, ()),
        # The server has been seen at a new address
        (VALIDATING, (_I.VALIDATED,), _S.IDLE, (_D.COMMIT,)),
        (VALIDATING, (*_ANNOUNCEMENTS, _I.POOL_ADDRESS), None, (_D.VIOLATION,)),
        (VALIDATING, (*_TIMEOUTS, *_PROBES), None, ()),
        (VALIDATING, (_I.ANNOUNCEMENT_REPEATED,), None, ()),
        ((_S.VALIDATING_EXPLICIT,), _HOME, _S.ANNOUNCED, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_EXPLICIT,), (_I.VALIDATION_FAILED,), _S.ANNOUNCED, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_EXPLICIT,), (*_CANDIDATE, *_ELSEWHERE), None, ()),
        ((_S.VALIDATING_EXPLICIT,), (_I.SWITCH_ANNOUNCED, *_MIGRATED), None, (_D.VIOLATION,)),
        ((_S.VALIDATING_POOL,), _HOME, _S.IDLE, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_POOL,), (_I.VALIDATION_FAILED,), _S.IDLE, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_POOL,), _CANDIDATE, None, (_D.MOVE,)),
        ((_S.VALIDATING_POOL,), _ELSEWHERE, None, ()),
        ((_S.VALIDATING_POOL,), (_I.SWITCH_ANNOUNCED, *_MIGRATED), None, (_D.VIOLATION,)),
        ((_S.VALIDATING_SYMMETRIC,), _HOME, _S.IDLE, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_SYMMETRIC,), (_I.VALIDATION_FAILED,), _S.IDLE, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_SYMMETRIC,), (*_ELSEWHERE, *_MIGRATED), None, (_D.MOVE,)),
        ((_S.VALIDATING_SYMMETRIC,), _CANDIDATE, None, ()),
        ((_S.VALIDATING_SYMMETRIC,), (_I.SWITCH_ANNOUNCED,), None, (_D.VIOLATION,)),
        ((_S.VALIDATING_SYNCHRONIZED,), _HOME, _S.AWAITING, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_SYNCHRONIZED,), (_I.VALIDATION_FAILED,), _S.AWAITING, (_D.RETURN_HOME,)),
        ((_S.VALIDATING_SYNCHRONIZED,), (*_ELSEWHERE, *_MIGRATED), None, (_D.MOVE,)),
        ((_S.VALIDATING_SYNCHRONIZED,), (*_CANDIDATE, _I.SWITCH_ANNOUNCED), None, ()),
        # The server stays
        ((_S.ANNOUNCED, _S.AWAITING), (_I.WITHDRAWAL,), _S.IDLE, (_D.FORGET,)),
        ((_S.CHALLENGING,), (_I.WITHDRAWAL,), _S.IDLE, (_D.STOP_PROBING, _D.FORGET)),
        ((_S.PROBING,), (_I.WITHDRAWAL,), _S.IDLE, (_D.RETURN_HOME, _D.FORGET)),
        (_ANNOUNCED_MOVE, (_I.WITHDRAWAL,), None, (_D.KEEP_IN_MIND,)),
        (_NOTHING_ANNOUNCED, (_I.WITHDRAWAL,), None, ()),
        # Everywhere
        (tuple(State), (_I.POOL_ADDRESS_LATE,), None, (_D.VIOLATION,)),
        (
            tuple(state for state in State if state not in VALIDATING),
            (_I.VALIDATED, _I.VALIDATION_FAILED),
            None,
            (),
        ),
    ],
)

VIOLATIONS = {
    Input.ANNOUNCEMENT: "SERVER_MIGRATION while another migration is under way",
    Input.ANNOUNCEMENT_TO_EAGER: "SERVER_MIGRATION while another migration is under way",
    Input.ANNOUNCEMENT_OF_HOME: "SERVER_MIGRATION names the current address of the server",
    Input.SWITCH_ANNOUNCED: "SERVER_MIGRATION without address while another migration is under way",
    Input.POOL_ADDRESS: "POOL_MIGRATION_ADDRESS during a migration",
    Input.POOL_ADDRESS_LATE: "POOL_MIGRATION_ADDRESS after a migration",
    Input.MIGRATED: "SERVER_MIGRATED, but no symmetric migration is possible now",
    Input.MIGRATED_SYMMETRIC: "SERVER_MIGRATED during a migration of another protocol",
}
"""What the server has done wrong, for each input that is a violation somewhere."""

PROTOCOLS = {
    State.VALIDATING_EXPLICIT: MigrationProtocol.EXPLICIT,
    State.VALIDATING_POOL: MigrationProtocol.POOL_OF_ADDRESSES,
    State.VALIDATING_SYMMETRIC: MigrationProtocol.SYMMETRIC,
    State.VALIDATING_SYNCHRONIZED: MigrationProtocol.SYNCHRONIZED_SYMMETRIC,
}
"""The protocol of a migration that is completed in one of these states."""
