"""Traces in the qlog format: one file for each connection, in one directory."""

from __future__ import annotations

import json
from pathlib import Path

from aioquic.quic.logger import QLOG_VERSION, QuicLogger, QuicLoggerTrace


class QlogDirectory(QuicLogger):
    """Writes ``<original connection id>-client.qlog`` or ``-server.qlog`` when a connection ends.

    So client and server can share a directory, and the two sides of one connection lie side by
    side. It is a value for `quic_logger` of a configuration.

    Args:
        path: The directory; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Write the trace of a connection that has ended."""
        super().end_trace(trace)
        self._traces.remove(trace)
        content = trace.to_dict()
        side = content["vantage_point"]["type"]
        name = f"{content['common_fields']['ODCID']}-{side}.qlog"
        document = {"qlog_format": "JSON", "qlog_version": QLOG_VERSION, "traces": [content]}
        (self.path / name).write_text(json.dumps(document))
