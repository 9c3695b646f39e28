"""The commands as a shell runs them, on 127.0.0.x."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from cli.command_line import (
    DEMO_APP,
    RunningServer,
    finish,
    moved,
    read_json,
    run,
    start,
    start_server,
)
from traces import names, read_trace

# fetch


ECHO = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    fields = [scope["raw_path"], *map(b": ".join, scope["headers"])]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"\\n".join(fields)})
"""


def test_url_with_a_user_and_without_a_scheme(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    server = start("serve", "echo:app", "--json", "--bind", "127.0.0.1:0", cwd=tmp_path)
    try:
        said = read_json(server)
        url = f"us%40er:secret@{said['address']}/a/../b#part"
        done = run("fetch", url, "--ca", said["certificate"], "-o", "-")
        sent = [
            b"/b",
            b"host: " + said["address"].encode(),
            b"authorization: Basic dXNAZXI6c2VjcmV0",
        ]
        assert done.stdout.split(b"\n") == sent
        own = run("fetch", url, "--insecure", "-H", "Authorization: Bearer x")
        assert own.stdout.split(b"\n")[2:] == [b"authorization: Bearer x"]
        form = run("fetch", said["address"], "--insecure", "-d", "a=1")
        assert b"content-type: application/x-www-form-urlencoded" in form.stdout.split(b"\n")
        other = ("-d", "{}", "-H", "Content-Type: application/json")
        json_sent = run("fetch", said["address"], "--insecure", *other).stdout
        assert json_sent.count(b"content-type") == 1
        assert b"content-type: application/json" in json_sent
    finally:
        server.terminate()
        finish(server)


def test_clients_forge_no_lines_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import logging\n" + ECHO + "    logging.warning('seen: %s', scope['path'])\n"
    )
    arguments = ("--json", "--bind", "127.0.0.1:0", "--log-level", "info")
    server = start("serve", "echo:app", *arguments, cwd=tmp_path)
    said = read_json(server)
    assert run("fetch", f"https://{said['address']}/%0aERROR%1b[31m", "--insecure").returncode == 0
    server.terminate()
    _, _, log = finish(server)
    lines = log.decode().splitlines()
    assert "WARNING root: seen: /\\nERROR\\x1b[31m" in lines
    assert any("GET /%0aERROR%1b[31m 3" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("ERROR") for line in lines)


@pytest.mark.parametrize("host", ["..example", f"{'a' * 64}.example"])
def test_fetch_from_what_no_host_can_be_called(host: str) -> None:
    done = run("fetch", f"https://{host}/")
    assert done.returncode == 6
    assert b"cannot be the name of a host" in done.stderr


def test_get(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"quicferry demo server")


def test_post_echoes_what_was_sent(shared_server: RunningServer, tmp_path: Path) -> None:
    assert shared_server.fetch("/echo", "-d", "hello").stdout == b"hello"
    body = bytes(range(256)) * 1000
    (tmp_path / "body").write_bytes(body)
    assert shared_server.fetch("/echo", "-d", f"@{tmp_path / 'body'}").stdout == body
    assert shared_server.fetch("/echo", "-d", "@-", data=body).stdout == body


