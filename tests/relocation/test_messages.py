"""The messages of a handover: there and back, and what is no message."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest

from quicferry.protocol import QuicferryError
from quicferry.relocation.errors import MessageError
from quicferry.relocation.link import messages
from quicferry.relocation.link.messages import (
    MAX_MESSAGE_SIZE,
    MAX_TEXT,
    Abort,
    Accepted,
    Ask,
    Carried,
    Carry,
    CarryImage,
    CarryState,
    Commit,
    Committed,
    ContainerOffer,
    CopyAhead,
    Followed,
    Forward,
    Held,
    Message,
    NoCopy,
    Offer,
    PageServer,
    Received,
    Refused,
    Settled,
    Starting,
    Switched,
    Thawed,
    decode,
    encode,
    shorten,
)
from quicferry.transport import MAX_SNAPSHOT_SIZE

ID = bytes(range(16))
OFFER = Offer(ID, "1.0", 1, "shop", "192.0.2.1:4433", 3, True, 0x0F, 8)
WRONG: list[Any] = [None, True, -1, 1.5, "x" * 5000, b"", [[]], {}]
SECRET = b"the secret of a connection"
CONTAINER_OFFER = ContainerOffer(
    ID,
    quicferry_version="1.0",
    technique="cold",
    engine="runc",
    engine_version="runc 1.1, CRIU 4.2",
    container="shop",
    image="sha256:00",
    address="192.0.2.1:4433",
    connections=3,
    memory=100 << 20,
    lease=60.0,
    compression="none",
    page_certificate=SECRET,
    page_key=SECRET,
)
ALL: list[Message] = [
    OFFER,
    Carry(ID, "1f00", SECRET, SECRET),
    CarryState(ID, SECRET),
    Carried(ID, 3),
    Commit(ID),
    Abort(ID, "no time"),
    Ask(ID),
    Settled(ID),
    Forward.of(ID, SECRET, ("192.0.2.7", 50_000)),
    CONTAINER_OFFER,
    CopyAhead(ID, "before/pages-1.img", SECRET),
    CarryImage(ID, 0, "final/pages-1.img", SECRET),
    PageServer(ID, 40_000),
    Accepted(ID, "[2001:db8::1]:4433"),
    Refused(ID, "no room"),
    Received(ID),
    Thawed(ID),
    Switched(ID),
    Committed(ID),
    Held(ID),
    NoCopy(ID),
    Followed(ID, 0.25, 2, ("1f00",), ("2e00", "3d00")),
    Starting(ID, 60.0),
]


def test_all_kinds_are_tried() -> None:
    assert [type(message) for message in ALL] == list(messages.KINDS.values())


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_there_and_back(message: Message) -> None:
    assert decode(encode(message)) == message
    assert SECRET.decode() not in repr(message)


@pytest.mark.parametrize("address", [("192.0.2.7", 50_000), ("fe80::1", 50_000, 0, 3)])
def test_the_address_of_a_datagram_is_that_of_a_socket(address: tuple[Any, ...]) -> None:
    message = decode(encode(Forward.of(ID, b"datagram", address)))
    assert isinstance(message, Forward)
    assert message.address.value == address


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_parts_and_more_than_all_of_a_message_are_refused(message: Message) -> None:
    data = encode(message)
    for size in range(len(data)):
        with pytest.raises(MessageError):
            decode(data[:size])
    with pytest.raises(MessageError):
        decode(data + b"\0")


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_values_of_a_wrong_type_are_refused(message: Message) -> None:
    data = encode(message)
    values = msgpack.unpackb(data[1:])
    for index in range(len(values)):
        for wrong in WRONG:
            if type(wrong) is type(values[index]):
                continue
            changed = [*values[:index], wrong, *values[index + 1 :]]
            with pytest.raises(MessageError):
                decode(data[:1] + msgpack.packb(changed))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (dataclasses.replace(OFFER, handover=ID[1:]), "handover"),
        (dataclasses.replace(OFFER, connections=-1), "connections"),
        (dataclasses.replace(OFFER, connection_id_length=21), "connection_id_length"),
        (dataclasses.replace(OFFER, address=""), "address"),
        (Refused(ID, "x" * (MAX_TEXT + 1)), "reason"),
        (Carry(ID, "", b"", b""), "connection_id"),
        (CarryState(ID, bytes(MAX_SNAPSHOT_SIZE + 1)), "data"),
        (Forward.of(ID, bytes(1 << 16), ("192.0.2.7", 1)), "data"),
        (Followed(ID, -1.0, 0, (), ()), "seconds"),
        (Followed(ID, float("nan"), 0, (), ()), "seconds"),
        (Followed(ID, 1.0, 0, ("",), ()), "pending"),
    ],
)
def test_what_is_out_of_bounds_is_not_even_sent(message: Message, field: str) -> None:
    with pytest.raises(MessageError, match=rf"{type(message).__name__}.*{field} is out of bounds"):
        encode(message)


def test_the_size_of_a_message_is_bounded() -> None:
    half = bytes(MAX_MESSAGE_SIZE // 2)
    with pytest.raises(MessageError, match="at most"):
        encode(Carry(ID, "1f00", half, half))
    with pytest.raises(MessageError, match="at most"):
        decode(encode(Ask(ID)) + bytes(MAX_MESSAGE_SIZE))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff\x90", b"GET / HTTP/1.1"])
def test_other_protocols_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="no message of a handover"):
        decode(data)


def test_errors_do_not_quote() -> None:
    data = encode(CarryState(ID, SECRET))
    bodies = (
        msgpack.packb([ID, SECRET.decode()]),
        msgpack.packb([ID, SECRET])[:-1],
        msgpack.packb([ID, SECRET, SECRET]),
    )
    for body in bodies:
        with pytest.raises(QuicferryError) as caught:
            decode(data[:1] + body)
        error: BaseException | None = caught.value
        while error is not None:
            assert "secret" not in repr(error)
            error = error.__cause__ or error.__context__


def test_any_reason_can_be_sent() -> None:
    for reason in ("", "short", "long " * 1000, "\udcff", "é" * 2000):
        message = Refused(ID, shorten(reason))
        assert decode(encode(message)) == message
    assert shorten("short") == "short"
    assert shorten("long " * 1000).startswith("long long")
