"""What a destination remembers of handovers that it is done with, so that none begins again."""

from __future__ import annotations

from ..link.messages import AnyOffer, Ask, Commit, Committed, Message, NoCopy

MOST_REMEMBERED = 1024
"""Handovers of each outcome. A source asks for `LEASE` seconds at most."""


class History:
    """The handovers that have ended at this instance of a destination.

    Those that were committed are kept apart, so that no number of others drives them out: whoever
    asks for one of them and is told that there is no copy would go on beside it. So are those that
    were accepted and came to nothing, from what only needs a message: offers that were refused, and
    questions about handovers that nobody knows.
    """

    def __init__(self) -> None:
        self._committed: dict[bytes, None] = {}
        self._discarded: dict[bytes, None] = {}
        self._denied: dict[bytes, None] = {}

    def committed(self, handover: bytes) -> None:
        """Remember that the connections came to live here."""
        _remember(self._committed, handover)

    def discarded(self, handover: bytes) -> None:
        """Remember that there is no copy any more, and never will be."""
        _remember(self._discarded, handover)

    def denied(self, handover: bytes) -> None:
        """Remember that there has been no copy, and never will be."""
        _remember(self._denied, handover)

    def knows(self, handover: bytes) -> bool:
        """Return whether this handover has ended, so that it must not begin."""
        return any(handover in it for it in (self._committed, self._discarded, self._denied))

    def answer(self, message: Message) -> Message | None:
        """Return the answer to a message of a handover that nobody is at work on.

        Args:
            message: Any message but the `Offer` of a handover that is new.

        Returns:
            None if there is nothing to say.
        """
        handover = message.handover
        if not self.knows(handover):
            self.denied(handover)
        if not isinstance(message, AnyOffer | Commit | Ask):
            return None
        return Committed(handover) if handover in self._committed else NoCopy(handover)


def _remember(handovers: dict[bytes, None], handover: bytes) -> None:
    handovers.pop(handover, None)
    handovers[handover] = None
    if len(handovers) > MOST_REMEMBERED:
        del handovers[next(iter(handovers))]
