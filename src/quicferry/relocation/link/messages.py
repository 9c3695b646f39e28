"""What the two ends of a handover tell each other.

The source offers, carries and commits; the destination answers. Every message names the handover
that it belongs to. On the wire it is one byte for the kind, and a MessagePack array of the fields
in order, whose types and bounds are checked before anything is made of them. Neither end accepts
what only the other one says, or more bytes than a message of the kind can have; see `limits`. What
holds secrets or data has no `repr` of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Self

from quicferry.transport import MAX_SNAPSHOT_SIZE, NetworkAddress, SnapshotError
from quicferry.transport.snapshot.format import Within, largest, pack, prepare, unpack
from quicferry.transport.snapshot.records import AddressState

from ..errors import MessageError

MAX_MESSAGE_SIZE = 65 << 20
"""In bytes."""
MAX_TEXT = 1024
"""In characters."""
MAX_DATAGRAM = 0xFFFF
"""In bytes."""
HANDOVER_ID_SIZE = 16
"""In bytes, at random."""
MAX_PIECE = 1 << 20
"""In bytes, of a container's images or memory."""
MOST_NAMES = 1 << 14
"""Connections that are named in one list; of more, the first ones are."""
LONGEST_LEASE = 3600.0
"""Seconds that a container may be stopped, or its application take to start."""

HandoverId = Annotated[bytes, Within(HANDOVER_ID_SIZE, HANDOVER_ID_SIZE)]
Count = Annotated[int, Within(0, 1 << 20)]
Text = Annotated[str, Within(0, MAX_TEXT)]
Name = Annotated[str, Within(1, 255)]
ConnectionName = Annotated[str, Within(1, 40)]
Names = Annotated[tuple[ConnectionName, ...], Within(0, MOST_NAMES)]
Pem = Annotated[bytes, Within(0, 1 << 14)]
Data = Annotated[bytes, Within(0, MAX_SNAPSHOT_SIZE)]
Piece = Annotated[bytes, Within(0, 2 * MAX_PIECE)]
"""A piece of a container; what cannot be compressed may become a little larger."""


@dataclass(frozen=True)
class Message:
    """The base of all messages.

    Attributes:
        handover: The handover that it belongs to.
    """

    handover: HandoverId


# From the source to the destination


@dataclass(frozen=True)
class Offer(Message):
    """Can you take this server?

    Attributes:
        quicferry_version: That of the source.
        snapshot_version: The format of its connection snapshots.
        application: What runs on it, as its user named it.
        address: Where it is to go: ``host:port``.
        connections: How many connections it has now.
        has_state: Whether the application carries state along.
        negotiable: The mask of the migration protocols that it offers to clients.
        connection_id_length: Of its connection IDs, in bytes.
    """

    quicferry_version: Name
    snapshot_version: Annotated[int, Within(0, 0xFFFF)]
    application: Text
    address: Name
    connections: Count
    has_state: bool
    negotiable: Annotated[int, Within(0, 0xFF)]
    connection_id_length: Annotated[int, Within(0, 20)]


@dataclass(frozen=True)
class ContainerOffer(Message):
    """Can you take this server, with the container that it runs in?

    Attributes:
        quicferry_version: That of the source.
        technique: How the container is moved.
        engine: The container engine that it runs in.
        engine_version: The versions of the engine and of what it uses.
        container: Its name.
        image: What the container was made of; empty if that is not known.
        address: Where the server is to go: ``host:port``.
        connections: How many connections it has now.
        memory: How many bytes of memory it uses now.
        lease: Seconds from the freeze within which it has to be committed.
        compression: How images are compressed.
        page_certificate: What the ends of a page transfer prove themselves with, PEM; else empty.
        page_key: The private key for it, PEM.
    """

    quicferry_version: Name
    technique: Name
    engine: Name
    engine_version: Text
    container: Name
    image: Text
    address: Name
    connections: Count
    memory: Annotated[int, Within(0, 1 << 50)]
    lease: Annotated[float, Within(0, LONGEST_LEASE)]
    compression: Name
    page_certificate: Pem = field(repr=False)
    page_key: Pem = field(repr=False)

    @property
    def has_state(self) -> bool:
        """Whether state of the application comes beside the rest; it is part of the container."""
        return False