def test_method_and_header(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/echo", "-X", "delete", "-H", "x-test: 1", "--fail")
    assert done.returncode == 22
    assert done.stderr == b"Error: the server answered with status 405\n"


def test_headers_of_http1_are_left_out_with_a_warning(shared_server: RunningServer) -> None:
    fields = ("Connection: keep-alive", "transfer-encoding: chunked", "te: trailers")
    options = [option for each in fields for option in ("-H", each)]
    done = shared_server.fetch("/echo", "-d", "hello", *options)
    assert (done.returncode, done.stdout) == (0, b"hello")
    assert done.stderr.decode().splitlines() == [
        "warning: left out connection, which HTTP/3 does not have",
        "warning: left out transfer-encoding, which HTTP/3 does not have",
    ]


def test_a_path_is_percent_encoded(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/é nowhere/%20?ü=[1]", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, 404)
    assert json.loads(done.stdout)["url"].endswith("/%C3%A9%20nowhere/%20?%C3%BC=[1]")


def test_output_file_takes_all_bodies(shared_server: RunningServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = shared_server.fetch("/bytes/1000?seed=3", "-o", output, "--repeat", "3")
    assert (done.returncode, done.stdout) == (0, b"")
    content = output.read_bytes()
    assert len(content) == 3000
    assert content[:1000] == content[2000:]


def test_json_has_a_line_for_each_response(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/upload", "-d", "hello", "--json", "--repeat", "2")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["event"], first["status"], first["server"]) == (
        "response",
        200,
        shared_server.address,
    )
    assert ["content-type", "application/json"] in first["headers"]
    assert json.loads(first["body"])["sha256"] == hashlib.sha256(b"hello").hexdigest()
    totals = [json.loads(each["body"])["total_bytes"] for each in (first, second)]
    assert totals[1] - totals[0] == 5


def test_json_carries_binary_bodies(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/bytes/100", "--json")
    assert "body_base64" in json.loads(done.stdout)


def test_status_is_no_failure_unless_asked(shared_server: RunningServer) -> None:
    assert shared_server.fetch("/nowhere").returncode == 0
    assert shared_server.fetch("/nowhere", "--fail").returncode == 22


def test_certificate_is_checked(shared_server: RunningServer) -> None:
    done = run("fetch", shared_server.url())
    assert done.returncode == 60
    assert b"--insecure" in done.stderr
    assert b"Traceback" not in done.stderr
    assert run("fetch", shared_server.url(), "--insecure").returncode == 0


def test_no_answer_is_a_timeout() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        host, port = silent.getsockname()
        done = run("fetch", f"https://{host}:{port}/", "--timeout", "0.5")
    assert done.returncode == 28
    assert b"within 0.5 s" in done.stderr


def test_nobody_there_is_known_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        host, port = silent.getsockname()
    done = run("fetch", f"https://{host}:{port}/", "--timeout", "3600")
    assert done.returncode == 7
    assert f"nobody listens at {host}:{port}".encode() in done.stderr


def test_a_server_that_ends_is_looked_for_again(server: RunningServer) -> None:
    client = start(
        *("fetch", server.url("/"), "--insecure", "--json", "--repeat", "1000000"),
        *("--interval", "0.05", "--timeout", "5"),
    )
    read_json(client)
    assert server.ctl("shutdown").returncode == 0
    assert client.stdout is not None
    *_, last = client.stdout.read().splitlines()
    assert json.loads(last)["event"] == "reconnecting"
    status, _, err = finish(client)
    assert (status, b"nobody listens" in err) == (7, True)


def test_unwritable_output(shared_server: RunningServer) -> None:
    done = shared_server.fetch("/", "-o", "/proc/nowhere")
    assert done.returncode == 23
    assert b"cannot write /proc/nowhere" in done.stderr


def test_server_without_the_extension(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--protocols", "none")
    assert server.fetch("/").returncode == 0
    finish(server.process)


def test_retry(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--retry")
    assert server.fetch("/").returncode == 0
    finish(server.process)


def test_qlog_and_secrets(shared_server: RunningServer, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    done = shared_server.fetch(
        "/", "--qlog", tmp_path / "qlog", env={**os.environ, "SSLKEYLOGFILE": str(secrets)}
    )
    assert done.returncode == 0
    (trace,) = (tmp_path / "qlog").glob("*-client.sqlog")
    assert "migration:connection_closed" in names(read_trace(trace)[1])
    assert b"CLIENT_TRAFFIC_SECRET_0" in secrets.read_bytes()
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600


# serve


def test_certificate_is_made_with_a_warning(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    assert server.certificate.read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    status, _, err = finish(server.process)
    assert status == 0
    assert b"warning: no certificate was given" in err
    assert not server.certificate.exists()


def test_own_certificate_is_used_without_warning(tmp_path: Path) -> None:
    from quicferry.server import self_signed

    cert, key = self_signed(["127.0.0.1"])
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    server = start_server(tmp_path, "--cert", tmp_path / "cert.pem", "--key", tmp_path / "key.pem")
    done = run("fetch", server.url(), "--ca", tmp_path / "cert.pem")
    assert done.returncode == 0
    assert finish(server.process)[2] == b""


def test_unusable_certificate(tmp_path: Path) -> None:
    done = run("serve", DEMO_APP, "--cert", __file__, "--key", __file__)
    assert done.returncode == 1
    assert b"holds no certificate in PEM" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_address_in_use(server: RunningServer) -> None:
    done = run("serve", DEMO_APP, "--bind", server.address)
    assert done.returncode == 1
    assert f"cannot bind {server.address}".encode() in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server_in_order(server: RunningServer, number: signal.Signals) -> None:
    server.process.send_signal(number)
    status, out, err = finish(server.process)
    assert status == 0
    assert json.loads(out.splitlines()[-1]) == {"event": "stopped"}
    assert b"Traceback" not in err
    assert not server.socket.exists()


def test_people_are_told_where_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "management.sock"
    process = start("serve", DEMO_APP, "--bind", "127.0.0.1:0", "--socket", path, "--until-eof")
    assert process.stderr is not None
    lines = [process.stderr.readline().decode() for _ in range(4)]
    assert "warning" in lines[0]
    assert "listening on       https://127.0.0.1:" in lines[2]
    assert str(path) in lines[3]
    status, out, _ = finish(process)
    assert (status, out) == (0, b"")


# ctl


@pytest.mark.parametrize("protocol", ["explicit", "symmetric", "synchronized-symmetric", "auto"])
def test_a_client_follows_the_server(server: RunningServer, protocol: str) -> None:
    offered = "all" if protocol == "auto" else protocol
    client = start(
        "fetch", server.url(), "--insecure", "--json", "--repeat", "1000000", "--protocols", offered
    )
    assert read_json(client)["server"] == server.address
    destination = moved(server)
    done = server.ctl("migrate", destination, "--protocol", protocol, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert told["imminent"]["ready"] is True
    assert told["wait"]["completed"] is True
    completed = False
    while (said := read_json(client)).get("server") != destination:
        completed = completed or said["event"] == "MigrationCompleted"
    assert completed or read_json(client)["event"] in ("response", "MigrationCompleted")
    assert json.loads(server.ctl("status", "--json").stdout)["address"] == destination
    client.terminate()
    finish(client)


def start_busy_client(server: RunningServer) -> subprocess.Popen[bytes]:
    """Start a client that sends requests back to back; return when it is connected."""
    client = start("fetch", server.url(), "--insecure", "--repeat", "1000000", "-o", "/dev/null")
    while not json.loads(server.ctl("status", "--json").stdout)["connections"]:
        assert client.poll() is None, client.communicate()
    return client


def read_until_moved(client: subprocess.Popen[bytes]) -> list[str]:
    """Return what a client tells people until the server has moved; end the client."""
    assert client.stderr is not None
    told = [client.stderr.readline().decode()]
    while "has moved" not in told[-1]:
        assert told[-1], told
        told.append(client.stderr.readline().decode())
    client.terminate()
    finish(client)
    return told


def test_people_see_a_migration(server: RunningServer) -> None:
    client = start_busy_client(server)
    destination = moved(server)
    done = server.ctl("migrate", destination)
    assert done.returncode == 0
    assert b"completed" in done.stdout
    told = read_until_moved(client)
    assert told[0] == f"* the server is about to move to {destination}\n"
    assert told[-1] == f"* the server has moved to {destination} (explicit)\n"


def test_a_pool_is_used(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.2", 0))
        destination = "127.0.0.2:" + str(reserved.getsockname()[1])
    server = start_server(tmp_path, "--pool", destination)
    client = start_busy_client(server)
    done = server.ctl("migrate", destination, "--json")
    assert done.returncode == 0
    (used,) = json.loads(done.stdout)["imminent"]["connections"].values()
    assert used == "pool-of-addresses"
    told = read_until_moved(client)
    assert told[0] == f"* the server may move to {destination}\n"
    assert told[-1] == f"* the server has moved to {destination} (pool-of-addresses)\n"
    finish(server.process)


def test_steps_one_by_one(server: RunningServer) -> None:
    destination = moved(server)
    assert server.ctl("imminent", destination).returncode == 0
    assert server.ctl("abort").returncode == 0
    assert server.ctl("imminent", destination).returncode == 0
    done = server.ctl("switch", destination)
    assert done.returncode == 0
    assert destination.encode() in done.stdout
    assert server.ctl("wait").returncode == 0
    assert run("fetch", f"https://{destination}/", "--insecure").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["switch", "127.0.0.2:4433"], b"NOT_PREPARED"),
        (["abort"], b"NOT_PREPARED"),
        (["resume"], b"NOT_PREPARED"),
    ],
)
def test_refusals_are_one_line(server: RunningServer, arguments: list[str], code: bytes) -> None:
    done = server.ctl(*arguments)
    assert done.returncode == 1
    assert code in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_an_address_that_cannot_be_bound_changes_nothing(server: RunningServer) -> None:
    client = start("fetch", server.url(), "--insecure", "--json", "--repeat", "1000000")
    read_json(client)
    done = server.ctl("migrate", "192.0.2.1:4433", "--protocol", "symmetric")
    assert done.returncode == 1
    assert b"192.0.2.1:4433" in done.stderr
    assert read_json(client)["server"] == server.address
    assert json.loads(server.ctl("status", "--json").stdout)["address"] == server.address
    client.terminate()
    finish(client)


def test_shutdown(server: RunningServer) -> None:
    assert server.ctl("shutdown").returncode == 0
    assert finish(server.process)[0] == 0


def test_control_is_traced(server: RunningServer, tmp_path: Path) -> None:
    assert server.ctl("status", "--qlog", tmp_path / "qlog").returncode == 0
    (trace,) = (tmp_path / "qlog").iterdir()
    assert names(read_trace(trace)[1]) == ["quicferry:command", "quicferry:result"]


def test_a_server_that_is_stopped_leaves_its_traces(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--qlog", tmp_path / "qlog")
    client = start("fetch", server.url("/"), "--insecure", "--repeat", "2", "--interval", "20")
    assert client.stdout is not None
    client.stdout.readline()
    server.process.send_signal(signal.SIGTERM)
    assert finish(server.process)[0] == 0
    client.kill()
    finish(client)
    (trace,) = (tmp_path / "qlog").iterdir()
    sent = [each for each in read_trace(trace)[1] if each["name"] == "transport:packet_sent"]
    assert sent[-1]["data"]["frames"][0]["frame_type"] == "connection_close"


def test_socket_of_a_server_that_is_gone(tmp_path: Path) -> None:
    done = run("ctl", "--socket", tmp_path / "gone.sock", "status")
    assert done.returncode == 1
    assert b"gone.sock" in done.stderr
    assert b"Traceback" not in done.stderr


# A server that is started again


def test_a_client_of_a_server_that_was_killed_connects_again(tmp_path: Path) -> None:
    key = tmp_path / "key"
    first = start_server(tmp_path, "--key-file", key)
    client = start(
        *("fetch", first.url(), "--insecure", "--json", "--repeat", "1000000"),
        *("--interval", "0.01", "--timeout", "25"),
    )
    read_json(client)
    first.process.kill()
    finish(first.process)
    second = start_server(tmp_path, "--key-file", key, "--bind", first.address)
    while (event := read_json(client))["event"] == "response":
        pass
    assert event["event"] == "reconnecting"
    assert event["reason"].endswith("the server does not know this connection (any more)")
    assert read_json(client)["status"] == 200
    client.terminate()
    finish(client)
    assert finish(second.process)[0] == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"x" * 64)
    key.chmod(0o644)
    done = run("serve", DEMO_APP, "--bind", "127.0.0.1:0", "--key-file", key)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"Error: other users may use the key file")


# Several addresses


def test_a_server_with_several_addresses(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--bind", "127.0.0.2:0", "--bind", "[::1]:0")
    port = server.address.rpartition(":")[2]
    addresses = [f"{host}:{port}" for host in ("127.0.0.1", "127.0.0.2", "[::1]")]
    for address in addresses:
        done = run("fetch", f"https://{address}/", "--ca", server.certificate)
        assert done.returncode == 0, done.stderr
    assert json.loads(server.ctl("status", "--json").stdout)["addresses"] == addresses
    assert f"also at {addresses[1]}, {addresses[2]}".encode() in server.ctl("status").stdout
    assert server.ctl("migrate", f"127.0.0.3:{port}").returncode == 0
    done = run("fetch", f"https://{addresses[2]}/", "--ca", server.certificate)
    assert done.returncode == 0, done.stderr
    assert finish(server.process)[0] == 0
