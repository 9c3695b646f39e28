"""What strangers say is shown escaped, wherever it is: it moves no cursor and forges no line."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import quicferry_lab
from cli.command_line import CLI, LIMIT, RunningServer, finish, start_server
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from loopback import client_configuration, http_client, served, server_configuration
from relocation.credentials import issue

import quicferry
from quicferry import ConnectionProtocol, HttpClient
from quicferry.cli.help import Command
from quicferry.protocol import QuicferryError
from quicferry.protocol.logs import LOGGERS
from quicferry.server import load_pem

SOURCE = Path(quicferry.__file__).parent
EVIL = "evil\x1b[31m\x1b]0;title\x07\r\nERROR forged: line\nError: forged \x9b2J\u202e\u2028\x7f"


def assert_harmless(output: bytes) -> None:
    """Nothing but printable lines, none of them begun by a stranger."""
    for line in output.decode().split("\n"):
        assert line.isprintable(), line
        assert not line.startswith(("ERROR forged", "Error: forged")), line


# By construction


def calls_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_commands_speak_in_one_place() -> None:
    for path in (SOURCE / "cli").glob("*.py"):
        if path.name == "output.py":
            continue
        spoken = {"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"}
        assert not spoken & set(calls_of(ast.parse(path.read_text()))), path


def test_every_logger_escapes_what_strangers_say() -> None:
    named = set()
    for path in (*SOURCE.rglob("*.py"), *Path(str(quicferry_lab.__file__)).parent.rglob("*.py")):
        named |= set(re.findall(r'getLogger\("(quicferry[^"]*)"\)', path.read_text()))
    assert named - {*LOGGERS, quicferry_lab.LOGGER} == set()


@pytest.mark.parametrize("name", [*LOGGERS, quicferry_lab.LOGGER])
def test_records_are_escaped_whoever_handles_them(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger(name).error("%s: %r in %d ms", EVIL, ValueError(EVIL), 3)
    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert record.getMessage().startswith(r"evil\x1b[31m")
    assert record.getMessage().endswith("in 3 ms")


def test_lines_of_the_log_are_not_forged_by_errors(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        Command("anything", callback=lambda: None).main(
            ["--log-level", "error"], standalone_mode=False
        )
        try:
            raise ValueError(EVIL)
        except ValueError:
            logging.getLogger("third.party").exception("it fails: %s", EVIL)
        assert_harmless(capsys.readouterr().err.encode())
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_errors_are_printable() -> None:
    text = str(QuicferryError(f"the peer says {EVIL}"))
    assert text.isprintable()
    assert r"\x1b[31m" in text
    assert str(QuicferryError("plain é")) == "plain é"


# A server, and `fetch`


async def run(*arguments: object) -> tuple[int | None, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *CLI,
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT):
        out, err = await process.communicate()
    return process.returncode, out, err


class Closing(ConnectionProtocol):
    """A server's side that ends each connection as soon as it can, with words."""

    def quic_event_received(self, event: object) -> None:
        if type(event).__name__ == "HandshakeCompleted":
            self.close(0x101, EVIL)


@pytest.mark.parametrize("level", ["warning", "info", "debug"])
async def test_a_reason_for_which_a_server_closes(level: str) -> None:
    async with served(create_protocol=Closing) as server:
        url = f"https://{server.address}/"
        status, out, err = await run("fetch", url, "--insecure", "--log-level", level)
    assert status in (7, 56)
    assert out == b""
    assert_harmless(err)
    assert rb"evil\x1b[31m" in err


class Unwelcoming(ConnectionProtocol):
    """A server's side that refuses each connection, with words."""

    def receive(self, data: bytes, addr: Any) -> None:
        super().receive(data, addr)
        self.refuse(EVIL)


async def test_a_reason_for_which_a_server_refuses() -> None:
    async with served(create_protocol=Unwelcoming) as server:
        status, _, err = await run("fetch", f"https://{server.address}/", "--insecure")
    assert status == 7
    assert_harmless(err)
    assert rb"evil\x1b[31m" in err
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("level", ["warning", "debug"])
async def test_names_in_a_certificate(level: str) -> None:
    name = EVIL[:40]
    issued = issue("elsewhere.example", name=name)
    configuration = server_configuration()
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    load_pem(configuration, issued.certificate.public_bytes(Encoding.PEM), key)
    async with served(configuration=configuration) as server:
        url = f"https://{server.address}/"
        status, _, err = await run("fetch", url, "--log-level", level)
    assert status == 60
    assert_harmless(err)