AnyOffer = Offer | ContainerOffer


@dataclass(frozen=True)
class CopyAhead(Message):
    """A piece of a container's memory that is carried while the container runs. It holds secrets.

    Attributes:
        file: The image that it is appended to, by its relative name.
        data: The piece, as it was compressed.
    """

    file: Name
    data: Piece = field(repr=False)


@dataclass(frozen=True)
class CarryImage(Message):
    """A piece of a stopped container. It holds secrets.

    Attributes:
        number: The number of the piece; they are counted from 0.
        file: The image that it is appended to, by its relative name.
        data: The piece, as it was compressed.
    """

    number: Count
    file: Name
    data: Piece = field(repr=False)


@dataclass(frozen=True)
class PageServer(Message):
    """Here the memory of the stopped container can be fetched.

    Attributes:
        port: The TCP port, at the address that the source speaks from.
    """

    port: Annotated[int, Within(1, 0xFFFF)]


@dataclass(frozen=True)
class Carry(Message):
    """One frozen connection. It holds secrets.

    Attributes:
        connection_id: Its stable id.
        connection: Its snapshot, as `quicferry.transport.freeze` returned it.
        protocol: What the application protocol knows of it.
    """

    connection_id: ConnectionName
    connection: Data = field(repr=False)
    protocol: Data = field(repr=False)


@dataclass(frozen=True)
class CarryState(Message):
    """The state of the application.

    Attributes:
        data: As it was exported.
    """

    data: Data = field(repr=False)


@dataclass(frozen=True)
class Carried(Message):
    """All is sent.

    Attributes:
        pieces: How many connections, or pieces of a container, were.
    """

    pieces: Count


@dataclass(frozen=True)
class Commit(Message):
    """The connections are yours."""


@dataclass(frozen=True)
class Abort(Message):
    """Forget the connections, the source keeps them.

    Attributes:
        reason: Why.
    """

    reason: Text


@dataclass(frozen=True)
class Ask(Message):
    """Whose are the connections? The answer is `Held`, `Committed` or `NoCopy`."""


@dataclass(frozen=True)
class Settled(Message):
    """The source knows that the connections are yours, and has let them go."""


@dataclass(frozen=True)
class Forward(Message):
    """A datagram that came to the source for a connection that has left it.

    Attributes:
        data: The datagram.
        address: Where it came from.
    """

    data: Annotated[bytes, Within(0, MAX_DATAGRAM)] = field(repr=False)
    address: AddressState

    @classmethod
    def of(cls, handover: bytes, data: bytes, address: NetworkAddress) -> Self:
        """Return the message for a datagram from a socket's address."""
        host, port, flow, scope = (*address, None, None)[:4]
        return cls(handover, data, AddressState(host, port, flow, scope))


# From the destination to the source


@dataclass(frozen=True)
class Accepted(Message):
    """The destination can take the server.

    Attributes:
        address: Where it listens for the clients: ``host:port``.
    """

    address: Name


@dataclass(frozen=True)
class Refused(Message):
    """The destination has no copy of the connections, and never will.

    Attributes:
        reason: Why.
    """

    reason: Text


@dataclass(frozen=True)
class Received(Message):
    """All has arrived."""


@dataclass(frozen=True)
class Thawed(Message):
    """The copies exist, and are silent."""


@dataclass(frozen=True)
class Switched(Message):
    """The copies are at the new address, and silent."""


@dataclass(frozen=True)
class Committed(Message):
    """The destination owns the connections, and they live."""


@dataclass(frozen=True)
class Held(Message):
    """The destination has silent copies, and waits for `Commit`."""


@dataclass(frozen=True)
class NoCopy(Message):
    """The destination has no copy of the connections, and never will."""


