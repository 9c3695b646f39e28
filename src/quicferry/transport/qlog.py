"""The extension in a qlog trace: its frames in the packets, its events in category "migration"."""

from __future__ import annotations

import enum
from dataclasses import fields
from typing import Any

from aioquic.quic.logger import QuicLoggerTrace
from aioquic.quic.packet_builder import QuicPacketBuilder

from quicferry.protocol import MigrationEvent, MigrationFrame, ServerMigratedFrame


def log_frame_sent(
    builder: QuicPacketBuilder, trace: QuicLoggerTrace | None, frame: MigrationFrame
) -> None:
    """Log a frame of the packet that is being built."""
    if trace is not None and builder.quic_logger_frames is not None:
        builder.quic_logger_frames.append(encode_frame(frame))


def encode_frame(frame: MigrationFrame) -> dict[str, Any]:
    """Return a frame as it stands in a packet's list of frames."""
    encoded: dict[str, Any] = {"frame_type": frame.type.name.lower()}
    if not isinstance(frame, ServerMigratedFrame):
        encoded["address"] = str(frame.address) if frame.address is not None else None
    return encoded


def log_event(trace: QuicLoggerTrace | None, event: MigrationEvent) -> None:
    """Log an event, named as its class."""
    if trace is not None:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(event).__name__)
        data = {field.name: _plain(getattr(event, field.name)) for field in fields(event)}
        trace.log_event(category="migration", event=name.lstrip("_"), data=data)


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return (value.name or "").lower()
    return value if value is None or isinstance(value, int | str) else str(value)
