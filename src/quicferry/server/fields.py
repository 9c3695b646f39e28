"""The fields of management commands: how their values are made of what JSON gave."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from quicferry.protocol import (
    Address,
    MigrationAddress,
    MigrationErrorCode,
    MigrationProtocol,
    protocol_from_name,
)

from .errors import ManagementError, RelocationErrorCode
from .planning import Choice

LONGEST_WAIT = 3600.0
"""The largest deadline and time limit that is accepted, in seconds."""

BAD_REQUEST = "BAD_REQUEST"

Json = Any
EnumT = TypeVar("EnumT", bound=enum.Enum)


@dataclass(frozen=True)
class Field:
    """A field of a command.

    Attributes:
        parse: Makes a value of what JSON gave, or raises ManagementError.
        default: The value where the field is absent; `REQUIRED` if it must not be.
    """

    parse: Callable[[str, Json], Any]
    default: Any = None


REQUIRED = object()


def bad(problem: str) -> NoReturn:
    """Refuse a request; raises ManagementError."""
    raise ManagementError(BAD_REQUEST, problem)


def text(key: str, value: Json) -> str:
    """Parse a string."""
    return value if isinstance(value, str) else bad(f"{key} must be a string")


def seconds(key: str, value: Json) -> float:
    """Parse a number of seconds that is more than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        bad(f"{key} must be a number of seconds")
    if not 0 < value <= LONGEST_WAIT:
        bad(f"{key} must be more than 0 and at most {LONGEST_WAIT:.0f} seconds")
    return float(value)


def patience(key: str, value: Json) -> float:
    """Parse a number of seconds that may be 0."""
    return 0.0 if value == 0 and not isinstance(value, bool) else seconds(key, value)


def address(key: str, value: Json) -> Address:
    """Parse an address."""
    try:
        return Address.parse(text(key, value))
    except ValueError as exc:
        raise ManagementError(MigrationErrorCode.INVALID_ADDRESS.name, f"{key}: {exc}") from None


def announced(key: str, value: Json) -> MigrationAddress:
    """Parse an address, or one of each family."""
    try:
        return MigrationAddress.parse(text(key, value))
    except ValueError as exc:
        raise ManagementError(MigrationErrorCode.INVALID_ADDRESS.name, f"{key}: {exc}") from None


def protocol(key: str, value: Json) -> MigrationProtocol | None:
    """Parse the name of a migration protocol; None stands for auto."""
    if text(key, value) == "auto":
        return None
    try:
        return protocol_from_name(value)
    except ValueError as exc:
        code = RelocationErrorCode.UNKNOWN_PROTOCOL.name
        raise ManagementError(code, f"{key}: {exc}, or auto") from None


def connections(key: str, value: Json) -> dict[str, Choice]:
    """Parse choices for named connections."""
    if not isinstance(value, dict):
        bad(f"{key} must be an object from the ids of connections to their choices")
    choices: dict[str, Choice] = {}
    for name, given in value.items():
        if not isinstance(given, dict) or given.keys() - {"protocol", "address"}:
            bad(f"{key}: the choice for {name!r} is an object with protocol and address")
        wanted, destination = given.get("protocol"), given.get("address")
        choices[name] = (
            None if wanted is None else protocol("protocol", wanted),
            None if destination is None else announced("address", destination),
        )
    return choices


def choice(options: type[EnumT]) -> Callable[[str, Json], EnumT]:
    """Return a parser of the values of an enumeration."""

    def parse(key: str, value: Json) -> EnumT:
        try:
            return options(text(key, value))
        except ValueError:
            bad(f"{key} must be one of: {', '.join(each.value for each in options)}")

    return parse