@dataclass(frozen=True)
class Followed(Message):
    """How the clients have followed.

    Attributes:
        seconds: Since the destination came to own them.
        completed: How many clients have followed.
        pending: The connections whose clients have not; the first `MOST_NAMES` of them.
        lost: The connections that ended before; the first `MOST_NAMES` of them.
    """

    seconds: Annotated[float, Within(0, 1e9)]
    completed: Count
    pending: Names
    lost: Names


@dataclass(frozen=True)
class Starting(Message):
    """The destination starts the application; `Accepted` or `Refused` follows.

    Attributes:
        limit: How long that may take, in seconds.
    """

    limit: Annotated[float, Within(0, LONGEST_LEASE)]


KINDS: dict[int, type[Message]] = {
    0x01: Offer,
    0x02: Carry,
    0x03: CarryState,
    0x04: Carried,
    0x05: Commit,
    0x06: Abort,
    0x07: Ask,
    0x08: Settled,
    0x09: Forward,
    0x0A: ContainerOffer,
    0x0B: CopyAhead,
    0x0C: CarryImage,
    0x0D: PageServer,
    0x81: Accepted,
    0x82: Refused,
    0x83: Received,
    0x84: Thawed,
    0x85: Switched,
    0x86: Committed,
    0x87: Held,
    0x88: NoCopy,
    0x89: Followed,
    0x8A: Starting,
}
"""The first byte of a message; the upper half is the destination's."""

_NUMBERS = {kind: number for number, kind in KINDS.items()}

Limits = dict[int, int]
"""How many bytes a message may have at most, by its first byte. What is absent is refused."""


def limits(kinds: Iterable[type[Message]]) -> Limits:
    """Return the limits for an end that accepts messages of these kinds."""
    return {_NUMBERS[kind]: min(1 + largest(kind), MAX_MESSAGE_SIZE) for kind in kinds}


CARRIES_CONNECTIONS = (Carry, CarryState)
CARRIES_CONTAINER = (CopyAhead, CarryImage, PageServer)
FROM_SOURCE = limits(
    kind
    for number, kind in KINDS.items()
    if number < 0x80 and kind not in (*CARRIES_CONNECTIONS, *CARRIES_CONTAINER)
)
"""What an agent accepts from everyone; what is large, from the source whose offer it accepted."""
FROM_DESTINATION = limits(kind for number, kind in KINDS.items() if number >= 0x80)
"""What a source accepts."""


def prepare_messages() -> None:
    """Get ready to read messages, so that no client has to wait for that."""
    for kind in KINDS.values():
        prepare(kind)


def encode(message: Message) -> bytes:
    """Return the wire form of a message.

    Raises:
        MessageError: If it is out of bounds.
    """
    data = bytes([_NUMBERS[type(message)]]) + pack(message)
    if not isinstance(message, _BULK) or len(message.data) > _MOST_DATA[type(message)]:
        decode(data)  # the other end would refuse it; of bulk there is too much to check all
    return data


_BULK = (Forward, CopyAhead, CarryImage)
_MOST_DATA = dict.fromkeys(_BULK, 2 * MAX_PIECE) | {Forward: MAX_DATAGRAM}


def decode(data: bytes) -> Message:
    """Return the message that `data` is the wire form of.

    Raises:
        MessageError: If it is none.
    """
    if len(data) > MAX_MESSAGE_SIZE:
        raise MessageError(
            f"a message takes at most {MAX_MESSAGE_SIZE} bytes, and this one {len(data)}; "
            "move the server when less is waiting to be sent or read"
        )
    kind = KINDS.get(data[0]) if data else None
    if kind is None:
        raise MessageError("this is no message of a handover; run the same quicferry on both hosts")
    problem = ""
    try:
        return unpack(memoryview(data)[1:], kind)
    except SnapshotError as exc:
        problem = str(exc)
    raise MessageError(
        f"a message of the kind {kind.__name__} cannot be used: {problem}; "
        "run the same quicferry on both hosts"
    )


def shorten(reason: str) -> str:
    """Return a text that fits into a message."""
    text = reason.encode(errors="replace").decode()  # names of files may hold what UTF-8 has not
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
