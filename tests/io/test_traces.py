"""Traces are written while their connections live."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import client_configuration, http_client, served, server_configuration
from traces import names, read_trace

from quicferry.io import QlogDirectory, TraceError
from quicferry.io.traces import QlogTrace


def log(trace: Any, event: str, **data: Any) -> None:
    trace.log_event(category="test", event=event, data=data)


def answered(traces: QlogDirectory, odcid: bytes) -> QlogTrace:
    """The trace of a server's connection whose client has answered to the handshake."""
    trace = traces.start_trace(is_client=False, odcid=odcid)
    trace.has_begun = True
    return trace


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that is full."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_both_sides_are_traced_as_it_happens(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path / "new" / "qlog")
    async with (
        served(configuration=server_configuration(quic_logger=traces)) as server,
        http_client(server, configuration=client_configuration(quic_logger=traces)) as client,
    ):
        await client.request("POST", "/echo", body=b"hello")
        await asyncio.sleep(0)  # what is under way in the event loop is done then
        for side in ("client", "server"):
            (path,) = traces.path.glob(f"*-{side}.sqlog")
            odcid, _ = path.name.split("-")
            first, events = read_trace(path)
            assert first == {
                "qlog_format": "JSON-SEQ",
                "qlog_version": "0.3",
                "trace": {
                    "common_fields": {"ODCID": odcid},
                    "vantage_point": {"name": "aioquic", "type": side},
                },
            }
            frames = [
                frame["frame_type"]
                for event in events
                if event["name"] == "transport:packet_received"
                for frame in event["data"]["frames"]
            ]
            assert "stream" in frames
            times = [event["time"] for event in events]
            assert times == sorted(times)


async def test_fields_need_not_be_utf_8(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-name", b"M\xfcller")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    traces = QlogDirectory(tmp_path)
    async with (
        served(app, configuration=server_configuration(quic_logger=traces)) as server,
        http_client(server, configuration=client_configuration(quic_logger=traces)) as client,
    ):
        response = await client.request("GET", "/")
        assert ("x-name", "M\xfcller") in [tuple(field) for field in response.headers]


def test_a_trace_is_private(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path)
    trace = traces.start_trace(is_client=True, odcid=b"12345678")
    log(trace, "cookie")
    traces.end_trace(trace)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_names_that_are_taken(tmp_path: Path) -> None:
    for number in range(3):
        traces = QlogDirectory(tmp_path)
        trace = answered(traces, b"\xaa" * 8)
        log(trace, "begun", number=number)
        traces.end_trace(trace)
    name = "aa" * 8 + "-server"
    for number, suffix in enumerate(("", "-2", "-3")):
        _, events = read_trace(tmp_path / f"{name}{suffix}.sqlog")
        assert [event["data"]["number"] for event in events] == [number]


def test_a_client_that_repeats_its_id_gets_a_bounded_number_of_files(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path)
    for _ in range(120):
        trace = answered(traces, b"\xaa" * 8)
        log(trace, "begun")
        traces.end_trace(trace)
    assert len(files(tmp_path)) == 100


def test_a_trace_without_events_makes_no_file(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path)
    traces.end_trace(answered(traces, b"12345678"))
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_was_tidied_away_begins_again(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path)
    trace = answered(traces, b"12345678")
    log(trace, "before")
    await asyncio.sleep(0)
    (path,) = files(tmp_path)
    path.unlink()
    log(trace, "after")
    await asyncio.sleep(0)
    first, events = read_trace(path)
    assert "trace" in first
    assert names(events) == ["test:after"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path)
    trace = answered(traces, b"12345678")

    def many(count: int) -> None:
        for number in range(count):
            log(trace, "packet_sent", frames=[{"number": number, "text": "x" * 100}])

    many(2000)
    tracemalloc.start()
    try:
        many(20000)  # 6 MB
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    traces.end_trace(trace)
    (path,) = tmp_path.iterdir()
    assert len(read_trace(path)[1]) == 22000


async def test_many_connections_need_no_open_files(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    traces = QlogDirectory(tmp_path)
    before = open_files()
    live = [answered(traces, os.urandom(8)) for _ in range(300)]
    for trace in live:
        log(trace, "alive")
    await asyncio.sleep(0)
    assert len(files(tmp_path)) == 300
    assert open_files() == before


async def test_a_full_disk_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traces = QlogDirectory(tmp_path)
    with caplog.at_level(logging.WARNING), small_files(4096):
        async with served(configuration=server_configuration(quic_logger=traces)) as server:
            for _ in range(3):
                async with http_client(server) as client:
                    for _ in range(10):
                        answer = await client.request("POST", "/echo", body=b"served")
                        assert answer.body == b"served"
    warnings = [each.getMessage() for each in caplog.records if each.name == "quicferry.io"]
    assert warnings == [f"cannot write traces into {tmp_path}: File too large; no more are written"]
    for path in files(tmp_path):
        records = path.read_bytes().split(b"\x1e")[1:-1]
        assert all(json.loads(record) for record in records)  # whole as far as it goes


@pytest.mark.parametrize("where", ["/proc/traces", "/dev/null", "/dev/null/traces", "a\0b"])
def test_a_directory_that_cannot_be(where: str) -> None:
    with pytest.raises(TraceError, match="cannot write traces into "):
        QlogDirectory(Path(where))
