"""A pytest plugin: puts quicferry's connection in the place of aioquic's, and counts.

Loaded with `-p substitution`, it acts before the first test module is imported, so that a test
module's `from aioquic.quic.connection import QuicConnection` already gets quicferry's class. What
happened goes into a JSON file for `run.py`, which judges it.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import aioquic.asyncio.client
import aioquic.asyncio.protocol
import aioquic.asyncio.server
import aioquic.h0.connection
import aioquic.h3.connection
import aioquic.quic.configuration
import aioquic.quic.connection
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.protocol import ClientMigration, ServerMigration
from quicferry.transport import Configuration, Connection

NAMING_MODULES = (
    aioquic.quic.configuration,
    aioquic.quic.connection,
    aioquic.asyncio.client,
    aioquic.asyncio.protocol,
    aioquic.asyncio.server,
    aioquic.h0.connection,
    aioquic.h3.connection,
)
"""aioquic's modules that know the connection or its configuration by name."""


class MigratingConfiguration(Configuration):
    """The configuration that tests get when migration is on: on, unless they choose otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.server_migration is None:
            self.server_migration = ClientMigration() if self.is_client else ServerMigration()


def substitute(patch: pytest.MonkeyPatch, original: type, replacement: type) -> None:
    """Replace `original` wherever aioquic knows it by name."""
    for module in NAMING_MODULES:
        if hasattr(module, original.__name__):
            patch.setattr(module, original.__name__, replacement)


class Recorder:
    """Counts tests and connections while the suite runs, and writes the record at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._constructed: Counter[str] = Counter()
        self._negotiating: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._negotiated = 0
        self._passed: set[str] = set()
        self._failed: set[str] = set()
        self._skipped: set[str] = set()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Count each connection when it is made, and when it turns out to support migration."""
        init = QuicConnection.__init__
        datagrams_to_send = Connection.datagrams_to_send

        @functools.wraps(init)
        def counted_init(connection: QuicConnection, *args: Any, **kwargs: Any) -> None:
            self._constructed["ours" if isinstance(connection, Connection) else "stock"] += 1
            init(connection, *args, **kwargs)

        @functools.wraps(datagrams_to_send)
        def counted_send(connection: Connection, now: float) -> Any:
            datagrams = datagrams_to_send(connection, now)
            if connection.negotiated and connection not in self._negotiating:
                self._negotiating.add(connection)
                self._negotiated += 1
            return datagrams

        patch.setattr(QuicConnection, "__init__", counted_init)
        patch.setattr(Connection, "datagrams_to_send", counted_send)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sort a test into passed, failed or skipped; any failed part makes it a failure."""
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.skipped:
            self._skipped.add(report.nodeid)
        elif report.when == "call":
            self._passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a test module that cannot be imported as a failure."""
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the record."""
        record = {
            "passed": sorted(self._passed - self._failed - self._skipped),
            "failed": sorted(self._failed),
            "skipped": sorted(self._skipped - self._failed),
            "ours": self._constructed["ours"],
            "stock": self._constructed["stock"],
            "negotiated": self._negotiated,
        }
        self._path.write_text(json.dumps(record), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the options that `run.py` gives."""
    parser.addoption("--connection", choices=["stock", "off", "on"], required=True)
    parser.addoption("--record", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Substitute the classes and start to count."""
    patch = pytest.MonkeyPatch()
    recorder = Recorder(config.getoption("--record"))
    recorder.watch(patch)
    config.pluginmanager.register(recorder)
    connection = config.getoption("--connection")
    if connection != "stock":
        substitute(patch, QuicConnection, Connection)
    if connection == "on":
        substitute(patch, QuicConfiguration, MigratingConfiguration)