async def test_header_fields_of_a_server() -> None:
    """Control characters make a response malformed; others are for programs, as JSON."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        fields = [(b"x-evil", b"evil\x9b2J \x85 \xff")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"\x1b[31mraw"})

    async with served(app) as server:
        url = f"https://{server.address}/"
        status, out, err = await run("fetch", url, "--insecure", "--json", "--log-level", "debug")
        assert status == 0
        assert_harmless(out)
        assert_harmless(err)
        headers = dict(json.loads(out.splitlines()[-1])["headers"])
        assert headers["x-evil"] == "evil\x9b2J \x85 \xff"
        _, out, _ = await run("fetch", url, "--insecure")
        assert out == b"\x1b[31mraw"  # as curl has it


# Clients, and `serve`


@pytest.mark.parametrize("level", ["warning", "info", "debug"])
async def test_what_clients_say_in_the_log_of_a_server(tmp_path: Path, level: str) -> None:
    running: RunningServer = await asyncio.to_thread(start_server, tmp_path, "--log-level", level)
    try:
        host, _, port = running.address.rpartition(":")
        configuration = client_configuration()
        configuration.cadata = None
        configuration.load_verify_locations(cafile=str(running.certificate))
        async with quicferry.connect(
            host, int(port), configuration=configuration, create_protocol=HttpClient
        ) as client:
            evil = (
                EVIL.encode("latin-1", "ignore")
                .translate(None, b"\x1b\x07\r\n\x7f")
                .decode("latin-1")
            )
            headers = {"user-agent": f'{evil} "', "referer": evil}
            await client.request("GET", "/%1b[31m%0d%0aERROR%20forged", headers=headers)
            client.close(0x101, EVIL)
        async with quicferry.connect(
            host, int(port), configuration=configuration, create_protocol=HttpClient
        ) as client:
            client.connection.send_stream_data(
                client.connection.get_next_available_stream_id(), b"\x01\x03\0\0\xff"
            )
            client.transmit()
            await client.wait_lost()
    finally:
        _, out, err = await asyncio.to_thread(finish, running.process)
    assert_harmless(out)
    assert_harmless(err)
    if level != "warning":
        assert rb"evil\x1b[31m" in err


# A server's management socket, and `ctl`


@asynccontextmanager
async def manager(path: Path, reply: dict[str, Any]) -> AsyncIterator[None]:
    """Provide a management socket that gives all commands the same answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            number = json.loads(line)["id"]
            writer.write(json.dumps({"id": number, **reply}).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield


REFUSAL = {"code": EVIL, "message": EVIL}
MIGRATE = ["--to", "127.0.0.2:4434", "--identity", "."]
STATUS = {
    "address": EVIL,
    "addresses": [EVIL],
    "phase": EVIL,
    "connections": [
        {"id": EVIL, "client": EVIL, "progress": EVIL, "negotiated": [EVIL], "announced": EVIL}
    ],
}
REPORT = {
    "source": EVIL,
    "destination": EVIL,
    "reason": EVIL,
    "failed_phase": EVIL,
    "announced": {EVIL: EVIL},
    "outcome": "rolled-back",
    "phases": {EVIL: 1.0},
    "address": "127.0.0.1:4433",
}


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (["ctl", "--socket", "PATH", "status"], {"ok": True, "result": STATUS}),
        (["ctl", "--socket", "PATH", "status", "--json"], {"ok": True, "result": STATUS}),
        (
            ["ctl", "--socket", "PATH", "status"],
            {"ok": False, "error": {"code": EVIL, "message": EVIL}},
        ),
        (
            ["ctl", "--socket", "PATH", "imminent"],
            {"ok": False, "error": {"code": EVIL, "message": EVIL}},
        ),
        (["migrate", *MIGRATE, "--socket", "PATH"], {"ok": True, "result": REPORT}),
    ],
)
async def test_what_a_server_says_to_its_orchestrator(
    tmp_path: Path, command: list[str], reply: dict[str, Any]
) -> None:
    path = tmp_path / "m.sock"
    async with manager(path, reply):
        _, out, err = await run(*(path if each == "PATH" else each for each in command))
    assert_harmless(out)
    assert_harmless(err)
    assert b"evil" in out + err
    assert b"internal error" not in err


async def test_a_good_client_beside_is_served() -> None:
    async with served() as server, http_client(server) as good:
        async with http_client(server) as hostile:
            await hostile.request("GET", "/%1b")
            hostile.close(0x101, EVIL)
        assert (await good.request("POST", "/", body=b"x")).body == b"x"
