"""The commands of the management interface, as data: what they are given, do and answer.

A request is a JSON object with a ``command``, an ``id`` that comes back in the reply, and the
fields of the command; nothing else is accepted. It is checked as a whole before anything is done.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from quicferry.protocol import (
    Address,
    MigrationAddress,
    MigrationErrorCode,
    MigrationProtocol,
    QuicferryError,
    protocol_name,
)

from . import fields
from .errors import ConfigurationError, ManagementError, RelocationError
from .fields import BAD_REQUEST, LONGEST_WAIT, REQUIRED, Field, Json
from .planning import Unready
from .relocator import DEFAULT_DEADLINE
from .reports import ServerEvent
from .server import Server

UNKNOWN_COMMAND = "UNKNOWN_COMMAND"
FAILED = "FAILED"

Fields = Mapping[str, Any]


class Afterwards(enum.Enum):
    """What follows the reply to a command."""

    STAY = "stay"
    CLOSE_SERVER = "close-server"
    HANG_UP = "hang-up"
    """All management connections are closed, the one that the command came on last."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        fields: Its fields by name.
        run: Does it and returns the result.
        forsaken: Called when whoever asked for it goes away while it runs. It runs on.
        afterwards: What follows the reply.
    """

    fields: Mapping[str, Field]
    run: Callable[[Server, Fields], Awaitable[dict[str, Json]]]
    forsaken: Callable[[], None] = lambda: None
    afterwards: Afterwards = Afterwards.STAY


Commands = Mapping[str, Command]
"""Commands by name."""


@dataclass(frozen=True)
class Request:
    """A request that makes sense.

    Attributes:
        id: What the reply is to be marked with.
        name: The name of the command.
        fields: All of its fields.
    """

    id: Json
    name: str
    fields: Fields


def decode(line: bytes) -> dict[str, Json]:
    """Return the JSON object that a line holds.

    Raises:
        ManagementError: BAD_REQUEST if it does not hold one.
    """
    try:
        message = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ManagementError(BAD_REQUEST, f"this is not JSON: {exc}; send one object") from None
    if not isinstance(message, dict):
        raise ManagementError(BAD_REQUEST, "a request is a JSON object; send one for each line")
    return message


def parse(message: Mapping[str, Json], commands: Commands) -> Request:
    """Return the request that a JSON object stands for.

    Args:
        message: The object.
        commands: The commands that there are.

    Raises:
        ManagementError: If the command is unknown, or a field is wrong, missing, or unknown.
    """
    name = message.get("command")
    if not isinstance(name, str) or name not in commands:
        known = ", ".join(commands)
        raise ManagementError(UNKNOWN_COMMAND, f"unknown command {name!r}; there are: {known}")
    fields = commands[name].fields
    unknown = message.keys() - fields.keys() - {"command", "id"}
    if unknown:
        given, known = ", ".join(sorted(unknown)), ", ".join(fields) or "none"
        raise ManagementError(BAD_REQUEST, f"{name} has no field {given}; its fields are: {known}")
    values = {}
    for key, field in fields.items():
        if message.get(key) is not None:
            values[key] = field.parse(key, message[key])
        elif field.default is REQUIRED:
            raise ManagementError(BAD_REQUEST, f"{name} needs the field {key}")
        else:
            values[key] = field.default
    return Request(reply_id(message), name, values)


def reply_id(message: Mapping[str, Json]) -> Json:
    """Return what the reply to a message is marked with: its id if that is a string or number."""
    given = message.get("id")
    return given if isinstance(given, (str, int, float)) else None


async def execute(server: Server, request: Request, commands: Commands) -> dict[str, Json]:
    """Do what a request asks for and return the result.

    Args:
        server: The server.
        request: What `parse` returned.
        commands: The commands that there are.

    Raises:
        ManagementError: If it cannot be done.
    """
    try:
        return await commands[request.name].run(server, request.fields)
    except ManagementError:
        raise
    except RelocationError as exc:
        raise ManagementError(exc.code.name, str(exc)) from exc
    except ConfigurationError as exc:
        raise ManagementError(BAD_REQUEST, str(exc)) from exc
    except QuicferryError as exc:
        raise ManagementError(FAILED, str(exc)) from exc


def describe_event(event: ServerEvent) -> dict[str, Json]:
    """Return an event in values that JSON can express."""
    values = {
        field.name: _describe(getattr(event.event, field.name))
        for field in dataclasses.fields(event.event)
    }
    return {"event": type(event.event).__name__, "connection": event.connection_id, **values}


def _describe(value: Any) -> Json:
    match value:
        case MigrationProtocol():
            names = [protocol_name(each) for each in value]
            return names[0] if len(names) == 1 else names
        case Address() | MigrationAddress():
            return str(value)
        case MigrationErrorCode():
            return value.name
        case enum.IntEnum():
            return int(value)
        case enum.Enum():
            return value.value
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


# Commands


async def _imminent(server: Server, given: Fields) -> dict[str, Json]:
    preparation = await server.imminent(
        given["protocol"],
        given["address"],
        connections=given["connections"],
        deadline=given["deadline"],
        unready=given["unready"],
        destination=given["destination"],
        bind=given["bind"],
    )
    return {
        "ready": preparation.is_ready,
        "seconds": preparation.seconds,
        "connections": {
            name: protocol_name(protocol) for name, protocol in preparation.protocols.items()
        },
        "unready": list(preparation.unready),
        "silent": list(preparation.silent),
        "unable": dict(preparation.unable),
        "failed": dict(preparation.failed),
    }


async def _switch(server: Server, given: Fields) -> dict[str, Json]:
    relocation = await server.switch(given["address"], unready=given["unready"])
    return {
        "source": str(relocation.source),
        "destination": str(relocation.destination),
        "switched_at": relocation.switched_at,
        "told": list(relocation.told),
        "closed": list(relocation.closed),
    }


async def _wait(server: Server, given: Fields) -> dict[str, Json]:
    completion = await server.wait_completed(given["timeout"])
    return {
        "completed": completion.is_complete,
        "seconds": completion.seconds,
        "completed_seconds": dict(completion.completed),
        "pending": list(completion.pending),
        "lost": list(completion.lost),
    }


async def _status(server: Server, given: Fields) -> dict[str, Json]:
    return server.status()


async def _abort(server: Server, given: Fields) -> dict[str, Json]:
    await server.abort()
    return who_cannot_be_told(server)


def who_cannot_be_told(server: Server) -> dict[str, Json]:
    """Return the result of an abort: where clients still expect the server, if any do."""
    announced = server.still_announced()
    return {"announced": dict(announced)} if announced else {}


async def _nothing(server: Server, given: Fields) -> dict[str, Json]:
    return {}


COMMANDS: Commands = {
    "imminent": Command(
        {
            "protocol": Field(fields.protocol),
            "address": Field(fields.announced),
            "connections": Field(fields.connections),
            "deadline": Field(fields.seconds, DEFAULT_DEADLINE),
            "unready": Field(fields.choice(Unready), Unready.ABORT),
            "destination": Field(fields.address),
            "bind": Field(fields.address),
        },
        _imminent,
    ),
    "switch": Command(
        {
            "address": Field(fields.address, REQUIRED),
            "unready": Field(fields.choice(Unready), Unready.ABORT),
        },
        _switch,
    ),
    "wait": Command({"timeout": Field(fields.seconds, LONGEST_WAIT)}, _wait),
    "status": Command({}, _status),
    "abort": Command({}, _abort),
    "shutdown": Command({}, _nothing, afterwards=Afterwards.CLOSE_SERVER),
    "events": Command({}, _nothing),  # the management server does the rest
}
