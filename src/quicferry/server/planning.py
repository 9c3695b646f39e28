"""What the orchestrator asked for, made into a plan, or refused as a whole.

A command that is wrong must not cost a single client. So everything is checked first, by asking
each connection for its obstacle, and only a plan that can be carried out is carried out:

- *One protocol for all*: a connection that did not negotiate it cannot migrate, which is part of
  the plan; but if there are connections that could migrate by another protocol and none by this
  one, the request is refused.
- *Automatic* (no protocol given): each connection uses the first of Pool of Addresses, Explicit (if
  an address was given), Synchronized Symmetric and Symmetric that it can use. A client that cannot
  be told of an abort, and surely hears a server from any address, uses Symmetric rather than what
  would be left behind with it.
- *Named connections*: each must be able to do what is asked of it. Those not named are closed at
  the switch.

A connection whose pool is not acknowledged yet waits for that, unless it was named: a server that
always has some client just connected could otherwise never be moved.

A client that was told of a move which has not been, and that cannot be told so, expects the server
at that address as long as it stays. It can be moved there by the same protocol, waited for, or left
behind (`Unready`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from quicferry.protocol import (
    Address,
    MigrationAddress,
    MigrationErrorCode,
    MigrationProtocol,
    ServerMigration,
    protocol_name,
    refusal,
)
from quicferry.transport import Connection

from .errors import ConfigurationError, RelocationError, RelocationErrorCode
from .synchronisation import Assignment, Plan

Destination = Address | MigrationAddress | None
Choice = tuple[MigrationProtocol | None, Destination]
"""What is asked of a connection: a protocol, None for the best; and an address for Explicit."""

_PREFERENCE = (
    MigrationProtocol.POOL_OF_ADDRESSES,
    MigrationProtocol.EXPLICIT,
    MigrationProtocol.SYNCHRONIZED_SYMMETRIC,
    MigrationProtocol.SYMMETRIC,
)
_LEAVING_NOTHING_BEHIND = (
    MigrationProtocol.POOL_OF_ADDRESSES,
    MigrationProtocol.SYMMETRIC,
    MigrationProtocol.EXPLICIT,
    MigrationProtocol.SYNCHRONIZED_SYMMETRIC,
)
_NOT_ACKNOWLEDGED = MigrationErrorCode.POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED
_NOT_NEGOTIATED = MigrationErrorCode.PROTOCOL_NOT_NEGOTIATED
_MOST_NAMED = 10


class Unready(enum.Enum):
    """What to do with connections that are not ready, or cannot be moved as is asked for."""

    ABORT = "abort"
    """Give the migration up; every connection goes on as if nothing had happened."""
    LEAVE = "leave"
    """Go without them; they are closed."""


@dataclass(frozen=True)
class Situation:
    """What a plan is made for.

    Attributes:
        migration: The server's choices; None where server migration is off.
        current: Where the server is.
        connections: Those that have finished their handshake, by stable id.
        handshaking: The ids of those that have not.
    """

    migration: ServerMigration | None
    current: Address
    connections: Mapping[str, Connection]
    handshaking: Collection[str] = ()


def plan_for_all(
    situation: Situation,
    protocol: MigrationProtocol | None,
    address: Destination,
    unready: Unready = Unready.ABORT,
) -> Plan:
    """Return the plan by which all connections migrate in the same way.

    Raises:
        RelocationError: If the request makes no sense; then nothing has happened.
    """
    destination = _check_request(situation, protocol, address)
    assignments: dict[str, Assignment] = {}
    waiting: set[str] = set()
    unable: dict[str, str] = {}
    expecting: dict[str, str] = {}
    for name, connection in situation.connections.items():
        assignment, obstacle = _choose(connection, protocol, destination)
        expected = _expected_elsewhere(connection, obstacle)
        if obstacle in (None, _NOT_ACKNOWLEDGED):
            assignments[name] = assignment
            if obstacle is not None:
                waiting.add(name)
        elif obstacle is _NOT_NEGOTIATED:
            unable[name] = obstacle.name
        elif expected is not None:
            expecting[name] = expected
        else:
            raise RelocationError(obstacle, f"connection {name}: {obstacle.value}")
    could = [name for name in unable if situation.connections[name].negotiated]
    if protocol is not None and could and not assignments:
        raise RelocationError(
            _NOT_NEGOTIATED,
            "no connection has negotiated this protocol, but some could migrate by another; see "
            "status, or give no protocol",
        )
    unable.update(_without(expecting, unready))
    return Plan(assignments, frozenset(waiting), unable)


def plan_for_named(
    situation: Situation, choices: Mapping[str, Choice], unready: Unready = Unready.ABORT
) -> Plan:
    """Return the plan by which the named connections migrate, each in its own way.

    Raises:
        RelocationError: If a name is unknown, or one of them cannot do what is asked of it; then
            nothing has happened.
    """
    assignments: dict[str, Assignment] = {}
    expecting: dict[str, str] = {}
    for name, (protocol, address) in choices.items():
        if name in situation.handshaking:
            error = MigrationErrorCode.HANDSHAKE_NOT_FINISHED
            raise RelocationError(error, f"connection {name}: {error.value}")
        if name not in situation.connections:
            raise RelocationError(
                RelocationErrorCode.UNKNOWN_CONNECTION,
                f"there is no connection {name!r}; see status for those that there are",
            )
        destination = _check_request(situation, protocol, address)
        connection = situation.connections[name]
        assignment, obstacle = _choose(connection, protocol, destination)
        expected = _expected_elsewhere(connection, obstacle)
        if obstacle is None:
            assignments[name] = assignment
        elif expected is not None:
            expecting[name] = expected
        else:
            raise RelocationError(obstacle, f"connection {name}: {obstacle.value}")
    unable = {name: "NOT_NAMED" for name in situation.connections if name not in choices}
    unable.update(_without(expecting, unready))
    return Plan(assignments, frozenset(), unable)


def check_pool(pool: Collection[MigrationAddress], listening: Collection[Address]) -> None:
    """Check that there is a client for each address of a pool that does not refuse it.

    Args:
        pool: Where the server may come up.
        listening: Where it is.

    Raises:
        ConfigurationError: If there is none; the text names the address and why.
    """
    for target in (each for entry in pool for each in (entry.ipv4, entry.ipv6) if each is not None):
        problems = [refusal(target, each) for each in listening if each.family == target.family]
        if problems and all(problems):
            raise ConfigurationError(
                f"clients refuse {target} of the pool: {problems[0]}; choose one that they may use"
            )


def check_destination(
    plan: Plan, current: Address, pool: Collection[MigrationAddress], destination: Address
) -> None:
    """Check that the clients of `plan` will find the server at `destination`.

    Raises:
        RelocationError: INVALID_ADDRESS if they will not; then nothing has happened.
    """
    if destination == current:
        raise _invalid(f"the server is at {destination} already; choose another address")
    if destination.port == 0:
        raise _invalid("the port must not be 0; give the one that clients shall use")
    if destination.family != current.family:
        raise _invalid(f"the server cannot go from {current} to another address family")
    for assignment in plan.assignments.values():
        if assignment.protocol is MigrationProtocol.EXPLICIT:
            known = [(assignment.address or MigrationAddress()).for_family(current.family)]
            if destination.host.is_unspecified and known[0] is not None:
                known.append(Address(destination.host, known[0].port))
        elif assignment.protocol is MigrationProtocol.POOL_OF_ADDRESSES:
            known = [address.for_family(current.family) for address in pool]
        else:
            continue
        if destination not in known:
            told = ", ".join(str(address) for address in known if address is not None)
            raise _invalid(f"clients expect the server at {told}, not at {destination}")


def announced_to(connection: Connection) -> str | None:
    """Return where a client was told that the server will be; ``unknown`` by no address."""
    announcement = connection.announcement
    return None if announcement is None else str(announcement.address or MigrationAddress())


def _check_request(
    situation: Situation, protocol: MigrationProtocol | None, address: Destination
) -> MigrationAddress | None:
    """Check what does not depend on any connection, and return the address in its wire form."""
    migration, current = situation.migration, situation.current
    if migration is None:
        raise RelocationError(MigrationErrorCode.MIGRATION_DISABLED)
    if protocol is not None and protocol not in _PREFERENCE:
        raise RelocationError(RelocationErrorCode.UNKNOWN_PROTOCOL, "name one protocol, or none")
    if protocol is not None and not protocol & migration.protocols:
        raise RelocationError(
            _NOT_NEGOTIATED,
            f"this server does not support {protocol_name(protocol)}; it was started with "
            f"{protocol_name(migration.protocols)}",
        )
    in_family = [each for each in migration.pool if each.for_family(current.family)]
    if protocol is MigrationProtocol.POOL_OF_ADDRESSES and not in_family:
        raise RelocationError(MigrationErrorCode.EMPTY_POOL_MIGRATION_ADDRESSES)
    if address is None:
        if protocol is MigrationProtocol.EXPLICIT:
            raise _invalid("Explicit needs the destination address")
        return None
    if protocol not in (None, MigrationProtocol.EXPLICIT):
        raise _invalid(f"{protocol_name(protocol)} takes no address; give it with the switch")
    announced = MigrationAddress.of(address) if isinstance(address, Address) else address
    target = announced.for_family(current.family)
    if target is None:
        raise _invalid(f"{announced} is not of the server's address family; it is at {current}")
    if target == current:
        raise _invalid(f"the server is at {target} already; choose another address")
    problem = refusal(target, current)
    if problem is not None:
        raise _invalid(f"clients refuse {target}: {problem}; choose one that they may use")
    return announced


def _choose(
    connection: Connection, protocol: MigrationProtocol | None, address: MigrationAddress | None
) -> tuple[Assignment, MigrationErrorCode | None]:
    """Return what a connection is to do, and what is in its way, if anything."""
    if protocol is not None:
        return _try(connection, protocol, address)
    attempts = []
    tells_all = connection.knows_withdrawals or not connection.hears_any_address
    for candidate in _PREFERENCE if tells_all else _LEAVING_NOTHING_BEHIND:
        if candidate is MigrationProtocol.EXPLICIT and address is None:
            continue
        attempt = _try(connection, candidate, address)
        if attempt[1] in (None, _NOT_ACKNOWLEDGED):
            return attempt
        attempts.append(attempt)
    # The reason worth telling is not that other protocols were not negotiated, or have no pool.
    expected = (_NOT_NEGOTIATED, MigrationErrorCode.EMPTY_POOL_MIGRATION_ADDRESSES)
    telling = [attempt for attempt in attempts if attempt[1] not in expected]
    return telling[0] if telling else (attempts[-1][0], _NOT_NEGOTIATED)


def _try(
    connection: Connection, protocol: MigrationProtocol, address: MigrationAddress | None
) -> tuple[Assignment, MigrationErrorCode | None]:
    own = address if protocol is MigrationProtocol.EXPLICIT else None
    assignment = Assignment(protocol, own)
    return assignment, connection.migration_obstacle(protocol, own)


def _expected_elsewhere(connection: Connection, obstacle: MigrationErrorCode | None) -> str | None:
    """Return where a client expects the server because of a former announcement, if that is it."""
    expected = announced_to(connection)
    if obstacle is not MigrationErrorCode.INVALID_STATE or expected is None:
        return None
    unknown = expected == str(MigrationAddress())
    return "an unknown address (synchronized-symmetric)" if unknown else f"{expected} (explicit)"


def _without(expecting: Mapping[str, str], unready: Unready) -> dict[str, str]:
    """Return why the server goes without these connections.

    Raises:
        RelocationError: INVALID_STATE if it must not, with the names and what they expect.
    """
    if expecting and unready is Unready.ABORT:
        each = [
            f"connection {name} still expects the server at {x}" for name, x in expecting.items()
        ]
        more = f", and {len(each) - _MOST_NAMED} more" if len(each) > _MOST_NAMED else ""
        raise RelocationError(
            MigrationErrorCode.INVALID_STATE,
            f"{'; '.join(each[:_MOST_NAMED])}{more}: so it was announced, and these clients cannot "
            "be told that it will not be. Move the server there, wait until they have gone, or go "
            "without them (--unready leave)",
        )
    code = MigrationErrorCode.INVALID_STATE.name
    return {name: f"{code}: expects the server at {x}" for name, x in expecting.items()}


def _invalid(detail: str) -> RelocationError:
    return RelocationError(MigrationErrorCode.INVALID_ADDRESS, detail)
