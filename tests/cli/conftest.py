from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.command_line import RunningServer, finish, start_server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for tests that do not move or end it."""
    running = start_server(tmp_path_factory.mktemp("shared"))
    yield running
    finish(running.process)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    running = start_server(tmp_path)
    yield running
    finish(running.process)
