"""Text that strangers have chosen, made fit for logs and terminals."""

from __future__ import annotations

LONGEST = 500


def printable(text: str, longest: int | None = LONGEST) -> str:
    """Return a text in which everything that is not printable is escaped, as Python does it.

    A peer chooses the reason for which it closes a connection, and the paths that it asks for. With
    line ends it could forge lines of a log; with escape sequences, what a terminal shows.

    Args:
        text: The text.
        longest: Of one with more characters the beginning is returned; None for all of any.
    """
    if text.isprintable() and (longest is None or len(text) <= longest):
        return text
    escaped = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text[:longest]
    )
    return escaped if longest is None or len(text) <= longest else f"{escaped}..."
