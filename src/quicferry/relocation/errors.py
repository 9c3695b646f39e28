"""What can go wrong between the two ends of a handover."""

from __future__ import annotations

import enum

from quicferry.protocol import QuicferryError


class HandoverError(QuicferryError):
    """A handover cannot take this step; the text says why, and what to do."""


class MessageError(HandoverError):
    """These bytes are no message of a handover, or this message cannot be sent.

    The text says what is wrong, and never quotes the content.
    """


class IdentityError(QuicferryError):
    """What a host is to prove itself with cannot be used; the text says why, and what to do."""


class ChannelProblem(enum.Enum):
    """What is wrong with a channel between two hosts."""

    REFUSED = "nobody listens there"
    UNREACHABLE = "there is no way there"
    CANNOT_LISTEN = "it is not possible to listen here"
    TIMEOUT = "no answer in time"
    NOT_TRUSTED = "the certificate of the peer is not accepted"
    WRONG_HOST = "the certificate of the peer names another host"
    NOT_TRUSTED_BY_PEER = "the peer does not accept the certificate"
    WRONG_PROTOCOL = "the peer speaks something else"
    NOT_ACCEPTED = "a message is of a kind that is not accepted"
    TOO_LARGE = "a message is too large"
    CLOSED = "the channel is closed"


class ChannelError(QuicferryError):
    """A channel could not be opened or used; the text says why, and what to do.

    Attributes:
        problem: What is wrong.
    """

    def __init__(self, problem: ChannelProblem, text: str) -> None:
        super().__init__(text)
        self.problem = problem


class ChannelClosed(ChannelError):  # noqa: N818 (named for what has happened, not for a fault)
    """The channel has ended, whoever ended it."""

    def again(self) -> ChannelClosed:
        """Return an equal error, to be raised another time."""
        return ChannelClosed(self.problem, str(self))


class EngineError(QuicferryError):
    """A container engine cannot do what it was asked to; the text says why, and what to do."""
