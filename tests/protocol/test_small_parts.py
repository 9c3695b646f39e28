"""Numbers, texts and errors, which everything else is made of."""

from __future__ import annotations

import pytest

from quicferry.protocol import (
    ConnectionErrorCode,
    MigrationError,
    MigrationErrorCode,
    PeerError,
    printable,
)
from quicferry.protocol.suite import accept_withdrawal
from quicferry.protocol.text import LONGEST
from quicferry.protocol.varint import decode_varint, encode_varint


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_encoding_of_a_number_is_the_shortest(size: int) -> None:
    """RFC 9000 16."""
    largest = (1 << (8 * size - 2)) - 1
    assert len(encode_varint(largest)) == size
    assert decode_varint(encode_varint(largest)) == largest
    if size < 8:
        assert len(encode_varint(largest + 1)) == 2 * size
    else:
        with pytest.raises(ValueError, match="does not fit"):
            encode_varint(largest + 1)


def test_what_a_client_says_of_withdrawals() -> None:
    assert not accept_withdrawal(None)
    assert accept_withdrawal(b"")
    with pytest.raises(PeerError, match="must be empty") as caught:
        accept_withdrawal(b"\0")
    assert caught.value.code is ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text, ä and 東", "plain text, ä and 東"),
        ("\x1b[31m", "\\x1b[31m"),
        ("one\r\ntwo", "one\\r\\ntwo"),
        ("x" * LONGEST, "x" * LONGEST),
        ("x" * (LONGEST + 1), "x" * LONGEST + "..."),
        ("\n" * (LONGEST + 1), "\\n" * LONGEST + "..."),
    ],
)
def test_text_of_a_peer_is_shown_escaped_and_is_bounded(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_errors_say_what_they_are() -> None:
    assert (
        str(PeerError(ConnectionErrorCode.PROTOCOL_VIOLATION, "why")) == "PROTOCOL_VIOLATION: why"
    )
    code = MigrationErrorCode.INVALID_STATE
    assert str(MigrationError(code)) == f"INVALID_STATE: {code.value}"
    assert str(MigrationError(code, "why")) == "INVALID_STATE: why"
