"""What an agent has to tell about the servers that are handed over to it."""

from __future__ import annotations

from dataclasses import dataclass

from quicferry.protocol import Address


@dataclass(frozen=True)
class AgentEvent:
    """The base of what an agent has to tell.

    Attributes:
        source: Who hands over, by the name in its certificate.
    """

    source: str


@dataclass(frozen=True)
class Offered(AgentEvent):
    """A source wants to hand a server over, and was not refused.

    Attributes:
        address: Where the server is to go.
        connections: How many connections it has.
    """

    address: Address
    connections: int


@dataclass(frozen=True)
class Discarded(AgentEvent):
    """A handover was refused, or came to nothing; the source goes on.

    Attributes:
        reason: Why.
    """

    reason: str


@dataclass(frozen=True)
class Adopted(AgentEvent):
    """The server lives here now; `Agent.server` is that server.

    Attributes:
        address: Where it listens.
        connections: How many connections it has adopted.
    """

    address: Address
    connections: int


@dataclass(frozen=True)
class Released(AgentEvent):
    """The adopted server has ended, or was handed over to another agent."""
