"""What both sides logged, as lines of text in the order of virtual time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from aioquic.quic.logger import QuicLogger

from .network import START


def lines(logger: QuicLogger, journal: Iterable[tuple[float, str]] = ()) -> Iterator[str]:
    """The events of all connections that used `logger`, and the words of `journal`."""
    rows: list[tuple[float, str, dict[str, Any]]] = [
        (when * 1000, "------", {"name": words, "data": {}}) for when, words in journal
    ]
    for connection in logger.to_dict()["traces"]:
        side = connection["vantage_point"]["type"]
        rows += [(event["time"], side, event) for event in connection["events"]]
    for moment, side, event in sorted(rows, key=lambda row: row[0]):
        data = event["data"]
        if "frames" in data:
            frames = " ".join(map(_frame_words, data["frames"]))
            data = {**data["header"], "frames": frames}
        words = " ".join(f"{key}={value}" for key, value in data.items())
        yield f"{moment / 1000 - START:10.6f} {side:6} {event['name']:30} {words}"


def _frame_words(frame: dict[str, Any]) -> str:
    rest = ",".join(f"{key}={value}" for key, value in frame.items() if key != "frame_type")
    return f"{frame['frame_type']}({rest})"
